"""What the regime labels have been worth: how long they hold, and what followed them.

Diagnostics of the past, for people; nothing is decided by them. How a label comes about belongs in
`labels`, the score of the volatility forecasts in `volatility/score`.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby, pairwise
from statistics import median
from typing import Any

import pandas as pd
import psycopg

from trading_pipelines.settings.strategy import RegimeDetectionSettings
from trading_pipelines.signals import tables
from trading_pipelines.signals.regimes.regime import Regime
from trading_pipelines.signals.volatility.realized import annualized
from trading_pipelines.signals.volatility.score import hac_t_value

FORWARD_HOURS = 24
MONTH_HOURS = 30 * 24
# The label of an hour is as of its close: what came after it runs from that close on.
LABELLED_HOURS = """
SELECT label.symbol, label.label, label.hysteresis_label, label.empty_hours,
    label.diff_pct::double precision AS diff_pct,
    (later.close_price / hour.close_price - 1)::double precision AS forward_return,
    realized.realized_variance
FROM trading_pipelines.regime_labels AS label
LEFT JOIN trading_pipelines.candles_1h AS hour
    ON hour.symbol = label.symbol AND hour.timestamp = label.hour
LEFT JOIN trading_pipelines.candles_1h AS later
    ON later.symbol = label.symbol AND later.timestamp = label.hour + make_interval(hours => %s)
LEFT JOIN trading_pipelines.realized_volatility AS realized
    ON realized.symbol = label.symbol AND realized.hour = label.hour
WHERE label.symbol = ANY(%s) AND label.hour >= %s
ORDER BY label.symbol, label.hour
"""


@dataclass(frozen=True)
class RegimeFigures:
    """One regime of one symbol, over the hours that carry its label."""

    share_pct: float | None
    """Of all labelled hours, those that are UNKNOWN included."""
    forward_return_pct: float | None
    """Mean over the 24 hours after the label, where their last close is known."""
    forward_t_value: float | None
    """Of that mean, by Newey-West: the windows overlap. Within ±2 no edge; weeks overstate it."""
    annualized_volatility_pct: float | None


@dataclass(frozen=True)
class RegimeDiagnostics:
    """One symbol's labels, in order. What can't be computed is None; 0 means it was counted.

    Runs, flips and transitions are of the known labels: UNKNOWN hours are passed over.
    """

    symbol: str
    hours: int
    regimes: Mapping[Regime, RegimeFigures]
    flips_per_30_days: float | None
    hysteresis_flips_per_30_days: float | None
    median_run_hours: float | None
    """The first and the last run count as far as they are seen."""
    transitions: Mapping[str, int]
    """`BULL→SIDEWAYS` and how often, the most frequent first."""
    threshold_distance: float | None
    """Percentage points from the newest difference of the averages to the nearest threshold."""
    empty_hours: int | None
    """Without a candle in the newest label's window."""

    def shown(self) -> dict[str, Any]:
        """Return a row for a table: everything but the figures of each regime."""
        transitions = ", ".join(f"{change} {n}" for change, n in self.transitions.items())
        row = {name: value for name, value in asdict(self).items() if name != "regimes"}
        return row | {"transitions": transitions}


def read(
    connection: psycopg.Connection,
    symbols: Sequence[str],
    since: datetime,
    detection: RegimeDetectionSettings,
) -> list[RegimeDiagnostics]:
    """Return one entry a symbol, in their order, of the labels of the hours from `since` on."""
    rows = tables.frame(connection, LABELLED_HOURS, [FORWARD_HOURS, list(symbols), since])
    # A column that is empty throughout comes without a type.
    rows = rows.astype(dict.fromkeys(("diff_pct", "forward_return", "realized_variance"), float))
    return [diagnose(symbol, rows[rows["symbol"] == symbol], detection) for symbol in symbols]


def diagnose(
    symbol: str, rows: pd.DataFrame, detection: RegimeDetectionSettings
) -> RegimeDiagnostics:
    """Return the figures of one symbol's labels: the rows of `LABELLED_HOURS`, an hour each."""
    runs = _runs(rows["label"])
    flips = Counter(f"{a}→{b}" for (a, _), (b, _) in pairwise(runs))
    newest = None if rows.empty else rows.iloc[-1]
    thresholds = (detection.bull_threshold_pct, detection.bear_threshold_pct)
    return RegimeDiagnostics(
        symbol=symbol,
        hours=len(rows),
        regimes={regime: _figures(rows, regime) for regime in Regime},
        flips_per_30_days=_flips_per_30_days(runs),
        hysteresis_flips_per_30_days=_flips_per_30_days(_runs(rows["hysteresis_label"])),
        median_run_hours=median(hours for _, hours in runs) if runs else None,
        transitions=dict(flips.most_common()),
        threshold_distance=None
        if newest is None
        else _number(min(abs(newest["diff_pct"] - threshold) for threshold in thresholds)),
        empty_hours=None if newest is None else int(newest["empty_hours"]),
    )


def _figures(rows: pd.DataFrame, regime: Regime) -> RegimeFigures:
    of_regime = rows[rows["label"] == regime]
    returns = of_regime["forward_return"]
    return RegimeFigures(
        share_pct=100 * len(of_regime) / len(rows) if len(rows) else None,
        forward_return_pct=_number(100 * returns.mean()),
        forward_t_value=_number(hac_t_value(returns, FORWARD_HOURS)),
        annualized_volatility_pct=_number(100 * annualized(of_regime["realized_variance"].mean())),
    )


def _runs(labels: Iterable[str]) -> list[tuple[str, int]]:
    without_unknown = (label for label in labels if label != Regime.UNKNOWN)
    return [(label, len(list(run))) for label, run in groupby(without_unknown)]


def _flips_per_30_days(runs: Sequence[tuple[str, int]]) -> float | None:
    return (len(runs) - 1) * MONTH_HOURS / sum(hours for _, hours in runs) if runs else None


def _number(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
