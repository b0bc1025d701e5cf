"""Writing candles to the bot's `market_data` table: COPY, then an upsert that repairs.

Each call is one step of the caller's transaction, so candles and the coverage that vouches for them
are committed together. Who asks for what belongs in `download`; reading for signals, elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import psycopg

from trading_pipelines.candles.page import Candle

INTERVAL = "1m"

# One temporary table a connection: making one a page would grow pg_class by ten rows a second.
STAGING = """
CREATE TEMPORARY TABLE IF NOT EXISTS candle_staging (
    open_price numeric(20, 8), high_price numeric(20, 8), low_price numeric(20, 8),
    close_price numeric(20, 8), volume numeric(20, 8), timestamp timestamptz
) ON COMMIT DELETE ROWS
"""
COPY = """
COPY candle_staging (timestamp, open_price, high_price, low_price, close_price, volume) FROM STDIN
"""
# Rows that are equal are not touched: a re-run leaves no dead tuples, and the counts are the truth.
UPSERT_CANDLES = """
INSERT INTO public.market_data AS stored
    (symbol, interval, timestamp, open_price, high_price, low_price, close_price, volume)
SELECT %(symbol)s, %(interval)s, timestamp,
    open_price, high_price, low_price, close_price, volume
FROM candle_staging ORDER BY timestamp
ON CONFLICT (symbol, interval, timestamp) DO UPDATE SET
    open_price = excluded.open_price, high_price = excluded.high_price,
    low_price = excluded.low_price, close_price = excluded.close_price, volume = excluded.volume
WHERE (stored.open_price, stored.high_price, stored.low_price, stored.close_price, stored.volume)
    IS DISTINCT FROM (excluded.open_price, excluded.high_price, excluded.low_price,
        excluded.close_price, excluded.volume)
RETURNING xmax = 0
"""


@dataclass(frozen=True)
class Written:
    """What an upsert changed: rows that were missing and rows that differed."""

    inserted: int
    repaired: int


def write_candles(
    connection: psycopg.Connection, symbol: str, candles: Sequence[Candle]
) -> Written:
    """Insert the candles that are missing and replace those that differ, in this transaction."""
    with connection.cursor() as cursor:
        cursor.execute(STAGING)
        with cursor.copy(COPY) as copy:
            for candle in candles:
                copy.write_row(candle)
        cursor.execute(UPSERT_CANDLES, {"symbol": symbol, "interval": INTERVAL})
        was_new = [row[0] for row in cursor]
    return Written(inserted=sum(was_new), repaired=len(was_new) - sum(was_new))
