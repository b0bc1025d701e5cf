"""The bot's Redis as a Dagster resource.

What is written belongs in `signals/published/bot_redis`.
"""

from collections.abc import Sequence
from datetime import datetime

import dagster as dg

from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.published.current import CurrentSignal, Published


class RedisResource(dg.ConfigurableResource[None]):
    """The Redis that REDIS_URL points to; without it nothing is written."""

    def publish(
        self, signals: Sequence[CurrentSignal], settings: StrategySettings, now: datetime
    ) -> Published | None:
        """Write the bot's keys; return which, and why others were not. None without REDIS_URL."""
        from trading_pipelines.signals.published.bot_redis import publish

        url = load_environment().redis_url
        if url is None:
            return None
        ttl = settings.regime_detection.redis_ttl_seconds
        return publish(url.get_secret_value(), signals, settings.symbols[0], ttl, now)
