"""An alert straight to Discord before each receiver; `-s` prints the rows of the docs' table."""

import pytest

from tests.alerts.conftest import Bot
from tests.receiver_table import RECEIVERS, check, discord, run
from trading_pipelines.alerts.webhooks import Webhooks


@pytest.mark.parametrize("name", RECEIVERS)
def test_nothing_is_lost_or_sent_twice_straight_to_discord(bot: Bot, name: str) -> None:
    with discord() as (webhook, url):
        row = run(bot, webhook, name, "straight", Webhooks(None, None, url, 1.0))
    print(row)  # noqa: T201
    check(row)
