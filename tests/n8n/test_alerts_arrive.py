"""Each kind of alert arrives; and 300 decisions do while everything around them fails.

The real daemon, the real n8n, the embedded Postgres; only Discord is a stand-in, on loopback.
"""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from os import kill
from signal import SIGKILL

import psycopg
import pytest

from tests.integration.conftest import (
    Installation,
    await_that,
    installed,
    unanswered_tries,
)
from trading_pipelines.alerts.daily_report import text as report_text
from trading_pipelines.alerts.daily_report.figures import compute_report
from trading_pipelines.alerts.n8n.local import LocalN8n
from trading_pipelines.alerts.periodic import send_report
from trading_pipelines.database.connection import connect
from trading_pipelines.database.embedded import EmbeddedServer
from trading_pipelines.settings.strategy import AlertSettings, DataSettings, StrategySettings
from trading_pipelines.settings.strategy_file import dump_strategy
from trading_pipelines.simulators.discord import DiscordInbox

SECRET = "a-secret-of-the-tests"
DECISIONS, WRITERS = 300, 4
SEED = 20261124


@pytest.fixture(scope="module")
def inbox() -> Iterator[DiscordInbox]:
    with DiscordInbox(limited=True) as inbox:
        yield inbox


@pytest.fixture(scope="module")
def n8n(inbox: DiscordInbox, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalN8n]:
    folder = tmp_path_factory.mktemp("n8n")
    with LocalN8n(folder, secret=SECRET, discord_url=inbox.url) as n8n:
        yield n8n


@pytest.fixture(scope="module")
def up(n8n: LocalN8n) -> Iterator[Installation]:
    with installed() as installation:
        alerts = AlertSettings(
            ai_decision=True,
            messages_per_minute=150,
            digest_over=10 * DECISIONS,
            retry_waits=[2.0] * 100,
        )
        dump_strategy(
            StrategySettings(data=DataSettings(refresh=False), alerts=alerts), installation.config
        )
        installation.variables |= {"N8N_URL": n8n.url, "N8N_WEBHOOK_SECRET": SECRET}
        process = installation.start("up", "--port", "0")
        await_that(lambda: bool(installation.url), "up says where it runs")
        await_that(lambda: _kinds_on(installation) == 6, "every kind but the weekly summary is on")
        yield installation
        assert process.poll() is None, "it still runs"


def _kinds_on(up: Installation) -> int:
    with psycopg.connect(up.market_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM trading_pipelines.alert_kinds WHERE is_on"
        ).fetchone()
        return row[0] if row else 0


ROWS = """
INSERT INTO agent_decisions (symbol, strategy_name, decision, reasoning, regime)
VALUES ('KRW-ETH', 'test', 'REJECT', E'"과매수"\\n@everyone', 'BEAR');
INSERT INTO agent_decisions
    (symbol, strategy_name, decision, reasoning, regime, confidence, model_used)
VALUES ('KRW-XRP', 'test', 'CONFIRM', repeat('가', 1500), 'BULL', 72, 'claude-sonnet');
INSERT INTO trading_history
    (symbol, side, order_type, price, quantity, status, strategy_name, executed_at)
VALUES ('KRW-SOL', 'SELL', 'MARKET', 213500.5, 1.25, 'FILLED', 'MeanReversion', now());
INSERT INTO risk_audit (violation_type, description)
VALUES ('MAX_POSITION', '한도 초과: 32% > 30%');
INSERT INTO daily_risk_state VALUES
    (current_date, -12345, 5, 3, now() + interval '2 hours', true, now())
"""


def shown(inbox: DiscordInbox) -> dict[str, dict[str, str]]:
    """Return what each message shows, by its title: its fields, and its description as ''."""
    embeds = [message.payload["embeds"][0] for message in inbox.messages]
    return {
        one["title"]: {
            "": one.get("description", ""),
            **{field["name"]: field["value"] for field in one["fields"]},
        }
        for one in embeds
    }


def test_each_kind_arrives_with_its_fields(up: Installation, inbox: DiscordInbox) -> None:
    day = date(2026, 1, 2)
    with connect(up.market_url) as connection:
        for statement in ROWS.split(";"):
            connection.execute(statement.encode())
        made = compute_report(connection, day, ["KRW-BTC"])
        now = datetime.now(UTC)
        send_report(connection, day, report_text.body(made, now), AlertSettings(), now, resend=True)
    await_that(lambda: len(inbox.messages) >= 7, "seven messages")
    with connect(up.market_url) as connection:
        connection.execute("UPDATE daily_risk_state SET is_trading_halted = false")
    await_that(lambda: len(inbox.messages) >= 8, "the end of the halt")
    found = shown(inbox)
    rejected, sold = found["AI 거절: KRW-ETH"], found["매도 체결: KRW-SOL"]
    assert rejected["국면"] == "BEAR (하락)"
    assert rejected["사유"] == '"과매수"\n@everyone'
    assert (sold["가격"], sold["수량"]) == ("213,500.5 KRW", "1.25")
    assert found["[WARNING] MAX_POSITION"][""] == "한도 초과: 32% > 30%"
    assert found["[CRITICAL] COOLDOWN"][""].startswith("연속 손실 3회: ")
    assert found["[CRITICAL] HALT"][""] == "거래 정지: 손익 -12345, 거래 5회, 연속 손실 3회"
    assert found["[CRITICAL] HALT_LIFTED"][""].startswith("거래 정지 해제: ")
    confirmed = found["AI 승인: KRW-XRP"]
    assert confirmed[""] == "가" * 1500
    assert (confirmed["국면"], confirmed["확신도"]) == ("BULL (상승)", "72 / 100")
    assert confirmed["모델"] == "claude-sonnet"
    keys = [message.payload["embeds"][0]["footer"]["text"] for message in inbox.messages]
    assert [key.rpartition(":")[2] for key in keys if key.startswith("agent_decisions:1:")] == [
        "ai-reject"
    ], "the rejection is told by one of the two kinds"
    reported = found["일일 리포트 2026-01-02 (KST)"]
    assert (reported["거래 수"], reported["승률"]) == ("0", "-")
    assert "체결 없음" in reported[""]
    for message in inbox.messages:
        assert message.payload["allowed_mentions"] == {"parse": []}
        assert not {"undefined", "None", "NaN"} & set(str(message.payload).split())


def test_a_wrong_secret_is_refused_and_seen(up: Installation, inbox: DiscordInbox) -> None:
    before = len(inbox.messages)
    wrong = Installation(up.home)
    wrong.variables = {**up.variables, "N8N_WEBHOOK_SECRET": "wrong"}
    tested, checked = wrong.run("alerts", "test"), wrong.run("n8n", "check")
    assert (tested.returncode, tested.stdout.count("n8n answers 403")) == (1, 5)
    assert checked.returncode == 1
    assert len(inbox.messages) == before


def write_decisions(up: Installation, seed: int, count: int, written: list[int]) -> None:
    """Commit decisions late and out of order, as several of the bot's connections would."""
    chance = random.Random(seed)
    while count > 0:
        with suppress(psycopg.OperationalError), psycopg.connect(up.market_url) as connection:
            few = min(count, chance.randint(1, 3))
            ids = [
                connection.execute(
                    "INSERT INTO agent_decisions (symbol, strategy_name, decision, reasoning) "
                    "VALUES ('KRW-BTC', 'test', 'REJECT', %s) RETURNING id",
                    [f'"이유" {seed} @everyone\n{"가" * chance.randint(1, 600)}'],
                ).fetchone()
                for _ in range(few)
            ]
            # Later rows of the other writers commit while this one still holds its numbers.
            time.sleep(chance.uniform(0.05, 1.5))
            connection.commit()
            written += [row[0] for row in ids if row]
            count -= few
        time.sleep(chance.uniform(1, 6))


def disturb(up: Installation, n8n: LocalN8n, is_over: Callable[[], bool]) -> Counter[str]:
    """Kill and stop what carries the alerts, in an order of chance, until it is over."""
    chance = random.Random(SEED)
    done: Counter[str] = Counter()
    bag: list[str] = []
    while not is_over():
        bag = bag or chance.sample(kinds := ["daemon", "daemon", "daemon", "code-server", "n8n",
                                             "n8n killed", "postgres"], len(kinds))  # fmt: skip
        what = bag.pop()
        if what in {"n8n", "n8n killed"}:
            n8n.kill() if what == "n8n killed" else n8n.stop()
            time.sleep(chance.uniform(0, 3))
            n8n.start()
        elif what == "postgres":
            EmbeddedServer(up.home).stop()
        elif pid := up.children.get(what):
            with suppress(ProcessLookupError):
                kill(pid, SIGKILL)
        done[what] += 1
        time.sleep(chance.uniform(2, 8))
    return done


@pytest.mark.timeout(900)
def test_each_of_300_decisions_arrives_whatever_dies_and_each_double_has_its_reason(
    up: Installation, n8n: LocalN8n, inbox: DiscordInbox
) -> None:
    inbox.clear()
    inbox.fail("429", "500", "hang", "reset", "lost answer", one_in=3, seed=SEED)
    started = time.monotonic()
    written: list[int] = []
    writers = [
        threading.Thread(target=write_decisions, args=[up, n, DECISIONS // WRITERS, written])
        for n in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    disturbed = disturb(up, n8n, lambda: not any(writer.is_alive() for writer in writers))
    inbox.heal()
    healed = time.monotonic()

    def arrived() -> Counter[str]:
        return Counter(message.payload["embeds"][0]["footer"]["text"] for message in inbox.messages)

    wanted = {f"agent_decisions:{number}:ai-reject" for number in written}
    await_that(lambda: arrived().keys() >= wanted, "each decision has arrived")
    recovered = time.monotonic() - healed
    await_that(lambda: _waiting(up) == 0, "the ledger knows it")
    counts = arrived()
    with psycopg.connect(up.market_url) as connection:
        unanswered = unanswered_tries(connection)
        in_table = connection.execute(
            "SELECT count(*) FROM agent_decisions WHERE symbol = 'KRW-BTC'"
        ).fetchone()
    doubles = {key: number - 1 for key, number in counts.items() if number > 1}
    print(  # noqa: T201
        f"\n{len(written)} decisions in {healed - started:.0f} s of {dict(disturbed)}; "
        f"{inbox.requests} requests, all there {recovered:.0f} s after the end of it; "
        f"{sum(doubles.values())} doubles"
    )
    assert len(written) >= DECISIONS
    assert in_table == (len(counts),), "nothing else was sent"
    # A message is posted again only when its last post was left without the answer "delivered".
    assert all(number <= unanswered.get(key, 0) for key, number in doubles.items()), doubles


def _waiting(up: Installation) -> int:
    with psycopg.connect(up.market_url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM trading_pipelines.alert_deliveries "
            "WHERE source = 'agent_decisions' AND state <> 'delivered'"
        ).fetchone()
        return row[0] if row else -1
