"""Postgres URLs as libpq and SQLAlchemy understand them, and the schema as Alembic knows it."""

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL, make_url
from sqlalchemy.dialects.postgresql.psycopg2 import PGDialect_psycopg2

from trading_pipelines.database.connection import newest_schema, probe_url
from trading_pipelines.database.url import PostgresUrl

URLS = [
    "postgresql://bot@db/coinpilot",
    "postgresql://bot:p%40s%2Fs%3Fw%23rd%25@db:5432/coinpilot",
    "postgresql://bot:%EB%B9%84%EB%B0%80@db/coinpilot",
    "postgresql://bot:s3cret@[2001:db8::1]:5433/coinpilot?sslmode=require",
    "postgresql://bot@/coinpilot?host=first:5432&host=second:5433&target_session_attrs=read-write",
    "postgresql://postgres@/coinpilot?host=/run/my%20postgres/s",
    "postgresql://postgres@/coinpilot?host=%2Frun%2Fpostgresql",
    "postgresql:///coinpilot?host=/run/postgresql",
    "postgresql://bot@db/coinpilot?options=-c%20search_path%3Dbot%2Cpublic%20-c%20work_mem%3D8MB",
    "postgresql://bot@db/my%20coins%2F%3F",
    "postgresql+psycopg2://bot:p%3As@db/coinpilot?application_name=a%20%26%20b",
]


# What libpq takes of a URL, and SQLAlchemy alone would read otherwise or not at all.
OF_LIBPQ = [
    "postgresql://bot:a%20b%2Bc+d%25@db/coinpilot",
    "postgresql://bot:s3cret@%2Frun%2Fmy%20postgres/coinpilot",
    "postgresql://bot:s3cret@first:5432,second:5433/coinpilot?target_session_attrs=any",
    "postgresql://bot@first,second:5433/coinpilot",
    "postgresql://bot@first,second/coinpilot",
    "postgresql://bot@/coinpilot?host=first,second&port=5433",
    "postgresql://bot@[::1]:5433,[2001:db8::1]/coinpilot",
    "postgresql://bot@db/coinpilot?ssl=true",
    "postgresql://bot@db/ignored?dbname=coinpilot&port=5433",
    "postgresql://bot@db/coinpilot?application_name=a+b%20c",
    "postgresql://bot@/coinpilot?host=/home/%EB%B0%94%ED%83%95%20%ED%99%94%EB%A9%B4/it's+50%25%20%22$%26",
    "postgresql://db/coinpilot?user=bot&password=p%20w&sslmode=require&channel_binding=require&",
]


def received(url: URL) -> dict[str, str]:
    """Return what SQLAlchemy gives to the driver for the URL."""
    dialect = PGDialect_psycopg2()  # type: ignore[no-untyped-call]
    _, arguments = dialect.create_connect_args(url)  # type: ignore[no-untyped-call]
    return {name: str(value) for name, value in arguments.items()}


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_taken_apart_as_sqlalchemy_does(url: str) -> None:
    parsed, alchemy = PostgresUrl.parse(url), make_url(url)
    assert parsed.database == alchemy.database
    options = alchemy.query.get("options", ())
    assert parsed.options() == ([options] if isinstance(options, str) else list(options))
    assert received(make_url(parsed.render(parsed.scheme))) == received(alchemy)


@pytest.mark.parametrize("url", [*OF_LIBPQ, *(url for url in URLS if url.count("host=") < 2)])
def test_every_client_gets_what_libpq_reads(url: str) -> None:
    wanted = conninfo_to_dict(url.replace("+psycopg2", ""))
    parsed = PostgresUrl.parse(url)
    given = received(make_url(parsed.render("postgresql+psycopg2")))
    again = conninfo_to_dict(parsed.render("postgresql"))
    if len(set(str(wanted.get("port", "")).split(","))) == 1:
        # Of several hosts every one has the port that is said once.
        for parameters in (wanted, given, again):
            parameters["port"] = str(parameters.get("port") or "").split(",")[0]
    assert given == again == wanted


@pytest.mark.parametrize("name", ["other", "my coins/?#%", "코인"])
@pytest.mark.parametrize("url", URLS)
def test_another_database_is_on_the_same_server(url: str, name: str) -> None:
    changed = make_url(PostgresUrl.parse(url).with_database(name).render("postgresql+psycopg2"))
    assert received(changed) == {**received(make_url(url)), "dbname": name}


@pytest.mark.parametrize("url", URLS)
def test_parameters_are_added_and_take_the_place_of_their_namesakes(url: str) -> None:
    more = {"options": "-c a=b  -c c='d e'", "connect_timeout": "3"}
    changed = make_url(PostgresUrl.parse(url).with_query(more).render("postgresql"))
    assert received(changed) == {**received(make_url(url)), **more}


# libpq has no scheme for a driver, and takes several hosts in one parameter.
@pytest.mark.parametrize("url", [url for url in URLS if "+" not in url and "first" not in url])
def test_libpq_reads_the_same_of_a_probe_and_its_limits(url: str) -> None:
    before, probe = conninfo_to_dict(url), conninfo_to_dict(probe_url(url))
    options = str(probe.pop("options"))
    assert options.startswith(str(before.pop("options", "")))
    assert "default_transaction_read_only=on" in options
    assert (probe.pop("connect_timeout"), probe.pop("tcp_user_timeout")) == ("3", "3000")
    assert probe == before


def test_several_hosts_stay_several() -> None:
    url = "postgresql://bot:s3cret@first:5432,second:5433/coinpilot?target_session_attrs=any"
    parsed = PostgresUrl.parse(url)
    assert conninfo_to_dict(parsed.with_database("other").render("postgresql")) == {
        **conninfo_to_dict(url),
        "dbname": "other",
    }


def test_a_url_shows_no_password() -> None:
    assert "s3cret" not in repr(PostgresUrl.parse("postgresql://bot:s3cret@db/coinpilot"))


def test_the_newest_schema_is_the_head_of_the_migrations() -> None:
    config = Config()
    config.set_main_option("script_location", "trading_pipelines:database/migrations")
    assert ScriptDirectory.from_config(config).get_current_head() == newest_schema()
