"""All pictures of the docs, from a real browser on a real installation: `make screenshots`.

A home of its own, with a generated market, the bot's rejections and an exchange that fails; some
minutes. Needs Debian's chromium. What the pages must show is asserted by tests, not here.
"""

import io
import random
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import playwright.sync_api as pw
import psycopg
import requests
from PIL import Image
from pydantic import SecretStr

from trading_pipelines.candles.windows import DAY, day_interval
from trading_pipelines.database.connection import connect, prepare_database
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.backfill import (
    LAUNCH,
    BackfillProgress,
    BackfillTarget,
    follow,
    launch,
)
from trading_pipelines.runtime.supervisor import Supervisor
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import (
    AlertSettings,
    DataSettings,
    ExchangeSettings,
    StrategySettings,
)
from trading_pipelines.settings.strategy_file import dump_strategy, load_strategy
from trading_pipelines.signals.rejections.plots import WEEKS
from trading_pipelines.signals.rejections.summary import (
    REJECT_SUMMARY,
    WEEK,
    settled_at,
    week_interval,
)
from trading_pipelines.simulators.discord import DiscordInbox
from trading_pipelines.simulators.upbit.faults import Fault
from trading_pipelines.simulators.upbit.market import GeneratedMarket
from trading_pipelines.simulators.upbit.server import ReplayExchange

IMAGES = Path(__file__).parent / "images"
STRATEGY = Path(__file__).parent.parent / "tests" / "fixtures" / "coinpilot_strategy.yaml"
FAILING = "KRW-DOGE"
# Labels look at nine days before.
BEFORE = timedelta(days=10)
REJECTIONS = 240
REASONS = (
    "거래량이 평균의 절반이라 진입을 보류합니다.",
    "하락 추세가 아직 꺾이지 않았습니다.",
    "RSI가 과매수 구간에 가깝습니다.",
    "변동성이 커서 손절 폭을 감당하기 어렵습니다.",
    "연속 손실 뒤라 위험을 줄입니다.",
    "뉴스에 대한 시장 심리가 불안정합니다.",
    "근거가 부족합니다.",
)
REJECT = """
INSERT INTO agent_decisions
    (symbol, strategy_name, decision, reasoning, confidence, model_used, created_at)
VALUES (%s, 'screenshots', 'REJECT', %s, 71, 'screenshots', %s)
"""
PATIENCE = 300.0
PARTITION = f"/assets/candles_1m?view=partitions&partition={{}}%7C{FAILING}"
SENSOR = "/locations/trading_pipelines/sensors/ai_reject_alerts"


@dataclass(frozen=True)
class World:
    """An installation that runs; the UTC day it is, and the Monday of the last settled week."""

    url: str
    connection: psycopg.Connection
    exchange: ReplayExchange
    settings: StrategySettings
    today: date
    week: date


@contextmanager
def running() -> Iterator[World]:
    """Start an installation without schedules on a home that is gone with the block."""
    now = datetime.now(UTC)
    settings = StrategySettings(
        exchange=ExchangeSettings(requests_per_second=1000.0, attempts=1),
        alerts=AlertSettings(since=now),
        regimes=load_strategy(STRATEGY).regimes,
    )
    week = now.date() - timedelta(days=now.weekday())
    while settled_at(week, settings) > day_interval(now.date()).start:
        week -= WEEK
    data = DataSettings(start_date=week - WEEK * WEEKS - BEFORE, refresh=False)
    settings = settings.model_copy(update={"data": data})
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tp")))
        home.chmod(0o755)  # as root the embedded server runs as `nobody`
        stack.callback(EmbeddedServer(home).stop)
        market = GeneratedMarket(settings.symbols)
        exchange = stack.enter_context(ReplayExchange(market, rate=None))
        # Not from the variables of whoever calls: they may name a real database.
        environment = Environment.model_construct(
            trading_pipelines_home=home,
            upbit_base_url=exchange.url,
            discord_webhook_url=SecretStr(stack.enter_context(DiscordInbox()).url),
        )
        dump_strategy(settings, home / "strategy.yaml")
        urls = prepare_database(environment)
        services = stack.enter_context(Supervisor(environment, urls, home / "strategy.yaml"))
        connection = stack.enter_context(connect(urls.market))
        yield World(services.url, connection, exchange, settings, now.date(), week)


def refuse_for_weeks(world: World) -> None:
    """Let the bot's AI reject entries of any symbol, at any moment, for any reason."""
    chance = random.Random(7)  # noqa: S311
    start = week_interval(world.week - WEEK * (WEEKS - 1)).start
    end = week_interval(world.week).end
    for _ in range(REJECTIONS):
        at = start + (end - start) * chance.random()
        row = [chance.choice(world.settings.symbols), chance.choice(REASONS), at]
        world.connection.execute(REJECT, row)


def sum_up(world: World) -> None:
    """Launch the summary of the last settled week."""
    week = {"start": f"{world.week}", "end": f"{world.week}"}
    asset = {"assetKey": {"path": [REJECT_SUMMARY]}, "partitions": {"ranges": [week]}}
    variables = {"parameters": {"partitionsByAssets": [asset]}}
    body = {"query": LAUNCH, "variables": variables}
    answer = requests.post(f"{world.url}/graphql", json=body, timeout=60).json()
    assert answer["data"]["launchPartitionBackfill"].get("backfillId"), answer


@dataclass(frozen=True)
class Camera:
    """The browser of a person in Seoul."""

    url: str
    page: pw.Page

    def open(self, path: str, *texts: str) -> None:
        """Open a page, again until it shows all of the texts."""
        deadline = time.monotonic() + PATIENCE
        while True:
            self.page.goto(self.url + path)
            try:
                for text in texts:
                    self.page.get_by_text(text).filter(visible=True).first.wait_for()
            except pw.TimeoutError:
                if time.monotonic() > deadline:
                    raise
            else:
                loading = self.page.get_by_text(re.compile("fetching statuses|Loading"))
                pw.expect(loading).to_have_count(0, timeout=PATIENCE * 1000)
                self.page.wait_for_load_state("networkidle")
                return

    def take(self, name: str, x: float, y: float, width: float, height: float) -> None:
        """Write a part of the page, in 256 colours: half the bytes."""
        clip: pw.FloatRect = {"x": x, "y": y, "width": width, "height": height}
        shot = self.page.screenshot(clip=clip, animations="disabled")
        image = Image.open(io.BytesIO(shot)).convert("RGB")
        image.quantize(dither=Image.Dither.NONE).save(IMAGES / f"{name}.png", optimize=True)

    def take_plot(self, asset: str, name: str) -> None:
        """Take the picture of an asset's latest materialisation, as the UI opens it."""
        self.open(f"/assets/{asset}", "Show Markdown")
        self.page.get_by_text("Show Markdown").first.click()
        plot = self.page.get_by_role("img", name=name)
        plot.wait_for()
        box = plot.bounding_box()
        assert box
        self.take(name, **box)

    def take_tick(self) -> None:
        """Take the tick that has delivered a rejection, with its message."""
        message = self.page.get_by_text("1 new, 1 delivered")
        for _ in range(20):
            self.open(SENSOR, "0 runs requested")
            for tick in self.page.locator("table").last.locator("tbody tr").all()[:3]:
                tick.locator("td").nth(1).locator("*").last.hover()
                with suppress(pw.TimeoutError):
                    message.wait_for(timeout=1500)
                    self.take("ticks", 68, 320, 1332, 480)
                    return
        raise pw.TimeoutError("no tick says that it has delivered the rejection")


def main() -> None:
    """Take all pictures."""
    with running() as world, pw.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        context = browser.new_context(
            viewport={"width": 1400, "height": 800}, timezone_id="Asia/Seoul", locale="en-GB"
        )
        context.add_init_script("localStorage.setItem('dagster-nav-collapsed', 'true')")
        camera = Camera(world.url, context.new_page())
        photograph(camera, world)
        browser.close()


def photograph(camera: Camera, world: World) -> None:
    """Bring an installation to what the pictures show, and take them on the way."""
    refuse_for_weeks(world)
    symbols, yesterday = tuple(world.settings.symbols), world.today - DAY
    history = BackfillTarget(symbols, world.settings.data.start_date, yesterday)
    launched = launch(world.url, history, with_signals=True)
    taken: list[BackfillProgress] = []

    def show(progress: BackfillProgress) -> None:
        if not taken and progress.done > progress.total / 2:
            taken.append(progress)
            camera.open(f"/runs/b/{launched}", "In progress", "candles_1m")
            camera.take("backfill", 68, 0, 1332, 676)

    follow(world.connection, world.url, launched, history, show)
    sum_up(world)
    camera.open("/asset-groups", "published_signals")
    camera.take("lineage", 400, 225, 950, 400)
    camera.open("/locations/trading_pipelines/asset-groups/volatility/lineage", "volatility_score")
    camera.take("volatility", 115, 230, 1238, 450)
    camera.open(PARTITION.format(yesterday), "quiet")
    camera.take("partitions", 68, 0, 1332, 800)

    world.exchange.set_faults([Fault("503_html", market=FAILING)])
    open_day = BackfillTarget(symbols, world.today, world.today)
    launched = launch(world.url, open_day)
    follow(world.connection, world.url, launched, open_day, lambda _: None)
    world.connection.execute(REJECT, [FAILING, REASONS[0], datetime.now(UTC)])
    camera.open(PARTITION.format(world.today), "did not materialize this asset")
    camera.take("failed_partition", 68, 0, 1332, 560)
    camera.take_tick()
    camera.page.set_viewport_size({"width": 1400, "height": 1000})
    camera.take_plot("signals_overview", "signals")
    camera.take_plot(REJECT_SUMMARY, "rejections")


if __name__ == "__main__":
    main()
