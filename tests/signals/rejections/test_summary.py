"""A Korean week of rejections: which decisions are in it, what they come to, when it is due."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from io import BytesIO

import psycopg
import pytest
from PIL import Image

from tests.conftest import STRATEGY, SYMBOLS
from trading_pipelines.candles.windows import DAY
from trading_pipelines.signals.rejections import plots as reject_plots
from trading_pipelines.signals.rejections.summary import (
    Total,
    due_weeks,
    settled_at,
    store,
    summarise,
    week_interval,
)

WEEK = date(2025, 9, 8)
START, END = datetime(2025, 9, 7, 15, tzinfo=UTC), datetime(2025, 9, 14, 15, tzinfo=UTC)
OUTCOME = """
INSERT INTO trading_pipelines.reject_outcomes (symbol, day, decision_id, decided_at, regime, model,
    reason_family, state, price, result_krw, verdict)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, 100, %s, %s)
"""


class Rejections:
    """Outcomes as a run would have stored them."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection
        self.count = 0

    def add(
        self,
        at: datetime,
        krw: int | None,
        symbol: str = "KRW-BTC",
        *,
        state: str = "completed",
        model: str | None = "sonnet",
        reason: str = "volume",
    ) -> None:
        self.count += 1
        verdict = None if krw is None else "saved" if krw < 0 else "cost" if krw else "even"
        self.connection.execute(OUTCOME, [symbol, at.date(), self.count, at, "BULL", model, reason,
                                          state, krw, verdict])  # fmt: skip

    def decide(self, at: datetime, symbol: str) -> None:
        """Refuse as the bot does; the outcome that is added next is this decision's."""
        self.connection.execute(
            "INSERT INTO agent_decisions (symbol, strategy_name, decision, created_at) "
            "VALUES (%s, 'test', 'REJECT', %s)",
            [symbol, at],
        )


@pytest.fixture
def rejections(connection: psycopg.Connection) -> Rejections:
    """An empty database to add outcomes to."""
    return Rejections(connection)


def total(grouping: str, name: str, *numbers: int) -> Total:
    rejections, judged, saved, saved_krw, cost_krw = numbers
    return Total(grouping, name, rejections, judged, saved, Decimal(saved_krw), Decimal(cost_krw))


def test_a_week_is_from_monday_to_monday_in_seoul(rejections: Rejections) -> None:
    assert week_interval(WEEK).start == START
    assert week_interval(WEEK).end == END
    rejections.add(START - timedelta(microseconds=1), -1)
    rejections.add(START, -20)
    rejections.add(END - timedelta(microseconds=1), 300)
    rejections.add(END, 4000)
    made = summarise(rejections.connection, WEEK)
    assert made.totals[0] == total("all", "all", 2, 2, 1, 20, 300)


def test_what_is_pending_even_or_not_judged_is_counted_and_in_no_sum(
    rejections: Rejections,
) -> None:
    at = START + DAY
    rejections.add(at, -700, model=None, reason="trend")
    rejections.add(at, -50, "KRW-ETH")
    rejections.add(at, 200, "KRW-ETH")
    rejections.add(at, 0, "KRW-ETH")
    rejections.add(at, None, "KRW-ETH")
    rejections.add(at, -9999, "KRW-ETH", state="pending")
    assert summarise(rejections.connection, WEEK).totals == [
        total("all", "all", 6, 3, 2, 750, 200),
        total("model", "not named", 1, 1, 1, 700, 0),
        total("model", "sonnet", 5, 2, 1, 50, 200),
        total("reason", "trend", 1, 1, 1, 700, 0),
        total("reason", "volume", 5, 2, 1, 50, 200),
        total("regime", "BULL", 6, 3, 2, 750, 200),
        total("symbol", "KRW-BTC", 1, 1, 1, 700, 0),
        total("symbol", "KRW-ETH", 5, 2, 1, 50, 200),
    ]


def test_the_interval_of_a_hit_rate_is_wilsons() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I: 81 of 263, and 15 of 148.
    for saved, judged, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605)):
        rate = total("all", "all", judged, judged, saved, 0, 0).hit_rate
        assert rate == pytest.approx((saved / judged, low, high), abs=5e-5)
    assert total("all", "all", 3, 0, 0, 0, 0).hit_rate is None


def test_a_week_is_due_when_all_of_it_is_known_and_again_when_an_outcome_changes(
    rejections: Rejections,
) -> None:
    connection, at, now = rejections.connection, START + DAY, END + timedelta(minutes=15)

    def is_due(at: datetime) -> bool:
        return WEEK in due_weeks(connection, STRATEGY, at)

    assert settled_at(WEEK, STRATEGY) == END + DAY
    for symbol in SYMBOLS[:2]:
        rejections.decide(at, symbol)
    rejections.decide(END, "KRW-BTC")
    assert not is_due(now), "nothing has been followed yet"
    rejections.add(at, -700, SYMBOLS[0])
    rejections.add(at, -700, SYMBOLS[1], state="pending")
    assert not is_due(now), "one is still open"
    assert is_due(END + 4 * DAY), "patience has an end"
    connection.execute("UPDATE trading_pipelines.reject_outcomes SET state = 'completed'")
    assert is_due(now)
    assert not is_due(END - timedelta(seconds=1)), "it is not over"
    for _ in range(2):
        store(connection, summarise(connection, WEEK))
        assert not is_due(now)
    connection.execute("UPDATE trading_pipelines.reject_outcomes SET result_krw = -701")
    assert is_due(now)
    assert not is_due(now + 31 * DAY), "it has left the look-back"


def test_a_short_look_back_and_a_long_exit_leave_no_week_out(rejections: Rejections) -> None:
    exit_rules = {"take_profit_pct": 0.1, "stop_loss_pct": 0.1, "max_hours": 700}
    settings = STRATEGY.model_copy(
        update={
            "data": STRATEGY.data.model_copy(update={"look_back_days": 1}),
            "regimes": {"BULL": {"exit": exit_rules}},
        }
    )
    settled = settled_at(WEEK, settings)
    assert settled - END == timedelta(hours=700)
    assert WEEK in due_weeks(rejections.connection, settings, settled)


def test_a_week_without_rejections_is_summed_up_once(rejections: Rejections) -> None:
    assert due_weeks(rejections.connection, STRATEGY, END) == [date(2025, 9, 1), WEEK]
    for week in (date(2025, 9, 1), WEEK):
        made = summarise(rejections.connection, week)
        assert made.totals == [total("all", "all", 0, 0, 0, 0, 0)]
        store(rejections.connection, made)
    assert due_weeks(rejections.connection, STRATEGY, END + DAY) == []


def test_the_headline_says_whether_refusing_paid() -> None:
    won = total("all", "all", 12, 10, 7, 310_000, 186_000)
    assert reject_plots.headline(won) == (
        "Refusing saved 124,000 KRW in 12 weeks: 70% of 10 were right (95 %: 40% to 89%)"
    )
    lost = total("all", "all", 12, 10, 3, 1_000, 186_000)
    assert reject_plots.headline(lost).startswith("Refusing cost 185,000 KRW in 12 weeks: 30%")
    none = total("all", "all", 12, 0, 0, 0, 0)
    assert reject_plots.headline(none) == "None of 12 rejections in 12 weeks has been judged"


def test_the_picture_is_drawn_with_and_without_rejections(rejections: Rejections) -> None:
    for krw in (None, -700, 200):
        if krw:
            rejections.add(START + DAY, krw)
        with Image.open(BytesIO(reject_plots.draw(rejections.connection, WEEK))) as picture:
            assert picture.width == 1067
            assert len(picture.getcolors(256) or []) > 10
