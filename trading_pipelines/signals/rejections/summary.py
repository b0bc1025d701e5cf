"""What the rejections of a Korean week came to: together, and by symbol, regime, model and reason.

A week is Monday 00:00 to Monday 00:00 in Seoul. Single outcomes belong in `outcomes`; whether a
summary is sent, and in which words, in `alerts/`.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import psycopg
from psycopg.rows import class_row

from trading_pipelines.candles.due import look_back
from trading_pipelines.candles.windows import Interval
from trading_pipelines.korean_time import KST
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.rejections.exit_rules import time_to_settle

REJECT_SUMMARY = "reject_summary"
WEEK = timedelta(days=7)
PATIENCE = timedelta(days=3)

READ_TOTALS = """
SELECT
    CASE WHEN grouping(symbol) = 0 THEN 'symbol' WHEN grouping(regime) = 0 THEN 'regime'
        WHEN grouping(model) = 0 THEN 'model' WHEN grouping(reason_family) = 0 THEN 'reason'
        ELSE 'all' END AS grouping,
    coalesce(symbol, regime, model, reason_family, 'all') AS name,
    count(*) AS rejections,
    count(*) FILTER (WHERE verdict IN ('saved', 'cost')) AS judged,
    count(*) FILTER (WHERE verdict = 'saved') AS saved,
    coalesce(-sum(result_krw) FILTER (WHERE verdict = 'saved'), 0) AS saved_krw,
    coalesce(sum(result_krw) FILTER (WHERE verdict = 'cost'), 0) AS cost_krw
FROM (
    SELECT symbol, regime, coalesce(model, 'not named') AS model, reason_family,
        CASE WHEN state = 'completed' THEN verdict END AS verdict, result_krw
    FROM trading_pipelines.reject_outcomes
    WHERE decided_at >= %s AND decided_at < %s
) AS outcome
GROUP BY GROUPING SETS ((), (symbol), (regime), (model), (reason_family))
ORDER BY 1, 2
"""
OUTCOMES_DIGEST = """
SELECT coalesce(md5(string_agg(outcome::text, ';' ORDER BY symbol, day, decision_id)), 'none')
FROM trading_pipelines.reject_outcomes AS outcome WHERE decided_at >= %s AND decided_at < %s
"""
SUMMARISED_DIGEST = (
    "SELECT computed_from FROM trading_pipelines.reject_summary WHERE week = %s LIMIT 1"
)
# What the bot decided and is not judged to its end yet: its outcome is missing, or pending.
COUNT_OPEN = """
SELECT count(*) FROM unnest(%(symbols)s::text[]) AS symbols (symbol)
CROSS JOIN LATERAL trading_pipelines.decisions(
    %(decision)s, symbols.symbol, %(start)s, %(end)s) AS decided
LEFT JOIN trading_pipelines.decision_outcomes AS outcome ON outcome.decision = %(decision)s
    AND outcome.symbol = symbols.symbol
    AND outcome.day = (decided.decided_at AT TIME ZONE 'UTC')::date
    AND outcome.decision_id = decided.id
WHERE outcome.state IS NULL OR outcome.state = 'pending'
"""
ADD_TOTAL = """
INSERT INTO trading_pipelines.reject_summary (week, grouping, name, rejections, judged, saved,
    saved_krw, cost_krw, hit_rate, hit_rate_low, hit_rate_high, computed_from)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


@dataclass(frozen=True)
class Total:
    """The sums of one group: how many were judged, how many saved money, and how much (KRW)."""

    grouping: str
    name: str
    rejections: int
    judged: int
    saved: int
    saved_krw: Decimal
    cost_krw: Decimal

    @property
    def net_krw(self) -> Decimal:
        """What the rejections were worth: saved less cost."""
        return self.saved_krw - self.cost_krw

    @property
    def hit_rate(self) -> tuple[float, float, float] | None:
        """Of the judged the share that saved, and its 95 % interval; None without any.

        Source: Wilson, Probable inference, the law of succession, and statistical inference (1927).
        """
        if not self.judged:
            return None
        from scipy.stats import binomtest

        interval = binomtest(self.saved, self.judged).proportion_ci(method="wilson")
        return self.saved / self.judged, float(interval.low), float(interval.high)

    def shown(self) -> dict[str, str | int]:
        """Return what a person reads of it."""
        rate = self.hit_rate
        return {
            "by": self.grouping,
            "name": self.name,
            "rejections": self.rejections,
            "judged": self.judged,
            "right": f"{rate[0]:.0%} ({rate[1]:.0%} to {rate[2]:.0%})" if rate else "-",
            "saved (KRW)": f"{self.saved_krw:,}",
            "cost (KRW)": f"{self.cost_krw:,}",
            "net (KRW)": f"{self.net_krw:,}",
        }


def week_interval(week: date) -> Interval:
    """Return the Korean week that begins with this Monday, in UTC."""
    start = datetime.combine(week, time(0), KST)
    end = datetime.combine(week + WEEK, time(0), KST)
    return Interval(start.astimezone(UTC), end.astimezone(UTC))


def settled_at(week: date, settings: StrategySettings) -> datetime:
    """Return when (UTC) the week's last outcome is known at the latest, where no candle is late."""
    return week_interval(week).end + time_to_settle(settings)


def due_weeks(
    connection: psycopg.Connection, settings: StrategySettings, now: datetime
) -> list[date]:
    """Return the Mondays of the weeks whose outcomes are all there, and that are not summed up.

    A week is summed up again when an outcome of it has changed. An outcome that is still open some
    days after it should be known (a symbol without candles) keeps the others waiting no longer.
    """
    return [
        week
        for week in ended_weeks(settings, now)
        if connection.execute(SUMMARISED_DIGEST, [week]).fetchone() != (_digest(connection, week),)
        and is_settled(connection, week, "REJECT", settings, now)
    ]


def ended_weeks(settings: StrategySettings, now: datetime) -> list[date]:
    """Return the Mondays of the weeks of the look-back that have ended."""
    days = max(timedelta(days=settings.data.look_back_days),
               2 * WEEK + time_to_settle(settings) + PATIENCE).days  # fmt: skip
    return [
        day
        for day in look_back(settings.data.start_date, days, now)
        if day.weekday() == 0 and week_interval(day).end <= now
    ]


def is_settled(
    connection: psycopg.Connection,
    week: date,
    decision: str,
    settings: StrategySettings,
    now: datetime,
) -> bool:
    """Return whether no outcome of the week's decisions is open, or it was waited for too long."""
    start, end = _ends(week)
    arguments = {"symbols": settings.symbols, "decision": decision, "start": start, "end": end}
    return now >= settled_at(week, settings) + PATIENCE or connection.execute(
        COUNT_OPEN, arguments
    ).fetchone() == (0,)


def _digest(connection: psycopg.Connection, week: date) -> str:
    row = connection.execute(OUTCOMES_DIGEST, _ends(week)).fetchone()
    assert row is not None
    return str(row[0])


def _ends(week: date) -> list[datetime]:
    return [week_interval(week).start, week_interval(week).end]


@dataclass(frozen=True)
class Summary:
    """The sums of a week, and the digest of the outcomes that they are of."""

    week: date
    totals: list[Total]
    computed_from: str


def summarise(connection: psycopg.Connection, week: date) -> Summary:
    """Return the sums of the week's outcomes; `connection` is autocommit.

    The first is of all together; then by model, reason, regime and symbol.
    """
    with connection.transaction():
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        return Summary(week, read(connection, week_interval(week)), _digest(connection, week))


def store(connection: psycopg.Connection, summary: Summary) -> None:
    """Put the sums in the place of the week's earlier ones. With that it is no longer due."""
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(
            "DELETE FROM trading_pipelines.reject_summary WHERE week = %s", [summary.week]
        )
        cursor.executemany(
            ADD_TOTAL,
            [
                (
                    summary.week,
                    *astuple(total),
                    *(total.hit_rate or (None,) * 3),
                    summary.computed_from,
                )
                for total in summary.totals
            ],
        )


def read(connection: psycopg.Connection, interval: Interval) -> list[Total]:
    """Return the sums of the decisions in an interval (UTC), as `summarise` orders them."""
    with connection.cursor(row_factory=class_row(Total)) as cursor:
        return cursor.execute(READ_TOTALS, [interval.start, interval.end]).fetchall()


def of(totals: Sequence[Total], grouping: str) -> list[Total]:
    """Return the totals of one grouping."""
    return [total for total in totals if total.grouping == grouping]
