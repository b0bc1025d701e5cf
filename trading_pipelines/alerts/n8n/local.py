"""An n8n of our own on loopback, for the demo and the tests.

The operator's own n8n is not touched.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import requests

from trading_pipelines.alerts.n8n.check import check_workflows
from trading_pipelines.alerts.n8n.workflows import (
    VERSION,
    N8nError,
    import_workflows,
)
from trading_pipelines.alerts.webhooks import MOST_BYTES
from trading_pipelines.http_calls import call
from trading_pipelines.settings.shipped import WORKFLOWS, shipped

START_SECONDS = 120
STOP_SECONDS = 20
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


def installed_n8n() -> Path | None:
    """Return the n8n that deploy/install_n8n.sh installed, or N8N_COMMAND; None if it is not."""
    cache = Path.home() / ".cache" / "trading-pipelines" / f"n8n-{VERSION}" / "n8n"
    path = Path(os.environ.get("N8N_COMMAND") or cache)
    return path if os.access(path, os.X_OK) else None


class LocalN8n:
    """An n8n of our own with the five workflows, on loopback, while its `with` block lasts.

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
        self.command = command or installed_n8n()
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
        import_workflows([str(self.command)], shipped(WORKFLOWS), self.environment)
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
        while wrong := self._not_ready():
            if self._process is None or self._process.poll() is not None:
                raise N8nError(f"n8n did not start: it ended by itself; see {self.log}")
            if time.monotonic() > deadline:
                raise N8nError(f"n8n did not start in {START_SECONDS} s: {wrong}; see {self.log}")
            time.sleep(0.1)

    def _not_ready(self) -> str | None:
        """Say why it is not ready; None when it is."""
        try:
            readiness = call(
                "GET", f"{self.url}/healthz/readiness", seconds=2, most_bytes=MOST_BYTES
            )
            ready = readiness.status_code == 200
        except requests.RequestException:
            ready = False
        if not ready:
            return "it is not ready"
        checks = check_workflows(self.url, self._secret, 10)
        return next((check.finding for check in checks if not check.is_good), None)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
