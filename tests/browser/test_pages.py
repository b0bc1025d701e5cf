"""What a user of the UI sees, page by page: each asks for texts, as a reader would."""

import re

import pytest

from tests.browser.conftest import GONE, REASON, TRADED, Operator
from trading_pipelines.candles.windows import DAY
from trading_pipelines.definitions import build_schedules, build_sensors
from trading_pipelines.korean_time import KST
from trading_pipelines.runtime.backfill import BackfillTarget, launch
from trading_pipelines.settings.strategy import StrategySettings

# The installation's start is part of the first.
pytestmark = pytest.mark.timeout(900)

IN_PLACE = "/locations/trading_pipelines"


def test_the_lineage_reads_from_left_to_right_by_groups(operator: Operator) -> None:
    # What is outside the window is not drawn.
    operator.page.set_viewport_size({"width": 1600, "height": 2000})
    operator.open("/asset-groups", "market_data", "bot_tables", "alerts")
    operator.await_left_to_right("market_data", "regimes", "rejections", "alerts")
    operator.await_left_to_right("market_data", "volatility", "published_signals")
    operator.page.keyboard.press("Alt+e")  # expand all groups
    operator.await_left_to_right("candles_1m", "regime_labels", "reject_outcomes")
    operator.await_left_to_right("candles_1m", "regime_labels", "current_signals")


def test_the_heat_map_has_symbols_and_days_and_counts_the_failed(operator: Operator) -> None:
    days = [f"{operator.decided_at.date() - n * DAY}" for n in range(3)]
    said = ["Failed (3)", "Materialized (6)"]
    operator.open("/assets/candles_1m?view=partitions", *TRADED, GONE, *days, *said)


def test_a_failed_partition_leads_to_its_error(operator: Operator) -> None:
    day = operator.decided_at.date() - DAY
    page = f"/assets/candles_1m?view=partitions&partition={day}%7C{GONE}"
    operator.open(page, "failed, and did not materialize this asset")
    operator.text("View logs").click()
    assert operator.sees("STEP_FAILURE")
    assert operator.sees("Code not found")


def test_a_backfill_is_followed_on_its_page_to_its_end(operator: Operator) -> None:
    day = operator.decided_at.date() - DAY
    target = BackfillTarget(tuple(TRADED), day, day)
    page = f"/runs/b/{launch(operator.installation.url, target)}"
    operator.open(page, re.compile(r"Status\s*In progress"), "candles_1m", "candles_1h")
    operator.open(page, re.compile(r"Status\s*Succeeded"), "100% completed")


def test_the_ticks_of_a_sensor_say_what_they_did(operator: Operator) -> None:
    operator.open(
        f"{IN_PLACE}/sensors/ai_reject_alerts", "All ticks", "Running", "0 runs requested"
    )
    # Of a row the first is its status, the second its result; the oldest tick is the last row.
    operator.page.get_by_text("0 runs requested").nth(-2).hover()
    assert operator.sees("1 new, 1 delivered")


def test_the_overview_shows_its_picture(operator: Operator) -> None:
    operator.open("/assets/signals_overview", "Show Markdown")
    operator.text("Show Markdown").click()
    picture = operator.page.get_by_role("img", name="signals")
    picture.wait_for()
    assert picture.bounding_box()["width"] > 500


def test_the_bots_decisions_are_a_table_in_korean_time(operator: Operator) -> None:
    korean = f"{operator.decided_at.astimezone(KST):%Y-%m-%d %H:%M:%S}"
    operator.open(
        "/assets/agent_decisions", "created_at (KST)", korean, "REJECT", "CONFIRM", REASON
    )


def test_all_that_runs_by_itself_has_a_name_that_says_what_it_does(operator: Operator) -> None:
    schedules, sensors = build_schedules(StrategySettings()), build_sensors(StrategySettings())
    for page, names in {
        "/automation": [
            *(one.name for one in schedules),
            *(one.name for one in sensors),
        ],
        "/jobs": ["refresh_overview_job", *(one.job_name for one in schedules)],
        "/runs": ["refresh_market_data_job", "update_regime_job"],
    }.items():
        operator.open(page, *names)
        assert not operator.text("__ASSET_JOB").count(), page


def test_an_asset_says_what_it_is_where_it_is_kept_and_what_to_do(operator: Operator) -> None:
    parts = ["One row", "Unit", "Refreshed", "Backfill"]
    table = "trading_pipelines.trading_pipelines.regime_labels"
    operator.open("/assets/regime_labels", *parts, table, "docs/operations.md: Something is red")
