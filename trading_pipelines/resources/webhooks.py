"""n8n's and Discord's webhooks as a Dagster resource. What a POST means belongs in `alerts/`."""

from pathlib import Path

import dagster as dg

from trading_pipelines.alerts.webhooks import Webhooks
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.strategy import AlertSettings


class WebhooksResource(dg.ConfigurableResource[None]):
    """Where N8N_URL and DISCORD_WEBHOOK_URL point to; the secrets are read when they are needed."""

    def of(self, settings: AlertSettings) -> Webhooks | None:
        """Return what alerts are posted with, or None where neither variable is set."""
        return Webhooks.of(load_environment(), settings)

    def stop_flag(self) -> Path:
        """Return the file that is there while this home's services are stopped: ticks end then."""
        return load_environment().stop_flag
