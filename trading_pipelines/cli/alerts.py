"""`alerts list | show | replay | test`: what became of alerts, again, and a test of the way."""

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
from trading_pipelines.cli.render import fail, out, shown_age
from trading_pipelines.cli.sessions import configured_webhooks
from trading_pipelines.korean_time import kst
from trading_pipelines.runtime.sessions import market_connection
from trading_pipelines.settings.environment import load_environment

app = typer.Typer(help="Alerts: what became of them, again, a test.", no_args_is_help=True)


@app.command("list")
def alerts_list(
    state: Annotated[
        list[ledger.DeliveryState] | None, typer.Option(help="Only these; may be given again.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help=f"Only this of {', '.join(KINDS)}.")] = None,
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
        found = ledger.listed(
            connection, since=now - time_span(since), states=state, kind=kind, limit=limit
        )
    if as_json:
        for one in found:
            sys.stdout.write(f"{json.dumps(asdict(one), default=str, ensure_ascii=False)}\n")
        return
    table = Table(title=f"alerts, now {kst(now)}", title_justify="left")
    for heading in ("id", "kind", "what", "happened", "state", "age", "tries"):
        table.add_column(heading, no_wrap=heading in {"id", "state"}, overflow="fold")
    table.add_column("next try, message or last error", overflow="fold")
    for one in found:
        said = " ".join(filter(None, (_next_try(one), one.message_id or one.last_error, _via(one))))
        table.add_row(
            str(one.id),
            one.kind,
            escape(str(one.body.get("symbol") or one.body.get("type") or one.source_id)),
            kst(one.occurred_at),
            one.state,
            shown_age(now - one.created_at),
            str(one.attempts),
            escape(said),
        )
    out.print(table if found else f"no alerts in {since}")


@app.command("show")
def alerts_show(number: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Show one alert: what is posted, and each try with its time, answer and latency.

    Example: trading-pipelines alerts show 17
    """
    with market_connection(load_environment()) as connection:
        found = ledger.listed(connection, ids=[number])
        tries = attempts.read(connection, number)
    if not found:
        fail(f"there is no alert {number}; `trading-pipelines alerts list` shows what there is")
    (one,) = found
    out.print(f"{one.kind} {one.id}: {one.source} {one.source_id} -> {one.channel}, {one.state}")
    out.print_json(data=one.body, ensure_ascii=False)
    for tried in tries:
        seconds = "" if tried.seconds is None else f"{tried.seconds:.2f} s, "
        answer = escape(tried.answer or "no answer on record")
        out.print(f"{tried.number}. {kst(tried.started_at)} via {tried.via}: {seconds}{answer}")


@app.command("replay")
def alerts_replay(
    numbers: Annotated[list[int] | None, typer.Argument(metavar="[ID]...")] = None,
    *,
    dead: Annotated[bool, typer.Option("--dead", help="All that were given up.")] = False,
    since: Annotated[str, typer.Option(help="With --dead, how far back: 24h, 7d.")] = "7d",
) -> None:
    """Send alerts again: those given, whatever became of them, or all dead ones.

    The sensors of a running `up` send them, each as a new message; a kind that is off stays silent.

    Example: trading-pipelines alerts replay --dead --since 24h
    """
    if bool(numbers) == dead:
        raise typer.BadParameter("either IDs, or --dead")
    with market_connection(load_environment()) as connection:
        wanted = numbers or [
            one.id
            for one in ledger.listed(
                connection,
                since=datetime.now(UTC) - time_span(since),
                states=[ledger.DeliveryState.DEAD],
            )
        ]
        again = ledger.replay(connection, wanted)
    if missing := sorted(set(wanted) - set(again)):
        fail(f"{len(again)} will be sent again, but not {', '.join(map(str, missing))}: "
              "there is no such alert, or nothing was ever made of it to send")  # fmt: skip
    out.print(f"{len(again)} will be sent again")


@app.command("test")
def alerts_test() -> None:
    """Send one of each kind, marked as a test, and show what n8n or Discord answers.

    Example: trading-pipelines alerts test
    """
    posting = configured_webhooks()
    via = N8N if posting.n8n_url else DISCORD
    failed = 0
    for channel, body in sample_bodies(datetime.now(UTC)).items():
        answer = posting.post(via, channel, body)
        is_good = answer.outcome is PostOutcome.DELIVERED
        failed += not is_good
        colour = "green" if is_good else "red"
        said = answer.message_id or "" if is_good else answer.text
        out.print(f"{channel:<13}[{colour}]{answer.outcome}[/] {escape(said)} "
                  f"({answer.seconds:.2f} s, via {via})", soft_wrap=True)  # fmt: skip
    if failed:
        fail(f"{failed} of {len(CHANNELS)} were not delivered")


def _next_try(one: ledger.Delivery) -> str:
    is_waiting = one.state in {ledger.DeliveryState.PENDING, ledger.DeliveryState.RETRYING}
    return f"from {kst(one.next_at)}" if is_waiting else ""


def _via(one: ledger.Delivery) -> str:
    return "(to Discord directly)" if one.via == DISCORD else ""
