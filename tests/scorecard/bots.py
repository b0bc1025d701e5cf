"""Generated bots: what their AI decided and what came of it, without skill or with an edge."""

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tests.conftest import STRATEGY
from trading_pipelines.korean_time import KST
from trading_pipelines.scorecard.entries import Entry

EXITS = {"take_profit_pct": 0.05, "stop_loss_pct": 0.03, "max_hours": 72}
SETTINGS = STRATEGY.model_copy(
    update={"regimes": {name: {"exit": EXITS} for name in ("BULL", "SIDEWAYS", "BEAR")}}
)
STAKE = Decimal(1_000_000)
MIDNIGHT = datetime(2026, 6, 1, tzinfo=KST).astimezone(UTC)
"""Of a Korean day."""


def entry(
    number: int,
    at: datetime,
    krw: int | None,
    *,
    is_confirmed: bool,
    symbol: str = "KRW-BTC",
    regime: str = "BULL",
    reason: str = "volume",
    confidence: float | None = 70,
    is_flagged: bool | None = False,
) -> Entry:
    result = None if krw is None else Decimal(krw)
    made = None if result is None else float(result / STAKE)
    return Entry(
        number, symbol, at, is_confirmed, regime, "sonnet", reason, confidence, is_flagged,
        None if krw is None else STAKE, result, made, by_trades=False,
    )  # fmt: skip


def bot(
    chance: random.Random, days: int, *, edge: float = 0.0, alike: float = 0.5, most: int = 6
) -> list[Entry]:
    """Return the entries of a bot whose AI decides by the mood of the day, not by the market.

    Of two entries of a day and a decision, a share `alike` ends as the day does. `edge` is how much
    more an entry that is taken makes on average; each day has entries of both decisions.
    """
    target, stop = 0.05 - 0.001, -0.03 - 0.001
    entries: list[Entry] = []
    # Of an edge, half is what the taken make more, half what the refused make less.
    lift = edge / (target - stop) / 2
    for day in range(days):
        market, mood = chance.gauss(0, 0.15), chance.uniform(0.2, 0.8)
        kinds = [True, False] + [chance.random() < mood for _ in range(chance.randint(0, most))]
        ends = {
            kind: chance.random() < 0.4 + market + (lift if kind else -lift)
            for kind in (True, False)
        }
        for kind in kinds:
            wins = ends[kind]
            if chance.random() >= alike:
                wins = chance.random() < 0.4 + market + (lift if kind else -lift)
            made = target if wins else stop
            entries.append(
                entry(
                    len(entries),
                    MIDNIGHT + timedelta(days=day, hours=chance.uniform(0, 24)),
                    round(made * float(STAKE)),
                    is_confirmed=kind,
                    symbol=chance.choice(["KRW-BTC", "KRW-ETH", "KRW-XRP"]),
                    regime=chance.choice(["BULL", "SIDEWAYS", "BEAR"]),
                    reason=chance.choice(["volume", "trend", "momentum"]),
                    confidence=chance.choice([None, 55, 65, 75, 85, 95]),
                )
            )
    return entries
