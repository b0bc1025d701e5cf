"""What the command line prints: tables, progress, messages. Nothing is asked or decided here."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import NoReturn

import regex
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from trading_pipelines.candles import coverage
from trading_pipelines.korean_time import kst
from trading_pipelines.monitoring.facts import Check
from trading_pipelines.monitoring.status import DuePartition, lines_by_interval
from trading_pipelines.runtime.backfill import BackfillOutcome, BackfillProgress
from trading_pipelines.signals.published.current import CurrentSignal
from trading_pipelines.signals.published.flags import DAYS, FlagShare

PLAIN_PROGRESS_SECONDS = 5.0
# Elsewhere than at a terminal (a log, a pipe) a table is as wide as it needs.
out = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
err = Console(highlight=False, stderr=True)


def fail(reason: str) -> NoReturn:
    """Print what went wrong as one line and exit with status 1."""
    err.print(f"[red]failed[/]: {escape(reason)}", soft_wrap=True)
    sys.exit(1)


def say(text: str) -> None:
    """Print a line; rich's markup in it is followed."""
    out.print(text)


def show(part: RenderableType) -> None:
    """Print a table, a panel or anything else that rich draws."""
    out.print(part)


def inert(text: str) -> Text:
    """Return a text of the bot's without control characters: a model wrote parts of it."""
    # Nor with those that turn the direction of writing around.
    return Text(regex.sub(r"[\p{Cc}\u2028-\u202e\u2066-\u2069]+", " ", text))


def print_step(step: str) -> None:
    """Print a step of something that takes a while, beside the output."""
    err.print(escape(step), soft_wrap=True)


def age_text(age: timedelta) -> str:
    """Return a span to its largest unit: 45 s, 12 min, 3 h, 5 d."""
    for unit, seconds in (("d", 86400), ("h", 3600), ("min", 60)):
        if age.total_seconds() >= 2 * seconds:
            return f"{age.total_seconds() / seconds:.0f} {unit}"
    return f"{age.total_seconds():.0f} s"


@contextlib.contextmanager
def drawn_progress() -> Iterator[Callable[[BackfillProgress], None]]:
    """Yield what draws progress: a bar at a terminal, a plain line every few seconds elsewhere."""
    started = time.monotonic()
    if out.is_terminal:
        with Progress(
            TextColumn("{task.fields[rows]:,} rows  {task.fields[requests]:,} requests"),
            TextColumn("{task.fields[computed]}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=out,
        ) as bar:
            task = bar.add_task("", total=1.0, rows=0, requests=0, computed="")
            yield lambda p: bar.update(
                task,
                completed=p.share,
                rows=p.rows,
                requests=p.requests,
                computed=_computed(p),
                description=p.doing,
            )
        return
    printed_at = -PLAIN_PROGRESS_SECONDS
    begun: tuple[float, float] | None = None

    def line(progress: BackfillProgress) -> None:
        nonlocal printed_at, begun
        passed = time.monotonic() - started
        share = progress.share
        if share and begun is None:
            begun = passed, share
        if passed - printed_at < PLAIN_PROGRESS_SECONDS:
            return
        printed_at = passed
        left = ""
        if begun is not None and begun[1] < share < 1:
            seconds = (passed - begun[0]) * (1 - share) / (share - begun[1])
            left = f"{seconds:.0f} s left, "
        out.print(
            f"{passed:5.0f} s  {progress.rows:>9,} rows  {progress.requests:>6,} requests  "
            f"{_computed(progress)}  {share:6.1%}  {left}{progress.doing}"
        )

    yield line


def _computed(progress: BackfillProgress) -> str:
    total = f"{progress.to_compute:,}"
    return f"{progress.computed:>{len(total)},} of {total} computed"


def show_summary(outcome: BackfillOutcome, title: str) -> None:
    """Print what a backfill came to, and what of it failed."""
    print_summary(outcome.partitions, title, datetime.now(UTC))
    for line in lines_by_interval(
        DuePartition("", partition.symbol, partition.day, why) for partition, why in outcome.failed
    ):
        out.print(f"[red]failed[/] {escape(line)}", soft_wrap=True)
    for run in outcome.failed_runs:
        out.print(f"[red]failed[/] run {run}", soft_wrap=True)


def print_summary(partitions: Sequence[coverage.CandleCoverage], title: str, now: datetime) -> None:
    """Print a line of candles for each symbol."""
    lines = coverage.summarise(partitions, now)
    sources = ", ".join(dict.fromkeys(line.source for line in lines if line.source))
    table = Table(
        title=title,
        title_justify="left",
        caption=f"source: {escape(sources)}" if sources else None,
        caption_justify="left",
    )
    table.add_column("symbol", no_wrap=True)
    for name in ("days", "candles", "quiet minutes", "holes", "requests"):
        table.add_column(name, justify="right")
    for name in ("first", "last"):
        table.add_column(name)
    for line in lines:
        table.add_row(
            line.symbol,
            f"{line.complete_days} of {line.days}",
            f"{line.candles:,}",
            f"{line.quiet:,}",
            f"{line.holes:,}",
            f"{line.requests:,}",
            kst(line.first),
            kst(line.last),
        )
    out.print(table)


def print_health(checks: Sequence[Check], now: datetime) -> None:
    """Print the checks; beside each bad one stands what mends it."""
    table = Table(title=f"health, now {kst(now)}", title_justify="left")
    for heading in ("check", "state", "found", "allowed", "what to do"):
        table.add_column(heading, no_wrap=heading in {"check", "state"}, overflow="fold")
    states = {True: "[green]good[/]", False: "[red]bad[/]", None: "[yellow]not known[/]"}
    for check in checks:
        # Where nothing is known, mending the database comes first.
        advice = check.advice if check.good is False else ""
        words = map(escape, (check.found, check.allowed, advice))
        table.add_row(check.name, states[check.good], *words)
    out.print(table)


def print_signals(signals: Sequence[CurrentSignal]) -> None:
    """Print the newest regime and volatility of each symbol."""
    table = Table(title="current signals", title_justify="left")
    rows = [signal.shown() for signal in signals]
    for heading in rows[0] if rows else []:
        # In 80 columns a time is folded, a symbol never.
        table.add_column(heading, no_wrap=heading in {"symbol", "regime"}, overflow="fold")
    for row in rows:
        table.add_row(*row.values())
    out.print(table if signals else "no signals yet")


def print_flags(symbol: str, shares: Sequence[FlagShare], published: int) -> None:
    """Print how much of the time the bot would have refused every entry, by horizon."""
    title = f"is_high_volatility of {symbol}, last {DAYS} days: the bot refuses every entry if up"
    table = Table(title=title, title_justify="left")
    for heading in ("horizon", "hours with a forecast", "flag up", "read by the bot"):
        table.add_column(heading, justify="right")
    for share in shares:
        up = f"{share.hours_up / share.hours:.1%}" if share.hours else "no forecasts"
        is_read = "yes" if share.horizon == published else "no"
        table.add_row(f"{share.horizon} h", f"{share.hours:,}", up, is_read)
    out.print(table)


def exit_by(outcome: BackfillOutcome) -> None:
    """Exit with status 1 where the backfill failed, and say how much of it."""
    if outcome.failed:
        fail(f"{len(outcome.failed)} of {len(outcome.partitions)} partitions")
    if not outcome.succeeded:
        fail(f"see the runs of backfill {outcome.backfill_id} in the UI")


def print_healed(missed: dict[str, int], healed: dict[str, float]) -> None:
    """Print what an outage cost, and after how many seconds each was there again."""
    table = Table(title="what the outage cost", title_justify="left")
    for heading in ("", "missed", "lost", "there again after"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, number in missed.items():
        after = healed.get(name)
        lost, when = ("?", "[red]not yet[/]") if after is None else ("0", f"{after:.0f} s")
        table.add_row(name, f"{number:,}", lost, when)
    out.print(table)
