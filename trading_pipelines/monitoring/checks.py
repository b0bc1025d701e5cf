"""The checks of `health`: how each measured fact is judged, and what mends a bad one.

Judging is a function of the facts, the settings and a moment. Measuring belongs in `measure`, and
reading Dagster's own state in `dagster_instance`. What is not known is never good.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from trading_pipelines.alerts import endpoints
from trading_pipelines.alerts.webhooks import EndpointTrouble
from trading_pipelines.candles.coverage import CandleCoverage
from trading_pipelines.candles.due import REFRESHED_EVERY
from trading_pipelines.candles.rate_limit import Clock
from trading_pipelines.candles.windows import HOUR, contiguous, day_interval, floor_hour, named
from trading_pipelines.live.state import ReaderState, live_edge
from trading_pipelines.monitoring.facts import (
    GIGABYTE,
    AlertFacts,
    AutomationStatus,
    Check,
    Daemon,
    Facts,
    FailedPartition,
    HeldSlot,
    Sizes,
    Unknown,
)
from trading_pipelines.monitoring.measure import model_day
from trading_pipelines.monitoring.reconciliation import Reconciliation
from trading_pipelines.settings.last_good import RefusedSettings
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals import due as signals_due
from trading_pipelines.signals.catalogue import VOLATILITY_MODEL
from trading_pipelines.signals.coverage import SignalCoverage

SHOWN = 5
WRONG_CLOCK = timedelta(minutes=1)
# The bot skips a symbol whose newest candle began more than two minutes ago.
LIVE_AGE = timedelta(minutes=3)
# Twelve times as long as from one word of the reader's to the next.
SILENT_READER = timedelta(minutes=1)

ShowTime = Callable[[datetime], str]
Judgement = tuple[Sequence[str], str]
"""The problems found, and the text that stands where there is none."""

NEEDS = {
    "database": ["unusable"],
    "daemons": ["daemons"],
    "settings": ["refused_settings"],
    "schedules": ["schedules"],
    "sensors": ["sensors"],
    "candles": ["days"],
    "live": ["live", "days", "clock"],
    "labels": ["labels"],
    "models": ["model"],
    "alerts": ["alerts"],
    "dead_alerts": ["alerts"],
    "holes": ["days", "failed", "old_gaps", "half_made", "older_filled_at", "filled_at"],
    "failed_partitions": ["failed"],
    "events": ["compared"],
    "slots": ["held_slots"],
    "clock": ["clock"],
    "database_size": ["sizes"],
    "disk": ["free_bytes"],
}
"""The checks in their order, and the facts that each one judges."""


def facts_needed(checks: Iterable[str]) -> set[str]:
    """Return the names of the facts that have to be measured for the checks."""
    return {fact for check in checks for fact in NEEDS[check]}


def judge(
    facts: Facts,
    settings: StrategySettings,
    now: datetime,
    show: ShowTime,
    only: Collection[str] = NEEDS,
) -> list[Check]:
    """Return the checks at `now` (UTC), in their order; `show` writes moments in their texts."""
    rules = _Judge(facts, settings, now, show).rules()
    return [_checked(name, facts, rules[name]) for name in NEEDS if name in only]


@dataclass(frozen=True)
class _Rule:
    find: Callable[..., Judgement]
    """Takes the facts that the check needs, in their order in NEEDS."""
    allowed: str
    advice: str


@dataclass(frozen=True)
class _Judge:
    facts: Facts
    settings: StrategySettings
    now: datetime
    show: ShowTime

    def rules(self) -> dict[str, _Rule]:
        limits = self.settings.health
        minutes = f"{limits.late_after_seconds / 60:g} min"
        fresh = f"{(self._late + REFRESHED_EVERY).total_seconds() / 60:g} min"
        return {
            "database": _Rule(
                lambda problems: (problems, "answers, newest schema"),
                "both answer, newest schema",
                "`trading-pipelines up` starts the embedded server; one of your own is started by "
                "you, and `trading-pipelines db upgrade` brings its schema up to date",
            ),
            "settings": _Rule(
                self._settings,
                "a strategy file that can be used",
                "mend that line of the file; the settings that it then holds come with a reload of "
                "the code location (Deployment in the UI), or with `down` and `up`",
            ),
            "daemons": _Rule(
                self._daemons,
                "a heartbeat of each within Dagster's half hour",
                "`trading-pipelines up`; why it ended is in daemon.log of the home's logs",
            ),
            "schedules": _Rule(
                self._automation, f"on, at most {minutes} late", self._switch("Schedules")
            ),
            "sensors": _Rule(
                self._automation, f"on, at most {minutes} late", self._switch("Sensors")
            ),
            "candles": _Rule(
                self._candles,
                f"{fresh} old",
                "`trading-pipelines status` says what is due and why",
            ),
            "live": _Rule(
                self._live,
                f"the newest minute at most {LIVE_AGE.total_seconds():g} s old",
                "live.log of the home's logs says what its reader lacks; `trading-pipelines up` "
                "starts it, as does `serve live` where the services are served apart",
            ),
            "labels": _Rule(
                self._labels,
                f"each hour within {fresh}",
                "`trading-pipelines status` says what is due and why; then the runs of "
                "update_regime_job in the UI",
            ),
            "models": _Rule(
                self._model,
                f"of each closed day, {minutes} after 00:05 UTC",
                "`trading-pipelines status` says what is due and why; then the runs of "
                "retrain_volatility_job in the UI",
            ),
            "alerts": _Rule(
                self._waiting,
                f"no endpoint is broken, none waits longer than {minutes}",
                "`trading-pipelines alerts list --state retrying --state pending`, then "
                "`trading-pipelines n8n check`; not entered: set N8N_URL or DISCORD_WEBHOOK_URL, "
                "and see the kind's sensor in the UI (Automation, Sensors)",
            ),
            "dead_alerts": _Rule(
                lambda alerts: ([f"{kind} {n}" for kind, n in alerts.dead.items()], "none"),
                "none",
                "`trading-pipelines alerts list --state dead` says why, `trading-pipelines alerts "
                "replay --dead` sends them again",
            ),
            "holes": _Rule(
                self._holes,
                f"none in closed days, {fresh} after they closed",
                "`trading-pipelines status` names the days; what the schedules do not mend, and "
                "what is older than the look-back, `trading-pipelines backfill --with-signals` "
                "does",
            ),
            "failed_partitions": _Rule(
                self._failed,
                f"fewer than {self.settings.alerts.failures_before_alert} failures in a row",
                "`trading-pipelines status` says why; candles: `trading-pipelines backfill`, "
                "signals: materialise the partition in the UI",
            ),
            "events": _Rule(
                self._events,
                "Dagster's events and the tables agree",
                "`trading-pipelines status` says what differs. More than a hundred partitions that "
                "only Dagster knows are left alone: was the market database exchanged, or restored "
                "without Dagster's? Materialize them, or wipe the asset in the UI",
            ),
            "slots": _Rule(
                self._slots,
                f"no run without a process for {minutes}",
                "terminate the run in the UI (Runs, Force terminate), or start again: "
                "`trading-pipelines down`, then `trading-pipelines up`",
            ),
            "clock": _Rule(
                self._clock,
                f"at most {WRONG_CLOCK.total_seconds():g} s beside the exchange's",
                "set this machine's clock, and keep it by NTP; candles go by the exchange's clock, "
                "schedules and alerts by this one",
            ),
            "database_size": _Rule(
                self._size,
                f"{limits.max_database_gb:g} GB",
                "fewer days in the settings' section housekeeping, or a higher "
                "health.max_database_gb",
            ),
            "disk": _Rule(
                self._disk,
                f"{limits.min_free_disk_gb:g} GB free",
                "make room where the home is, or move it: TRADING_PIPELINES_HOME",
            ),
        }

    @property
    def _late(self) -> timedelta:
        return timedelta(seconds=self.settings.health.late_after_seconds)

    @property
    def _stale(self) -> datetime:
        """Until when candles have to reach: there is a refresh every five minutes."""
        return self.now - self._late - REFRESHED_EVERY

    def _switch(self, tab: str) -> str:
        return (
            f"off: switch it on in the UI (Automation, {tab}); no ticks: code-server.log and "
            "daemon.log of the home's logs, then `trading-pipelines down` and `up`"
        )

    def _settings(self, refused: RefusedSettings | None) -> Judgement:
        if refused is None:
            return [], "the file is good"
        return [
            f"the last good ones are in use, as of {self.show(refused.since)}",
            *refused.problem.splitlines(),
        ], ""

    def _daemons(self, daemons: Sequence[Daemon]) -> Judgement:
        bad = [
            f"{daemon.name}: {self._moment(daemon.last_heartbeat, 'last heartbeat')}"
            for daemon in daemons
            if not daemon.healthy
        ]
        return bad, f"{len(daemons)} healthy"

    def _automation(self, statuses: Sequence[AutomationStatus]) -> Judgement:
        bad = []
        for status in statuses:
            if not status.is_on:
                bad.append(f"{status.name}: off")
            elif status.next_tick is None:
                bad.append(f"{status.name}: no daemon has seen it")
            elif status.next_tick < self.now - self._late:
                bad.append(f"{status.name}: no tick since {self.show(status.next_tick)}")
            elif status.error:
                bad.append(f"{status.name}: fails: {status.error}")
        return bad, f"{len(statuses)} on"

    def _candles(self, days: Sequence[CandleCoverage]) -> Judgement:
        if not self.settings.data.refresh:
            return [], NOT_REFRESHED
        until = dict.fromkeys(self.settings.symbols, datetime.min.replace(tzinfo=self.now.tzinfo))
        for day in days:
            if day.fetched_until > day_interval(day.day).start:
                until[day.symbol] = max(until[day.symbol], day.fetched_until)
        bad = [
            f"{symbol}: " + (f"to {self.show(end)}" if end.year > 1 else "none in the look-back")
            for symbol, end in until.items()
            if end < self._stale
        ]
        return bad, f"to {self.show(min(until.values()))}"

    def _live(
        self, reader: ReaderState | None, days: Sequence[CandleCoverage], clock: Clock
    ) -> Judgement:
        if not self.settings.data.refresh:
            return [], NOT_REFRESHED
        if not self.settings.live.enabled:
            return [], "not expected: live.enabled is false"
        if reader is None:
            return ["no reader of the stream has ever worked"], ""
        edge = live_edge(days, self.now, clock.ahead)
        bad = []
        if reader.updated_at < self.now - SILENT_READER:
            bad.append(self._moment(reader.updated_at, "its reader is silent since"))
        if edge is None or edge.age > LIVE_AGE:
            bad.append(self._moment(edge.ended_at if edge else None, "the newest minute ended"))
            bad += filter(None, [reader.problem])
        if bad or edge is None:
            return bad, ""
        connected = (
            self._moment(reader.connected_since, "connected since")
            if reader.connected_since
            else f"requests bring each minute: {reader.problem or 'not connected'}"
        )
        return [], f"{edge.age.total_seconds():.0f} s old, {connected}"

    def _labels(self, labels: Mapping[str, datetime | None]) -> Judgement:
        if not self.settings.data.refresh:
            return [], NOT_REFRESHED
        skipped = self.settings.regime_detection.check_interval_hours - 1
        due = floor_hour(self._stale) - HOUR * skipped
        bad = [
            f"{symbol}: {self._moment(as_of, 'as of')}"
            for symbol, as_of in labels.items()
            if as_of is None or as_of < due
        ]
        return bad, self._moment(min(filter(None, labels.values()), default=None), "as of")

    def _model(self, model: SignalCoverage | None) -> Judgement:
        if not self.settings.data.refresh:
            return [], NOT_REFRESHED
        if model is None:
            day = model_day(self.settings.health, self.now)
            return [], f"{day} is not collected"
        if model.computed_until is not None:
            return [], f"of {model.day}"
        why = signals_due.reason(model, VOLATILITY_MODEL, self.settings, self.now)
        return [f"none of {model.day}: {why or 'its inputs are missing'}"], ""

    def _waiting(self, alerts: AlertFacts) -> Judgement:
        bad = [
            endpoints.described(endpoint, self.show)
            for endpoint in alerts.endpoints
            # A rest of a while is Discord's way to keep its limits.
            if endpoint.trouble == EndpointTrouble.BROKEN or endpoint.since < self.now - self._late
        ]
        bad += [
            f"{group.kind}: {group.count} {state}, since {self.show(group.since)}"
            for state, groups in (("waiting", alerts.waiting), ("not entered", alerts.not_entered))
            for group in groups
            if group.since < self.now - self._late
        ]
        count = sum(group.count for group in alerts.waiting)
        return bad, f"{count} waiting, {self._moment(alerts.delivered, 'newest delivered')}"

    def _holes(
        self,
        days: Sequence[CandleCoverage],
        failed: Sequence[FailedPartition],
        old_gaps: Sequence[tuple[str, date]],
        half_made: Sequence[tuple[str, str, date]],
        older_filled_at: datetime | None,
        filled_at: datetime | None,
    ) -> Judgement:
        if not self.settings.data.refresh:
            return [], NOT_REFRESHED
        # These are the check `failed_partitions` already.
        failing = {(f.symbol, f.day) for f in failed if "candles" in f.asset}
        is_filling = filled_at is not None and filled_at > self.now - self._late
        filling = 0
        bad: dict[str, list[CandleCoverage]] = {}
        for day in days:
            closed_long = day_interval(day.day).end < self._stale
            if not day.holes(self.now) or (day.symbol, day.day) in failing or not closed_long:
                continue
            if is_filling and not day.damaged:
                filling += day.holes(self.now)
            else:
                bad.setdefault(day.symbol, []).append(day)
        lines = [
            f"{symbol}: {sum(d.holes(self.now) for d in holed):,} ({_days(d.day for d in holed)})"
            for symbol, holed in bad.items()
        ]
        old: dict[str, list[date]] = {}
        for symbol, gap in old_gaps:
            old.setdefault(symbol, []).append(gap)
        lines += [
            f"{symbol}: {_days(gaps)}, older than the look-back" for symbol, gaps in old.items()
        ]
        # A backfill begins all its days before it ends one.
        if older_filled_at is None or older_filled_at < self.now - self._late:
            left: dict[str, list[date]] = {}
            for asset, symbol, day_begun in half_made:
                if (symbol, day_begun) not in old_gaps:
                    left.setdefault(f"{asset} {symbol}".strip(), []).append(day_begun)
            lines += [f"{name}: {_days(begun)}, begun and not done" for name, begun in left.items()]
        return lines, f"filling: {filling:,} left" if filling else "none"

    def _failed(self, failed: Sequence[FailedPartition]) -> Judgement:
        groups: dict[str, list[date]] = {}
        for partition in failed:
            state = "left failed" if partition.left_failed else "failing"
            name = " ".join(filter(None, (state, partition.asset, partition.symbol)))
            groups.setdefault(name, []).append(partition.day)
        return [f"{name}: {_days(days)}" for name, days in groups.items()], "none"

    def _events(self, compared: Sequence[Reconciliation]) -> Judgement:
        bad = [f"{asset.asset}: {asset.left_over:,} partitions differ" for asset in compared
               if asset.left_over]  # fmt: skip
        if not compared:
            return bad, "not compared yet"
        return bad, self._moment(min(asset.compared_at for asset in compared), "agree as of")

    def _slots(self, slots: Sequence[HeldSlot]) -> Judgement:
        bad = [
            f"run {slot.run_id[:8]}: {slot.description}, "
            f"{self._moment(slot.quiet_since, 'quiet since')}"
            for slot in slots
            if slot.quiet_since is None or slot.quiet_since < self.now - self._late
        ]
        return bad, "none held by a dead run"

    def _clock(self, clock: Clock) -> Judgement:
        if clock.problem:
            return [f"the exchange's Date {clock.problem}: this machine's clock is used"], ""
        if clock.ahead is None:
            return [], "not compared yet"
        side = "behind" if clock.ahead > timedelta(0) else "ahead of"
        text = f"{abs(clock.ahead).total_seconds():,.0f} s {side} the exchange's"
        return [text] if abs(clock.ahead) > WRONG_CLOCK else [], text

    def _size(self, sizes: Sizes) -> Judgement:
        total = (sizes.market + sizes.dagster) / GIGABYTE
        growth = "not known yet" if sizes.growth is None else f"{sizes.growth / GIGABYTE:.3f} GB"
        text = f"{total:.2f} GB, growth a day: {growth}"
        return [text] if total > self.settings.health.max_database_gb else [], text

    def _disk(self, free_bytes: int | None) -> Judgement:
        if free_bytes is None:
            return [], "the database is on a server of your own"
        free = free_bytes / GIGABYTE
        text = f"{free:.1f} GB free"
        return [text] if free < self.settings.health.min_free_disk_gb else [], text

    def _moment(self, moment: datetime | None, words: str) -> str:
        return f"{words} {self.show(moment)}" if moment else f"{words}: never"


NOT_REFRESHED = "not expected: data.refresh is false"


def _days(days: Iterable[date]) -> str:
    return ", ".join(named(first, last) for first, last in contiguous(days))


def _checked(name: str, facts: Facts, rule: _Rule) -> Check:
    values = [getattr(facts, fact) for fact in NEEDS[name]]
    for value in values:
        if isinstance(value, Unknown):
            return Check(name, None, f"not known: {value.reason}", rule.allowed, rule.advice)
    problems, text_when_good = rule.find(*values)
    more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
    text = "; ".join([*problems[:SHOWN], *more]) or text_when_good
    return Check(name, not problems, text, rule.allowed, rule.advice)
