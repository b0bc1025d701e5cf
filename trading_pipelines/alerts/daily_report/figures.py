"""The figures of the daily report, asked of the tables for one Korean day.

A day is 00:00 to 24:00 in Seoul, and nothing after its end is looked at. Profit and loss belongs in
`pnl`, the words in `text`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any

import psycopg
from psycopg.rows import class_row

from trading_pipelines.alerts.daily_report.pnl import Order, Trading, match
from trading_pipelines.candles import coverage as candle_coverage
from trading_pipelines.candles.store import INTERVAL
from trading_pipelines.candles.windows import DAY, Interval, day_interval
from trading_pipelines.korean_time import KST

UNDELIVERED_STATES = ("pending", "retrying", "digested")

# Of the same instant, what was bought comes first: a tie must not leave a sell without its buy.
# In Postgres NaN is greater than every number.
READ_ORDERS = """
SELECT id, symbol, side, price, quantity, nullif(fee, 'NaN') AS fee, at >= %(start)s AS today,
    side IN ('BUY', 'SELL') AND price > 0 AND price < 'NaN' AND quantity > 0 AND quantity < 'NaN'
    AS usable
FROM public.trading_history, coalesce(executed_at, created_at) AS at
WHERE status = 'FILLED' AND (at < %(end)s) IS NOT FALSE
ORDER BY at, side, created_at, id
"""
COUNT_DECISIONS = """
SELECT CASE WHEN created_at IS NOT NULL THEN decision END, count(*) FROM public.agent_decisions
WHERE (created_at >= %(start)s AND created_at < %(end)s) IS NOT FALSE GROUP BY 1 ORDER BY 1
"""
# A digested alert is as its digest is; the digest itself is no alert of its own.
COUNT_ALERTS = """
SELECT alert.kind, coalesce(digest.state, alert.state) AS state, count(*)
FROM trading_pipelines.alert_deliveries AS alert
LEFT JOIN trading_pipelines.alert_deliveries AS digest ON digest.id = alert.digest_id
CROSS JOIN LATERAL coalesce(alert.occurred_at, alert.created_at) AS at
WHERE alert.source <> 'digest' AND at >= %(start)s AND at < %(end)s
GROUP BY 1, 2 ORDER BY 1, 2
"""
COUNT_REGIMES = """
SELECT symbol, label, count(*) FROM trading_pipelines.regime_labels
WHERE symbol = ANY(%(symbols)s) AND hour >= %(start)s AND hour < %(end)s
GROUP BY symbol, label ORDER BY count(*) DESC, label
"""
NEWEST_FORECASTS = """
SELECT DISTINCT ON (symbol) symbol, status, nullif(annualized_volatility, 'NaN')
    AS annualized_volatility, is_high_volatility, valid_until
FROM trading_pipelines.volatility_forecast
WHERE symbol = ANY(%(symbols)s) AND as_of <= %(end)s
ORDER BY symbol, as_of DESC, horizon DESC
"""
# Up to where the exchange was asked, as `coverage` counts; a UTC day is more than the KST day's.
COUNT_CANDLES = """
SELECT symbol, count(*) FROM public.market_data AS candle
JOIN trading_pipelines.candle_coverage AS known USING (symbol, interval)
WHERE interval = %(interval)s AND symbol = ANY(%(symbols)s)
  AND timestamp >= %(start)s AND timestamp < %(end)s
  AND known.day = (timestamp AT TIME ZONE 'UTC')::date AND timestamp < known.fetched_until
GROUP BY symbol
"""


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
class CandleFigures:
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
    candles: Mapping[str, CandleFigures]
    decisions: Mapping[str, int]
    undated_decisions: int
    alerts: Mapping[tuple[str, str], int]
    """What occurred in the day, by kind and by the state that it is in by now."""

    @property
    def window(self) -> Interval:
        """The day in UTC."""
        return report_window(self.day)

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


def report_window(day: date) -> Interval:
    """Return the KST day in UTC: from 15:00 of the UTC day before to 15:00."""
    start, end = (datetime.combine(d, time(), KST).astimezone(UTC) for d in (day, day + DAY))
    return Interval(start, end)


def compute_report(
    connection: psycopg.Connection, day: date, symbols: Sequence[str]
) -> DailyReport:
    """Return the report of a KST day that is over; `symbols` are those of the settings."""
    whole = report_window(day)
    arguments = {
        "start": whole.start,
        "end": whole.end,
        "symbols": list(symbols),
        "interval": INTERVAL,
    }
    with connection.cursor(row_factory=class_row(Order)) as orders:
        trading = match(orders.execute(READ_ORDERS, arguments))
    with connection.cursor(row_factory=class_row(Forecast)) as forecasts:
        newest = {
            forecast.symbol: forecast for forecast in forecasts.execute(NEWEST_FORECASTS, arguments)
        }
    regimes: dict[str, dict[str, int]] = {symbol: {} for symbol in symbols}
    for symbol, label, hours in connection.execute(COUNT_REGIMES, arguments):
        regimes[symbol][label] = hours
    decisions: dict[str | None, int] = dict(
        connection.execute(COUNT_DECISIONS, arguments).fetchall()
    )
    return DailyReport(
        day,
        trading,
        regimes,
        newest,
        _candles(connection, whole, arguments),
        decisions={decision: n for decision, n in decisions.items() if decision},
        undated_decisions=decisions.get(None, 0),
        alerts={(kind, state): n for kind, state, n in connection.execute(COUNT_ALERTS, arguments)},
    )


def shown_figures(report: DailyReport) -> dict[str, Any]:
    """Return the report as flat numbers, None where there is none."""
    candles = report.candles.values()
    return {
        "pnl": number(report.pnl),
        "fees": number(report.fees),
        "trades": report.trades,
        "round_trips": report.round_trips,
        "wins": report.wins,
        "win_rate": number(report.win_rate),
        "mdd": number(report.mdd),
        "symbols_with_unmatched_sells": len(report.unmatched),
        "orders_undated": report.trading.undated,
        "orders_unusable": report.trading.unusable,
        "orders_without_fee": report.trading.fees_unknown,
        "confirms": report.decisions.get("CONFIRM", 0),
        "rejects": report.decisions.get("REJECT", 0),
        "alerts_delivered": report.alerts_in("delivered"),
        "alerts_failed": report.alerts_in("dead"),
        "alerts_waiting": report.alerts_in(*UNDELIVERED_STATES),
        "candles_stored": sum(figures.stored for figures in candles),
        "candles_due": sum(figures.due for figures in candles),
        "candle_holes": sum(figures.holes + figures.gone for figures in candles),
    }


def _candles(
    connection: psycopg.Connection, whole: Interval, arguments: Mapping[str, Any]
) -> dict[str, CandleFigures]:
    stored: dict[str, int] = dict(connection.execute(COUNT_CANDLES, arguments).fetchall())
    figures_of = {symbol: CandleFigures(stored.get(symbol, 0)) for symbol in arguments["symbols"]}
    for coverage in candle_coverage.read(connection, figures_of, whole.days()):
        figures, part = figures_of[coverage.symbol], day_interval(coverage.day).clip(whole)
        fetched = Interval(part.start, coverage.fetched_until).clip(part)
        holes = part.minutes - max(0, fetched.minutes)
        figures.due += part.minutes
        figures.holes += holes
        figures.gone += max(0, coverage.rows - coverage.stored)
        if coverage.failures and holes:
            figures.failed.append(coverage.day)
        if day_interval(coverage.day).end <= whole.end and not coverage.complete:
            figures.incomplete.append(coverage.day)
    return figures_of


def number(value: Decimal | float | None) -> float | None:
    """Return the amount to the digit that the summary shows, None where there is none."""
    return None if value is None else float(f"{value:z.2f}")
