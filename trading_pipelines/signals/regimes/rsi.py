"""The relative strength index of one-minute closes, as the bot's AI sees it, as of a moment.

`alerts/kinds` shows it.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import psycopg
from numpy.typing import NDArray

from trading_pipelines.candles.windows import MINUTE

PERIODS = 14
CLOSES = 200
"""How many of the newest one-minute closes the bot computes it from."""

# The bot decides on nothing that started over two minutes ago. The minute that is open, which is
# not counted here, and minutes without a trade may lie between.
STALE = timedelta(minutes=5)

NEWEST_CLOSES = """
SELECT timestamp, close_price::double precision
FROM public.market_data
WHERE symbol = %(symbol)s AND interval = '1m'
    AND timestamp <= %(moment)s - interval '1 minute'
ORDER BY timestamp DESC LIMIT %(closes)s
"""
# What we store has closed. So a minute that was open at the moment, is there all the same and has
# not been asked for by us, was written by the bot's collector before it closed.
OPEN_MINUTE = """
SELECT timestamp FROM public.market_data AS newest
WHERE symbol = %(symbol)s AND interval = '1m'
    AND timestamp > %(moment)s - interval '1 minute' AND timestamp <= %(moment)s
    AND NOT EXISTS (
        SELECT FROM trading_pipelines.candle_coverage AS asked
        WHERE asked.symbol = newest.symbol AND asked.interval = newest.interval
            AND asked.day = (newest.timestamp AT TIME ZONE 'UTC')::date
            AND asked.fetched_until >= newest.timestamp + interval '1 minute')
"""


@dataclass(frozen=True)
class Rsi:
    """An RSI (0 to 100) of minutes that had closed."""

    value: float
    as_of: datetime
    """Close of the last minute in it (UTC)."""
    open_minute: datetime | None = None
    """Start (UTC) of the minute that the bot had as its newest row while it was still forming."""


def wilder_rsi(closes: NDArray[np.float64]) -> float | None:
    """Return the RSI over 14 periods of closes in time order, or None for fewer than 15.

    Average gain and loss are exponential means with alpha 1/14 that start with the first change.
    100 where nothing fell, 50 where nothing moved. Source: Wilder, New Concepts in Technical
    Trading Systems (1978), section 6.
    """
    if len(closes) <= PERIODS:
        return None
    changes = np.diff(closes)
    weights = (1 - 1 / PERIODS) ** np.arange(len(changes))[::-1]
    weights[1:] /= PERIODS
    gain = float(weights @ np.maximum(changes, 0.0))
    loss = float(weights @ np.maximum(-changes, 0.0))
    return 50.0 if gain == loss == 0 else 100 * gain / (gain + loss)


def rsi_as_of(connection: psycopg.Connection, symbol: str, moment: datetime) -> Rsi | None:
    """Return the RSI of the newest 200 minutes that had closed at `moment` (UTC).

    None with fewer than 15 of them, or where the last of them closed over five minutes before.
    """
    asked = {"symbol": symbol, "moment": moment, "closes": CLOSES}
    rows = connection.execute(NEWEST_CLOSES, asked).fetchall()
    if not rows or (as_of := rows[0][0] + MINUTE) < moment - STALE:
        return None
    value = wilder_rsi(np.array([close for _, close in reversed(rows)]))
    newest = connection.execute(OPEN_MINUTE, asked).fetchone()
    return None if value is None else Rsi(value, as_of, newest[0] if newest else None)
