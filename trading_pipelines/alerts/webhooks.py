"""One POST, to n8n or straight to Discord, and what its answer means.

Here belongs what is sent and how an answer is understood. Whether and when to try again belongs in
`delivery`; what Discord shows in `discord` and in n8n's workflows.
"""

import hashlib
import re
import string
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any
from urllib.parse import quote

import requests
from urllib3.exceptions import MaxRetryError

from trading_pipelines.alerts.discord import discord_message
from trading_pipelines.http_calls import KILOBYTE, call
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import AlertSettings

N8N, DISCORD = "n8n", "discord"
RETRIED_4XX = {408, 425, 429}
LIMITED = 429
# What the endpoint answers whatever is posted: it has gone, forbids it, or is elsewhere.
BROKEN = {*range(300, 400), 401, 403, 404, 405, 410}
# Of Discord's codes (https://discord.com/developers/docs/topics/opcodes-and-status-codes): what a
# channel wants of a thread, and what is blocked for the words in it, whatever the status.
THREAD_CODES = {220001, 220002, 220003, 220004}
BLOCKED_WORDS = {20009, 200000, 200001, 240000}
# n8n says so while it starts, when it listens and its workflows are not yet active.
NOT_REGISTERED = 404
PROBE_SECONDS = 2.0
# Discord's message of 6,000 characters, each written as \uXXXX, with what stands around them.
MOST_BYTES = 64 * KILOBYTE
LONGEST_ANSWER = 500
# Discord's own word is believed for half a day: never a day in silence. A header may be anybody's.
LONGEST_WAIT = 43200.0
LONGEST_REST = 1800.0


class PostOutcome(StrEnum):
    """What an attempt came to; one that has none is in flight, or its sender died.

    REFUSED is the answer of our workflow, or of Discord where it is asked directly. NO_RESPONSE is
    anybody else's answer (n8n's own error, a proxy's page), or none that came whole and in time:
    the request may have been acted on. CONNECT_FAILED is a connection that could not be made. The
    values are those of the ledger's tables.
    """

    DELIVERED = "delivered"
    REFUSED = "refused"
    NO_RESPONSE = "away"
    CONNECT_FAILED = "unreachable"


class EndpointTrouble(StrEnum):
    """What an answer says of the endpoint, and not of the message."""

    BROKEN = "broken"
    LIMITED = "limited"


TRANSPORT_FAILURES = {PostOutcome.NO_RESPONSE, PostOutcome.CONNECT_FAILED}


@dataclass(frozen=True)
class WebhookAnswer:
    """What came of one POST."""

    outcome: PostOutcome
    text: str
    """In words for a person; holds no secret."""
    status: int | None = None
    """HTTP; Discord's own where n8n reports it."""
    is_final: bool = False
    """The same request would be refused again."""
    retry_after: float | None = None
    message_id: str | None = None
    seconds: float = 0.0
    trouble: EndpointTrouble | None = None
    of: str = ""
    """Whose trouble it is: N8N's or DISCORD's, which n8n may report."""
    advice: str = ""
    """What the operator can do about the trouble."""


@dataclass(frozen=True, repr=False)
class Webhooks:
    """Where alerts are posted, each within `timeout` seconds; holds secrets and is never printed.

    Without an `n8n_url` everything goes to Discord directly; without either nothing can be sent.
    """

    n8n_url: str | None
    secret: str | None
    discord_url: str | None
    timeout: float
    thread_name: str | None = None
    """Of the thread that each alert opens in a forum channel."""

    @classmethod
    def of(cls, environment: Environment, settings: AlertSettings) -> "Webhooks | None":
        """Return those that the environment names, or None where it names none."""
        if not (environment.n8n_url or environment.discord_webhook_url):
            return None
        url, secret, discord = (
            value.get_secret_value() if value else None
            for value in (
                environment.n8n_url,
                environment.n8n_webhook_secret,
                environment.discord_webhook_url,
            )
        )
        timeout, thread = settings.timeout_seconds, settings.discord_thread_name
        return cls(url and url.rstrip("/"), secret, discord, timeout, thread)

    @property
    def address(self) -> str:
        """A hash of what is set, to tell whether the operator has set something else."""
        settings = repr((self.n8n_url, self.secret, self.discord_url, self.thread_name))
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def post(self, via: str, channel: str, body: Mapping[str, Any]) -> WebhookAnswer:
        """Post once, via n8n's webhook of the channel or to Discord; never raises."""
        started = time.monotonic()
        if via == N8N:
            answer = self._post(self._post_to_n8n, _of_n8n, channel, body)
        else:
            answer = self._post(self._post_to_discord, _of_discord, channel, body)
        return replace(answer, seconds=time.monotonic() - started)

    def is_n8n_ready(self) -> bool:
        """Ask n8n whether it is up; it may still answer 404 for its webhooks for a moment."""
        try:
            answer = call(
                "GET",
                f"{self.n8n_url}/healthz/readiness",
                seconds=PROBE_SECONDS,
                most_bytes=MOST_BYTES,
            )
        except requests.RequestException:
            return False
        return answer.status_code == 200

    def _post(
        self,
        post: Callable[[str, Mapping[str, Any]], requests.Response],
        read: Callable[[requests.Response], WebhookAnswer],
        channel: str,
        body: Mapping[str, Any],
    ) -> WebhookAnswer:
        try:
            answer = read(post(channel, body))
        # The errors' own words hold the URL, and Discord's URL is a secret.
        except requests.exceptions.InvalidJSONError as error:
            answer = _unpostable(error)
        except requests.RequestException as error:
            # Whoever was connected to may have acted on the request.
            is_connected = not isinstance(error, ValueError | requests.ConnectTimeout) and not (
                error.args and isinstance(error.args[0], MaxRetryError)
            )
            if is_connected and isinstance(error, requests.Timeout):
                answer = WebhookAnswer(
                    PostOutcome.NO_RESPONSE, f"no answer within {self.timeout:g} s"
                )
            elif is_connected:
                answer = WebhookAnswer(
                    PostOutcome.NO_RESPONSE, f"no whole answer ({type(error).__name__})"
                )
            else:
                text = f"can't be reached ({type(error).__name__})"
                answer = WebhookAnswer(PostOutcome.CONNECT_FAILED, text)
        except (LookupError, TypeError, ValueError) as error:
            answer = _unpostable(error)
        return replace(
            answer,
            text=self._without_secrets(answer.text)[:LONGEST_ANSWER],
            advice=self._without_secrets(answer.advice)[:LONGEST_ANSWER],
        )

    def _without_secrets(self, text: str) -> str:
        """Leave out what a server repeats of the request."""
        token = (self.discord_url or "").partition("?")[0].rpartition("/")[2]
        for secret in filter(None, (self.secret, token)):
            text = text.replace(secret, "***")
        return text

    def _post_to_n8n(self, channel: str, body: Mapping[str, Any]) -> requests.Response:
        return call(
            "POST",
            f"{self.n8n_url}/webhook/{channel}",
            json=dict(body) | ({"thread_name": self.thread_name} if self.thread_name else {}),
            headers={
                "X-Webhook-Secret": self.secret or "",
                "Idempotency-Key": _header(body.get("idempotency_key", "")),
            },
            seconds=self.timeout,
            most_bytes=MOST_BYTES,
            allow_redirects=False,
        )

    def _post_to_discord(self, channel: str, body: Mapping[str, Any]) -> requests.Response:
        return call(
            "POST",
            str(self.discord_url),
            params={"wait": "true"},
            json=discord_message(channel, body) | self._thread(),
            seconds=self.timeout,
            most_bytes=MOST_BYTES,
            allow_redirects=False,
        )

    def _thread(self) -> dict[str, str]:
        """Return the thread to open, unless the URL names one: Discord takes one or the other."""
        is_named = re.search(r"[?&]thread_id=", str(self.discord_url))
        return {"thread_name": self.thread_name} if self.thread_name and not is_named else {}


def _header(value: object) -> str:
    """Return what a header can hold: printable ASCII as it is, the rest as %XX."""
    return quote(str(value), safe=f"{string.punctuation} ", errors="replace")


def _unpostable(error: Exception) -> WebhookAnswer:
    text = f"can't be posted ({type(error).__name__})"
    return WebhookAnswer(PostOutcome.REFUSED, text, is_final=True)


def _of_n8n(response: requests.Response) -> WebhookAnswer:
    content, status = _json(response), response.status_code
    if "delivered" not in content:
        # A proxy's page, n8n's own error, or a workflow that is not ours.
        is_final = 300 <= status < 500 and status not in {*RETRIED_4XX, NOT_REGISTERED}
        text = _words(f"n8n answers {status} without saying delivered", response.text)
        return WebhookAnswer(
            PostOutcome.NO_RESPONSE,
            text,
            status,
            is_final=is_final,
            retry_after=_retry_after(response),
            **_trouble_of_n8n(response),
        )
    if status < 300 and content["delivered"] is True:
        text = f"delivered{_words('', str(content.get('message_id') or ''))}"
        return WebhookAnswer(
            PostOutcome.DELIVERED, text, status, message_id=_id(content.get("message_id"))
        )
    of_discord = content.get("status")
    trouble: dict[str, Any] = {}
    error = content.get("error")
    if isinstance(of_discord, int) and 100 <= of_discord <= 599:
        status = of_discord
        trouble = _trouble_of_discord(status, None, str(error or ""))
    refused = _refused(f"n8n answers {response.status_code}", status, error, response)
    return replace(refused, **trouble)


def _of_discord(response: requests.Response) -> WebhookAnswer:
    content, status = _json(response), response.status_code
    if status < 300:
        # Asked to wait for the message, it gives one: a portal's page, or nothing, is none.
        if (message_id := content.get("id")) and isinstance(message_id, str):
            return WebhookAnswer(PostOutcome.DELIVERED, "delivered", status, message_id=message_id)
        text = _words(f"Discord answers {status} without a message's id", response.text)
        return WebhookAnswer(PostOutcome.NO_RESPONSE, text, status)
    words = " ".join(filter(None, (str(content.get("message") or ""), _fields(content))))
    refused = _refused(f"Discord answers {status}", status, words, response)
    location = response.headers.get("Location", "")
    return replace(
        refused, **_trouble_of_discord(status, content.get("code"), f"{words} (to {location})")
    )


def _fields(content: Mapping[str, Any]) -> str:
    """Name the fields that Discord refuses, and why."""
    named: list[str] = []

    def visit(errors: object, path: str) -> None:
        if not isinstance(errors, dict) or len(path) > LONGEST_ANSWER:
            return
        for name, inner in errors.items():
            if name == "_errors" and isinstance(inner, list):
                named.extend(
                    f"{path}: {error.get('message')}" for error in inner if isinstance(error, dict)
                )
            else:
                visit(inner, f"{path}.{name}" if path else str(name))

    visit(content.get("errors"), "")
    return f"({'; '.join(named)})" if named else ""


def _trouble_of_discord(status: int, code: object, words: str) -> dict[str, Any]:
    """Return what an answer of Discord's says of its webhook; `words` hold where it redirects to.

    n8n reports the words alone, without Discord's code.
    """
    if status == LIMITED:
        return {"trouble": EndpointTrouble.LIMITED, "of": DISCORD, "advice": RESTS}
    if code in BLOCKED_WORDS:
        return {}
    if status == 400 and (code in THREAD_CODES or re.search(r"forum|thread_(id|name)", words)):
        advice = OF_THREADS
    elif status not in BROKEN:
        return {}
    elif status < 400:
        to = re.search(r"\(to ([^)]+)\)", words)
        advice = f"it redirects to {to[1] if to else 'nowhere'}: {OF_A_REDIRECT_OF_DISCORD}"
    else:
        advice = OF_DISCORD.get(status, OF_DISCORD[404])
    return {"trouble": EndpointTrouble.BROKEN, "of": DISCORD, "advice": advice}


def _trouble_of_n8n(response: requests.Response) -> dict[str, Any]:
    """Return what an answer that is not our workflow's says of n8n."""
    status = response.status_code
    if status == LIMITED:
        return {"trouble": EndpointTrouble.LIMITED, "of": N8N, "advice": RESTS}
    if status not in BROKEN or status == NOT_REGISTERED:
        return {}
    if status < 400:
        location = response.headers.get("Location", "nowhere")
        advice = f"it redirects to {location[:200]}: {OF_A_REDIRECT_OF_N8N}"
    else:
        advice = OF_A_WRONG_KEY if status in {401, 403} else OF_NO_N8N
    return {"trouble": EndpointTrouble.BROKEN, "of": N8N, "advice": advice}


RESTS = "nothing: the alerts go on by themselves after the rest"
OF_DISCORD = {
    401: "the webhook's token is wrong: copy its URL from Discord again and set "
    "DISCORD_WEBHOOK_URL, for n8n too",
    403: "Discord forbids it: let the webhook post in its channel, or make a new webhook and set "
    "DISCORD_WEBHOOK_URL, for n8n too",
    404: "the webhook or its thread was deleted: make a new webhook (Discord: the channel's "
    "settings, Integrations) and set DISCORD_WEBHOOK_URL, for n8n too",
}
OF_THREADS = (
    "only a forum channel has threads to open, and wants one: add ?thread_id=… to "
    "DISCORD_WEBHOOK_URL, for n8n too, or set alerts.discord_thread_name; for any other channel "
    "leave both out"
)
OF_A_REDIRECT_OF_DISCORD = (
    "set DISCORD_WEBHOOK_URL, for n8n too, to the address that Discord shows; a proxy's page "
    "passes by itself, or see HTTPS_PROXY"
)
OF_A_REDIRECT_OF_N8N = (
    "set N8N_URL to where n8n is now (https instead of http?); a maintenance page passes by itself"
)
OF_A_WRONG_KEY = (
    "set the same N8N_WEBHOOK_SECRET here and for n8n; `trading-pipelines n8n check` says whether "
    "it fits"
)
OF_NO_N8N = "see whether N8N_URL is n8n's: `trading-pipelines n8n check`"


def _refused(
    summary: str, status: int, detail: object, response: requests.Response
) -> WebhookAnswer:
    return WebhookAnswer(
        PostOutcome.REFUSED,
        _words(summary, str(detail or response.text)),
        status,
        is_final=_is_final(status),
        retry_after=_seconds(_json(response).get("retry_after"), LONGEST_WAIT)
        or _retry_after(response),
    )


def _is_final(status: int) -> bool:
    return 300 <= status < 500 and status not in RETRIED_4XX


def _json(response: requests.Response) -> dict[str, Any]:
    try:
        content = response.json()
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _words(summary: str, detail: str) -> str:
    detail = " ".join(detail.split())
    return f"{summary}: {detail}" if detail else summary


def _id(value: object) -> str | None:
    return str(value) if value else None


def _seconds(value: object, longest: float) -> float | None:
    try:
        seconds = float(str(value))
    except ValueError:
        return None
    return min(seconds, longest) if 0 <= seconds < float("inf") else None


def _retry_after(response: requests.Response) -> float | None:
    """Read the header: seconds, or a date."""
    header = response.headers.get("Retry-After")
    longest = LONGEST_REST if response.status_code == LIMITED else LONGEST_WAIT
    if header is None or (seconds := _seconds(header, longest)) is not None:
        return None if header is None else seconds
    try:
        wait = (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None
    return min(max(0.0, wait), longest)
