"""The settings of config/strategy.yaml, typed and strict: what there is and what each allows.

Reading the file, and saying at which line it is wrong, belongs in `strategy_file`. What a setting
*does* belongs to the module that uses it.
"""

import operator
from collections.abc import Callable
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trading_pipelines.settings.errors import settings_problem


def _compared(
    section: str, other: str, fits: Callable[[float, float], bool], words: str
) -> AfterValidator:
    """Demand that the value `fits` the section's field `other`, which stands before this one."""

    def check(value: float, info: ValidationInfo) -> float:
        name, bound = str(info.field_name), info.data.get(other)
        if bound is not None and not fits(value, bound):
            places = ((section, key) for key in (name, other))
            raise settings_problem(
                f"{name} {value} with {other} {bound}", f"{name} {words} {other}", *places
            )
        return value

    return AfterValidator(check)


def _above(lower: str) -> AfterValidator:
    return _compared("regime_detection", lower, operator.gt, "above")


def _up_to(upper: str) -> AfterValidator:
    return _compared("volatility", upper, operator.le, "up to")


def _each_once(values: list[Any], info: ValidationInfo) -> list[Any]:
    repeated = [n for n, value in enumerate(values) if value in values[:n]]
    if repeated:
        names = ", ".join(dict.fromkeys(str(values[n]) for n in repeated))
        place = ("symbols",) if info.field_name == "symbols" else ("volatility", info.field_name)
        raise settings_problem(
            f"lists {names} again",
            f"each {str(info.field_name).removesuffix('s')} once",
            (*place, repeated[0]),
        )
    return values


def _is_computed(horizon: int | None, info: ValidationInfo) -> int | None:
    horizons = info.data.get("horizons")
    if horizon is not None and horizons is not None and horizon not in horizons:
        places = (("volatility", name) for name in ("published_horizon", "horizons"))
        raise settings_problem(
            f"published_horizon {horizon} with horizons {horizons}",
            "published_horizon one of horizons",
            *places,
        )
    return horizon


def _day(value: object) -> object:
    return date.fromisoformat(value) if isinstance(value, str) else value


def _moment(value: object) -> object:
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    if isinstance(moment, datetime) and moment.tzinfo is None:
        raise ValueError("without an offset")
    return moment


_Count = Annotated[int, Field(ge=1)]
_Positive = Annotated[float, Field(gt=0)]
_Day = Annotated[
    date,
    BeforeValidator(_day),
    Field(
        ge=date(2017, 10, 1),
        description="a day like 2024-01-01, not before 2017-10-01 (Upbit's first)",
    ),
]
_Moment = Annotated[
    datetime | None,
    BeforeValidator(_moment),
    Field(description="a moment with its offset, such as 2026-11-24T09:00:00+09:00, or nothing"),
]
_Symbol = Annotated[
    str,
    Field(
        pattern=r"^KRW-[A-Z0-9]{1,10}$",
        description="KRW- and 1 to 10 capital letters or digits, such as KRW-BTC",
    ),
]


class _Section(BaseModel):
    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class DataSettings(_Section):
    """Which candles are kept, from which UTC day on, and how many days back a refresh looks.

    And whether closed days come from Upbit's history files: for personal use, own strategies and
    backtests only, by Upbit's terms; no redistribution, no service to others.
    """

    start_date: _Day = date(2024, 1, 1)
    source_timeframe: Literal["1m"] = "1m"
    indicator_timeframe: Literal["1h"] = "1h"
    min_hourly_candles_for_regime: _Count = 200
    refresh: bool = True
    look_back_days: Annotated[int, Field(ge=1, le=365)] = 30
    history_files: bool = False
    history_files_sample: Annotated[float, Field(ge=0, le=1)] = 0.005


class LiveSettings(_Section):
    """Whether the exchange's stream is read, and how long a minute waits for its trades.

    A minute is stored `grace_seconds` after its end, and rewritten where the stream shows it anew
    until `late_seconds` after it. A stream that shows no symbol for `silence_seconds` is connected
    anew. The minutes are confirmed by requests every `confirm_minutes`, and at each hour's end.
    """

    enabled: bool = True
    grace_seconds: Annotated[float, Field(ge=0, le=30)] = 2.0
    late_seconds: Annotated[float, Field(ge=0, le=600)] = 60.0
    silence_seconds: Annotated[float, Field(ge=5, le=3600)] = 60.0
    confirm_minutes: Annotated[int, Field(ge=1, le=60)] = 5


class HealingSettings(_Section):
    """How often a partition that failed is tried again, and how long before each try (seconds).

    And how many minutes a refresh of the open day asks for once more, because the exchange may show
    a minute late, or revise it.
    """

    attempts: Annotated[int, Field(ge=1, le=1000)] = 8
    backoff_seconds: _Positive = 300.0
    max_backoff_seconds: _Positive = 1800.0
    overlap_minutes: Annotated[int, Field(ge=1, le=60)] = 10


class RegimeDetectionSettings(_Section):
    """The moving averages (hours) and thresholds (percent) that tell BULL, BEAR and SIDEWAYS."""

    ma_fast_period: _Count = 50
    ma_slow_period: Annotated[_Count, _above("ma_fast_period")] = 200
    bear_threshold_pct: float = -2.0
    bull_threshold_pct: Annotated[float, _above("bear_threshold_pct")] = 2.0
    check_interval_hours: _Count = 1
    unknown_fallback: Literal["BULL", "SIDEWAYS", "BEAR"] = "SIDEWAYS"
    redis_ttl_seconds: _Count = 3900


class VolatilitySettings(_Section):
    """The volatility model (days of training, hours ahead, ridge) and when volatility is high."""

    training_days: Annotated[int, Field(ge=30, le=730)] = 365
    min_training_days: Annotated[int, Field(ge=14, le=90), _up_to("training_days")] = 14
    horizons: Annotated[
        list[Annotated[int, Field(ge=1, le=72)]],
        AfterValidator(_each_once),
        Field(min_length=1, description="a list of hours ahead, 1 to 72, such as [1, 24]"),
    ] = [1, 24]
    published_horizon: Annotated[
        int | None, AfterValidator(_is_computed), Field(description="one of horizons, or nothing")
    ] = None
    ridge_alpha: _Positive = 10.0
    high_percentile: Annotated[float, Field(gt=0, lt=100)] = 90.0
    threshold_days: Annotated[int, Field(ge=14, le=90)] = 30
    min_threshold_days: Annotated[int, Field(ge=7, le=90), _up_to("threshold_days")] = 14


class ExchangeSettings(_Section):
    """How the exchange is asked: one rate for the whole installation; waits in seconds."""

    requests_per_second: _Positive = 10.0
    timeout_seconds: _Positive = 10.0
    attempts: Annotated[int, Field(ge=1, le=20)] = 6
    backoff_seconds: _Positive = 0.5
    max_backoff_seconds: _Positive = 20.0


class AlertSettings(_Section):
    """Which kinds are sent, from when on, and how long each step of a delivery may take (seconds).

    A kind that is off leaves its alerts to the bot; one that comes on sends nothing older.
    """

    ai_reject: bool = True
    ai_decision: bool = False
    trade: bool = True
    risk: bool = True
    daily_report: bool = True
    pipeline_failure: bool = True
    reject_summary: bool = False
    ai_scorecard: bool = False
    since: _Moment = None
    look_back_days: Annotated[int, Field(ge=1, le=30)] = 7
    # n8n gives Discord 10 s; a tick of Dagster's has 60, and may post until second 33 of it.
    timeout_seconds: Annotated[float, Field(gt=10, le=20)] = 15.0
    # Four for a refusal of a moment (one call in five failing made alerts 47 s late), then Svix's
    # schedule: with the first try eleven in up to 27.6 hours, half of that on average.
    retry_waits: Annotated[
        list[Annotated[float, Field(ge=0, le=604800)]],
        Field(min_length=1, description="a list of seconds (0-604800), such as [5.0, 300.0]"),
    ] = [1.0, 3.0, 10.0, 30.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 36000.0]
    fallback_after: Annotated[float, Field(ge=0, le=604800)] = 300.0
    digest_over: _Count = 20
    messages_per_minute: Annotated[int, Field(ge=1, le=150)] = 30
    discord_thread_name: Annotated[
        str | None,
        Field(
            min_length=1, max_length=100, description="a text of 1 to 100 characters, or nothing"
        ),
    ] = None
    repeat_after: Annotated[float, Field(ge=60, le=604800)] = 14400.0
    failures_before_alert: _Count = 3
    quiet_after: Annotated[float, Field(ge=300, le=604800)] = 3600.0

    def is_on(self, kind: str) -> bool:
        """Return whether alerts of the kind, one of `alerts.kinds.KINDS`, are sent."""
        return bool(getattr(self, kind))


class HealthSettings(_Section):
    """What `trading-pipelines health` allows: seconds late, gigabytes (1e9 bytes) used and free."""

    late_after_seconds: Annotated[float, Field(ge=300, le=86400)] = 900.0
    max_database_gb: _Positive = 20.0
    min_free_disk_gb: _Positive = 2.0


class HousekeepingSettings(_Section):
    """How many days what is over is kept; partitions and their candles stay for ever."""

    keep_runs_days: Annotated[int, Field(ge=7, le=3650)] = 30
    # Twice the longest look-back (30 days): what the ledger forgets would be sent again in the one,
    # and be told as missed in the other.
    keep_alerts_days: Annotated[int, Field(ge=60, le=3650)] = 90


class RejectOutcomesSettings(_Section):
    """What an entry is worth (KRW at position_size_ratio 1) and costs (percent of each order).

    The families of reasons are asked in their order; the keywords are words of the AI's reasons.
    """

    notional_krw: _Count = 1_000_000
    fee_pct: Annotated[float, Field(ge=0, le=10)] = 0.05
    reason_families: Annotated[
        # The picture's font has no Hangul, so that a name is ASCII; a keyword is anything.
        dict[
            Annotated[str, Field(pattern=r"^[a-z0-9_]{1,20}$")],
            Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)],
        ],
        Field(
            description="names (a-z, 0-9 and _), each with a list of keywords, such as "
            "{volume: [거래량]}"
        ),
    ] = {
        "volume": ["거래량", "volume"],
        "trend": ["추세", "하락", "이동평균", "trend", "downtrend", "moving average"],
        "momentum": ["RSI", "과매수", "과매도", "모멘텀", "momentum"],
        "volatility": ["변동성", "volatility"],
        "risk": ["위험", "리스크", "손실", "risk"],
        "news": ["뉴스", "심리", "news", "sentiment"],
    }


class SignalSettings(_Section):
    """What becomes of signals that other settings or older code made: marked, or made anew."""

    when_settings_change: Literal["mark", "recompute"] = "mark"


class StrategySettings(_Section):
    """config/strategy.yaml: what is left out has its default; unknown keys are errors."""

    symbols: Annotated[list[_Symbol], AfterValidator(_each_once)] = Field(
        default=["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE"],
        min_length=1,
        description="a list of at least one symbol, such as [KRW-BTC]",
    )
    data: DataSettings = DataSettings()
    live: LiveSettings = LiveSettings()
    healing: HealingSettings = HealingSettings()
    regime_detection: RegimeDetectionSettings = RegimeDetectionSettings()
    volatility: VolatilitySettings = VolatilitySettings()
    exchange: ExchangeSettings = ExchangeSettings()
    alerts: AlertSettings = AlertSettings()
    health: HealthSettings = HealthSettings()
    housekeeping: HousekeepingSettings = HousekeepingSettings()
    reject_outcomes: RejectOutcomesSettings = RejectOutcomesSettings()
    signals: SignalSettings = SignalSettings()
    regimes: Any = None
    """The bot's own; its exits are read by `signals/outcomes`."""

    @model_validator(mode="before")
    @classmethod
    def _heading_alone_is_left_out(cls, content: object) -> object:
        if not isinstance(content, dict):
            return content
        fields = cls.model_fields.items()
        sections = {name for name, field in fields if isinstance(field.default, _Section)}
        return {k: v for k, v in content.items() if v is not None or k not in sections}

    @field_validator("regime_detection")
    @classmethod
    def _enough_hours(
        cls, section: RegimeDetectionSettings, info: ValidationInfo
    ) -> RegimeDetectionSettings:
        data, slow = info.data.get("data"), section.ma_slow_period
        if data and (hours := data.min_hourly_candles_for_regime) < slow:
            raise settings_problem(
                f"min_hourly_candles_for_regime {hours} with ma_slow_period {slow}",
                "min_hourly_candles_for_regime not below ma_slow_period",
                ("data", "min_hourly_candles_for_regime"),
                ("regime_detection", "ma_slow_period"),
            )
        return section
