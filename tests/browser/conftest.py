"""One installation as an operator has it after a while, and a browser; only with RUN_BROWSER=1.

Two symbols of a generated market, one that the exchange does not know, the bot's rows, an alert.
"""

import importlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.integration.conftest import Installation, await_that, installed
from trading_pipelines.candles.windows import DAY
from trading_pipelines.settings.strategy import (
    AlertSettings,
    DataSettings,
    HealingSettings,
    StrategySettings,
)
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.simulators.discord import DiscordInbox
from trading_pipelines.simulators.upbit.market import GeneratedMarket
from trading_pipelines.simulators.upbit.server import ReplayExchange

collect_ignore_glob = [] if os.environ.get("RUN_BROWSER") == "1" else ["test_*.py"]

TRADED = ["KRW-BTC", "KRW-ETH"]
GONE = "KRW-GONE"
REASON = "거래량이 받쳐주지 않아 진입을 보류합니다."
OPENS_WITHIN, SHOWS_WITHIN = 400.0, 30.0
EXIT = {"exit": {"take_profit_pct": 0.05, "stop_loss_pct": 0.03, "max_hours": 72}}
BOT_ROWS = """
INSERT INTO agent_decisions
    (symbol, strategy_name, decision, reasoning, confidence, model_used, created_at)
VALUES ('KRW-BTC', 'test', 'REJECT', %(reason)s, 71, 'test', %(at)s),
    ('KRW-ETH', 'test', 'CONFIRM', 'RSI 28', 80, 'test', %(at)s);
INSERT INTO trading_history
    (symbol, side, order_type, price, quantity, status, created_at, executed_at)
VALUES ('KRW-ETH', 'BUY', 'MARKET', 6000000, 0.01, 'FILLED', %(at)s, %(at)s)
"""


@dataclass(frozen=True)
class Operator:
    """A person at the UI of an installation, in Seoul; what is seen is asked by its text."""

    installation: Installation
    decided_at: datetime
    page: Any

    def open(self, path: str, *texts: str | re.Pattern[str]) -> None:
        """Open a page, again until it has all of the texts; fails with what it shows instead."""
        deadline = time.monotonic() + OPENS_WITHIN
        while True:
            self.page.goto(self.installation.url + path)
            missing = [text for text in texts if not self.sees(text)]
            if not missing:
                return
            assert time.monotonic() < deadline, (
                f"{path} lacks {missing}: {self.page.inner_text('body')}"
            )

    def sees(self, text: str | re.Pattern[str]) -> bool:
        """Return whether a text comes up on the page as it is, in time."""
        try:
            self.text(text).wait_for(timeout=SHOWS_WITHIN * 1000)
        except importlib.import_module("playwright.sync_api").TimeoutError:
            return False
        return True

    def text(self, text: str | re.Pattern[str]) -> Any:
        """Return the first visible element with the text."""
        return self.page.get_by_text(text).filter(visible=True).first

    def await_left_to_right(self, *texts: str) -> None:
        """Wait until each text stands to the right of the one before.

        Of a text that is there twice the rightmost counts: a list beside the graph has them too.
        """

        def holds() -> bool:
            found = [self.page.get_by_text(text, exact=True).filter(visible=True) for text in texts]
            places = [
                max((one.bounding_box()["x"] for one in same.all()), default=0.0) for same in found
            ]
            return places == sorted(set(places))

        await_that(holds, f"{texts} from left to right")


def _said(installation: Installation, query: str) -> Callable[[], bool]:
    def found() -> bool:
        with psycopg.connect(installation.market_url) as connection:
            return connection.execute(query).fetchone() is not None

    return found


@contextmanager
def _running() -> Iterator[tuple[Installation, datetime]]:
    now = datetime.now(UTC)
    with (
        ReplayExchange(GeneratedMarket(TRADED), rate=None) as exchange,
        DiscordInbox() as inbox,
        installed() as installation,
    ):
        dump_strategy(
            StrategySettings(
                symbols=[*TRADED, GONE],
                data=DataSettings(start_date=now.date() - 2 * DAY, look_back_days=2),
                healing=HealingSettings(attempts=2, backoff_seconds=5.0),
                alerts=AlertSettings(since=now - timedelta(minutes=1)),
                regimes=dict.fromkeys(["BULL", "SIDEWAYS", "BEAR"], EXIT),
            ),
            installation.config,
        )
        installation.variables |= {
            "UPBIT_BASE_URL": exchange.url,
            "DISCORD_WEBHOOK_URL": inbox.url,
        }
        installation.start("up", "--port", "0")
        await_that(lambda: bool(installation.url), "up says where it runs")
        with psycopg.connect(installation.market_url) as connection:
            values = {"reason": REASON, "at": now}
            for statement in BOT_ROWS.split(";"):
                connection.execute(statement, values)
        inbox.wait_for(lambda message: REASON in str(message.payload), OPENS_WITHIN)
        for what, query in {
            "labels": "SELECT 1 FROM trading_pipelines.regime_labels",
            "a symbol that failed": "SELECT 1 FROM trading_pipelines.candle_coverage "
            f"WHERE symbol = '{GONE}' AND error IS NOT NULL",
        }.items():
            await_that(_said(installation, query), what)
        yield installation, now


@pytest.fixture(scope="session")
def _browser() -> Iterator[Any]:
    playwright = importlib.import_module("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def _installation() -> Iterator[tuple[Installation, datetime]]:
    with _running() as running:
        yield running


@pytest.fixture
def operator(_installation: tuple[Installation, datetime], _browser: Any) -> Iterator[Operator]:
    """A person with a fresh browser."""
    size = {"width": 1600, "height": 1000}
    context = _browser.new_context(viewport=size, timezone_id="Asia/Seoul", locale="en-GB")
    yield Operator(*_installation, context.new_page())
    context.close()
