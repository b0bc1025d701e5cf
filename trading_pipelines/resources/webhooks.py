"""n8n's and Discord's webhooks as a Dagster resource. What a POST means belongs in `alerts/`."""

import dagster as dg

from trading_pipelines.alerts.webhooks import Webhooks
from trading_pipelines.settings import AlertSettings, load_environment


class WebhooksResource(dg.ConfigurableResource[None]):
    """Where N8N_URL and DISCORD_WEBHOOK_URL point to; the secrets are read when they are needed."""

    def of(self, settings: AlertSettings) -> Webhooks | None:
        """Return what alerts are posted with, or None where neither variable is set."""
        return Webhooks.of(load_environment(), settings)

    def is_stopping(self) -> bool:
        """Say whether the services of this home are being stopped: a tick that waits ends then."""
        return load_environment().stop_flag.exists()
