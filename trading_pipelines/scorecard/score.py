"""The scorecard: what was taken, what was refused and every entry, and what that proves.

Pure arithmetic. Money is exact (Decimal, KRW); intervals come from a bootstrap over whole Korean
days, because the entries of a day are not independent, with a fixed seed. What a single entry made
is found in `entries`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from trading_pipelines.korean_time import KST
from trading_pipelines.scorecard.entries import Entry
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.regimes.regime import Regime
from trading_pipelines.signals.rejections.exit_rules import ExitRules, exit_rules_of

EDGE = 0.03
"""How much better an entry that is taken does than one that is refused, of its stake, to be found
with a probability of `POWER`."""
# Where all days weigh the same; with two to eight entries a day 88 % was measured.
POWER = 0.9
LEVEL = 0.05
"""What is claimed though there is nothing: an interval has 1 - LEVEL."""
# A bootstrap over fewer days is too sure of itself.
FEWEST_DAYS = 20
FEWEST_DAYS_OF_AN_INTERVAL = 5
DRAWS, DRAWS_AT_ONCE, SEED = 10_000, 1_000, 20
BANDS = (0, 50, 60, 70, 80, 90)
"""The lower ends of the bands of confidence, percent; the last ends with 100."""
NOT_GIVEN = "not given"

# What is summed up for each day, group and side; the last five are of confidence and being right.
COUNTED, RETURN, KRW, STAKE, TOLD, RIGHT, X, XX, XY = range(9)
SUMS = 9
# Squares of percents: less than this is one confidence, and rounding.
SAME_CONFIDENCE = 1e-6
Floats = NDArray[np.float64]


class Verdict(StrEnum):
    """Whether what was taken did better than what was refused."""

    SKILL = "skill"
    HARM = "worse than chance"
    NO_EDGE = "no edge of 3 %"
    """Chance explains it, and would not if there were one."""
    CANNOT_TELL = "cannot be told yet"


class Estimate(NamedTuple):
    """A figure and its interval; None where it is not known."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Side:
    """The entries of one side: those taken, those refused, or both; sums are of the judged."""

    entries: int
    judged: int
    by_trades: int
    won: int
    stake_krw: Decimal
    krw: Decimal
    mean_return: Estimate
    """An entry's, by the exits: the same measure for what was taken and what was refused."""


@dataclass(frozen=True)
class Comparison:
    """One group of entries: taken, refused and every entry, side by side."""

    grouping: str
    name: str
    verdict: Verdict
    days: int
    """Korean days with an entry judged by the exits, of the side that has fewer."""
    days_needed: int | None
    """Such days on each side that it takes to find EDGE; None without exits in the settings."""
    taken: Side
    refused: Side
    every: Side
    edge: Estimate
    """Mean return of the taken less that of the refused."""
    saved_low: float | None
    saved_high: float | None
    confidence: float | None
    right: Estimate
    slope: Estimate
    """How much more often right for one percent more confidence, within each side."""

    @property
    def saved_krw(self) -> Decimal:
        """What refusing saved, KRW; below 0 what it cost."""
        return -self.refused.krw

    @property
    def saved_share(self) -> float | None:
        """What refusing saved of what was at stake in it."""
        stake = self.refused.stake_krw
        return _rounded(float(self.saved_krw / stake)) if stake else None

    @property
    def chance_krw(self) -> Decimal | None:
        """What refusing as much at random would have saved."""
        if not self.every.stake_krw:
            return None
        chance = -self.refused.stake_krw * self.every.krw / self.every.stake_krw
        return chance.quantize(Decimal(1))

    def figures(self) -> dict[str, Any]:
        """Return it under the names of the columns of `ai_scorecard`."""
        taken, refused, every = self.taken, self.refused, self.every
        return {
            "grouping": self.grouping,
            "name": self.name,
            "verdict": str(self.verdict),
            "days": self.days,
            "days_needed": self.days_needed,
            "taken": taken.entries,
            "taken_judged": taken.judged,
            "taken_by_trades": taken.by_trades,
            "taken_won": taken.won,
            "taken_stake_krw": taken.stake_krw,
            "taken_krw": taken.krw,
            **_bounds("taken_return", taken.mean_return),
            "refused": refused.entries,
            "refused_judged": refused.judged,
            "refused_won": refused.won,
            "refused_stake_krw": refused.stake_krw,
            "refused_krw": refused.krw,
            **_bounds("refused_return", refused.mean_return),
            "every_stake_krw": every.stake_krw,
            "every_krw": every.krw,
            **_bounds("every_return", every.mean_return),
            **_bounds("edge", self.edge),
            "saved_krw": self.saved_krw,
            "saved_krw_low": self.saved_low,
            "saved_krw_high": self.saved_high,
            "saved_share": self.saved_share,
            "chance_krw": self.chance_krw,
            "confidence": self.confidence,
            "right_share": self.right.value,
            "right_low": self.right.low,
            "right_high": self.right.high,
            **_bounds("confidence_slope", self.slope),
        }


def _bounds(name: str, estimate: Estimate) -> dict[str, float | None]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def days_needed(settings: StrategySettings) -> int | None:
    """Return on how many days each side needs an entry, that EDGE is found with POWER.

    For the worst case that the exits allow: an entry makes the target or loses the stop with even
    chances (no spread between the two is wider), all entries of a side on a day do the same, and
    the sides differ as if by themselves. So it depends on nothing that is still to be measured.
    None where no exits can be read: then nothing is judged.
    """
    rules = [exit_rules_of(settings, regime) for regime in Regime]
    widths = [
        float(exits.take_profit + exits.stop_loss)
        for exits in rules
        if isinstance(exits, ExitRules)
    ]
    if not widths:
        return None
    spread, days = max(widths) / 2, FEWEST_DAYS
    while sum(stats.t.ppf([1 - LEVEL / 2, POWER], days - 1)) * spread * (2 / days) ** 0.5 > EDGE:
        days += 1
    return days


def score(entries: Sequence[Entry], needed: int | None) -> list[Comparison]:
    """Return the comparison of all entries, those of each group, and the volatility flag's.

    `needed` is `days_needed`. The same entries give the same figures to the last digit.
    """
    groups = list(_groups(entries))
    days, rows = _numbered_days(entries), _summed(entries)
    sums = np.stack([_daily(rows, days, group.sides) for group in groups], axis=1)
    draws = _drawn(sums)
    of_days = (sums[..., COUNTED] > 0).sum(axis=0).min(axis=-1)
    enough = of_days >= (np.inf if needed is None else needed)
    # Of all groups together no more is claimed for nothing than of one.
    parts = sum(bool(told) for told, group in zip(enough, groups, strict=True) if group.is_part)
    return [
        _compared(
            group,
            [entry for entry, side in zip(entries, group.sides, strict=True) if side == TAKEN],
            [entry for entry, side in zip(entries, group.sides, strict=True) if side == REFUSED],
            sums[:, n],
            draws[n],
            LEVEL / max(parts, 1) if group.is_part else LEVEL,
            days=int(of_days[n]),
            needed=needed,
        )
        for n, group in enumerate(groups)
    ]


TAKEN, REFUSED, LEFT_OUT = 0, 1, -1


class _Group(NamedTuple):
    grouping: str
    name: str
    sides: NDArray[np.int64]
    """Of each entry: TAKEN, REFUSED or LEFT_OUT."""
    is_part: bool
    """It is one of several of the AI's that are looked at beside each other."""


def _groups(entries: Sequence[Entry]) -> Iterator[_Group]:
    decided = np.array([TAKEN if e.is_confirmed else REFUSED for e in entries], dtype=np.int64)
    flags = {None: LEFT_OUT, True: REFUSED, False: TAKEN}
    flagged = np.array([flags[entry.is_flagged] for entry in entries], dtype=np.int64)
    yield _Group("all", "all", decided, is_part=False)
    keys = {
        "model": [entry.model for entry in entries],
        "regime": [entry.regime for entry in entries],
        "symbol": [entry.symbol for entry in entries],
        "reason": [entry.reason for entry in entries],
        "confidence": [band(entry.confidence) for entry in entries],
    }
    for grouping, of_entries in keys.items():
        names = np.array(of_entries, dtype=object)
        for name in sorted(set(of_entries)):
            sides = np.where(names == name, decided, LEFT_OUT)
            yield _Group(grouping, name, sides, is_part=True)
    yield _Group("flag", "every entry", flagged, is_part=False)
    confirmed = np.where(decided == TAKEN, flagged, LEFT_OUT)
    yield _Group("flag", "confirmed", confirmed, is_part=False)


def band(confidence: float | None) -> str:
    """Return the band of confidence in words: 60-69, 90-100."""
    if confidence is None:
        return NOT_GIVEN
    place = max(n for n, low in enumerate(BANDS) if confidence >= low)
    end = BANDS[place + 1] - 1 if place + 1 < len(BANDS) else 100
    return f"{BANDS[place]}-{end}"


def _numbered_days(entries: Sequence[Entry]) -> NDArray[np.int64]:
    """Return each entry's Korean day, numbered from 0 in the order of time."""
    ordinals = [entry.decided_at.astimezone(KST).toordinal() for entry in entries]
    return np.unique(np.array(ordinals, dtype=np.int64), return_inverse=True)[1].reshape(-1)


def _summed(entries: Sequence[Entry]) -> Floats:
    """Return what each entry adds to the sums: a row an entry, a column a sum."""
    rows = np.zeros((len(entries), SUMS))
    for row, entry in zip(rows, entries, strict=True):
        if entry.result_krw is None or entry.stake_krw is None:
            continue
        row[[KRW, STAKE]] = float(entry.result_krw), float(entry.stake_krw)
        if entry.exit_return is None:
            continue
        row[[COUNTED, RETURN]] = 1, entry.exit_return
        if entry.confidence is not None and entry.exit_return:
            right, x = float((entry.exit_return > 0) == entry.is_confirmed), entry.confidence
            row[[TOLD, RIGHT, X, XX, XY]] = 1, right, x, x * x, x * right
    return rows


def _daily(rows: Floats, days: NDArray[np.int64], sides: NDArray[np.int64]) -> Floats:
    """Return the sums by day (first axis), side and what is summed."""
    count = int(days.max(initial=-1)) + 1
    member = sides != LEFT_OUT
    place = days[member] * 2 + sides[member]
    sums = np.zeros((count * 2, SUMS))
    for n in range(SUMS):
        sums[:, n] = np.bincount(place, rows[member, n], count * 2)
    return sums.reshape(count, 2, SUMS)


def _drawn(sums: Floats) -> Floats:
    """Return by group the sums of `DRAWS` bootstrap samples of whole days.

    `sums` are by day, group, side and what is summed, the returned by group, sample and so on.
    """
    days, groups = sums.shape[:2]
    if not days:
        return np.zeros((groups, 0, *sums.shape[2:]))
    chance, flat = np.random.default_rng(SEED), sums.reshape(days, -1)
    drawn = np.empty((groups, DRAWS, *sums.shape[2:]))
    for start in range(0, DRAWS, DRAWS_AT_ONCE):
        often = chance.multinomial(days, np.full(days, 1 / days), size=DRAWS_AT_ONCE)
        summed = (often @ flat).reshape(DRAWS_AT_ONCE, *sums.shape[1:])
        drawn[:, start : start + DRAWS_AT_ONCE] = summed.swapaxes(0, 1)
    return drawn


def _compared(
    group: _Group,
    taken: Sequence[Entry],
    refused: Sequence[Entry],
    sums: Floats,
    draws: Floats,
    level: float,
    *,
    days: int,
    needed: int | None,
) -> Comparison:
    counted, told = sums[..., COUNTED], sums[..., TOLD].sum(axis=1)
    whole = sums.sum(axis=0)
    of_taken, of_refused = (_effective_days(counted[:, side]) for side in (TAKEN, REFUSED))
    taken_return, refused_return = (
        _estimate(_mean(whole[side]), _mean(draws[:, side]), _effective_days(counted[:, side]))
        for side in (TAKEN, REFUSED)
    )
    of_every = _effective_days(counted.sum(axis=1))
    every_return = _estimate(
        _mean(whole.sum(axis=0)), _mean(draws[:, TAKEN] + draws[:, REFUSED]), of_every
    )
    edge = _estimate(_edge(whole), _edge(draws), min(of_taken, of_refused), level)
    saved = _estimate(-whole[REFUSED, KRW], -draws[:, REFUSED, KRW], of_refused)
    right, slope, confidence = Estimate(), Estimate(), None
    if group.grouping != "flag" and told.any():
        of_told = _effective_days(told)
        right = _estimate(_right(whole), _right(draws), of_told)
        confidence = _rounded(whole[:, X].sum() / told.sum())
        if group.grouping == "all":
            slope = _estimate(_slope(whole), _slope(draws), of_told)
    return Comparison(
        group.grouping,
        group.name,
        _verdict(edge, is_enough=needed is not None and days >= needed),
        days,
        needed,
        _side(taken, taken_return),
        _side(refused, refused_return),
        _side([*taken, *refused], every_return),
        edge,
        saved.low,
        saved.high,
        confidence,
        right,
        slope,
    )


def _side(entries: Sequence[Entry], mean_return: Estimate) -> Side:
    judged = [e for e in entries if e.result_krw is not None and e.stake_krw is not None]
    return Side(
        len(entries),
        len(judged),
        sum(entry.by_trades for entry in judged),
        sum(entry.result_krw > 0 for entry in judged if entry.result_krw is not None),
        sum((entry.stake_krw for entry in judged if entry.stake_krw is not None), Decimal()),
        sum((entry.result_krw for entry in judged if entry.result_krw is not None), Decimal()),
        mean_return,
    )


def _verdict(edge: Estimate, *, is_enough: bool) -> Verdict:
    """Return what the interval of the edge proves; nothing below the needed sample."""
    if not is_enough or edge.low is None or edge.high is None:
        return Verdict.CANNOT_TELL
    if edge.low > 0:
        return Verdict.SKILL
    if edge.high < 0:
        return Verdict.HARM
    return Verdict.NO_EDGE if edge.high < EDGE else Verdict.CANNOT_TELL


# Of sums with the sides on the last axis but one, and any number of axes before it.


def _ratio(above: Floats, below: Floats) -> Floats:
    """Return the quotient; NaN where it is of nothing."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.divide(above, below), dtype=float)


def _mean(sums: Floats) -> Floats:
    return _ratio(sums[..., RETURN], sums[..., COUNTED])


def _edge(sums: Floats) -> Floats:
    return _mean(sums[..., TAKEN, :]) - _mean(sums[..., REFUSED, :])


def _right(sums: Floats) -> Floats:
    taken, refused = sums[..., TAKEN, :], sums[..., REFUSED, :]
    return _ratio(taken[..., RIGHT] + refused[..., RIGHT], taken[..., TOLD] + refused[..., TOLD])


def _slope(sums: Floats) -> Floats:
    """Return the slope of being right on confidence, both less their means on the entry's side.

    Otherwise a market in which refusing is right more often would make the slope.
    """
    n, x, y = (np.where(sums[..., TOLD] > 0, sums[..., place], 1) for place in (TOLD, X, RIGHT))
    told = sums[..., TOLD] > 0
    spread = np.where(told, sums[..., XX] - x * x / n, 0).sum(axis=-1)
    common = np.where(told, sums[..., XY] - x * y / n, 0).sum(axis=-1)
    return np.where(spread > SAME_CONFIDENCE, _ratio(common, spread), np.nan)


def _effective_days(counts: Floats) -> float:
    """Return how many days of equal weight tell as much (Kish 1965): one full day tells little."""
    return float(counts.sum() ** 2 / (counts**2).sum()) if counts.any() else 0.0


def _estimate(value: Floats, draws: Floats, days: float, level: float = LEVEL) -> Estimate:
    """Return the figure with its expanded percentile interval.

    Source: Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69
    (2015): the plain percentiles of few blocks are too close to each other.
    """
    finite = draws[np.isfinite(draws)]
    if not np.isfinite(value):
        return Estimate()
    if days < FEWEST_DAYS_OF_AN_INTERVAL or not len(finite):
        return Estimate(_rounded(value))
    tail = stats.norm.cdf(-((days / (days - 1)) ** 0.5) * stats.t.ppf(1 - level / 2, days - 1))
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Estimate(_rounded(value), _rounded(low), _rounded(high))


def _rounded(value: float | np.floating[Any] | Floats) -> float:
    """Return the number to eight digits after the point, the same on every machine."""
    return round(float(value), 8) + 0.0
