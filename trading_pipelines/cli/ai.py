"""`ai`: whether the AI is worth its money, as a table or as JSON."""

import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import typer
from rich.table import Table

from trading_pipelines.cli.options import JsonOption, SinceOption, time_span
from trading_pipelines.cli.render import inert, out
from trading_pipelines.korean_time import kst
from trading_pipelines.runtime.sessions import market_connection
from trading_pipelines.scorecard.entries import read_entries
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.strategy_file import load_strategy

app = typer.Typer()


@app.command("ai")
def show(since: SinceOption = "90d", *, as_json: JsonOption = False) -> None:
    """Show what the AI's CONFIRM and REJECT came to beside every entry taken, and what that proves.

    By model, regime, symbol, reason, confidence and the volatility flag.

    Example: trading-pipelines ai --since 90d
    """
    from trading_pipelines.scorecard import words
    from trading_pipelines.scorecard.score import days_needed, score

    now = datetime.now(UTC)
    start = now - time_span(since)
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    with market_connection(environment) as connection:
        read = read_entries(connection, start, now, now, settings)
    comparisons = score(read.entries, days_needed(settings))
    if as_json:
        for comparison in comparisons:
            sys.stdout.write(
                f"{json.dumps(comparison.figures(), default=int, ensure_ascii=False)}\n"
            )
        return
    if not read.entries:
        out.print(f"no decisions with an outcome in {since}")
        return
    _print(
        f"the AI's entries, {kst(start)} to {kst(now)}",
        [words.shown(comparison) for comparison in comparisons],
    )
    _print("how often it was right, by its confidence", words.shown_confidence(comparisons))
    for line in (words.headline(comparisons[0]), words.confidence_line(comparisons[0]),
                 words.left_out_line(read)):  # fmt: skip
        out.print(line, soft_wrap=True)


def _print(title: str, rows: Sequence[Mapping[str, str]]) -> None:
    table = Table(title=title, title_justify="left")
    for heading in rows[0]:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*map(inert, row.values()))
    out.print(table)
