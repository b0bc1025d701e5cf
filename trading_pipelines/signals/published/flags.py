"""How much of the time each horizon's flag `is_high_volatility` was up: what the bot would miss.

The flag itself is computed in `signals/volatility`; `bot_redis` gives one horizon's to the bot.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import psycopg
from psycopg.rows import class_row

DAYS = 30

SHARES = """
SELECT asked.horizon, count(as_of) AS hours,
    count(*) FILTER (WHERE is_high_volatility) AS hours_up
FROM unnest(%(horizons)s::smallint[]) WITH ORDINALITY AS asked (horizon, place)
LEFT JOIN trading_pipelines.volatility_forecast AS forecast
    ON forecast.symbol = %(symbol)s AND forecast.horizon = asked.horizon
    AND forecast.as_of > %(since)s AND forecast.as_of <= %(until)s
GROUP BY asked.horizon, place ORDER BY place
"""


@dataclass(frozen=True)
class FlagShare:
    """For how many of the hours with a forecast of the horizon (hours ahead) its flag was up."""

    horizon: int
    hours: int
    hours_up: int


def read_flag_shares(
    connection: psycopg.Connection, symbol: str, horizons: Sequence[int], now: datetime
) -> list[FlagShare]:
    """Return the share of each horizon in the 30 days up to `now` (UTC), in the order asked."""
    since = now - timedelta(days=DAYS)
    asked = {"horizons": list(horizons), "symbol": symbol, "since": since, "until": now}
    with connection.cursor(row_factory=class_row(FlagShare)) as cursor:
        return cursor.execute(SHARES, asked).fetchall()
