"""`trades | decisions | risk | rejections`: the bot's rows in Korean time."""

import sys
from collections.abc import Callable
from datetime import UTC, datetime

import typer
from rich.table import Table

from trading_pipelines import bot_views
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


def _add_command(
    name: str,
    view: bot_views.View,
    as_cells: Callable[[bot_views.BotRow], dict[str, str]],
    help_: str,
    *,
    rows_are: str = "",
) -> None:
    """Add the command that shows the rows of a view; `rows_are` is what they are called."""
    title = rows_are or name

    @app.command(name, help=help_)
    def show(
        since: SinceOption = "7d",
        symbol: SymbolOption = None,
        limit: LimitOption = 50,
        *,
        as_json: JsonOption = False,
    ) -> None:
        if symbol is not None:
            with usage_error(symbols="--symbol"):
                StrategySettings(symbols=[symbol])
        start = datetime.now(UTC) - time_span(since)
        with market_connection(load_environment()) as connection:
            rows = bot_views.read(connection, view, since=start, symbol=symbol, limit=limit)
        if as_json:
            sys.stdout.writelines(f"{bot_views.json_line(row)}\n" for row in rows)
        elif rows:
            _print_rows(title, list(map(as_cells, rows)))
        else:
            out.print(f"no {title}{f' of {symbol}' if symbol else ''} in {since}")


def _print_rows(title: str, rows: list[dict[str, str]]) -> None:
    table = Table(title=f"{title}, now {kst(datetime.now(UTC))}", title_justify="left")
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


_add_command(
    "trades",
    bot_views.TRADES,
    bot_views.shown_trade,
    """Show the bot's orders, the newest first, in Korean time.

    Example: trading-pipelines trades --since 3d --symbol KRW-BTC
    """,
)
_add_command(
    "decisions",
    bot_views.DECISIONS,
    bot_views.shown_decision,
    """Show what the bot's AI decided and why, the newest first, in Korean time.

    Example: trading-pipelines decisions --since 24h --symbol KRW-BTC
    """,
)
_add_command(
    "risk",
    bot_views.RISK,
    bot_views.shown_risk,
    """Show the bot's risk violations, cooldowns and halts, the newest first, in Korean time.

    With --symbol only the violations that name an order: no other risk event has a symbol.

    Example: trading-pipelines risk --since 30d
    """,
    rows_are="risk events",
)
_add_command(
    "rejections",
    bot_views.REJECTIONS,
    bot_views.shown_rejection,
    """Show what became of the entries that the AI refused, the newest first, in Korean time.

    Example: trading-pipelines rejections --since 7d --symbol KRW-BTC
    """,
)
