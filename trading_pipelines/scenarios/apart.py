"""A home of a scenario's own: made anew each time, and apart from everything of the operator's."""

import shutil

from pydantic import SecretStr

from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.runtime.home import Home, ServicesError
from trading_pipelines.settings.environment import Environment
from trading_pipelines.simulators.discord import DiscordInbox

NO_FILES_OF_UPBIT = {"upbit_files_url": None, "upbit_files_list_url": None}
"""A replayed market and Upbit's own files are not of one market."""


def apart(
    environment: Environment, home: Home, base_url: str, webhooks: dict[str, SecretStr | None]
) -> Environment:
    """Return the environment of a home of a scenario's own."""
    return environment.model_copy(
        update={
            "database_url": None,
            "dagster_postgres_url": None,
            "redis_url": None,  # the bot must not trade on a replayed market
            "heartbeat_url": None,  # a scenario's health is not the installation's
            "upbit_base_url": base_url,
            **({} if base_url == environment.upbit_base_url else NO_FILES_OF_UPBIT),
            "trading_pipelines_home": home.path,
            **webhooks,
        }
    )


def inbox_alone(inbox: DiscordInbox) -> dict[str, SecretStr | None]:
    """Return the webhooks by which alerts go to the inbox directly."""
    return {
        "n8n_url": None,
        "n8n_webhook_secret": None,
        "discord_webhook_url": SecretStr(inbox.url),
    }


def make_anew(home: Home) -> None:
    """Empty a home of a scenario's own; raises ServicesError where it is in use."""
    if home.running_services():
        raise ServicesError(
            f"{home.path} is in use: stop what runs there with Ctrl-C, or with "
            f"TRADING_PIPELINES_HOME={home.path} trading-pipelines down"
        )
    EmbeddedServer(home.path).stop()
    shutil.rmtree(home.path, ignore_errors=True)
