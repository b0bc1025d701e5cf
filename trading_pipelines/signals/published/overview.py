"""One picture of the signals: a row a symbol, what was forecast beside what happened.

Only drawing, of what the tables hold; the arithmetic belongs in the signals' folders. Matplotlib's
objects, never pyplot: nothing is global, so that several threads may draw at once.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
import psycopg
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from trading_pipelines.candles.windows import DAY, HOUR, Interval, floor_hour
from trading_pipelines.korean_time import KST
from trading_pipelines.signals import tables
from trading_pipelines.signals.plotting import (
    DPI,
    FOOT,
    FORECAST,
    GRID,
    HEAD,
    INK,
    QUIET,
    ROW,
    THRESHOLD,
    WIDTH,
    png,
    won,
)
from trading_pipelines.signals.regimes.regime import Regime
from trading_pipelines.signals.volatility.model import trailing_mean
from trading_pipelines.signals.volatility.realized import annualized

SHOWN_SPAN, SCORED_SPAN = timedelta(days=14), timedelta(days=90)
OF_HORIZON = ("#dd8b24", FORECAST, "#6b46c1", "#2f855a")
SHADES: dict[Regime, dict[str, Any]] = {
    Regime.BULL: {"facecolor": "#c3e6cd"},
    Regime.SIDEWAYS: {"facecolor": "#e6e8ec"},
    Regime.BEAR: {"facecolor": "#f6c8c2"},
    Regime.UNKNOWN: {"facecolor": "white", "edgecolor": "#d0d0d0", "hatch": "////"},
}
Panels = NDArray[np.object_]
LABELS = """
SELECT hour, label FROM trading_pipelines.regime_labels
WHERE symbol = %s AND hour >= %s AND hour < %s ORDER BY hour
"""
READ_LONGEST_HORIZON = """
SELECT max(horizon) FROM trading_pipelines.volatility_forecast
WHERE symbol = ANY(%s) AND as_of > %s AND as_of <= %s
"""
# A UTC day's ratio was known at its end. The ratio of a few forecasts is noise: a day's at least.
RATIOS = """
SELECT day + 1 AS known_at, symbol, horizon, ratio_to_garch
FROM trading_pipelines.volatility_score_30d
WHERE symbol = ANY(%s) AND day >= %s AND day < %s AND forecasts >= 24 AND ratio_to_garch > 0
ORDER BY day
"""


def draw(connection: psycopg.Connection, symbols: Sequence[str], now: datetime) -> bytes:
    """Return a PNG, 1067 pixels wide, of the symbols' 14 days up to `now`."""
    end = floor_hour(now)
    shown = Interval(end - SHOWN_SPAN, end)
    arguments = [list(symbols), shown.start, end]
    horizon = connection.execute(READ_LONGEST_HORIZON, arguments).fetchall()[0][0] or 24
    ratios = _frame(connection, RATIOS, [list(symbols), (end - SCORED_SPAN).date(), end.date()])
    colours = dict(zip(sorted(ratios["horizon"].unique()), cycle(OF_HORIZON), strict=False))
    figure, axes = _grid(symbols)
    for symbol, (price, volatility, ratio) in zip(symbols, axes, strict=True):
        _draw_price(price, connection, symbol, shown)
        _draw_volatility(volatility, connection, symbol, shown, horizon)
        _draw_ratios(ratio, ratios[ratios["symbol"] == symbol], colours)
    _scale_ratios(axes[:, 2], ratios, end)
    _label(axes, horizon, colours)
    return png(figure)


def _draw_price(panel: Axes, connection: psycopg.Connection, symbol: str, shown: Interval) -> None:
    labels = _frame(connection, LABELS, [symbol, shown.start - HOUR, shown.end])["label"]
    closes = tables.hourly_closes(connection, symbol, shown)
    panel.set_xlim(_days(shown.start), _days(shown.end))
    panel.yaxis.set_major_formatter(FuncFormatter(won))
    if labels.empty and closes.empty:
        _say_no_data(panel)
        return
    # A label is as of the close of its hour and holds for the next; a missing hour ends a run.
    is_new = labels.ne(labels.shift()) | labels.index.to_series().diff().ne(HOUR)
    for _, run in labels.groupby(is_new.cumsum()):
        first, last = run.index[0] + HOUR, run.index[-1] + 2 * HOUR
        panel.axvspan(first, last, lw=0, **SHADES[Regime(run.iloc[0])])
    panel.plot(closes.reindex(_hours(shown)), color=INK, lw=1.2)


def _draw_volatility(
    panel: Axes, connection: psycopg.Connection, symbol: str, shown: Interval, horizon: int
) -> None:
    """Draw a forecast where its horizon ends, beside what had happened by then."""
    ahead = HOUR * horizon
    panel.set_xlim(_days(shown.start), _days(shown.end + ahead))
    forecasts = tables.forecasts(connection, symbol, Interval(shown.start, shown.end + ahead))
    forecasts = forecasts[forecasts["horizon"] == horizon].set_index("valid_until")
    forecasts = forecasts[["variance", "low", "high", "threshold"]].astype(float)
    past = Interval(shown.start - ahead, shown.end)
    variances = tables.variances(connection, [symbol], past)[symbol].reindex(_hours(past))
    happened = trailing_mean(variances, horizon).loc[shown.start :]
    if forecasts["variance"].isna().all() and happened.isna().all():
        _say_no_data(panel)
        return
    forecasts = forecasts.reindex(_hours(Interval(shown.start, shown.end + ahead))).map(_percent)
    panel.fill_between(
        forecasts.index, forecasts["low"], forecasts["high"], color=FORECAST, alpha=0.2, lw=0
    )
    panel.plot(forecasts["threshold"], color=THRESHOLD, lw=1.1)
    panel.plot(happened.map(_percent), color=INK, lw=1.2)
    panel.plot(forecasts["variance"], color=FORECAST, lw=1.2)
    panel.axvline(_days(shown.end), color=QUIET, lw=0.8, ls=":")
    panel.set_ylim(bottom=0)


def _draw_ratios(panel: Axes, ratios: pd.DataFrame, colours: dict[int, str]) -> None:
    if ratios.empty:
        _say_no_data(panel)
        return
    panel.axhline(1, color=INK, lw=0.8)
    for horizon, colour in colours.items():
        of_horizon = ratios[ratios["horizon"] == horizon]
        panel.plot(of_horizon["ratio_to_garch"], color=colour, lw=1.4)


def _scale_ratios(panels: Iterable[Axes], ratios: pd.DataFrame, end: datetime) -> None:
    """One scale for all symbols, and a logarithm's: half as good is as far from 1 as twice."""
    scaled = [1.0, *ratios["ratio_to_garch"]]
    for panel in panels:
        panel.set_xlim(_days(min([end - SHOWN_SPAN, *ratios.index[:1]])), _days(end))
        panel.set_yscale("log")
        panel.set_ylim(min(scaled) / 1.15, max(scaled) * 1.15)
        panel.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10]))
        panel.yaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
        panel.yaxis.set_minor_locator(NullLocator())


def _grid(symbols: Sequence[str]) -> tuple[Figure, Panels]:
    height = HEAD + ROW * len(symbols) + FOOT
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    axes = figure.subplots(len(symbols), 3, squeeze=False, sharex="col")
    figure.subplots_adjust(
        left=0.125,
        right=0.985,
        top=1 - HEAD / height,
        bottom=FOOT / height,
        wspace=0.16,
        hspace=0.12,
    )
    for symbol, row in zip(symbols, axes, strict=True):
        top = row[0].get_position().ymax
        figure.text(0.01, top, symbol, va="top", color=INK, fontsize=10, fontweight="bold")
        for panel in row:
            panel.grid(color=GRID, lw=0.6)
            panel.set_axisbelow(True)
            panel.tick_params(length=0, labelsize=8.5, labelcolor=QUIET)
            panel.yaxis.set_major_locator(MaxNLocator(4))
            for side, spine in panel.spines.items():
                spine.set_visible(side == "bottom")
                spine.set_color(QUIET)
    return figure, axes


def _label(axes: Panels, horizon: int, colours: dict[int, str]) -> None:
    """Say what the columns show: above the first row and below the last, once."""

    def line(colour: str, label: str, width: float = 1.4) -> Line2D:
        return Line2D([], [], color=colour, lw=width, label=label)

    heads: list[tuple[str, list[Artist]]] = [
        ("Price at the hour's close, KRW", [Patch(label=r, **SHADES[r]) for r in SHADES]),
        (
            f"Volatility {horizon} h ahead, % a year (dotted: now)",
            [
                line(FORECAST, "forecast"),
                Patch(facecolor=FORECAST, alpha=0.2, label="90 %"),
                line(INK, "realised"),
                line(THRESHOLD, "high above", 1.1),
            ],
        ),
        (
            "QLIKE over GARCH's, 30 days (< 1: better)",
            [line(colour, f"{hours} h ahead") for hours, colour in colours.items()],
        ),
    ]
    for top, bottom, (title, handles) in zip(axes[0], axes[-1], heads, strict=True):
        top.set_title(title, loc="left", pad=22, fontsize=10, color=INK)
        top.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(-0.01, 0.98), ncols=4, frameon=False,
            fontsize=8, labelcolor=INK, handlelength=1.4, columnspacing=1.0, handletextpad=0.5,
            borderpad=0.2,
        )  # fmt: skip
        bottom.xaxis_date(KST)
        bottom.xaxis.set_major_locator(AutoDateLocator(tz=KST, maxticks=6))  # type: ignore[no-untyped-call]
        bottom.xaxis.set_major_formatter(FuncFormatter(_date))
        bottom.set_xlabel("00:00 KST of the day", fontsize=8.5, color=QUIET)


def _say_no_data(panel: Axes) -> None:
    panel.text(0.5, 0.5, "no data yet", transform=panel.transAxes, ha="center", va="center",
               color=QUIET, fontsize=10)  # fmt: skip
    panel.tick_params(labelleft=False)
    panel.grid(visible=False)


def _frame(connection: psycopg.Connection, query: str, arguments: list[object]) -> pd.DataFrame:
    """Return the query's rows, indexed by their first column, a time."""
    frame = tables.frame(connection, query, arguments)
    return frame.set_index(pd.to_datetime(frame.pop(frame.columns[0]), utc=True))


def _hours(interval: Interval) -> pd.DatetimeIndex:
    """Return every hour's close in the interval: where values are missing, a line has a gap."""
    return pd.date_range(interval.start, interval.end, freq="h", inclusive="right")


def _percent(variance: float) -> float:
    return 100 * annualized(variance)


def _days(moment: datetime) -> float:
    """Return the moment as Matplotlib counts: in days since 1970."""
    return moment.timestamp() / DAY.total_seconds()


def _date(days: float, _: object) -> str:
    return f"{datetime.fromtimestamp(days * DAY.total_seconds(), KST):%m-%d}"
