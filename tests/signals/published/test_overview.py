"""The picture: what can be seen in it, how big it is, and that it never shows the future."""

import io
import threading
from datetime import UTC, date, datetime, timedelta

import numpy as np
import psycopg
import pytest
from PIL import Image

from tests.conftest import FIRST_DAY, LAST_DAY, SYMBOLS
from tests.signals.conftest import Bench
from trading_pipelines.signals.catalogue import (
    GARCH_BASELINE,
    REALIZED_VOLATILITY,
    REGIME_LABELS,
    VOLATILITY_FORECAST,
    VOLATILITY_MODEL,
    VOLATILITY_SCORE,
)
from trading_pipelines.signals.plotting import FORECAST, THRESHOLD
from trading_pipelines.signals.published.overview import OF_HORIZON, SHADES, draw
from trading_pipelines.signals.regimes.regime import Regime

SIGNALS = (REGIME_LABELS, REALIZED_VOLATILITY, VOLATILITY_MODEL, GARCH_BASELINE,
           VOLATILITY_FORECAST, VOLATILITY_SCORE)  # fmt: skip
END = datetime(2025, 9, 22, tzinfo=UTC)


def opened(png: bytes) -> Image.Image:
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return image.convert("RGB")


def pixels(png: bytes, *colours: str) -> list[int]:
    """Return how many pixels are of each colour, or as near as a palette may come to it."""
    seen = np.asarray(opened(png), dtype=int)
    wanted = [list(bytes.fromhex(colour[1:])) for colour in colours]
    return [int((abs(seen - colour).max(axis=2) <= 4).sum()) for colour in wanted]


def filled(bench: Bench, symbols: list[str], first: date, last: date) -> None:
    for signal in SIGNALS:
        assert not [one.error for one in bench.compute(signal, symbols, first, last) if one.error]


def test_five_symbols_are_a_png_of_1067_pixels_and_under_200_kb(bench: Bench) -> None:
    bench.compute(REALIZED_VOLATILITY, SYMBOLS, FIRST_DAY, LAST_DAY)
    filled(bench, SYMBOLS, LAST_DAY - timedelta(days=13), LAST_DAY)
    png = draw(bench.connection, SYMBOLS, END)
    width, height = opened(png).size
    assert width == 1067
    assert 700 < height < 1000
    assert 50_000 < len(png) < 200_000
    assert min(pixels(png, FORECAST, THRESHOLD, OF_HORIZON[0])) > 100, "every line is in it"


def test_empty_tables_are_a_picture_that_says_so(connection: psycopg.Connection) -> None:
    png = draw(connection, SYMBOLS, END)
    assert opened(png).size[0] == 1067
    assert pixels(png, OF_HORIZON[0], SHADES[Regime.BULL]["facecolor"])[0] == 0
    (one,) = {opened(draw(connection, [symbol], END)).size for symbol in SYMBOLS}
    assert one[1] < opened(png).size[1]


def test_what_is_there_is_drawn_without_what_is_not_there_yet(bench: Bench) -> None:
    empty = draw(bench.connection, ["KRW-SOL"], END + timedelta(days=365))
    prices = draw(bench.connection, ["KRW-SOL"], END)
    bench.compute(REALIZED_VOLATILITY, ["KRW-SOL"], FIRST_DAY, LAST_DAY)
    realised = draw(bench.connection, ["KRW-SOL"], END)
    bench.compute(REGIME_LABELS, ["KRW-SOL"], FIRST_DAY, LAST_DAY)
    shaded = draw(bench.connection, ["KRW-SOL"], END)
    assert len({empty, prices, realised, shaded}) == 4


def test_the_shading_is_as_wide_as_the_regime_was_long(bench: Bench) -> None:
    symbols = ["KRW-BTC", "KRW-SOL"]
    bench.compute(REGIME_LABELS, symbols, FIRST_DAY, LAST_DAY)
    bull, sideways = (SHADES[r]["facecolor"] for r in (Regime.BULL, Regime.SIDEWAYS))
    for symbol in symbols:
        ((wanted,),) = bench.connection.execute(
            "SELECT avg((label = 'BULL')::int)::float FROM trading_pipelines.regime_labels "
            "WHERE symbol = %s AND label <> 'UNKNOWN'",
            [symbol],
        )
        green, grey = pixels(draw(bench.connection, [symbol], END), bull, sideways)
        assert green / (green + grey) == pytest.approx(wanted, abs=0.03), symbol


def test_the_past_looks_the_same_when_the_future_is_known(bench: Bench) -> None:
    middle, now = date(2025, 9, 12), datetime(2025, 9, 13, 0, 20, tzinfo=UTC)
    filled(bench, ["KRW-BTC"], middle - timedelta(days=5), middle)
    before = draw(bench.connection, ["KRW-BTC"], now)
    filled(bench, ["KRW-BTC"], middle + timedelta(days=1), middle + timedelta(days=2))
    assert draw(bench.connection, ["KRW-BTC"], now) == before
    assert draw(bench.connection, ["KRW-BTC"], now + timedelta(days=2)) != before


def test_two_threads_draw_the_same_picture_at_once(market_url: str) -> None:
    found: list[bytes] = []

    def drawn() -> None:
        with psycopg.connect(market_url, options="-c timezone=UTC") as connection:
            found.append(draw(connection, ["KRW-BTC"], END))

    threads = [threading.Thread(target=drawn) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    assert found[0] == found[1]
