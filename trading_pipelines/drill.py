"""A fire drill: a home as an outage left it, and what of what was missed is there again.

Here belongs the state at the moment everything stopped, and the count of what is missing since. The
services that heal it are the caller's; the tests in `tests/faults` stop the real ones instead.
"""

from dataclasses import dataclass

import psycopg
from psycopg.rows import class_row

from trading_pipelines.candles.download import PageSource, download
from trading_pipelines.candles.resample import resample
from trading_pipelines.candles.windows import DAY, HOUR, MINUTE, Interval, day_interval, floor_hour
from trading_pipelines.replay.market import EPOCH, Market
from trading_pipelines.settings import StrategySettings
from trading_pipelines.signals import due
from trading_pipelines.signals.compute import compute

RUN_ID = "before the outage"
REJECT = """
INSERT INTO public.agent_decisions
    (symbol, strategy_name, decision, reasoning, confidence, model_used, created_at)
SELECT symbol, 'drill', 'REJECT', 'rejected during the outage (drill)', 71, 'drill',
    %(start)s + (%(end)s - %(start)s) * (place - 0.5) / cardinality(%(symbols)s::text[])
FROM unnest(%(symbols)s::text[]) WITH ORDINALITY AS rejected (symbol, place)
"""
THERE = """
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
    """Of an outage: one-minute candles, labels, forecasts, models (a day) and alerts."""

    candles: int
    labels: int
    forecasts: int
    models: int
    alerts: int


def prepare(
    connection: psycopg.Connection,
    exchange: PageSource,
    settings: StrategySettings,
    outage: Interval,
) -> None:
    """Bring an empty home to where one stopped at the outage's start; the bot rejects during it.

    The clock of `exchange` stands at that start. `connection` is autocommit.
    """
    history = Interval(day_interval(settings.data.start_date).start, outage.start)
    download(connection, exchange, settings.symbols, history.days(), RUN_ID, settings.healing)
    resample(connection, settings.symbols, history.days(), RUN_ID)
    for signal in due.SIGNALS:
        compute(connection, signal, settings.symbols, history.days(), settings, RUN_ID)
    connection.execute(
        REJECT, {"start": outage.start, "end": outage.end, "symbols": list(settings.symbols)}
    )


def missed(market: Market, settings: StrategySettings, outage: Interval) -> Count:
    """Return what an installation that had not stopped would have made of the outage's time."""
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


def there(connection: psycopg.Connection, outage: Interval) -> Count:
    """Return what of it there is in the tables."""
    times = {
        "start": outage.start,
        "end": outage.end,
        "first_hour": floor_hour(outage.start),
        "last_hour": floor_hour(outage.end),
    }
    with connection.cursor(row_factory=class_row(Count)) as cursor:
        found = cursor.execute(THERE, times).fetchone()
    assert found is not None
    return found
