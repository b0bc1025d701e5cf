"""What a body looks like in Discord. `tests/n8n` posts the same bodies through n8n's workflows."""

import json
from typing import Any

import pytest

from trading_pipelines.alerts.discord import discord_message
from trading_pipelines.simulators.discord import refusal

Body = dict[str, Any]

AT = "2026-11-24T09:03:05.123456+00:00"
BODIES: dict[str, Body] = {
    "ai-reject": {
        "symbol": "KRW-BTC",
        "regime": "BEAR",
        "rsi": 27.36,
        "reason": "하락 추세이며 거래량이 부족함",
        "timestamp": AT,
        "idempotency_key": "agent_decisions:17:ai-reject",
    },
    "ai-decision": {
        "symbol": "KRW-BTC",
        "decision": "REJECT",
        "regime": "SIDEWAYS",
        "rsi": 27.4,
        "rsi_note": "닫힌 1분봉 기준",
        "confidence": 72,
        "boundary_violation": True,
        "boundary_terms": ["가격 한도", "거래량"],
        "model_used": "claude-sonnet",
        "reason": "거래량이 부족함",
        "timestamp": AT,
        "idempotency_key": "agent_decisions:18:ai-decision",
    },
    "trade": {
        "symbol": "KRW-BTC",
        "side": "BUY",
        "price": 158000000,
        "quantity": 0.00063291,
        "strategy": "rsi_reversal",
        "executed_at": "2026-11-24T15:30:00+00:00",
        "timestamp": AT,
    },
    "risk": {
        "type": "COOLDOWN",
        "level": "CRITICAL",
        "message": "3연패: 2026-11-24 20:00 KST까지 중지",
        "timestamp": AT,
    },
    "daily-report": {
        "title": "일일 리포트 2026-11-24",
        "pnl": 12345,
        "trades": 1234,
        "win_rate": 66.66,
        "mdd": 5432.1,
        "summary": "둘째 줄도\n있음",
        "timestamp": AT,
    },
}
SHOWN: dict[str, Body] = {
    "ai-reject": {
        "title": "AI 거절: KRW-BTC",
        "color": 0xE74C3C,
        "fields": [
            {"name": "국면", "value": "BEAR (하락)", "inline": True},
            {"name": "RSI", "value": "27.4", "inline": True},
            {"name": "시각", "value": "2026-11-24 18:03:05 KST", "inline": True},
            {"name": "사유", "value": "하락 추세이며 거래량이 부족함", "inline": False},
        ],
        "footer": {"text": "agent_decisions:17:ai-reject"},
    },
    "ai-decision": {
        "title": "AI 거절: KRW-BTC",
        "description": "거래량이 부족함",
        "color": 0xE74C3C,
        "fields": [
            {"name": "국면", "value": "SIDEWAYS (횡보)", "inline": True},
            {"name": "RSI", "value": "27.4 (닫힌 1분봉 기준)", "inline": True},
            {"name": "확신도", "value": "72 / 100", "inline": True},
            {"name": "모델", "value": "claude-sonnet", "inline": True},
            {"name": "경계 위반", "value": "가격 한도, 거래량", "inline": True},
            {"name": "시각", "value": "2026-11-24 18:03:05 KST", "inline": True},
        ],
        "footer": {"text": "agent_decisions:18:ai-decision"},
    },
    "trade": {
        "title": "매수 체결: KRW-BTC",
        "color": 0x2ECC71,
        "fields": [
            {"name": "가격", "value": "158,000,000 KRW", "inline": True},
            {"name": "수량", "value": "0.00063291", "inline": True},
            {"name": "전략", "value": "rsi_reversal", "inline": True},
            {"name": "시각", "value": "2026-11-25 00:30:00 KST", "inline": True},
        ],
    },
    "risk": {
        "title": "[CRITICAL] COOLDOWN",
        "description": "3연패: 2026-11-24 20:00 KST까지 중지",
        "color": 0x992D22,
        "fields": [{"name": "시각", "value": "2026-11-24 18:03:05 KST", "inline": True}],
    },
    "daily-report": {
        "title": "일일 리포트 2026-11-24",
        "description": "둘째 줄도\n있음",
        "color": 0x9B59B6,
        "fields": [
            {"name": "손익", "value": "+12,345 KRW", "inline": True},
            {"name": "거래 수", "value": "1,234", "inline": True},
            {"name": "승률", "value": "66.7 %", "inline": True},
            {"name": "최대 낙폭", "value": "5,432.1 KRW", "inline": True},
            {"name": "시각", "value": "2026-11-24 18:03:05 KST", "inline": True},
        ],
    },
}
BOTS_REPORT: Body = {
    "title": "📅 CoinPilot Daily Report (2026-11-24)",
    "pnl": "-12,345 KRW",
    "trades": 5,
    "sell_trades": 2,
    "win_rate": "50.0%",
    "mdd": "0.12%",
    "exit_breakdown": {"STOP_LOSS": {"count": 1, "avg_pnl_pct": -3.1, "avg_post_1h_pct": None}},
    "notes": [],
    "summary": "오늘은 손절 1건이 있었습니다.",
    "timestamp": AT,
}
"""The bot writes the units itself."""

TEXTS = {
    "quotes": """그는 "매도"라 했다 'x' `y` \\n \\ \\" {"a": 1}""",
    "lines": "첫 줄\n둘째 줄\r\n\t탭",
    "control characters": "a\x00b\x01\x1b[31mc\x7f\u2028d\u0085",
    "everyone": "@everyone @here <@&1> <@1>",
    "expression": "={{ $env.N8N_WEBHOOK_SECRET }} {{ 1 + 1 }} }} ${process.env} $('Webhook')",
    "markdown": "**a** [b](http://c) ||d|| <script>",
    "empty": "",
    "blank": " \t\n\u3000\ufeff\u200a",
    "blank for Python alone": "\x1c\x1f\x85",
    "around": "\u3000 가운데 \ufeff",
    "of a prototype": "constructor",
    "long": "가나다라" * 1000,
    "emoji at the cut of a title": "x" * 245 + "😀" * 20,
    "emoji at the cut of a field": "x" * 1022 + "😀" * 20,
    "emoji at the cut of a description": "x" * 4094 + "😀" * 20,
    "emoji all through": "😀" * 4000,
    "half an emoji at the cut": "x" * 1022 + "\ud83d" + "x" * 9,
}
NUMBERS: list[Any] = [
    0, -0.0, 1, -1, 1234567.891, 0.1 + 0.2, 66.65, 0.05, 0.049, -0.04, 2.5, 1e-7, 5e-9, 4e-9, -4e-9,
    1e16, 1e21, 1e29, 1e30, 1e99, 1e100, 1e300, 12345678901234567890, 2**63, True, False, [], [5],
    {}, "158000000.00000000", "0.00063291", "123456789012.123456785", " 12 ", "-0", "007", "1e3",
    "-1E-3", "1e100", "", "NaN", "Infinity", "0x10", "1_000", "1,000", "5 KRW", "٣", ".5", "5.",
    "+5", "9" * 31,
]  # fmt: skip
TIMES: list[Any] = [
    "2026-11-24T09:03:05Z", "2026-11-24T09:03:05.9+09:00", "2026-11-24 09:03:05-05:30", "gestern",
    "2026-11-24T09:03:05", "2026-11-24", "2026-02-30T00:00:00Z", "2026-11-24T25:00:00Z", 1764000000,
    "1988-06-01T00:00:00Z", "2026-11-24T09:03:05Z nach Tisch", "",
]  # fmt: skip


def _nasty() -> dict[str, tuple[str, Body]]:
    """Bodies that n8n takes, each with its channel; what each needs is there, if only as null."""
    found: dict[str, tuple[str, Body]] = {}
    for channel, body in BODIES.items():
        found[f"{channel}: as the contract has it"] = channel, body
        found[f"{channel}: marked as a test"] = channel, {**body, "test": True}
        found[f"{channel}: test is no boolean"] = channel, {**body, "test": "true"}
        found[f"{channel}: all null"] = channel, dict.fromkeys(body)
        found[f"{channel}: only what is needed"] = channel, dict.fromkeys(NEEDED[channel], "x")
        found[f"{channel}: objects"] = channel, {name: {"a": [None]} for name in body}
        found[f"{channel}: numbers"] = channel, dict.fromkeys(body, 12.5)
        for what, text in TEXTS.items():
            found[f"{channel}: {what}"] = channel, {**dict.fromkeys(body, text), "test": True}
            found[f"{channel}: {what}, key too"] = channel, {
                **dict.fromkeys(body, text), "idempotency_key": text,
            }  # fmt: skip
    found["as long as can be"] = "daily-report", {
        **dict.fromkeys(BODIES["daily-report"], "가" * 5000), "idempotency_key": "k" * 5000,
        **dict.fromkeys(["pnl", "trades", "win_rate", "mdd"], "9" * 30 + "e99"),
    }  # fmt: skip
    found["daily-report: as the bot posts it"] = "daily-report", BOTS_REPORT
    for number in NUMBERS:
        found[f"price {number!r}"] = "trade", {**BODIES["trade"], "price": number}
        found[f"rsi {number!r}"] = "ai-reject", {**BODIES["ai-reject"], "rsi": number}
        found[f"confidence {number!r}"] = "ai-decision", {
            **BODIES["ai-decision"], "confidence": number, "rsi": number,
        }  # fmt: skip
        found[f"pnl {number!r}"] = "daily-report", {**BODIES["daily-report"], "pnl": number}
    for time in TIMES:
        found[f"at {time!r}"] = "trade", {**BODIES["trade"], "executed_at": time}
    for terms in ("가격 한도", "", [], [None], ["", "a"], [1, {"a": 2}], {"a": 1}, None):
        for violated in (True, False, None, "true", 1):
            found[f"boundary {violated!r} {terms!r}"] = "ai-decision", {
                **BODIES["ai-decision"], "boundary_violation": violated, "boundary_terms": terms,
            }  # fmt: skip
    for decision in ("CONFIRM", "SAFE", "confirm"):
        found[f"decision {decision}"] = "ai-decision", {
            **BODIES["ai-decision"], "decision": decision,
        }  # fmt: skip
    for name in ("level", "regime", "side"):
        for value in (
            "WARNING",
            "INFO",
            "BULL",
            "SIDEWAYS",
            "UNKNOWN",
            "BULL (상승)",
            "SELL",
            "buy",
        ):
            channel = next(channel for channel, body in BODIES.items() if name in body)
            found[f"{name} {value}"] = channel, {**BODIES[channel], name: value}
    return found


NEEDED = {
    "ai-reject": ["symbol", "reason"],
    "ai-decision": ["symbol", "decision"],
    "trade": ["symbol", "side", "price", "quantity"],
    "risk": ["type", "level", "message"],
    "daily-report": ["title", "pnl", "trades", "summary"],
}
NASTY = _nasty()


def _embed(channel: str, **changes: Any) -> Body:
    embed: Body = discord_message(channel, BODIES[channel] | changes)["embeds"][0]
    return embed


def _field(channel: str, name: str, **changes: Any) -> str:
    fields = _embed(channel, **changes)["fields"]
    return str(next(field["value"] for field in fields if field["name"] == name))


def texts_of(value: object) -> list[str]:
    """All that a reader sees of a payload."""
    if isinstance(value, dict):
        return [text for part in value.values() for text in texts_of(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts_of(part)]
    return [value] if isinstance(value, str) else []


def _utf16(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


@pytest.mark.parametrize("channel", BODIES)
def test_each_kind_is_one_embed_that_pings_nobody(channel: str) -> None:
    assert discord_message(channel, BODIES[channel]) == {
        "embeds": [SHOWN[channel]],
        "allowed_mentions": {"parse": []},
    }


@pytest.mark.parametrize("what", NASTY)
def test_discord_takes_whatever_is_in_a_body(what: str) -> None:
    payload = discord_message(*NASTY[what])
    assert refusal(json.loads(json.dumps(payload))) is None
    words = " ".join(texts_of(payload))
    assert not [word for word in ("undefined", "None", "nan", "inf", "{'a'") if word in words]


@pytest.mark.parametrize(
    ("price", "shown"),
    [
        ("158000000.00000000", "158,000,000 KRW"),
        (1234.5, "1,234.5 KRW"),
        (0.000000005, "0.00000001 KRW"),
        ("123456789012.123456785", "123,456,789,012.12345679 KRW"),
        (-0.000000001, "0 KRW"),
        (0, "0 KRW"),
        (1e16, "10,000,000,000,000,000 KRW"),
        (None, "-"),
        ("", "-"),
        ("much", "-"),
        (True, "-"),
        (float("nan"), "-"),
        (float("inf"), "-"),
        (10**400, "-"),
    ],
)
def test_a_price_is_grouped_and_has_at_most_eight_decimals(price: Any, shown: str) -> None:
    assert _field("trade", "가격", price=price) == shown


@pytest.mark.parametrize(
    ("pnl", "shown"),
    [(12345.6, "+12,345.6 KRW"), ("-5", "-5 KRW"), (0, "0 KRW"), (-1e-9, "0 KRW"), (None, "-")],
)
def test_a_profit_has_a_sign(pnl: Any, shown: str) -> None:
    assert _field("daily-report", "손익", pnl=pnl) == shown


@pytest.mark.parametrize(
    ("decision", "title", "color"),
    [
        ("CONFIRM", "AI 승인: KRW-BTC", 0x2ECC71),
        ("REJECT", "AI 거절: KRW-BTC", 0xE74C3C),
        ("SAFE", "AI SAFE: KRW-BTC", 0x95A5A6),
    ],
)
def test_a_decision_has_its_word_and_its_colour(decision: str, title: str, color: int) -> None:
    embed = _embed("ai-decision", decision=decision)
    assert (embed["title"], embed["color"]) == (title, color)


def test_a_decision_of_our_own_has_no_boundary_and_the_bots_post_its_terms() -> None:
    ours = {"boundary_violation": None, "boundary_terms": None}
    names = [field["name"] for field in _embed("ai-decision", **ours)["fields"]]
    assert names == ["국면", "RSI", "확신도", "모델", "시각"]
    assert _field("ai-decision", "경계 위반", boundary_terms="가격") == "가격"
    assert _field("ai-decision", "경계 위반", boundary_terms=[]) == "-"


def test_a_decision_shows_its_reason_of_1500_characters_whole() -> None:
    assert _embed("ai-decision", reason="가" * 1500)["description"] == "가" * 1500


def test_an_rsi_says_what_it_leaves_out() -> None:
    note = "닫힌 1분봉 기준"
    assert _field("ai-reject", "RSI", rsi_note=note) == "27.4 (닫힌 1분봉 기준)"
    assert _field("ai-reject", "RSI", rsi_note=" ") == "27.4"


@pytest.mark.parametrize(
    ("rsi", "shown"),
    [(70, "70.0"), (29.95, "30.0"), ("31.24", "31.2"), (0, "-"), ("0.0", "-"), (None, "-")],
)
def test_an_rsi_has_one_decimal_and_0_is_none(rsi: Any, shown: str) -> None:
    assert _field("ai-reject", "RSI", rsi=rsi) == shown


@pytest.mark.parametrize(
    ("posted", "shown"),
    [
        ({}, ["-12,345 KRW", "5", "50.0%", "0.12%"]),
        ({"win_rate": "N/A", "mdd": "0.00%"}, ["-12,345 KRW", "5", "N/A", "0.00%"]),
        ({"pnl": "12.50 USDT", "trades": "5건"}, ["12.50 USDT", "5건", "50.0%", "0.12%"]),
        ({"pnl": "0 KRW", "trades": None, "mdd": " "}, ["0 KRW", "-", "50.0%", "-"]),
    ],
)
def test_a_report_of_the_bots_own_is_shown_with_every_field(posted: Body, shown: list[str]) -> None:
    embed = discord_message("daily-report", BOTS_REPORT | posted)["embeds"][0]
    names = ["손익", "거래 수", "승률", "최대 낙폭", "시각"]
    expected = dict(zip(names, [*shown, "2026-11-24 18:03:05 KST"], strict=True))
    assert {field["name"]: field["value"] for field in embed["fields"]} == expected
    assert (embed["title"], embed["description"]) == (BOTS_REPORT["title"], BOTS_REPORT["summary"])


def test_without_a_closed_trade_there_is_no_win_rate_and_no_drawdown() -> None:
    assert _field("daily-report", "승률", win_rate=None) == "-"
    assert _field("daily-report", "최대 낙폭", mdd=None) == "-"
    assert _field("daily-report", "승률", win_rate=0) == "0.0 %"


@pytest.mark.parametrize(
    ("regime", "shown"),
    [
        ("BULL", "BULL (상승)"),
        ("BEAR", "BEAR (하락)"),
        ("SIDEWAYS", "SIDEWAYS (횡보)"),
        ("UNKNOWN", "UNKNOWN"),
        ("BU", "BU"),
        (None, "-"),
    ],
)
def test_a_regime_is_named_in_korean_too(regime: str | None, shown: str) -> None:
    assert _field("ai-reject", "국면", regime=regime) == shown


@pytest.mark.parametrize(
    ("side", "title", "color"),
    [
        ("BUY", "매수 체결: KRW-BTC", 0x2ECC71),
        ("SELL", "매도 체결: KRW-BTC", 0x3498DB),
        ("buy", "buy 체결: KRW-BTC", 0x95A5A6),
    ],
)
def test_a_side_has_its_word_and_its_colour(side: str, title: str, color: int) -> None:
    embed = _embed("trade", side=side)
    assert (embed["title"], embed["color"]) == (title, color)


@pytest.mark.parametrize(
    ("level", "color"), [("CRITICAL", 0x992D22), ("WARNING", 0xF39C12), ("INFO", 0x95A5A6)]
)
def test_a_level_has_its_colour(level: str, color: int) -> None:
    embed = _embed("risk", level=level)
    assert (embed["title"], embed["color"]) == (f"[{level}] COOLDOWN", color)


@pytest.mark.parametrize(
    ("timestamp", "shown"),
    [
        ("2026-11-24T23:59:59.999Z", "2026-11-25 08:59:59 KST"),
        ("2026-11-24T09:03:05+09:00", "2026-11-24 09:03:05 KST"),
        ("2026-11-24 09:03:05", "2026-11-24 18:03:05 KST"),
        ("2026-02-30T00:00:00Z", "2026-02-30T00:00:00Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        ("soon", "soon"),
        (None, "-"),
    ],
)
def test_a_time_is_korean_and_what_is_none_is_shown_as_it_is(
    timestamp: str | None, shown: str
) -> None:
    assert _field("risk", "시각", timestamp=timestamp) == shown


def test_a_trade_without_a_time_of_execution_shows_when_it_was_told() -> None:
    assert _field("trade", "시각", executed_at=None) == "2026-11-24 18:03:05 KST"
    assert _field("trade", "시각", executed_at="") == "2026-11-24 18:03:05 KST"


def test_a_test_says_so_and_only_true_makes_one() -> None:
    assert _embed("risk", test=True)["title"] == "[TEST] [CRITICAL] COOLDOWN"
    assert _embed("risk", test="yes")["title"] == "[CRITICAL] COOLDOWN"


def test_a_key_is_the_footer_and_without_one_there_is_none() -> None:
    assert _embed("risk", idempotency_key="k 1")["footer"] == {"text": "k 1"}
    assert "footer" not in _embed("risk", idempotency_key=None)


@pytest.mark.parametrize(
    ("channel", "name", "limit"),
    [("ai-reject", "symbol", 256), ("ai-reject", "reason", 1024), ("risk", "message", 4096)],
)
def test_what_is_too_long_ends_in_an_ellipsis_at_the_limit(
    channel: str, name: str, limit: int
) -> None:
    longest = max(texts_of(_embed(channel, **{name: "가" * 5000})), key=len)
    assert len(longest) == limit
    assert longest.endswith("가…")
    fits = "나" * (limit - len("AI 거절: ") if name == "symbol" else limit)
    assert "…" not in "".join(texts_of(_embed(channel, **{name: fits})))


def test_a_cut_never_leaves_half_an_emoji() -> None:
    whole = _field("ai-reject", "사유", reason="x" + "😀" * 1000)
    assert whole == "x" + "😀" * 511 + "…"
    odd = _field("ai-reject", "사유", reason="😀" * 1000)
    assert odd == "😀" * 511 + "…"
    assert _utf16(odd) == 1023


def test_a_message_is_never_longer_than_discord_takes_in_all() -> None:
    embed = discord_message(*NASTY["as long as can be"])["embeds"][0]
    assert sum(map(_utf16, texts_of(embed))) == 6000
    assert embed["description"].endswith("가…")


def test_a_channel_that_is_none_is_an_error() -> None:
    with pytest.raises(KeyError):
        discord_message("news", {})
