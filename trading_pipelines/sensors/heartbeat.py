"""The dead man's switch: as long as all is well, a URL of the operator's choice is asked.

Whoever listens there raises the alarm when it stays silent. What is well belongs in `health`.
"""

from datetime import UTC, datetime

import dagster as dg
import requests

from trading_pipelines.korean_time import kst
from trading_pipelines.monitoring import dagster_instance
from trading_pipelines.monitoring.checks import judge
from trading_pipelines.monitoring.measure import measure
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.strategy import StrategySettings

TIMEOUT_SECONDS = 10


def build_heartbeat(settings: StrategySettings) -> dg.SensorDefinition:
    """Return the sensor that asks HEARTBEAT_URL once a minute, and does not while health is bad."""

    @dg.sensor(
        name=dagster_instance.HEARTBEAT,
        minimum_interval_seconds=60,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Asks HEARTBEAT_URL (GET) as long as `trading-pipelines health` is good, and "
        "stays silent while it is not, or is not known.",
    )
    def heartbeat(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        environment = load_environment()
        if environment.heartbeat_url is None:
            return dg.SkipReason("HEARTBEAT_URL is not set: nobody is told")
        all_of = context.repository_def
        assert all_of is not None
        now = datetime.now(UTC)
        orchestration = dagster_instance.read(
            context.instance, all_of.schedule_defs, all_of.sensor_defs, now
        )
        checks = judge(measure(environment, settings, orchestration, now), settings, now, kst)
        if bad := [f"{check.name} ({check.found})" for check in checks if not check.good]:
            return dg.SkipReason(f"silent: {', '.join(bad)}")
        return dg.SkipReason(_beat(environment.heartbeat_url.get_secret_value()))

    return heartbeat


def _beat(url: str) -> str:
    """Ask the URL and return what came of it; the URL is a secret, and so are the errors' words."""
    try:
        answer = requests.get(url, timeout=TIMEOUT_SECONDS)
    except requests.RequestException as error:
        return f"all is well, but HEARTBEAT_URL can't be asked: {type(error).__name__}"
    said = "told" if answer.ok else "but HEARTBEAT_URL answers"
    return f"all is well, {said} ({answer.status_code})"
