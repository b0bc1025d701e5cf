"""The relative strength index of hourly closes, as of a moment. `alerts/kinds` shows it."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import psycopg
from numpy.typing import NDArray

from trading_pipelines.signals.regimes.regime import STALE

PERIODS = 14
# Wilder's smoothing forgets by 13/14 an hour: what is older than this weighs under 4e-7.
HOURS = 200

NEWEST_CLOSES = """
SELECT timestamp, close_price::double precision
FROM trading_pipelines.candles_1h
WHERE symbol = %s AND timestamp > %s - interval '400 hours' AND timestamp <= %s - interval '1 hour'
ORDER BY timestamp DESC LIMIT %s
"""


@dataclass(frozen=True)
class Rsi:
    """An RSI (0 to 100) and the close of the last hour in it."""

    value: float
    as_of: datetime


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
    """Return the RSI of the hours that had closed at `moment` (UTC).

    None with fewer than 15 hours, or where the last of them closed more than three hours before.
    """
    rows = connection.execute(NEWEST_CLOSES, [symbol, moment, moment, HOURS]).fetchall()
    if not rows or (as_of := rows[0][0] + timedelta(hours=1)) < moment - STALE:
        return None
    value = wilder_rsi(np.array([close for _, close in reversed(rows)]))
    return None if value is None else Rsi(value, as_of)
