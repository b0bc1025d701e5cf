"""Each call that leaves the project, before receivers that never end: it ends, and stays small."""

import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from tests.receivers import LATE, LONG, UNPACKED, receiver
from trading_pipelines.alerts import webhooks
from trading_pipelines.alerts.n8n.check import check_workflows
from trading_pipelines.alerts.webhooks import DISCORD, N8N, PostOutcome, Webhooks
from trading_pipelines.candles.page import RetryableError
from trading_pipelines.candles.upbit import Upbit
from trading_pipelines.runtime import graphql
from trading_pipelines.sensors import heartbeat

# On a busy machine the connection alone took more than half a second once.
SECONDS = 1.0
BODY = {"type": "TEST", "level": "INFO", "message": "m", "timestamp": "2025-09-10T12:00:00+00:00"}


def post(via: str) -> Callable[[str], None]:
    def to(url: str) -> None:
        answer = Webhooks(url, "secret", f"{url}/token", SECONDS).post(via, "risk", BODY)
        assert answer.outcome is PostOutcome.NO_RESPONSE, "not delivered: nobody said so"
        assert not answer.is_final

    return to


def probe_n8n(url: str) -> None:
    Webhooks(url, "secret", None, SECONDS).is_n8n_ready()


def check_n8n(url: str) -> None:
    assert not any(check.is_good for check in check_workflows(url, "secret", SECONDS / 5))


def beat(url: str) -> None:
    assert url not in heartbeat._beat(url)


def ask_exchange(url: str) -> None:
    with pytest.raises(RetryableError):
        Upbit(url, SECONDS).minutes("KRW-BTC", datetime(2025, 9, 3, 12, tzinfo=UTC))


def ask_dagster(url: str) -> None:
    with pytest.raises(graphql.NoResponseError):
        graphql.ask(url, "{}", timeout=SECONDS)


CALLS: dict[str, Callable[[str], None]] = {
    "an alert to n8n": post(N8N),
    "an alert to Discord": post(DISCORD),
    "n8n's readiness": probe_n8n,
    "the check of n8n": check_n8n,
    "the heartbeat": beat,
    "the exchange": ask_exchange,
    "Dagster's web server": ask_dagster,
}


@pytest.mark.parametrize("ask", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("kind", [*LATE, *LONG])
def test_a_call_ends_and_stays_small(
    ask: Callable[[str], None], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "PROBE_SECONDS", SECONDS)
    monkeypatch.setattr(heartbeat, "TIMEOUT_SECONDS", SECONDS)
    # Dagster's own is the one answer that may be long: here it may not.
    monkeypatch.setattr(graphql, "MOST_BYTES", 1 << 20)
    with receiver((LATE | LONG)[kind]) as url:
        tracemalloc.start()
        try:
            began = time.monotonic()
            ask(url)
            took = time.monotonic() - began
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert took < 4 * SECONDS
    assert peak < UNPACKED / 8
