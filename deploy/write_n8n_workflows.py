"""Writes config/n8n_workflows/: five workflows that differ in path, required fields and embed.

n8n imports the JSON; edit this file instead, and run `make docs`. The same embeds in Python, for
when n8n is away, are in `trading_pipelines/alerts/discord.py`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "config" / "n8n_workflows"

HELPERS = r"""
const text = (value) => (typeof value === 'string' && value.replace(/^[\s\x1c-\x1f\x85]+|[\s\x1c-\x1f\x85]+$/g, '')) || '-';
const clamp = (value, limit) => value.length <= limit ? value : value.slice(0, limit - 1).replace(/[\uD800-\uDBFF]$/, '') + '…';
const number = (value, unit, options) => {
  const digits = typeof value === 'number' ? String(value) : text(value);
  if (!/^-?[0-9]{1,30}(\.[0-9]{1,30})?(e[+-]?[0-9]{1,2})?$/i.test(digits)) return '-';
  return new Intl.NumberFormat('en-US', { maximumFractionDigits: 8, signDisplay: 'negative', ...options }).format(digits) + unit;
};
const oneDecimal = { minimumFractionDigits: 1, maximumFractionDigits: 1 };
const regime = (value) => ['BULL (상승)', 'BEAR (하락)', 'SIDEWAYS (횡보)'].find((label) => label.startsWith(text(value) + ' ')) ?? text(value);
const rsi = (value, note) => (Number(value) === 0 ? '-' : number(value, '', oneDecimal)) + (text(note) === '-' ? '' : ' (' + text(note) + ')');
const time = (value) => {
  const iso = /^([0-9]{4}-[0-9]{2}-[0-9]{2})[T ]([0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.[0-9]+)?(Z|[+-][0-9]{2}:[0-9]{2})?$/.exec(text(value));
  const moment = iso && DateTime.fromISO(iso[1] + 'T' + iso[2] + (iso[3] ?? 'Z'), { zone: 'Asia/Seoul' });
  return moment && moment.isValid ? moment.toFormat('yyyy-MM-dd HH:mm:ss') + ' KST' : text(value);
};
"""
FINISH = r"""
const title = clamp((body.test === true ? '[TEST] ' : '') + embed.title, 256);
const fields = embed.fields.map(([name, value, inline = true]) => ({ name, value: clamp(value, 1024), inline }));
const key = clamp(text(body.idempotency_key), 256);
const footer = key === '-' ? undefined : { text: key };
const used = [title, footer ? key : '', ...fields.map((field) => field.name + field.value)].join('').length;
const description = embed.description && clamp(embed.description, Math.min(4096, 6000 - used));
return JSON.stringify({ embeds: [{ title, description, color: embed.color, fields, footer }], allowed_mentions: { parse: [] }, ...(body.thread_name && !/[?&]thread_id=/.test($env.DISCORD_WEBHOOK_URL) ? { thread_name: body.thread_name } : {}) });
"""
NOT_DELIVERED = r"""
const seconds = Number($json.body?.retry_after ?? Math.min(Number($json.headers?.['retry-after'] ?? NaN), 1800));
const fields = (errors, path) => Object.entries(errors ?? {}).flatMap(([name, inner]) => name === '_errors' ? [path.slice(1) + ': ' + inner?.[0]?.message] : typeof inner === 'object' ? fields(inner, path + '.' + name) : []);
const named = fields($json.body?.errors, '').concat($json.headers?.location ? ['to ' + $json.headers.location] : []).join('; ').slice(0, 300);
const words = $json.statusCode < 300 ? 'no message with its id' : ($json.body?.message ?? $json.statusMessage) + (named ? ' (' + named + ')' : '');
const usable = /^https?:/.test($env.DISCORD_WEBHOOK_URL);
return JSON.stringify({
  delivered: false,
  status: $json.statusCode ?? null,
  retry_after: Number.isFinite(seconds) ? seconds : null,
  error: $json.statusCode ? 'Discord answered ' + $json.statusCode + ': ' + words : usable ? 'no answer from Discord (' + String($json.error?.code ?? $json.error?.message ?? $json.error).replaceAll($env.DISCORD_WEBHOOK_URL, '…') + ')' : "n8n's DISCORD_WEBHOOK_URL is no URL",
});
"""
TAKEN = "$json.statusCode >= 200 && $json.statusCode < 300 && !!$json.body?.id"


@dataclass(frozen=True)
class Workflow:
    """What one workflow has of its own; `number` is part of its ids, which must not change."""

    number: int
    path: str
    required: list[str]
    """Fields without which the body is answered with 400."""
    embed: str
    """JavaScript that defines `embed`: title, description, color and [name, value, inline]s."""


WORKFLOWS = {
    "ai_reject": Workflow(
        1,
        "ai-reject",
        ["symbol", "reason"],
        r"""
const embed = {
  title: 'AI 거절: ' + text(body.symbol),
  color: 0xE74C3C,
  fields: [
    ['국면', regime(body.regime)],
    ['RSI', rsi(body.rsi, body.rsi_note)],
    ['시각', time(body.timestamp)],
    ['사유', text(body.reason), false],
  ],
};
""",
    ),
    "ai_decision": Workflow(
        5,
        "ai-decision",
        ["symbol", "decision"],
        r"""
const decision = text(body.decision);
const terms = Array.isArray(body.boundary_terms) ? body.boundary_terms.map(text).join(', ') : text(body.boundary_terms);
const boundary = body.boundary_violation === true ? [['경계 위반', terms || '-']] : [];
const embed = {
  title: (decision === 'CONFIRM' ? 'AI 승인' : decision === 'REJECT' ? 'AI 거절' : 'AI ' + decision) + ': ' + text(body.symbol),
  description: text(body.reason),
  color: decision === 'CONFIRM' ? 0x2ECC71 : decision === 'REJECT' ? 0xE74C3C : 0x95A5A6,
  fields: [
    ['국면', regime(body.regime)],
    ['RSI', rsi(body.rsi, body.rsi_note)],
    ['확신도', number(body.confidence, ' / 100')],
    ['모델', text(body.model_used)],
    ...boundary,
    ['시각', time(body.timestamp)],
  ],
};
""",
    ),
    "trade_notification": Workflow(
        2,
        "trade",
        ["symbol", "side", "price", "quantity"],
        r"""
const side = text(body.side);
const embed = {
  title: (side === 'BUY' ? '매수' : side === 'SELL' ? '매도' : side) + ' 체결: ' + text(body.symbol),
  color: side === 'BUY' ? 0x2ECC71 : side === 'SELL' ? 0x3498DB : 0x95A5A6,
  fields: [
    ['가격', number(body.price, ' KRW')],
    ['수량', number(body.quantity, '')],
    ['전략', text(body.strategy)],
    ['시각', time(text(body.executed_at) === '-' ? body.timestamp : body.executed_at)],
  ],
};
""",
    ),
    "daily_report": Workflow(
        3,
        "daily-report",
        ["title", "pnl", "trades", "summary"],
        r"""
const asWritten = (shown, value) => shown === '-' ? text(value) : shown;
const embed = {
  title: text(body.title),
  description: text(body.summary),
  color: 0x9B59B6,
  fields: [
    ['손익', asWritten(number(body.pnl, ' KRW', { signDisplay: 'exceptZero' }), body.pnl)],
    ['거래 수', asWritten(number(body.trades, ''), body.trades)],
    ['승률', asWritten(number(body.win_rate, ' %', oneDecimal), body.win_rate)],
    ['최대 낙폭', asWritten(number(body.mdd, ' KRW'), body.mdd)],
    ['시각', time(body.timestamp)],
  ],
};
""",
    ),
    "risk_alert": Workflow(
        4,
        "risk",
        ["type", "level", "message"],
        r"""
const level = text(body.level);
const embed = {
  title: '[' + level + '] ' + text(body.type),
  description: text(body.message),
  color: level === 'CRITICAL' ? 0x992D22 : level === 'WARNING' ? 0xF39C12 : 0x95A5A6,
  fields: [['시각', time(body.timestamp)]],
};
""",
    ),
}


def write(folder: Path) -> None:
    """Write each workflow as n8n imports it."""
    for name, workflow in WORKFLOWS.items():
        text = json.dumps(_content(name, workflow), indent=2, ensure_ascii=False)
        (folder / f"{name}.json").write_text(f"{text}\n", encoding="utf-8")


def _content(name: str, workflow: Workflow) -> dict[str, Any]:
    required = ", ".join(f"'{field}'" for field in workflow.required)
    missing = f"[{required}].filter((name) => $json.body?.[name] === undefined)"
    message = (
        f"const body = $('Webhook').item.json.body;\n{HELPERS[1:]}{workflow.embed[1:]}{FINISH[1:]}"
    )
    error = f"error: 'the body lacks ' + {missing}.join(', ')"
    delivered = "{ delivered: true, message_id: $json.body?.id ?? null }"
    return {
        "id": f"tradingAlerts{workflow.number:03}",
        "name": name,
        "settings": {
            "executionOrder": "v1",
            "saveDataSuccessExecution": "none",
            "saveDataErrorExecution": "all",
            "executionTimeout": 30,
        },
        "nodes": [
            {
                **_node("webhook", "Webhook", "webhook", 2, [0, 0]),
                "webhookId": f"b0000000-0000-4000-8000-{workflow.number:012}",
                "parameters": {
                    "httpMethod": "POST",
                    "path": workflow.path,
                    "authentication": "headerAuth",
                    "responseMode": "responseNode",
                    "options": {},
                },
                "credentials": {
                    "httpHeaderAuth": {"id": "whSecret00000001", "name": "Webhook secret"}
                },
            },
            _if("valid", "Valid?", [240, 0], f"{missing}.length === 0"),
            {
                **_node("discord", "Discord", "httpRequest", 4.2, [480, -120]),
                "parameters": {
                    "method": "POST",
                    "url": "={{ $env.DISCORD_WEBHOOK_URL }}",
                    "sendQuery": True,
                    "queryParameters": {"parameters": [{"name": "wait", "value": "true"}]},
                    "sendBody": True,
                    "contentType": "json",
                    "specifyBody": "json",
                    "jsonBody": _call(message),
                    "options": {
                        "timeout": 10000,
                        "redirect": {"redirect": {"followRedirects": False}},
                        "response": {"response": {"fullResponse": True, "neverError": True}},
                    },
                },
                "onError": "continueErrorOutput",
            },
            # A page before the internet answers 200 too: only a message has an id.
            _if("taken", "2xx?", [720, -120], TAKEN),
            _respond(
                "delivered",
                "Delivered",
                [960, -200],
                200,
                f"={{{{ JSON.stringify({delivered}) }}}}",
            ),
            _respond("not-delivered", "Not delivered", [960, 0], 502, _call(NOT_DELIVERED[1:])),
            _respond(
                "invalid",
                "Invalid",
                [480, 120],
                400,
                f"={{{{ JSON.stringify({{ delivered: false, {error} }}) }}}}",
            ),
        ],
        "connections": {
            "Webhook": _to("Valid?"),
            "Valid?": _to("Discord", "Invalid"),
            "Discord": _to("2xx?", "Not delivered"),
            "2xx?": _to("Delivered", "Not delivered"),
        },
    }


def _node(
    node_id: str, name: str, kind: str, version: float, position: list[int]
) -> dict[str, Any]:
    return {
        "id": node_id,
        "name": name,
        "type": f"n8n-nodes-base.{kind}",
        "typeVersion": version,
        "position": position,
    }


def _if(node_id: str, name: str, position: list[int], condition: str) -> dict[str, Any]:
    options = {"caseSensitive": True, "leftValue": "", "typeValidation": "strict", "version": 2}
    is_true = {
        "id": f"{node_id}-condition",
        "leftValue": f"={{{{ {condition} }}}}",
        "rightValue": "",
        "operator": {"type": "boolean", "operation": "true", "singleValue": True},
    }
    conditions = {"options": options, "conditions": [is_true], "combinator": "and"}
    return {
        **_node(node_id, name, "if", 2.2, position),
        "parameters": {"conditions": conditions, "options": {}},
    }


def _respond(
    node_id: str, name: str, position: list[int], status: int, body: str
) -> dict[str, Any]:
    return {
        **_node(node_id, name, "respondToWebhook", 1.4, position),
        "parameters": {
            "respondWith": "json",
            "responseBody": body,
            "options": {"responseCode": status},
        },
    }


def _call(javascript: str) -> str:
    """Return n8n's expression for what the statements return."""
    return f"={{{{ (() => {{\n{javascript}}})() }}}}"


def _to(*names: str) -> dict[str, Any]:
    return {"main": [[{"node": name, "type": "main", "index": 0}] for name in names]}


if __name__ == "__main__":
    write(FOLDER)
