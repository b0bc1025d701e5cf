"""One picture of the rejections: did they pay, in which weeks, and for which reasons and symbols.

Only drawing; the sums belong in `summary`. Matplotlib's objects and never pyplot, as in
`published/overview`.
"""

from collections.abc import Sequence
from datetime import date
from decimal import Decimal

import psycopg
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from trading_pipelines.candles.windows import Interval
from trading_pipelines.signals.plotting import DPI, GRID, INK, QUIET, WIDTH, png
from trading_pipelines.signals.rejections import summary as reject_summary
from trading_pipelines.signals.rejections.summary import WEEK, Total, week_interval

WEEKS = 12
PAID, COST = "#2f855a", "#c53030"


def draw(connection: psycopg.Connection, week: date) -> bytes:
    """Return a PNG of the twelve Korean weeks up to and with the one that begins at `week`."""
    weeks = [week - WEEK * n for n in reversed(range(WEEKS))]
    whole = Interval(week_interval(weeks[0]).start, week_interval(week).end)
    totals = reject_summary.read(connection, whole)
    by_week = [reject_summary.read(connection, week_interval(monday))[0] for monday in weeks]
    figure = Figure(figsize=(WIDTH, 4.6), dpi=DPI, layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=[5, 3, 3])
    together = totals[0]
    colour = (PAID if together.net_krw >= 0 else COST) if together.judged else QUIET
    figure.suptitle(headline(together), x=0.01, ha="left", fontsize=12, weight="bold", color=colour)
    _draw_weeks(panels[0], weeks, by_week)
    _draw_hit_rates(panels[1], "by reason", reject_summary.of(totals, "reason"))
    _draw_hit_rates(panels[2], "by symbol", reject_summary.of(totals, "symbol"))
    return png(figure)


def headline(total: Total) -> str:
    """Return in one sentence whether the rejections paid."""
    if total.hit_rate is None:
        return f"None of {total.rejections} rejections in {WEEKS} weeks has been judged"
    share, low, high = total.hit_rate
    verb = "saved" if total.net_krw >= 0 else "cost"
    return (
        f"Refusing {verb} {abs(total.net_krw):,} KRW in {WEEKS} weeks: {share:.0%} of "
        f"{total.judged} were right (95 %: {low:.0%} to {high:.0%})"
    )


def _draw_weeks(panel: Axes, weeks: Sequence[date], totals: Sequence[Total]) -> None:
    places = range(len(weeks))
    panel.bar(places, [float(total.saved_krw) for total in totals], color=PAID, alpha=0.45,
              label="losses avoided")  # fmt: skip
    panel.bar(places, [-float(total.cost_krw) for total in totals], color=COST, alpha=0.45,
              label="gains missed")  # fmt: skip
    net = Decimal(0)
    running = [float(net := net + total.net_krw) for total in totals]
    panel.plot(places, running, color=INK, marker="o", ms=3, lw=1.6, label="net, added up")
    panel.axhline(0, color=QUIET, lw=0.8)
    panel.set_xticks(places[::2], [f"{week:%m-%d}" for week in weeks[::2]], fontsize=8)
    panel.set_xlabel("week, by its Monday (KST)", fontsize=8.5, color=QUIET)
    panel.yaxis.set_major_formatter(FuncFormatter(lambda krw, _: f"{krw:,.0f}"))
    panel.set_title("KRW a week, after fees", loc="left", fontsize=10, color=INK)
    panel.legend(frameon=False, fontsize=8)
    _plain(panel)


def _draw_hit_rates(panel: Axes, title: str, totals: Sequence[Total]) -> None:
    judged = sorted((total for total in totals if total.hit_rate), key=lambda total: total.judged)
    for place, total in enumerate(judged):
        assert total.hit_rate is not None
        share, low, high = total.hit_rate
        # Green or red only where the interval says it: half of two is no evidence.
        colour = PAID if low > 0.5 else COST if high < 0.5 else QUIET
        panel.plot([low, high], [place, place], color=colour, lw=2.5, solid_capstyle="butt")
        panel.plot(share, place, "o", color=colour, ms=6)
    panel.axvline(0.5, color=QUIET, lw=0.8)
    panel.set_yticks(
        range(len(judged)), [f"{total.name} ({total.judged})" for total in judged], fontsize=8
    )
    panel.set_xlim(0, 1)
    panel.xaxis.set_major_formatter(PercentFormatter(1))
    panel.set_title(f"right, {title} (95 % interval)", loc="left", fontsize=10, color=INK)
    _plain(panel)


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color=GRID)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=8, colors=INK)
