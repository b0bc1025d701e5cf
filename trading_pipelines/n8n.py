"""n8n from outside: putting our workflows into it, asking whether they work, running one here.

What a workflow does is in `config/n8n_workflows/`; posting alerts to it belongs in `alerts/`.
"""

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import requests

from trading_pipelines.alerts.kinds import CHANNELS

VERSION = "2.41.1"
# Resolved, as `config` is a link: in a container it may be mounted at its own path alone.
WORKFLOWS = (Path(__file__).parent / "config" / "n8n_workflows").resolve()
CREDENTIALS = "n8n_credentials.json"
"""Beside the folder of the workflows."""

COMMAND_SECONDS = 120
START_SECONDS = 120
STOP_SECONDS = 20
STARTING = "n8n is starting up"
"""What n8n answers until it is ready, with 200: a 200 alone proves nothing."""
RESTART = "restart n8n if it is running: until then it may answer 404, or go on as before"

# Nothing but what the workflows need: no telemetry, no look-ups, no editor, no process for Code.
_ALONE = {
    "DB_TYPE": "sqlite",
    "EXTERNAL_FRONTEND_HOOKS_URLS": "",
    "GENERIC_TIMEZONE": "Asia/Seoul",
    "N8N_AI_ENABLED": "false",
    "N8N_BLOCK_ENV_ACCESS_IN_NODE": "false",
    "N8N_COMMUNITY_PACKAGES_ENABLED": "false",
    "N8N_DIAGNOSTICS_CONFIG_BACKEND": "",
    "N8N_DIAGNOSTICS_CONFIG_FRONTEND": "",
    "N8N_DIAGNOSTICS_ENABLED": "false",
    "N8N_DISABLED_MODULES": "insights,external-secrets,community-packages,data-table,oauth-server,"
    "mcp,provisioning,breaking-changes,source-control,dynamic-credentials,chat-hub,sso-oidc,"
    "sso-saml,log-streaming,ldap,quick-connect,workflow-builder,favorites,otel,token-exchange,"
    "instance-version-history,n8n-packages,runtime-credentials,mcp-registry,workflow-reviews,"
    "instance-ai,agents",
    "N8N_DISABLE_UI": "true",
    "N8N_DYNAMIC_BANNERS_ENABLED": "false",
    "N8N_EXPRESSION_ENGINE": "legacy",
    "N8N_HIRING_BANNER_ENABLED": "false",
    "N8N_HOST": "127.0.0.1",
    "N8N_LICENSE_AUTO_RENEW_ENABLED": "false",
    "N8N_LISTEN_ADDRESS": "127.0.0.1",
    "N8N_PERSONALIZATION_ENABLED": "false",
    "N8N_PROTOCOL": "http",
    "N8N_PUBLIC_API_DISABLED": "true",
    "N8N_RUNNERS_BROKER_LISTEN_ADDRESS": "127.0.0.1",
    "N8N_RUNNERS_MODE": "external",
    "N8N_SENTRY_DSN": "",
    "N8N_TEMPLATES_ENABLED": "false",
    "N8N_VERSION_NOTIFICATIONS_ENABLED": "false",
    "N8N_VERSION_NOTIFICATIONS_WHATS_NEW_ENABLED": "false",
    "NODE_ENV": "production",
    "NO_COLOR": "1",
    "TZ": "UTC",
}


class N8nError(RuntimeError):
    """n8n can't be run, or refuses a workflow; the message says what to do and holds no secret."""


@dataclass(frozen=True)
class Checked:
    """What became of a check of one webhook, in words."""

    channel: str
    is_good: bool
    said: str


def import_workflows(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> list[str]:
    """Import the credential and the folder's workflows, publish them and say so, line by line.

    The same again changes nothing: their ids are fixed. A running n8n has to be restarted, as the
    last line says: importing takes its webhooks away from under it (404), and publishing does not
    give them back. Raises N8nError.
    """
    credentials = folder.parent / CREDENTIALS
    files = sorted(folder.glob("*.json"))
    if not files or not credentials.exists():
        raise N8nError(f"{folder} needs n8n's workflows (*.json) in it and {CREDENTIALS} beside it")
    try:
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        names = {workflow["id"]: workflow["name"] for workflow in found}
    except (ValueError, LookupError, TypeError) as error:
        raise N8nError(f"{folder} holds a file that is no workflow with an id: {error}") from error

    def run(*arguments: str) -> None:
        _run([*command, *arguments], environment)

    run("import:credentials", f"--input={credentials}")
    importing = ("import:workflow", "--separate", f"--input={folder}")
    try:
        run(*importing)
    except N8nError as refused:
        # Until n8n has run once it refuses to import over what is published ("permission to
        # deactivate"); taken back first, it does not.
        try:
            for workflow_id in names:
                run("unpublish:workflow", f"--id={workflow_id}")
            run(*importing)
        except N8nError:
            raise refused from None
    for workflow_id in names:
        run("publish:workflow", f"--id={workflow_id}")
    return [*(f"{name} ({key}) imported and published" for key, name in names.items()), RESTART]


def check(url: str, secret: str, timeout: float) -> list[Checked]:
    """Ask each webhook whether it is there, guarded and ours. Sends nothing to Discord."""
    return [_checked(url.rstrip("/"), channel, secret, timeout) for channel in CHANNELS]


def installed() -> Path | None:
    """Return the n8n that deploy/install_n8n.sh installed, or N8N_COMMAND; None if it is not."""
    cache = Path.home() / ".cache" / "trading-pipelines" / f"n8n-{VERSION}" / "n8n"
    path = Path(os.environ.get("N8N_COMMAND") or cache)
    return path if os.access(path, os.X_OK) else None


class LocalN8n:
    """An n8n of our own with the four workflows, on loopback, while its `with` block lasts.

    All it keeps is in `folder`, with its log; `environment` adds to its settings. It may be stopped
    or killed and started again meanwhile. Raises N8nError.
    """

    def __init__(
        self,
        folder: Path,
        *,
        secret: str,
        discord_url: str,
        command: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.log = self.folder / "n8n.log"
        self.command = command or installed()
        self._secret = secret
        port, broker = _free_ports()
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.folder),
            **_ALONE,
            "N8N_USER_FOLDER": str(self.folder),
            "N8N_PORT": str(port),
            "N8N_WEBHOOK_URL": f"{self.url}/",
            "N8N_RUNNERS_BROKER_PORT": str(broker),
            "N8N_RUNNERS_AUTH_TOKEN": os.urandom(16).hex(),
            "N8N_WEBHOOK_SECRET": secret,
            "DISCORD_WEBHOOK_URL": discord_url,
            **(environment or {}),
        }
        """What n8n is run with; a change takes effect at the next start."""
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if self.command is None:
            raise N8nError("n8n is not installed: run deploy/install_n8n.sh, or set N8N_COMMAND")
        self.folder.mkdir(parents=True, exist_ok=True)
        import_workflows([str(self.command)], WORKFLOWS, self.environment)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait until every webhook answers; does nothing when it runs."""
        if self._process is not None:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [str(self.command), "start"],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C reaches the parent alone, which then stops it in its time.
                start_new_session=True,
            )
        try:
            self._await()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Stop it once it has answered what it is at; does nothing when it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, in the middle of whatever it is at."""
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for number in (how, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)

    def _await(self) -> None:
        """Wait until it is ready: it says so before its webhooks are there."""
        deadline = time.monotonic() + START_SECONDS
        while wrong := self._trouble():
            if self._process is None or self._process.poll() is not None:
                raise N8nError(f"n8n did not start: it ended by itself; see {self.log}")
            if time.monotonic() > deadline:
                raise N8nError(f"n8n did not start in {START_SECONDS} s: {wrong}; see {self.log}")
            time.sleep(0.1)

    def _trouble(self) -> str | None:
        try:
            ready = requests.get(f"{self.url}/healthz/readiness", timeout=2).status_code == 200
        except requests.RequestException:
            ready = False
        if not ready:
            return "it is not ready"
        checked = check(self.url, self._secret, 10)
        return next((one.said for one in checked if not one.is_good), None)


def _run(command: Sequence[str], environment: Mapping[str, str]) -> None:
    line = " ".join(command)
    try:
        done = subprocess.run(  # noqa: S603
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
    except OSError as error:
        raise N8nError(
            f"`{command[0]}` can't be run ({error.strerror}): run this where n8n is, or say how to "
            'with --command, such as "docker compose exec -T n8n n8n"'
        ) from error
    except subprocess.TimeoutExpired:
        raise N8nError(f"`{line}` did not end within {COMMAND_SECONDS} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace").splitlines()
        reason = _without_secrets(said[-1] if said else "it says nothing", environment)
        raise N8nError(
            f"`{line}` failed: {reason}; is it n8n {VERSION} or later, with its database?"
        )


def _without_secrets(text: str, environment: Mapping[str, str]) -> str:
    for name, value in environment.items():
        if value and re.search("SECRET|PASSWORD|TOKEN|KEY|WEBHOOK_URL|DATABASE_URL", name):
            text = text.replace(value, f"<{name}>")
    return text


def _checked(url: str, channel: str, secret: str, timeout: float) -> Checked:
    try:
        is_good, said = _verdict(f"{url}/webhook/{channel}", secret, timeout)
    except requests.Timeout:
        is_good, said = False, f"no answer within {timeout:g} s"
    # Their own words hold the URL. ValueError: a secret that no header can hold.
    except (requests.RequestException, ValueError) as error:
        is_good, said = False, f"n8n can't be reached ({type(error).__name__})"
    return Checked(channel, is_good, said)


def _verdict(webhook: str, secret: str, timeout: float) -> tuple[bool, str]:
    def post(headers: Mapping[str, str]) -> requests.Response:
        return requests.post(
            webhook, json={}, headers=headers, timeout=timeout, allow_redirects=False
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
        return f"open: answers {status} without a secret; anybody can post"
    return f"answers {status} without a secret, not 403: is this n8n?"


def _unusable(answer: requests.Response) -> str | None:
    """Say what is wrong with an answer to an empty body with our secret."""
    status = answer.status_code
    if status in {401, 403}:
        return f"refuses our secret ({status}): n8n's N8N_WEBHOOK_SECRET differs"
    if status != 400 or not _is_ours(answer):
        return f"answers {status} to an empty body: this is not our workflow"
    return None


def _is_ours(response: requests.Response) -> bool:
    try:
        said = response.json()
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("delivered") is False


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]
