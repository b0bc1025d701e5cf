"""Options that several commands share, and how their texts are read."""

import contextlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer
from pydantic import ValidationError

from trading_pipelines.candles.windows import DAY
from trading_pipelines.runtime.backfill import BackfillTarget
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import in_words, load_strategy

SymbolsOption = Annotated[
    str | None, typer.Option(help="Markets, separated by commas (default: the settings').")
]
FirstDayOption = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="First UTC day (default: data.start_date)."),
]
LastDayOption = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="Last UTC day, inclusive (default: yesterday)."),
]

HIGHEST_PORT = 65535
SinceOption = Annotated[str, typer.Option(help="How far back: 30m, 24h, 7d.")]
SymbolOption = Annotated[str | None, typer.Option(help="Only this market, such as KRW-BTC.")]
LimitOption = Annotated[int, typer.Option(help="The most rows to show, the newest first.", min=1)]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line, UTC.")]


def time_span(text: str) -> timedelta:
    """Return the span that a text such as 30m, 24h or 7d means; anything else is wrong usage."""
    match = re.fullmatch(r"(\d{1,5})([mhd])", text)
    if not match:
        raise typer.BadParameter(f"{text}: a number and m, h or d, such as 24h")
    unit = {"m": "minutes", "h": "hours", "d": "days"}[match[2]]
    return timedelta(**{unit: int(match[1])})


def backfill_target(
    environment: Environment, symbols: str | None, start: datetime | None, end: datetime | None
) -> BackfillTarget:
    """Return the target of the options; the settings file is read only for what they leave out."""
    today = datetime.now(UTC).date()
    settings = StrategySettings()
    if symbols is None or start is None:
        settings = load_strategy(environment.trading_pipelines_config)
    names = settings.symbols
    if symbols is not None:
        names = [name.strip() for name in symbols.split(",") if name.strip()]
    first = start.date() if start else settings.data.start_date
    last = end.date() if end else today - DAY
    with usage_error(symbols="--symbols", start_date="--start"):
        StrategySettings.model_validate({"symbols": names, "data": {"start_date": first}})
    if first > last:
        raise typer.BadParameter(f"--start {first} is after --end {last}")
    if last > today:
        raise typer.BadParameter(f"--end {last} is in the future; today is {today} in UTC")
    return BackfillTarget(tuple(names), first, last)


@contextlib.contextmanager
def usage_error(**options: str) -> Iterator[None]:
    """Turn what the settings refuse of an option into wrong usage, in the words of the file.

    `options` names the option of each setting.
    """
    try:
        yield
    except ValidationError as error:
        problems = []
        for detail in error.errors(include_url=False):
            loc = detail["loc"]
            option = next(options[str(part)] for part in reversed(loc) if str(part) in options)
            key = f" ({'.'.join(map(str, loc))})" if loc[0] == "data" else ""
            problems.append(f"{option}{key} {in_words(detail, loc)}")
        raise typer.BadParameter(". ".join(problems)) from error
