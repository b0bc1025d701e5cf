"""What is due, asked of real tables; a healed hole makes due what it touches, and nothing else."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS, days_of
from tests.signals.conftest import SETTINGS, Bench
from trading_pipelines.candles.resample import resample
from trading_pipelines.candles.windows import DAY, day_interval
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import due
from trading_pipelines.signals.catalogue import (
    POOLED,
    REALIZED_VOLATILITY,
    REGIME_LABELS,
    REJECT_OUTCOMES,
    SIGNALS,
    VOLATILITY_FORECAST,
    VOLATILITY_MODEL,
    VOLATILITY_SCORE,
    Signal,
)
from trading_pipelines.signals.coverage import SignalCoverage
from trading_pipelines.signals.due import SignalDueReason, SignalRun

LATER = datetime(2025, 10, 1, tzinfo=UTC)
BTC, ETH, DOGE = "KRW-BTC", "KRW-ETH", "KRW-DOGE"
HEALED = date(2025, 9, 5)


def due_days(bench: Bench, signal: Signal) -> dict[str, list[date]]:
    known = signal_coverage.read(
        bench.connection, signal, SYMBOLS, days_of(FIRST_DAY, LAST_DAY), bench.settings
    )
    found: dict[str, list[date]] = {}
    for one in known:
        if due.reason(one, signal, bench.settings, LATER):
            found.setdefault(one.symbol, []).append(one.day)
    return found


def heal(bench: Bench, change: str) -> None:
    """Repair a candle of the healed day as a download would, and its hours."""
    bench.connection.execute(
        f"UPDATE market_data SET {change} WHERE symbol = 'KRW-ETH' "
        "AND timestamp = '2025-09-05 11:59Z'"
    )
    bench.connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET changed_at = clock_timestamp() "
        "WHERE symbol = 'KRW-ETH' AND interval = '1m' AND day = %s",
        [HEALED],
    )
    resample(bench.connection, [ETH], [HEALED], "heal")


def changed_days(bench: Bench, signal: Signal) -> set[date]:
    return {p.day for p in bench.compute(signal, SYMBOLS, FIRST_DAY, LAST_DAY) if p.changed}


def test_everything_is_due_once_in_the_order_of_the_lineage(bench: Bench) -> None:
    every = days_of(FIRST_DAY, LAST_DAY)
    assert due_days(bench, VOLATILITY_MODEL) == {}, "there is nothing to fit it on yet"
    for signal in SIGNALS:
        wanted = dict.fromkeys([POOLED] if signal.pooled else SYMBOLS, every)
        assert due_days(bench, signal) == wanted, signal.asset
        bench.compute(signal, SYMBOLS, FIRST_DAY, LAST_DAY)
        assert due_days(bench, signal) == {}, signal.asset


def test_a_healed_hole_makes_due_just_the_days_whose_window_it_is_in(computed: Bench) -> None:
    heal(computed, "close_price = close_price * 1.2, high_price = high_price * 1.2")
    # 200 hours are 8 days and 8 hours: the last window that begins in this day ends 9 days later.
    assert due_days(computed, REGIME_LABELS) == {ETH: days_of(HEALED, HEALED + 9 * DAY)}
    assert due_days(computed, REALIZED_VOLATILITY) == {ETH: days_of(HEALED, HEALED + 7 * DAY)}
    assert due_days(computed, VOLATILITY_MODEL) == {}, "variances first"
    known = computed.rows("regime_labels")
    assert changed_days(computed, REGIME_LABELS) <= set(days_of(HEALED, HEALED + 9 * DAY))
    assert computed.rows("regime_labels") != known
    assert due_days(computed, REGIME_LABELS) == {}

    assert HEALED in changed_days(computed, REALIZED_VOLATILITY)
    assert due_days(computed, VOLATILITY_MODEL) == {"": days_of(HEALED, LAST_DAY)}
    assert due_days(computed, VOLATILITY_FORECAST) == {ETH: days_of(HEALED, LAST_DAY)}


def test_a_repair_that_changes_no_variance_goes_no_further(computed: Bench) -> None:
    heal(computed, "volume = volume + 1")
    assert due_days(computed, REALIZED_VOLATILITY) == {ETH: days_of(HEALED, HEALED + 7 * DAY)}
    assert changed_days(computed, REALIZED_VOLATILITY) == set()
    # The hours' closes carry its GARCH forward, so a forecast looks at them itself.
    assert due_days(computed, VOLATILITY_FORECAST) == {ETH: days_of(HEALED, HEALED + DAY)}
    assert changed_days(computed, VOLATILITY_FORECAST) == set()
    for signal in (REALIZED_VOLATILITY, VOLATILITY_MODEL, VOLATILITY_FORECAST):
        assert due_days(computed, signal) == {}, signal.asset


def test_minutes_that_come_in_while_an_hour_is_open_make_nothing_due(computed: Bench) -> None:
    move = (
        "UPDATE trading_pipelines.candle_coverage SET status = 'partial', fetched_until = %s, "
        "changed_at = clock_timestamp() WHERE interval = '1m' AND day = %s"
    )
    computed.connection.execute(move, ["2025-09-21 13:05Z", LAST_DAY])
    computed.compute(REALIZED_VOLATILITY, SYMBOLS, LAST_DAY)
    computed.connection.execute(move, ["2025-09-21 13:59Z", LAST_DAY])
    assert due_days(computed, REALIZED_VOLATILITY) == {}
    computed.connection.execute(move, ["2025-09-21 14:00Z", LAST_DAY])
    assert due_days(computed, REALIZED_VOLATILITY) == {s: [LAST_DAY] for s in SYMBOLS}


KNOWN = SignalCoverage(
    asset="regime_labels",
    symbol=BTC,
    day=FIRST_DAY,
    computed_until=day_interval(FIRST_DAY).start + timedelta(hours=5),
    computed_from="old",
    failures=0,
    error=None,
    retry_at=None,
    left_failed=False,
    failed_inputs=None,
    inputs="new",
    until=day_interval(FIRST_DAY).start + timedelta(hours=6),
    has_all_inputs=True,
)
END = day_interval(FIRST_DAY).end
FAILED = {"failures": 1, "failed_inputs": "new", "retry_at": LATER + timedelta(minutes=1)}


@pytest.mark.parametrize(
    ("signal", "changes", "now", "expected"),
    [
        (REGIME_LABELS, {}, LATER, SignalDueReason.STALE),
        (REGIME_LABELS, {"computed_from": "new"}, LATER, None),
        (REGIME_LABELS, {"computed_until": None}, LATER, SignalDueReason.MISSING),
        (REGIME_LABELS, {"until": None}, LATER, None),
        (REGIME_LABELS, {"has_all_inputs": False}, LATER, None),
        (REGIME_LABELS, {"failures": 1, "computed_from": "new"}, LATER, SignalDueReason.FAILED),
        (REGIME_LABELS, FAILED, LATER, SignalDueReason.WAITING),
        (REGIME_LABELS, FAILED | {"inputs": "newer"}, LATER, SignalDueReason.FAILED),
        (REGIME_LABELS, FAILED | {"retry_at": LATER}, LATER, SignalDueReason.FAILED),
        (REGIME_LABELS, FAILED | {"left_failed": True}, LATER, SignalDueReason.LEFT_FAILED),
        (
            REGIME_LABELS,
            FAILED | {"left_failed": True, "retry_at": LATER},
            LATER,
            SignalDueReason.LEFT_FAILED,
        ),
        (
            REGIME_LABELS,
            FAILED | {"left_failed": True, "inputs": "newer"},
            LATER,
            SignalDueReason.FAILED,
        ),
        (VOLATILITY_SCORE, {}, LATER, None),
        (VOLATILITY_SCORE, {"until": END}, LATER, SignalDueReason.STALE),
        (VOLATILITY_MODEL, {"until": END}, END + timedelta(minutes=4, seconds=59), None),
        (VOLATILITY_MODEL, {"until": END}, END + timedelta(minutes=5), SignalDueReason.STALE),
    ],
)
def test_why_a_partition_is_due(
    signal: Signal, changes: dict[str, object], now: datetime, expected: SignalDueReason | None
) -> None:
    assert due.reason(replace(KNOWN, **changes), signal, SETTINGS, now) is expected  # type: ignore[arg-type]


def test_an_open_day_is_looked_at_every_so_many_hours_and_a_closed_one_at_once() -> None:
    detection = SETTINGS.regime_detection.model_copy(update={"check_interval_hours": 4})
    settings = SETTINGS.model_copy(update={"regime_detection": detection})

    def asked(until: datetime) -> SignalDueReason | None:
        return due.reason(replace(KNOWN, until=until), REGIME_LABELS, settings, LATER)

    five = day_interval(FIRST_DAY).start + timedelta(hours=5)
    assert [asked(five + timedelta(hours=n)) for n in (1, 3, 4)] == [
        None,
        None,
        SignalDueReason.STALE,
    ]
    assert asked(END) is SignalDueReason.STALE
    assert asked(five) is SignalDueReason.STALE, "repaired, not advanced"


def test_runs_are_few_neighbours_together_and_the_newest_first() -> None:
    days = days_of(FIRST_DAY, FIRST_DAY + 3 * DAY)
    reasons = dict.fromkeys(((s, d) for s in (BTC, ETH) for d in days[:2]), SignalDueReason.MISSING)
    reasons |= {(DOGE, days[3]): SignalDueReason.STALE, (BTC, days[3]): SignalDueReason.WAITING}
    reasons |= {(ETH, days[3]): SignalDueReason.LEFT_FAILED}
    assert due.runs(reasons, SYMBOLS) == [
        ((DOGE,), days[3], days[3]),
        ((BTC, ETH), days[0], days[1]),
    ]
    pooled = dict.fromkeys((("", day) for day in days), SignalDueReason.MISSING)
    assert due.runs(pooled, SYMBOLS) == [(("",), days[0], days[3])]


def stale(day: date, symbol: str = BTC) -> SignalCoverage:
    return replace(KNOWN, symbol=symbol, day=day, until=day_interval(day).end)


def test_a_tick_asks_for_what_is_due_and_not_in_flight_and_the_newest_is_urgent() -> None:
    days = days_of(FIRST_DAY, FIRST_DAY + 3 * DAY)
    partitions = [*map(stale, days[:3]), replace(stale(days[3]), computed_from="new")]
    planned = due.plan(REGIME_LABELS, partitions, {(BTC, days[1])}, SETTINGS, LATER)
    assert planned.runs == [
        SignalRun((BTC,), days[2], days[2], is_newest=True, is_urgent=True),
        SignalRun((BTC,), days[0], days[0], is_newest=False, is_urgent=False),
    ]
    assert planned.summary == "regime_labels 3 due of 4, 1 of them in flight"
    outcomes = due.plan(REJECT_OUTCOMES, partitions, set(), SETTINGS, LATER)
    assert outcomes.runs == [
        SignalRun((BTC,), days[0], days[2], is_newest=True, is_urgent=False)
    ], "nobody trades on them"


def test_a_day_is_looked_after_for_as_long_as_its_outcomes_may_come() -> None:
    short = SETTINGS.model_copy(
        update={"data": SETTINGS.data.model_copy(update={"look_back_days": 1})}
    )
    labels = due.look_back([REGIME_LABELS], short, LATER)
    assert labels == [LATER.date() - 2 * DAY, LATER.date() - DAY], "October has no closed minute"
    ahead = REJECT_OUTCOMES.days_after(short)
    outcomes = due.look_back([REGIME_LABELS, REJECT_OUTCOMES], short, LATER)
    assert outcomes[0] == LATER.date() - DAY - (ahead + 1) * DAY
