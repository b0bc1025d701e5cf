"""One real n8n and one stand-in for Discord a session; only with RUN_N8N=1, as `make test-e2e` has.

A start with its imports takes half a minute.
"""

import os
from collections.abc import Iterator

import pytest

from trading_pipelines.alerts.n8n.local import LocalN8n, installed_n8n
from trading_pipelines.simulators.discord import DiscordInbox

collect_ignore_glob = [] if os.environ.get("RUN_N8N") == "1" else ["test_*.py"]

SECRET = "s3cret-of-the-tests"


@pytest.fixture(scope="session")
def _discord() -> Iterator[DiscordInbox]:
    with DiscordInbox() as inbox:
        yield inbox


@pytest.fixture
def inbox(_discord: DiscordInbox) -> DiscordInbox:
    """What n8n posts to, as if nothing had come yet."""
    _discord.clear()
    return _discord


@pytest.fixture(scope="session")
def _n8n(_discord: DiscordInbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalN8n]:
    if installed_n8n() is None:
        pytest.skip("n8n is not installed: run deploy/install_n8n.sh, or set N8N_COMMAND")
    # Some webhooks belong to a thread: their URL has a query already.
    url = f"{_discord.url}?thread_id=7"
    folder = tmp_path_factory.mktemp("n8n")
    with LocalN8n(folder, secret=SECRET, discord_url=url) as running:
        yield running


@pytest.fixture
def n8n(_n8n: LocalN8n) -> LocalN8n:
    """The n8n of the session, started again where a test has stopped it."""
    _n8n.start()
    return _n8n
