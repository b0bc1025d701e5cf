"""The newest signals: the view `current_signals`, and what a person reads of it.

Copying them to the bot's Redis belongs in `bot_redis`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal

import psycopg
from psycopg.rows import class_row

from trading_pipelines.korean_time import kst

CURRENT_SIGNALS = "current_signals"
SIGNALS_OVERVIEW = "signals_overview"
"""The two unpartitioned assets that show what there is."""

CURRENT = """
SELECT current.symbol, regime, regime_since, regime_diff_pct, regime_as_of, regime_age,
    forecast.annualized_volatility, forecast.is_high_volatility,
    forecast.status AS volatility_status, forecast.horizon AS volatility_horizon,
    forecast.as_of AS volatility_as_of, now() - forecast.as_of AS volatility_age,
    forecast.valid_until AS volatility_valid_until
FROM unnest(%(symbols)s::text[]) WITH ORDINALITY AS symbols (symbol, place)
JOIN trading_pipelines.current_signals AS current ON current.symbol = symbols.symbol
LEFT JOIN LATERAL (
    SELECT * FROM trading_pipelines.volatility_forecast AS told
    WHERE told.symbol = symbols.symbol
        AND told.horizon = coalesce(%(horizon)s::smallint, told.horizon)
    ORDER BY as_of DESC, horizon DESC LIMIT 1
) AS forecast ON true
WHERE regime_as_of IS NOT NULL OR forecast.as_of IS NOT NULL
ORDER BY place
"""


@dataclass(frozen=True)
class CurrentSignal:
    """A symbol's newest label and newest forecast, either of which may be missing."""

    symbol: str
    regime: str | None = None
    regime_since: datetime | None = None
    """As-of of the first label of the unbroken run that `regime` is the last of."""
    regime_diff_pct: Decimal | None = None
    regime_as_of: datetime | None = None
    """Close of the newest labelled hour."""
    regime_age: timedelta | None = None
    annualized_volatility: float | None = None
    """1 is 100 % a year; empty where the status is no number."""
    is_high_volatility: bool | None = None
    volatility_status: str | None = None
    volatility_horizon: int | None = None
    volatility_as_of: datetime | None = None
    volatility_age: timedelta | None = None
    volatility_valid_until: datetime | None = None

    def shown(self) -> dict[str, str]:
        """Return what a person reads of it, by column heading; times in Korean time."""
        diff, volatility = self.regime_diff_pct, self.annualized_volatility
        return {
            "symbol": self.symbol,
            "regime": self.regime or "-",
            "since": kst(self.regime_since),
            "fast over slow": "-" if diff is None else f"{diff:+.2f} %",
            "volatility a year": "-" if volatility is None else f"{volatility:.0%}",
            "high": {True: "yes", False: "no", None: "not known"}[self.is_high_volatility],
            "status": self.volatility_status or "-",
            "as of": kst(self.regime_as_of or self.volatility_as_of),
            "valid until": kst(self.volatility_valid_until),
        }


@dataclass(frozen=True)
class Published:
    """What was written to Redis; `skipped` says in a few words why nothing could be."""

    keys: tuple[str, ...] = ()
    stale: Mapping[str, timedelta] = field(default_factory=dict)
    """Keys not written because what they would say has expired, with its age."""
    skipped: str | None = None


def read_current_signals(
    connection: psycopg.Connection, symbols: Sequence[str], horizon: int | None = None
) -> list[CurrentSignal]:
    """Return the newest signals in the order of `symbols`, without the symbols that have none.

    Their volatility is the newest forecast of the horizon (hours ahead), or of the longest.
    """
    with connection.cursor(row_factory=class_row(CurrentSignal)) as cursor:
        return cursor.execute(CURRENT, {"symbols": list(symbols), "horizon": horizon}).fetchall()
