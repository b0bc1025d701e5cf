"""config/strategy.yaml and the environment, typed and strict.

Here belongs what an operator may set, what each setting allows, and how a wrong one is reported:
file, line, key and what is allowed. What a setting *does* belongs to the module that uses it.
Nothing is read at import time: the edge (definitions, command line) reads once and passes it on.
"""

import difflib
import json
import operator
import os
import re
from collections.abc import Callable, Iterator
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

# The bot keeps these in the same file: any content is fine, and nothing here reads it.
_BOT_SECTIONS = ("risk_management", "regime_change_policy")

_Place = tuple[str | int, ...]


class SettingsError(Exception):
    """The settings cannot be used; the message lists every problem found, one a line."""


def _wrong(wrong: str, allowed: str, *places: _Place) -> PydanticCustomError:
    """Make an error that is reported at the first of `places` that the file holds."""
    context = {"wrong": wrong, "allowed": allowed, "places": places}
    return PydanticCustomError("settings", "{wrong}; allowed: {allowed}", context)


def _compared(
    section: str, other: str, fits: Callable[[float, float], bool], words: str
) -> AfterValidator:
    """Demand that the value `fits` the section's field `other`, which stands before this one."""

    def check(value: float, info: ValidationInfo) -> float:
        name, bound = str(info.field_name), info.data.get(other)
        if bound is not None and not fits(value, bound):
            places = ((section, key) for key in (name, other))
            raise _wrong(f"{name} {value} with {other} {bound}", f"{name} {words} {other}", *places)
        return value

    return AfterValidator(check)


def _above(lower: str) -> AfterValidator:
    return _compared("regime_detection", lower, operator.gt, "above")


def _up_to(upper: str) -> AfterValidator:
    return _compared("volatility", upper, operator.le, "up to")


def _each_once(values: list[Any], info: ValidationInfo) -> list[Any]:
    again = [n for n, value in enumerate(values) if value in values[:n]]
    if again:
        names = ", ".join(dict.fromkeys(str(values[n]) for n in again))
        place = ("symbols",) if info.field_name == "symbols" else ("volatility", info.field_name)
        raise _wrong(
            f"lists {names} again",
            f"each {str(info.field_name).removesuffix('s')} once",
            (*place, again[0]),
        )
    return values


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
    """Which candles are kept, from which UTC day on, and how many days back a refresh looks."""

    start_date: _Day = date(2024, 1, 1)
    source_timeframe: Literal["1m"] = "1m"
    indicator_timeframe: Literal["1h"] = "1h"
    min_hourly_candles_for_regime: _Count = 200
    refresh: bool = True
    look_back_days: Annotated[int, Field(ge=1, le=365)] = 30


class HealingSettings(_Section):
    """How often a partition that failed is tried again, and how long before each try (seconds)."""

    attempts: Annotated[int, Field(ge=1, le=1000)] = 8
    backoff_seconds: _Positive = 300.0
    max_backoff_seconds: _Positive = 1800.0


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

    training_days: Annotated[int, Field(ge=30, le=90)] = 30
    min_training_days: Annotated[int, Field(ge=14, le=90), _up_to("training_days")] = 14
    horizons: Annotated[
        list[Annotated[int, Field(ge=1, le=72)]],
        AfterValidator(_each_once),
        Field(min_length=1, description="a list of hours ahead, 1 to 72, such as [1, 24]"),
    ] = [1, 24]
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
    trade: bool = True
    risk: bool = True
    daily_report: bool = True
    pipeline_failure: bool = True
    reject_summary: bool = False
    since: _Moment = None
    look_back_days: Annotated[int, Field(ge=1, le=30)] = 7
    # n8n gives Discord 10 s; a tick of Dagster's has 60, and may post until second 33 of it.
    timeout_seconds: Annotated[float, Field(gt=10, le=20)] = 15.0
    # Svix's schedule: with the first try eight in up to 27.6 hours, half of that on average.
    retry_waits: Annotated[
        list[Annotated[float, Field(ge=0, le=604800)]],
        Field(min_length=1, description="a list of seconds (0-604800), such as [5.0, 300.0]"),
    ] = [5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 36000.0]
    fallback_after: Annotated[float, Field(ge=0, le=604800)] = 300.0
    digest_over: _Count = 20
    messages_per_minute: Annotated[int, Field(ge=1, le=150)] = 30
    repeat_after: Annotated[float, Field(ge=60, le=604800)] = 14400.0
    failures_before_alert: _Count = 3
    quiet_after: Annotated[float, Field(ge=300, le=604800)] = 3600.0


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


class StrategySettings(_Section):
    """config/strategy.yaml: what is left out has its default; unknown keys are errors."""

    symbols: Annotated[list[_Symbol], AfterValidator(_each_once)] = Field(
        default=["KRW-BTC", "KRW-ETH", "KRW-XRP", "KRW-SOL", "KRW-DOGE"],
        min_length=1,
        description="a list of at least one symbol, such as [KRW-BTC]",
    )
    data: DataSettings = DataSettings()
    healing: HealingSettings = HealingSettings()
    regime_detection: RegimeDetectionSettings = RegimeDetectionSettings()
    volatility: VolatilitySettings = VolatilitySettings()
    exchange: ExchangeSettings = ExchangeSettings()
    alerts: AlertSettings = AlertSettings()
    health: HealthSettings = HealthSettings()
    housekeeping: HousekeepingSettings = HousekeepingSettings()
    reject_outcomes: RejectOutcomesSettings = RejectOutcomesSettings()
    regimes: Any = None
    """The bot's own; its exits are read by `signals/outcomes`."""

    @field_validator(
        "data", "healing", "regime_detection", "volatility", "exchange", "alerts", "health",
        "housekeeping", "reject_outcomes", mode="before",
    )  # fmt: skip
    @classmethod
    def _heading_alone_is_left_out(cls, section: object) -> object:
        return {} if section is None else section

    @field_validator("regime_detection")
    @classmethod
    def _enough_hours(
        cls, section: RegimeDetectionSettings, info: ValidationInfo
    ) -> RegimeDetectionSettings:
        data, slow = info.data.get("data"), section.ma_slow_period
        if data and (hours := data.min_hourly_candles_for_regime) < slow:
            raise _wrong(
                f"min_hourly_candles_for_regime {hours} with ma_slow_period {slow}",
                "min_hourly_candles_for_regime not below ma_slow_period",
                ("data", "min_hourly_candles_for_regime"),
                ("regime_detection", "ma_slow_period"),
            )
        return section


class _Loader(yaml.SafeLoader):
    """Leaves timestamps as text: PyYAML itself would crash on 2024-02-30, and without a line."""


_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: node.value)


class _File:
    """The content of a YAML text, the line of every key and item, and the keys given twice."""

    def __init__(self, text: str) -> None:
        self.lines: dict[_Place, int] = {}
        self.problems: list[tuple[int, str]] = []
        self._loader = _Loader(text)
        node = self._loader.get_single_node()
        self.content = self._value(node, ()) if node else None

    def _value(self, node: yaml.Node, at: _Place) -> object:
        # A section's keys are the deepest settings: anything below them is a value of wrong type.
        if isinstance(node, yaml.MappingNode) and len(at) <= 1:
            return dict(self._pairs(node, at))
        if isinstance(node, yaml.SequenceNode) and at:
            self.lines |= {(*at, n): _line(item) for n, item in enumerate(node.value)}
        return self._loader.construct_object(node, deep=True)

    def _pairs(self, node: yaml.MappingNode, at: _Place) -> Iterator[tuple[str, Any]]:
        for key, value in node.value:
            name = str(key.value)
            place = (*at, name)
            if place in self.lines:
                text = f"given twice, first on line {self.lines[place]}; allowed: once"
                self.problems.append((_line(key), f"{_dotted(place)}: {text}"))
                continue
            self.lines[place] = _line(key)
            if place == ("regimes",):
                # The bot's own too: nothing in it stops a start, were it a tag that we don't know.
                try:
                    yield name, self._loader.construct_object(value, deep=True)
                except (yaml.YAMLError, ValueError) as error:
                    yield name, f"regimes can't be read: {' '.join(str(error).split())}"
            elif at or name not in _BOT_SECTIONS:
                yield name, self._value(value, place)

    def describe(self, error: ErrorDetails) -> tuple[int, str]:
        """The line and the text of one of the model's errors."""
        context, loc = error.get("ctx", {}), error["loc"]
        loc = next((place for place in context.get("places", ()) if place in self.lines), loc)
        # Inside a setting that is a mapping, the setting is what has a line and a description.
        while loc and loc not in self.lines:
            loc = loc[:-1]
        if error["type"] == "extra_forbidden":
            keys = [*_schema(loc[:-1])["properties"], *(() if loc[:-1] else _BOT_SECTIONS)]
            near = difflib.get_close_matches(str(loc[-1]), keys, n=1)
            wrong = "unknown key" + "".join(f", did you mean {key}?" for key in near)
            allowed = ", ".join(keys)
        else:
            wrong = context.get("wrong") or f"is {_shown(error['input'])}"
            allowed = context.get("allowed") or _allowed(_schema(loc))
        return self.lines[loc], f"{_dotted(loc)}: {wrong}; allowed: {allowed}"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _dotted(loc: _Place) -> str:
    return ".".join(part for part in loc if isinstance(part, str))


def _shown(value: object) -> str:
    kind = "the text " if isinstance(value, str) else ""
    text = json.dumps(value, ensure_ascii=False, skipkeys=True, default=str)
    # One problem is one line, whatever breaks lines in the value.
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return "empty" if value is None else f"{kind}{text:.80}"


def _schema(loc: _Place) -> dict[str, Any]:
    schema = root = StrategySettings.model_json_schema()
    for part in loc:
        schema = schema["items"] if isinstance(part, int) else schema["properties"][part]
        schema = root["$defs"][schema["$ref"].rsplit("/")[-1]] if "$ref" in schema else schema
    return schema


def _allowed(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in words: the model stays the only place that knows it."""
    if "properties" in schema:
        return "a section with the keys " + ", ".join(schema["properties"])
    if "description" in schema:
        return str(schema["description"])
    if "const" in schema or "enum" in schema:
        return " or ".join(schema.get("enum") or [schema["const"]])
    kinds = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    bounds = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "and at most",
        "exclusiveMaximum": "and below",
    }
    limits = [f"{words} {schema[key]:g}" for key, words in bounds.items() if key in schema]
    return " ".join([kinds[schema["type"]], *limits])


def _read(path: Path) -> _File:
    """Raise SettingsError where there is nothing to validate: no file, not UTF-8, not YAML."""
    raw = b""
    try:
        raw = path.read_bytes()
        return _File(raw.decode())
    except OSError as error:
        problem = (
            f": {error.strerror}; allowed: a YAML file; start where config/strategy.yaml is (a new "
            "folder: `trading-pipelines init .`), or set TRADING_PIPELINES_CONFIG to its path"
        )
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = f":{line}: not UTF-8; allowed: YAML saved as UTF-8"
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = f":{line}: {error.problem}; allowed: YAML"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = ": " + " ".join(f"{error}; allowed: YAML".split())
    raise SettingsError(f"{path}{problem}")


def load_strategy(path: Path) -> StrategySettings:
    """Read the strategy file; sections and keys left out, or an empty file, mean the defaults.

    Raises SettingsError with every problem as `file:line: key: what is wrong; allowed: what is`.
    """
    file = _read(path)
    content = {} if file.content is None else file.content
    if not isinstance(content, dict):
        sections = ", ".join(StrategySettings.model_fields)
        raise SettingsError(f"{path}:1: is {_shown(content)}; allowed: the sections {sections}")
    problems = file.problems
    try:
        settings = StrategySettings.model_validate(content)
        if not problems:
            return settings
    except ValidationError as error:
        problems += [file.describe(detail) for detail in error.errors(include_url=False)]
    raise SettingsError("\n".join(f"{path}:{line}: {text}" for line, text in sorted(problems)))


def dump_strategy(settings: StrategySettings, path: Path) -> None:
    """Write a file that `load_strategy` reads back equal; a reader never sees half of it.

    Makes the folder where it is missing. Raises OSError where the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = yaml.safe_dump(settings.model_dump(), sort_keys=False)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# Own patterns, because the errors of urllib quote the URL, password included.
_DATABASE_URL = r"(postgres|postgresql(\+\w+)?)://[^/?#\s]*/[^/?#@\s]+(\?[^#\s]*)?"
_DOCS_URL = r"https?://[^/?#@\s]+(/[^?#@\s]*)?"
_EXCHANGE_URL = rf"{_DOCS_URL}(?<!/v1)"
# Of the options, those that say where and as whom: the time-outs are not the operator's.
_REDIS_USER = r"([^/?#@\[\]\s\x7f-\U0010ffff]*@)?"
_REDIS_OPTION = r"(db=[0-9]+|(username|password|ssl_[a-z_]+)=[^?&#\s]+)"
_REDIS_URL = (
    rf"(rediss?://{_REDIS_USER}(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(:[0-9]{{1,5}})?(/[0-9]*)?"
    rf"|unix://{_REDIS_USER}/[^?#\s]+)(\?{_REDIS_OPTION}(&{_REDIS_OPTION})*)?"
)


_N8N_URL = r"https?://[^/?#@\s]+(/[^?#@\s]*)?(?<!/webhook)(?<!/webhook/)"
_DISCORD_URL = r"https?://[^?#@\s]+(\?[^#\s]*)?"
_HEARTBEAT_URL = r"https?://[^/?#@\s]+(/[^?#@\s]*)?(\?[^#\s]*)?"
_SECRET = r"[!-~]+"  # noqa: S105
_HOST = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"


def _matching(pattern: str, wrong: str, allowed: str) -> AfterValidator:
    """Demand that a variable, where it is set, has the form; the error never quotes it."""

    def check(value: SecretStr | None) -> SecretStr | None:
        if value and not re.fullmatch(pattern, value.get_secret_value()):
            raise _wrong(wrong, allowed)
        return value

    return AfterValidator(check)


def _plain(pattern: str, allowed: str) -> AfterValidator:
    """Demand the form of a variable that is no secret."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise _wrong(f"is {_shown(value)}", allowed)
        return value

    return AfterValidator(check)


def _below(pattern: str, wrong: str, allowed: str) -> AfterValidator:
    """Demand the form of a URL that paths are appended to; a slash at its end is taken away."""

    def check(url: str | None) -> str | None:
        if url and not re.fullmatch(pattern, url.rstrip("/")):
            raise _wrong(wrong, allowed)
        return url and url.rstrip("/")

    return AfterValidator(check)


def _host_names(value: object) -> object:
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(","))
    if not all(re.fullmatch(_HOST, name) for name in names):
        raise _wrong(
            f"is {_shown(value)}",
            "names of hosts without ports, separated by commas, such as dagster.example.com",
        )
    return names


class Environment(BaseSettings):
    """The environment's variables, named like the fields in capitals; an empty one is not set.

    Without a `database_url` the embedded server is used, without a `redis_url` no Redis, without an
    `n8n_url` Discord itself, where it is given. Read it with `load_environment`.
    """

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, hide_input_in_errors=True)

    database_url: Annotated[
        SecretStr | None,
        _matching(
            _DATABASE_URL,
            "not a PostgreSQL URL with a database name",
            "postgresql://user:password@host:5432/database, with / ? # @ in the password as %XX",
        ),
    ] = None
    dagster_postgres_url: SecretStr | None = None
    redis_url: Annotated[
        SecretStr | None,
        _matching(
            _REDIS_URL,
            "not a Redis URL",
            "redis://user:password@host:6379/0, the same with rediss, or unix:///path/of/socket, "
            "with / ? # @ [ ] in the password as %XX",
        ),
    ] = None
    n8n_url: Annotated[
        SecretStr | None,
        _matching(
            _N8N_URL,
            "not n8n's base URL",
            "http or https and a host, such as http://127.0.0.1:5678; leave /webhook away",
        ),
    ] = None
    n8n_webhook_secret: Annotated[
        SecretStr | None,
        _matching(
            _SECRET, "can't be sent in a header", "letters, digits and signs of ASCII, no spaces"
        ),
    ] = None
    discord_webhook_url: Annotated[
        SecretStr | None,
        _matching(
            _DISCORD_URL, "not a webhook's URL", "https://discord.com/api/webhooks/<id>/<token>"
        ),
    ] = None
    heartbeat_url: Annotated[
        SecretStr | None,
        _matching(
            _HEARTBEAT_URL, "not a URL that can be asked", "https://hc-ping.com/<your check's id>"
        ),
    ] = None
    docs_url: Annotated[
        str | None,
        _below(
            _DOCS_URL,
            "not a URL below which pages are",
            "http or https, a host and a path, such as "
            "https://github.com/you/trading-pipelines/blob/main/docs",
        ),
    ] = None
    upbit_base_url: Annotated[
        str,
        _below(
            _EXCHANGE_URL,
            "not the exchange's base URL",
            "http or https and a host, such as https://api.upbit.com; leave /v1 away",
        ),
    ] = "https://api.upbit.com"
    code_server: Annotated[
        str,
        _plain(rf"{_HOST}:[0-9]{{1,5}}", "a host and a port, such as code-server:4000"),
    ] = "127.0.0.1:4000"
    """Where `serve webserver` and `serve daemon` find the code server."""
    webserver_url: Annotated[
        str | None,
        _below(
            _DOCS_URL,
            "not the base URL of a Dagster web UI",
            "http or https and a host, such as http://webserver:3000",
        ),
    ] = None
    """The web UI by which `backfill` launches, where it is not that of the home's `up`."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_host_names)] = ()
    """Names by which the web UI may be called, beside the loopback's."""
    dagster_overrides: Path | None = None
    """A YAML file that is merged over config/dagster.yaml."""
    trading_pipelines_home: Annotated[Path, AfterValidator(Path.absolute)] = Path(".data")
    trading_pipelines_config: Path = Path("config/strategy.yaml")

    def own_or(self, shipped: Path) -> Path:
        """Return what stands beside the strategy file by the name of `shipped`, or else that."""
        own = self.trading_pipelines_config.with_name(shipped.name).absolute()
        return own if own.exists() else shipped

    @property
    def stop_flag(self) -> Path:
        """A file that is there while the services of the home are being stopped."""
        return self.trading_pipelines_home / "stopping"


def load_environment() -> Environment:
    """Read the environment; raises SettingsError with every wrong variable, never its value."""
    try:
        environment = Environment()
        if not environment.n8n_url or environment.n8n_webhook_secret:
            return environment
        problems = ["N8N_WEBHOOK_SECRET: not set; N8N_URL is, and n8n refuses what has no secret"]
    except ValidationError as error:
        problems = [f"{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()]
    # Raised out here, where no traceback carries the first error: that one holds the values.
    raise SettingsError("\n".join(problems))
