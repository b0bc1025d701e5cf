"""The one place where Dagster's objects are put together.

`defs` is what Dagster loads; tests and the command line call `build_definitions` with settings of
their own. Importing this module reads nothing and connects to nothing.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import dagster as dg

from trading_pipelines.assets import (
    alert_deliveries,
    bot_tables,
    daily_report,
    market_data,
    published_signals,
    regimes,
    rejections,
    volatility,
)
from trading_pipelines.assets.about import with_code_references, with_location
from trading_pipelines.assets.partition_checks import PartitionChecks, no_partition_left_failed
from trading_pipelines.database.connection import SCHEMA, database_urls
from trading_pipelines.database.url import PostgresUrl
from trading_pipelines.partitions import CANDLES_1H, CANDLES_1M, days, symbol_days
from trading_pipelines.resources.database import DatabaseResource
from trading_pipelines.resources.exchange import ExchangeResource
from trading_pipelines.resources.redis import RedisResource
from trading_pipelines.resources.webhooks import WebhooksResource
from trading_pipelines.schedules.housekeeping import build_housekeeping
from trading_pipelines.schedules.market_data import build_refresh_market_data
from trading_pipelines.schedules.reports import (
    build_ai_scorecard,
    build_daily_report,
    build_reject_summary,
)
from trading_pipelines.schedules.signals import REFRESH_OVERVIEW, build_signal_schedules
from trading_pipelines.sensors.alerts import build_alert_sensors
from trading_pipelines.sensors.bot_tables import build_bot_tables_observer
from trading_pipelines.sensors.heartbeat import build_heartbeat
from trading_pipelines.sensors.partitions import build_reconciliation
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.last_good import load_settings
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.signals.catalogue import REGIME_LABELS, SIGNALS, VOLATILITY_FORECAST

OPEN_ENDS = {
    dg.AssetKey(name)
    for name in (CANDLES_1M, CANDLES_1H, REGIME_LABELS.asset, VOLATILITY_FORECAST.asset)
}
"""What a schedule brings a newer end of, the rarest each hour."""

# Labels come each hour; the UI rounds to hours. Dagster looks at an asset's newest event alone.
FRESHNESS = dg.FreshnessPolicy.time_window(
    warn_window=timedelta(hours=2), fail_window=timedelta(hours=3)
)


def build_definitions(
    settings: StrategySettings,
    resource_overrides: Mapping[str, Any] | None = None,
    *,
    database: str = SCHEMA,
    docs_url: str | None = None,
) -> dg.Definitions:
    """Return everything Dagster knows of this project, for the given settings.

    `database` is the name of the market database and `docs_url` where these docs can be read: the
    assets say them.
    """
    partitions = symbol_days(settings)
    assets: list[dg.AssetsDefinition | dg.AssetSpec] = [
        *market_data.build_assets(settings, partitions),
        *regimes.build_assets(settings, partitions),
        *volatility.build_assets(settings, partitions, days(settings)),
        *rejections.build_assets(settings, partitions),
        *published_signals.build_assets(settings),
        *daily_report.build_assets(settings),
        *bot_tables.build_assets(),
        *alert_deliveries.build_assets(),
    ]
    return dg.Definitions(
        assets=dg.map_asset_specs(
            lambda spec: _with_freshness(with_location(spec, database, docs_url), settings),
            with_code_references(assets, docs_url),
        ),
        asset_checks=[
            *(checks.definition() for checks in partition_checks(settings)),
            *volatility.build_checks(settings),
            *alert_deliveries.build_checks(),
        ],
        jobs=[REFRESH_OVERVIEW],
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


def _with_freshness(spec: dg.AssetSpec, settings: StrategySettings) -> dg.AssetSpec:
    """Say how old an open end may be, where something refreshes it."""
    if settings.data.refresh and spec.key in OPEN_ENDS:
        return spec.replace_attributes(freshness_policy=FRESHNESS)
    return spec


def partition_checks(settings: StrategySettings) -> list[PartitionChecks]:
    """Return the checks that have a verdict for each partition, those of one asset in a row."""
    partitions = symbol_days(settings)
    return [
        market_data.contract(settings, partitions),
        no_partition_left_failed(CANDLES_1M, settings, partitions),
        *(
            no_partition_left_failed(
                signal.asset,
                settings,
                days(settings) if signal.pooled else partitions,
                pooled=signal.pooled,
            )
            for signal in SIGNALS
        ),
    ]


def build_schedules(settings: StrategySettings) -> list[dg.ScheduleDefinition]:
    """Return the schedules alone, for whoever wants to know which there are."""
    partitions = symbol_days(settings)
    return [
        build_refresh_market_data(settings, partitions),
        *build_signal_schedules(settings, partitions, days(settings)),
        build_daily_report(settings),
        build_reject_summary(settings),
        build_ai_scorecard(settings),
        build_housekeeping(settings),
    ]


def build_sensors(settings: StrategySettings) -> list[dg.SensorDefinition]:
    """Return the sensors alone."""
    return [
        *build_alert_sensors(settings),
        build_reconciliation(settings, partition_checks(settings)),
        build_bot_tables_observer(),
        build_heartbeat(settings),
    ]


@dg.definitions
def defs() -> dg.Definitions:
    """Load the settings of the environment, or the last good ones of the home.

    SettingsError stops the start where there are none.
    """
    environment = load_environment()
    return build_definitions(
        load_settings(environment),
        database=PostgresUrl.parse(database_urls(environment).market).database,
        docs_url=environment.docs_url,
    )
