"""The exchange as a Dagster resource. How it is asked belongs in `candles/exchange.py`."""

from collections.abc import Callable

import dagster as dg
import psycopg

from trading_pipelines.candles.exchange import Exchange
from trading_pipelines.candles.history_files import HistoryFiles
from trading_pipelines.candles.rate_limit import RequestSlots
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.strategy import DataSettings, ExchangeSettings


class ExchangeResource(dg.ConfigurableResource[None]):
    """Upbit, or the simulator that UPBIT_BASE_URL points to."""

    requests_per_second: float
    timeout_seconds: float
    attempts: int
    backoff_seconds: float
    max_backoff_seconds: float

    @classmethod
    def of(cls, settings: ExchangeSettings) -> "ExchangeResource":
        """Return the resource of the settings' section `exchange`."""
        return cls(**settings.model_dump())

    def client(self, connection: psycopg.Connection, say: Callable[[str], None]) -> Exchange:
        """Return a client whose request slots are reserved over `connection`, which is its own.

        `say` is told of long waits, see `Exchange`.
        """
        base_url = load_environment().upbit_base_url
        slots = RequestSlots(connection, base_url, self.requests_per_second)
        return Exchange(base_url, slots, self._settings(), say=say)

    def history_files(self, data: DataSettings, say: Callable[[str], None]) -> HistoryFiles | None:
        """Return a reader of Upbit's history files, where the settings switch them on.

        `say` is told why a file can't be used, see `HistoryFiles`.
        """
        if not data.history_files:
            return None
        urls = load_environment().history_file_urls
        return HistoryFiles(urls, self._settings(), data.history_files_sample, say)

    def _settings(self) -> ExchangeSettings:
        return ExchangeSettings.model_validate(self.model_dump())
