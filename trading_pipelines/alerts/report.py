"""The daily report: what the tables say of one KST day, as figures and as the webhook's body.

A day is 00:00 to 24:00 in Seoul, and nothing after its end is looked at. What the bot traded is
matched first in, first out, over its whole history. What is not known is counted and said, never a
0. Nothing is written or sent here, and no clock is read: when and whether to tell is the caller's.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from typing import Any
from uuid import UUID

import psycopg
from psycopg.rows import class_row

from trading_pipelines.candles import coverage
from trading_pipelines.candles.store import INTERVAL
from trading_pipelines.candles.windows import DAY, HOUR, Interval, day_interval
from trading_pipelines.korean_time import KST, kst

SUMMARY_LENGTH = 2000
WAITING = ("pending", "retrying", "digested")

# Of the same instant, what was bought comes first: a tie must not leave a sell without its buy.
# In Postgres NaN is greater than every number.
ORDERS = """
SELECT id, symbol, side, price, quantity, nullif(fee, 'NaN') AS fee, at >= %(start)s AS today,
    side IN ('BUY', 'SELL') AND price > 0 AND price < 'NaN' AND quantity > 0 AND quantity < 'NaN'
    AS usable
FROM public.trading_history, coalesce(executed_at, created_at) AS at
WHERE status = 'FILLED' AND (at < %(end)s) IS NOT FALSE
ORDER BY at, side, created_at, id
"""
DECISIONS = """
SELECT CASE WHEN created_at IS NOT NULL THEN decision END, count(*) FROM public.agent_decisions
WHERE (created_at >= %(start)s AND created_at < %(end)s) IS NOT FALSE GROUP BY 1 ORDER BY 1
"""
# A digested alert is as its digest is; the digest itself is no alert of its own.
ALERTS = """
SELECT alert.kind, coalesce(digest.state, alert.state) AS state, count(*)
FROM trading_pipelines.alert_deliveries AS alert
LEFT JOIN trading_pipelines.alert_deliveries AS digest ON digest.id = alert.digest_id
CROSS JOIN LATERAL coalesce(alert.occurred_at, alert.created_at) AS at
WHERE alert.source <> 'digest' AND at >= %(start)s AND at < %(end)s
GROUP BY 1, 2 ORDER BY 1, 2
"""
REGIMES = """
SELECT symbol, label, count(*) FROM trading_pipelines.regime_labels
WHERE symbol = ANY(%(symbols)s) AND hour >= %(start)s AND hour < %(end)s
GROUP BY symbol, label ORDER BY count(*) DESC, label
"""
FORECASTS = """
SELECT DISTINCT ON (symbol) symbol, status, nullif(annualized_volatility, 'NaN')
    AS annualized_volatility, is_high_volatility, valid_until
FROM trading_pipelines.volatility_forecast
WHERE symbol = ANY(%(symbols)s) AND as_of <= %(end)s
ORDER BY symbol, as_of DESC, horizon DESC
"""
# Up to where the exchange was asked, as `coverage` counts; a UTC day is more than the KST day's.
CANDLES = """
SELECT symbol, count(*) FROM public.market_data AS candle
JOIN trading_pipelines.candle_coverage AS known USING (symbol, interval)
WHERE interval = %(interval)s AND symbol = ANY(%(symbols)s)
  AND timestamp >= %(start)s AND timestamp < %(end)s
  AND known.day = (timestamp AT TIME ZONE 'UTC')::date AND timestamp < known.fetched_until
GROUP BY symbol
"""


@dataclass(frozen=True)
class Order:
    """A FILLED order of the bot's; `today` is None where it has no time at all."""

    id: UUID
    symbol: str
    side: str
    price: Decimal
    quantity: Decimal
    fee: Decimal | None
    today: bool | None
    usable: bool = True

    def unit(self) -> Fraction:
        """Return what one unit cost, or brought in, after the fee: a part has its share of it."""
        fee = Fraction(self.fee or 0) / Fraction(self.quantity)
        return Fraction(self.price) + (fee if self.side == "BUY" else -fee)


@dataclass
class SymbolFigures:
    """What the day's orders of one symbol came to; money in KRW."""

    trades: int = 0
    fees: Decimal = Decimal()
    """Of the day's orders, whether or not they closed anything."""
    trips: list[Decimal] = field(default_factory=list)
    """What each sell realised, after the fees of both sides."""
    unmatched: Decimal = Decimal()
    """Quantity sold with no buy on record: in no figure but `trades` and `fees`."""

    @property
    def pnl(self) -> Decimal:
        """The realised profit or loss."""
        return sum(self.trips, Decimal())

    @property
    def wins(self) -> int:
        """The sells that brought in more than they cost."""
        return sum(trip > 0 for trip in self.trips)


@dataclass
class Trading:
    """What the day's orders came to, and what had to be left out of it."""

    symbols: dict[str, SymbolFigures] = field(default_factory=dict)
    """By symbol, those that had an order in the day."""
    mdd: Decimal | None = None
    undated: int = 0
    """FILLED orders without any time, of the whole history."""
    unusable: int = 0
    """FILLED orders that are neither BUY nor SELL, or of no price or quantity; likewise."""
    fees_unknown: int = 0
    """Orders without a fee that the day's figures rest on, earlier buys included; it counts 0."""


@dataclass(frozen=True)
class Forecast:
    """The newest forecast of the longest horizon, as of the day's end."""

    symbol: str
    status: str
    annualized_volatility: float | None
    """1 is 100 % a year; empty where the status is no number."""
    is_high_volatility: bool | None
    valid_until: datetime


@dataclass
class Candles:
    """One symbol's minutes of the KST day, as far as they are known when this is read."""

    stored: int
    due: int = 0
    holes: int = 0
    """Never asked for."""
    gone: int = 0
    """Were stored and no longer are; of the whole UTC days."""
    failed: list[date] = field(default_factory=list)
    """UTC days with holes, the last attempt at which failed."""
    incomplete: list[date] = field(default_factory=list)
    """UTC days that had closed by the day's end and were not asked for whole since."""

    @property
    def quiet(self) -> int:
        """The minutes asked for in which nothing was traded."""
        return max(0, self.due - self.holes - self.stored - self.gone)


@dataclass(frozen=True)
class DailyReport:
    """One KST day; a symbol's trades count whether or not it is in the settings."""

    day: date
    trading: Trading
    regimes: Mapping[str, Mapping[str, int]]
    """Hours by label, by symbol of the settings."""
    forecasts: Mapping[str, Forecast]
    candles: Mapping[str, Candles]
    decisions: Mapping[str, int]
    undated_decisions: int
    alerts: Mapping[tuple[str, str], int]
    """What occurred in the day, by kind and by the state that it is in by now."""

    @property
    def window(self) -> Interval:
        """The day in UTC."""
        return window(self.day)

    @property
    def pnl(self) -> Decimal:
        """The realised PnL in KRW, after the fees of both sides."""
        return sum((figures.pnl for figures in self.trading.symbols.values()), Decimal())

    @property
    def fees(self) -> Decimal:
        """The fees of the day's orders, KRW."""
        return sum((figures.fees for figures in self.trading.symbols.values()), Decimal())

    @property
    def trades(self) -> int:
        """The FILLED orders executed in the day."""
        return sum(figures.trades for figures in self.trading.symbols.values())

    @property
    def round_trips(self) -> int:
        """The sells of the day that closed something, wholly or in part on record."""
        return sum(len(figures.trips) for figures in self.trading.symbols.values())

    @property
    def wins(self) -> int:
        """The round trips that made money after fees."""
        return sum(figures.wins for figures in self.trading.symbols.values())

    @property
    def win_rate(self) -> float | None:
        """Wins of the round trips, percent."""
        return 100 * self.wins / self.round_trips if self.round_trips else None

    @property
    def mdd(self) -> Decimal | None:
        """The largest fall of the day's realised PnL from a peak, its start included, KRW."""
        return self.trading.mdd

    @property
    def unmatched(self) -> dict[str, Decimal]:
        """The quantity sold with no buy on record, by symbol; not in the PnL."""
        return {s: f.unmatched for s, f in self.trading.symbols.items() if f.unmatched}

    def alerts_in(self, *states: str) -> int:
        """Return how many of the day's alerts are in one of the states."""
        return sum(count for (_, state), count in self.alerts.items() if state in states)


def window(day: date) -> Interval:
    """Return the KST day in UTC: from 15:00 of the UTC day before to 15:00."""
    start, end = (datetime.combine(d, time(), KST).astimezone(UTC) for d in (day, day + DAY))
    return Interval(start, end)


def compute(connection: psycopg.Connection, day: date, symbols: Sequence[str]) -> DailyReport:
    """Return the report of a KST day that is over; `symbols` are those of the settings."""
    whole = window(day)
    arguments = {
        "start": whole.start,
        "end": whole.end,
        "symbols": list(symbols),
        "interval": INTERVAL,
    }
    with connection.cursor(row_factory=class_row(Order)) as orders:
        trading = match(orders.execute(ORDERS, arguments))
    with connection.cursor(row_factory=class_row(Forecast)) as forecasts:
        newest = {one.symbol: one for one in forecasts.execute(FORECASTS, arguments)}
    regimes: dict[str, dict[str, int]] = {symbol: {} for symbol in symbols}
    for symbol, label, hours in connection.execute(REGIMES, arguments):
        regimes[symbol][label] = hours
    decisions: dict[str | None, int] = dict(connection.execute(DECISIONS, arguments).fetchall())
    return DailyReport(
        day,
        trading,
        regimes,
        newest,
        _candles(connection, whole, arguments),
        decisions={decision: n for decision, n in decisions.items() if decision},
        undated_decisions=decisions.get(None, 0),
        alerts={(kind, state): n for kind, state, n in connection.execute(ALERTS, arguments)},
    )


def match(orders: Iterable[Order]) -> Trading:
    """Match sells with the oldest buys left of their symbol; `orders` in order of execution.

    Exact until a sell's result is written down as a Decimal: thirds of a fee add up again.
    """
    trading = Trading()
    lots: defaultdict[str, deque[tuple[Order, Decimal]]] = defaultdict(deque)
    without_fee: set[UUID] = set()
    totals = [Decimal()]
    for order in orders:
        if order.today is None or not order.usable:
            trading.undated += order.today is None
            trading.unusable += order.today is not None
            continue
        closed: list[tuple[Order, Decimal]] = []
        left = order.quantity
        if order.side == "BUY":
            lots[order.symbol].append((order, order.quantity))
        else:
            closed, left = _close(lots[order.symbol], order.quantity)
        if not order.today:
            continue
        mine = trading.symbols.setdefault(order.symbol, SymbolFigures())
        mine.trades += 1
        mine.fees += order.fee or 0
        without_fee |= {one.id for one in (order, *(buy for buy, _ in closed)) if one.fee is None}
        if order.side == "SELL":
            mine.unmatched += left
        if closed:
            exact = sum(Fraction(part) * (order.unit() - buy.unit()) for buy, part in closed)
            mine.trips.append(Decimal(exact.numerator) / exact.denominator)
            totals.append(totals[-1] + mine.trips[-1])
    trading.fees_unknown = len(without_fee)
    if len(totals) > 1:
        peaks = accumulate(totals, max)
        trading.mdd = max(peak - total for peak, total in zip(peaks, totals, strict=True))
    return trading


def body(report: DailyReport, now: datetime) -> dict[str, Any]:
    """Return what the webhook `daily-report` takes; a rate or a fall that there is not is null."""
    return {
        "title": f"일일 리포트 {report.day} (KST)",
        "pnl": _number(report.pnl),
        "trades": report.trades,
        "win_rate": _number(report.win_rate),
        "mdd": _number(report.mdd),
        "summary": _fitted([*_head(report), *(_line(report, s) for s in _symbols(report))]),
        "timestamp": now.astimezone(UTC).isoformat(),
    }


def figures(report: DailyReport) -> dict[str, Any]:
    """Return the report as flat numbers, None where there is none."""
    candles = report.candles.values()
    return {
        "pnl": _number(report.pnl),
        "fees": _number(report.fees),
        "trades": report.trades,
        "round_trips": report.round_trips,
        "wins": report.wins,
        "win_rate": _number(report.win_rate),
        "mdd": _number(report.mdd),
        "symbols_with_unmatched_sells": len(report.unmatched),
        "orders_undated": report.trading.undated,
        "orders_unusable": report.trading.unusable,
        "orders_without_fee": report.trading.fees_unknown,
        "confirms": report.decisions.get("CONFIRM", 0),
        "rejects": report.decisions.get("REJECT", 0),
        "alerts_delivered": report.alerts_in("delivered"),
        "alerts_failed": report.alerts_in("dead"),
        "alerts_waiting": report.alerts_in(*WAITING),
        "candles_stored": sum(one.stored for one in candles),
        "candles_due": sum(one.due for one in candles),
        "candle_holes": sum(one.holes + one.gone for one in candles),
    }


def _close(
    lots: deque[tuple[Order, Decimal]], quantity: Decimal
) -> tuple[list[tuple[Order, Decimal]], Decimal]:
    """Take `quantity` off the oldest lots; return what was taken of which buy, and what is left."""
    closed = []
    while quantity and lots:
        buy, open_quantity = lots.popleft()
        part = min(quantity, open_quantity)
        closed.append((buy, part))
        quantity -= part
        if open_quantity > part:
            lots.appendleft((buy, open_quantity - part))
    return closed, quantity


def _candles(
    connection: psycopg.Connection, whole: Interval, arguments: Mapping[str, Any]
) -> dict[str, Candles]:
    stored: dict[str, int] = dict(connection.execute(CANDLES, arguments).fetchall())
    found = {symbol: Candles(stored.get(symbol, 0)) for symbol in arguments["symbols"]}
    for known in coverage.read(connection, found, whole.days()):
        mine, part = found[known.symbol], day_interval(known.day).clip(whole)
        holes = part.minutes - max(0, Interval(part.start, known.fetched_until).clip(part).minutes)
        mine.due += part.minutes
        mine.holes += holes
        mine.gone += max(0, known.rows - known.stored)
        if known.failures and holes:
            mine.failed.append(known.day)
        if day_interval(known.day).end <= whole.end and not known.complete:
            mine.incomplete.append(known.day)
    return found


def _symbols(report: DailyReport) -> list[str]:
    """Return what was traded before what was not; in the settings' order, then by name."""
    traded = report.trading.symbols
    return sorted(dict.fromkeys([*report.regimes, *sorted(traded)]), key=lambda s: s not in traded)


def _head(report: DailyReport) -> Iterator[str]:
    trading, trips = report.trading, report.round_trips
    if report.trades:
        pnl, fees = _krw(report.pnl, "+"), _krw(report.fees)
        yield f"체결 {report.trades}건, 실현 손익 {pnl}, 수수료 {fees}"
    else:
        yield "체결 없음"
    if report.win_rate is None or report.mdd is None:
        yield "청산 없음: 승률과 MDD도 없음"
    else:
        rate = f"승률 {report.win_rate:.1f}%"
        yield f"청산 {trips}건, 이익 {report.wins}건 ({rate}), MDD {_krw(report.mdd)}"
    if report.unmatched:
        yield f"주의: 매수 기록이 없는 매도 {len(report.unmatched)}종목, 손익에서 제외"
    if trading.undated:
        yield f"주의: 시각이 없는 체결 주문 {trading.undated}건(전체 기간), 모두 제외"
    if trading.unusable:
        yield f"주의: 구분·가격·수량이 잘못된 체결 주문 {trading.unusable}건(전체 기간), 제외"
    if trading.fees_unknown:
        yield f"주의: 수수료 기록이 없는 주문 {trading.fees_unknown}건, 0원으로 계산"
    yield _decisions(report)
    yield _alerts(report)
    candles = report.candles.values()
    if candles:
        due, stored = (sum(getattr(one, name) for one in candles) for name in ("due", "stored"))
        quiet, holes = (sum(getattr(one, name) for one in candles) for name in ("quiet", "holes"))
        yield f"캔들 {stored:,}/{due:,}분, 거래 없는 분 {quiet:,}, 빠진 분 {holes:,}"


def _decisions(report: DailyReport) -> str:
    if not report.decisions and not report.undated_decisions:
        return "AI 판단 없음"
    counts = {"CONFIRM": 0, "REJECT": 0, **report.decisions}
    parts = [f"{decision} {count}건" for decision, count in counts.items()]
    if report.undated_decisions:
        parts.append(f"시각 없음 {report.undated_decisions}건(전체 기간, 제외)")
    return f"AI 판단: {', '.join(parts)}"


def _alerts(report: DailyReport) -> str:
    if not report.alerts:
        return "알림 없음"
    dead = {kind: n for (kind, state), n in report.alerts.items() if state == "dead"}
    named = f" ({', '.join(f'{kind} {n}' for kind, n in dead.items())})" if dead else ""
    parts = [f"전달 {report.alerts_in('delivered')}건", f"실패 {sum(dead.values())}건{named}"]
    for name, states in {"대기": WAITING, "보내지 않음": ("skipped",)}.items():
        if count := report.alerts_in(*states):
            parts.append(f"{name} {count}건")
    return f"알림: {', '.join(parts)}"


def _line(report: DailyReport, symbol: str) -> str:
    """Return all there is to say of a symbol."""
    parts = [_traded(report.trading.symbols.get(symbol))]
    # Of a symbol that is not in the settings nothing is collected, so nothing is missing.
    if symbol in report.regimes:
        parts += [
            _regimes(report.regimes[symbol], report.window),
            _volatility(report.forecasts.get(symbol), report.window),
            *_trouble(report.candles[symbol]),
        ]
    return f"{symbol}: {' | '.join(parts)}"


def _traded(mine: SymbolFigures | None) -> str:
    if mine is None:
        return "체결 없음"
    parts = [f"체결 {mine.trades}건"]
    if mine.trips:
        parts += [f"손익 {_krw(mine.pnl, '+')}", f"청산 {len(mine.trips)}건 중 이익 {mine.wins}건"]
    parts.append(f"수수료 {_krw(mine.fees)}")
    if mine.unmatched:
        parts.append(f"매수 기록 없는 매도 {mine.unmatched.normalize():,f}개 제외")
    return ", ".join(parts)


def _regimes(hours: Mapping[str, int], whole: Interval) -> str:
    known = dict(hours)
    if missing := (whole.end - whole.start) // HOUR - sum(hours.values()):
        known["라벨 없음"] = missing
    return f"레짐 {', '.join(f'{label} {count}시간' for label, count in known.items())}"


def _volatility(forecast: Forecast | None, whole: Interval) -> str:
    if forecast is None:
        return "변동성 예측 없음"
    old = f", {kst(forecast.valid_until)} 만료" if forecast.valid_until <= whole.end else ""
    if forecast.annualized_volatility is None:
        return f"변동성 값 없음 ({forecast.status}{old})"
    high = {True: "높음", False: "높지 않음", None: "높은지 모름"}[forecast.is_high_volatility]
    return f"변동성 연 {forecast.annualized_volatility:.0%} ({high}, {forecast.status}{old})"


def _trouble(candles: Candles) -> Iterator[str]:
    if candles.holes:
        yield f"캔들 {candles.stored:,}/{candles.due:,}분, 빠진 분 {candles.holes:,}"
    if candles.gone:
        yield f"저장 후 없어진 캔들 {candles.gone:,}"
    for name, days in {"수집 실패": candles.failed, "수집 미완료": candles.incomplete}.items():
        if days:
            yield f"{name} {', '.join(map(str, days))} (UTC)"


def _krw(amount: Decimal, sign: str = "") -> str:
    """Return at most two decimals, those that are none left out; never a minus before a 0."""
    return f"{amount:{sign}z,.2f}".rstrip("0").rstrip(".") + " KRW"


def _number(value: Decimal | float | None) -> float | None:
    return None if value is None else float(f"{value:z.2f}")  # to the digit as in the summary


def _fitted(lines: Sequence[str]) -> str:
    """Return as many whole lines as there is room for, and how many were left out."""
    for kept in range(len(lines), -1, -1):
        rest = [f"(이하 {len(lines) - kept}줄 생략)"] if kept < len(lines) else []
        text = "\n".join([*lines[:kept], *rest])
        if len(text) <= SUMMARY_LENGTH:
            break
    return text
