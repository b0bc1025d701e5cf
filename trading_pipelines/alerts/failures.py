"""What is failing in the pipeline itself: what counts as a failure, and what is said of it.

Which failures are news, when they are repeated and that they are over belongs in `incidents`. Which
runs failed for good is Dagster's knowledge and comes in as an argument.
"""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg

from trading_pipelines.alerts import endpoints, ledger
from trading_pipelines.alerts.kinds import PIPELINE_FAILURE, SOURCES, cut
from trading_pipelines.alerts.ledger import DeliveryState
from trading_pipelines.candles.windows import MINUTE, Interval, day_interval, merge
from trading_pipelines.korean_time import kst
from trading_pipelines.settings.strategy import AlertSettings, StrategySettings
from trading_pipelines.signals.left_failed import FAILING, left_failed, shown_intervals

RUN_FAILED, PARTITION_FAILED = "RUN_FAILED", "PARTITION_FAILED"
PARTITION_LEFT_FAILED = "PARTITION_LEFT_FAILED"
SYMBOL_QUIET, ALERT_DEAD, ALERT_MISSED = "SYMBOL_QUIET", "ALERT_DEAD", "ALERT_MISSED"
ENDPOINT_BROKEN = "ENDPOINT_BROKEN"
RECOVERED = "RECOVERED"
INFO, WARNING, CRITICAL = "INFO", "WARNING", "CRITICAL"

SOURCE, CHANNEL = "pipeline", "risk"
LONGEST_MESSAGE = 1500
# A fingerprint is part of the ledger's key, and Postgres indexes no more than 2,704 bytes.
LONGEST_NAMES = 200
ELSEWHERE = " 외 {}개 구간"
WAITING = {DeliveryState.PENDING, DeliveryState.RETRYING}
ACCEPTED = {DeliveryState.DELIVERED, DeliveryState.DIGESTED}


@dataclass(frozen=True)
class Failure:
    """One thing that is failing now. The first line of the message names it, the same each time."""

    fingerprint: str
    type: str
    level: str
    message: str
    count: int
    """How often it has happened since it was last good; 1 of what is a state, not an event."""
    at: datetime | None = None
    """When it last happened, of an event: it is news again only when it has happened again."""
    is_news: bool = True
    """False where another failure tells of it, or it has not failed often enough: no recovery."""


@dataclass(frozen=True)
class FinishedRun:
    """A run of Dagster's that is over and will not be retried; its names in a fixed order."""

    run_id: str
    job: str
    assets: tuple[str, ...]
    symbols: tuple[str, ...]
    failed: bool
    ended_at: datetime
    error: str


def current(
    connection: psycopg.Connection,
    settings: StrategySettings,
    runs: Sequence[FinishedRun],
    now: datetime,
) -> list[Failure]:
    """Return all that is failing at `now` (UTC)."""
    alerts, symbols = settings.alerts, settings.symbols
    return [
        *failed_runs(runs),
        *failed_partitions(connection, alerts.failures_before_alert, symbols),
        *left_failed_partitions(connection, symbols),
        *quiet_symbols(connection, symbols, timedelta(seconds=alerts.quiet_after)),
        *broken_endpoints(connection),
        *dead_alerts(connection),
        *missed_alerts(connection, alerts, now),
    ]


def failed_runs(runs: Sequence[FinishedRun]) -> list[Failure]:
    """Return a failure for each (job, assets, symbols) whose newest run failed.

    Unless the job has since done each of the assets for each of the symbols, in whatever runs: the
    schedules' rectangles change from tick to tick, and one that failed may never be asked again.
    """
    good: dict[tuple[str, ...], datetime] = {}
    groups: defaultdict[tuple[object, ...], list[FinishedRun]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.ended_at):
        if run.failed:
            groups[run.job, run.assets, run.symbols].append(run)
        else:
            good.update(dict.fromkeys(_parts(run), run.ended_at))
    open_groups = (
        [
            run
            for run in group
            if any(good.get(p, run.ended_at) <= run.ended_at for p in _parts(run))
        ]
        for group in groups.values()
    )
    return [_failed_run(group) for group in open_groups if group]


def _parts(run: FinishedRun) -> Iterator[tuple[str, ...]]:
    return itertools.product([run.job], run.assets or [""], run.symbols or [""])


def _failed_run(group: Sequence[FinishedRun]) -> Failure:
    newest = group[-1]
    names = [",".join(newest.assets), ",".join(newest.symbols)]
    of_what = "; ".join(filter(None, names)).replace(",", ", ")
    return Failure(
        ":".join(["run", newest.job, *map(_short, names)]),
        RUN_FAILED,
        WARNING,
        cut_message(
            f"실행 실패: {newest.job}" + (f" ({of_what})" if of_what else ""),
            f"성공 없이 {len(group)}번 실패, 최근 {kst(newest.ended_at)} (run {newest.run_id[:8]})",
            newest.error,
        ),
        len(group),
        newest.ended_at,
    )


ENOUGH_FAILURES = "NOT left_failed AND failures >= %(failures)s"
FAILED_PARTITIONS = f"""
SELECT asset, symbol, coalesce(array_agg(day) FILTER (WHERE {ENOUGH_FAILURES}), '{{}}'),
    coalesce(sum(failures) FILTER (WHERE {ENOUGH_FAILURES}), 0)::int,
    (array_agg(error ORDER BY {ENOUGH_FAILURES} DESC, retry_at DESC NULLS LAST, day DESC))[1],
    min(retry_at) FILTER (WHERE {ENOUGH_FAILURES})
{FAILING} GROUP BY asset, symbol ORDER BY asset, symbol
"""
NONE_LEFT_FAILED = f"""
SELECT asset, symbol {FAILING}
GROUP BY asset, symbol HAVING NOT bool_or(left_failed) ORDER BY asset, symbol
"""


def failed_partitions(
    connection: psycopg.Connection, failures_before_alert: int, symbols: Sequence[str]
) -> list[Failure]:
    """Return a failure for each asset and symbol with partitions whose last attempts all failed.

    Of the symbols and of pooled assets: nobody retries a symbol no longer collected. Partitions
    left failed have failures of their own.
    """
    arguments = {"failures": failures_before_alert, "symbols": list(symbols)}
    failures = []
    for asset, symbol, days, count, error, retry_at in connection.execute(
        FAILED_PARTITIONS, arguments
    ):
        failures.append(
            Failure(
                f"partition:{asset}:{symbol}",
                PARTITION_FAILED,
                WARNING,
                cut_message(
                    f"파티션 실패: {asset} {symbol or '(전체 종목 공통)'}",
                    f"{shown_intervals(days, ELSEWHERE)} (UTC): {count}번 실패, "
                    f"다음 재시도 {kst(retry_at)} 이후",
                    error,
                ),
                count,
                is_news=bool(days),
            )
        )
    return failures


def left_failed_partitions(connection: psycopg.Connection, symbols: Sequence[str]) -> list[Failure]:
    """Return a failure for each asset and symbol with partitions left failed.

    News once, however often candles are tried in vain after that, and again when one more is left
    failed. An asset that fails and is not left so is no news, nor has it recovered: with other
    inputs the attempts at a signal are only counted anew.
    """
    failures = [
        Failure(
            f"left:{group.asset}:{group.symbol}",
            PARTITION_LEFT_FAILED,
            CRITICAL,
            cut_message(
                f"파티션 포기: {group.asset} {group.symbol or '(전체 종목 공통)'}",
                f"{shown_intervals(group.days, ELSEWHERE)} (UTC): 재시도를 모두 소진해 실패로 남음",
                "이제 하루에 한 번만 다시 시도함"
                if group.asset.startswith("candles_")
                else "입력 데이터가 바뀌면 다시 시도함",
                f"지금 다시 시도: {group.retried_by}",
                group.error,
            ),
            len(group.days),
            group.left_at,
        )
        for group in left_failed(connection, symbols)
    ]
    others = connection.execute(NONE_LEFT_FAILED, {"symbols": list(symbols)})
    return failures + [
        Failure(f"left:{asset}:{symbol}", PARTITION_LEFT_FAILED, CRITICAL, "", 0, is_news=False)
        for asset, symbol in others
    ]


FETCHED_SINCE_NEWEST = """
SELECT symbols.symbol, newest.timestamp, coverage.day, coverage.fetched_until
FROM unnest(%s::text[]) AS symbols (symbol)
CROSS JOIN LATERAL (
    SELECT candle.timestamp FROM public.market_data AS candle
    WHERE candle.symbol = symbols.symbol AND candle.interval = '1m'
    ORDER BY candle.timestamp DESC LIMIT 1
) AS newest
JOIN trading_pipelines.candle_coverage AS coverage
    ON coverage.symbol = symbols.symbol AND coverage.interval = '1m'
    AND coverage.day >= (newest.timestamp AT TIME ZONE 'UTC')::date
ORDER BY symbols.symbol
"""


def quiet_symbols(
    connection: psycopg.Connection, symbols: Sequence[str], quiet_after: timedelta
) -> list[Failure]:
    """Return a failure for each symbol of which the exchange has had nothing for so long.

    Only the last unbroken interval that was asked for counts: after downtime the open day is asked
    for first, and what lies between it and the newest candle is unknown, not quiet.
    """
    fetched: defaultdict[tuple[str, datetime], list[Interval]] = defaultdict(list)
    for symbol, newest, day, until in connection.execute(FETCHED_SINCE_NEWEST, [list(symbols)]):
        # A day that never was asked for but failed is empty, and dropped by `merge`.
        fetched[symbol, newest].append(Interval(day_interval(day).start, until))
    failures = []
    for (symbol, newest), intervals in fetched.items():
        for interval in merge(intervals)[-1:]:
            quiet = interval.end - max(newest + MINUTE, interval.start)
            if quiet > quiet_after:
                message = cut_message(
                    f"캔들 없음: {symbol}",
                    f"거래소에 {kst(interval.end)}까지 물었으나 {duration(quiet)} 동안 체결이 없음",
                    f"마지막 캔들 {kst(newest)}",
                )
                failures.append(Failure(f"quiet:{symbol}", SYMBOL_QUIET, WARNING, message, 1))
    return failures


def broken_endpoints(connection: psycopg.Connection) -> list[Failure]:
    """Return a failure for each endpoint that refuses whatever is posted.

    Its alert goes round a broken n8n, and waits for a broken Discord like any other.
    """
    return [
        Failure(
            f"endpoint:{endpoint.name}",
            ENDPOINT_BROKEN,
            CRITICAL,
            cut_message(
                f"알림 경로 고장: {endpoints.shown_name(endpoint.name)}",
                f"{kst(endpoint.since)}부터, 알림은 복구될 때까지 대기함",
                f"조치: {endpoint.advice}",
                endpoint.answer,
            ),
            1,
        )
        for endpoint in endpoints.broken(connection)
    ]


# Our own kind is left out: the alert about a dead alert would die as well, and so on.
DEAD = """
SELECT kind, count(*), (array_agg(last_error ORDER BY next_at DESC, id DESC))[1],
    1 + ceil(extract(epoch FROM clock_timestamp() - min(created_at)) / 86400)::int
FROM trading_pipelines.alert_deliveries
WHERE state = 'dead' AND kind <> %s
GROUP BY kind ORDER BY kind
"""


def dead_alerts(connection: psycopg.Connection) -> list[Failure]:
    """Return a failure for each kind with alerts that were given up."""
    return [
        Failure(
            f"dead:{kind}",
            ALERT_DEAD,
            CRITICAL,
            cut_message(
                f"전달 포기된 알림: {kind}",
                f"{count}건. 다시 보내기: trading-pipelines alerts replay --dead --since {days}d",
                error or "",
            ),
            count,
        )
        for kind, count, error, days in connection.execute(DEAD, [PIPELINE_FAILURE])
    ]


NOT_ENTERED = f"""
SELECT count(*), min(occurred_at) FROM (
{ledger.UNDELIVERED}
) AS undelivered WHERE occurred_at < %(until)s
"""  # noqa: S608 - constants


def not_entered(
    connection: psycopg.Connection, since: datetime, until: datetime
) -> dict[str, tuple[int, datetime]]:
    """Return how many of the bot's rows the ledger lacks, and from when (UTC) the oldest is.

    Of each kind that is on and has any, from `since`, or the moment it came on, to before `until`.
    """
    on = connection.execute("SELECT kind, since FROM trading_pipelines.alert_kinds WHERE is_on")
    since_of: dict[str, datetime] = dict(on.fetchall())
    missing: dict[str, tuple[int, datetime]] = {}
    for source in SOURCES:
        if source.kind not in since_of:
            continue
        arguments = {
            "table": source.table,
            "since": max(since_of[source.kind], since),
            "until": until,
            "limit": None,
        }
        row = connection.execute(NOT_ENTERED.format(rows=source.rows), arguments).fetchone()
        if row and row[0]:
            count, oldest = missing.get(source.kind, (0, until))
            missing[source.kind] = count + row[0], min(oldest, row[1])
    return missing


def missed_alerts(
    connection: psycopg.Connection, settings: AlertSettings, now: datetime
) -> list[Failure]:
    """Return a failure for each kind with rows that left the look-back before they were entered."""
    look_back = timedelta(days=settings.look_back_days)
    missed = not_entered(connection, now - 2 * look_back, now - look_back)
    return [
        Failure(
            f"missed:{kind}",
            ALERT_MISSED,
            CRITICAL,
            cut_message(
                f"놓친 알림: {kind}",
                f"{count}건이 전달되지 않은 채 조회 기간을 벗어남",
                f"가장 오래된 것 {kst(oldest)}",
                f"alerts.look_back_days(현재 {settings.look_back_days}, 최대 30)를 늘리면 "
                "그 기간 안의 것은 전송됨",
            ),
            count,
        )
        for kind, (count, oldest) in missed.items()
    ]


def duration(span: timedelta) -> str:
    """Return a span as a Korean reads it: hours and minutes."""
    hours, minutes = divmod(span // MINUTE, 60)
    return f"{hours}시간 {minutes}분" if hours else f"{minutes}분"


def _short(names: str) -> str:
    digest = hashlib.sha256(names.encode()).hexdigest()[:16]
    return names if len(names) <= LONGEST_NAMES else f"{names[:LONGEST_NAMES]}…{digest}"


def cut_message(*lines: str) -> str:
    """Return the lines that say something, cut to what a message may hold."""
    return cut("\n".join(line for line in lines if line), LONGEST_MESSAGE)
