"""The stand-in for Discord over HTTP: what it takes, what it refuses and how it fails on demand."""

import threading
import time
from collections.abc import Iterator
from io import StringIO
from typing import Any

import pytest
import requests
from rich.console import Console

from trading_pipelines.simulators.discord import DiscordInbox, FaultKind, refusal, show_message

HELLO = {"content": "hello"}


@pytest.fixture
def inbox() -> Iterator[DiscordInbox]:
    with DiscordInbox() as inbox:
        yield inbox


def post(inbox: DiscordInbox, payload: Any = HELLO, query: str = "?wait=true") -> requests.Response:
    return requests.post(inbox.url + query, json=payload, timeout=60)


def embed(**parts: Any) -> dict[str, Any]:
    return {"embeds": [parts]}


def codes(answer: object) -> set[str]:
    """All error codes in an answer, wherever they are."""
    if isinstance(answer, list):
        return {code for part in answer for code in codes(part)}
    if not isinstance(answer, dict):
        return set()
    here = {answer["code"]} if isinstance(answer.get("code"), str) else set()
    return here | codes(list(answer.values()))


def test_a_message_is_kept_with_its_time_and_query_and_waited_for_answered_with_its_id(
    inbox: DiscordInbox,
) -> None:
    answer = post(inbox, query="?wait=true&thread_id=7")
    (message,) = inbox.messages
    assert (answer.status_code, answer.json()) == (200, {"id": message.id, "type": 0, **HELLO})
    assert message.payload == HELLO
    assert message.query == {"wait": "true", "thread_id": "7"}
    assert message.at.utcoffset() is not None


def test_without_wait_the_answer_has_no_body(inbox: DiscordInbox) -> None:
    answer = post(inbox, query="")
    assert (answer.status_code, answer.content) == (204, b"")
    assert len(inbox.messages) == 1


def test_messages_are_in_their_order_with_ids_of_their_own(inbox: DiscordInbox) -> None:
    for n in range(5):
        post(inbox, {"content": str(n)})
    assert [message.payload["content"] for message in inbox.messages] == list("01234")
    assert len({message.id for message in inbox.messages}) == 5


@pytest.mark.parametrize(
    "payload",
    [
        {"content": "x" * 2000},
        {"embeds": [{"title": "x"}] * 10},
        embed(title="x" * 256, description="x" * 4096),
        embed(fields=[{"name": "n", "value": "v"}] * 25),
        embed(fields=[{"name": "n" * 256, "value": "v" * 1024}]),
        embed(title="x", footer={"text": "x" * 2048}),
        embed(description="x" * 4096, footer={"text": "x" * 1904}),
    ],
)
def test_what_is_just_at_a_limit_is_taken(payload: Any) -> None:
    assert refusal(payload) is None


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        ({"content": "x" * 2001}, "BASE_TYPE_MAX_LENGTH"),
        ({"embeds": [{"title": "x"}] * 11}, "BASE_TYPE_BAD_LENGTH"),
        (embed(title="x" * 257), "BASE_TYPE_MAX_LENGTH"),
        (embed(description="x" * 4097), "BASE_TYPE_MAX_LENGTH"),
        (embed(description="😀" * 2049), "BASE_TYPE_MAX_LENGTH"),
        (embed(fields=[{"name": "n", "value": "v"}] * 26), "BASE_TYPE_BAD_LENGTH"),
        (embed(fields=[{"name": "n" * 257, "value": "v"}]), "BASE_TYPE_MAX_LENGTH"),
        (embed(fields=[{"name": "n", "value": "v" * 1025}]), "BASE_TYPE_MAX_LENGTH"),
        (embed(fields=[{"name": "", "value": "v"}]), "BASE_TYPE_REQUIRED"),
        (embed(fields=[{"name": "n", "value": " \n"}]), "BASE_TYPE_REQUIRED"),
        (embed(fields=[{"name": "n"}]), "BASE_TYPE_REQUIRED"),
        (embed(title="x", footer={"text": "x" * 2049}), "BASE_TYPE_MAX_LENGTH"),
        (embed(description="x" * 4096, footer={"text": "x" * 1905}), "MAX_EMBED_SIZE_EXCEEDED"),
        ({"embeds": [{"description": "x" * 3001}] * 2}, "MAX_EMBED_SIZE_EXCEEDED"),
    ],
)
def test_what_discord_has_no_room_for_is_refused(
    inbox: DiscordInbox, payload: Any, code: str
) -> None:
    answer = post(inbox, payload)
    assert answer.status_code == 400
    assert answer.json()["code"] == 50035
    assert codes(answer.json()["errors"]) == {code}
    assert inbox.messages == []


@pytest.mark.parametrize(
    "payload", [{}, {"content": ""}, {"content": " "}, embed(), embed(title="")]
)
def test_an_empty_message_is_refused(inbox: DiscordInbox, payload: Any) -> None:
    answer = post(inbox, payload)
    assert (answer.status_code, answer.json()["code"]) == (400, 50006)
    assert inbox.messages == []


@pytest.mark.parametrize("body", ["", "{", "[]", '"x"', "\xff"])
def test_what_is_no_json_object_is_refused(inbox: DiscordInbox, body: str) -> None:
    answer = requests.post(inbox.url, data=body.encode("latin-1"), timeout=60)
    assert (answer.status_code, answer.json()["code"]) == (400, 50109)


@pytest.mark.parametrize("path", ["/", "/api/webhooks/1", "/api/webhooks/x/t", "/hooks/1/t"])
def test_another_path_is_not_there(inbox: DiscordInbox, path: str) -> None:
    root = inbox.url.partition("/api")[0]
    assert requests.post(root + path, json=HELLO, timeout=60).status_code == 404
    assert requests.post(f"{root}/api/v10/webhooks/12/a-B_9", json=HELLO, timeout=60).ok
    assert inbox.requests == 1


@pytest.mark.parametrize(
    ("kind", "code"), [("400", 50035), ("401", 50027), ("403", 50013), ("404", 10015), ("500", 0)]
)
def test_a_fault_is_answered_as_discord_does_and_takes_no_message(
    inbox: DiscordInbox, kind: FaultKind, code: int
) -> None:
    inbox.fail(kind)
    answer = post(inbox)
    assert (answer.status_code, answer.json()["code"]) == (int(kind), code)
    assert (inbox.messages, inbox.requests) == ([], 1)


def test_a_forum_channel_takes_what_names_a_thread(inbox: DiscordInbox) -> None:
    inbox.fail("forum")
    assert post(inbox).json()["code"] == 220001
    assert requests.post(f"{inbox.url}?thread_id=7", json=HELLO, timeout=60).ok
    assert requests.post(inbox.url, json={**HELLO, "thread_name": "alerts"}, timeout=60).ok
    assert len(inbox.messages) == 2


def test_a_429_says_when_to_come_again_in_the_body_and_in_a_header(inbox: DiscordInbox) -> None:
    inbox.fail("429", retry_after=1.25)
    answer = post(inbox)
    assert (answer.status_code, answer.json()["retry_after"]) == (429, 1.25)
    assert answer.headers["Retry-After"] == "2"


def test_a_204_takes_the_message_without_a_word(inbox: DiscordInbox) -> None:
    inbox.fail("204")
    answer = post(inbox)
    assert (answer.status_code, answer.content, len(inbox.messages)) == (204, b"", 1)


@pytest.mark.parametrize(("kind", "taken"), [("reset", 0), ("lost answer", 1)])
def test_a_cut_connection_has_lost_the_message_or_the_answer(
    inbox: DiscordInbox, kind: FaultKind, taken: int
) -> None:
    inbox.fail(kind)
    with pytest.raises(requests.ConnectionError, match="reset by peer"):
        post(inbox)
    assert len(inbox.messages) == taken


def test_one_that_hangs_holds_nobody_else_up_and_ends_with_the_inbox() -> None:
    ended = threading.Event()

    def hanging(url: str) -> None:
        with pytest.raises(requests.ConnectionError):
            requests.post(url, json=HELLO, timeout=30)
        ended.set()

    with DiscordInbox() as inbox:
        inbox.fail("hang", times=1)
        threading.Thread(target=hanging, args=[inbox.url]).start()
        while not inbox.requests:
            time.sleep(0.01)
        assert post(inbox).ok
        assert not ended.is_set()
    assert ended.wait(25), "long before its own time-out"
    assert len(inbox.messages) == 1


def test_every_third_fails_until_it_is_healed(inbox: DiscordInbox) -> None:
    inbox.fail("500", every=3)
    assert [post(inbox).status_code for _ in range(6)] == [200, 200, 500] * 2
    inbox.heal()
    assert {post(inbox).status_code for _ in range(3)} == {200}


def test_the_next_two_fail_and_no_more(inbox: DiscordInbox) -> None:
    inbox.fail("500", times=2)
    assert [post(inbox).status_code for _ in range(4)] == [500, 500, 200, 200]


def test_one_in_three_fails_by_a_chance_that_a_seed_repeats(inbox: DiscordInbox) -> None:
    def statuses(seed: int) -> list[int]:
        inbox.fail("400", "500", one_in=3, seed=seed)
        return [post(inbox).status_code for _ in range(60)]

    first = statuses(7)
    assert statuses(7) == first
    assert statuses(8) != first
    assert set(first) == {200, 400, 500}
    assert 10 <= 60 - first.count(200) <= 30


def test_a_fault_that_is_none_is_an_error(inbox: DiscordInbox) -> None:
    with pytest.raises(ValueError, match=r"allowed: .*'lost answer'"):
        inbox.fail("503")  # type: ignore[arg-type]


def test_the_sixth_in_two_seconds_is_too_many_until_it_has_waited() -> None:
    with DiscordInbox(limited=True) as inbox:
        assert [post(inbox).status_code for _ in range(5)] == [200] * 5
        refused = post(inbox)
        wait = refused.json()["retry_after"]
        assert (refused.status_code, len(inbox.messages)) == (429, 5)
        assert 0 < wait <= 2
        time.sleep(wait + 0.01)
        assert post(inbox).status_code == 200


def test_unlimited_a_sixth_is_taken(inbox: DiscordInbox) -> None:
    assert {post(inbox).status_code for _ in range(20)} == {200}


def test_one_can_wait_for_a_message_that_comes_later(inbox: DiscordInbox) -> None:
    post(inbox)
    threading.Timer(0.2, post, [inbox, {"content": "later"}]).start()
    started = time.monotonic()
    found = inbox.wait_for(lambda message: message.payload["content"] == "later", 60)
    assert time.monotonic() - started < 50
    assert found == inbox.messages[1]


def test_waiting_for_what_does_not_come_ends(inbox: DiscordInbox) -> None:
    post(inbox)
    with pytest.raises(TimeoutError, match=r"within 0\.1 s"):
        inbox.wait_for(lambda message: message.payload["content"] == "never", 0.1)


def test_messages_posted_at_once_are_all_kept(inbox: DiscordInbox) -> None:
    threads = [threading.Thread(target=post, args=(inbox,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({message.id for message in inbox.messages}) == 20


def test_cleared_it_is_as_new(inbox: DiscordInbox) -> None:
    inbox.fail("500", every=2)
    assert [post(inbox).status_code for _ in range(2)] == [200, 500]
    inbox.clear()
    assert (inbox.messages, inbox.requests) == ([], 0)
    assert {post(inbox).status_code for _ in range(2)} == {200}


def test_a_message_is_shown_with_all_its_parts_and_as_it_is() -> None:
    fields = [
        {"name": "국면", "value": "BEAR", "inline": True},
        {"name": "RSI", "value": "27.4", "inline": True},
        {"name": "사유", "value": "[red]no markup[/red]", "inline": False},
    ]
    payload = {
        "content": "hello",
        "embeds": [
            {"title": "[TEST] AI 거절", "description": "[b]x", "color": 1, "fields": fields,
             "footer": {"text": "key-1"}},
            {"title": "second"},
        ],
    }  # fmt: skip
    console = Console(file=StringIO(), width=60, record=True, color_system="truecolor")
    console.print(show_message(payload))
    shown = console.export_text(styles=False, clear=False)
    parts = ("hello", "[TEST] AI 거절", "[b]x", "[red]no markup[/red]", "key-1", "second")
    assert [part for part in parts if part not in shown] == []
    (line,) = [line for line in shown.splitlines() if "국면" in line]
    assert "RSI" in line
    assert "38;2;0;0;1m" in console.export_text(styles=True)
