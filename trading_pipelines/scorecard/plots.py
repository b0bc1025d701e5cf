"""One picture of the scorecard: the money of both sides, the edge by group, the confidence.

Only drawing; the figures belong in `score`. Matplotlib's objects and never pyplot, as in
`signals/published/overview`.
"""

from collections.abc import Sequence
from datetime import date

from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter, date2num
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from trading_pipelines.korean_time import KST
from trading_pipelines.scorecard.entries import Entry
from trading_pipelines.scorecard.score import Comparison, Verdict
from trading_pipelines.scorecard.words import headline
from trading_pipelines.signals.plotting import DPI, FORECAST, GRID, INK, QUIET, WIDTH, png
from trading_pipelines.signals.rejections.plots import COST, PAID

COLOURS = {Verdict.SKILL: PAID, Verdict.HARM: COST}
MOST_GROUPS = 20


def draw(entries: Sequence[Entry], comparisons: Sequence[Comparison]) -> bytes:
    """Return a PNG of the scorecard and of the entries that it is of."""
    whole = comparisons[0]
    figure = Figure(figsize=(WIDTH, 5.2), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[4, 4, 3])
    colour = COLOURS.get(whole.verdict, INK)
    figure.suptitle(headline(whole), x=0.01, ha="left", fontsize=10, weight="bold", color=colour)
    _draw_money(panels[0], entries)
    _draw_edges(panels[1], comparisons)
    _draw_confidence(panels[2], comparisons)
    return png(figure)


def _draw_money(panel: Axes, entries: Sequence[Entry]) -> None:
    """Draw what each side's entries made, added up by Korean days."""
    both = {True, False}
    for label, sides, style in (
        ("taken", {True}, {"color": PAID, "lw": 1.8}),
        ("refused, had they been taken", {False}, {"color": COST, "lw": 1.8}),
        ("every entry: no AI", both, {"color": INK, "lw": 1.2, "ls": "--"}),
    ):
        made: dict[date, float] = {}
        for entry in entries:
            if entry.result_krw is not None and entry.is_confirmed in sides:
                day = entry.decided_at.astimezone(KST).date()
                made[day] = made.get(day, 0) + float(entry.result_krw)
        total = 0.0
        days = sorted(made)
        panel.plot(
            [date2num(day) for day in days],  # type: ignore[no-untyped-call]
            [total := total + made[day] for day in days],
            label=label,
            **style,  # type: ignore[arg-type]
        )
    panel.axhline(0, color=QUIET, lw=0.8)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda krw, _: f"{krw:,.0f}"))
    panel.set_title("KRW after fees, added up", loc="left", fontsize=10, color=INK)
    panel.set_xlabel("day of the decision (KST)", fontsize=8.5, color=QUIET)
    panel.xaxis_date()
    panel.xaxis.set_major_formatter(DateFormatter("%m-%d"))  # type: ignore[no-untyped-call]
    panel.tick_params(axis="x", rotation=30)
    panel.legend(frameon=False, fontsize=8)
    _plain(panel)


def _draw_edges(panel: Axes, comparisons: Sequence[Comparison]) -> None:
    """Draw how much better an entry that is taken does, by group; in colour where it is proved."""
    drawn = [comparison for comparison in comparisons if comparison.edge.low is not None]
    for place, comparison in enumerate(reversed(drawn[:MOST_GROUPS])):
        edge, low, high = comparison.edge
        assert edge is not None
        assert low is not None
        assert high is not None
        colour = COLOURS.get(comparison.verdict, QUIET)
        panel.plot([low, high], [place, place], color=colour, lw=2.5, solid_capstyle="butt")
        panel.plot(edge, place, "o", color=colour, ms=6)
    panel.axvline(0, color=QUIET, lw=0.8)
    names = [
        f"{'flag: ' if comparison.grouping == 'flag' else ''}{comparison.name} "
        f"({comparison.days} d)"
        for comparison in reversed(drawn[:MOST_GROUPS])
    ]
    panel.set_yticks(range(len(names)), names, fontsize=7)
    panel.xaxis.set_major_formatter(PercentFormatter(1))
    panel.set_title("taken better than refused, an entry", loc="left", fontsize=10, color=INK)
    _plain(panel)


def _draw_confidence(panel: Axes, comparisons: Sequence[Comparison]) -> None:
    """Draw how often the AI was right at each confidence, beside what it says of itself."""
    told = [
        comparison
        for comparison in comparisons
        if comparison.grouping == "confidence" and comparison.right.value is not None
    ]
    panel.plot([0, 1], [0, 1], color=QUIET, lw=0.8, ls=":", label="as it says itself")
    for comparison in told:
        assert comparison.confidence is not None
        right, low, high = comparison.right
        assert right is not None
        at = comparison.confidence / 100
        if low is not None and high is not None:
            panel.plot([at, at], [low, high], color=FORECAST, lw=2.5, solid_capstyle="butt")
        panel.plot(at, right, "o", color=FORECAST, ms=6)
    panel.set_xlim(0, 1)
    panel.set_ylim(0, 1)
    for axis in (panel.xaxis, panel.yaxis):
        axis.set_major_formatter(PercentFormatter(1))
    panel.set_xlabel("confidence", fontsize=8.5, color=QUIET)
    panel.set_title("how often it was right", loc="left", fontsize=10, color=INK)
    panel.legend(frameon=False, fontsize=8)
    _plain(panel)


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color=GRID)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8, colors=INK)
