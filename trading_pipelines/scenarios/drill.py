"""A fire drill: an outage of hours is played, and what it cost is counted until all is there again.

The home at the moment everything stopped is made here, and what is missing since is counted. The
tests in `tests/faults` stop real services instead.
"""

import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Protocol

import psycopg
from psycopg.rows import class_row
from rich.console import RenderableType

from trading_pipelines.candles.download import PageSource, download
from trading_pipelines.candles.exchange import Exchange
from trading_pipelines.candles.rate_limit import RequestSlots
from trading_pipelines.candles.resample import resample
from trading_pipelines.candles.windows import DAY, HOUR, MINUTE, Interval, day_interval, floor_hour
from trading_pipelines.database.connection import connect
from trading_pipelines.errors import OperatorError
from trading_pipelines.korean_time import kst
from trading_pipelines.runtime.home import Home
from trading_pipelines.runtime.sessions import prepared_database
from trading_pipelines.runtime.supervisor import Supervisor
from trading_pipelines.scenarios.apart import apart, inbox_alone, make_anew
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import AlertSettings, StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.signals.catalogue import SIGNALS
from trading_pipelines.signals.registry import compute
from trading_pipelines.simulators.discord import DiscordInbox, show_message
from trading_pipelines.simulators.upbit import GeneratedMarket, ReplayExchange
from trading_pipelines.simulators.upbit.market import EPOCH, Market

DRILL_DAYS = 16
DRILL_SECONDS = 600.0
DRILL_RUN_ID = "before the outage"
DRILL_REJECT = """
INSERT INTO public.agent_decisions
    (symbol, strategy_name, decision, reasoning, confidence, model_used, created_at)
SELECT symbol, 'drill', 'REJECT', 'rejected during the outage (drill)', 71, 'drill',
    %(start)s + (%(end)s - %(start)s) * (place - 0.5) / cardinality(%(symbols)s::text[])
FROM unnest(%(symbols)s::text[]) WITH ORDINALITY AS rejected (symbol, place)
"""
PRESENT = """
SELECT
    (SELECT count(*) FROM public.market_data WHERE interval = '1m'
        AND timestamp >= %(start)s AND timestamp < %(end)s) AS candles,
    (SELECT count(*) FROM trading_pipelines.regime_labels
        WHERE hour >= %(first_hour)s AND hour < %(last_hour)s) AS labels,
    (SELECT count(*) FROM trading_pipelines.volatility_forecast
        WHERE as_of > %(first_hour)s AND as_of <= %(last_hour)s) AS forecasts,
    (SELECT count(DISTINCT day) FROM trading_pipelines.volatility_model
        WHERE day >= %(start)s::date AND day < %(end)s::date) AS models,
    (SELECT count(*) FROM trading_pipelines.alert_deliveries
        WHERE source = 'agent_decisions' AND state = 'delivered') AS alerts
"""


@dataclass(frozen=True)
class Count:
    """What an outage's time amounts to: one-minute candles, labels, forecasts, models, alerts."""

    candles: int
    labels: int
    forecasts: int
    models: int
    alerts: int


class Screen(Protocol):
    """Shows the drill to a person, as the module `cli.render` does."""

    def say(self, text: str) -> None:
        """Show one line."""

    def show(self, part: RenderableType) -> None:
        """Show a part of the screen."""

    def print_healed(self, missed: dict[str, int], healed: dict[str, float]) -> None:
        """Show what was missed, and after how many seconds it was there again."""


def play_drill(
    environment: Environment, settings: StrategySettings, outage: Interval, screen: Screen
) -> None:
    """Stop everything for the outage, start it again and show when all is there.

    Raises OperatorError where something cannot be started, or not all is there after ten minutes.
    """
    home = Home.of(environment).scenario("drill")
    make_anew(home)
    settings = settings.model_copy(
        update={
            "data": settings.data.model_copy(
                update={"start_date": outage.start.date() - DAY * DRILL_DAYS, "refresh": True}
            ),
            "alerts": AlertSettings(since=outage.start, digest_over=1000),
        }
    )
    with ExitStack() as stack:
        market = GeneratedMarket(settings.symbols)
        inbox = stack.enter_context(DiscordInbox(limited=True))
        exchange = stack.enter_context(ReplayExchange(market, latency=0.05))
        environment = apart(environment, home, exchange.url, inbox_alone(inbox))
        dump_strategy(settings, home.strategy)
        urls = stack.enter_context(prepared_database(environment))
        screen.say(
            f"preparing {DRILL_DAYS} days as they were at {kst(outage.start)}, when all stopped"
        )
        with (
            ReplayExchange(market, rate=None, clock=outage.start) as past,
            connect(urls.market) as connection,
            connect(urls.market) as line,
        ):
            slots = RequestSlots(line, past.url, 1000.0)
            client = Exchange(past.url, slots, settings.exchange)
            prepare_drill(connection, client, settings, outage)
        due_in = missed_counts(market, settings, outage)
        hours = (outage.end - outage.start) // HOUR
        screen.say(f"back at {kst(outage.end)}, {hours} hours later: starting the services")
        stack.enter_context(Supervisor(environment, urls, home.strategy))
        with connect(urls.market) as connection:
            healed = _await_healed(connection, outage, due_in, screen)
        screen.print_healed(asdict(due_in), healed)
        for message in inbox.messages[:1]:
            screen.show(show_message(message.payload))
    if len(healed) < len(asdict(due_in)):
        raise OperatorError(
            f"not all was there after {DRILL_SECONDS:.0f} s: see the logs in {home.logs}"
        )


def prepare_drill(
    connection: psycopg.Connection,
    exchange: PageSource,
    settings: StrategySettings,
    outage: Interval,
) -> None:
    """Bring an empty home to the outage's start, and enter the bot's REJECTs during the outage.

    The clock of `exchange` stands at that start. `connection` is autocommit.
    """
    history = Interval(day_interval(settings.data.start_date).start, outage.start)
    download(connection, exchange, settings.symbols, history.days(), DRILL_RUN_ID, settings.healing)
    resample(connection, settings.symbols, history.days(), DRILL_RUN_ID)
    for signal in SIGNALS:
        compute(connection, signal, settings.symbols, history.days(), settings, DRILL_RUN_ID)
    connection.execute(
        DRILL_REJECT, {"start": outage.start, "end": outage.end, "symbols": list(settings.symbols)}
    )


def missed_counts(market: Market, settings: StrategySettings, outage: Interval) -> Count:
    """Return how much an installation that did not stop would have made in the outage's time."""
    first, last = ((at - EPOCH) // MINUTE for at in (outage.start, outage.end))
    symbols = settings.symbols
    hours = (floor_hour(outage.end) - floor_hour(outage.start)) // HOUR * len(symbols)
    return Count(
        candles=sum(len(market.candles(symbol, first, last).minute) for symbol in symbols),
        labels=hours,
        forecasts=hours * len(settings.volatility.horizons),
        models=(outage.end.date() - outage.start.date()) // DAY,
        alerts=len(symbols),
    )


def present_counts(connection: psycopg.Connection, outage: Interval) -> Count:
    """Return how much of the outage's time is in the tables."""
    times = {
        "start": outage.start,
        "end": outage.end,
        "first_hour": floor_hour(outage.start),
        "last_hour": floor_hour(outage.end),
    }
    with connection.cursor(row_factory=class_row(Count)) as cursor:
        count = cursor.execute(PRESENT, times).fetchone()
    assert count is not None
    return count


def _await_healed(
    connection: psycopg.Connection, outage: Interval, due_in: Count, screen: Screen
) -> dict[str, float]:
    """Return after how many seconds each was there again; what took too long is left out."""
    started = time.monotonic()
    missed = asdict(due_in)
    healed: dict[str, float] = {}
    while len(healed) < len(missed) and time.monotonic() - started < DRILL_SECONDS:
        passed = time.monotonic() - started
        for name, number in asdict(present_counts(connection, outage)).items():
            if number >= missed[name] and name not in healed:
                healed[name] = passed
                screen.say(f"{passed:5.0f} s  {name}: {number:,}")
        time.sleep(0.5)
    return healed
