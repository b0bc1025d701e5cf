"""What a repair would change: stored candles beside those the exchange has. Writes no candle.

The pages are those that a download asks for, so what is compared is what it would store. Storing
belongs in `download`, how candles differ in `differences`.
"""

import psycopg

from trading_pipelines.candles.differences import Comparison, Differences
from trading_pipelines.candles.download import PageSource, pages
from trading_pipelines.candles.page import Candle
from trading_pipelines.candles.windows import Interval

STORED_CANDLES = """
SELECT timestamp, open_price, high_price, low_price, close_price, volume FROM public.market_data
WHERE symbol = %s AND interval = '1m' AND timestamp >= %s AND timestamp < %s
"""


def compare(
    connection: psycopg.Connection, exchange: PageSource, symbol: str, interval: Interval
) -> Comparison:
    """Ask the exchange for an interval of a symbol, and return how the stored candles differ.

    Minutes that have not closed are left out. Raises ExchangeError and BlockedError.
    """
    differences = Differences(symbol)
    for covered, page in pages(exchange, symbol, interval):
        stored = {
            row[0]: Candle(*row)
            for row in connection.execute(STORED_CANDLES, [symbol, covered.start, covered.end])
        }
        differences.add(stored, page.candles)
    return differences.comparison()
