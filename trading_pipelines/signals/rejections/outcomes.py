"""What became of a decision: the price afterwards, and what the strategy would make of the entry.

Pure arithmetic on closed one-minute candles; money is exact (Decimal, KRW). Which decisions there
are, and how far the candles reach, is asked in `partition`; sums over a week belong in `summary`.
"""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from operator import attrgetter
from typing import NamedTuple

from trading_pipelines.candles.windows import HOUR, MINUTE
from trading_pipelines.settings.strategy import RejectOutcomesSettings
from trading_pipelines.signals.rejections.exit_rules import HORIZONS, LONGEST_HORIZON, ExitRules

MICROSECOND = timedelta(microseconds=1)
# A price older than this is not the price at the decision: the market was halted.
FRESH_PRICE = HOUR
OTHER = "other"


class MinutePrices(NamedTuple):
    """A closed one-minute candle, by its start (UTC); prices in KRW."""

    start: datetime
    open: Decimal
    high: Decimal
    low: Decimal
    close: Decimal


@dataclass(frozen=True)
class Decision:
    """A CONFIRM or REJECT of the bot's, as it wrote it; what an older database lacks is None."""

    id: int
    decided_at: datetime
    price: Decimal | None
    regime: str | None
    model: str | None
    reason: str


class OutcomeState(StrEnum):
    """How much is known of a decision's outcome."""

    PENDING = "pending"
    COMPLETED = "completed"
    NO_PRICE = "no_price"
    """Neither the bot nor a candle of the hour before says what the price was."""


class ExitReason(StrEnum):
    """What closes the position."""

    TAKE_PROFIT = "take_profit"
    STOP_LOSS = "stop_loss"
    TIME_LIMIT = "time_limit"


class OutcomeVerdict(StrEnum):
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
    """What is known of a decision; a price, exit or result that is not known is None."""

    state: OutcomeState
    price: Decimal | None = None
    later: tuple[Decimal | None, ...] = (None,) * len(HORIZONS)
    best: Decimal | None = None
    worst: Decimal | None = None
    exit: Exit | None = None
    result_krw: Decimal | None = None
    """What the entry would have made, to the won: a loss is what the rejection saved."""

    @property
    def verdict(self) -> OutcomeVerdict | None:
        """Whether the rejection saved or cost money; None while the exit is not known."""
        if self.result_krw is None:
            return None
        if not self.result_krw:
            return OutcomeVerdict.EVEN
        return OutcomeVerdict.SAVED if self.result_krw < 0 else OutcomeVerdict.COST


def evaluate(
    decision: Decision,
    candles: Sequence[MinutePrices],
    as_of: datetime,
    exits: ExitRules | None,
    settings: RejectOutcomesSettings,
) -> Outcome:
    """Return the decision's outcome as of a moment: no candle that closed after it is used.

    `candles` are in order and reach from an hour before the decision to `as_of` without holes;
    minutes without a trade have none. The price is the bot's own, else the last close. The minute
    in which the decision fell is left out: its high and low may be older than the decision.

    Entry and exit are orders at market that fill at their price; each costs the fee. In a minute
    that touches both, the stop comes first: which was first is not known, and this is the worse.
    """
    at = decision.decided_at
    if as_of < at:
        return Outcome(OutcomeState.PENDING)
    reach = min(as_of, at + max(LONGEST_HORIZON, exits.limit if exits else LONGEST_HORIZON))
    closed = candles[_first(candles, at - FRESH_PRICE - MINUTE) : _first(candles, reach - MINUTE)]
    price = decision.price
    if not price or price <= 0:
        price = _last_close(closed, at)
    if price is None:
        return Outcome(OutcomeState.NO_PRICE)
    since = closed[_first(closed, at - MINUTE) :]
    later = tuple(
        _last_close(since, at + HOUR * hours) or price if at + HOUR * hours <= as_of else None
        for hours in HORIZONS
    )
    following = since[_first(since, at - MICROSECOND) :]
    seen = [candle for candle in following if candle.start + MINUTE <= at + LONGEST_HORIZON]
    is_over = at + LONGEST_HORIZON <= as_of
    position_exit = _exit(price, at, following, as_of, exits) if exits else None
    return Outcome(
        OutcomeState.COMPLETED
        if is_over and (position_exit or not exits)
        else OutcomeState.PENDING,
        price,
        later,
        best=max((candle.high for candle in seen), default=price) if is_over else None,
        worst=min((candle.low for candle in seen), default=price) if is_over else None,
        exit=position_exit,
        result_krw=_result(price, position_exit.price, exits, settings)
        if exits and position_exit
        else None,
    )


def _first(candles: Sequence[MinutePrices], after: datetime) -> int:
    """Return the place of the first candle that starts after the moment."""
    return bisect_right(candles, after, key=attrgetter("start"))


def _last_close(candles: Sequence[MinutePrices], at: datetime) -> Decimal | None:
    """Return the last close at or before `at`."""
    n = _first(candles, at - MINUTE)
    return candles[n - 1].close if n else None


def _exit(
    price: Decimal,
    at: datetime,
    following: Iterable[MinutePrices],
    as_of: datetime,
    exits: ExitRules,
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
    price: Decimal, exit_price: Decimal, exits: ExitRules, settings: RejectOutcomesSettings
) -> Decimal:
    paid = Decimal(settings.notional_krw) * exits.size
    fee = Decimal(str(settings.fee_pct)) / 100
    return (paid * exit_price / price * (1 - fee) - paid * (1 + fee)).quantize(Decimal(1))


def reason_family(reason: str, families: Mapping[str, Sequence[str]]) -> str:
    """Return the first family of which a keyword begins a word of the reason, whatever its case.

    A Korean keyword may stand anywhere; "persistent" is not about the RSI.
    """
    text = reason.casefold()
    for family, keywords in families.items():
        if any(re.search(rf"(?<![a-z]){re.escape(word.casefold())}", text) for word in keywords):
            return family
    return OTHER
