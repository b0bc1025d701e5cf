"""What Discord shows of an alert: the message that its channel's n8n workflow posts, in Python.

Here belongs what `config/n8n_workflows/` says in JavaScript, to the byte, for when n8n is away; a
test posts the same bodies to both. Sending it belongs in `webhooks`, when to send it in `delivery`.
"""

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Any

from trading_pipelines.korean_time import KST

Body = Mapping[str, Any]

# Discord's limits of an embed, counted here in UTF-16 units, of which a character has one or two:
# https://discord.com/developers/docs/resources/message#embed-object-embed-limits
LONGEST_TITLE = 256
LONGEST_DESCRIPTION = 4096
LONGEST_FIELD_VALUE = 1024
LONGEST_EMBED = 6000
"""Title, description, names and values of the fields, and footer together."""

LONGEST_KEY = 256
"""Our own: a footer may have 2048, and the key in it is short."""

_RED, _GREEN, _BLUE, _PURPLE = 0xE74C3C, 0x2ECC71, 0x3498DB, 0x9B59B6
_DARK_RED, _ORANGE, _GREY = 0x992D22, 0xF39C12, 0x95A5A6

# What JavaScript takes for blank and what Python does: Discord refuses a value of nothing else.
_BLANK = "".join(filter(str.isspace, map(chr, range(0x3001)))) + "\ufeff"
_NUMBER = re.compile(r"-?[0-9]{1,30}(\.[0-9]{1,30})?(e[+-]?[0-9]{1,2})?", re.IGNORECASE)
_TIME = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]+)?"
    r"(Z|[+-][0-9]{2}:[0-9]{2})?"
)
_REGIMES = ("BULL (상승)", "BEAR (하락)", "SIDEWAYS (횡보)")
_SIDES = {"BUY": ("매수", _GREEN), "SELL": ("매도", _BLUE)}
_DECISIONS = {"CONFIRM": ("AI 승인", _GREEN), "REJECT": ("AI 거절", _RED)}
_LEVELS = {"CRITICAL": _DARK_RED, "WARNING": _ORANGE}


def discord_message(channel: str, body: Body) -> dict[str, Any]:
    """Return the payload for Discord of a webhook's body; raises KeyError for no channel of ours.

    Nothing in a body can make it fail: what is missing or no text or number is shown as `-`.
    """
    embed = _EMBEDS[channel](body)
    prefix = "[TEST] " if body.get("test") is True else ""
    message: dict[str, Any] = {"title": _clamp(prefix + embed["title"], LONGEST_TITLE)}
    fields = [
        {"name": name, "value": _clamp(value, LONGEST_FIELD_VALUE), "inline": name != "사유"}
        for name, value in embed["fields"].items()
    ]
    key = _clamp(_text(body.get("idempotency_key")), LONGEST_KEY)
    footer = {} if key == "-" else {"footer": {"text": key}}
    if "description" in embed:
        parts = [message["title"], *(field["name"] + field["value"] for field in fields)]
        used = _length("".join([*parts, key if footer else ""]))
        longest = min(LONGEST_DESCRIPTION, LONGEST_EMBED - used)
        message["description"] = _clamp(embed["description"], longest)
    message |= {"color": embed["color"], "fields": fields, **footer}
    return {"embeds": [message], "allowed_mentions": {"parse": []}}


def _ai_reject(body: Body) -> dict[str, Any]:
    fields = {
        "국면": _regime(body.get("regime")),
        "RSI": _rsi(body),
        "시각": _time(body.get("timestamp")),
        "사유": _text(body.get("reason")),
    }
    return {"title": f"AI 거절: {_text(body.get('symbol'))}", "color": _RED, "fields": fields}


def _ai_decision(body: Body) -> dict[str, Any]:
    decision = _text(body.get("decision"))
    title, color = _DECISIONS.get(decision, (f"AI {decision}", _GREY))
    fields = {
        "국면": _regime(body.get("regime")),
        "RSI": _rsi(body),
        "확신도": _shown(_number(body.get("confidence")), " / 100"),
        "모델": _text(body.get("model_used")),
    }
    # The bot's own posts say so; its table does not hold it.
    if body.get("boundary_violation") is True:
        terms = body.get("boundary_terms")
        listed = ", ".join(map(_text, terms)) if isinstance(terms, list) else _text(terms)
        fields["경계 위반"] = listed or "-"
    return {
        "title": f"{title}: {_text(body.get('symbol'))}",
        "description": _text(body.get("reason")),
        "color": color,
        "fields": fields | {"시각": _time(body.get("timestamp"))},
    }


def _trade(body: Body) -> dict[str, Any]:
    side = _text(body.get("side"))
    word, color = _SIDES.get(side, (side, _GREY))
    executed_at = body.get("executed_at")
    fields = {
        "가격": _shown(_number(body.get("price")), " KRW"),
        "수량": _shown(_number(body.get("quantity"))),
        "전략": _text(body.get("strategy")),
        "시각": _time(body.get("timestamp") if _text(executed_at) == "-" else executed_at),
    }
    return {"title": f"{word} 체결: {_text(body.get('symbol'))}", "color": color, "fields": fields}


def _risk(body: Body) -> dict[str, Any]:
    level = _text(body.get("level"))
    return {
        "title": f"[{level}] {_text(body.get('type'))}",
        "description": _text(body.get("message")),
        "color": _LEVELS.get(level, _GREY),
        "fields": {"시각": _time(body.get("timestamp"))},
    }


def _daily_report(body: Body) -> dict[str, Any]:
    fields = {
        "손익": _as_written(body.get("pnl"), " KRW", plus="+"),
        "거래 수": _as_written(body.get("trades")),
        "승률": _as_written(body.get("win_rate"), " %", places=1),
        "최대 낙폭": _as_written(body.get("mdd"), " KRW"),
        "시각": _time(body.get("timestamp")),
    }
    return {
        "title": _text(body.get("title")),
        "description": _text(body.get("summary")),
        "color": _PURPLE,
        "fields": fields,
    }


_EMBEDS: dict[str, Callable[[Body], dict[str, Any]]] = {
    "ai-reject": _ai_reject,
    "ai-decision": _ai_decision,
    "trade": _trade,
    "risk": _risk,
    "daily-report": _daily_report,
}


def _text(value: object) -> str:
    return (value.strip(_BLANK) if isinstance(value, str) else "") or "-"


def _regime(value: object) -> str:
    regime = _text(value)
    return next((label for label in _REGIMES if label.startswith(f"{regime} ")), regime)


def _rsi(body: Body) -> str:
    rsi, note = _number(body.get("rsi")), _text(body.get("rsi_note"))
    return ("-" if rsi == 0 else _shown(rsi, places=1)) + ("" if note == "-" else f" ({note})")


def _number(value: object) -> Decimal | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100:
        value = repr(float(value))  # JSON's numbers are floats for n8n
    digits = _text(value)
    return Decimal(digits) if _NUMBER.fullmatch(digits) else None


def _shown(number: Decimal | None, unit: str = "", *, plus: str = "", places: int = 0) -> str:
    """Return a number with `places` decimals, or for 0 with as many as it has, at most 8."""
    if number is None:
        return "-"
    with localcontext() as context:
        context.rounding = ROUND_HALF_UP
        digits = f"{number:z,.{places or 8}f}"
    digits = digits if places else digits.rstrip("0").rstrip(".")
    return f"{'' if digits.startswith('-') or digits == '0' else plus}{digits}{unit}"


def _as_written(value: object, unit: str = "", *, plus: str = "", places: int = 0) -> str:
    """Return a number as `_shown` does, a text as it is: the bot's have units ("-1,234 KRW")."""
    number = _number(value)
    return _text(value) if number is None else _shown(number, unit, plus=plus, places=places)


def _time(value: object) -> str:
    """Return a moment to the second in Korean time; without an offset it is UTC."""
    match = _TIME.fullmatch(_text(value))
    if match is None:
        return _text(value)
    day, clock, offset = match.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{offset or 'Z'}").astimezone(KST)
    except (ValueError, OverflowError):
        return _text(value)
    return f"{moment:%Y-%m-%d %H:%M:%S} KST"


def _length(text: str) -> int:
    return len(_utf16(text)) // 2


def _clamp(text: str, limit: int) -> str:
    if _length(text) <= limit:
        return text
    cut = _utf16(text)[: 2 * (limit - 1)].decode("utf-16-le", "surrogatepass")
    return re.sub("[\ud800-\udbff]$", "", cut) + "…"


def _utf16(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")
