"""The four market regimes as the bot's tables name them, and which one held at a moment.

How an hour gets its regime belongs in `labels`. A new regime also needs a migration (the CHECK of
`regime_labels`), a name in `alerts/discord` and `deploy/write_n8n_workflows.py`, a colour in
`published/overview`, and ten characters at most: the bot's column holds no more.
"""

from datetime import datetime, timedelta
from enum import StrEnum

import psycopg

# An hour that ended longer before the moment says nothing of it; empty hours are rare.
STALE = timedelta(hours=3)
LABEL = """
SELECT label FROM trading_pipelines.regime_labels
WHERE symbol = %s AND hour <= %s::timestamptz - interval '1 hour' AND hour > %s
ORDER BY hour DESC LIMIT 1
"""


class Regime(StrEnum):
    """Where the fast average of the hourly closes lies: above, near or below the slow one."""

    BULL = "BULL"
    SIDEWAYS = "SIDEWAYS"
    BEAR = "BEAR"
    UNKNOWN = "UNKNOWN"
    """There are fewer hourly candles than `min_hourly_candles_for_regime`."""


def label_as_of(connection: psycopg.Connection, symbol: str, moment: datetime) -> str | None:
    """Return the newest label as of `moment` (UTC); None where none is of the last three hours."""
    earliest = moment - STALE - timedelta(hours=1)
    row = connection.execute(LABEL, [symbol, moment, earliest]).fetchone()
    return row[0] if row else None
