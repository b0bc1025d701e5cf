"""What became of a rejection: the price afterwards, and what the strategy would have made of it.

Pure arithmetic on closed one-minute candles; money is exact (Decimal, KRW). Which rejections there
are, and how far the candles reach, is asked in `compute`; sums over a week are `reject_summary`'s.
"""

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple, TypeGuard

from trading_pipelines.candles.windows import DAY, HOUR, MINUTE
from trading_pipelines.settings import RejectOutcomesSettings, StrategySettings
from trading_pipelines.signals.regime import Regime

HORIZONS = (1, 4, 12, 24)
"""Hours after the decision at which the price is noted; the best and worst are of the longest."""

LONGEST = HOUR * max(HORIZONS)
MICROSECOND = timedelta(microseconds=1)
# A price older than this is not the price at the decision: the market was halted.
FRESH = HOUR
# Thirty days: an outcome that takes longer says nothing of the decision.
MOST_HOURS = 720
OTHER = "other"
# The names that bots give to their time limit, in hours.
TIME_LIMITS = ("max_hours", "time_limit_hours", "max_holding_hours")


class Candle(NamedTuple):
    """A closed one-minute candle, by its start (UTC); prices in KRW."""

    start: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal


@dataclass(frozen=True)
class Rejection:
    """A REJECT of the bot's, as it wrote it; what an older database lacks is None."""

    id: int
    decided_at: datetime
    price: Decimal | None
    regime: str | None
    model: str | None
    reason: str


@dataclass(frozen=True)
class Exits:
    """How the strategy leaves a position: fractions of the price, a time, and its size (of 1)."""

    take_profit: Decimal
    stop_loss: Decimal
    limit: timedelta
    size: Decimal


class State(StrEnum):
    """How much is known of a rejection's outcome."""

    PENDING = "pending"
    COMPLETED = "completed"
    NO_PRICE = "no_price"
    """Neither the bot nor a candle of the hour before says what the price was."""


class ExitReason(StrEnum):
    """What would have closed the position."""

    TAKE_PROFIT = "take_profit"
    STOP_LOSS = "stop_loss"
    TIME_LIMIT = "time_limit"


class Verdict(StrEnum):
    """What the rejection did, after fees."""

    SAVED = "saved"
    COST = "cost"
    EVEN = "even"


@dataclass(frozen=True)
class Exit:
    """The position's end: the close (UTC) of the minute in which it happened, at which price."""

    at: datetime
    price: Decimal
    reason: ExitReason


@dataclass(frozen=True)
class Outcome:
    """What is known of a rejection; a price, exit or result that is not known is None."""

    state: State
    price: Decimal | None = None
    later: tuple[Decimal | None, ...] = (None,) * len(HORIZONS)
    best: Decimal | None = None
    worst: Decimal | None = None
    exit: Exit | None = None
    result_krw: Decimal | None = None
    """What the entry would have made, to the won: a loss is what the rejection saved."""

    @property
    def verdict(self) -> Verdict | None:
        """Whether the rejection saved or cost money; None while the exit is not known."""
        if self.result_krw is None:
            return None
        if not self.result_krw:
            return Verdict.EVEN
        return Verdict.SAVED if self.result_krw < 0 else Verdict.COST


def exits(settings: StrategySettings, regime: str) -> Exits | str:
    """Return the exits of a regime in the bot's section `regimes`, or why they are not known.

    Those of UNKNOWN are its fallback's. The section is the bot's, so nothing in it stops a start:
    what can't be read is said with each outcome instead.
    """
    if regime == Regime.UNKNOWN:
        regime = settings.regime_detection.unknown_fallback
    if isinstance(settings.regimes, str):
        return settings.regimes
    if not isinstance(settings.regimes, Mapping) or regime not in settings.regimes:
        return f"regimes.{regime} is not in the settings"
    section = settings.regimes[regime]
    content = section if isinstance(section, Mapping) else {}
    given = content.get("exit")
    given = given if isinstance(given, Mapping) else {}
    limit = next((name for name in TIME_LIMITS if name in given), TIME_LIMITS[0])
    numbers = {}
    for name, most in (("take_profit_pct", 1), ("stop_loss_pct", 1), (limit, MOST_HOURS)):
        value = given.get(name)
        if not _is_number(value) or not 0 < value < most:
            allowed = (
                f"hours, less than {MOST_HOURS}"
                if name == limit
                else "a fraction, such as 0.03 for 3 %"
            )
            return f"regimes.{regime}.exit.{name} is {value!r}; wanted: {allowed}"
        numbers[name] = value
    size = content.get("position_size_ratio", 1)
    if not _is_number(size) or not 0 < size < math.inf:
        return f"regimes.{regime}.position_size_ratio is {size!r}; wanted: a share, such as 0.5"
    return Exits(
        take_profit=Decimal(str(numbers["take_profit_pct"])),
        stop_loss=Decimal(str(numbers["stop_loss_pct"])),
        limit=timedelta(hours=numbers[limit]),
        size=Decimal(str(size)),
    )


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def time_to_settle(settings: StrategySettings) -> timedelta:
    """Return how long after a decision its outcome may still be open."""
    known = (exits(settings, regime) for regime in Regime)
    return max([LONGEST, *(one.limit for one in known if isinstance(one, Exits))])


def days_after(settings: StrategySettings) -> int:
    """Return how many UTC days after its own a day's rejections are followed."""
    return -(-time_to_settle(settings) // DAY)


def judge(
    rejection: Rejection,
    candles: Sequence[Candle],
    as_of: datetime,
    exits: Exits | None,
    settings: RejectOutcomesSettings,
) -> Outcome:
    """Return the rejection's outcome as of a moment: no candle that closed after it is used.

    `candles` are in order and reach from an hour before the decision to `as_of` without holes;
    minutes without a trade have none. The price is the bot's own, else the last close. The minute
    in which the decision fell is left out: its high and low may be older than the decision.

    Entry and exit are orders at market that fill at their price; each costs the fee. In a minute
    that touches both, the stop comes first: which was first is not known, and this is the worse.
    """
    at = rejection.decided_at
    if as_of < at:
        return Outcome(State.PENDING)
    reach = min(as_of, at + max(LONGEST, exits.limit if exits else LONGEST))
    closed = candles[_first(candles, at - FRESH - MINUTE) : _first(candles, reach - MINUTE)]
    price = rejection.price
    if not price or price <= 0:
        price = _last_close(closed, at)
    if price is None:
        return Outcome(State.NO_PRICE)
    since = closed[_first(closed, at - MINUTE) :]
    later = tuple(
        _last_close(since, at + HOUR * hours) or price if at + HOUR * hours <= as_of else None
        for hours in HORIZONS
    )
    following = since[_first(since, at - MICROSECOND) :]
    seen = [candle for candle in following if candle.start + MINUTE <= at + LONGEST]
    is_over = at + LONGEST <= as_of
    left = _exit(price, at, following, as_of, exits) if exits else None
    return Outcome(
        State.COMPLETED if is_over and (left or not exits) else State.PENDING,
        price,
        later,
        best=max((one.high for one in seen), default=price) if is_over else None,
        worst=min((one.low for one in seen), default=price) if is_over else None,
        exit=left,
        result_krw=_result(price, left.price, exits, settings) if exits and left else None,
    )


def _first(candles: Sequence[Candle], after: datetime) -> int:
    """Return the place of the first candle that starts after the moment."""
    return bisect_right(candles, after, key=attrgetter("start"))


def _last_close(candles: Sequence[Candle], at: datetime) -> Decimal | None:
    """Return the last close at or before `at`."""
    n = _first(candles, at - MINUTE)
    return candles[n - 1].close if n else None


def _exit(
    price: Decimal, at: datetime, following: Iterable[Candle], as_of: datetime, exits: Exits
) -> Exit | None:
    stop, target = price * (1 - exits.stop_loss), price * (1 + exits.take_profit)
    end = at + exits.limit
    last = price
    for candle in following:
        closes_at = candle.start + MINUTE
        if closes_at > end:
            break
        # A minute that opens beyond a level has its first trade there, and none at the level.
        if candle.open >= target:
            return Exit(closes_at, candle.open, ExitReason.TAKE_PROFIT)
        if candle.low <= stop:
            return Exit(closes_at, min(stop, candle.open), ExitReason.STOP_LOSS)
        if candle.high >= target:
            return Exit(closes_at, target, ExitReason.TAKE_PROFIT)
        last = candle.close
    return Exit(end, last, ExitReason.TIME_LIMIT) if end <= as_of else None


def _result(
    price: Decimal, left_at: Decimal, exits: Exits, settings: RejectOutcomesSettings
) -> Decimal:
    paid = Decimal(settings.notional_krw) * exits.size
    fee = Decimal(str(settings.fee_pct)) / 100
    return (paid * left_at / price * (1 - fee) - paid * (1 + fee)).quantize(Decimal(1))


def reason_family(reason: str, families: Mapping[str, Sequence[str]]) -> str:
    """Return the first family of which a keyword begins a word of the reason, whatever its case.

    A Korean keyword may stand anywhere; "persistent" is not about the RSI.
    """
    text = reason.casefold()
    for family, keywords in families.items():
        if any(re.search(rf"(?<![a-z]){re.escape(word.casefold())}", text) for word in keywords):
            return family
    return OTHER
