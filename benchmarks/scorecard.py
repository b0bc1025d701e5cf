"""Generated bots on the scorecard: how often it claims skill that is not, and finds what is.

`make bench BENCH=scorecard`; a thousand bots of each kind.
"""

import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.scorecard.bots import SETTINGS, bot
from trading_pipelines.scorecard.score import EDGE, Verdict, days_needed, score

BOTS = 1000


def main() -> None:
    """Print a line for each kind of bot."""
    needed = days_needed(SETTINGS)
    assert needed is not None
    print(f"needed: {needed} days on each side; exits 5 % and 3 %; {BOTS} bots a line")
    for days in (needed, 2 * needed):
        for alike in (0.5, 1.0):
            print(measured(0.0, days, alike, needed), flush=True)
    for alike in (0.5, 1.0):
        print(measured(EDGE, needed, alike, needed), flush=True)


def measured(edge: float, days: int, alike: float, needed: int) -> str:
    """Return in a line what the scorecard says of bots of this kind."""
    started = time.perf_counter()
    found: Counter[str] = Counter()
    chance = random.Random(f"{edge} {days} {alike}")  # noqa: S311 - generated bots
    for _ in range(BOTS):
        comparisons = score(bot(chance, days, edge=edge, alike=alike), needed)
        verdicts = [one.verdict for one in comparisons if one.grouping != "flag"]
        found[verdicts[0]] += 1
        found["anywhere"] += Verdict.SKILL in verdicts
    took = (time.perf_counter() - started) / BOTS
    return (
        f"edge {edge:.0%}, {days} days, {alike:.0%} alike: "
        f"skill {found[Verdict.SKILL] / BOTS:.1%}, "
        f"in it or a group {found['anywhere'] / BOTS:.1%}, "
        f"worse than chance {found[Verdict.HARM] / BOTS:.1%} ({took:.3f} s each)"
    )


if __name__ == "__main__":
    main()
