"""An endpoint in trouble loses no alert: it waits, one asks now and then, and then all go out."""

import itertools
from datetime import timedelta
from typing import Any

import pytest
from rich.console import Console

from tests.alerts.conftest import (
    POSTED,
    Reply,
    Request,
    refusal,
    usual,
)
from tests.alerts.test_delivery import PAST_THE_BURST, SECOND, Bench, always, bench
from trading_pipelines.alerts import endpoints, failures
from trading_pipelines.alerts.incidents import reconcile
from trading_pipelines.alerts.kinds import AI_REJECT, PIPELINE_FAILURE, TRADE
from trading_pipelines.alerts.webhooks import DISCORD, Webhooks
from trading_pipelines.assets.alert_deliveries import ENDPOINTS_WORK
from trading_pipelines.database.connection import connect
from trading_pipelines.korean_time import kst
from trading_pipelines.monitoring.status import InstallationStatus, draw

__all__ = ["bench"]

DIRECT: dict[str, Any] = {"n8n": False, "discord": True}
DELETED = Reply(404, {"message": "Unknown Webhook", "code": 10015})
WRONG_TOKEN = Reply(401, {"message": "Invalid Webhook Token", "code": 50027})
FORBIDDEN = Reply(403, {"message": "Missing Permissions", "code": 50013})
FORUM = Reply(
    400,
    {
        "message": "Webhooks posted to forum channels must have a thread_name or thread_id",
        "code": 220001,
    },
)
MOVED = Reply(302, "moved", {"Location": "https://elsewhere.example/hook"})
PROBED = timedelta(seconds=90)
BLOCKED = Reply(429, "<html>Error 1015: you are being rate limited</html>")

BROKEN = {
    "deleted": (DELETED, "make a new webhook"),
    "wrong token": (WRONG_TOKEN, "token is wrong"),
    "forbidden": (FORBIDDEN, "let the webhook post"),
    "a forum": (FORUM, "thread_id"),
    "redirect": (MOVED, "https://elsewhere.example/hook"),
    "gone": (Reply(410, "gone"), "make a new webhook"),
}


def say(bench: Bench, reply: Reply) -> None:
    bench.discord.answer = always(reply)


def pass_time(bench: Bench, seconds: float, step: float = 30.0, **options: Any) -> None:
    """Let the ledger's clock go on, with a look each `step` seconds."""
    for _ in range(int(seconds / step)):
        bench.clock.advance(step)
        bench.deliver(**options)


@pytest.mark.parametrize(("reply", "advice"), BROKEN.values(), ids=BROKEN)
def test_what_a_broken_webhook_refuses_waits_and_goes_out_when_it_is_mended(
    bench: Bench, reply: Reply, advice: str
) -> None:
    say(bench, reply)
    began = bench.clock.now
    for _ in range(3):
        bench.reject()
    bench.deliver(**DIRECT)
    assert set(bench.states()) == {"retrying", "pending"}
    (endpoint,) = endpoints.broken(bench.bot.connection)
    assert (endpoint.name, endpoint.since) == (DISCORD, began)
    assert endpoint.status == reply.status
    assert f"Discord answers {reply.status}" in endpoint.answer
    assert advice in endpoint.advice
    pass_time(bench, 1800, **DIRECT)
    assert len(bench.discord.posts) == 1 + 1800 // PROBED.total_seconds(), "one now and then"
    assert endpoints.broken(bench.bot.connection)[0].since == began
    assert bench.bot.ledger("attempts") == [0, 0, 0], "the waiting uses up no tries"
    say(bench, POSTED)
    pass_time(bench, 240, **DIRECT)
    assert bench.states() == ["delivered"] * 3
    assert endpoints.broken(bench.bot.connection) == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_n8n_reports_a_broken_webhook_of_discords_and_nothing_goes_round_it(
    bench: Bench, status: int
) -> None:
    bench.n8n.answer = always(refusal(status, error=f"Discord answered {status}: no"))
    bench.reject()
    bench.deliver(discord=True)
    pass_time(bench, 600, discord=True)
    assert bench.states() == ["retrying"]
    assert bench.discord.posts == [], "it is the same webhook"
    assert [one.name for one in endpoints.broken(bench.bot.connection)] == [DISCORD]
    bench.n8n.answer = usual
    pass_time(bench, 240, discord=True)
    assert bench.states() == ["delivered"]


def test_a_forum_that_n8n_reports_is_the_webhooks_fault(bench: Bench) -> None:
    """n8n reports Discord's words alone."""
    assert isinstance(FORUM.body, dict)
    bench.n8n.answer = always(refusal(400, error=f"Discord answered 400: {FORUM.body['message']}"))
    bench.reject()
    bench.deliver()
    assert bench.states() == ["retrying"]
    assert "thread_id" in endpoints.broken(bench.bot.connection)[0].advice


def test_a_message_that_is_refused_for_its_own_body_is_dead_alone_with_its_field(
    bench: Bench,
) -> None:
    errors = {"embeds": {"0": {"title": {"_errors": [{"code": "X", "message": "Too long."}]}}}}
    invalid = Reply(400, {"message": "Invalid Form Body", "code": 50035, "errors": errors})
    bench.discord.script.append(invalid)
    for _ in range(2):
        bench.reject()
    bench.deliver(**DIRECT)
    assert bench.states() == ["dead", "delivered"]
    assert bench.bot.ledger("last_error")[0] == (
        "Discord answers 400: Invalid Form Body (embeds.0.title: Too long.)"
    )
    assert endpoints.broken(bench.bot.connection) == []


def test_what_is_blocked_for_its_words_is_no_fault_of_the_webhook(bench: Bench) -> None:
    bench.discord.script.append(Reply(403, {"message": "blocked by AutoMod", "code": 200000}))
    for _ in range(2):
        bench.reject()
    bench.deliver(**DIRECT)
    assert bench.states() == ["dead", "delivered"]


def test_a_message_that_is_refused_shows_that_the_webhook_is_mended(bench: Bench) -> None:
    say(bench, DELETED)
    for _ in range(2):
        bench.reject()
    bench.deliver(**DIRECT)
    say(bench, POSTED)
    bench.discord.script.append(Reply(400, {"message": "Invalid Form Body", "code": 50035}))
    bench.clock.advance(PROBED.total_seconds())
    bench.deliver(**DIRECT)
    assert bench.states() == ["dead", "delivered"]


def test_an_error_of_discords_own_says_nothing_of_whether_it_is_mended(bench: Bench) -> None:
    say(bench, DELETED)
    for _ in range(3):
        bench.reject()
    bench.deliver(**DIRECT)
    say(bench, Reply(503))
    almost = int(PROBED.total_seconds()) - 1
    pass_time(bench, almost, 1.0, **DIRECT)
    assert len(bench.discord.posts) == 1
    pass_time(bench, almost, 1.0, **DIRECT)
    assert len(bench.discord.posts) == 2, "still one at a time"
    assert endpoints.broken(bench.bot.connection)


def test_another_webhook_is_asked_at_once(bench: Bench) -> None:
    say(bench, DELETED)
    bench.reject()
    bench.deliver(**DIRECT)
    say(bench, POSTED)
    sender = bench.sender(**DIRECT)
    new = Webhooks(None, None, f"{bench.discord.url}/api/webhooks/2/new", bench.timeout)
    object.__setattr__(sender, "webhooks", new)
    sender.deliver(lambda: False, watch=False)
    assert bench.states() == ["delivered"]


def test_what_has_waited_as_long_as_the_look_back_is_given_up(bench: Bench) -> None:
    say(bench, DELETED)
    bench.reject("old")
    bench.deliver(look_back_days=2, **DIRECT)
    bench.clock.advance(86400)
    bench.reject("young")
    bench.deliver(look_back_days=2, **DIRECT)
    bench.bot.connection.execute(
        "UPDATE trading_pipelines.alert_deliveries SET created_at = occurred_at"
    )
    bench.clock.advance(86401)
    bench.deliver(look_back_days=2, **DIRECT)
    assert bench.states()[0] == "dead"
    assert bench.states()[1] in {"pending", "retrying"}
    assert "look_back_days" in bench.bot.ledger("last_error")[0]


# The rest that a 429 asks for.


@pytest.mark.parametrize("via", ["direct", "n8n"])
def test_a_rest_holds_the_whole_webhook_over_kinds_and_restarts(
    bench: Bench, other: Any, via: str
) -> None:
    options: dict[str, Any] = DIRECT if via == "direct" else {}
    bench.discord.script.append(Reply(429, {"message": "slow", "retry_after": 20.5}))
    bench.n8n.script.append(refusal(429, retry_after=20.5))
    for _ in range(3):
        bench.reject()
    bench.bot.trade(bench.clock.now)
    bench.deliver(**options)
    bench.deliver(TRADE, connection=other, **options)
    posts = bench.discord.posts + bench.n8n.posts
    assert len(posts) == 1, "neither the next alert nor another kind's"
    bench.clock.advance(20)
    bench.deliver(TRADE, connection=other, **options)
    assert bench.bot.ledger("attempts", "kind = 'trade'") == [0]
    bench.clock.advance(0.5)
    bench.deliver(**options)
    bench.deliver(TRADE, connection=other, **options)
    assert bench.states() == ["delivered"] * 4
    assert bench.bot.ledger("attempts")[0] == 1, "the rest has spent no try"


def test_a_rest_of_n8ns_report_holds_the_way_round_n8n_too(bench: Bench) -> None:
    bench.n8n.script.append(refusal(429, retry_after=100))
    bench.reject()
    bench.deliver(discord=True, fallback_after=0.0)
    bench.n8n.stop()
    bench.reject()
    pass_time(bench, 90, discord=True, fallback_after=0.0)
    assert bench.discord.posts == []
    pass_time(bench, 60, discord=True, fallback_after=0.0)
    assert bench.states() == ["delivered"] * 2


@pytest.mark.parametrize(
    "reply",
    [
        BLOCKED,
        Reply(429, {"error": "blocked"}),
        Reply(429, {"retry_after": None}),
        Reply(429, {"retry_after": 0}),
        Reply(429, "", {"Retry-After": "0"}),
        Reply(429, "", {"Retry-After": "soon"}),
    ],
)
def test_a_429_that_does_not_say_how_long_rests_a_minute_then_longer(
    bench: Bench, reply: Reply
) -> None:
    say(bench, reply)
    began = bench.clock.now
    bench.reject()
    asked = []
    for _ in range(2 * 3600 // 10):
        before = len(bench.discord.posts)
        bench.deliver(**DIRECT)
        if len(bench.discord.posts) > before:
            asked.append((bench.clock.now - began).total_seconds())
        bench.clock.advance(10)
    (endpoint,) = endpoints.in_trouble(bench.bot.connection).values()
    assert endpoint.since == began
    waits = [later - earlier for earlier, later in itertools.pairwise(asked)]
    assert waits == pytest.approx([60, 120, 240, 480, 960, 1800, 1800], abs=10)
    assert bench.bot.ledger("state, attempts") == [("retrying", 0)]


@pytest.mark.parametrize(
    ("reply", "longest"),
    [
        (Reply(429, "", {"Retry-After": "100000000000000"}), 1800),
        (Reply(429, {"retry_after": 7200.0}), 7200),
        (Reply(429, {"retry_after": 1e14}), 43200),
    ],
)
def test_an_absurd_rest_is_bounded(bench: Bench, reply: Reply, longest: float) -> None:
    bench.discord.script.append(reply)
    bench.reject()
    bench.deliver(**DIRECT)
    (endpoint,) = endpoints.in_trouble(bench.bot.connection).values()
    assert endpoint.next_at == bench.clock.now + longest * SECOND
    assert longest < 86400


# n8n itself.


def test_an_n8n_that_redirects_is_left_alone_and_remembered(bench: Bench) -> None:
    bench.n8n.answer = always(Reply(302, "", {"Location": "https://n8n.example/maintenance"}))
    for _ in range(5):
        bench.reject()
        bench.deliver(discord=True)
        bench.deliver(discord=True)
        bench.clock.advance(10)
    assert bench.states() == ["delivered"] * 5
    assert len(bench.n8n.posts) == 1, "the others go straight to Discord"
    (endpoint,) = endpoints.broken(bench.bot.connection)
    assert endpoint.name == "n8n/ai-reject"
    assert "https://n8n.example/maintenance" in endpoint.advice
    bench.n8n.answer = usual
    bench.clock.advance(PROBED.total_seconds())
    bench.reject()
    bench.deliver(discord=True)
    assert len(bench.n8n.posts) == 2
    assert endpoints.broken(bench.bot.connection) == []


@pytest.mark.parametrize("status", [302, 401, 403])
def test_without_discord_alerts_wait_for_an_n8n_that_refuses_us(bench: Bench, status: int) -> None:
    bench.n8n.answer = always(Reply(status, "", {"Location": "https://n8n.example/"}))
    for _ in range(2):
        bench.reject()
    bench.deliver()
    pass_time(bench, 3600)
    assert len(bench.n8n.posts) <= 1 + 3600 // PROBED.total_seconds()
    bench.n8n.answer = usual
    pass_time(bench, 240)
    assert set(bench.states()) <= {"delivered", "digested"}
    assert len(bench.bot.ledger("id", "state = 'delivered'")) >= 1


# Many, and a restart.


class CountingDiscord:
    """Takes what its rate limits allow by the ledger's clock, and notes when."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.at: list[Any] = []
        self.texts: list[str] = []

    def __call__(self, request: Request) -> Reply:
        now = self.bench.clock.now
        self.at.append(now)
        assert len([at for at in self.at if at > now - 2 * SECOND]) <= 5
        assert len([at for at in self.at if at > now - 60 * SECOND]) <= 30
        self.texts.append(str(request.body))
        return POSTED


def test_a_hundred_alerts_of_a_broken_hour_arrive_by_themselves_through_a_restart(
    bench: Bench, bot_url: str
) -> None:
    say(bench, DELETED)
    for n in range(100):
        bench.reject(f"reason {n}")
        bench.clock.advance(36)
        bench.deliver(**DIRECT)
    assert len(bench.discord.posts) <= 41, "one in 90 seconds"
    assert bench.states().count("retrying") + bench.states().count("pending") == 100
    mended_at = bench.clock.now
    taken = CountingDiscord(bench)
    bench.discord.answer = taken
    with connect(bot_url) as restarted:
        while bench.waiting():
            assert bench.clock.now - mended_at < timedelta(minutes=5)
            bench.clock.advance(PAST_THE_BURST)
            bench.deliver(connection=restarted, **DIRECT)
    assert taken.at[0] - mended_at <= PROBED
    assert taken.at[-1] - mended_at <= timedelta(minutes=2)
    told = bench.bot.ledger("state", "source <> 'digest'")
    assert sorted(set(told)) == ["delivered", "digested"]
    assert len(told) == 100
    assert bench.bot.ledger("state", "source = 'digest'") == ["delivered"]
    assert any("밀린 알림 99건" in text for text in taken.texts)


def test_a_few_that_are_old_are_told_in_one_message(bench: Bench) -> None:
    say(bench, DELETED)
    for n in range(3):
        bench.reject(f"reason {n}")
    bench.deliver(**DIRECT)
    pass_time(bench, 2 * 3600, 60.0, **DIRECT)
    say(bench, POSTED)
    pass_time(bench, 240, **DIRECT)
    assert sorted(bench.bot.ledger("state", "source <> 'digest'")) == [
        "delivered",
        "digested",
        "digested",
    ]


# Who says so.


def test_a_broken_endpoint_is_told_by_status_health_the_check_and_an_alert(bench: Bench) -> None:
    say(bench, DELETED)
    bench.reject()
    bench.deliver(**DIRECT)
    (endpoint,) = endpoints.in_trouble(bench.bot.connection).values()
    now = bench.clock.now
    line = (
        f"Discord's webhook: broken since {kst(now)} (Discord answers 404: Unknown Webhook); "
        "what to do: the webhook or its thread was deleted: make a new webhook"
    )
    assert endpoints.described(endpoint, kst).startswith(line)
    status = InstallationStatus([], None, [], [], [], [], 1, 0, None, endpoints=[endpoint])
    console = Console(width=500, record=True)
    for part in draw(status, "up", [], now):
        console.print(part)
    assert f"alerts wait: {line}" in console.export_text()
    check = ENDPOINTS_WORK.evaluation(endpoints.broken(bench.bot.connection))
    assert not check.passed
    assert str(check.metadata["Discord's webhook"].value).startswith(line)
    (failure,) = failures.broken_endpoints(bench.bot.connection)
    assert failure.type == "ENDPOINT_BROKEN"
    assert "make a new webhook" in failure.message
    say(bench, POSTED)
    pass_time(bench, 240, **DIRECT)
    assert ENDPOINTS_WORK.evaluation(endpoints.broken(bench.bot.connection)).passed
    assert failures.broken_endpoints(bench.bot.connection) == []


def test_the_report_of_a_broken_endpoint_does_not_die_of_it(bench: Bench) -> None:
    say(bench, DELETED)
    bench.reject()
    bench.deliver(**DIRECT)
    broken = failures.broken_endpoints(bench.bot.connection)
    reconcile(bench.bot.connection, broken, timedelta(hours=4), bench.clock.now)
    for _ in range(30):
        bench.clock.advance(60)
        bench.deliver(PIPELINE_FAILURE, **DIRECT)
    assert "dead" not in bench.states()
    say(bench, POSTED)
    for _ in range(8):
        bench.clock.advance(60)
        for kind in (AI_REJECT, PIPELINE_FAILURE):
            bench.deliver(kind, **DIRECT)
    assert bench.states() == ["delivered"] * 2
