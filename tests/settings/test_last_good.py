"""The settings that a home goes on with while its strategy file can't be used."""

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.errors import SettingsError
from trading_pipelines.settings.last_good import (
    load_settings,
    read_settings,
    start_with_settings,
)

GOOD = "symbols: [KRW-BTC, KRW-XRP]\ndata:\n  start_date: 2025-09-01\n  look_back_days: 30\n"
SINCE = datetime(2025, 9, 1, tzinfo=UTC)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """A home whose settings were good on `SINCE`."""
    environment = Environment(
        trading_pipelines_home=tmp_path / "home",
        trading_pipelines_config=tmp_path / "strategy.yaml",
    )
    environment.trading_pipelines_config.write_text(GOOD)
    load_settings(environment)
    os.utime(environment.last_good_settings, (SINCE.timestamp(), SINCE.timestamp()))
    return environment


UNUSABLE = {
    "": ":1: the file holds no settings; allowed: sections, or {} where all defaults are meant",
    "# only a comment\n": ":1: the file holds no settings; ",
    "symbols: [KRW-BTC, KR": ":1: ",
    "symbols: [KRW-BTC]\nda": ":2: ",
    # Valid YAML all of them, and cut off: three days of look-back instead of 30.
    GOOD[:-2]: ":4: ends where the settings in use go on; ",
    GOOD[: GOOD.index("data")]: ":1: ends where the settings in use go on; ",
    "symbols: [KRW-BTC, KRW-ETH]\ndata:\n  look_back_days: 3": ":3: ends within a line, ",
    "symbols: [KRW-BTC]\ndata: {start_dat: 2025-09-01}\n": ":2: data.start_dat: unknown key",
}


@pytest.mark.parametrize("text", UNUSABLE)
def test_a_file_that_can_not_be_used_leaves_the_last_good_settings_in_use(
    environment: Environment, text: str
) -> None:
    environment.trading_pipelines_config.write_text(text)
    for _ in range(2):
        assert load_settings(environment).symbols == ["KRW-BTC", "KRW-XRP"]
    found = read_settings(environment)
    assert found.settings.data.look_back_days == 30
    assert found.refused is not None
    assert found.refused.problem.startswith(
        f"{environment.trading_pipelines_config}{UNUSABLE[text]}"
    )
    assert found.refused.since == SINCE
    environment.trading_pipelines_config.write_text(GOOD)
    assert read_settings(environment).refused is None


def test_a_file_that_is_gone_leaves_the_last_good_settings_in_use(environment: Environment) -> None:
    environment.trading_pipelines_config.unlink()
    found = read_settings(environment)
    assert found.settings.symbols == ["KRW-BTC", "KRW-XRP"]
    assert found.refused is not None
    assert "No such file" in found.refused.problem


def test_whoever_means_all_defaults_or_less_than_before_can_say_so(
    environment: Environment,
) -> None:
    config = environment.trading_pipelines_config
    config.write_text(GOOD[: GOOD.index("data")] + "...\n")
    assert load_settings(environment).data.look_back_days == 30
    assert read_settings(environment).refused is None
    config.write_text("{}\n")
    assert load_settings(environment).symbols != ["KRW-BTC", "KRW-XRP"]
    assert read_settings(environment).refused is None


def test_a_start_takes_the_file_as_it_stands_and_never_the_last_good_settings(
    environment: Environment,
) -> None:
    config = environment.trading_pipelines_config
    config.write_text("")
    with pytest.raises(SettingsError, match="holds no settings"):
        start_with_settings(environment)
    config.write_text("symbols: [KRW-BTC, KRW-XRP]\n")
    start_with_settings(environment)
    assert read_settings(environment).refused is None, "what was cut off is meant"


def test_without_last_good_settings_of_this_very_file_nothing_loads(
    environment: Environment, tmp_path: Path
) -> None:
    other = environment.model_copy(update={"trading_pipelines_config": tmp_path / "other.yaml"})
    other.trading_pipelines_config.write_text("")
    with pytest.raises(SettingsError, match=r"other\.yaml:1: the file holds no settings"):
        load_settings(other)
    environment.last_good_settings.unlink()
    environment.trading_pipelines_config.write_text("")
    with pytest.raises(SettingsError, match=r"strategy\.yaml:1: the file holds no settings"):
        load_settings(environment)


def test_a_home_that_can_not_be_written_loads_good_settings_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder would be")
    config = tmp_path / "strategy.yaml"
    config.write_text(GOOD)
    environment = Environment(
        trading_pipelines_home=tmp_path / "home", trading_pipelines_config=config
    )
    assert load_settings(environment).symbols == ["KRW-BTC", "KRW-XRP"]
