"""Postgres URLs as libpq and SQLAlchemy understand them, and the schema as Alembic knows it."""

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

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


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_taken_apart_as_sqlalchemy_does(url: str) -> None:
    parsed, alchemy = PostgresUrl.parse(url), make_url(url)
    assert parsed.database == alchemy.database
    options = alchemy.query.get("options", ())
    assert parsed.options() == ([options] if isinstance(options, str) else list(options))
    assert make_url(parsed.render(parsed.scheme)) == alchemy


@pytest.mark.parametrize("name", ["other", "my coins/?#%", "코인"])
@pytest.mark.parametrize("url", URLS)
def test_another_database_is_on_the_same_server(url: str, name: str) -> None:
    changed = make_url(PostgresUrl.parse(url).with_database(name).render("postgresql+psycopg2"))
    assert changed == make_url(url).set(database=name, drivername="postgresql+psycopg2")


@pytest.mark.parametrize("url", URLS)
def test_parameters_are_added_and_take_the_place_of_their_namesakes(url: str) -> None:
    more = {"options": "-c a=b  -c c='d e'", "connect_timeout": "3"}
    changed = make_url(PostgresUrl.parse(url).with_query(more).render("postgresql"))
    before = make_url(url)
    assert changed.query == {**before.query, **more}
    assert changed.set(query={}) == before.set(query={}, drivername="postgresql")


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
