"""What 30 and 90 days of scores say of each symbol, and the picture beside them."""

import io
from collections.abc import Sequence
from datetime import date, timedelta

import numpy as np
import psycopg
import pytest
from PIL import Image

from tests.signals.volatility.test_comparison import AS_OF, generated
from trading_pipelines.signals.plotting import THRESHOLD
from trading_pipelines.signals.volatility import plots
from trading_pipelines.signals.volatility.comparison import Comparison, compare, judged
from trading_pipelines.signals.volatility.score import (
    ALL,
    RollingScore,
    not_worse,
    rolling_scores,
    strayed_intervals,
)

NEWEST = date(2025, 8, 31)
SYMBOLS = ["KRW-BTC", "KRW-DOGE"]
QUERY = """
INSERT INTO trading_pipelines.volatility_score (symbol, day, horizon, forecasts, qlike, qlike_garch,
    intervals, covered, flags, flagged, high, flagged_and_high)
VALUES (%s, %s, %s, 24, %s, 1, 24, %s, 24, 4, 3, 2)
"""


def scored(
    connection: psycopg.Connection,
    symbol: str,
    horizon: int,
    days: Sequence[int],
    qlike: float = 0.5,
    covered: int = 22,
) -> None:
    """Store a score for each of the days, counted back from the newest."""
    with connection.cursor() as cursor:
        cursor.executemany(
            QUERY, [(symbol, NEWEST - timedelta(days=n), horizon, qlike, covered) for n in days]
        )


def by_symbol(
    connection: psycopg.Connection, before: date | None = None
) -> dict[tuple[str, int], RollingScore]:
    return {(s.symbol, s.horizon): s for s in rolling_scores(connection, SYMBOLS, before)}


def test_one_bad_symbol_is_named_though_all_together_are_good(
    connection: psycopg.Connection,
) -> None:
    scored(connection, "KRW-BTC", 24, range(30), qlike=0.25)
    scored(connection, "KRW-DOGE", 24, range(30), qlike=1.49)
    scored(connection, "KRW-DOGE", 24, range(30, 60), qlike=0.1)
    scored(connection, "KRW-XRP", 24, range(30), qlike=9.0)  # is not asked for
    rolling = rolling_scores(connection, SYMBOLS)
    assert [(s.symbol, s.is_worse_than_garch) for s in rolling] == [
        (ALL, False), ("KRW-BTC", False), ("KRW-DOGE", True),
    ]  # fmt: skip
    assert not_worse(rolling) == "24 h: 0.87 of GARCH's in 1440 forecasts, worse: KRW-DOGE 1.49"


def test_fewer_than_fourteen_days_of_a_symbol_are_no_verdict(
    connection: psycopg.Connection,
) -> None:
    scored(connection, "KRW-BTC", 1, range(13), qlike=2.0)
    assert not by_symbol(connection)["KRW-BTC", 1].is_worse_than_garch
    scored(connection, "KRW-BTC", 1, [13], qlike=2.0)
    assert by_symbol(connection)["KRW-BTC", 1].is_worse_than_garch
    assert not_worse([]) == "nothing scored yet"


def test_intervals_that_do_not_hold_are_named_where_enough_have_ended(
    connection: psycopg.Connection,
) -> None:
    scored(connection, "KRW-BTC", 1, range(30), covered=19)  # 79 %
    scored(connection, "KRW-BTC", 1, range(30, 90), covered=22)
    scored(connection, "KRW-BTC", 24, range(30), covered=19)  # 30 that do not overlap
    scored(connection, "KRW-DOGE", 24, range(60), covered=24)  # 60
    found = by_symbol(connection)
    assert found["KRW-BTC", 1].coverage == {
        30: pytest.approx(19 / 24), 90: pytest.approx((19 + 2 * 22) / 72),
    }  # fmt: skip
    assert set(found["KRW-BTC", 1].strayed) == {30}, "88 % of 90 days is within"
    assert found["KRW-BTC", 24].strayed == {}
    assert found["KRW-DOGE", 24].strayed == {90: 1.0}
    assert strayed_intervals(list(found.values())) == (
        "KRW-BTC 1 h: 79% of 90 % intervals held in 30 days; "
        "KRW-DOGE 24 h: 100% of 90 % intervals held in 90 days"
    )


def test_the_flag_has_a_precision_a_recall_and_a_base_rate(connection: psycopg.Connection) -> None:
    scored(connection, "KRW-BTC", 1, range(90))
    scored(connection, "KRW-BTC", 1, [90])
    found = by_symbol(connection)["KRW-BTC", 1]
    assert (found.flag_precision, found.flag_recall, found.base_rate) == (1 / 2, 2 / 3, 3 / 24)
    assert found.flags == 90 * 24
    ((recall, coverage),) = connection.execute(
        "SELECT flag_recall, coverage FROM trading_pipelines.volatility_score_90d WHERE day = %s",
        [NEWEST],
    ).fetchall()
    assert (recall, coverage) == (pytest.approx(2 / 3), pytest.approx(22 / 24))


def test_a_day_after_the_moment_is_not_in_it(connection: psycopg.Connection) -> None:
    scored(connection, "KRW-BTC", 1, range(1, 40))
    as_of = by_symbol(connection, NEWEST)
    scored(connection, "KRW-BTC", 1, [0], qlike=50.0, covered=0)
    assert by_symbol(connection, NEWEST) == as_of
    assert by_symbol(connection) != as_of


def test_the_picture_shows_a_warning_in_red_and_draws_the_same_twice(
    connection: psycopg.Connection,
) -> None:
    rows, hourly = generated(900, har=None, garch=0.6)
    rows["probability_high"] = 0.2
    compared = compare({("KRW-BTC", 1): judged(rows, hourly, 1, AS_OF)}, AS_OF)
    scored(connection, "KRW-BTC", 1, range(90))
    good = plots.draw(compared, rolling_scores(connection, ["KRW-BTC"]))
    assert plots.draw(compared, rolling_scores(connection, ["KRW-BTC"])) == good
    connection.execute("UPDATE trading_pipelines.volatility_score SET covered = 10")
    bad = plots.draw(compared, rolling_scores(connection, ["KRW-BTC"]))
    assert [red(png) > 20 for png in (good, bad)] == [False, True]
    assert opened(plots.draw(Comparison(AS_OF, [], []), [])).size[0] == opened(good).size[0] == 1067


def opened(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        return image.convert("RGB")


def red(png: bytes) -> int:
    seen = np.asarray(opened(png), dtype=int)
    return int((abs(seen - list(bytes.fromhex(THRESHOLD[1:]))).max(axis=2) <= 4).sum())
