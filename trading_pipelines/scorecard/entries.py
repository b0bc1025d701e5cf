"""The entries that the AI decided on, and what each made: by the bot's own trades, or by the exits.

Everything is as of a moment: no trade, exit or decision after it is used. What the entries come to
together belongs in `score`.
"""

import math
from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from operator import attrgetter
from typing import NamedTuple
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from trading_pipelines.alerts.daily_report.pnl import Order, close
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.rejections.exit_rules import (
    ExitRules,
    exit_rules_of,
    time_to_settle,
)

# The bot orders within seconds of its decision; a limit order may wait.
LATEST_BUY = timedelta(minutes=5)
# The bot decides on a symbol once a minute.
DOUBLED_WITHIN = timedelta(seconds=10)
# What is left of a purchase after rounding is no open position.
LEFT_OVER = Decimal("0.01")
# More than the stake was never lost, nor won within an exit: such a price is an error of the bot's.
LARGEST_RETURN = 1

# The stake is by the settings that the outcome was computed by, not by today's.
READ_DECISIONS = """
SELECT told.decision_id AS id, told.decision = 'CONFIRM' AS is_confirmed, told.symbol,
    told.decided_at, told.regime, coalesce(nullif(told.model, ''), 'not named') AS model,
    told.reason_family AS reason, to_jsonb(bot)->>'confidence' AS confidence, told.exit_at,
    told.result_krw, (kept.settings->>'reject_outcomes.notional_krw')::numeric
        * trading_pipelines.number_or_null(kept.settings->('regimes.' || told.regime)->>'size')
        AS stake_krw
FROM trading_pipelines.decision_outcomes AS told
LEFT JOIN public.agent_decisions AS bot ON bot.id = told.decision_id
LEFT JOIN trading_pipelines.signal_coverage AS made ON made.symbol = told.symbol
    AND made.day = told.day AND made.asset = lower(told.decision) || '_outcomes'
LEFT JOIN trading_pipelines.signal_settings AS kept
    ON kept.asset = made.asset AND kept.digest = made.settings_digest
WHERE told.decided_at >= %(start)s AND told.decided_at < %(end)s
ORDER BY told.decided_at, told.decision_id
"""
# All of history: which purchase a sale closes depends on all before it. Of the same instant, what
# was bought comes first, as in the daily report. A bot's column of text may hold anything.
READ_TRADES = """
SELECT told.id, told.symbol, told.side, said.price, said.quantity, said.fee, true AS today,
    coalesce(told.side IN ('BUY', 'SELL') AND said.price > 0 AND said.quantity > 0, false)
    AS usable, at
FROM public.trading_history AS told, coalesce(told.executed_at, told.created_at) AS at,
    LATERAL (
        SELECT trading_pipelines.number_or_null(row->>'price') AS price,
            trading_pipelines.number_or_null(row->>'quantity') AS quantity,
            trading_pipelines.number_or_null(row->>'fee') AS fee
        FROM to_jsonb(told) AS row
    ) AS said
WHERE told.status = 'FILLED' AND at <= %(as_of)s
ORDER BY at, told.side, told.created_at, told.id
"""
READ_FLAGS = """
SELECT as_of, is_high_volatility AS is_up FROM trading_pipelines.volatility_forecast
WHERE symbol = %(symbol)s AND horizon = %(horizon)s
    AND as_of > %(start)s - %(valid)s AND as_of <= %(end)s
ORDER BY as_of
"""


@dataclass(frozen=True)
class Trade(Order):
    """A FILLED order of the bot's that has a time."""

    at: datetime = field(kw_only=True)


@dataclass(frozen=True)
class Decided:
    """A decision with its outcome by the exits, as stored; `confidence` as the bot wrote it."""

    id: int
    is_confirmed: bool
    symbol: str
    decided_at: datetime
    regime: str
    model: str
    reason: str
    confidence: str | None
    exit_at: datetime | None
    result_krw: Decimal | None
    stake_krw: Decimal | None


class Flag(NamedTuple):
    """The published volatility flag as of a moment (UTC); None where it could not be told."""

    as_of: datetime
    is_up: bool | None


class Entry(NamedTuple):
    """An entry that the AI decided on, and what it made as of a moment; not known: None."""

    id: int
    symbol: str
    decided_at: datetime
    is_confirmed: bool
    regime: str
    model: str
    reason: str
    confidence: float | None
    """Percent."""
    is_flagged: bool | None
    """Whether the volatility flag was up when it was decided."""
    stake_krw: Decimal | None
    result_krw: Decimal | None
    """After fees, to the won; by the bot's own trades where it has closed them."""
    exit_return: float | None
    """By the exits of its regime, whatever the bot did: the same measure for both decisions."""
    by_trades: bool


@dataclass(frozen=True)
class Entries:
    """The entries of an interval, and what of the bot's rows is in none of them."""

    entries: list[Entry]
    doubled: int
    """Decisions that repeat the one before within seconds."""
    undecided: int
    """Purchases in the interval that follow no CONFIRM."""


def read_entries(
    connection: psycopg.Connection,
    start: datetime,
    end: datetime,
    as_of: datetime,
    settings: StrategySettings,
) -> Entries:
    """Return the entries decided in [start, end) and before `as_of`, as of that moment (UTC)."""
    volatility = settings.volatility
    valid = timedelta(seconds=settings.regime_detection.redis_ttl_seconds)
    asked = {
        "start": start,
        "end": min(end, as_of),
        "as_of": as_of,
        "symbol": settings.symbols[0],
        "horizon": volatility.published_horizon or max(volatility.horizons),
        "valid": valid,
    }
    with connection.cursor(row_factory=class_row(Decided)) as cursor:
        decided = cursor.execute(READ_DECISIONS, asked).fetchall()
    with connection.cursor(row_factory=class_row(Trade)) as cursor:
        trades = [trade for trade in cursor.execute(READ_TRADES, asked) if trade.usable]
    flags = [Flag(*row) for row in connection.execute(READ_FLAGS, asked)]
    stakes = {
        regime: settings.reject_outcomes.notional_krw * rules.size
        for regime in {decision.regime for decision in decided}
        if isinstance(rules := exit_rules_of(settings, regime), ExitRules)
    }
    decisions = _once(decided)
    positions = _positions(trades, decisions)
    bought = {trade.id for own in positions.values() for trade in own.trades}
    undecided = sum(
        trade.side == "BUY" and trade.at >= start and trade.at < end and trade.id not in bought
        for trade in trades
    )
    over_before = as_of - time_to_settle(settings)
    entries = [
        _entry(
            decision,
            positions.get(decision.id),
            as_of,
            stakes,
            is_flagged=_flag_at(flags, decision.decided_at, valid),
            is_over=decision.decided_at <= over_before,
        )
        for decision in decisions
    ]
    return Entries(entries, len(decided) - len(decisions), undecided)


def _once(decided: Iterable[Decided]) -> list[Decided]:
    """Return the decisions without those that repeat one of the same symbol within seconds."""
    last: dict[tuple[str, bool, str], datetime] = {}
    kept = []
    for decision in decided:
        key = decision.symbol, decision.is_confirmed, decision.model
        if key not in last or decision.decided_at - last[key] > DOUBLED_WITHIN:
            kept.append(decision)
            last[key] = decision.decided_at
    return kept


@dataclass
class _Position:
    """What was bought on one CONFIRM, and what its sales made so far."""

    trades: list[Trade]
    made: Fraction = Fraction(0)
    open: int = 0
    """Of its purchases, those that are not sold."""

    @property
    def stake(self) -> Fraction:
        return sum((Fraction(t.price) * Fraction(t.quantity) for t in self.trades), Fraction(0))


def _positions(trades: Sequence[Trade], decided: Sequence[Decided]) -> dict[int, _Position]:
    """Return what was bought on each CONFIRM and sold since, by the decision's id.

    A purchase is of the last CONFIRM of its symbol before it. Sales close the oldest purchases.
    """
    confirms: defaultdict[str, list[Decided]] = defaultdict(list)
    for decision in decided:
        if decision.is_confirmed:
            confirms[decision.symbol].append(decision)
    positions: dict[int, _Position] = {}
    position_of: dict[UUID, _Position] = {}
    lots: defaultdict[str, deque[tuple[Trade, Decimal]]] = defaultdict(deque)
    for trade in trades:
        if trade.side == "SELL":
            _sell(trade, lots[trade.symbol], position_of)
            continue
        lots[trade.symbol].append((trade, trade.quantity))
        before = confirms[trade.symbol]
        place = bisect_right(before, trade.at, key=attrgetter("decided_at")) - 1
        if place >= 0 and trade.at - before[place].decided_at <= LATEST_BUY:
            position = positions.setdefault(before[place].id, _Position([]))
            position.trades.append(trade)
            position.open += 1
            position_of[trade.id] = position
    return positions


def _sell(
    sale: Trade, lots: deque[tuple[Trade, Decimal]], position_of: dict[UUID, _Position]
) -> None:
    """Close the oldest lots by the sale, and note in their positions what it made of them."""
    closed, _ = close(lots, sale.quantity)
    for buy, part in closed:
        if buy.id in position_of:
            position_of[buy.id].made += Fraction(part) * (sale.unit() - buy.unit())
    if lots and lots[0][1] <= lots[0][0].quantity * LEFT_OVER:
        lots.popleft()
    still_open = lots[0][0].id if lots else None
    for buy, _ in closed:
        if buy.id in position_of and buy.id != still_open:
            position_of[buy.id].open -= 1


def _entry(
    decision: Decided,
    position: _Position | None,
    as_of: datetime,
    stakes: dict[str, Decimal],
    *,
    is_flagged: bool | None,
    is_over: bool,
) -> Entry:
    """Return the entry; nothing is known of it until its exit's time limit is over.

    Else what is stopped early would be judged before what is not.
    """
    stake = result = exit_return = None
    by_trades = False
    if is_over and decision.exit_at is not None and decision.exit_at <= as_of:
        stake, result = decision.stake_krw or stakes.get(decision.regime), decision.result_krw
        if not stake or result is None or abs(result) > stake * LARGEST_RETURN:
            stake = result = None
        else:
            exit_return = float(result / stake)
    is_closed = is_over and position is not None and not position.open
    if is_closed and position and abs(position.made) <= position.stake * LARGEST_RETURN:
        stake, result = _won(position.stake), _won(position.made)
        by_trades = True
    return Entry(
        decision.id, decision.symbol, decision.decided_at, decision.is_confirmed,
        decision.regime, decision.model, decision.reason,
        _percent(decision.confidence), is_flagged, stake, result, exit_return, by_trades,
    )  # fmt: skip


def _won(amount: Fraction) -> Decimal:
    return Decimal(round(amount))


def _percent(written: str | None) -> float | None:
    """Return the confidence that the bot wrote; None where it is no number from 0 to 100."""
    try:
        percent = float(written or "")
    except ValueError:
        return None
    return percent if math.isfinite(percent) and 0 <= percent <= 100 else None


def _flag_at(flags: Sequence[Flag], at: datetime, valid: timedelta) -> bool | None:
    """Return the flag that the bot found at the moment: the newest that had not expired."""
    place = bisect_right(flags, at, key=attrgetter("as_of")) - 1
    if place < 0 or at >= flags[place].as_of + valid:
        return None
    return flags[place].is_up
