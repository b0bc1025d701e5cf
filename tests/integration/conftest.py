"""A whole installation on loopback: replayed exchange, embedded Postgres, the real Dagster."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import FIRST_DAY, SYMBOLS
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings import (
    DataSettings,
    ExchangeSettings,
    StrategySettings,
    dump_strategy,
)


class Installation:
    """A home, its settings and its environment, used as a person would: by the command line."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.config = home / "strategy.yaml"
        self.variables = {
            **os.environ,
            "TRADING_PIPELINES_HOME": str(home),
            "TRADING_PIPELINES_CONFIG": str(self.config),
        }

    def configure(self, base_url: str) -> None:
        """Write settings for a replayed exchange whose rate limit is lifted; no schedule."""
        self.variables["UPBIT_BASE_URL"] = base_url
        dump_strategy(
            StrategySettings(
                symbols=SYMBOLS,
                data=DataSettings(start_date=FIRST_DAY, refresh=False),
                exchange=ExchangeSettings(
                    requests_per_second=1000.0,
                    timeout_seconds=2.0,
                    backoff_seconds=0.01,
                    max_backoff_seconds=0.1,
                ),
            ),
            self.config,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command line to its end."""
        return subprocess.run(
            [sys.executable, "-m", "trading_pipelines.cli", *arguments],
            env=self.variables, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command that stays."""
        return subprocess.Popen(
            [sys.executable, "-m", "trading_pipelines.cli", *arguments],
            env=self.variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


@contextmanager
def installed() -> Iterator[Installation]:
    """A fresh installation; whatever it has started is stopped at the end."""
    home = Path(tempfile.mkdtemp(prefix="tp"))
    home.chmod(0o755)
    try:
        yield Installation(home)
    finally:
        Installation(home).run("down")
        EmbeddedServer(home).stop()
        EmbeddedServer(home / "demo").stop()
        shutil.rmtree(home)


@pytest.fixture
def installation() -> Iterator[Installation]:
    """An installation of the test's own."""
    with installed() as installation:
        yield installation
