"""The demo: the main job on real input, on a home and a database of its own, made anew each time.

It asks Upbit itself where Upbit answers, else it replays a recording or a generated market. It is
handed the screen that shows its steps.
"""

import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import psycopg
import requests
from pydantic import SecretStr
from rich.console import RenderableType

from trading_pipelines.alerts.n8n.local import LocalN8n, installed_n8n
from trading_pipelines.candles.upbit import MOST_BYTES
from trading_pipelines.candles.windows import DAY, MINUTE
from trading_pipelines.database.connection import connect
from trading_pipelines.errors import OperatorError
from trading_pipelines.http_calls import call
from trading_pipelines.runtime.backfill import (
    BackfillOutcome,
    BackfillTarget,
    Screen,
    run_backfill,
    write_backfill_settings,
)
from trading_pipelines.runtime.home import Home
from trading_pipelines.runtime.sessions import prepared_database
from trading_pipelines.runtime.supervisor import Supervisor
from trading_pipelines.scenarios.apart import apart, inbox_alone, make_anew
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.published.current import CurrentSignal, read_current_signals
from trading_pipelines.simulators.discord import DiscordInbox, show_message
from trading_pipelines.simulators.upbit import GeneratedMarket, Recording, ReplayExchange

DEMO_DAYS = 28
UPBIT_ANSWERS_WITHIN = 3.0
ALERT_SECONDS = 60.0
LAST_FORECAST = """
SELECT max(computed_at) FROM trading_pipelines.signal_coverage WHERE asset = 'volatility_forecast'
"""
INSERT_REJECT = """
INSERT INTO agent_decisions
    (symbol, strategy_name, decision, reasoning, confidence, model_used, created_at)
VALUES (%s, 'demo', 'REJECT', %s, 71, 'demo', %s)
"""


class DemoScreen(Screen, Protocol):
    """Shows the demo to a person, as the module `cli.render` does."""

    def show(self, part: RenderableType) -> None:
        """Show a part of the screen."""

    def show_summary(self, outcome: BackfillOutcome, title: str) -> None:
        """Show what a backfill came to."""

    def print_signals(self, signals: Sequence[CurrentSignal]) -> None:
        """Show the current signals."""


def play_demo(
    environment: Environment,
    settings: StrategySettings,
    screen: DemoScreen,
    *,
    recording: Path | None,
    offline: bool,
    port: int | None,
    stay: Callable[[], None],
) -> BackfillOutcome:
    """Backfill 28 days with their signals, reject a trade, and show what came; then `stay`.

    Raises OperatorError where something cannot be started or no alert arrives.
    """
    home = Home.of(environment).scenario("demo")
    make_anew(home)
    with ExitStack() as stack:
        market = _market_in_upbits_place(
            environment, settings.symbols, recording, screen, offline=offline
        )
        base_url, source, target = environment.upbit_base_url, "Upbit", _last_days(settings.symbols)
        if market is not None:
            settings = settings.model_copy(
                update={"symbols": [s for s in settings.symbols if s in market.symbols]}
            )
            target, clock = _target_of(market, settings.symbols)
            exchange = stack.enter_context(ReplayExchange(market, latency=0.05, clock=clock))
            base_url, source = exchange.url, market.label
        inbox = stack.enter_context(DiscordInbox())
        webhooks = _webhooks(stack, home, inbox, screen)
        environment = apart(environment, home, base_url, webhooks)
        _write_settings(settings, target, home.strategy)
        urls = stack.enter_context(prepared_database(environment))
        services = stack.enter_context(Supervisor(environment, urls, home.strategy, port))
        outcome = run_backfill(urls, services.url, target, screen, source, with_signals=True)
        screen.show_summary(outcome, f"{target.first} to {target.last} (UTC days), from {source}")
        with connect(urls.market) as connection:
            horizon = settings.volatility.published_horizon
            screen.print_signals(read_current_signals(connection, settings.symbols, horizon))
            screen.say(_clock(connection, outcome))
            decided_at = datetime.combine(target.last + DAY, datetime.min.time(), UTC)
            _show_reject(connection, inbox, target.symbols[0], decided_at, screen)
        screen.say(f"partitions  {services.url}/assets/candles_1m?view=partitions")
        screen.say(f"pictures    {services.url}/assets/signals_overview?view=overview")
        screen.say(f"backfill    {services.url}/runs/b/{outcome.backfill_id}")
        stay()
    return outcome


def _clock(connection: psycopg.Connection, outcome: BackfillOutcome) -> str:
    """Return how long the demo took, from the first request on."""
    (forecast,) = connection.execute(LAST_FORECAST).fetchone() or (None,)
    moments = {**outcome.moments, "last forecast": forecast, "the end": datetime.now(UTC)}
    began = moments.pop("first request", None)
    if began is None:
        return "nothing was asked for"
    seconds = (f"{name} {(at - began).total_seconds():.0f} s" for name, at in moments.items() if at)
    return f"from the first request: {', '.join(seconds)}"


def _market_in_upbits_place(
    environment: Environment,
    symbols: Sequence[str],
    recording: Path | None,
    screen: Screen,
    *,
    offline: bool,
) -> Recording | GeneratedMarket | None:
    """Return the market that is replayed, None where Upbit answers."""
    if not offline and _answers(environment.upbit_base_url, symbols[0]):
        return None
    why = "asked not to" if offline else f"no answer within {UPBIT_ANSWERS_WITHIN:.0f} s"
    market = Recording.load(recording) if recording else GeneratedMarket(symbols)
    screen.say(f"[yellow]Upbit is not used ({why}): replaying a {market.label}[/]")
    return market


def _answers(base_url: str, symbol: str) -> bool:
    try:
        answer = call(
            "GET",
            f"{base_url}/v1/candles/minutes/1",
            seconds=UPBIT_ANSWERS_WITHIN,
            most_bytes=MOST_BYTES,
            params={"market": symbol, "count": "1"},
        )
        return answer.ok and answer.json()[0]["market"] == symbol
    except (requests.RequestException, ValueError, LookupError, TypeError):
        return False


def _last_days(symbols: Sequence[str]) -> BackfillTarget:
    today = datetime.now(UTC).date()
    return BackfillTarget(tuple(symbols), today - DAY * DEMO_DAYS, today - DAY)


def _target_of(
    market: Recording | GeneratedMarket, symbols: Sequence[str]
) -> tuple[BackfillTarget, datetime | None]:
    """Return what to backfill of the market, and the time of its exchange's clock at the start."""
    if not isinstance(market, Recording):
        return _last_days(symbols), None
    last = (market.end - DAY).date()
    first = max(market.first.date(), last - DAY * (DEMO_DAYS - 1))
    return BackfillTarget(tuple(symbols), first, last), market.end + MINUTE


def _write_settings(settings: StrategySettings, target: BackfillTarget, config: Path) -> None:
    since = datetime.combine(target.first, datetime.min.time(), UTC)
    alerts = settings.alerts.model_copy(
        update={"since": since, "ai_reject": True, "daily_report": False}
    )
    write_backfill_settings(settings.model_copy(update={"alerts": alerts}), target.first, config)


def _webhooks(
    stack: ExitStack, home: Home, inbox: DiscordInbox, screen: Screen
) -> dict[str, SecretStr | None]:
    """Start the real n8n where it is installed; else alerts go to the inbox directly."""
    if installed_n8n() is None:
        screen.say("[yellow]n8n is not installed (`make n8n`): alerts go to Discord directly[/]")
        return inbox_alone(inbox)
    secret = secrets.token_urlsafe()
    screen.say("starting n8n, with a local inbox in Discord's place")
    local = stack.enter_context(LocalN8n(home.n8n, secret=secret, discord_url=inbox.url))
    return {
        **inbox_alone(inbox),
        "n8n_url": SecretStr(local.url),
        "n8n_webhook_secret": SecretStr(secret),
    }


def _show_reject(
    connection: psycopg.Connection,
    inbox: DiscordInbox,
    symbol: str,
    decided_at: datetime,
    screen: DemoScreen,
) -> None:
    """Reject a trade as the bot would, and show what arrives."""
    now = datetime.now(UTC)
    if now - decided_at > DAY:
        decided_at = now  # a recording of long ago: an alert is about now
    reason = "RSI는 낮지만 거래량이 받쳐주지 않아 진입을 보류합니다. (demo)"
    connection.execute(INSERT_REJECT, [symbol, reason, decided_at])
    started = time.monotonic()
    try:
        message = inbox.wait_for(lambda m: reason in str(m.payload), ALERT_SECONDS)
    except TimeoutError:
        raise OperatorError(
            f"no alert arrived within {ALERT_SECONDS:.0f} s: see the sensor ai_reject_alerts"
        ) from None
    passed = time.monotonic() - started
    screen.say(f"a REJECT of the bot, {passed:.1f} s later in Discord's place:")
    screen.show(show_message(message.payload))
