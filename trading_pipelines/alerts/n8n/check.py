"""Whether the operator's n8n has each workflow, guarded and ours: asked over HTTP."""

from collections.abc import Mapping
from dataclasses import dataclass

import requests

from trading_pipelines.alerts.kinds import CHANNELS
from trading_pipelines.alerts.webhooks import MOST_BYTES
from trading_pipelines.http_calls import call

STARTING = "n8n is starting up"
"""What n8n answers until it is ready, with 200: a 200 alone proves nothing."""

ANOTHER = "another workflow answers in our place"


@dataclass(frozen=True)
class WorkflowCheck:
    """What a check of one webhook has found, in words."""

    channel: str
    is_good: bool
    finding: str

    @property
    def is_another(self) -> bool:
        """Whether something else than our workflow answers."""
        return self.finding.endswith(ANOTHER)


def check_workflows(url: str, secret: str, timeout: float) -> list[WorkflowCheck]:
    """Ask each webhook whether it is there, guarded and ours. Sends nothing to Discord."""
    return [_checked(url.rstrip("/"), channel, secret, timeout) for channel in CHANNELS]


def _checked(url: str, channel: str, secret: str, timeout: float) -> WorkflowCheck:
    try:
        is_good, finding = _check(f"{url}/webhook/{channel}", secret, timeout)
    except requests.Timeout:
        is_good, finding = False, f"no answer within {timeout:g} s"
    # Their own words hold the URL. ValueError: a secret that no header can hold.
    except (requests.RequestException, ValueError) as error:
        is_good, finding = False, f"n8n can't be reached ({type(error).__name__})"
    return WorkflowCheck(channel, is_good, finding)


def _check(webhook: str, secret: str, timeout: float) -> tuple[bool, str]:
    def post(headers: Mapping[str, str]) -> requests.Response:
        return call(
            "POST",
            webhook,
            seconds=timeout,
            most_bytes=MOST_BYTES,
            json={},
            headers=headers,
            allow_redirects=False,
        )

    wrong = _unguarded(post({})) or _unusable(post({"X-Webhook-Secret": secret}))
    return not wrong, wrong or "there, guarded and ours"


def _unguarded(answer: requests.Response) -> str | None:
    """Say what is wrong with an answer to a post without a secret."""
    status = answer.status_code
    if status in {401, 403}:
        return None
    if answer.text.startswith(STARTING):
        return "n8n is starting up: ask again in a moment"
    if status == 404:
        return "not there (404): import and publish the workflows, then restart n8n"
    if status == 500:
        return (
            "answers 500 without a secret, not 403: n8n has no N8N_WEBHOOK_SECRET, or its "
            "N8N_BLOCK_ENV_ACCESS_IN_NODE is not false; set both and restart it"
        )
    if status < 300 or _is_ours(answer):
        what = "anybody can post" if _is_ours(answer) else ANOTHER
        return f"open: answers {status} without a secret; {what}"
    return f"answers {status} without a secret, not 403: is this n8n?"


def _unusable(answer: requests.Response) -> str | None:
    """Say what is wrong with an answer to an empty body with our secret."""
    status = answer.status_code
    if status in {401, 403}:
        return f"refuses our secret ({status}): n8n's N8N_WEBHOOK_SECRET differs"
    if status != 400 or not _is_ours(answer):
        return f"answers {status} to an empty body: this is not our workflow; {ANOTHER}"
    return None


def _is_ours(response: requests.Response) -> bool:
    try:
        content = response.json()
    except ValueError:
        return False
    return isinstance(content, dict) and content.get("delivered") is False
