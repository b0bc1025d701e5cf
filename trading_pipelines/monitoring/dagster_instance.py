"""Dagster's instance: the one module that imports private names of Dagster.

It reads what `health` judges of Dagster (daemons, ticks, runs and pool slots), and does what our
processes need and no public name offers: ask a code server, find the runs that have lost their
process, run the daemon and the web server. What is allowed belongs in `checks`.
"""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, TypeVar

import dagster as dg
import grpc
import psycopg
import tenacity
from dagster._core.errors import DagsterUserCodeUnreachableError
from dagster._core.execution.backfill import BulkActionsFilter, BulkActionStatus
from dagster._core.instance.ref import InstanceRef
from dagster._core.scheduler.instigation import (
    InstigatorState,
    InstigatorTick,
    InstigatorType,
    TickStatus,
)
from dagster._core.storage.tags import (
    AUTO_RETRY_RUN_ID_TAG,
    BACKFILL_ID_TAG,
    DOCKER_IMAGE_TAG,
    GRPC_INFO_TAG,
    MAX_RETRIES_TAG,
    PRIORITY_TAG,
    WILL_RETRY_TAG,
)
from dagster._grpc.client import DagsterGrpcClient
from dagster._grpc.types import CanCancelExecutionRequest, CanCancelExecutionResult
from dagster._serdes import deserialize_value
from dagster._utils.schedules import schedule_execution_time_iterator

from trading_pipelines.database.connection import (
    DatabaseError,
    is_pooled,
    probe_database,
    probe_url,
    within_deadline,
)
from trading_pipelines.monitoring.daemons import (
    NEVER_RAN,
    has_dagsters_tables,
    healthy_daemons,
)
from trading_pipelines.monitoring.facts import (
    DAGSTERS,
    AutomationStatus,
    Daemon,
    HeldSlot,
    Orchestration,
    Unknown,
)
from trading_pipelines.settings.shipped import INSTANCE_SETTINGS, shipped

T = TypeVar("T")
HEARTBEAT = "heartbeat"
"""The sensor that asks HEARTBEAT_URL: whoever listens there sees whether it ticks."""

FAILED_IN_A_ROW = 3
CODE_SERVER_SECONDS = 2
# A run that goes on after a cut comes before all that waited behind it, the report (10) too.
WAS_AT_WORK = {PRIORITY_TAG: "20"}
FINISHED = {TickStatus.SUCCESS, TickStatus.SKIPPED, TickStatus.FAILURE}
AT_WORK = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    *AT_WORK,
]
# Where Dagster's daemon writes down up to which failure it has looked for runs to start again.
LOOKED_AT = f"EVENT_LOG_CONSUMER_CURSOR-{dg.DagsterEventType.RUN_FAILURE.value}"
CALLED_OFF = [
    BulkActionStatus.CANCELING,
    BulkActionStatus.CANCELED,
    BulkActionStatus.FAILING,
    BulkActionStatus.FAILED,
]
MOST_FAILURES = 500
# For failed runs that were not started again: a daemon that was away overnight still finds them.
LOOK_BACK = timedelta(days=1)
# How often the daemon looks at the backfills. Dagster's 30 s passed before the first run, and
# between the runs of one asset and those of the next.
BACKFILL_SECONDS = 5


def probe_dagster(
    url: str,
    schedules: Iterable[dg.ScheduleDefinition],
    sensors: Iterable[dg.SensorDefinition],
    now: datetime,
    facts: Collection[str] = DAGSTERS,
) -> Orchestration | Unknown:
    """Return what the instance knows whose storage is at `url`, as `read` does."""
    return ask(url, lambda instance: _orchestration(instance, schedules, sensors, now, facts))


def ask(url: str, question: Callable[[dg.DagsterInstance], T]) -> T | Unknown:
    """Return what the instance whose storage is at `url` answers, or why it can't be known.

    A new database is left alone. Raises nothing, and waits no longer than a probe's deadline.
    """
    return _answer_of(lambda: _ask(url, question))


def _ask(url: str, question: Callable[[dg.DagsterInstance], T]) -> T | Unknown:
    try:
        with probe_database(url) as connection:
            has_tables = has_dagsters_tables(connection)
            probe = probe_url(url, is_pooled=is_pooled(connection))
    except (DatabaseError, psycopg.Error):
        return Unknown("see database")
    if not has_tables:
        return NEVER_RAN
    # Without the probe, opening it would create tables, and try six times where nobody answers.
    with _open(probe) as instance:
        return question(instance)


def _open(url: str) -> dg.DagsterInstance:
    storage = {"postgres": {"postgres_url": url}}
    ref = InstanceRef.from_dir(
        str(shipped(INSTANCE_SETTINGS).parent), overrides={"storage": storage}
    )
    return dg.DagsterInstance.from_ref(ref)


def upgrade(url: str) -> None:
    """Create Dagster's tables in its storage, or migrate them to the installed version."""
    with _open(url) as instance:
        instance.upgrade()


def _answer_of(question: Callable[[], T | Unknown]) -> T | Unknown:
    try:
        return within_deadline(question)
    # Whatever the storage or its driver raises, health shows it as Unknown, not as a traceback.
    except Exception as error:  # noqa: BLE001
        return Unknown(f"{type(error).__name__}: {' '.join(str(error).split()):.200}")


def read(
    instance: dg.DagsterInstance,
    schedules: Iterable[dg.ScheduleDefinition],
    sensors: Iterable[dg.SensorDefinition],
    now: datetime,
) -> Orchestration | Unknown:
    """Return what health judges of the instance at `now` (UTC), or why it can't be known.

    Only those schedules and sensors count that are on by default. Raises nothing, and waits no
    longer than a probe's deadline.
    """
    return _answer_of(lambda: _orchestration(instance, schedules, sensors, now, DAGSTERS))


def _orchestration(
    instance: dg.DagsterInstance,
    schedules: Iterable[dg.ScheduleDefinition],
    sensors: Iterable[dg.SensorDefinition],
    now: datetime,
    facts: Collection[str],
) -> Orchestration:
    questions: dict[str, Callable[[], Any]] = {
        "daemons": lambda: _daemons(instance, now),
        "schedules": lambda: [_automation(instance, s) for s in schedules if _should_be_on(s)],
        "sensors": lambda: [_automation(instance, s) for s in sensors if _should_be_on(s)],
        "held_slots": lambda: [
            *_slots_of_orphaned_runs(instance),
            *_slots_of_finished_runs(instance),
        ],
    }
    return Orchestration(**{name: ask() for name, ask in questions.items() if name in facts})


def _should_be_on(automation: dg.ScheduleDefinition | dg.SensorDefinition) -> bool:
    return automation.default_status.value == "RUNNING" and automation.name != HEARTBEAT


def _daemons(instance: dg.DagsterInstance, now: datetime) -> list[Daemon]:
    heartbeats = {
        name: _utc(heartbeat.timestamp)
        for name, heartbeat in instance.get_daemon_heartbeats().items()
    }
    return healthy_daemons(heartbeats, instance.get_required_daemon_types(), now)


def _utc(timestamp: float) -> datetime:
    return datetime.fromtimestamp(timestamp, UTC)


def _automation(
    instance: dg.DagsterInstance, automation: dg.ScheduleDefinition | dg.SensorDefinition
) -> AutomationStatus:
    kind = (
        InstigatorType.SENSOR
        if isinstance(automation, dg.SensorDefinition)
        else InstigatorType.SCHEDULE
    )
    # By name alone: who serves the code location names it. A former location has older ticks.
    states = [
        (_since(state, ticks), state, ticks)
        for state in instance.all_instigator_state(instigator_type=kind)
        if state.instigator_name == automation.name
        for ticks in [
            instance.get_ticks(
                state.instigator_origin_id, state.selector_id, limit=FAILED_IN_A_ROW + 1
            )
        ]
    ]
    if not states:
        return AutomationStatus(automation.name, is_on=True, next_tick=None, error=None)
    since, state, ticks = max(states, key=lambda since_state_ticks: since_state_ticks[0])
    finished = [tick for tick in ticks if tick.status in FINISHED][:FAILED_IN_A_ROW]
    has_failed = len(finished) == FAILED_IN_A_ROW and all(
        tick.status is TickStatus.FAILURE for tick in finished
    )
    return AutomationStatus(
        automation.name,
        is_on=state.is_running,
        next_tick=_next_tick(automation, since),
        error=_error(finished[0]) if has_failed else None,
    )


def _since(state: InstigatorState, ticks: Sequence[InstigatorTick]) -> float:
    """Return when it last ticked, or was switched on (Unix time)."""
    started = [
        getattr(state.instigator_data, name, None) or 0.0
        for name in ("start_timestamp", "last_sensor_start_timestamp")
    ]
    return max(*started, *(tick.timestamp for tick in ticks))


def _next_tick(automation: dg.ScheduleDefinition | dg.SensorDefinition, since: float) -> datetime:
    if isinstance(automation, dg.SensorDefinition):
        return _utc(since + (automation.minimum_interval_seconds or 0))
    times = schedule_execution_time_iterator(
        since + 1, automation.cron_schedule, automation.execution_timezone
    )
    return next(times).astimezone(UTC)


def _error(tick: InstigatorTick) -> str:
    error = tick.error and (tick.error.cause or tick.error)
    return error.message.strip().partition("\n")[0] if error else "no error on record"


def launched_as(run: dg.DagsterRun) -> str:
    """Return the run's job, or how its assets were launched where Dagster gives it no name."""
    if not run.job_name.startswith("__"):
        return run.job_name
    return "backfill" if "dagster/backfill" in run.tags else "materialization"


def orphaned_runs(
    instance: dg.DagsterInstance, timeout: int = CODE_SERVER_SECONDS
) -> list[dg.RunRecord]:
    """Return the runs at work whose code server does not know them: they hold their pool for ever.

    A code server counts as knowing none when it takes longer than `timeout` (seconds; 0: it is not
    asked); one that is gone is not waited for. Runs that a cluster launched as Jobs are not among
    them: Dagster's run monitoring asks for these itself.
    """
    return [
        record
        for record in instance.get_run_records(dg.RunsFilter(statuses=AT_WORK))
        if DOCKER_IMAGE_TAG not in record.dagster_run.tags
        and not _has_process(record.dagster_run, timeout)
    ]


def _slots_of_orphaned_runs(instance: dg.DagsterInstance) -> list[HeldSlot]:
    slots = []
    for record in orphaned_runs(instance):
        run = record.dagster_run
        last = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
        quiet_since = _utc(last[0].event_log_entry.timestamp) if last else record.update_timestamp
        description = f"{launched_as(run)} {run.status.value}, no process"
        slots.append(HeldSlot(run.run_id, description, quiet_since))
    return slots


def _has_process(run: dg.DagsterRun, timeout: int) -> bool:
    """Ask the code server that started the run; the launcher itself has no such question."""
    if GRPC_INFO_TAG not in run.tags or timeout == 0:
        return False
    server = json.loads(run.tags[GRPC_INFO_TAG])
    client = DagsterGrpcClient(
        host=server.get("host"),
        port=server.get("port"),
        socket=server.get("socket"),
        use_ssl=server.get("use_ssl", False),
    )
    try:
        answer = client.can_cancel_execution(
            CanCancelExecutionRequest(run_id=run.run_id), timeout=timeout
        )
    except DagsterUserCodeUnreachableError:
        return False
    return deserialize_value(answer, CanCancelExecutionResult).can_cancel


def _slots_of_finished_runs(instance: dg.DagsterInstance) -> list[HeldSlot]:
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return []
    pools = storage.get_concurrency_infos(sorted(storage.get_concurrency_keys()))
    claimed = [(name, slot.run_id) for name, pool in pools.items() for slot in pool.claimed_slots]
    if not claimed:
        return []
    of_claims = dg.RunsFilter(run_ids=[run_id for _, run_id in claimed])
    records = {r.dagster_run.run_id: r for r in instance.get_run_records(of_claims)}
    slots = []
    for name, run_id in claimed:
        record = records.get(run_id)
        if record is None:
            slots.append(HeldSlot(run_id, f"gone, holds a slot of {name}", None))
        elif record.dagster_run.is_finished:
            status = record.dagster_run.status.value
            slots.append(
                HeldSlot(run_id, f"{status}, holds a slot of {name}", record.update_timestamp)
            )
    return slots


def fail_orphaned_runs(instance: dg.DagsterInstance, timeout: int) -> None:
    """Report the runs without a process as failed, so that Dagster starts them again.

    The default launcher can't ask such a run whether it lives: it would stay `STARTED` for ever and
    keep its partitions from being refreshed. It goes on before what waits, and uses up none of its
    retries: it has done nothing wrong. What it held of its pool is free at once: Dagster would free
    it 30 s later, when it next looks. `timeout` is that of `orphaned_runs`.
    """
    for record in orphaned_runs(instance, timeout):
        run = record.dagster_run
        retries = int(run.tags.get(MAX_RETRIES_TAG, instance.run_retries_max_retries))
        instance.add_run_tags(run.run_id, {MAX_RETRIES_TAG: str(retries + 1)} | WAS_AT_WORK)
        instance.report_run_failed(run, "the run's process ended with the services it ran under")
    for held in _slots_of_finished_runs(instance):
        instance.event_log_storage.free_concurrency_slots_for_run(held.run_id)


def fail_runs_that_will_not_start(
    instance: dg.DagsterInstance, obstacle: Callable[[str], str | None], before: datetime
) -> None:
    """Report the runs of a cluster as failed for which `obstacle` (of a run's id) has a reason.

    Asked for are those that have been STARTING since `before` (UTC): the launcher of a younger one
    may still be about to create its Job. Raises what `obstacle` raises.
    """
    starting = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTING], updated_before=before)
    for run in instance.get_runs(starting):
        if DOCKER_IMAGE_TAG not in run.tags or (why := obstacle(run.run_id)) is None:
            continue
        # It may have started while the cluster was asked.
        now = instance.get_run_by_id(run.run_id)
        if now is not None and now.status is dg.DagsterRunStatus.STARTING:
            instance.report_run_failed(now, f"the run does not start: {why}")


def will_retry(run: dg.DagsterRun) -> bool:
    """Return whether Dagster itself starts the failed run again."""
    return run.tags.get(WILL_RETRY_TAG) == "true"


def unfinished_runs(instance: dg.DagsterInstance) -> list[dg.RunRecord]:
    """Return the runs that are queued, at work or about to be started again, the newest first.

    A failed run is one of these until the daemon has looked at its failure: then there is another
    run in its place, or there will be none.
    """
    # First of all: a run that fails, or is started again, between the questions is seen by one.
    looked_at = instance.daemon_cursor_storage.get_cursor_values({LOOKED_AT}).get(LOOKED_AT)
    records = list(instance.get_run_records(dg.RunsFilter(statuses=UNFINISHED)))
    if looked_at is None:
        return records
    failures = instance.event_log_storage.get_logs_for_all_runs_by_log_id(
        after_cursor=int(looked_at),
        dagster_event_type={dg.DagsterEventType.RUN_FAILURE},
        limit=MOST_FAILURES,
    )
    if not failures:
        return records
    failed = dg.RunsFilter(
        run_ids=list({event.run_id for event in failures.values()}),
        statuses=[dg.DagsterRunStatus.FAILURE],
    )
    # The tag comes a moment after the failure.
    records += [
        record
        for record in instance.get_run_records(failed)
        if record.dagster_run.tags.get(WILL_RETRY_TAG) != "false"
    ]
    return sorted(records, key=lambda record: record.storage_id, reverse=True)


def backfills_at_work(instance: dg.DagsterInstance) -> bool:
    """Return whether a native backfill has runs to come."""
    at_work = BulkActionsFilter(statuses=[BulkActionStatus.REQUESTED])
    return instance.get_backfills_count(at_work) > 0


def is_called_off(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Return whether the run was cancelled or reported as failed, or its backfill called off.

    Dagster itself cancels no run that is STARTING, and one that starts forgets that it was marked
    as cancelled: its events tell it all the same.
    """
    ended = {
        dg.DagsterEventType.RUN_CANCELING,
        dg.DagsterEventType.RUN_CANCELED,
        dg.DagsterEventType.RUN_FAILURE,
    }
    if instance.get_records_for_run(run.run_id, of_type=ended, limit=1).records:
        return True
    if BACKFILL_ID_TAG not in run.tags:
        return False
    # Counted, not read: a backfill of two years is a megabyte.
    called_off = BulkActionsFilter(statuses=CALLED_OFF, backfill_ids=[run.tags[BACKFILL_ID_TAG]])
    return instance.get_backfills_count(called_off) > 0


class CodeServer:
    """A client of the code server at a host and port."""

    def __init__(self, host: str, port: int) -> None:
        self._client = DagsterGrpcClient(host=host, port=port)

    def await_id(self, seconds: float) -> str | None:
        """Return the server's id, another at each start; None where it does not answer in time."""
        try:
            return tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(DagsterUserCodeUnreachableError),
                stop=tenacity.stop_after_delay(seconds),
                wait=tenacity.wait_fixed(1),
                reraise=True,
            )(self._client.get_server_id)
        except DagsterUserCodeUnreachableError:
            return None

    def id(self, seconds: int) -> str | None:
        """Return the server's id, "" where no server is, None where it is too busy to answer."""
        try:
            return self._client.get_server_id(timeout=seconds)
        except DagsterUserCodeUnreachableError as error:
            cause = error.__cause__
            is_busy = isinstance(cause, grpc.Call) and (
                cause.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            )
            return None if is_busy else ""


def overlooked_runs(instance: dg.DagsterInstance, now: datetime) -> list[dg.RunRecord]:
    """Return the failed runs that are to be started again and were not, of the last day."""
    failed = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.FAILURE],
        tags={WILL_RETRY_TAG: "true"},
        updated_after=now - LOOK_BACK,
    )
    return [
        record
        for record in instance.get_run_records(failed)
        if AUTO_RETRY_RUN_ID_TAG not in record.dagster_run.tags
    ]


def run_daemon(workspace: str) -> None:
    """Run Dagster's daemon on the instance of DAGSTER_HOME until it is told to end."""
    from dagster._daemon.auto_run_reexecution.auto_run_reexecution import (
        consume_new_runs_for_automatic_reexecution,
    )
    from dagster._daemon.auto_run_reexecution.event_log_consumer import EventLogConsumerDaemon
    from dagster._daemon.cli import cli

    class RetryingDaemon(EventLogConsumerDaemon):
        """Dagster's, which also starts those again that it has overlooked.

        It reads a run once, at the event of its failure. The run's status is written after that: a
        run of a drained node was read in between, never started again, and its backfill never
        ended.
        """

        def __init__(self) -> None:
            super().__init__()
            self._looked_at: set[str] = set()

        def run_iteration(self, workspace_process_context: Any) -> Any:  # noqa: ANN401
            yield from super().run_iteration(workspace_process_context)
            # Once each: Dagster writes down why it refuses.
            overlooked = [
                record
                for record in overlooked_runs(workspace_process_context.instance, datetime.now(UTC))
                if record.dagster_run.run_id not in self._looked_at
            ]
            yield from consume_new_runs_for_automatic_reexecution(
                workspace_process_context, overlooked, self._logger
            )
            self._looked_at |= {record.dagster_run.run_id for record in overlooked}

    # Dagster has no settings for them.
    controller = import_module("dagster._daemon.controller")
    setattr(controller, "DEFAULT_DAEMON_INTERVAL_SECONDS", BACKFILL_SECONDS)  # noqa: B010
    setattr(controller, "EventLogConsumerDaemon", RetryingDaemon)  # noqa: B010
    cli(["run", "-w", workspace])


@contextmanager
def webserver_context(workspace: str, *, read_only: bool) -> Iterator[Any]:
    """Yield what Dagster's web server serves: the instance of DAGSTER_HOME and the workspace."""
    from dagster._core.workspace.context import WorkspaceProcessContext
    from dagster._core.workspace.load_target import WorkspaceFileTarget
    from dagster._utils.interrupts import setup_interrupt_handlers
    from dagster._utils.log import configure_loggers
    from dagster_webserver.cli import (
        DEFAULT_DB_STATEMENT_TIMEOUT,
        DEFAULT_POOL_MAX_OVERFLOW,
        DEFAULT_POOL_RECYCLE,
    )
    from dagster_webserver.version import __version__

    configure_loggers()
    setup_interrupt_handlers()
    with dg.DagsterInstance.get() as instance:
        instance.optimize_for_webserver(
            DEFAULT_DB_STATEMENT_TIMEOUT, DEFAULT_POOL_RECYCLE, DEFAULT_POOL_MAX_OVERFLOW
        )
        with WorkspaceProcessContext(
            instance, WorkspaceFileTarget([workspace]), version=__version__, read_only=read_only
        ) as context:
            yield context


def webserver_lifespan() -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """Return what Dagster's own web server does at its start and end."""
    from dagster_webserver.cli import _lifespan

    return _lifespan
