"""What each answer of n8n or Discord means, asked of real servers; no secret goes astray."""

import socket
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.alerts.conftest import (
    DELIVERED,
    HALF,
    HANG,
    NOT_READY,
    PAGE,
    POSTED,
    READY,
    RESET,
    SECRET,
    TOKEN,
    Receiver,
    Reply,
    refusal,
)
from trading_pipelines.alerts.discord import discord_message
from trading_pipelines.alerts.webhooks import DISCORD, N8N, PostOutcome, WebhookAnswer, Webhooks
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import AlertSettings

BODY = {
    "type": "MAX_EXPOSURE",
    "level": "WARNING",
    "message": "한글 👍",
    "timestamp": "2025-09-10T12:00:00+00:00",
    "idempotency_key": "risk_audit:1:risk",
}


@pytest.fixture
def webhooks(n8n: Receiver, discord: Receiver) -> Webhooks:
    return Webhooks(n8n.url, SECRET, f"{discord.url}/api/webhooks/1/{TOKEN}", 5.0)


@pytest.fixture
def hasty(webhooks: Webhooks) -> Webhooks:
    """The same, that waits no longer than a test may."""
    return Webhooks(webhooks.n8n_url, SECRET, webhooks.discord_url, 0.2)


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A URL at which nobody listens, and nobody else will."""
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


def told(answer: WebhookAnswer) -> tuple[PostOutcome, int | None, bool]:
    return answer.outcome, answer.status, answer.is_final


def test_n8n_is_posted_the_body_with_the_secret_and_the_key(
    n8n: Receiver, discord: Receiver, webhooks: Webhooks
) -> None:
    answer = webhooks.post(N8N, "risk", BODY)
    assert told(answer) == (PostOutcome.DELIVERED, 200, False)
    assert answer.message_id == "1130"
    assert 0 < answer.seconds < 5
    (request,) = n8n.requests
    assert (request.method, request.path, request.query) == ("POST", "/webhook/risk", "")
    assert request.body == BODY
    assert request.headers["X-Webhook-Secret"] == SECRET
    assert request.headers["Idempotency-Key"] == "risk_audit:1:risk"
    assert request.headers["Content-Type"] == "application/json"
    assert discord.requests == []


def test_n8n_below_a_path_and_without_a_secret_is_posted_to(n8n: Receiver) -> None:
    Webhooks(f"{n8n.url}/n8n", None, None, 5.0).post(N8N, "ai-reject", {})
    (request,) = n8n.requests
    assert request.path == "/n8n/webhook/ai-reject"
    assert request.headers["X-Webhook-Secret"] == ""


def test_discord_is_posted_the_message_and_never_the_secret(
    n8n: Receiver, discord: Receiver, webhooks: Webhooks
) -> None:
    discord.script.append(POSTED)
    answer = webhooks.post(DISCORD, "risk", BODY)
    assert told(answer) == (PostOutcome.DELIVERED, 200, False)
    assert answer.message_id == "1131"
    (request,) = discord.requests
    assert request.path == f"/api/webhooks/1/{TOKEN}"
    assert request.query == "wait=true", "else an unsaved message is no error"
    assert request.body == discord_message("risk", BODY)
    assert request.body["allowed_mentions"] == {"parse": []}
    assert SECRET not in str(request.headers)
    assert n8n.requests == []


def test_a_thread_of_discords_is_kept(discord: Receiver) -> None:
    Webhooks(None, None, f"{discord.url}/api/webhooks/1/x?thread_id=7", 5.0).post(
        DISCORD, "risk", BODY
    )
    assert discord.requests[0].query == "thread_id=7&wait=true"


def test_a_threads_name_is_sent_unless_the_url_names_a_thread(
    n8n: Receiver, discord: Receiver
) -> None:
    hook = f"{discord.url}/api/webhooks/1/x"
    for url in (hook, f"{hook}?thread_id=7"):
        Webhooks(n8n.url, SECRET, url, 5.0, "alerts").post(DISCORD, "risk", BODY)
    assert [request.body.get("thread_name") for request in discord.requests] == ["alerts", None]
    Webhooks(n8n.url, SECRET, None, 5.0, "alerts").post(N8N, "risk", BODY)
    assert n8n.requests[0].body == BODY | {"thread_name": "alerts"}


@pytest.mark.parametrize(
    ("via", "reply", "trouble", "of"),
    [
        (DISCORD, Reply(429, "page"), "limited", DISCORD),
        (N8N, refusal(429), "limited", DISCORD),
        (N8N, Reply(429, "page"), "limited", N8N),
        (DISCORD, Reply(404, {"message": "Unknown Webhook", "code": 10015}), "broken", DISCORD),
        (N8N, refusal(404), "broken", DISCORD),
        (N8N, refusal(307), "broken", DISCORD),
        (N8N, Reply(302, headers={"Location": "https://x/"}), "broken", N8N),
        (N8N, Reply(403, "wrong secret"), "broken", N8N),
        (N8N, Reply(404, "not registered"), None, ""),
        (N8N, Reply(400, "odd"), None, ""),
        (DISCORD, Reply(400, {"message": "Invalid Form Body", "code": 50035}), None, ""),
        (DISCORD, Reply(403, {"message": "blocked", "code": 240000}), None, ""),
        (DISCORD, Reply(503), None, ""),
    ],
)
def test_whose_fault_it_is(
    n8n: Receiver,
    discord: Receiver,
    webhooks: Webhooks,
    via: str,
    reply: Reply,
    trouble: str | None,
    of: str,
) -> None:
    for receiver in (n8n, discord):
        receiver.script.append(reply)
    answer = webhooks.post(via, "risk", BODY)
    assert (answer.trouble, answer.of) == (trouble, of)
    assert bool(answer.advice) == bool(trouble)


def test_no_secret_is_in_the_advice(discord: Receiver, webhooks: Webhooks) -> None:
    discord.script.append(Reply(301, headers={"Location": f"https://d/api/webhooks/1/{TOKEN}"}))
    advice = webhooks.post(DISCORD, "risk", BODY).advice
    assert "https://d/api/webhooks/1/***" in advice


NO = {"delivered": False}
OURS, THEIRS = PostOutcome.REFUSED, PostOutcome.NO_RESPONSE


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (DELIVERED, (PostOutcome.DELIVERED, 200, False)),
        (Reply(201, {"delivered": True}), (PostOutcome.DELIVERED, 201, False)),
        # Success is a 2xx in which our workflow says so, and nothing else.
        (Reply(302, {"delivered": True}), (OURS, 302, True)),
        (Reply(500, {"delivered": True}), (OURS, 500, False)),
        (Reply(200, {"delivered": "true"}), (OURS, 200, False)),
        (Reply(200, {"delivered": 1}), (OURS, 200, False)),
        (Reply(200, NO), (OURS, 200, False)),
        (Reply(200), (THEIRS, 200, False)),
        (Reply(200, {"message": "Workflow was started"}), (THEIRS, 200, False)),
        (Reply(200, [True]), (THEIRS, 200, False)),
        (Reply(200, "delivered"), (THEIRS, 200, False)),
        (Reply(200, b'{"delivered": tru'), (THEIRS, 200, False)),
        (Reply(200, b"\xff\xfe\x00"), (THEIRS, 200, False)),
        (Reply(200, b"[" * 100_000), (THEIRS, 200, False)),
        (Reply(200, b"9" * 10_000), (THEIRS, 200, False)),
        (Reply(204), (THEIRS, 204, False)),
        (Reply(302, headers={"Location": "/webhook/else"}), (THEIRS, 302, True)),
        *[
            (Reply(status, {"message": "no"}), (THEIRS, status, True))
            for status in (400, 401, 403, 410, 413, 422)
        ],
        # n8n says so while it starts.
        (Reply(404, {"message": "webhook not registered"}), (THEIRS, 404, False)),
        *[(Reply(status), (THEIRS, status, False)) for status in (408, 425, 429)],
        *[(Reply(status), (THEIRS, status, False)) for status in (500, 502, 503, 504)],
        (PAGE, (THEIRS, 502, False)),
        # Our workflow's own word.
        (Reply(400, NO | {"error": "lacks symbol"}), (OURS, 400, True)),
        (Reply(403, NO), (OURS, 403, True)),
        (Reply(500, NO), (OURS, 500, False)),
        (refusal(None), (OURS, 502, False)),
        *[(refusal(status), (OURS, status, True)) for status in (400, 401, 403, 404, 413)],
        *[(refusal(status), (OURS, status, False)) for status in (408, 429, 500, 503)],
        (refusal(204), (OURS, 204, False)),
        # What is no HTTP status says nothing.
        *[
            (Reply(502, NO | {"status": odd}), (OURS, 502, False))
            for odd in (True, 99_999, -1, 0, "400", 400.5, [400])
        ],
    ],
)
def test_an_answer_of_n8n(
    n8n: Receiver, webhooks: Webhooks, reply: Reply, expected: tuple[PostOutcome, int, bool]
) -> None:
    n8n.script.append(reply)
    answer = webhooks.post(N8N, "risk", BODY)
    assert told(answer) == expected
    assert answer.text
    assert len(n8n.requests) == 1


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (POSTED, (PostOutcome.DELIVERED, 200, False)),
        # Only a message with its id is Discord's word; these are a portal's, or a proxy's.
        *[
            (Reply(status, body), (THEIRS, status, False))
            for status, body in (
                *((204, None), (200, None), (200, "<html>Log in to this network</html>")),
                *((200, {}), (200, {"id": None}), (200, {"id": ""}), (200, {"id": 5})),
                *((200, ["1131"]), (200, b'{"id": "11'), (201, {"message": "ok"})),
            )
        ],
        (Reply(302, headers={"Location": "/else"}), (OURS, 302, True)),
        *[
            (Reply(status, {"message": "no", "code": 10015}), (OURS, status, True))
            for status in (400, 401, 403, 404, 405, 410, 413, 422)
        ],
        *[(Reply(status, {"message": "no"}), (OURS, status, False)) for status in (408, 425, 429)],
        *[(Reply(status), (OURS, status, False)) for status in (500, 502, 503)],
        (PAGE, (OURS, 502, False)),
    ],
)
def test_an_answer_of_discord(
    discord: Receiver, webhooks: Webhooks, reply: Reply, expected: tuple[PostOutcome, int, bool]
) -> None:
    discord.script.append(reply)
    assert told(webhooks.post(DISCORD, "risk", BODY)) == expected
    assert len(discord.requests) == 1


@pytest.mark.parametrize("via", [N8N, DISCORD])
@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (HANG, PostOutcome.NO_RESPONSE),
        # It had the request, and may have passed it on.
        (HALF, PostOutcome.NO_RESPONSE),
        (RESET, PostOutcome.NO_RESPONSE),
    ],
)
def test_an_answer_that_does_not_come(
    n8n: Receiver,
    discord: Receiver,
    hasty: Webhooks,
    via: str,
    fault: Reply,
    expected: PostOutcome,
) -> None:
    for receiver in (n8n, discord):
        receiver.script.append(fault)
    answer = hasty.post(via, "risk", BODY)
    assert told(answer) == (expected, None, False)
    assert answer.seconds < 5
    assert len(n8n.requests + discord.requests) == 1


@pytest.mark.parametrize("via", [N8N, DISCORD])
@pytest.mark.parametrize("url", ["", "http://[", "http://127.0.0.1:port"])
def test_nobody_there(nowhere: str, via: str, url: str) -> None:
    webhooks = Webhooks(url or nowhere, SECRET, f"{url or nowhere}/{TOKEN}", 2.0)
    answer = webhooks.post(via, "risk", BODY)
    assert told(answer) == (PostOutcome.CONNECT_FAILED, None, False)
    assert TOKEN not in answer.text


def test_no_connection_in_time_reached_nobody() -> None:
    with closing(socket.socket()) as full, closing(socket.socket()) as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        first.connect(address)  # the only place in the queue
        with closing(socket.socket()) as second:
            second.setblocking(False)
            second.connect_ex(address)
            answer = Webhooks(f"http://127.0.0.1:{address[1]}", SECRET, None, 0.2).post(
                N8N, "risk", BODY
            )
    assert told(answer) == (PostOutcome.CONNECT_FAILED, None, False)


@pytest.mark.parametrize("via", [N8N, DISCORD])
def test_a_redirect_is_not_followed(
    n8n: Receiver, discord: Receiver, webhooks: Webhooks, via: str
) -> None:
    elsewhere = Receiver()
    try:
        for receiver in (n8n, discord):
            for status in (301, 302, 303, 307, 308):
                receiver.script.append(Reply(status, headers={"Location": f"{elsewhere.url}/x"}))
        for _ in range(5):
            assert webhooks.post(via, "risk", BODY).is_final
        assert elsewhere.requests == [], "the secret would have gone there"
    finally:
        elsewhere.close()


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (Reply(429), None),
        (Reply(429, headers={"Retry-After": "7"}), 7.0),
        (Reply(503, "page", {"Retry-After": "2.5"}), 2.5),
        (Reply(429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), 0.0),
        (Reply(429, {"message": "slow", "retry_after": 0.364}), 0.364),
        (Reply(429, {"retry_after": 0.364}, {"Retry-After": "1"}), 0.364),
        (Reply(429, {"retry_after": None}, {"Retry-After": "1"}), 1.0),
        *[
            (Reply(429, {"retry_after": odd}, {"Retry-After": str(odd)}), None)
            for odd in ("soon", "nan", "-1", "inf", "Wed, 99 Oct 2015", "", -1, True)
        ],
    ],
)
def test_when_discord_says_to_come_again(
    discord: Receiver, webhooks: Webhooks, reply: Reply, seconds: float | None
) -> None:
    discord.script.append(reply)
    assert webhooks.post(DISCORD, "risk", BODY).retry_after == seconds


@pytest.mark.parametrize(
    ("reply", "seconds"),
    [
        (refusal(429, retry_after=1.5), 1.5),
        (refusal(429, retry_after=0), 0.0),
        (refusal(429), None),
        (Reply(429, "page", {"Retry-After": "30"}), 30.0),
    ],
)
def test_when_n8n_says_to_come_again(
    n8n: Receiver, webhooks: Webhooks, reply: Reply, seconds: float | None
) -> None:
    n8n.script.append(reply)
    assert (webhooks.post(N8N, "risk", BODY).retry_after or None) == (seconds or None)


@pytest.mark.parametrize("via", [N8N, DISCORD])
def test_they_may_say_it_as_a_date(
    n8n: Receiver, discord: Receiver, webhooks: Webhooks, via: str
) -> None:
    in_an_hour = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    for receiver in (n8n, discord):
        receiver.script.append(Reply(503, headers={"Retry-After": in_an_hour}))
    assert webhooks.post(via, "risk", BODY).retry_after == pytest.approx(3600, abs=60)


@pytest.mark.parametrize("seconds", [1e9, 1e18, 1e300, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_nobody_makes_an_alert_wait_for_ever(
    n8n: Receiver, webhooks: Webhooks, seconds: float | str
) -> None:
    n8n.script.append(Reply(429, headers={"Retry-After": str(seconds)}))
    n8n.script.append(refusal(429, retry_after=seconds))
    n8n.script.append(Reply(503, headers={"Retry-After": str(seconds)}))
    for longest in (1800, 43200, 43200):
        answer = webhooks.post(N8N, "risk", BODY)
        assert answer.retry_after in {None, longest}, "a header of a 429 may be anybody's"


@pytest.mark.parametrize("key", ["pipeline:한글", "a\nb", "a\rb: c", "\udfff"])
def test_a_key_that_no_header_can_hold_is_sent_all_the_same(
    n8n: Receiver, webhooks: Webhooks, key: str
) -> None:
    answer = webhooks.post(N8N, "risk", BODY | {"idempotency_key": key})
    assert answer.outcome is PostOutcome.DELIVERED
    assert len(n8n.posts) == 1
    assert n8n.posts[0].headers["Idempotency-Key"]


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), {1, 2}, datetime.now(UTC)])
def test_a_body_that_is_no_json_is_no_sign_that_n8n_is_away(
    n8n: Receiver, webhooks: Webhooks, odd: object
) -> None:
    answer = webhooks.post(N8N, "risk", BODY | {"message": odd})
    assert told(answer) == (PostOutcome.REFUSED, None, True)
    assert n8n.requests == []


def test_a_channel_that_discord_has_no_message_for_is_refused(webhooks: Webhooks) -> None:
    assert told(webhooks.post(DISCORD, "nowhere", BODY)) == (PostOutcome.REFUSED, None, True)


@pytest.mark.parametrize("via", [N8N, DISCORD])
@pytest.mark.parametrize(
    "reply",
    [
        Reply(500, f"<p>{'x' * 480} {SECRET} {SECRET}"),
        Reply(500, {"message": f"You sent {SECRET}"}),
        Reply(502, {"delivered": False, "error": f"POST /api/webhooks/1/{TOKEN}: {SECRET}"}),
        HANG,
        RESET,
    ],
)
def test_no_secret_is_in_the_words_of_an_answer(
    n8n: Receiver, discord: Receiver, hasty: Webhooks, via: str, reply: Reply
) -> None:
    for receiver in (n8n, discord):
        receiver.script.append(reply)
    answer = hasty.post(via, "risk", BODY)
    for secret in (SECRET, TOKEN, SECRET[:8], TOKEN[:8]):
        assert secret not in repr(answer), answer
    assert len(answer.text) <= 500


def test_no_secret_is_in_what_is_printed(webhooks: Webhooks, nowhere: str) -> None:
    gone = Webhooks(nowhere, SECRET, f"{nowhere}/api/webhooks/1/{TOKEN}", 1.0)
    for text in (repr(webhooks), str(webhooks), repr(gone.post(DISCORD, "risk", BODY))):
        assert SECRET not in text
        assert TOKEN not in text
        assert "127.0.0.1" not in text


ANSWERS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["delivered", "status", "retry_after", "error", "message_id", "id"]),
            inner,
        )
    ),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(min_value=200, max_value=599), ANSWERS, st.sampled_from([N8N, DISCORD]))
@example(200, {"delivered": True, "message_id": "\0\ud800"}, N8N)
@example(429, {"retry_after": 10**400}, DISCORD)
@example(502, {"delivered": False, "status": 10**30, "error": ["\0"]}, N8N)
def test_whatever_is_answered_is_an_answer(
    n8n: Receiver, discord: Receiver, webhooks: Webhooks, status: int, body: Any, via: str
) -> None:
    for receiver in (n8n, discord):
        receiver.script.clear()
        receiver.script.append(Reply(status, body))
    answer = webhooks.post(via, "risk", BODY)
    assert (answer.outcome is PostOutcome.DELIVERED) == (
        status < 300
        and isinstance(body, dict)
        and (
            bool(isinstance(body.get("id"), str) and body["id"])
            if via == DISCORD
            else body.get("delivered") is True
        )
    )
    assert answer.outcome is not PostOutcome.CONNECT_FAILED
    assert answer.status is not None
    assert 100 <= answer.status <= 599
    assert answer.retry_after is None or 0 <= answer.retry_after <= 7 * 86400
    assert not (answer.is_final and answer.outcome is PostOutcome.DELIVERED)


def test_n8n_is_ready_when_it_says_so(n8n: Receiver, webhooks: Webhooks, nowhere: str) -> None:
    for reply, expected in ((READY, True), (NOT_READY, False), (PAGE, False), (READY, True)):
        n8n.answer = lambda _, reply=reply: reply  # type: ignore[misc]
        assert webhooks.is_n8n_ready() is expected
    n8n.answer = lambda _: RESET
    assert not webhooks.is_n8n_ready()
    assert {request.path for request in n8n.requests} == {"/healthz/readiness"}
    assert SECRET not in str([request.headers for request in n8n.requests])
    assert not Webhooks(nowhere, SECRET, None, 1.0).is_n8n_ready()
    assert not Webhooks(None, SECRET, None, 1.0).is_n8n_ready()


def test_where_alerts_go_is_read_from_the_environment() -> None:
    def of(**variables: str) -> Webhooks | None:
        return Webhooks.of(Environment.model_validate(variables), AlertSettings())

    assert of() is None
    assert of(n8n_webhook_secret=SECRET) is None
    both = of(n8n_url="http://n8n:5678/", discord_webhook_url="http://d/x", n8n_webhook_secret="s")
    assert both
    assert (both.n8n_url, both.secret, both.discord_url) == ("http://n8n:5678", "s", "http://d/x")
    assert both.timeout == AlertSettings().timeout_seconds
    alone = of(discord_webhook_url="http://d/x")
    assert alone
    assert (alone.n8n_url, alone.secret) == (None, None)
