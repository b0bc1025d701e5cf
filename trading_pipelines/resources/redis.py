"""The bot's Redis as a Dagster resource. What is written belongs in `signals/publish`."""

from collections.abc import Sequence
from datetime import datetime

import dagster as dg

from trading_pipelines.settings import StrategySettings, load_environment
from trading_pipelines.signals.publish import CurrentSignal, Published, publish


class RedisResource(dg.ConfigurableResource[None]):
    """The Redis that REDIS_URL points to; without it nothing is written."""

    def publish(
        self, signals: Sequence[CurrentSignal], settings: StrategySettings, now: datetime
    ) -> Published | None:
        """Write the bot's keys; the answer says what kept them from it. None: not wanted."""
        url = load_environment().redis_url
        if url is None:
            return None
        ttl = settings.regime_detection.redis_ttl_seconds
        return publish(url.get_secret_value(), signals, settings.symbols[0], ttl, now)
