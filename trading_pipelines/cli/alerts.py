"""`alerts list | show | replay | test`: what became of alerts; send again; test where they go."""

import json
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from trading_pipelines.alerts import attempts, ledger
from trading_pipelines.alerts.kinds import CHANNELS, KINDS, sample_bodies
from trading_pipelines.alerts.webhooks import DISCORD, N8N, PostOutcome
from trading_pipelines.cli.options import JsonOption, LimitOption, SinceOption, time_span
from trading_pipelines.cli.render import age_text, fail, out
from trading_pipelines.cli.sessions import configured_webhooks
from trading_pipelines.korean_time import kst
from trading_pipelines.runtime.sessions import market_connection
from trading_pipelines.settings.environment import load_environment

app = typer.Typer(
    help="Alerts: what became of them, sending them again, a test.", no_args_is_help=True
)


@app.command("list")
def alerts_list(
    state: Annotated[
        list[ledger.DeliveryState] | None,
        typer.Option(help="Only alerts in this state; may be given again."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help=f"Only alerts of this kind: {', '.join(KINDS)}.")
    ] = None,
    since: SinceOption = "7d",
    limit: LimitOption = 50,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show alerts with their state, age, attempts and last error, in Korean time.

    Example: trading-pipelines alerts list --state dead --since 24h
    """
    if kind and kind not in KINDS:
        raise typer.BadParameter(f"{kind}: one of {', '.join(KINDS)}")
    now = datetime.now(UTC)
    with market_connection(load_environment()) as connection:
        deliveries = ledger.listed(
            connection, since=now - time_span(since), states=state, kind=kind, limit=limit
        )
    if as_json:
        for delivery in deliveries:
            sys.stdout.write(f"{json.dumps(asdict(delivery), default=str, ensure_ascii=False)}\n")
        return
    table = Table(title=f"alerts, now {kst(now)}", title_justify="left")
    for heading in ("id", "kind", "what", "happened", "state", "age", "tries"):
        table.add_column(heading, no_wrap=heading in {"id", "state"}, overflow="fold")
    table.add_column("next try, message or last error", overflow="fold")
    for delivery in deliveries:
        body = delivery.body
        result = (
            _next_attempt(delivery),
            delivery.message_id or delivery.last_error,
            "(to Discord directly)" if delivery.via == DISCORD else "",
        )
        table.add_row(
            str(delivery.id),
            delivery.kind,
            escape(str(body.get("symbol") or body.get("type") or delivery.source_id)),
            kst(delivery.occurred_at),
            delivery.state,
            age_text(now - delivery.created_at),
            str(delivery.attempts),
            escape(" ".join(filter(None, result))),
        )
    out.print(table if deliveries else f"no alerts in {since}")


@app.command("show")
def alerts_show(
    delivery_id: Annotated[
        int, typer.Argument(metavar="ID", help="The alert's number in `alerts list`.")
    ],
) -> None:
    """Show one alert: what is posted, and each attempt with its time, answer and latency.

    Example: trading-pipelines alerts show 17
    """
    with market_connection(load_environment()) as connection:
        deliveries = ledger.listed(connection, ids=[delivery_id])
        tried = attempts.read(connection, delivery_id)
    if not deliveries:
        fail(
            f"there is no alert {delivery_id}; `trading-pipelines alerts list` shows what there is"
        )
    (delivery,) = deliveries
    source = f"{delivery.source} {delivery.source_id}"
    out.print(
        f"{delivery.kind} {delivery.id}: {source} -> {delivery.channel}, {delivery.state}",
        soft_wrap=True,
    )
    out.print_json(data=delivery.body, ensure_ascii=False)
    for attempt in tried:
        seconds = "" if attempt.seconds is None else f"{attempt.seconds:.2f} s, "
        answer = escape(attempt.answer or "no answer on record")
        started_at = kst(attempt.started_at)
        out.print(f"{attempt.number}. {started_at} via {attempt.via}: {seconds}{answer}")


@app.command("replay")
def alerts_replay(
    delivery_ids: Annotated[
        list[int] | None,
        typer.Argument(metavar="[ID]...", help="Numbers of alerts in `alerts list`."),
    ] = None,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="All alerts that were given up.")] = False,
    since: Annotated[str, typer.Option(help="With --dead, how far back: 24h, 7d.")] = "7d",
) -> None:
    """Send alerts again: those given, whatever became of them, or all dead ones.

    The sensors of a running `up` send them, each as a new message; a kind that is off stays silent.

    Example: trading-pipelines alerts replay --dead --since 24h
    """
    if bool(delivery_ids) == dead:
        raise typer.BadParameter("either IDs, or --dead")
    with market_connection(load_environment()) as connection:
        requested = delivery_ids or [
            delivery.id
            for delivery in ledger.listed(
                connection,
                since=datetime.now(UTC) - time_span(since),
                states=[ledger.DeliveryState.DEAD],
            )
        ]
        replayed = ledger.replay(connection, requested)
    if missing := sorted(set(requested) - set(replayed)):
        fail(
            f"{len(replayed)} will be sent again, but not {', '.join(map(str, missing))}: there is "
            "no such alert, or nothing was ever made of it to send"
        )
    out.print(f"{len(replayed)} will be sent again")


@app.command("test")
def alerts_test() -> None:
    """Send one alert of each kind, marked as a test, and show what n8n or Discord answers.

    Example: trading-pipelines alerts test
    """
    webhooks = configured_webhooks()
    via = N8N if webhooks.n8n_url else DISCORD
    failed = 0
    for channel, body in sample_bodies(datetime.now(UTC)).items():
        answer = webhooks.post(via, channel, body)
        is_good = answer.outcome is PostOutcome.DELIVERED
        failed += not is_good
        colour = "green" if is_good else "red"
        detail = answer.message_id or "" if is_good else answer.text
        out.print(
            f"{channel:<13}[{colour}]{answer.outcome}[/] {escape(detail)} "
            f"({answer.seconds:.2f} s, via {via})",
            soft_wrap=True,
        )
    if failed:
        fail(f"{failed} of {len(CHANNELS)} were not delivered")


def _next_attempt(delivery: ledger.Delivery) -> str:
    waiting = {ledger.DeliveryState.PENDING, ledger.DeliveryState.RETRYING}
    return f"from {kst(delivery.next_at)}" if delivery.state in waiting else ""
