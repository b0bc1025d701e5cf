"""What each entry made: odd rows and trades against a slow, plain reference, and as of."""

import json
import random
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS, copied
from tests.scorecard.bots import SETTINGS
from tests.signals.conftest import Bench
from trading_pipelines.candles.windows import DAY, HOUR, day_interval
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.scorecard.entries import Entry, read_entries
from trading_pipelines.scorecard.score import band, days_needed, score
from trading_pipelines.signals.catalogue import CONFIRM_OUTCOMES, REJECT_OUTCOMES

START = datetime(2026, 6, 1, tzinfo=UTC)
END = START + 90 * DAY
SETTLED = timedelta(hours=72)
STAKE = 1_000_000


class Bot:
    """Writes decisions with their outcomes by the exits, and trades."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.decisions: list[dict[str, Any]] = []
        self.trades: list[dict[str, Any]] = []

    def decide(
        self,
        at: datetime,
        decision: str = "CONFIRM",
        krw: int | None = 1000,
        *,
        exit_at: datetime | None = None,
        symbol: str = "KRW-BTC",
        regime: str = "BULL",
        model: str | None = "sonnet",
        reason: str = "volume",
        confidence: int | None = 70,
    ) -> int:
        self.decisions.append(
            {
                "id": len(self.decisions) + 1, "at": at, "decision": decision, "krw": krw,
                "exit_at": exit_at or at + HOUR, "symbol": symbol, "regime": regime,
                "model": model, "reason": reason, "confidence": confidence,
            }
        )  # fmt: skip
        return len(self.decisions)

    def trade(
        self,
        at: datetime | None,
        side: str = "BUY",
        price: int | str = 100,
        quantity: str = "10000",
        *,
        fee: str | None = "500",
        symbol: str = "KRW-BTC",
        status: str = "FILLED",
    ) -> None:
        self.trades.append(
            {
                "id": UUID(int=len(self.trades) + 1), "at": at, "side": side,
                "price": Decimal(price), "quantity": Decimal(quantity),
                "fee": None if fee is None else Decimal(fee), "symbol": symbol, "status": status,
            }
        )  # fmt: skip

    def write(self) -> None:
        with self.connection.cursor() as cursor:
            with cursor.copy(
                "COPY agent_decisions (id, symbol, strategy_name, decision, confidence, "
                "model_used, created_at) FROM STDIN"
            ) as copy:
                for d in self.decisions:
                    copy.write_row((d["id"], d["symbol"], "test", d["decision"], d["confidence"],
                                    d["model"], d["at"]))  # fmt: skip
            for name in ("CONFIRM", "REJECT"):
                with cursor.copy(
                    f"COPY trading_pipelines.{name.lower()}_outcomes (symbol, day, decision_id, "
                    "decided_at, regime, model, reason_family, state, exit_at, result_krw) "
                    "FROM STDIN"
                ) as copy:
                    for d in self.decisions:
                        if d["decision"] == name:
                            copy.write_row(
                                (d["symbol"], d["at"].date(), d["id"], d["at"], d["regime"],
                                 d["model"], d["reason"], "completed", d["exit_at"], d["krw"])
                            )  # fmt: skip
            with cursor.copy(
                "COPY trading_history (id, symbol, side, order_type, price, quantity, fee, "
                "status, executed_at) FROM STDIN"
            ) as copy:
                for t in self.trades:
                    copy.write_row((t["id"], t["symbol"], t["side"], "MARKET", t["price"],
                                    t["quantity"], t["fee"], t["status"], t["at"]))  # fmt: skip

    def read(self, as_of: datetime = END) -> dict[int, Entry]:
        found = read_entries(self.connection, START, END, as_of, SETTINGS)
        return {one.id: one for one in found.entries}


@pytest.fixture
def bot(connection: psycopg.Connection) -> Bot:
    """A bot with an empty database."""
    return Bot(connection)


def plain_results(bot: Bot, as_of: datetime) -> dict[int, tuple[int, int]]:  # noqa: C901
    """Return stake and result of each judged decision, found by looking at everything each time."""
    kept: list[dict[str, Any]] = []
    for one in sorted(bot.decisions, key=lambda d: (d["at"], d["id"])):
        repeated = [
            k for k in kept[-100:]
            if (k["symbol"], k["decision"], k["model"])
            == (one["symbol"], one["decision"], one["model"])
            and (one["at"] - k["at"]).total_seconds() <= 10
        ]  # fmt: skip
        if not repeated and one["at"] < as_of and one["decision"] in {"CONFIRM", "REJECT"}:
            kept.append(one)
    confirmed = {s: [d for d in kept if d["decision"] == "CONFIRM" and d["symbol"] == s]
                 for s in SYMBOLS}  # fmt: skip
    owner: dict[UUID, int] = {}
    left: dict[UUID, Decimal] = {}
    made: defaultdict[UUID, Fraction] = defaultdict(Fraction)
    filled = [
        t for t in bot.trades
        if t["status"] == "FILLED" and t["at"] and t["at"] <= as_of and t["price"] > 0
    ]  # fmt: skip
    filled.sort(key=lambda t: (t["at"], t["side"], str(t["id"])))
    for trade in filled:
        if trade["side"] == "BUY":
            left[trade["id"]] = trade["quantity"]
            asked = [
                d for d in confirmed[trade["symbol"]]
                if 0 <= (trade["at"] - d["at"]).total_seconds() <= 300
            ]  # fmt: skip
            if asked:
                owner[trade["id"]] = asked[-1]["id"]
            continue
        to_sell = trade["quantity"]
        got = Fraction(trade["price"]) - Fraction(trade["fee"] or 0) / Fraction(trade["quantity"])
        for buy in [t for t in filled if left.get(t["id"]) and t["symbol"] == trade["symbol"]]:
            part = min(to_sell, left[buy["id"]])
            if not part:
                break
            paid = Fraction(buy["price"]) + Fraction(buy["fee"] or 0) / Fraction(buy["quantity"])
            made[buy["id"]] += Fraction(part) * (got - paid)
            to_sell -= part
            left[buy["id"]] -= part
            if left[buy["id"]] * 100 <= buy["quantity"]:
                left[buy["id"]] = Decimal(0)
    found = {}
    bought = [t for t in filled if t["id"] in owner]
    for one in kept:
        if one["at"] + SETTLED > as_of:
            continue
        buys = [t for t in bought if owner[t["id"]] == one["id"]]
        if buys and not any(left[t["id"]] for t in buys):
            stake = sum((Fraction(t["price"]) * Fraction(t["quantity"]) for t in buys), Fraction())
            found[one["id"]] = round(stake), round(sum((made[t["id"]] for t in buys), Fraction()))
        elif one["krw"] is not None and one["exit_at"] <= as_of:
            found[one["id"]] = STAKE, one["krw"]
    return found


def test_ten_thousand_decisions_come_to_the_same_as_by_a_plain_reference_to_the_won(
    bot: Bot,
) -> None:
    chance = random.Random(20)
    for number in range(10_000):
        at = START + timedelta(seconds=chance.uniform(0, 90 * 86400))
        symbol = chance.choice(SYMBOLS)
        is_confirmed = chance.random() < 0.3
        words: dict[str, Any] = {
            "symbol": symbol,
            "regime": chance.choice(["BULL", "SIDEWAYS", "BEAR", "UNKNOWN"]),
            "model": chance.choice(["sonnet", "haiku", None]),
            "reason": chance.choice(["volume", "trend", "other"]),
            "confidence": chance.choice([None, 0, 49, 50, 65, 79, 80, 100]),
        }
        krw = chance.choice([None, 0, *(round(chance.gauss(0, 25_000)) for _ in range(20))])
        leaves = at + timedelta(hours=chance.choice([0.2, 5, 71.9]))
        for _ in range(2 if chance.random() < 0.02 else 1):
            bot.decide(at, "CONFIRM" if is_confirmed else "REJECT", krw, exit_at=leaves, **words)
            at += timedelta(seconds=3)
        if number % 50 == 0:
            bot.decide(at, chance.choice(["SAFE", "WARNING"]), **words)
        if (is_confirmed and chance.random() < 0.25) or chance.random() < 0.02:
            trade(bot, chance, at, symbol)
    bot.write()
    for as_of in (END, START + 45 * DAY):
        expected = plain_results(bot, as_of)
        entries = bot.read(as_of)
        judged = {n: e for n, e in entries.items() if e.result_krw is not None}
        mine: dict[int, Any] = {n: (e.stake_krw, e.result_krw) for n, e in judged.items()}
        assert mine == expected
        assert sum(e.by_trades for e in judged.values()) > 100
        compare(bot, entries, expected)


def trade(bot: Bot, chance: random.Random, at: datetime, symbol: str) -> None:
    """Buy in one or two orders, and sell in parts, some too late, some never, some without dust."""
    quantities = [Decimal(chance.randrange(1, 900)) / 100 for _ in range(chance.choice([1, 1, 2]))]
    for quantity in quantities:
        at += timedelta(seconds=chance.uniform(0.5, 100))
        bot.trade(at, "BUY", chance.randrange(90_000, 110_000), f"{quantity}",
                  fee=chance.choice([None, "0.05", "51.33"]), symbol=symbol)  # fmt: skip
    whole = sum(quantities)
    if chance.random() < 0.1:
        return
    parts = [whole * Decimal("0.4"), whole * Decimal(chance.choice(["0.6", "0.597", "0.3"]))]
    for part in parts:
        at += timedelta(hours=chance.uniform(0.1, 40))
        price = chance.randrange(90_000, 110_000)
        bot.trade(at, "SELL", price, f"{part:.4f}", fee="12.5", symbol=symbol)
    if chance.random() < 0.05:
        bot.trade(at, "SELL", status="CANCELLED", symbol=symbol)
        bot.trade(None, "BUY", symbol=symbol)


def compare(bot: Bot, entries: dict[int, Entry], expected: dict[int, tuple[int, int]]) -> None:
    """Add up each group by hand, and compare it with the scorecard's to the won."""
    rows = {d["id"]: d for d in bot.decisions}
    keys: dict[str, Callable[[Any], str]] = {
        "model": lambda d: d["model"] or "not named",
        "regime": lambda d: d["regime"],
        "symbol": lambda d: d["symbol"],
        "reason": lambda d: d["reason"],
        "confidence": lambda d: band(d["confidence"]),
    }
    totals: defaultdict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for number in entries:
        row = rows[number]
        places = [("all", "all"), *((name, key(row)) for name, key in keys.items())]
        for grouping, name in places:
            for side in (row["decision"], "every"):
                total = totals[grouping, name, side]
                stake, krw = expected.get(number, (0, 0))
                total[0] += 1
                total[1] += number in expected
                total[2] += stake
                total[3] += krw
    for one in score(list(entries.values()), 30):
        if one.grouping == "flag":
            continue
        sides = {"CONFIRM": one.taken, "REJECT": one.refused, "every": one.every}
        for name, side in sides.items():
            mine = [side.entries, side.judged, side.stake_krw, side.krw]
            assert mine == totals.pop((one.grouping, one.name, name), [0, 0, 0, 0])
        assert one.saved_krw == -one.refused.krw
    assert not totals


def test_a_confirm_is_judged_by_its_own_closed_trades_else_by_the_exits(bot: Bot) -> None:
    at = START + DAY
    traded = bot.decide(at, krw=-777)
    bot.trade(at + timedelta(seconds=2))
    bot.trade(at + 2 * HOUR, "SELL", 105, "4000", fee="100")
    bot.trade(at + 3 * HOUR, "SELL", 106, "6000", fee="100")
    half_sold = bot.decide(at + DAY, krw=-778)
    bot.trade(at + DAY, "BUY")
    bot.trade(at + DAY + HOUR, "SELL", 200, "5000")
    without = bot.decide(at + 2 * DAY, krw=-779)
    bot.trade(at + 2 * DAY + timedelta(seconds=301), "BUY", symbol="KRW-BTC")
    bot.write()
    entries = bot.read()
    assert entries[traded].by_trades
    assert entries[traded].stake_krw == 1_000_000
    assert entries[traded].result_krw == 20_000 + 36_000 - 500 - 200
    assert entries[traded].exit_return == pytest.approx(-777e-6), "as a rejection is measured"
    assert entries[half_sold].result_krw == -778
    assert entries[without].result_krw == -779
    assert not entries[half_sold].by_trades
    assert not entries[without].by_trades
    found = read_entries(bot.connection, START, END, END, SETTINGS)
    assert (found.doubled, found.undecided) == (0, 1)


def test_nothing_is_known_before_it_happened_and_before_its_time_limit(bot: Bot) -> None:
    at = START + DAY
    number = bot.decide(at, krw=-777, exit_at=at + 72 * HOUR)
    bot.trade(at + timedelta(seconds=2))
    bot.trade(at + 80 * HOUR, "SELL", 105)
    stopped = bot.decide(at + 5 * DAY, "REJECT", exit_at=at + 5 * DAY + HOUR)
    by_longer_exits = bot.decide(at + 10 * DAY, "REJECT", exit_at=at + 20 * DAY)
    bot.write()
    over = at + 5 * DAY + 72 * HOUR
    assert bot.read(over - timedelta(seconds=1))[stopped].result_krw is None, "others are not over"
    assert bot.read(over)[stopped].result_krw == 1000
    assert bot.read(at + 19 * DAY)[by_longer_exits].result_krw is None
    assert bot.read(at + 20 * DAY)[by_longer_exits].result_krw == 1000
    assert bot.read(at) == {}, "it is not decided"
    assert bot.read(at + 72 * HOUR - timedelta(seconds=1))[number].result_krw is None
    assert bot.read(at + 72 * HOUR)[number].result_krw == -777, "its position is still open"
    assert bot.read(at + 80 * HOUR)[number].by_trades


def test_odd_rows_of_the_bots_leave_their_neighbours_alone(bot: Bot) -> None:
    at = START + DAY
    absurd = bot.decide(at, krw=10**12)
    doubled = bot.decide(at + HOUR)
    bot.decide(at + HOUR + timedelta(seconds=9))
    again = bot.decide(at + HOUR + timedelta(minutes=1))
    unjudged = bot.decide(at + 2 * HOUR, krw=None)
    bot.trade(at, "BUY", "0", symbol="KRW-ETH")
    bot.trade(at, "HOLD", symbol="KRW-ETH")
    bot.trade(at + DAY, "SELL", symbol="KRW-SOL")
    bot.write()
    change = "ALTER TABLE {} ALTER COLUMN {} TYPE text"
    for table, column in (
        ("agent_decisions", "confidence"), ("agent_decisions", "price_at_decision"),
        ("trading_history", "price"), ("trading_history", "quantity"), ("trading_history", "fee"),
    ):  # fmt: skip
        bot.connection.execute(change.format(table, column))
    bot.connection.execute("UPDATE agent_decisions SET confidence = 'about 80' WHERE id = %s",
                           [doubled])  # fmt: skip
    bot.connection.execute("UPDATE trading_history SET price = 'NaN' WHERE side = 'HOLD'")
    entries = bot.read()
    assert list(entries) == [absurd, doubled, again, unjudged]
    assert entries[absurd].result_krw is entries[unjudged].result_krw is None
    assert (entries[doubled].confidence, entries[again].confidence) == (None, 70)
    assert entries[doubled].result_krw == entries[again].result_krw == 1000


def test_a_price_that_is_a_word_leaves_the_other_decisions_of_its_day_judged(
    server: EmbeddedServer, computed_template: str
) -> None:
    with connect(copied(server, computed_template)) as connection:
        bench = Bench(connection, SETTINGS)
        connection.execute("ALTER TABLE agent_decisions ALTER COLUMN price_at_decision TYPE text")
        connection.execute(
            "INSERT INTO agent_decisions (symbol, strategy_name, decision, created_at, regime, "
            "price_at_decision) SELECT 'KRW-BTC', 'test', decision, '2025-09-10T03:10Z', 'BULL', "
            "price FROM unnest(ARRAY['n/a', '1e40', NULL]) AS price, "
            "unnest(ARRAY['CONFIRM', 'REJECT']) AS decision"
        )
        for signal in (CONFIRM_OUTCOMES, REJECT_OUTCOMES):
            (found,) = bench.compute(signal, ["KRW-BTC"], datetime(2025, 9, 10, tzinfo=UTC).date())
            assert found.error is None
            prices = connection.execute(
                f"SELECT DISTINCT price, result_krw FROM trading_pipelines.{signal.asset}"
            ).fetchall()
            assert len(prices) == 1, "that of the last close for all three"


def test_the_stake_is_by_the_settings_that_the_outcome_was_computed_by(bot: Bot) -> None:
    at = START + DAY
    number = bot.decide(at, "REJECT", 3000)
    bot.write()
    bot.connection.execute(
        "INSERT INTO trading_pipelines.signal_settings VALUES ('reject_outcomes', 'then', %s)",
        [Jsonb({"reject_outcomes.notional_krw": 300_000, "regimes.BULL": {"size": 0.5}})],
    )
    bot.connection.execute(
        "INSERT INTO trading_pipelines.signal_coverage (asset, symbol, day, run_id, "
        "settings_digest) VALUES ('reject_outcomes', 'KRW-BTC', %s, 'run', 'then')",
        [at.date()],
    )
    assert bot.read()[number].stake_krw == 150_000
    assert bot.read()[number].exit_return == pytest.approx(0.02)


@pytest.mark.parametrize(
    ("minutes", "is_flagged"), [(-61, None), (-1, None), (0, True), (59, True), (60, False)]
)
def test_the_flag_is_the_published_one_that_the_bot_found_then(
    bot: Bot, minutes: int, *, is_flagged: bool | None
) -> None:
    at = START + DAY
    number = bot.decide(at + timedelta(minutes=minutes))
    bot.write()
    for hours, flag, horizon in ((0, True, 24), (1, False, 24), (0, False, 1), (-3, False, 24)):
        bot.connection.execute(
            "INSERT INTO trading_pipelines.volatility_forecast (symbol, as_of, horizon, "
            "valid_until, model_day, status, is_high_volatility) "
            "VALUES ('KRW-BTC', %s, %s, %s, %s, 'OK', %s)",
            [at + HOUR * hours, horizon, at + DAY, at.date(), flag],
        )
    assert bot.read()[number].is_flagged is is_flagged


def test_every_figure_uses_nothing_that_came_later(
    server: EmbeddedServer, computed_template: str
) -> None:
    """The recording, decisions and trades; all after the moment is nonsense, byte for byte."""
    as_of = day_interval(LAST_DAY).start - 4 * DAY + 7 * HOUR
    start = day_interval(FIRST_DAY).start
    chance = random.Random(5)
    with connect(copied(server, computed_template)) as connection:
        bench = Bench(connection, SETTINGS)
        bot = Bot(connection)
        for _ in range(300):
            at = start + timedelta(seconds=chance.uniform(7200, 18 * 86400))
            decision = chance.choice(["CONFIRM", "REJECT"])
            connection.execute(
                "INSERT INTO agent_decisions (symbol, strategy_name, decision, reasoning, "
                "confidence, model_used, created_at, regime) "
                "VALUES (%s, 'test', %s, '거래량', %s, 'sonnet', %s, %s)",
                [symbol := chance.choice(SYMBOLS[:2]), decision, chance.randrange(40, 100), at,
                 chance.choice(["BULL", None])],
            )  # fmt: skip
            if decision == "CONFIRM" and chance.random() < 0.5:
                bot.trade(at + timedelta(seconds=5), "BUY", 100, symbol=symbol)
                bot.trade(at + timedelta(hours=chance.uniform(1, 100)), "SELL", 104, symbol=symbol)
        bot.write()

        def figures() -> str:
            for signal in (CONFIRM_OUTCOMES, REJECT_OUTCOMES):
                found = bench.compute(signal, SYMBOLS[:2], FIRST_DAY, LAST_DAY)
                assert not [one.error for one in found if one.error]
            entries = read_entries(connection, start, as_of + DAY, as_of, SETTINGS)
            comparisons = score(entries.entries, days_needed(SETTINGS))
            return json.dumps([entries, *(c.figures() for c in comparisons)], default=str)

        then = figures()
        assert figures() == then, "the same again"
        assert '"by_trades": true' in then or "True" in then
        connection.execute(
            "UPDATE market_data SET high_price = high_price * 9, low_price = low_price / 9, "
            "close_price = close_price / 2, open_price = open_price * 2 WHERE timestamp >= %s",
            [as_of],
        )
        connection.execute("UPDATE trading_history SET price = price * 7, side = 'SELL' "
                           "WHERE executed_at > %s", [as_of])  # fmt: skip
        connection.execute("UPDATE agent_decisions SET confidence = 1, decision = 'CONFIRM' "
                           "WHERE created_at >= %s", [as_of])  # fmt: skip
        connection.execute("UPDATE trading_pipelines.volatility_forecast "
                           "SET is_high_volatility = NOT is_high_volatility WHERE as_of > %s",
                           [as_of])  # fmt: skip
        connection.execute("UPDATE trading_pipelines.regime_labels SET label = 'BEAR' "
                           "WHERE hour >= %s", [as_of])  # fmt: skip
        connection.execute("DELETE FROM trading_pipelines.confirm_outcomes")
        connection.execute("DELETE FROM trading_pipelines.reject_outcomes")
        assert figures() == then
