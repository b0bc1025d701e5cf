"""Generated bots on the scorecard: how often it claims skill that is not, and finds what is.

`make bench BENCH=scorecard`; a thousand bots of each kind.
"""

import random
import sys
import time
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
    for edge, days, alike in [
        *((0.0, days, alike) for days in (needed, 2 * needed) for alike in (0.5, 1.0)),
        *((EDGE, needed, alike) for alike in (0.5, 1.0)),
    ]:
        started, claimed, anywhere, harm = time.perf_counter(), 0, 0, 0
        chance = random.Random(f"{edge} {days} {alike}")  # noqa: S311 - generated bots
        for _ in range(BOTS):
            verdicts = [
                one.verdict
                for one in score(bot(chance, days, edge=edge, alike=alike), needed)
                if one.grouping != "flag"
            ]
            claimed += verdicts[0] is Verdict.SKILL
            harm += verdicts[0] is Verdict.HARM
            anywhere += Verdict.SKILL in verdicts
        took = (time.perf_counter() - started) / BOTS
        print(
            f"edge {edge:.0%}, {days} days, {alike:.0%} alike: skill {claimed / BOTS:.1%}, "
            f"in it or a group {anywhere / BOTS:.1%}, worse than chance {harm / BOTS:.1%} "
            f"({took:.3f} s each)",
            flush=True,
        )


if __name__ == "__main__":
    main()
