"""The environment: what is read, what is refused, and that no secret is ever shown."""

import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from pydantic import SecretStr, ValidationError

from trading_pipelines.settings.environment import Environment, load_environment, without_secrets
from trading_pipelines.settings.errors import SettingsError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """An environment without any of the variables, in a folder of its own."""
    for name in Environment.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


@pytest.mark.parametrize("emptied", [(), tuple(Environment.model_fields)])
def test_the_environment_has_defaults(
    variables: pytest.MonkeyPatch, emptied: tuple[str, ...]
) -> None:
    for name in emptied:
        variables.setenv(name.upper(), "")
    environment = load_environment()
    assert environment.database_url is None
    assert environment.redis_url is None
    assert environment.n8n_url is None
    assert environment.n8n_webhook_secret is None
    assert environment.discord_webhook_url is None
    assert environment.upbit_base_url == "https://api.upbit.com"
    assert environment.docs_url is None
    assert environment.trading_pipelines_home == Path.cwd() / ".data"
    assert environment.trading_pipelines_config == Path("config/strategy.yaml")


def test_the_environment_is_read(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("DATABASE_URL", "postgresql://bot:s3cret@db:5432/coinpilot?sslmode=require")
    variables.setenv("UPBIT_BASE_URL", "http://127.0.0.1:8080/upbit//")
    variables.setenv("TRADING_PIPELINES_HOME", "state")
    variables.setenv("TRADING_PIPELINES_CONFIG", "/etc/strategy.yaml")
    variables.setenv("TRADING_PIPELINES_OTHER", "ignored")
    environment = load_environment()
    assert environment.database_url == SecretStr(
        "postgresql://bot:s3cret@db:5432/coinpilot?sslmode=require"
    )
    assert environment.upbit_base_url == "http://127.0.0.1:8080/upbit"
    assert environment.trading_pipelines_home == Path.cwd() / "state"
    assert environment.trading_pipelines_config == Path("/etc/strategy.yaml")
    assert "s3cret" not in f"{environment!r} {environment} {environment.model_dump_json()}"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:5678",
        "http://n8n_main:5678/",
        "https://n8n.example.com/some/path",
        "https://[::1]:5678",
    ],
)
def test_where_alerts_go_is_read_and_never_shown(variables: pytest.MonkeyPatch, url: str) -> None:
    secret, discord = (
        "s3cret!\"#$%&'()*+,/:;<=>?@[]^_`{|}~",
        "https://discord.com/api/webhooks/1/s3cret",
    )
    variables.setenv("N8N_URL", url)
    variables.setenv("N8N_WEBHOOK_SECRET", secret)
    variables.setenv("DISCORD_WEBHOOK_URL", f"{discord}?thread_id=7")
    environment = load_environment()
    assert environment.n8n_url == SecretStr(url)
    assert environment.n8n_webhook_secret == SecretStr(secret)
    assert environment.discord_webhook_url == SecretStr(f"{discord}?thread_id=7")
    assert "s3cret" not in f"{environment!r} {environment} {environment.model_dump_json()}"


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        *[
            ("N8N_URL", url, "not n8n's base URL")
            for url in (
                "s3cret",
                "n8n:5678/s3cret",
                "ftp://n8n/s3cret",
                "http://user:s3cret@n8n:5678",
                "http://n8n:5678/webhook",
                "http://n8n:5678/s3cret/webhook",
                "http://n8n:5678/?key=s3cret",
                "http://n8n:5678/#s3cret",
                "http:///s3cret",
                "http://n8n/s3cret\n",
            )
        ],
        *[
            ("N8N_WEBHOOK_SECRET", secret, "can't be sent in a header")
            for secret in (
                "my s3cret",
                "s3cret\n",
                "s3cret\r\nX-Other: 1",
                "비밀s3cret",
                "s3cret\t",
            )
        ],
        *[
            ("DISCORD_WEBHOOK_URL", url, "not a webhook's URL")
            for url in (
                "s3cret",
                "discord.com/api/webhooks/1/s3cret",
                "https://user:s3cret@discord.com/api/webhooks/1/x",
                "https://discord.com/api/webhooks/1/s3cret#x",
                "https://discord.com/api/webhooks/1/s3cret ",
                "https://discord.com/api/webhooks/1/s3cret\n",
            )
        ],
    ],
)
def test_a_wrong_place_for_alerts_is_named_and_never_shown(
    variables: pytest.MonkeyPatch, variable: str, value: str, problem: str
) -> None:
    variables.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load_environment()
    assert str(caught.value).startswith(f"{variable}: {problem}; allowed: ")
    assert "\n" not in str(caught.value)
    assert caught.value.__context__ is None
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_secret_may_be_in_a_file_and_what_is_started_gets_its_value(
    variables: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in {
        "database": "postgresql://u:s3cret@db/x\n",
        "other": "x",
        "none": "",
    }.items():
        (tmp_path / name).write_text(text)
    variables.setenv("DATABASE_URL", "")  # not set, so that it is the test's to take back
    variables.setenv("DATABASE_URL_FILE", "database")
    variables.setenv("N8N_WEBHOOK_SECRET", "wins")
    variables.setenv("N8N_WEBHOOK_SECRET_FILE", "other")
    variables.setenv("HEARTBEAT_URL", "")
    variables.setenv("HEARTBEAT_URL_FILE", "none")
    environment = load_environment()
    assert environment.database_url == SecretStr("postgresql://u:s3cret@db/x")
    assert environment.n8n_webhook_secret == SecretStr("wins")
    assert environment.heartbeat_url is None
    assert os.environ["DATABASE_URL"] == "postgresql://u:s3cret@db/x"
    assert "DATABASE_URL_FILE" not in os.environ, "a scenario without the secret would read it"
    assert without_secrets("at s3cret") == "at ***"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        (b"s3cret\xff", "it is no text"),
        (b"s3cret\0", "it is no text"),
    ],
)
def test_a_file_of_a_secret_that_cannot_be_read_is_named_and_its_content_is_not(
    variables: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "secret").write_bytes(content)
    variables.setenv("DISCORD_WEBHOOK_URL_FILE", "secret")
    with pytest.raises(SettingsError) as caught:
        load_environment()
    assert str(caught.value) == f"DISCORD_WEBHOOK_URL_FILE: secret can't be read: {problem}"
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_an_n8n_without_a_secret_is_an_error(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("N8N_URL", "http://n8n:5678")
    with pytest.raises(SettingsError, match=r"^N8N_WEBHOOK_SECRET: not set; N8N_URL is"):
        load_environment()
    variables.setenv("N8N_URL", "")
    variables.setenv("N8N_WEBHOOK_SECRET", "alone")
    load_environment()


@pytest.mark.parametrize(
    "url",
    [
        "postgres://db/coinpilot",
        "postgresql://db/coinpilot",
        "postgresql+psycopg://u:p%40w@db:5432/coinpilot",
        "postgresql:///coinpilot?host=/run/postgresql",
    ],
)
def test_a_database_url(variables: pytest.MonkeyPatch, url: str) -> None:
    variables.setenv("DATABASE_URL", url)
    assert load_environment().database_url == SecretStr(url)


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:s3cret@db/coinpilot",
        "postgresql+://u:s3cret@db/coinpilot",
        "postgresql://u:s3cret@db",
        "postgresql://u:s3cret@db/",
        "postgresql://u:s3cret@db/?sslmode=require",
        "postgresql://u:s3cret/x@db/coinpilot",
        "postgresql://u:s3cret#x@db/coinpilot",
        "postgresql://u:s3cret\u2100@db/coinpilot/",
        "postgresql://u:s3cret@db/coinpilot\n",
        "s3cret",
    ],
)
def test_a_wrong_database_url_is_named_and_never_shown(
    variables: pytest.MonkeyPatch, url: str
) -> None:
    variables.setenv("DATABASE_URL", url)
    variables.setenv("UPBIT_BASE_URL", "api.upbit.com")
    with pytest.raises(SettingsError) as caught:
        load_environment()
    first, second = str(caught.value).splitlines()
    assert first.startswith("DATABASE_URL: not a PostgreSQL URL with a database name; allowed: ")
    assert second.startswith("UPBIT_BASE_URL: ")
    assert caught.value.__context__ is None
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(ValidationError) as direct:
        Environment()
    assert "s3cret" not in str(direct.value)


@pytest.mark.parametrize(
    "url",
    [
        "redis://localhost",
        "redis://redis-0.redis_svc:6379/0",
        "redis://127.0.0.1:6379/1?username=bot&password=s3cret",
        "redis://[::1]:6379",
        "rediss://:p%40w@cache.example.com:6380/0?ssl_cert_reqs=none",
        "unix:///run/redis/redis.sock",
        "unix://bot:s3cret@/run/redis.sock?db=2",
    ],
)
def test_a_redis_url(variables: pytest.MonkeyPatch, url: str) -> None:
    variables.setenv("REDIS_URL", url)
    environment = load_environment()
    assert environment.redis_url == SecretStr(url)
    assert "s3cret" not in f"{environment!r} {environment.model_dump_json()}"


@pytest.mark.parametrize(
    "url",
    [
        "s3cret",
        "http://:s3cret@cache",
        "redis:/:s3cret@cache",
        "redis://:s3cret@",
        "redis://:s3cret/x@cache:6379/0",
        "redis://:s3cret@x@cache",
        "redis://:s3cret]@cache",
        "redis://:s3cret\u2100@cache",
        "redis://:s3cret@cache:port",
        "redis://:s3cret@cache/zero",
        "redis://:s3cret@cache/0&db=1",
        "redis://:s3cret@cache?db=one",
        "redis://:s3cret@cache?socket_timeout=600",
        "redis://:s3cret@cache\n",
        "unix://run/redis.sock?password=s3cret",
        "unix://?password=s3cret",
    ],
)
def test_a_wrong_redis_url_is_named_and_never_shown(
    variables: pytest.MonkeyPatch, url: str
) -> None:
    variables.setenv("REDIS_URL", url)
    with pytest.raises(SettingsError, match=r"^REDIS_URL: not a Redis URL; allowed: ") as caught:
        load_environment()
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "url",
    [
        "api.upbit.com",
        "ftp://api.upbit.com",
        "https://",
        "https:///v1",
        "https://api.upbit.com/v1",
        "https://api.upbit.com/v1/",
        "https://api.upbit.com?x=1",
        "https://user:pass@api.upbit.com",
    ],
)
def test_a_wrong_exchange_url(variables: pytest.MonkeyPatch, url: str) -> None:
    variables.setenv("UPBIT_BASE_URL", url)
    with pytest.raises(SettingsError, match=r"^UPBIT_BASE_URL: .*; allowed: .*leave /v1 away$"):
        load_environment()


def test_a_stand_in_for_the_exchange_has_no_history_files_of_upbit_s(
    variables: pytest.MonkeyPatch,
) -> None:
    assert load_environment().history_file_urls == (
        "https://crix-data.upbit.com",
        "https://crix-data-api.upbit.com/api/v1/market-data/listing",
    )
    variables.setenv("UPBIT_BASE_URL", "http://127.0.0.1:8900")
    assert load_environment().history_file_urls == (
        "http://127.0.0.1:8900",
        "http://127.0.0.1:8900/api/v1/market-data/listing",
    )
    variables.setenv("UPBIT_FILES_URL", "http://127.0.0.1:1/files/")
    variables.setenv("UPBIT_FILES_LIST_URL", "http://127.0.0.1:2/list")
    assert load_environment().history_file_urls == (
        "http://127.0.0.1:1/files",
        "http://127.0.0.1:2/list",
    )
    variables.setenv("UPBIT_FILES_URL", "127.0.0.1/files")
    with pytest.raises(SettingsError, match=r"^UPBIT_FILES_URL: not the base URL"):
        load_environment()


def test_where_the_docs_are_is_a_url_below_which_pages_are(variables: pytest.MonkeyPatch) -> None:
    variables.setenv("DOCS_URL", "https://github.com/you/trading-pipelines/blob/main/docs/")
    assert load_environment().docs_url == "https://github.com/you/trading-pipelines/blob/main/docs"
    for wrong in ("docs", "file:///docs", "https://u:s3cret@host/docs", "https://host/docs#red"):
        variables.setenv("DOCS_URL", wrong)
        with pytest.raises(SettingsError, match=r"^DOCS_URL: not a URL below .*; allowed: http"):
            load_environment()


def test_processes_that_are_served_apart_are_told_where_the_others_are(
    variables: pytest.MonkeyPatch,
) -> None:
    variables.setenv("CODE_SERVER", "code-server.svc:4001")
    variables.setenv("WEBSERVER_URL", "http://webserver:3000/")
    variables.setenv("ALLOWED_HOSTS", "webserver, dagster.example.com")
    variables.setenv("DAGSTER_OVERRIDES", "/etc/overrides.yaml")
    environment = load_environment()
    assert environment.code_server == "code-server.svc:4001"
    assert environment.webserver_url == "http://webserver:3000"
    assert environment.allowed_hosts == ("webserver", "dagster.example.com")
    assert environment.dagster_overrides == Path("/etc/overrides.yaml")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CODE_SERVER", "code-server"),
        ("CODE_SERVER", "http://code-server:4000"),
        ("CODE_SERVER", "code-server:4000\n"),
        ("WEBSERVER_URL", "webserver:3000"),
        ("WEBSERVER_URL", "http://u:s3cret@webserver:3000"),
        *[("ALLOWED_HOSTS", wrong) for wrong in ("*", "a,,b", "a:3000", "*.example.com", "a b")],
    ],
)
def test_a_wrong_place_of_a_process_is_named(
    variables: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    variables.setenv(variable, value)
    with pytest.raises(SettingsError, match=rf"^{variable}: .*; allowed: "):
        load_environment()


@pytest.mark.parametrize("variable", ["DATABASE_URL", "DAGSTER_POSTGRES_URL"])
@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p%20w%2B%25@db/coinpilot?sslmode=require&channel_binding=require",
        "postgresql://u:pw@first:5432,second:5433/coinpilot?target_session_attrs=read-write",
        "postgresql://u:pw@%2Frun%2Fpostgresql/coinpilot",
        "postgresql+asyncpg://u:pw@[::1]/coinpilot?ssl=true&application_name=a+b",
    ],
)
def test_every_url_that_libpq_takes_is_taken(
    variables: pytest.MonkeyPatch, variable: str, url: str
) -> None:
    variables.setenv(variable, url)
    assert getattr(load_environment(), variable.lower()) == SecretStr(url)


@pytest.mark.parametrize("variable", ["DATABASE_URL", "DAGSTER_POSTGRES_URL"])
@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("u:s3cret@db/coinpilot?ssl=s3cret", "can't read ssl after the ?"),
        (
            "u:s3cret@db/coinpilot?pgbouncer=true&sslmode=require&schema=s3cret",
            "can't read pgbouncer, schema after the ?",
        ),
        ("u:s3cret@db/coinpilot?options=-c%20a=s3cret", "can't read options after the ?"),
        ("u:s3cret@db/coinpilot?application_name=%s3cret", "can't read application_name after"),
        ("u:s3cret@db/coinpilot?oauth_client_secret=s3cret", "can't read oauth_client_secret"),
        ("u:s3cret@db/coinpilot?s3cret", "can't read what stands after the ?"),
        ("u:s3cret@db/coinpilot?%ED%95%9C=s3cret", "can't read what stands after the ?"),
        *[
            (f"{place}/coinpilot", "has a host, a port or a password that can't be read")
            for place in (
                "u:%s3cret@db",
                "u:x@s3cret@db",
                "u:s3cret@[::1",
                "u:s3cret@[]",
                "u:s3cret%",
            )
        ],
    ],
)
def test_what_libpq_does_not_take_is_one_line_with_the_parameter_and_no_value(
    variables: pytest.MonkeyPatch, variable: str, url: str, named: str
) -> None:
    variables.setenv(variable, f"postgresql://{url}")
    with pytest.raises(SettingsError) as caught:
        load_environment()
    line = str(caught.value)
    assert line.startswith(f"{variable}: ")
    assert named in line
    assert "\n" not in line
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_a_traceback_shows_no_secret_of_the_environment(variables: pytest.MonkeyPatch) -> None:
    hook = "https://discord.com/api/webhooks/1/t0ken"
    secrets = {
        "DATABASE_URL": "postgresql://bot:p%20s3cret@db/coinpilot?password=x",
        "REDIS_URL": "redis://:redis-s3cret@cache",
        "N8N_WEBHOOK_SECRET": "n8n-s3cret",
        "DISCORD_WEBHOOK_URL": hook,
    }
    for name, value in secrets.items():
        variables.setenv(name, value)
    text = (
        "invalid dsn: bot:p%20s3cret, decoded 'p s3cret'; redis-s3cret; X-Webhook-Secret: "
        f"n8n-s3cret; HTTPError for {hook}?wait=true; /api/webhooks/1/t0ken?wait=true"
    )
    shown = without_secrets(text)
    assert "s3cret" not in shown
    assert "t0ken" not in shown
    assert shown.startswith("invalid dsn: bot:***, decoded '***'; ***; X-Webhook-Secret: ***")


def test_importing_reads_nothing_and_needs_no_dagster(tmp_path: Path) -> None:
    code = "import sys, trading_pipelines.settings.strategy_file; print('dagster' in sys.modules)"
    wrong = {"PYTHONPATH": str(ROOT), "DATABASE_URL": "wrong", "UPBIT_BASE_URL": "wrong"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | wrong,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
