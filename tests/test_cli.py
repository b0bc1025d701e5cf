"""The command line as a person meets it, where nothing has to run for it."""

import pytest
from typer.testing import CliRunner

from trading_pipelines import cli


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--symbols", "BTC", "--start", "2025-09-01", "--end", "2025-09-01"], "symbols"),
        (["--symbols", "KRW-BTC", "--start", "2025-09-02", "--end", "2025-09-01"], "after"),
        (["--symbols", "KRW-BTC", "--start", "2025-09-02", "--end", "2099-09-01"], "future"),
        (["--symbols", "KRW-BTC", "--start", "2016-09-02", "--end", "2025-09-01"], "start_date"),
        (["--symbols", "KRW-BTC", "--start", "yesterday", "--end", "2025-09-01"], "yesterday"),
        (["--symbols", "KRW-BTC"], "--start"),
    ],
)
def test_wrong_usage_is_exit_status_2_and_says_what_is_wrong(
    arguments: list[str], said: str
) -> None:
    done = CliRunner().invoke(cli.app, ["backfill", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize("command", ["up", "backfill", "demo", "status", "replay", "env"])
def test_help_has_an_example(command: str) -> None:
    done = CliRunner().invoke(cli.app, [command, "--help"])
    assert done.exit_code == 0
    assert f"trading-pipelines {command}" in done.stdout
