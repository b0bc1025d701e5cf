"""The environment variables, typed and strict: addresses, secrets, places.

A secret never appears in an error's text.
"""

import os
import re
from pathlib import Path
from typing import Annotated, NamedTuple, get_args
from urllib.parse import unquote

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trading_pipelines.settings.errors import SettingsError, settings_problem, shown_value

# Own patterns, because the errors of urllib quote the URL, password included.
_DATABASE_URL = r"(postgres|postgresql(\+\w+)?)://[^/?#\s]*/[^/?#@\s]+(\?[^#\s]*)?"
# Unknown to the libpq 17 of psycopg2, by which Dagster asks its storage.
_SINCE_LIBPQ_18 = r"(min|max)_protocol_version|scram_(client|server)_key|oauth_\w+|sslkeylogfile"
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
UPBIT = "https://api.upbit.com"
UPBIT_FILES = ("https://crix-data.upbit.com", "https://crix-data-api.upbit.com")
LISTING = "/api/v1/market-data/listing"
LOOPBACK = ("localhost", "127.0.0.1", "127.0.0.0/8", "::1")
_SECRET = r"[!-~]+"  # noqa: S105
_HOST = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"


def _matching(pattern: str, wrong: str, allowed: str) -> AfterValidator:
    """Demand that a variable, where it is set, has the form; the error never quotes it."""

    def check(value: SecretStr | None) -> SecretStr | None:
        if value and not re.fullmatch(pattern, value.get_secret_value()):
            raise settings_problem(wrong, allowed)
        return value

    return AfterValidator(check)


def _libpq_takes(url: str) -> bool:
    """Ask libpq, whose errors quote the URL."""
    # Imported where a database of the operator's is named: most commands import nothing for it.
    import psycopg.conninfo  # noqa: PLC0415

    try:
        names = psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:
        return False
    return not any(re.fullmatch(_SINCE_LIBPQ_18, name) for name in names)


def _for_libpq(value: SecretStr | None) -> SecretStr | None:
    """Demand a URL that libpq takes; the error names a parameter and never its value."""
    if value is None:
        return None
    place, _, query = value.get_secret_value().partition("://")[2].partition("?")
    if place.count("@") > 1 or not _libpq_takes(f"postgresql://{place}"):
        raise settings_problem(
            "has a host, a port or a password that can't be read",
            "postgresql://user:password@host:5432/database, with % @ and spaces in the password "
            "as %XX, and an IPv6 address in brackets",
        )
    pairs = (pair.partition("=") for pair in query.split("&"))
    wrong = [
        (name, eq)
        for name, eq, text in pairs
        if not _libpq_takes(f"postgresql:///?{name}{eq}{text}")
    ]
    if wrong:
        names = [name for name, eq in wrong if eq and re.fullmatch(r"\w{1,40}", name)]
        raise settings_problem(
            f"PostgreSQL's clients can't read {', '.join(names) or 'what stands'} after the ?",
            "libpq's parameters, such as sslmode=require in the place of ssl, with % and = as "
            "%XX; leave away what only other clients know (schema, pgbouncer)",
        )
    return value


def _plain(pattern: str, allowed: str) -> AfterValidator:
    """Demand the form of a variable that is no secret."""

    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise settings_problem(f"is {shown_value(value)}", allowed)
        return value

    return AfterValidator(check)


def _below(pattern: str, wrong: str, allowed: str) -> AfterValidator:
    """Demand the form of a URL that paths are appended to; a slash at its end is taken away."""

    def check(url: str | None) -> str | None:
        if url and not re.fullmatch(pattern, url.rstrip("/")):
            raise settings_problem(wrong, allowed)
        return url and url.rstrip("/")

    return AfterValidator(check)


def _host_names(value: object) -> object:
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(","))
    if not all(re.fullmatch(_HOST, name) for name in names):
        raise settings_problem(
            f"is {shown_value(value)}",
            "names of hosts without ports, separated by commas, such as dagster.example.com",
        )
    return names


class HistoryFileUrls(NamedTuple):
    """Where Upbit's history files are, and where they are listed."""

    files: str
    listing: str


class Environment(BaseSettings):
    """The environment's variables, named like the fields in capitals; an empty one is not set.

    What is secret may be in a file, which `<NAME>_FILE` names.

    Without a `database_url` the embedded server is used, without a `redis_url` no Redis, without an
    `n8n_url` Discord itself, where it is given. Read it with `load_environment`.
    """

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, hide_input_in_errors=True)

    database_url: Annotated[
        SecretStr | None,
        Field(
            description=(
                "your Postgres (14 to 18), `postgresql://user:password@host/database`, with the "
                "parameters of libpq; without it an embedded one runs in the home. The bot's own "
                "database is fine: its tables are adopted with their rows"
            )
        ),
        _matching(
            _DATABASE_URL,
            "not a PostgreSQL URL with a database name",
            "postgresql://user:password@host:5432/database, with / ? # @ in the password as %XX",
        ),
        AfterValidator(_for_libpq),
    ] = None
    dagster_postgres_url: Annotated[
        SecretStr | None,
        Field(
            description=(
                "Dagster's storage, a URL of the same form; without it `<database>_dagster` on the "
                "same server"
            )
        ),
        _matching(
            _DATABASE_URL,
            "not a PostgreSQL URL with a database name",
            "postgresql+psycopg2://user:password@host:5432/database, with / ? # @ in the password "
            "as %XX",
        ),
        AfterValidator(_for_libpq),
    ] = None
    redis_url: Annotated[
        SecretStr | None,
        Field(
            description=(
                "the bot's cache: `market:regime:{symbol}` and `coinpilot:volatility_state` are "
                "written hourly, and expire by the age of what they say"
            )
        ),
        _matching(
            _REDIS_URL,
            "not a Redis URL",
            "redis://user:password@host:6379/0, the same with rediss, or unix:///path/of/socket, "
            "with / ? # @ [ ] in the password as %XX",
        ),
    ] = None
    n8n_url: Annotated[
        SecretStr | None,
        Field(description="n8n's base URL, such as `http://127.0.0.1:5678`"),
        _matching(
            _N8N_URL,
            "not n8n's base URL",
            "http or https and a host, such as http://127.0.0.1:5678; leave /webhook away",
        ),
    ] = None
    n8n_webhook_secret: Annotated[
        SecretStr | None,
        Field(description="what n8n's webhooks ask for in the header `X-Webhook-Secret`"),
        _matching(
            _SECRET, "can't be sent in a header", "letters, digits and signs of ASCII, no spaces"
        ),
    ] = None
    discord_webhook_url: Annotated[
        SecretStr | None,
        Field(description="Discord's webhook, used while n8n is away, or without n8n"),
        _matching(
            _DISCORD_URL, "not a webhook's URL", "https://discord.com/api/webhooks/<id>/<token>"
        ),
    ] = None
    heartbeat_url: Annotated[
        SecretStr | None,
        Field(description="asked once a minute as long as `health` is good"),
        _matching(
            _HEARTBEAT_URL, "not a URL that can be asked", "https://hc-ping.com/<your check's id>"
        ),
    ] = None
    docs_url: Annotated[
        str | None,
        Field(
            description=(
                "where `docs/` can be read, such as "
                "`https://github.com/you/trading-pipelines/blob/main/docs`: the assets in the UI "
                "then link to their runbooks and, on GitHub and GitLab, to the lines that compute "
                "them (name the tag or commit that runs: lines move on `main`)"
            )
        ),
        _below(
            _DOCS_URL,
            "not a URL below which pages are",
            "http or https, a host and a path, such as "
            "https://github.com/you/trading-pipelines/blob/main/docs",
        ),
    ] = None
    upbit_base_url: Annotated[
        str,
        Field(description="Upbit's address, without `/v1`"),
        _below(
            _EXCHANGE_URL,
            "not the exchange's base URL",
            "http or https and a host, such as https://api.upbit.com; leave /v1 away",
        ),
    ] = UPBIT
    upbit_files_url: Annotated[
        str | None,
        Field(
            description=(
                "where the history files of `data.history_files` are, below `/candle`; without it "
                "`https://crix-data.upbit.com`, or `UPBIT_BASE_URL` where that is not Upbit's own"
            )
        ),
        _below(
            _DOCS_URL,
            "not the base URL of the history files",
            "http or https and a host, such as https://crix-data.upbit.com",
        ),
    ] = None
    upbit_files_list_url: Annotated[
        str | None,
        Field(
            description=(
                "where they are listed; without it "
                "`https://crix-data-api.upbit.com/api/v1/market-data/listing`, or the same path of "
                "`UPBIT_BASE_URL`"
            )
        ),
        _below(
            _DOCS_URL,
            "not the URL of the list of history files",
            "http or https, a host and a path, such as "
            "https://crix-data-api.upbit.com/api/v1/market-data/listing",
        ),
    ] = None
    code_server: Annotated[
        str,
        Field(description="where `serve webserver` and `serve daemon` find the code server"),
        _plain(rf"{_HOST}:[0-9]{{1,5}}", "a host and a port, such as code-server:4000"),
    ] = "127.0.0.1:4000"
    webserver_url: Annotated[
        str | None,
        Field(
            description=(
                "the web UI by which `backfill` launches, where it is not that of the home's `up`"
            )
        ),
        _below(
            _DOCS_URL,
            "not the base URL of a Dagster web UI",
            "http or https and a host, such as http://webserver:3000",
        ),
    ] = None
    allowed_hosts: Annotated[
        tuple[str, ...],
        Field(
            description=(
                "names by which the web UI may be called, beside the [loopback's](security.md); "
                "separated by commas, without ports"
            )
        ),
        NoDecode,
        BeforeValidator(_host_names),
    ] = ()
    dagster_overrides: Annotated[
        Path | None,
        Field(description="a YAML file that is merged over `dagster.yaml`"),
    ] = None
    trading_pipelines_home: Annotated[
        Path,
        Field(
            description=(
                "the folder of the embedded server, of Dagster and of the logs; several homes run "
                "side by side with `--port`"
            )
        ),
        AfterValidator(Path.absolute),
    ] = Path(".data")
    trading_pipelines_config: Annotated[
        Path,
        Field(description="the strategy file; CoinPilot's own loads unchanged"),
    ] = Path("config/strategy.yaml")

    def own_or(self, shipped: Path) -> Path:
        """Return what stands beside the strategy file by the name of `shipped`, or else that."""
        own = self.trading_pipelines_config.with_name(shipped.name).absolute()
        return own if own.exists() else shipped

    @property
    def history_file_urls(self) -> HistoryFileUrls:
        """Where the history files are: of a stand-in for Upbit never Upbit's own."""
        is_upbit = self.upbit_base_url == UPBIT
        files, listing = UPBIT_FILES if is_upbit else (self.upbit_base_url,) * 2
        return HistoryFileUrls(
            self.upbit_files_url or files, self.upbit_files_list_url or f"{listing}{LISTING}"
        )

    @property
    def stream_url(self) -> str:
        """Where the exchange's stream is."""
        return f"{self.upbit_base_url.replace('http', 'ws', 1)}/websocket/v1"

    @property
    def last_good_settings(self) -> Path:
        """The copy of the strategy file as it could last be used, by which a home goes on."""
        return self.trading_pipelines_home / "last-good-strategy.yaml"

    @property
    def stop_flag(self) -> Path:
        """A file that is there while the services of the home are being stopped."""
        return self.trading_pipelines_home / "stopping"


def without_secrets(text: str) -> str:
    """Return the text without what the environment's secrets hold, however they are written.

    Where a variable holds a URL, its password and the last part of its path count as well.
    """
    secrets: set[str] = set()
    for name in _secret_variables():
        value = os.environ.get(name, "")
        password = re.search(r"://[^/?#]*?:([^/?#]*)@", value)
        path = re.search(r"https?://.*/([^/?#]+)", value)
        secrets |= {value, *(match[1] for match in (password, path) if match)}
    written = {form for secret in secrets for form in (secret, unquote(secret)) if form}
    for form in sorted(written, key=len, reverse=True):
        text = text.replace(form, "***")
    return text


def _secret_variables() -> list[str]:
    fields = Environment.model_fields.items()
    return [name.upper() for name, field in fields if SecretStr in get_args(field.annotation)]


def _read_secret_files() -> list[str]:
    """Set the variables of secrets that a file holds; return what is wrong with the files.

    `<NAME>_FILE` names it. A variable that is set wins. What we start gets the values alone: a
    scenario, whose secrets are none, would read the files again.
    """
    problems = []
    for name in _secret_variables():
        file = os.environ.pop(f"{name}_FILE", "")
        if not file or os.environ.get(name):
            continue
        try:
            os.environ[name] = Path(file).read_text().strip()
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", "it is no text")
            problems.append(f"{name}_FILE: {file} can't be read: {why}")
    return problems


def spare_from_proxies(*hosts: str) -> None:
    """Let nothing for this machine or for `hosts` go to a proxy, from this process or its children.

    What else goes to one, and which certificates are believed, is the environment's to say
    (HTTPS_PROXY, HTTP_PROXY, NO_PROXY, REQUESTS_CA_BUNDLE): of this `requests`, gRPC and what we
    start read the same variables.
    """
    for name in ("no_proxy", "no_grpc_proxy"):
        operators = os.environ.get(name) or os.environ.get(name.upper()) or ""
        spared = [host for host in re.split(r"[,\s]+", operators) if host]
        # A star alone spares everything, and beside other names nothing; gRPC's own is rarely set.
        if "*" not in spared and (operators or name == "no_proxy"):
            spared = [*dict.fromkeys([*spared, *LOOPBACK, *hosts])]
            os.environ[name] = os.environ[name.upper()] = ",".join(spared)


def load_environment() -> Environment:
    """Read the environment; raises SettingsError with every wrong variable, never its value.

    Proxies are kept away from what is ours, as `spare_from_proxies` does.
    """
    problems = _read_secret_files()
    try:
        environment = Environment()
        # gRPC would ask the proxy for the code server.
        spare_from_proxies(environment.code_server.rpartition(":")[0])
        if environment.n8n_url and not environment.n8n_webhook_secret:
            problems.append(
                "N8N_WEBHOOK_SECRET: not set; N8N_URL is, and n8n refuses what has no secret"
            )
        if not problems:
            return environment
    except ValidationError as error:
        problems += [f"{str(item['loc'][0]).upper()}: {item['msg']}" for item in error.errors()]
    # Raised out here, where no traceback carries the first error: that one holds the values.
    raise SettingsError("\n".join(problems))
