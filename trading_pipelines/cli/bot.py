"""`trades | decisions | risk | rejections`: the bot's rows in Korean time."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime

import typer
from rich.table import Table

from trading_pipelines import bot_tables
from trading_pipelines.cli.options import (
    JsonOption,
    LimitOption,
    SinceOption,
    SymbolOption,
    time_span,
    usage_error,
)
from trading_pipelines.cli.render import inert, out
from trading_pipelines.korean_time import kst
from trading_pipelines.runtime.sessions import market_connection
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.strategy import StrategySettings

app = typer.Typer()


@app.command()
def trades(
    since: SinceOption = "7d",
    symbol: SymbolOption = None,
    limit: LimitOption = 50,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show the bot's orders, the newest first, in Korean time.

    Example: trading-pipelines trades --since 3d --symbol KRW-BTC
    """
    _show_bot_rows(
        "trades", bot_tables.TRADES, bot_tables.shown_trade, since, symbol, limit, as_json=as_json
    )


@app.command()
def decisions(
    since: SinceOption = "7d",
    symbol: SymbolOption = None,
    limit: LimitOption = 50,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show what the bot's AI decided and why, the newest first, in Korean time.

    Example: trading-pipelines decisions --since 24h --symbol KRW-BTC
    """
    _show_bot_rows(
        "decisions",
        bot_tables.DECISIONS,
        bot_tables.shown_decision,
        since,
        symbol,
        limit,
        as_json=as_json,
    )


@app.command()
def risk(
    since: SinceOption = "7d",
    symbol: SymbolOption = None,
    limit: LimitOption = 50,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show the bot's risk violations, cooldowns and halts, the newest first, in Korean time.

    A symbol is known of violations by an order alone.

    Example: trading-pipelines risk --since 30d
    """
    _show_bot_rows(
        "risk events", bot_tables.RISK, bot_tables.shown_risk, since, symbol, limit, as_json=as_json
    )


@app.command()
def rejections(
    since: SinceOption = "7d",
    symbol: SymbolOption = None,
    limit: LimitOption = 50,
    *,
    as_json: JsonOption = False,
) -> None:
    """Show what became of the entries that the AI refused, the newest first, in Korean time.

    Example: trading-pipelines rejections --since 7d --symbol KRW-BTC
    """
    _show_bot_rows(
        "rejections",
        bot_tables.REJECTIONS,
        bot_tables.shown_rejection,
        since,
        symbol,
        limit,
        as_json=as_json,
    )


def _show_bot_rows(
    what: str,
    view: bot_tables.View,
    shown: Callable[[bot_tables.BotRow], dict[str, str]],
    since: str,
    symbol: str | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    if symbol is not None:
        with usage_error():
            StrategySettings(symbols=[symbol])
    start = datetime.now(UTC) - time_span(since)
    with market_connection(load_environment()) as connection:
        found = bot_tables.read(connection, view, since=start, symbol=symbol, limit=limit)
    if as_json:
        sys.stdout.writelines(f"{bot_tables.json_line(row)}\n" for row in found)
        return
    if not found:
        out.print(f"no {what}{f' of {symbol}' if symbol else ''} in {since}")
        return
    table = Table(title=f"{what}, now {kst(datetime.now(UTC))}", title_justify="left")
    rows = list(map(shown, found))
    for heading in rows[0]:
        is_number = heading in {"price (KRW)", "quantity", "fee (KRW)"}
        table.add_column(
            heading,
            justify="right" if is_number else "left",
            no_wrap=is_number or heading in {"symbol", "level"},
            overflow="fold",
            # In 80 columns a date is whole, and a reason no tower.
            max_width={"happened": 10, "decision": 14}.get(heading) if out.width < 120 else None,
        )
    for row in rows:
        table.add_row(*map(inert, row.values()))
    out.print(table)
