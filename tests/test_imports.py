"""Looking costs little: what each command and process imports, before and while it looks."""

import os
import subprocess
import sys

import pytest

COMPUTING = {"arch", "ccxt", "matplotlib", "pandas", "redis", "scipy", "sklearn", "statsmodels"}
DAGSTER = {"dagster"}
DEAR = COMPUTING | DAGSTER | {"alembic", "sqlalchemy"}
LOOKING = ["signals", "flags", "alerts list", "trades", "decisions", "risk", "rejections", "db url"]
RUN = """
import sys
from trading_pipelines.cli.main import app
try:
    app({arguments!r})
finally:
    sys.stderr.write(chr(10) + " ".join(sys.modules))
"""
IMPORT = "import sys, {module}; sys.stderr.write(' '.join(sys.modules))"


def imported(code: str, **variables: str) -> set[str]:
    """Return the top-level modules that a new interpreter has after the code."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **variables}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    *_, modules = done.stderr.splitlines()
    assert "trading_pipelines" in modules, done.stderr
    return {name.partition(".")[0] for name in modules.split()}


def run(command: str, url: str) -> set[str]:
    return imported(RUN.format(arguments=command.split()), DATABASE_URL=url)


@pytest.mark.parametrize("command", ["--help", "status --help", "backfill --help", *LOOKING])
def test_looking_imports_neither_what_computes_nor_dagster(command: str, market_url: str) -> None:
    assert run(command, market_url) & DEAR == set()


@pytest.mark.parametrize("check", ["daemons", "database", "disk", "candles", "alerts"])
def test_health_imports_dagster_where_its_runs_and_ticks_are_asked(
    check: str, market_url: str
) -> None:
    assert run(f"health --only {check}", market_url) & DEAR == set()


@pytest.mark.parametrize("command", ["status", "health"])
def test_what_asks_dagster_computes_nothing(command: str, market_url: str) -> None:
    modules = run(command, market_url)
    assert modules >= DAGSTER
    assert modules & COMPUTING == set()


@pytest.mark.parametrize("module", ["definitions", "runtime.supervisor", "runtime.processes"])
def test_what_runs_all_day_imports_what_computes_when_it_computes(module: str) -> None:
    assert imported(IMPORT.format(module=f"trading_pipelines.{module}")) & COMPUTING == set()
