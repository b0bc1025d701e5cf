"""The one place where Dagster's objects are put together.

`defs` is what Dagster loads; tests and the command line call `build_definitions` with settings of
their own. Importing this module reads nothing and connects to nothing.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from trading_pipelines.assets import alerts, market_data, overview, regimes, reports, volatility
from trading_pipelines.partitions import days, symbol_days
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.resources.exchange import ExchangeResource
from trading_pipelines.resources.redis import RedisResource
from trading_pipelines.resources.webhooks import WebhooksResource
from trading_pipelines.schedules import (
    build_daily_report,
    build_housekeeping,
    build_refresh_market_data,
    build_signal_schedules,
)
from trading_pipelines.sensors.alerts import build_alert_sensors
from trading_pipelines.sensors.heartbeat import build_heartbeat
from trading_pipelines.settings import StrategySettings, load_environment, load_strategy


def build_definitions(
    settings: StrategySettings, resource_overrides: Mapping[str, Any] | None = None
) -> dg.Definitions:
    """Return everything Dagster knows of this project, for the given settings."""
    partitions = symbol_days(settings)
    return dg.Definitions(
        assets=[
            *market_data.build_assets(settings, partitions),
            *regimes.build_assets(settings, partitions),
            *volatility.build_assets(settings, partitions, days(settings)),
            *overview.build_assets(settings),
            *reports.build_assets(settings),
            *alerts.build_assets(),
        ],
        asset_checks=[
            *market_data.build_checks(settings),
            *regimes.build_checks(settings),
            *volatility.build_checks(settings),
            *alerts.build_checks(),
        ],
        schedules=build_schedules(settings),
        sensors=build_sensors(settings),
        resources={
            "database": DatabaseResource(),
            "exchange": ExchangeResource.of(settings.exchange),
            "redis": RedisResource(),
            "webhooks": WebhooksResource(),
            **(resource_overrides or {}),
        },
        # The steps are small: a process for each costs 5-13 s on two cores.
        executor=dg.in_process_executor,
    )


def build_schedules(settings: StrategySettings) -> list[dg.ScheduleDefinition]:
    """Return the schedules alone, for whoever wants to know which there are."""
    partitions = symbol_days(settings)
    return [
        build_refresh_market_data(settings, partitions),
        *build_signal_schedules(settings, partitions, days(settings)),
        build_daily_report(settings),
        build_housekeeping(settings),
    ]


def build_sensors(settings: StrategySettings) -> list[dg.SensorDefinition]:
    """Return the sensors alone."""
    return [*build_alert_sensors(settings), build_heartbeat(settings)]


@dg.definitions
def defs() -> dg.Definitions:
    """Load the settings of the environment; SettingsError stops the start."""
    return build_definitions(load_strategy(load_environment().trading_pipelines_config))
