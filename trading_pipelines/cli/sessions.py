"""What several commands need before they begin, or refuse to begin without."""

import signal
import threading

from trading_pipelines.alerts.webhooks import Webhooks
from trading_pipelines.cli.render import fail
from trading_pipelines.database.connection import VARIABLES, database_urls
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.environment import Environment, load_environment
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import load_strategy


def embedded_or_refuse(environment: Environment, program: str) -> EmbeddedServer:
    """Return the embedded server; refuse where a database is elsewhere."""
    home = environment.trading_pipelines_home
    here = environment.model_copy(update={"database_url": None, "dagster_postgres_url": None})
    if database_urls(environment) != database_urls(here):
        fail(
            f"a database of yours is used ({' or '.join(VARIABLES)} is set): take your server's "
            f"{program}, for both databases"
        )
    return EmbeddedServer(home)


def configured_webhooks() -> Webhooks:
    """Return where alerts are posted to; refuse where nothing is set."""
    environment = load_environment()
    settings = load_strategy(environment.trading_pipelines_config)
    webhooks = Webhooks.of(environment, settings.alerts)
    if webhooks is None:
        fail("set N8N_URL and N8N_WEBHOOK_SECRET, or DISCORD_WEBHOOK_URL")
    return webhooks


def settings_or_defaults(environment: Environment) -> StrategySettings:
    """Return the settings for what is simulated: the defaults where there is no file.

    A file that the operator names has to be there. Raises SettingsError.
    """
    config = environment.trading_pipelines_config
    is_named = "trading_pipelines_config" in environment.model_fields_set
    return load_strategy(config) if is_named or config.exists() else StrategySettings()


def await_interrupt() -> None:
    """Wait for Ctrl-C or SIGTERM; both end the command cleanly."""
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    while not ended.wait(3600):
        pass
