"""Partitions of signals on real tables: the same rows however often, and nothing of the future."""

from datetime import UTC, date, datetime, timedelta

import psycopg
import pytest

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS, days_of
from tests.signals.conftest import Bench
from trading_pipelines.candles.resample import resample
from trading_pipelines.candles.windows import DAY, day_interval
from trading_pipelines.signals import coverage as signal_coverage
from trading_pipelines.signals import due
from trading_pipelines.signals.catalogue import (
    GARCH_BASELINE,
    REALIZED_VOLATILITY,
    REGIME_LABELS,
    SIGNALS,
    VOLATILITY_FORECAST,
    VOLATILITY_MODEL,
)
from trading_pipelines.signals.coverage import SignalCoverage
from trading_pipelines.signals.regimes import partition

BTC = "KRW-BTC"
UNTIL = date(2025, 9, 18)
# Without decisions there are no outcomes: they have a module of their own.
TABLES = [one.asset for one in SIGNALS if one.decision is None]
# The close of a day's last hour is midnight, and is the day's own.
BELONGS = {
    "volatility_model": "day >=",
    "volatility_score": "day >=",
    "volatility_forecast": "as_of >",
    "garch_baseline": "as_of >",
}


def forget(bench: Bench, first: date) -> None:
    """Delete every signal of the days from `first` on."""
    for table in TABLES:
        computed = f"{BELONGS.get(table, 'hour >=')} %s::date::timestamp AT TIME ZONE 'UTC'"
        bench.connection.execute(f"DELETE FROM trading_pipelines.{table} WHERE {computed}", [first])


def add_two_days_of_nonsense(connection: psycopg.Connection, first: date) -> None:
    """Store candles from the day on that have nothing to do with what was before."""
    connection.execute(
        "INSERT INTO market_data (symbol, interval, timestamp, open_price, high_price, low_price, "
        "close_price, volume) SELECT symbol, '1m', timestamp + interval '2 days', "
        "open_price * n, high_price * 3, low_price / 3, close_price / n, volume "
        "FROM market_data, LATERAL (SELECT 1 + (abs(hashint8(id)) %% 100) / 50.0 AS n) AS noise "
        "WHERE timestamp >= %s",
        [day_interval(first - 2 * DAY).start],
    )
    days = [first, first + DAY]
    for day in days:
        connection.execute(
            "INSERT INTO trading_pipelines.candle_coverage (symbol, interval, day, status, "
            "fetched_until, confirmed_until) SELECT symbol, '1m', %(day)s, 'complete', %(end)s, "
            "%(end)s FROM unnest(%(symbols)s::text[]) AS symbol",
            {"day": day, "end": day_interval(day).end, "symbols": SYMBOLS},
        )
    resample(connection, SYMBOLS, days, "run")


def test_a_second_run_writes_nothing_and_a_run_a_day_gives_the_same_bits(computed: Bench) -> None:
    whole = {table: computed.rows(table) for table in TABLES}
    assert all(whole.values())
    for signal in SIGNALS:
        again = computed.compute(signal, SYMBOLS, UNTIL, LAST_DAY)
        assert {p.changed for p in again} == {0}, signal.asset
    forget(computed, UNTIL)
    for signal in SIGNALS:
        for day in reversed(days_of(UNTIL, LAST_DAY)):
            computed.compute(signal, SYMBOLS, day)
        # A model or forecast of one day looks at days that came only after it in this order.
        computed.compute(signal, SYMBOLS, UNTIL, LAST_DAY)
    for table in TABLES:
        assert computed.rows(table) == whole[table], table


def test_what_closes_after_the_as_of_changes_no_bit_of_label_model_and_forecast(
    computed: Bench,
) -> None:
    before = {table: computed.rows(table) for table in TABLES}
    assert '"status": "OK"' in before["volatility_model"][-1][0], "a model, not its absence"
    add_two_days_of_nonsense(computed.connection, LAST_DAY + DAY)
    computed.compute(REALIZED_VOLATILITY, SYMBOLS, LAST_DAY, LAST_DAY + 2 * DAY)
    forget(computed, LAST_DAY)
    for signal in SIGNALS:
        assert not [p.error for p in computed.compute(signal, SYMBOLS, LAST_DAY) if p.error]
    for table in TABLES:
        assert computed.rows(table) == before[table], table


def test_a_forecast_is_made_by_the_model_of_the_day_before_and_of_its_own_at_its_end(
    computed: Bench,
) -> None:
    def models() -> list[tuple[int, date]]:
        return computed.connection.execute(
            "SELECT extract(hour FROM as_of)::int, model_day FROM "
            "trading_pipelines.volatility_forecast WHERE symbol = 'KRW-BTC' AND horizon = 24 "
            "AND as_of > '2025-09-18Z' AND as_of <= '2025-09-19Z' ORDER BY as_of"
        ).fetchall()

    assert models() == [*((n, UNTIL - DAY) for n in range(1, 24)), (0, UNTIL)]
    computed.connection.execute(
        "DELETE FROM trading_pipelines.volatility_model WHERE day = %s", [UNTIL - DAY]
    )
    computed.compute(VOLATILITY_FORECAST, [BTC], FIRST_DAY, LAST_DAY)
    assert models() == [(0, UNTIL)], "an older one would be no input of this day"


def test_the_garch_in_a_forecast_is_the_baselines_before_the_day_has_closed_and_after(
    computed: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def members() -> list[tuple[float, float]]:
        return computed.connection.execute(
            "SELECT ours.garch, ours.variance FROM trading_pipelines.volatility_forecast AS ours "
            "WHERE as_of > '2025-09-21Z' AND as_of < '2025-09-22Z' "
            "ORDER BY symbol, horizon, as_of"
        ).fetchall()

    closed = members()
    baseline = computed.connection.execute(
        "DELETE FROM trading_pipelines.garch_baseline WHERE as_of > '2025-09-21Z' "
        "RETURNING symbol, horizon, as_of, variance"
    ).fetchall()
    stored = [row[3] for row in sorted(baseline) if row[2].hour > 0]
    assert [garch for garch, _ in closed] == stored
    assert None not in stored

    def fit_again(*_: object) -> None:
        pytest.fail("GARCH is fitted once, by the baseline")

    monkeypatch.setattr("trading_pipelines.signals.volatility.garch.fit", fit_again)
    computed.connection.execute("DELETE FROM trading_pipelines.volatility_forecast")
    computed.compute(VOLATILITY_FORECAST, SYMBOLS, LAST_DAY)
    assert members() == closed
    computed.connection.execute("DELETE FROM trading_pipelines.garch_baseline")
    computed.compute(VOLATILITY_FORECAST, SYMBOLS, LAST_DAY)
    assert {garch for garch, _ in members()} == {None}, "no number stands in for it"


def test_each_label_is_one_row_of_the_bots_history_beside_the_bots_own(bench: Bench) -> None:
    own = (datetime(2025, 9, 18, 5, 0, 3, tzinfo=UTC), "BULL", "KRW-BTC")
    bench.connection.execute(
        "INSERT INTO regime_history (detected_at, regime, coin_symbol) VALUES (%s, %s, %s)", own
    )
    for _ in range(2):
        bench.compute(REGIME_LABELS, SYMBOLS, UNTIL, LAST_DAY)
    history = bench.connection.execute(
        "SELECT coin_symbol, detected_at - interval '1 hour', regime, ma50, ma200, diff_pct "
        "FROM regime_history WHERE ma50 IS NOT NULL ORDER BY 1, 2"
    ).fetchall()
    labels = bench.connection.execute(
        "SELECT symbol, hour, label, ma_fast::numeric(20, 8), ma_slow::numeric(20, 8), "
        "diff_pct::numeric(10, 4) FROM trading_pipelines.regime_labels ORDER BY 1, 2"
    ).fetchall()
    assert len(labels) == 5 * 4 * 24
    assert history == labels
    assert bench.connection.execute(
        "SELECT detected_at, regime, coin_symbol FROM regime_history WHERE ma50 IS NULL"
    ).fetchall() == [own]

    bench.connection.execute("DELETE FROM regime_history WHERE coin_symbol = 'KRW-ETH'")
    bench.compute(REGIME_LABELS, SYMBOLS, UNTIL, LAST_DAY)
    (count,) = bench.connection.execute("SELECT count(*) FROM regime_history").fetchone() or (0,)
    assert count == len(labels) + 1, "what the bot's housekeeping took is there again, once"


def test_killed_before_the_end_nothing_is_half_there_and_the_next_run_makes_it_whole(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.compute(REGIME_LABELS, SYMBOLS, UNTIL)
    whole = bench.rows("regime_labels")
    bench.connection.execute("TRUNCATE trading_pipelines.regime_labels, regime_history")

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(signal_coverage, "record", killed)
        with pytest.raises(KeyboardInterrupt):
            bench.compute(REGIME_LABELS, SYMBOLS, UNTIL)
    assert bench.rows("regime_labels") == []
    assert bench.connection.execute("SELECT FROM regime_history").fetchall() == []
    bench.compute(REGIME_LABELS, SYMBOLS, UNTIL)
    assert bench.rows("regime_labels") == whole


def test_a_symbol_in_trouble_fails_alone_and_says_why(bench: Bench) -> None:
    connection = bench.connection
    for table in ("candles_1h", "candle_coverage"):
        connection.execute(
            f"CREATE TEMP TABLE copied AS SELECT * FROM trading_pipelines.{table} "
            "WHERE symbol = 'KRW-SOL'"
        )
        connection.execute("UPDATE copied SET symbol = 'KRW-BIGTIME'")
        connection.execute(f"INSERT INTO trading_pipelines.{table} SELECT * FROM copied")
        connection.execute("DROP TABLE copied")
    connection.execute(
        "ALTER TABLE trading_pipelines.regime_labels ADD CHECK (symbol <> 'KRW-BIGTIME')"
    )
    found = bench.compute(REGIME_LABELS, ["KRW-SOL", "KRW-BIGTIME"], UNTIL, LAST_DAY)
    failed = [p for p in found if p.error]
    assert {p.symbol for p in failed} == {"KRW-BIGTIME"}
    assert "violates check constraint" in str(failed[0].error)
    assert len([p for p in found if not p.error]) == 4
    (known,) = signal_coverage.read(
        connection, REGIME_LABELS, ["KRW-BIGTIME"], [UNTIL], bench.settings
    )
    assert known.failures == 1
    assert known.retry_at is not None, "it is tried again, later"


def test_a_failure_that_lasts_is_left_failed_until_its_inputs_change_or_it_is_asked_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def known() -> SignalCoverage:
        (one,) = signal_coverage.read(
            bench.connection, REGIME_LABELS, [BTC], [UNTIL], bench.settings
        )
        return one

    def reason() -> due.SignalDueReason | None:
        later = datetime(2025, 10, 1, tzinfo=UTC)
        return due.reason(known(), REGIME_LABELS, bench.settings, later)

    def attempt() -> tuple[int, bool]:
        bench.compute(REGIME_LABELS, [BTC], UNTIL)
        return known().failures, known().left_failed

    def broken(*_: object) -> None:
        raise ArithmeticError

    with monkeypatch.context() as patch:
        patch.setattr(partition, "label_hours", broken)
        tries = [attempt() for _ in range(bench.settings.healing.attempts)]
        assert tries == [*((n, False) for n in range(1, 8)), (8, True)]
        assert reason() is due.SignalDueReason.LEFT_FAILED
        bench.connection.execute(
            "UPDATE trading_pipelines.candle_coverage SET changed_at = clock_timestamp() "
            "WHERE interval = '1h' AND day = %s",
            [UNTIL - 5 * DAY],
        )
        assert reason() is due.SignalDueReason.FAILED
        assert attempt() == (1, False), "its tries begin anew"
        assert reason() is due.SignalDueReason.WAITING
    assert attempt() == (0, False), "asked for, it is computed whatever was before"
    assert reason() is None


def test_the_machines_trouble_leaves_nothing_failed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise psycopg.errors.DiskFull("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(partition, "label_hours", full)
        for _ in range(bench.settings.healing.attempts + 1):
            bench.compute(REGIME_LABELS, [BTC], UNTIL)
    (one,) = signal_coverage.read(bench.connection, REGIME_LABELS, [BTC], [UNTIL], bench.settings)
    assert (one.failures, one.left_failed) == (bench.settings.healing.attempts + 1, False)


def test_inputs_that_change_while_an_attempt_fails_make_it_due_again(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        bench.connection.execute("ROLLBACK")
        bench.connection.execute(
            "UPDATE trading_pipelines.candle_coverage SET changed_at = clock_timestamp() "
            "WHERE interval = '1h' AND day = %s",
            [UNTIL],
        )
        raise ArithmeticError

    monkeypatch.setattr(partition, "label_hours", broken)
    bench.compute(REGIME_LABELS, [BTC], UNTIL)
    (known,) = signal_coverage.read(bench.connection, REGIME_LABELS, [BTC], [UNTIL], bench.settings)
    assert known.failures == 1
    assert known.failed_inputs != known.inputs


def test_a_day_without_candles_fails_and_its_neighbours_do_not(bench: Bench) -> None:
    after = LAST_DAY + timedelta(days=1)
    found = bench.compute(REGIME_LABELS, [BTC], LAST_DAY, after)
    assert [(p.day, bool(p.error)) for p in found] == [(after, True), (LAST_DAY, False)]
    assert "materialize what is upstream" in str(found[0].error)


def test_an_open_day_is_labelled_as_far_as_its_hours_have_closed(bench: Bench) -> None:
    bench.connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET status = 'partial', "
        "fetched_until = '2025-09-21 13:37Z' WHERE day = %s",
        [LAST_DAY],
    )
    (label,) = bench.compute(REGIME_LABELS, [BTC], LAST_DAY)
    assert label.figures["rows"] == 13
    (variance,) = bench.compute(REALIZED_VOLATILITY, [BTC], LAST_DAY)
    assert variance.figures["rows"] == 13
    (model,) = bench.compute(VOLATILITY_MODEL, [], LAST_DAY)
    assert model.figures == {"rows": 0, "status": "the day is open"}
    assert bench.rows("volatility_model") == []


def test_a_day_of_which_no_hour_has_closed_has_no_forecast_and_no_error(computed: Bench) -> None:
    forget(computed, LAST_DAY)
    computed.connection.execute(
        "UPDATE trading_pipelines.candle_coverage SET status = 'partial', fetched_until = "
        "CASE interval WHEN '1m' THEN '2025-09-21 00:30Z' ELSE '2025-09-21 00:00Z' END "
        "::timestamptz WHERE day = %s",
        [LAST_DAY],
    )
    computed.compute(REALIZED_VOLATILITY, [BTC], LAST_DAY)
    (forecast,) = computed.compute(VOLATILITY_FORECAST, [BTC], LAST_DAY)
    assert (forecast.error, forecast.figures.get("rows")) == (None, 0)


def test_a_halt_of_the_whole_exchange_leaves_no_variance_and_a_forecast_all_the_same(
    bench: Bench,
) -> None:
    bench.connection.execute(
        "DELETE FROM market_data WHERE timestamp >= '2025-09-18 02:00Z' "
        "AND timestamp < '2025-09-18 05:00Z'"
    )
    for signal in (REALIZED_VOLATILITY, VOLATILITY_MODEL, GARCH_BASELINE, VOLATILITY_FORECAST):
        bench.compute(signal, SYMBOLS, FIRST_DAY, UNTIL)
    halted = "symbol = 'KRW-BTC' AND hour BETWEEN '2025-09-18 02:00Z' AND '2025-09-18 04:59Z'"
    assert len(bench.rows("realized_volatility", f"{halted} AND realized_variance IS NULL")) == 3
    (forecasts,) = bench.connection.execute(
        "SELECT count(variance) FROM trading_pipelines.volatility_forecast "
        "WHERE symbol = 'KRW-BTC' AND as_of > '2025-09-18Z'"
    ).fetchone() or (0,)
    assert forecasts == 48


def test_a_constant_price_is_degenerate_and_the_others_are_not(bench: Bench) -> None:
    bench.connection.execute(
        "UPDATE market_data SET open_price = 300, high_price = 300, low_price = 300, "
        "close_price = 300 WHERE symbol = 'KRW-DOGE'"
    )
    for signal in (REALIZED_VOLATILITY, VOLATILITY_MODEL, GARCH_BASELINE, VOLATILITY_FORECAST):
        bench.compute(signal, SYMBOLS, FIRST_DAY, LAST_DAY)
    statuses = bench.connection.execute(
        "SELECT DISTINCT symbol = 'KRW-DOGE', status, variance IS NULL, is_high_volatility IS NULL "
        "FROM trading_pipelines.volatility_forecast WHERE as_of = '2025-09-22Z' ORDER BY 1"
    ).fetchall()
    assert statuses == [(False, "OK", False, False), (True, "DEGENERATE", True, True)]


AS_BIGTIME = """
UPDATE market_data SET symbol = 'KRW-BIGTIME' WHERE symbol = 'KRW-ETH';
UPDATE trading_pipelines.candles_1h SET symbol = 'KRW-BIGTIME' WHERE symbol = 'KRW-ETH';
UPDATE trading_pipelines.candle_coverage SET symbol = 'KRW-BIGTIME' WHERE symbol = 'KRW-ETH';
"""
HISTORY = "SELECT coin_symbol, count(*) FROM regime_history GROUP BY 1 ORDER BY 1"


def test_a_symbol_of_eleven_characters_has_its_labels_in_both_tables(bench: Bench) -> None:
    bench.connection.execute(AS_BIGTIME)
    (partition,) = bench.compute(REGIME_LABELS, ["KRW-BIGTIME"], LAST_DAY)
    assert (partition.error, partition.warning) == (None, None)
    assert bench.connection.execute(HISTORY).fetchall() == [("KRW-BIGTIME", 24)]


def test_a_bots_narrower_history_costs_its_rows_alone_and_is_named_with_what_to_do(
    bench: Bench,
) -> None:
    bench.connection.execute(AS_BIGTIME)
    bench.connection.execute("ALTER TABLE regime_history ALTER coin_symbol TYPE varchar(10)")
    big, btc = bench.compute(REGIME_LABELS, ["KRW-BIGTIME", "KRW-BTC"], LAST_DAY)
    assert (big.error, btc.error, btc.warning) == (None, None, None)
    assert len(bench.rows("regime_labels", "symbol = 'KRW-BIGTIME'")) == 24
    assert bench.connection.execute(HISTORY).fetchall() == [("KRW-BTC", 24)]
    said, _, alter = (big.warning or "").partition("ALTER")
    assert "does not take 24 rows of KRW-BIGTIME" in said
    bench.connection.execute(f"ALTER{alter}".encode())
    (again,) = bench.compute(REGIME_LABELS, ["KRW-BIGTIME"], LAST_DAY)
    assert again.warning is None
    assert bench.connection.execute(HISTORY).fetchall() == [("KRW-BIGTIME", 24), ("KRW-BTC", 24)]


def test_one_row_that_the_bots_history_refuses_leaves_its_neighbours(bench: Bench) -> None:
    bench.connection.execute(
        "ALTER TABLE regime_history ADD CHECK (detected_at <> '2025-09-21 07:00Z')"
    )
    (partition,) = bench.compute(REGIME_LABELS, ["KRW-BTC"], LAST_DAY)
    assert partition.error is None
    assert "does not take 1 rows of KRW-BTC" in (partition.warning or "")
    assert bench.connection.execute(HISTORY).fetchall() == [("KRW-BTC", 23)]
