"""The strategy file: what loads, what does not, what the error says; a dump loads equal."""

import threading
from datetime import UTC, date, datetime
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from trading_pipelines.korean_time import KST
from trading_pipelines.settings.errors import SettingsError
from trading_pipelines.settings.strategy import (
    AlertSettings,
    DataSettings,
    ExchangeSettings,
    RegimeDetectionSettings,
    StrategySettings,
)
from trading_pipelines.settings.strategy_file import dump_strategy, load_strategy

ROOT = Path(__file__).parents[2]
WHOLE = "a whole number of at least 1"
SYMBOL = "KRW- and 1 to 10 capital letters or digits, such as KRW-BTC"
DAY = "a day like 2024-01-01, not before 2017-10-01 (Upbit's first)"
DATA_KEYS = (
    "start_date, source_timeframe, indicator_timeframe, min_hourly_candles_for_regime, "
    "refresh, look_back_days, history_files, history_files_sample"
)
SECTIONS = (
    "symbols, data, live, healing, regime_detection, volatility, exchange, alerts, health, "
    "housekeeping, reject_outcomes, signals, regimes"
)
ROOT_KEYS = f"{SECTIONS}, risk_management, regime_change_policy"
REGIME = "regime_detection"
MINIMUM = "data.min_hourly_candles_for_regime"
ALERT_KEYS = (
    "ai_reject, ai_decision, trade, risk, daily_report, pipeline_failure, reject_summary, "
    "ai_scorecard, since, look_back_days, timeout_seconds, retry_waits, fallback_after, "
    "digest_over, messages_per_minute, discord_thread_name, repeat_after, failures_before_alert, "
    "quiet_after"
)
FAMILIES = "names (a-z, 0-9 and _), each with a list of keywords, such as {volume: [거래량]}"
MOMENT = "a moment with its offset, such as 2026-11-24T09:00:00+09:00, or nothing"
WAITS = "a list of seconds (0-604800), such as [5.0, 300.0]"
NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
# Of naive times, as Hypothesis takes them: Seoul had an offset of seconds until 1908.
BEGINNING = datetime(2017, 10, 1)  # noqa: DTZ001
LIST = "a list of at least one symbol, such as [KRW-BTC]"
SLOW = "allowed: ma_slow_period above ma_fast_period"
BULL = "allowed: bull_threshold_pct above bear_threshold_pct"
HOURS = "allowed: min_hourly_candles_for_regime not below ma_slow_period"


def load(folder: Path, text: str | bytes) -> StrategySettings:
    path = folder / "strategy.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_strategy(path)


def problems(folder: Path, text: str | bytes) -> list[str]:
    """The problems of a file, without the file's name, which each must begin with."""
    with pytest.raises(SettingsError) as caught:
        load(folder, text)
    start = f"{folder / 'strategy.yaml'}:"
    found = str(caught.value).splitlines()
    assert all(line.startswith(start) for line in found), found
    return [line.removeprefix(start) for line in found]


def test_the_shipped_file_shows_every_key_at_its_default() -> None:
    path = ROOT / "config" / "strategy.yaml"
    assert load_strategy(path) == StrategySettings()
    shown = yaml.safe_load(path.read_text(encoding="utf-8"))
    defaults = StrategySettings().model_dump()
    assert list(shown) == [name for name in defaults if name != "regimes"], "which are the bot's"
    assert all(list(shown[name]) == list(defaults[name]) for name in shown if name != "symbols"), (
        shown
    )


def test_the_bots_own_file_loads_unchanged() -> None:
    loaded = load_strategy(ROOT / "tests/fixtures/coinpilot_strategy.yaml")
    assert list(loaded.regimes) == ["BULL", "SIDEWAYS", "BEAR"]
    assert loaded.regimes["BEAR"]["entry"]["volume_ratio_above"] == 1.1, "an alias is followed"
    assert loaded.model_copy(update={"regimes": None}) == StrategySettings(
        data=DataSettings(min_hourly_candles_for_regime=180),
        regime_detection=RegimeDetectionSettings(
            ma_fast_period=40,
            ma_slow_period=160,
            bull_threshold_pct=1.5,
            bear_threshold_pct=-3,
            unknown_fallback="BEAR",
            redis_ttl_seconds=4200,
        ),
    )


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "---\n{}\n",
        "data:\nexchange:\nregime_detection:\nalerts:\n",
        "data: {}",
        "regimes:\nrisk_management: !theirs {x: 1, x: 2}\nregime_change_policy:",
    ],
)
def test_what_is_left_out_has_its_default(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == StrategySettings()


@pytest.mark.parametrize("text", ["", "\n", "# nothing but a comment\n", "---\n", "\ufeff", "~"])
def test_a_file_without_settings_is_not_taken_for_all_defaults(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text) == [
        "1: the file holds no settings; allowed: sections, or {} where all defaults are meant"
    ]


@pytest.mark.parametrize("content", ["!theirs {x: 1}", "{a: !!int abc}"])
def test_a_section_of_the_bots_that_can_not_be_read_stops_no_start(
    tmp_path: Path, content: str
) -> None:
    assert load(tmp_path, f"regimes: {content}").regimes.startswith("regimes can't be read: ")


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("regimes: {BULL: {a: 1, a: 2}}", {"regimes": {"BULL": {"a": 2}}}),
        ("regimes: [1, x]", {"regimes": [1, "x"]}),
        (
            "reject_outcomes: {reason_families: {x: [y]}}",
            {"reject_outcomes": {"reason_families": {"x": ["y"]}}},
        ),
        ("symbols: [KRW-1INCH]", StrategySettings(symbols=["KRW-1INCH"])),
        ("data:\n  start_date: 2017-10-01", {"data": {"start_date": date(2017, 10, 1)}}),
        ("data:\n  start_date: '2025-06-30'", {"data": {"start_date": date(2025, 6, 30)}}),
        ("data:\n  refresh: off", {"data": {"refresh": False}}),
        ("exchange:\n  timeout_seconds: 3", {"exchange": {"timeout_seconds": 3.0}}),
        ("alerts:\n  trade: off\n  risk: no", {"alerts": {"trade": False, "risk": False}}),
        ("alerts:\n  since:\n", {"alerts": {"since": None}}),
        *[
            (f"alerts:\n  since: {since}", {"alerts": {"since": NOON}})
            for since in (
                "2026-11-24T12:00:00Z",
                "2026-11-24 21:00:00+09:00",
                "'2026-11-24T21:00+09:00'",
            )
        ],
        ("alerts:\n  retry_waits: [0, 2.5]", {"alerts": {"retry_waits": [0.0, 2.5]}}),
        (
            "data: {min_hourly_candles_for_regime: 300}\nregime_detection: {ma_slow_period: 300}",
            {
                "data": {"min_hourly_candles_for_regime": 300},
                "regime_detection": {"ma_slow_period": 300},
            },
        ),
    ],
)
def test_good_values_are_taken(
    tmp_path: Path, text: str, settings: StrategySettings | dict[str, object]
) -> None:
    assert load(tmp_path, text) == StrategySettings.model_validate(settings)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A wrong type is never converted.
        ('ma_fast_period: "50"', f'is the text "50"; allowed: {WHOLE}'),
        ("ma_fast_period: 50.5", f"is 50.5; allowed: {WHOLE}"),
        ("ma_fast_period: 50.0", f"is 50.0; allowed: {WHOLE}"),
        ("ma_fast_period: true", f"is true; allowed: {WHOLE}"),
        ("ma_fast_period:", f"is empty; allowed: {WHOLE}"),
        ("ma_fast_period: {a: 1}", f'is {{"a": 1}}; allowed: {WHOLE}'),
        ("ma_fast_period: 0", f"is 0; allowed: {WHOLE}"),
        ("check_interval_hours: 0", f"is 0; allowed: {WHOLE}"),
        ("redis_ttl_seconds: -1", f"is -1; allowed: {WHOLE}"),
        ("bull_threshold_pct: '2'", 'is the text "2"; allowed: a number'),
        ("bull_threshold_pct: .inf", "is Infinity; allowed: a number"),
        ("bear_threshold_pct: .nan", "is NaN; allowed: a number"),
        ("bull_threshold_pct: yes", "is true; allowed: a number"),
        ("unknown_fallback: bull", 'is the text "bull"; allowed: BULL or SIDEWAYS or BEAR'),
        # Two keys that contradict one another: the one that stands in the file is named.
        ("ma_fast_period: 200", f"ma_slow_period 200 with ma_fast_period 200; {SLOW}"),
        ("ma_slow_period: 50", f"ma_slow_period 50 with ma_fast_period 50; {SLOW}"),
        ("bear_threshold_pct: 2", f"bull_threshold_pct 2.0 with bear_threshold_pct 2.0; {BULL}"),
        ("bull_threshold_pct: -5", f"bull_threshold_pct -5.0 with bear_threshold_pct -2.0; {BULL}"),
        (
            "ma_slow_period: 201",
            f"min_hourly_candles_for_regime 200 with ma_slow_period 201; {HOURS}",
        ),
    ],
)
def test_a_wrong_regime_setting(tmp_path: Path, text: str, expected: str) -> None:
    key = text.partition(":")[0]
    assert problems(tmp_path, f"# first\nregime_detection:\n\n  {text}\n") == [
        f"4: regime_detection.{key}: {expected}"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Other sections: types and bounds.
        ("data:\n  refresh: 1", "2: data.refresh: is 1; allowed: true or false"),
        ("data:\n  refresh: 'no'", '2: data.refresh: is the text "no"; allowed: true or false'),
        (
            "data:\n  source_timeframe: 5m",
            '2: data.source_timeframe: is the text "5m"; allowed: 1m',
        ),
        (
            "data:\n  indicator_timeframe: 4h",
            '2: data.indicator_timeframe: is the text "4h"; allowed: 1h',
        ),
        (
            "data:\n  look_back_days: 366",
            "2: data.look_back_days: is 366; allowed: a whole number of at least 1 and at most 365",
        ),
        (
            "volatility:\n  horizons: [1, 24, 1]",
            "2: volatility.horizons: lists 1 again; allowed: each horizon once",
        ),
        (
            "volatility:\n  horizons:\n  - 1\n  - 73",
            "4: volatility.horizons: is 73; allowed: a whole number of at least 1 and at most 72",
        ),
        (
            "volatility:\n  horizons: []",
            (
                "2: volatility.horizons: is []; allowed: a list of hours ahead, 1 to 72, "
                "such as [1, 24]"
            ),
        ),
        (
            "volatility:\n  horizons: [1, 24]\n  published_horizon: 6",
            (
                "3: volatility.published_horizon: published_horizon 6 with horizons [1, 24]; "
                "allowed: published_horizon one of horizons"
            ),
        ),
        (
            "volatility:\n  published_horizon: longest",
            (
                '2: volatility.published_horizon: is the text "longest"; '
                "allowed: one of horizons, or nothing"
            ),
        ),
        (
            "volatility:\n  training_days: 30\n  min_training_days: 31",
            (
                "3: volatility.min_training_days: min_training_days 31 with training_days 30; "
                "allowed: min_training_days up to training_days"
            ),
        ),
        (
            "volatility:\n  threshold_days: 14\n  min_threshold_days: 20",
            (
                "3: volatility.min_threshold_days: min_threshold_days 20 with threshold_days 14; "
                "allowed: min_threshold_days up to threshold_days"
            ),
        ),
        (
            "volatility:\n  high_percentile: 100",
            "2: volatility.high_percentile: is 100; allowed: a number above 0 and below 100",
        ),
        (
            "exchange:\n  attempts: 21",
            "2: exchange.attempts: is 21; allowed: a whole number of at least 1 and at most 20",
        ),
        (
            "exchange:\n  requests_per_second: 0",
            "2: exchange.requests_per_second: is 0; allowed: a number above 0",
        ),
        ("alerts:\n  trade: 'on'", '2: alerts.trade: is the text "on"; allowed: true or false'),
        (
            "alerts:\n  look_back_days: 31",
            "2: alerts.look_back_days: is 31; allowed: a whole number of at least 1 and at most 30",
        ),
        (
            "alerts:\n  timeout_seconds: 10",
            "2: alerts.timeout_seconds: is 10; allowed: a number above 10 and at most 20",
        ),
        (
            "alerts:\n  messages_per_minute: 151",
            (
                "2: alerts.messages_per_minute: is 151; allowed: a whole number of at least 1 "
                "and at most 150"
            ),
        ),
        ("alerts:\n  digest_over: 0", f"2: alerts.digest_over: is 0; allowed: {WHOLE}"),
        ("alerts:\n  retry_waits: []", f"2: alerts.retry_waits: is []; allowed: {WAITS}"),
        (
            "alerts:\n  retry_waits:\n  - 5\n  - -1",
            "4: alerts.retry_waits: is -1; allowed: a number of at least 0 and at most 604800",
        ),
        *[
            (f"alerts:\n  since: {since}", f"2: alerts.since: is {shown}; allowed: {MOMENT}")
            for since, shown in {
                "2026-11-24T09:00:00": 'the text "2026-11-24T09:00:00"',
                "2026-11-24": 'the text "2026-11-24"',
                "yesterday": 'the text "yesterday"',
                "1764000000": "1764000000",
                "true": "true",
            }.items()
        ],
        *[
            (
                f"reject_outcomes:\n  reason_families: {families}",
                f"2: reject_outcomes.reason_families: is {said}; allowed: {FAMILIES}",
            )
            for families, said in {
                "{volume: 거래량}": 'the text "거래량"',
                "{volume: []}": "[]",
                "{volume: [1]}": "1",
                "{1: [a]}": "1",
                "{거래량: [a]}": 'the text "거래량"',
                "{x: ['']}": 'the text ""',
                "": "empty",
            }.items()
        ],
        (
            "alerts:\n  ai_rejects: true",
            f"2: alerts.ai_rejects: unknown key, did you mean ai_reject?; allowed: {ALERT_KEYS}",
        ),
        (
            "data:\n  start_date: 2017-09-30",
            f'2: data.start_date: is the text "2017-09-30"; allowed: {DAY}',
        ),
        (
            "data:\n  start_date: 2024-02-30",
            f'2: data.start_date: is the text "2024-02-30"; allowed: {DAY}',
        ),
        (
            "data:\n  start_date: 2024-01-01 09:00:00",
            f'2: data.start_date: is the text "2024-01-01 09:00:00"; allowed: {DAY}',
        ),
        ("data:\n  start_date: 1704067200", f"2: data.start_date: is 1704067200; allowed: {DAY}"),
        ("data: 30", f"1: data: is 30; allowed: a section with the keys {DATA_KEYS}"),
        (
            "data: [refresh]",
            f'1: data: is ["refresh"]; allowed: a section with the keys {DATA_KEYS}',
        ),
        (
            "data:\n  min_hourly_candles_for_regime: 100",
            f"2: {MINIMUM}: min_hourly_candles_for_regime 100 with ma_slow_period 200; {HOURS}",
        ),
        # Symbols: the item's line.
        ("symbols:\n  - KRW-BTC\n  - btc", f'3: symbols: is the text "btc"; allowed: {SYMBOL}'),
        ("symbols:\n  - BTC-KRW", f'2: symbols: is the text "BTC-KRW"; allowed: {SYMBOL}'),
        (
            "symbols: [KRW-A2345678901]",
            f'1: symbols: is the text "KRW-A2345678901"; allowed: {SYMBOL}',
        ),
        ('symbols: ["KRW-BTC\\n"]', f'1: symbols: is the text "KRW-BTC\\n"; allowed: {SYMBOL}'),
        ("symbols:\n- 5", f"2: symbols: is 5; allowed: {SYMBOL}"),
        (
            "symbols: [KRW-BTC,\n  KRW-ETH,\n  KRW-BTC, KRW-BTC]",
            "3: symbols: lists KRW-BTC again; allowed: each symbol once",
        ),
        (
            "symbols: []",
            f"1: symbols: is []; allowed: {LIST}",
        ),
        (
            "\nsymbols:\n#  - KRW-BTC\n",
            f"2: symbols: is empty; allowed: {LIST}",
        ),
        (
            "symbols: KRW-BTC",
            f'1: symbols: is the text "KRW-BTC"; allowed: {LIST}',
        ),
        # Unknown keys: the allowed ones and the nearest.
        (
            "data:\n  start_day: 2024-01-01",
            f"2: data.start_day: unknown key, did you mean start_date?; allowed: {DATA_KEYS}",
        ),
        ("data:\n  zzz:", f"2: data.zzz: unknown key; allowed: {DATA_KEYS}"),
        ("data:\n  7: 7", f"2: data.7: unknown key; allowed: {DATA_KEYS}"),
        (
            "\nregime_detections:\n",
            f"2: regime_detections: unknown key, did you mean {REGIME}?; allowed: {ROOT_KEYS}",
        ),
        # Keys given twice, which PyYAML would take the last of.
        (
            "data:\n  refresh: true\n  look_back_days: 3\n  refresh: false",
            "4: data.refresh: given twice, first on line 2; allowed: once",
        ),
        ("data: {}\n\ndata:\n", "3: data: given twice, first on line 1; allowed: once"),
        ("regimes: 1\nregimes: 2", "2: regimes: given twice, first on line 1; allowed: once"),
        (
            "data: {refresh: true, refresh: true}",
            "1: data.refresh: given twice, first on line 1; allowed: once",
        ),
        # No mapping, or no YAML at all.
        ("- data", f'1: is ["data"]; allowed: the sections {SECTIONS}'),
        ("data", f'1: is the text "data"; allowed: the sections {SECTIONS}'),
        ("data:\n  refresh: true\n look_back_days: 3", None),
        ("data:\n  refresh: [", None),
        ("data:\n\tstart: 1", None),
        ("data:\n  refresh: *nowhere", None),
        ("data:\n  refresh: !!python/name:os.system ''", None),
        ("data:\n---\ndata:\n", None),
        (b"data:\n  # caf\xe9\n", "2: not UTF-8; allowed: YAML saved as UTF-8"),
        ("data:".encode("utf-16"), "1: not UTF-8; allowed: YAML saved as UTF-8"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str | bytes, expected: str | None) -> None:
    (found,) = problems(tmp_path, text)
    if expected is None:  # The words are PyYAML's; the line is what counts.
        line, _, rest = found.partition(": ")
        assert line in ("2", "3"), found
        assert rest.endswith("; allowed: YAML"), found
    else:
        assert found == expected


def test_all_problems_are_listed_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
symbols: [KRW-BTC, krw-eth]
regime_detection:
  ma_slow_period: 10
  bull_threshold_pct: -7
  ma_fast_periods: 5
exchange:
  attempts: 0
  attempts: 1
colour: red
"""
    assert [line.split(": ")[:2] for line in problems(tmp_path, text)] == [
        ["1", "symbols"],
        ["3", "regime_detection.ma_slow_period"],
        ["4", "regime_detection.bull_threshold_pct"],
        ["5", "regime_detection.ma_fast_periods"],
        ["7", "exchange.attempts"],
        ["8", "exchange.attempts"],
        ["9", "colour"],
    ]


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(SettingsError, match="TRADING_PIPELINES_CONFIG") as caught:
            load_strategy(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "a: \x01",
        "data: {refresh: !!int x}",
        "data: {refresh: {!!binary aGk=: 1}}",
        "[" * 5000,
        "? [a]\n: b",
        f"symbols: {'x' * 9000}",
    ],
)
def test_odd_files_are_settings_errors_of_one_short_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(SettingsError, match="; allowed: ") as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 300


KEYS = ["symbols", "data", "refresh", "start_date", "exchange", "attempts", "regimes", "<<", "x"]
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates()


@example("a\x85line \u2028 break")
@given(
    st.recursive(
        VALUES,
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(KEYS) | st.integers(), inner, max_size=5)
        ),
    )
)
def test_whatever_the_file_holds_it_loads_or_is_a_settings_error(
    tmp_path_factory: pytest.TempPathFactory, content: object
) -> None:
    folder, found = tmp_path_factory.getbasetemp(), ""
    try:
        load(folder, yaml.safe_dump(content))
    except SettingsError as error:
        found = str(error)
    assert all("; allowed: " in line for line in found.splitlines())


SETTINGS = st.builds(
    lambda symbols, start, seconds, percents, refresh, since: StrategySettings(
        symbols=symbols,
        data=DataSettings(start_date=start, refresh=refresh),
        regime_detection=RegimeDetectionSettings(
            bear_threshold_pct=min(percents), bull_threshold_pct=max(percents)
        ),
        exchange=ExchangeSettings(backoff_seconds=seconds),
        alerts=AlertSettings(ai_reject=refresh, since=since, retry_waits=[min(seconds, 9.0)]),
    ),
    st.lists(st.from_regex(r"\AKRW-[A-Z0-9]{1,10}\Z"), min_size=1, unique=True),
    st.dates(min_value=date(2017, 10, 1)),
    st.floats(min_value=0, exclude_min=True, allow_infinity=False),
    st.sets(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=2),
    st.booleans(),
    st.none() | st.datetimes(BEGINNING, timezones=st.sampled_from([UTC, KST])),
)


@given(SETTINGS)
def test_a_dumped_file_loads_equal(
    tmp_path_factory: pytest.TempPathFactory, settings: StrategySettings
) -> None:
    path = tmp_path_factory.getbasetemp() / "new" / "strategy.yaml"
    dump_strategy(settings, path)
    assert load_strategy(path) == settings
    assert [file.name for file in path.parent.iterdir()] == ["strategy.yaml"]


def test_a_dump_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "strategy.yaml"
    dump_strategy(StrategySettings(symbols=["KRW-OLD"]), path)

    def full_disk(self: Path, text: str, encoding: str) -> None:
        self.write_bytes(text[:20].encode(encoding))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    with pytest.raises(OSError, match="No space left"):
        dump_strategy(StrategySettings(), path)
    assert load_strategy(path).symbols == ["KRW-OLD"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_half_a_dumped_file(tmp_path: Path) -> None:
    path, stop = tmp_path / "strategy.yaml", threading.Event()
    small, large = (
        StrategySettings(symbols=[f"KRW-{n}" for n in range(count)]) for count in (1, 400)
    )
    dump_strategy(small, path)

    def keep_writing() -> None:
        while not stop.is_set():
            dump_strategy(large, path)
            dump_strategy(small, path)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    try:
        assert all(load_strategy(path) in (small, large) for _ in range(40))
    finally:
        stop.set()
        writer.join()
