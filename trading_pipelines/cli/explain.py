"""`explain`: one moment of one symbol called to account, by `signals/explain`."""

import json
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from trading_pipelines.cli.render import out
from trading_pipelines.korean_time import KST, kst
from trading_pipelines.runtime.sessions import market_connection
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.strategy_file import load_strategy

if TYPE_CHECKING:
    from trading_pipelines.signals.explain import ExplainedValue, Explanation

app = typer.Typer()


@app.command()
def explain(
    symbol: Annotated[str, typer.Argument(metavar="SYMBOL", help="A market, such as KRW-BTC.")],
    moment: Annotated[
        str,
        typer.Argument(
            metavar="MOMENT",
            help="In Korean time, 2026-11-24T09:00, or with its zone: 2026-11-24T00:00Z.",
        ),
    ],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, UTC, equal wherever the inputs are.")
    ] = False,
    runs: Annotated[
        bool, typer.Option("--runs", help="In the JSON too: runs, moments and versions.")
    ] = False,
) -> None:
    """Show what was computed of a moment, from what and by what, and whether it is so computed now.

    The label, variance, model, forecasts and flag as of the last close before the moment, and what
    became of the decisions of the hour after it. Nothing is written.

    Example: trading-pipelines explain KRW-BTC 2026-11-24T09:00
    """
    from trading_pipelines.signals import explain as account

    at = _moment(moment)
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    with market_connection(environment) as connection:
        explanation = account.explain(connection, symbol, at, settings, datetime.now(UTC))
    if as_json:
        content = explanation.account(here=runs)
        sys.stdout.write(f"{json.dumps(content, default=_plain, ensure_ascii=False)}\n")
        return
    for line in _lines(explanation):
        out.print(line, soft_wrap=True)


def _moment(text: str) -> datetime:
    """Return the moment (UTC) of a text; without a zone it is Korean."""
    given = text.strip().removesuffix("KST").removesuffix("UTC").strip()
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise typer.BadParameter(
            f"{text}: a moment such as 2026-11-24T09:00 (KST), 2026-11-24T00:00Z or "
            "2026-11-24T09:00+09:00"
        ) from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC if text.strip().endswith("UTC") else KST)
    return moment.astimezone(UTC)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, date) else str(value)


def _lines(explanation: "Explanation") -> Iterator[str]:
    yield f"[bold]{explanation.symbol} as of {kst(explanation.as_of)}[/]"
    for flag in explanation.flags():
        yield escape(f"flag, {flag['horizon']} h: {_shown(flag)}")
    for value in explanation.values:
        yield ""
        yield from _value_lines(value)


def _value_lines(value: "ExplainedValue") -> Iterator[str]:
    name = " ".join(filter(None, (value.asset, value.symbol, f"{value.day}")))
    yield f"[bold]{escape(name)}[/] (UTC day), computed to {kst(value.computed_until)}"
    for row in value.rows:
        yield escape(f"  {_shown(row)}")
    made_by = "not on record" if value.settings is None else _shown(value.settings) or "none"
    yield escape(f"  settings: {made_by}")
    yield escape(
        f"  code version {value.code_version or 'not on record'}, run {value.here.run_id or '-'}, "
        f"computed {kst(value.here.computed_at)}"
    )
    for rows in value.inputs:
        yield escape(
            f"  from {rows.asset} {', '.join(filter(None, rows.symbols))} {rows.first_day} to "
            f"{rows.last_day}: {rows.rows:,} rows, {rows.digest}"
        )
    for candles in value.candles:
        source = candles.source or "not on record"
        yield escape(
            f"  candles of {candles.symbol} {candles.first_day} to {candles.last_day}: "
            f"{candles.candles:,} in {candles.days} days, source {source}"
        )
    if value.equal is None:
        yield "  [yellow]now: it can't be computed, its inputs are not all there[/]"
    elif value.equal:
        yield "  [green]computed again now: equal to the bit[/]"
    for difference in value.differences:
        yield "  [red]computed again now:[/] " + escape(
            f"{difference.column} {difference.recomputed}, stored {difference.stored} "
            f"({_shown(difference.row)})"
        )
    for change in value.changed_since:
        yield escape(f"  changed since: {change}")


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
