"""How candles differ from the exchange's: counts, and how far each value is off.

Pure arithmetic of two sets of candles; `compare` and `history_files` say of which.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from statistics import median

from trading_pipelines.candles.page import Candle

VALUES = Candle._fields[1:]


@dataclass(frozen=True)
class Change:
    """How far stored values are from the exchange's: shares of the larger of both, 0 to 1."""

    values: int
    median: float
    largest: float


@dataclass(frozen=True)
class Comparison:
    """One symbol over an interval; counts of candles.

    `added` is missing here, `changed` differs, `kept` is here and not at the exchange: a repair
    leaves it. `changes` has each value of a candle, None where it did not change anywhere.
    """

    symbol: str
    compared: int
    added: int
    changed: int
    kept: int
    changes: dict[str, Change | None]

    @property
    def is_equal(self) -> bool:
        """Whether both have the same candles, to the digit."""
        return not (self.added or self.changed or self.kept)


class Differences:
    """Counts how a symbol's candles differ, part by part."""

    def __init__(self, symbol: str) -> None:
        self._symbol = symbol
        self._compared = self._added = self._changed = self._kept = 0
        self._shares: dict[str, list[float]] = {name: [] for name in VALUES}

    def add(self, ours: Mapping[datetime, Candle], theirs: Sequence[Candle]) -> None:
        """Count a part: all of our candles by their starts, and all of the exchange's."""
        self._compared += len(theirs)
        self._kept += len(ours.keys() - {candle.start for candle in theirs})
        for candle in theirs:
            before = ours.get(candle.start)
            if before is None:
                self._added += 1
                continue
            differing = dict(_differing_values(before, candle))
            self._changed += bool(differing)
            for name, share in differing.items():
                self._shares[name].append(share)

    def comparison(self) -> Comparison:
        """Return what was counted so far."""
        changes = {
            name: Change(len(of_value), median(of_value), max(of_value)) if of_value else None
            for name, of_value in self._shares.items()
        }
        counts = (self._compared, self._added, self._changed, self._kept)
        return Comparison(self._symbol, *counts, changes)


def _differing_values(ours: Candle, theirs: Candle) -> Iterator[tuple[str, float]]:
    for name in VALUES:
        old: Decimal = getattr(ours, name)
        new: Decimal = getattr(theirs, name)
        if old != new:
            # No share says how far from NaN, which numeric can hold, a number is.
            yield name, float(abs(new - old) / max(abs(old), new)) if old.is_finite() else 1.0
