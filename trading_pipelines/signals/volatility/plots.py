"""One picture of the comparison: a row a horizon, who is better, how intervals hold, what odds say.

Only drawing; the figures belong in `comparison` and `score`. Matplotlib's objects, never pyplot, as
in `signals/published/overview`.
"""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from trading_pipelines.korean_time import KST
from trading_pipelines.signals.plotting import (
    DPI,
    FORECAST,
    GRID,
    INK,
    QUIET,
    THRESHOLD,
    WIDTH,
    png,
)
from trading_pipelines.signals.volatility.comparison import (
    FEWEST_HOURS,
    GARCH,
    MODELS,
    OURS,
    Bin,
    Comparison,
    ModelScore,
    Told,
    Verdict,
)
from trading_pipelines.signals.volatility.score import (
    COVERAGE_LEAST,
    COVERAGE_MOST,
    RollingScore,
)

MARKERS = {
    OURS: ("o", FORECAST),
    "har": ("s", "#6b46c1"),
    GARCH: ("D", INK),
    "ewma": ("^", "#2f855a"),
    "random_walk": ("v", "#dd8b24"),
}
SYMBOL_HEIGHT, PANEL_HEIGHT, ENDS = 0.24, 1.3, 1.0
FEWEST_IN_BIN = 48


def draw(comparison: Comparison, rolling: Sequence[RollingScore]) -> bytes:
    """Return a PNG, 1067 pixels wide, of the comparison and of the score as of the same moment."""
    horizons = sorted({score.horizon for score in comparison.scores})
    symbols = list(dict.fromkeys(score.symbol for score in comparison.scores))
    rows = max(1, len(horizons))
    height = ENDS + rows * max(2.4, PANEL_HEIGHT + SYMBOL_HEIGHT * len(symbols))
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    until = comparison.as_of.astimezone(KST)
    figure.suptitle(
        f"Volatility forecasts, 90 days until {until:%Y-%m-%d %H:%M} KST",
        x=0.01, ha="left", fontsize=10, weight="bold", color=INK,
    )  # fmt: skip
    panels = figure.subplots(rows, 4, squeeze=False, width_ratios=[4, 4, 3, 3])
    for panel in panels.flat:
        _plain(panel)
    if not horizons:
        for panel in panels.flat:
            _say(panel, "no data yet")
    for horizon, (loss, tests, intervals, odds) in zip(horizons, panels, strict=False):
        scores = [score for score in comparison.scores if score.horizon == horizon]
        _draw_losses(loss, scores, symbols, horizon)
        _draw_tests(tests, scores, symbols)
        _draw_intervals(intervals, [s for s in rolling if s.horizon == horizon], symbols)
        _draw_odds(odds, [each for each in comparison.reliability if each.horizon == horizon])
    figure.legend(
        handles=[
            Line2D([], [], ls="", marker=marker, color=colour, label=MODELS[name])
            for name, (marker, colour) in MARKERS.items()
        ]
        + [
            Line2D([], [], ls="", marker="o", color=QUIET, label="may be the best"),
            Line2D([], [], ls="", marker="o", color=QUIET, mfc="white", label="is not the best"),
            Line2D([], [], ls="", marker=".", color=QUIET, label="not known which is best"),
        ],
        loc="outside lower left", ncols=8, frameon=False, fontsize=8, labelcolor=INK,
        handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip
    return png(figure)


def _draw_losses(
    panel: Axes, scores: Sequence[ModelScore], symbols: Sequence[str], horizon: int
) -> None:
    """Draw each model's loss over GARCH's; filled those that may be the best."""
    panel.set_title(f"{horizon} h: loss / GARCH's (< 1 is better)", loc="left", fontsize=9)
    _name_symbols(panel, symbols)
    panel.axvline(1, color=INK, lw=0.8)
    shown = [score for score in scores if score.ratio_to_garch and score.forecasts >= FEWEST_HOURS]
    if not shown:
        _say(panel, "fewer than 30 days of forecasts")
        return
    for score in shown:
        assert score.ratio_to_garch is not None
        marker, colour = MARKERS[score.model]
        is_told = score.told in {Told.IN, Told.OUT}
        panel.plot(
            score.ratio_to_garch, symbols.index(score.symbol), marker if is_told else ".",
            color=colour, mfc=colour if score.told is not Told.OUT else "white", ms=6, ls="",
            zorder=3 if score.model == OURS else 2,
        )  # fmt: skip
    ratios = [score.ratio_to_garch for score in shown if score.ratio_to_garch]
    panel.set_xscale("log")
    panel.set_xlim(min([0.9, *ratios]) / 1.1, max([1.1, *ratios]) * 1.1)
    panel.xaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10]))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}"))
    panel.xaxis.set_minor_locator(NullLocator())


def _draw_tests(panel: Axes, scores: Sequence[ModelScore], symbols: Sequence[str]) -> None:
    """Draw the t-values of our loss less each other one's; pale where it tells nothing."""
    panel.set_title("Diebold-Mariano t (< 0: ours is better)", loc="left", fontsize=9)
    _name_symbols(panel, symbols, names=False)
    panel.axvline(0, color=INK, lw=0.8)
    tested = [score for score in scores if score.t_value is not None]
    if not tested:
        _say(panel, "no test yet")
        return
    panel.axvspan(-2, 2, color=GRID, lw=0)
    for score in tested:
        assert score.t_value is not None
        marker, colour = MARKERS[score.model]
        told_apart = score.verdict in {Verdict.BETTER, Verdict.WORSE}
        panel.plot(
            score.t_value, symbols.index(score.symbol), marker,
            color=colour, alpha=1 if told_apart else 0.35, ms=6, ls="",
        )  # fmt: skip
    panel.set_xlabel("within about ±2, pale: cannot be told apart", fontsize=8, color=QUIET)


def _draw_intervals(panel: Axes, rolling: Sequence[RollingScore], symbols: Sequence[str]) -> None:
    """Draw the share of the intervals that held, of 90 and 30 days; red where that is a warning."""
    panel.set_title("90 % intervals that held", loc="left", fontsize=9)
    _name_symbols(panel, symbols, names=False)
    panel.axvspan(COVERAGE_LEAST, COVERAGE_MOST, color=GRID, lw=0)
    panel.axvline(0.9, color=INK, lw=0.8)
    shown = [score for score in rolling if score.symbol in symbols]
    for score in shown:
        for days, marker in ((30, "|"), (90, "o")):
            share = score.coverage[days]
            if share is not None:
                colour = THRESHOLD if days in score.strayed else FORECAST
                panel.plot(share, symbols.index(score.symbol), marker, color=colour, ms=7, ls="")
    panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panel.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    panel.set_xlabel("dot: 90 days; bar: 30; red: a warning", fontsize=8, color=QUIET)


def _draw_odds(panel: Axes, bins: Sequence[Bin]) -> None:
    """Draw how often it was high after each probability: on the dotted line they agree."""
    panel.set_title("high, by the probability given", loc="left", fontsize=9)
    panel.plot([0, 1], [0, 1], color=QUIET, lw=0.8, ls=":")
    shown = [each for each in bins if each.forecasts >= FEWEST_IN_BIN]
    if not shown:
        _say(panel, "no probabilities yet")
        return
    panel.plot(
        [each.mean_probability for each in shown], [each.share_high for each in shown],
        "o-", color=FORECAST, ms=5, lw=1.2,
    )  # fmt: skip
    for each in shown:
        panel.annotate(
            f"{each.forecasts:,}", (each.mean_probability, each.share_high),
            xytext=(4, -9), textcoords="offset points", fontsize=7, color=QUIET,
        )  # fmt: skip
    top = min(1, 1.15 * max(max(each.mean_probability, each.share_high) for each in shown) + 0.05)
    panel.set_xlim(0, top)
    panel.set_ylim(0, top)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    panel.set_xlabel("probability; numbers: forecasts", fontsize=8, color=QUIET)


def _name_symbols(panel: Axes, symbols: Sequence[str], *, names: bool = True) -> None:
    panel.set_yticks(range(len(symbols)), symbols if names else [""] * len(symbols))
    panel.set_ylim(len(symbols) - 0.5, -0.5)


def _say(panel: Axes, words: str) -> None:
    panel.text(0.5, 0.5, words, transform=panel.transAxes, ha="center", va="center",
               color=QUIET, fontsize=9)  # fmt: skip


def _plain(panel: Axes) -> None:
    panel.grid(color=GRID, lw=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(length=0, labelsize=8, labelcolor=QUIET)
    for side, spine in panel.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(QUIET)
