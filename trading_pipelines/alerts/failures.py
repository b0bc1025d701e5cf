"""What has failed in the pipeline itself, told once a failure and window and not once an event.

Here belongs what counts as failing, what is said of it, when it is said again, and that it is over.
Which runs failed for good is Dagster's knowledge and comes in as an argument; sending what is
entered here belongs in `delivery`.
"""

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

import psycopg
from psycopg.rows import class_row

from trading_pipelines.alerts import ledger
from trading_pipelines.alerts.kinds import PIPELINE_FAILURE, SOURCES, cut
from trading_pipelines.alerts.ledger import State
from trading_pipelines.candles.windows import (
    MINUTE,
    Interval,
    contiguous,
    day_interval,
    merge,
    named,
)
from trading_pipelines.korean_time import kst
from trading_pipelines.settings import AlertSettings, StrategySettings

RUN_FAILED, PARTITION_FAILED = "RUN_FAILED", "PARTITION_FAILED"
PARTITION_LEFT_FAILED = "PARTITION_LEFT_FAILED"
SYMBOL_QUIET, ALERT_DEAD, ALERT_MISSED = "SYMBOL_QUIET", "ALERT_DEAD", "ALERT_MISSED"
RECOVERED = "RECOVERED"
INFO, WARNING, CRITICAL = "INFO", "WARNING", "CRITICAL"

SOURCE, CHANNEL = "pipeline", "risk"
LONGEST_MESSAGE = 1500
# A fingerprint is part of the ledger's key, and Postgres indexes no more than 2,704 bytes.
LONGEST_NAMES = 200
SHOWN_STRETCHES = 10
ELSEWHERE = " 외 {}개 구간"
LOOK_BACK = timedelta(days=30)
# Runs are asked for a day back: of one that is older nobody knows whether it is still failing.
RUNS_KNOWN = timedelta(hours=23)
WAITING = {State.PENDING, State.RETRYING}
ACCEPTED = {State.DELIVERED, State.DIGESTED}


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
    """When it last happened, of what happens once: told again only when it has happened again."""
    is_news: bool = True
    """Not of what is told elsewhere or has not failed often enough: nor has it recovered."""


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


@dataclass
class Told:
    """What one call of `tell` did, in fingerprints."""

    new: int = 0
    repeated: int = 0
    recovered: int = 0
    suppressed: int = 0
    """Failing and not told now: it was told a while ago, or waits to be sent."""


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
        _message(
            f"실행 실패: {newest.job}" + (f" ({of_what})" if of_what else ""),
            f"성공 없이 {len(group)}번 실패, 최근 {kst(newest.ended_at)} (run {newest.run_id[:8]})",
            newest.error,
        ),
        len(group),
        newest.ended_at,
    )


# A signal that is left failed is tried by nobody: its last try left it so.
FAILING = """
FROM (
    SELECT 'candles_' || interval AS asset, symbol, day, failures, left_failed, error, retry_at,
        left_at
    FROM trading_pipelines.candle_coverage
    UNION ALL
    SELECT asset, symbol, day, failures, left_failed, error, retry_at, retry_at
    FROM trading_pipelines.signal_coverage
) AS known
WHERE failures > 0 AND symbol = ANY (%(symbols)s::text[] || ARRAY[''])
"""
TOLD = "NOT left_failed AND failures >= %(failures)s"
FAILED = f"""
SELECT asset, symbol, coalesce(array_agg(day) FILTER (WHERE {TOLD}), '{{}}'),
    coalesce(sum(failures) FILTER (WHERE {TOLD}), 0)::int,
    (array_agg(error ORDER BY {TOLD} DESC, retry_at DESC NULLS LAST, day DESC))[1],
    min(retry_at) FILTER (WHERE {TOLD})
{FAILING} GROUP BY asset, symbol ORDER BY asset, symbol
"""
LEFT_FAILED = f"""
SELECT asset, symbol, array_agg(day ORDER BY day) AS days,
    (array_agg(error ORDER BY left_at DESC, day DESC))[1] AS error, max(left_at) AS left_at
{FAILING} AND left_failed GROUP BY asset, symbol ORDER BY asset, symbol
"""
NONE_LEFT = f"""
SELECT asset, symbol {FAILING}
GROUP BY asset, symbol HAVING NOT bool_or(left_failed) ORDER BY asset, symbol
"""


@dataclass(frozen=True)
class LeftFailed:
    """Partitions of one asset and symbol (empty where pooled) whose tries are spent."""

    asset: str
    symbol: str
    days: list[date]
    error: str
    """Of the last one that failed."""
    left_at: datetime
    """When the newest was left so; of a signal, when it was last tried."""

    @property
    def retried_by(self) -> str:
        """What makes them be tried again now; of candles, their newest unbroken stretch."""
        *_, (first, last) = contiguous(self.days)
        if self.asset.startswith("candles_"):
            return (
                f"trading-pipelines backfill --symbols {self.symbol} --start {first} --end {last}"
            )
        return f"Dagster UI, Catalog, {self.asset}: Materialize {stretches(self.days)}"


def left_failed(connection: psycopg.Connection, symbols: Sequence[str]) -> list[LeftFailed]:
    """Return what is left failed of the symbols and of what is pooled, by asset and symbol."""
    with connection.cursor(row_factory=class_row(LeftFailed)) as cursor:
        return cursor.execute(LEFT_FAILED, {"symbols": list(symbols)}).fetchall()


def stretches(days: Sequence[date], left_out: str = ", … {}") -> str:
    """Return the unbroken stretches of days, the newest ten; `left_out` tells of the others."""
    found = [named(first, last, " ~ ") for first, last in contiguous(days)]
    more = len(found) - SHOWN_STRETCHES
    return ", ".join(found[-SHOWN_STRETCHES:]) + (left_out.format(more) if more > 0 else "")


def failed_partitions(
    connection: psycopg.Connection, failures_before_alert: int, symbols: Sequence[str]
) -> list[Failure]:
    """Return a failure for each asset and symbol with partitions whose last tries all failed.

    Of the symbols and of what is pooled: nobody retries a symbol no longer collected. Those left
    failed are told by themselves.
    """
    arguments = {"failures": failures_before_alert, "symbols": list(symbols)}
    failures = []
    for asset, symbol, days, count, error, retry_at in connection.execute(FAILED, arguments):
        failures.append(
            Failure(
                f"partition:{asset}:{symbol}",
                PARTITION_FAILED,
                WARNING,
                _message(
                    f"파티션 실패: {asset} {symbol or '(전체 종목 공통)'}",
                    f"{stretches(days, ELSEWHERE)} (UTC): {count}번 실패, "
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

    Told once, however often candles are tried in vain after that, and again when one more is left
    failed. What is failing and not left so is no news, nor is it over: other inputs of a signal
    begin to be tried anew, and nothing has recovered by that.
    """
    left = [
        Failure(
            f"left:{one.asset}:{one.symbol}",
            PARTITION_LEFT_FAILED,
            CRITICAL,
            _message(
                f"파티션 포기: {one.asset} {one.symbol or '(전체 종목 공통)'}",
                f"{stretches(one.days, ELSEWHERE)} (UTC): 재시도를 모두 소진해 실패로 남음",
                "이제 하루에 한 번만 다시 시도함"
                if one.asset.startswith("candles_")
                else "입력 데이터가 바뀌면 다시 시도함",
                f"지금 다시 시도: {one.retried_by}",
                one.error,
            ),
            len(one.days),
            one.left_at,
        )
        for one in left_failed(connection, symbols)
    ]
    others = connection.execute(NONE_LEFT, {"symbols": list(symbols)})
    return left + [
        Failure(f"left:{asset}:{symbol}", PARTITION_LEFT_FAILED, CRITICAL, "", 0, is_news=False)
        for asset, symbol in others
    ]


ASKED = """
SELECT symbols.symbol, newest.timestamp, asked.day, asked.fetched_until
FROM unnest(%s::text[]) AS symbols (symbol)
CROSS JOIN LATERAL (
    SELECT candle.timestamp FROM public.market_data AS candle
    WHERE candle.symbol = symbols.symbol AND candle.interval = '1m'
    ORDER BY candle.timestamp DESC LIMIT 1
) AS newest
JOIN trading_pipelines.candle_coverage AS asked
    ON asked.symbol = symbols.symbol AND asked.interval = '1m'
    AND asked.day >= (newest.timestamp AT TIME ZONE 'UTC')::date
ORDER BY symbols.symbol
"""


def quiet_symbols(
    connection: psycopg.Connection, symbols: Sequence[str], quiet_after: timedelta
) -> list[Failure]:
    """Return a failure for each symbol of which the exchange was asked and had nothing for so long.

    Only the last unbroken stretch that was asked for counts: after downtime the open day is asked
    for first, and what lies between it and the newest candle is unknown, not quiet.
    """
    asked: defaultdict[tuple[str, datetime], list[Interval]] = defaultdict(list)
    for symbol, newest, day, until in connection.execute(ASKED, [list(symbols)]):
        # A day that never was asked for but failed is empty, and dropped by `merge`.
        asked[symbol, newest].append(Interval(day_interval(day).start, until))
    failures = []
    for (symbol, newest), intervals in asked.items():
        for stretch in merge(intervals)[-1:]:
            quiet = stretch.end - max(newest + MINUTE, stretch.start)
            if quiet > quiet_after:
                message = _message(
                    f"캔들 없음: {symbol}",
                    f"거래소에 {kst(stretch.end)}까지 물었으나 {_duration(quiet)} 동안 체결이 없음",
                    f"마지막 캔들 {kst(newest)}",
                )
                failures.append(Failure(f"quiet:{symbol}", SYMBOL_QUIET, WARNING, message, 1))
    return failures


# Our own kind is left out: the alert that tells of a dead one would die as well, and be told.
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
            _message(
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
    found: dict[str, tuple[int, datetime]] = {}
    for source in SOURCES:
        if source.kind not in since_of:
            continue
        arguments = {
            "table": source.table,
            "channel": source.channel,
            "since": max(since_of[source.kind], since),
            "until": until,
            "limit": None,
        }
        row = connection.execute(NOT_ENTERED.format(rows=source.rows), arguments).fetchone()
        if row and row[0]:
            count, oldest = found.get(source.kind, (0, until))
            found[source.kind] = count + row[0], min(oldest, row[1])
    return found


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
            _message(
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


@dataclass(frozen=True)
class _Known:
    """The newest alert of a fingerprint in the ledger that told of the failure."""

    fingerprint: str
    source_id: str
    body: dict[str, Any]
    state: str
    """Of the digest, where one told it."""
    told_at: datetime
    """When it was accepted; of what was not, when it was entered."""
    has_recovered: bool

    @property
    def is_open(self) -> bool:
        """Whether the failure was told and not yet that it is over."""
        return self.state in ACCEPTED and not self.has_recovered

    def has_told(self, at: datetime | None) -> bool:
        """Whether it told of what happened then: that is not news again, what lasts is."""
        told_of = self.body.get("happened_at")
        is_known = at and told_of and at <= datetime.fromisoformat(told_of)
        return bool(is_known) and self.state in ACCEPTED

    def may_recover(self, now: datetime) -> bool:
        """Whether it was told and is over, if it is not failing now.

        Rows that were missed stay missed: they only grow too old to be counted. And of a run that
        failed a day ago nobody knows any more.
        """
        at = self.body.get("happened_at")
        is_unknown = (
            self.body["type"] == RUN_FAILED
            and at is not None
            and now - datetime.fromisoformat(at) > RUNS_KNOWN
        )
        return self.is_open and not is_unknown and self.body["type"] != ALERT_MISSED


# The recovery has the failure's key with a word more, so it is found, and entered, once.
KNOWN = """
SELECT DISTINCT ON (told.body ->> 'fingerprint')
    told.body ->> 'fingerprint' AS fingerprint, told.source_id, told.body,
    coalesce(digest.state, told.state) AS state,
    coalesce(digest.delivered_at, told.delivered_at, told.occurred_at) AS told_at,
    EXISTS (SELECT FROM trading_pipelines.alert_deliveries AS recovery
        WHERE recovery.source = told.source AND recovery.channel = told.channel
          AND recovery.source_id = told.source_id || ' recovered') AS has_recovered
FROM trading_pipelines.alert_deliveries AS told
LEFT JOIN trading_pipelines.alert_deliveries AS digest ON digest.id = told.digest_id
WHERE told.source = %s AND told.occurred_at >= %s AND told.body ->> 'type' <> %s
ORDER BY told.body ->> 'fingerprint', told.id DESC
"""


def tell(
    connection: psycopg.Connection,
    failures: Sequence[Failure],
    repeat_after: timedelta,
    now: datetime,
) -> Told:
    """Enter what is to be told of all that is failing at `now`, and of what no longer is.

    A window opens when the message was accepted, and only a failure's own message opens one: what
    comes and goes is told once a window. What waits to be sent is told by what waits.
    """
    told = Told()
    # All or nothing, and one at a time: a killed daemon's tick may still be at it.
    with connection.transaction():
        connection.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('trading_pipelines.alerts.tell', 0))"
        )
        with connection.cursor(row_factory=class_row(_Known)) as cursor:
            cursor.execute(KNOWN, [SOURCE, now - LOOK_BACK, RECOVERED])
            known_of = {known.fingerprint: known for known in cursor}
        for failure in filter(lambda failure: failure.is_news, failures):
            known = known_of.get(failure.fingerprint)
            happened_at = failure.at.isoformat() if failure.at else None
            if known and (
                known.state in WAITING
                or now - known.told_at < repeat_after
                or known.has_told(failure.at)
            ):
                told.suppressed += 1
                continue
            before = known.body if known and known.is_open else {}
            note = _since_told(failure.count, before["count"]) if before else ""
            is_new = _enter(
                connection,
                f"{failure.fingerprint} {now.isoformat()}",
                {
                    "type": failure.type,
                    "level": failure.level,
                    "message": cut(failure.message, LONGEST_MESSAGE - len(note)) + note,
                    "fingerprint": failure.fingerprint,
                    "count": failure.count,
                    "failing_since": before.get("failing_since", now.isoformat()),
                    "happened_at": happened_at,
                },
                now,
            )
            told.new += is_new and not before
            told.repeated += is_new and bool(before)
        failing = {failure.fingerprint for failure in failures}
        for known in known_of.values():
            if known.fingerprint not in failing and known.may_recover(now):
                told.recovered += _enter(
                    connection, f"{known.source_id} recovered", _recovery(known, now), now
                )
    return told


def _enter(
    connection: psycopg.Connection, source_id: str, body: dict[str, Any], now: datetime
) -> bool:
    timed = {**body, "timestamp": now.isoformat()}
    return ledger.enter(
        connection, PIPELINE_FAILURE, SOURCE, source_id, CHANNEL, timed, occurred_at=now
    )


def _since_told(count: int, before: int) -> str:
    """Say how often it has happened again; a count that fell began anew in between."""
    if count == before:
        return "\n이전 알림 이후에도 계속됨"
    more = count - before if count > before else count
    return f"\n그 사이 {more}건 더 발생 (이전 알림 이후 생략됨)"


def _recovery(known: _Known, now: datetime) -> dict[str, Any]:
    since = datetime.fromisoformat(known.body["failing_since"])
    name, _, _ = known.body["message"].partition("\n")
    return {
        "type": RECOVERED,
        "level": INFO,
        "message": _message(
            f"더 이상 실패 상태가 아님: {name}",
            f"{_duration(now - since)} 지속 ({kst(since)} ~ {kst(now)})",
        ),
        "fingerprint": known.fingerprint,
        "count": known.body["count"],
    }


def _duration(span: timedelta) -> str:
    hours, minutes = divmod(span // MINUTE, 60)
    return f"{hours}시간 {minutes}분" if hours else f"{minutes}분"


def _short(names: str) -> str:
    digest = hashlib.sha256(names.encode()).hexdigest()[:16]
    return names if len(names) <= LONGEST_NAMES else f"{names[:LONGEST_NAMES]}…{digest}"


def _message(*lines: str) -> str:
    return cut("\n".join(line for line in lines if line), LONGEST_MESSAGE)
