"""The same through a real n8n."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.alerts.conftest import Bot, _url, bot, bot_url
from tests.n8n.conftest import SECRET
from tests.receiver_table import RECEIVERS, Discord, check, discord, run
from trading_pipelines.alerts.n8n.local import LocalN8n
from trading_pipelines.alerts.webhooks import Webhooks

__all__ = ["_url", "bot", "bot_url"]


@pytest.fixture(scope="module")
def through(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Discord, str]]:
    """An n8n of its own, whose Discord is any of the receivers."""
    folder: Path = tmp_path_factory.mktemp("n8n of the receivers")
    with discord() as (webhook, url), LocalN8n(folder, secret=SECRET, discord_url=url) as n8n:
        yield webhook, n8n.url


@pytest.mark.parametrize("name", RECEIVERS)
def test_nothing_is_lost_or_sent_twice_through_n8n(
    bot: Bot, through: tuple[Discord, str], name: str
) -> None:
    webhook, url = through
    row = run(bot, webhook, name, "n8n", Webhooks(url, SECRET, None, 15.0))
    print(row)  # noqa: T201
    check(row)
