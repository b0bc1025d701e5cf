"""The dead man's switch: as long as all is well, it asks a URL of the operator's choice.

The service behind that URL raises the alarm when it hears nothing. Whether all is well is decided
in `monitoring/checks`.
"""

from datetime import UTC, datetime

import dagster as dg
import requests

from trading_pipelines.http_calls import KILOBYTE, call
from trading_pipelines.korean_time import kst
from trading_pipelines.monitoring import dagster_instance
from trading_pipelines.monitoring.checks import judge
from trading_pipelines.monitoring.measure import measure
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.strategy import StrategySettings

TIMEOUT_SECONDS = 10
MOST_BYTES = 64 * KILOBYTE


def build_heartbeat(settings: StrategySettings) -> dg.SensorDefinition:
    """Return the sensor that asks HEARTBEAT_URL once a minute, and does not while health is bad."""

    @dg.sensor(
        name=dagster_instance.HEARTBEAT,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks HEARTBEAT_URL (GET) as long as trading-pipelines health is good; asks "
        "nothing while it is not good or can't be known.",
    )
    def heartbeat(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        environment = load_environment()
        if environment.heartbeat_url is None:
            return dg.SkipReason("HEARTBEAT_URL is not set: nobody is told")
        repository = context.repository_def
        assert repository is not None
        now = datetime.now(UTC)
        orchestration = dagster_instance.read(
            context.instance, repository.schedule_defs, repository.sensor_defs, now
        )
        checks = judge(measure(environment, settings, orchestration, now), settings, now, kst)
        if bad := [f"{check.name} ({check.found})" for check in checks if not check.good]:
            return dg.SkipReason(f"silent: {', '.join(bad)}")
        return dg.SkipReason(_beat(environment.heartbeat_url.get_secret_value()))

    return heartbeat


def _beat(url: str) -> str:
    """Ask the URL; return what came of it without the URL, which is a secret, or an error's text.

    An error of `requests` quotes the URL.
    """
    try:
        response = call("GET", url, seconds=TIMEOUT_SECONDS, most_bytes=MOST_BYTES)
    except requests.RequestException as error:
        return f"all is well, but HEARTBEAT_URL can't be asked: {type(error).__name__}"
    outcome = "told" if response.ok else "but HEARTBEAT_URL answers"
    return f"all is well, {outcome} ({response.status_code})"
