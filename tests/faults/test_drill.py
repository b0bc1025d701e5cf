"""The drill, as an operator runs it."""

import re

import pytest

from tests.integration.conftest import installed
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy


@pytest.mark.timeout(900)
def test_the_drill_shows_what_was_missed_and_that_all_of_it_is_there_again() -> None:
    with installed() as installation:
        dump_strategy(
            StrategySettings(symbols=["KRW-BTC", "KRW-ETH", "KRW-XRP"]), installation.config
        )
        drilled = installation.start("drill", "--hours", "3")
        said, _ = drilled.communicate(timeout=840)
    assert drilled.returncode == 0, said
    lines = {
        name: re.search(rf"│ {name} +│ +([\d,]+) │ +0 │ +\d+ s │", said)
        for name in ("candles", "labels", "forecasts", "models", "alerts")
    }
    missed = {name: int(found[1].replace(",", "")) for name, found in lines.items() if found}
    assert missed["labels"] == missed["alerts"] * 3 == 9
    assert missed["forecasts"] == 18
    assert 500 < missed["candles"] <= 540
    assert missed["models"] in {0, 1}
    assert "rejected during the outage (drill)" in said
