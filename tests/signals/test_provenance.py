"""By which settings and code partitions were made: what is counted, and what is made anew."""

from dataclasses import replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Console

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS, days_of
from tests.signals.conftest import SETTINGS, Bench
from tests.signals.rejections.test_outcomes import REGIMES, reject
from trading_pipelines.candles.windows import DAY
from trading_pipelines.monitoring.status import draw, read
from trading_pipelines.settings.strategy import (
    RegimeDetectionSettings,
    RejectOutcomesSettings,
    SignalSettings,
    StrategySettings,
    VolatilitySettings,
)
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import due
from trading_pipelines.signals.catalogue import (
    REGIME_LABELS,
    SIGNALS,
    VOLATILITY_FORECAST,
    VOLATILITY_MODEL,
    Signal,
)
from trading_pipelines.signals.due import RECOMPUTED_AT_ONCE, SignalDueReason
from trading_pipelines.signals.provenance import made_otherwise

BTC, ETH = "KRW-BTC", "KRW-ETH"
LATER = datetime(2025, 10, 1, tzinfo=UTC)
WITH_EXITS = SETTINGS.model_copy(update={"regimes": REGIMES})
RECOMPUTE = SignalSettings(when_settings_change="recompute")
DAYS = days_of(FIRST_DAY, LAST_DAY)


def changed(settings: StrategySettings = SETTINGS, **sections: BaseModel) -> StrategySettings:
    return settings.model_copy(update=sections)


THRESHOLD = changed(regime_detection=RegimeDetectionSettings(bull_threshold_pct=3.0))
ALPHA = changed(volatility=VolatilitySettings(ridge_alpha=20.0))


class Watched:
    """Settings that note which of them are read."""

    def __init__(self, values: BaseModel, read: set[str], within: str = "") -> None:
        self._values, self._read, self._within = values, read, within

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._values, name)
        if isinstance(value, BaseModel):
            return Watched(value, self._read, f"{name}.")
        self._read.add(f"{self._within}{name}")
        return value


@pytest.mark.parametrize("signal", SIGNALS, ids=attrgetter("asset"))
def test_whatever_setting_a_computation_reads_is_declared(computed: Bench, signal: Signal) -> None:
    if signal.decision:
        at = datetime(2025, 9, 18, 3, 10, tzinfo=UTC)
        reject(computed, BTC, at, decision=signal.decision)
    seen: set[str] = set()
    computed.settings = Watched(WITH_EXITS, seen)  # type: ignore[assignment]
    found = computed.compute(signal, SYMBOLS, LAST_DAY - 3 * DAY)
    assert not [partition.error for partition in found if partition.error]
    declared = {*signal.settings_that_matter(WITH_EXITS)}
    if signal.decision:
        # Each regime's exits stand for what is read of both.
        declared |= {"regimes", "regime_detection.unknown_fallback"}
    assert seen <= declared


def digests(settings: StrategySettings) -> set[str]:
    """Return the assets that these settings concern."""
    pairs = ((s, s.settings_digest(settings), s.settings_digest(WITH_EXITS)) for s in SIGNALS)
    return {signal.asset for signal, now, before in pairs if now != before}


def test_a_setting_concerns_what_it_can_change_and_nothing_else() -> None:
    def exits(**values: object) -> StrategySettings:
        bull = {"exit": {**REGIMES["BULL"]["exit"], **values}}  # type: ignore[dict-item]
        return WITH_EXITS.model_copy(update={"regimes": {**REGIMES, "BULL": bull}})

    outcomes = {"reject_outcomes", "confirm_outcomes"}
    assert digests(changed(WITH_EXITS, regime_detection=THRESHOLD.regime_detection)) == {
        "regime_labels"
    }
    hourly = RegimeDetectionSettings(check_interval_hours=4, redis_ttl_seconds=60)
    assert digests(changed(WITH_EXITS, regime_detection=hourly)) == set()
    assert digests(changed(WITH_EXITS, volatility=ALPHA.volatility)) == {"volatility_model"}
    percentile = VolatilitySettings(high_percentile=80.0)
    assert digests(changed(WITH_EXITS, volatility=percentile)) == {"volatility_forecast"}
    backwards = VolatilitySettings(horizons=[24, 1], published_horizon=1)
    assert digests(changed(WITH_EXITS, volatility=backwards)) == set()
    assert digests(changed(WITH_EXITS, volatility=VolatilitySettings(horizons=[1]))) == {
        "volatility_model", "volatility_forecast", "garch_baseline", "volatility_score"
    }  # fmt: skip
    fee = RejectOutcomesSettings(fee_pct=0.1)
    assert digests(changed(WITH_EXITS, reject_outcomes=fee)) == outcomes
    families = dict(reversed(RejectOutcomesSettings().reason_families.items()))
    reordered = RejectOutcomesSettings(reason_families=families)
    assert digests(changed(WITH_EXITS, reject_outcomes=reordered)) == outcomes
    assert digests(exits(stop_loss_pct=0.02)) == outcomes
    assert digests(exits(trailing_stop=True)) == set(), "the bot's own, which nothing here reads"
    fallback = RegimeDetectionSettings(unknown_fallback="BEAR")
    assert digests(changed(WITH_EXITS, regime_detection=fallback)) == outcomes


def test_a_changed_threshold_marks_exactly_the_partitions_it_concerns(computed: Bench) -> None:
    assert made_otherwise(computed.connection, SETTINGS) == []
    (marked,) = made_otherwise(computed.connection, THRESHOLD)
    assert (marked.asset, marked.partitions, marked.by_other_settings) == (
        "regime_labels", len(SYMBOLS) * len(DAYS), len(SYMBOLS) * len(DAYS)
    )  # fmt: skip
    assert marked.changed == ("regime_detection.bull_threshold_pct 2.0, now 3.0",)
    computed.settings = THRESHOLD
    computed.compute(REGIME_LABELS, [BTC, ETH], LAST_DAY)
    (marked,) = made_otherwise(computed.connection, THRESHOLD)
    assert marked.by_other_settings == len(SYMBOLS) * len(DAYS) - 2
    (marked,) = made_otherwise(computed.connection, SETTINGS)
    assert marked.by_other_settings == 2, "and back"


def plan(bench: Bench, signal: Signal, settings: StrategySettings, *flying: tuple[str, Any]) -> Any:
    known = signal_coverage.read(bench.connection, signal, SYMBOLS, DAYS, settings)
    return due.plan(signal, known, set(flying), settings, LATER)


def test_marked_is_not_due_and_recomputed_is_the_newest_first_and_never_all_at_once(
    computed: Bench,
) -> None:
    assert plan(computed, REGIME_LABELS, THRESHOLD).runs == []
    settings = changed(THRESHOLD, signals=RECOMPUTE)
    a_tick = RECOMPUTED_AT_ONCE // len(SYMBOLS)
    first = LAST_DAY - (a_tick - 1) * DAY
    (run,) = plan(computed, REGIME_LABELS, settings).runs
    assert (run.symbols, run.first, run.last) == (tuple(SYMBOLS), first, LAST_DAY)
    flying = [(symbol, day) for symbol in SYMBOLS for day in days_of(first, LAST_DAY)]
    assert plan(computed, REGIME_LABELS, settings, *flying).runs == [], "one load after the other"
    computed.settings = settings
    ticks = 0
    while runs := plan(computed, REGIME_LABELS, settings).runs:
        for run in runs:
            computed.compute(REGIME_LABELS, run.symbols, run.first, run.last)
        ticks += 1
    assert ticks == -(-len(DAYS) // a_tick)
    assert made_otherwise(computed.connection, settings) == []


def test_a_new_hour_is_not_kept_back_by_what_is_made_anew(computed: Bench) -> None:
    settings = changed(THRESHOLD, signals=RECOMPUTE)
    computed.connection.execute(
        "DELETE FROM trading_pipelines.signal_coverage "
        "WHERE asset = 'regime_labels' AND day = %s", [FIRST_DAY],
    )  # fmt: skip
    newest, missing = plan(computed, REGIME_LABELS, settings).runs
    assert (missing.first, missing.last) == (FIRST_DAY, FIRST_DAY), "not among those held back"
    assert newest.last == LAST_DAY


def test_models_by_a_new_setting_make_the_forecasts_after_them_due(computed: Bench) -> None:
    settings = changed(ALPHA, signals=RECOMPUTE)
    assert plan(computed, VOLATILITY_FORECAST, settings).runs == []
    computed.settings = settings
    computed.compute(VOLATILITY_MODEL, [], LAST_DAY)
    known = signal_coverage.read(
        computed.connection, VOLATILITY_FORECAST, SYMBOLS, DAYS, settings
    )  # fmt: skip
    reasons = {(p.symbol, p.day): due.reason(p, VOLATILITY_FORECAST, settings, LATER)
               for p in known}  # fmt: skip
    assert {key for key, why in reasons.items() if why} == {(s, LAST_DAY) for s in SYMBOLS}
    assert reasons[BTC, LAST_DAY] is SignalDueReason.STALE


def test_what_other_code_made_and_what_is_not_known_are_told_apart(computed: Bench) -> None:
    computed.connection.execute(
        "UPDATE trading_pipelines.signal_coverage SET code_version = '0' "
        "WHERE asset = 'regime_labels' AND symbol = %s", [BTC],
    )  # fmt: skip
    computed.connection.execute(
        "UPDATE trading_pipelines.signal_coverage SET settings_digest = NULL, code_version = NULL "
        "WHERE asset = 'regime_labels' AND symbol = %s", [ETH],
    )  # fmt: skip
    (marked,) = made_otherwise(computed.connection, SETTINGS)
    assert (marked.by_other_settings, marked.by_other_code, marked.not_known) == (0, 21, 21)
    settings = changed(signals=RECOMPUTE)
    known = signal_coverage.read(computed.connection, REGIME_LABELS, SYMBOLS, DAYS, settings)
    reasons = {p.symbol: due.reason(p, REGIME_LABELS, settings, LATER) for p in known}
    assert reasons.pop(BTC) is SignalDueReason.OTHER_CODE
    assert set(reasons.values()) == {None}, "what is not known is not called wrong"


def test_status_counts_what_was_made_otherwise(computed: Bench) -> None:
    def screen(settings: StrategySettings) -> str:
        console = Console(width=200, highlight=False)
        now = datetime(2025, 9, 22, 12, tzinfo=UTC)
        with console.capture() as capture:
            for part in draw(read(computed.connection, settings, "", now), "up", "not asked", now):
                console.print(part)
        return capture.get()

    assert "made otherwise" not in screen(SETTINGS)
    assert (
        "made otherwise: regime_labels 105 of 105: other settings "
        "(regime_detection.bull_threshold_pct 2.0, now 3.0)"
    ) in screen(THRESHOLD)
    computed.connection.execute(
        "UPDATE trading_pipelines.signal_coverage SET settings_digest = NULL, code_version = NULL "
        "WHERE asset = 'volatility_model'"
    )
    text = screen(SETTINGS)
    assert "made before provenance was kept: volatility_model 21 of 21" in text
    assert "made otherwise" not in text


def test_two_code_versions_of_one_asset_are_two(computed: Bench) -> None:
    newer = replace(REGIME_LABELS, code_version="2")
    (known, *_) = signal_coverage.read(computed.connection, newer, [BTC], [LAST_DAY], SETTINGS)
    assert due.made_otherwise(known, newer, SETTINGS) is SignalDueReason.OTHER_CODE
    assert due.made_otherwise(known, REGIME_LABELS, SETTINGS) is None
