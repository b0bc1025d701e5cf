"""Realised profit and loss by FIFO: which sales closed which purchases, fees counted.

Pure arithmetic on the bot's orders (KRW, Decimal). Which orders there are is asked in `figures`.
"""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from typing import TypeVar
from uuid import UUID


@dataclass(frozen=True)
class Order:
    """A FILLED order of the bot's; `today` is None where it has no time at all."""

    id: UUID
    symbol: str
    side: str
    price: Decimal
    quantity: Decimal
    fee: Decimal | None
    today: bool | None
    usable: bool = True

    def unit(self) -> Fraction:
        """Return what one unit cost, or brought in, after the fee: a part has its share of it."""
        fee = Fraction(self.fee or 0) / Fraction(self.quantity)
        return Fraction(self.price) + (fee if self.side == "BUY" else -fee)


AnOrder = TypeVar("AnOrder", bound=Order)


@dataclass
class SymbolFigures:
    """What the day's orders of one symbol came to; money in KRW."""

    trades: int = 0
    fees: Decimal = Decimal()
    """Of the day's orders, whether or not they closed anything."""
    trips: list[Decimal] = field(default_factory=list)
    """What each sell realised, after the fees of both sides."""
    unmatched: Decimal = Decimal()
    """Quantity sold with no buy on record: in no figure but `trades` and `fees`."""

    @property
    def pnl(self) -> Decimal:
        """The realised profit or loss."""
        return sum(self.trips, Decimal())

    @property
    def wins(self) -> int:
        """The sells that brought in more than they cost."""
        return sum(trip > 0 for trip in self.trips)


@dataclass
class Trading:
    """What the day's orders came to, and what had to be left out of it."""

    symbols: dict[str, SymbolFigures] = field(default_factory=dict)
    """By symbol, those that had an order in the day."""
    mdd: Decimal | None = None
    undated: int = 0
    """FILLED orders without any time, of the whole history."""
    unusable: int = 0
    """FILLED orders that are neither BUY nor SELL, or of no price or quantity; likewise."""
    fees_unknown: int = 0
    """Orders without a fee that the day's figures rest on, earlier buys included; it counts 0."""


def match(orders: Iterable[Order]) -> Trading:
    """Match sells with the oldest buys left of their symbol; `orders` in order of execution.

    Exact until a sell's result is written down as a Decimal: thirds of a fee add up again.
    """
    trading = Trading()
    lots: defaultdict[str, deque[tuple[Order, Decimal]]] = defaultdict(deque)
    without_fee: set[UUID] = set()
    totals = [Decimal()]
    for order in orders:
        if order.today is None or not order.usable:
            trading.undated += order.today is None
            trading.unusable += order.today is not None
            continue
        closed: list[tuple[Order, Decimal]] = []
        unmatched = order.quantity
        if order.side == "BUY":
            lots[order.symbol].append((order, order.quantity))
        else:
            closed, unmatched = close(lots[order.symbol], order.quantity)
        if not order.today:
            continue
        figures = trading.symbols.setdefault(order.symbol, SymbolFigures())
        figures.trades += 1
        figures.fees += order.fee or 0
        involved = (order, *(buy for buy, _ in closed))
        without_fee |= {each.id for each in involved if each.fee is None}
        if order.side == "SELL":
            figures.unmatched += unmatched
        if closed:
            exact = sum(Fraction(part) * (order.unit() - buy.unit()) for buy, part in closed)
            figures.trips.append(Decimal(exact.numerator) / exact.denominator)
            totals.append(totals[-1] + figures.trips[-1])
    trading.fees_unknown = len(without_fee)
    if len(totals) > 1:
        peaks = accumulate(totals, max)
        trading.mdd = max(peak - total for peak, total in zip(peaks, totals, strict=True))
    return trading


def close(
    lots: deque[tuple[AnOrder, Decimal]], quantity: Decimal
) -> tuple[list[tuple[AnOrder, Decimal]], Decimal]:
    """Take `quantity` off the oldest lots; return the parts taken and what is unmatched.

    A lot is a purchase and what is left of it; what is left after this stays in `lots`.
    """
    closed = []
    while quantity and lots:
        buy, open_quantity = lots.popleft()
        part = min(quantity, open_quantity)
        closed.append((buy, part))
        quantity -= part
        if open_quantity > part:
            lots.appendleft((buy, open_quantity - part))
    return closed, quantity
