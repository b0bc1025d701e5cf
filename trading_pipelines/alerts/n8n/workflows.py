"""Importing our workflows into n8n and publishing them, with n8n's own command line.

Who else has their webhooks there is found with it too. What a workflow does is in
`config/n8n_workflows/`; asking n8n whether they work belongs in `check`, posting alerts to it in
`alerts/webhooks`.
"""

import json
import re
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trading_pipelines.alerts.kinds import CHANNELS
from trading_pipelines.errors import OperatorError
from trading_pipelines.settings.shipped import WORKFLOWS, shipped

VERSION = "2.41.1"
OLDEST = (1, 123)
"""CoinPilot's. Below 2 there is no publishing: a workflow is active or not."""

CREDENTIALS = "n8n_credentials.json"
"""Beside the folder of the workflows."""

COMMAND_SECONDS = 120
RESTART = (
    "restart n8n if it is running: until then it may answer 404, or go on as before; then run "
    "`n8n check`"
)


class N8nError(OperatorError):
    """n8n can't be run, or refuses a workflow; the message says what to do and holds no secret."""


class _Activation(NamedTuple):
    on: tuple[str, ...]
    off: tuple[str, ...]
    done: str


_PUBLISHED = _Activation(("publish:workflow",), ("unpublish:workflow",), "published")
_ACTIVATED = _Activation(
    ("update:workflow", "--active=true"), ("update:workflow", "--active=false"), "activated"
)


def our_workflows(folder: Path) -> dict[str, Path]:
    """Return which of the folder's files are our workflows, by id; CoinPilot's may lie beside them.

    Raises N8nError for a file that is no JSON.
    """
    ours = _by_id(shipped(WORKFLOWS))
    return {key: file for key, file in _by_id(folder).items() if key in ours}


def import_workflows(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> list[str]:
    """Import the credential and our workflows in the folder, publish them and say so, line by line.

    The same again changes nothing: their ids are fixed. A running n8n has to be restarted, as the
    last line says: importing takes its webhooks away from under it (404), and publishing does not
    give them back. Raises N8nError, before anything is changed where n8n is too old or the
    workflows may not read its environment.
    """
    ours = _required(folder)

    def run(*arguments: str) -> str:
        return _run([*command, *arguments], environment)

    activation = _PUBLISHED if _version(run("--version")) >= (2, 0) else _ACTIVATED
    if environment.get("N8N_BLOCK_ENV_ACCESS_IN_NODE", "false") != "false":
        raise N8nError(
            "N8N_BLOCK_ENV_ACCESS_IN_NODE is not false, so the workflows could read neither the "
            "secret nor Discord's URL: set it to false here and where n8n runs"
        )
    run("import:credentials", f"--input={folder.parent / CREDENTIALS}")
    try:
        _import(run, folder, ours.values())
    except N8nError as refused:
        # Until n8n has run once it refuses to import over what is published ("permission to
        # deactivate"); taken back first, it does not.
        try:
            for workflow_id in ours:
                run(*activation.off, f"--id={workflow_id}")
            _import(run, folder, ours.values())
        except N8nError:
            raise refused from None
    for workflow_id in ours:
        run(*activation.on, f"--id={workflow_id}")
    return [
        *(f"{file.stem} ({key}) imported and {activation.done}" for key, file in ours.items()),
        *(
            f"{file.stem} ({key}) is not in {folder}: if you want it, copy {file} to there and "
            "import again"
            for key, file in _by_id(shipped(WORKFLOWS)).items()
            if key not in ours
        ),
        RESTART,
    ]


def other_workflows(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, list[str]]:
    """Return for each channel the `name (id)` of each active workflow on its webhook but ours.

    n8n lets one of those on a webhook answer and says nothing. Raises N8nError.
    """
    exporting = [*command, "export:workflow", "--all"]
    output = _run(exporting, environment)
    start = re.search(r"^\[\{", output, re.MULTILINE)  # n8n may log before it
    try:
        workflows = json.JSONDecoder().raw_decode(output, start.start())[0] if start else None
    except ValueError:
        workflows = None
    if workflows is None:
        raise N8nError(f"`{' '.join(exporting)}` gives no workflows")
    ours = _by_id(shipped(WORKFLOWS))
    others = [
        workflow for workflow in workflows if workflow.get("active") and workflow["id"] not in ours
    ]
    return {
        channel: [
            f"{workflow['name']} ({workflow['id']})"
            for workflow in others
            if any(_listens(node, channel) for node in workflow["nodes"])
        ]
        for channel in CHANNELS
    }


def _listens(node: Mapping[str, Any], channel: str) -> bool:
    """Say whether a node takes the posts to /webhook/<channel>, by the defaults that n8n has."""
    parameters = node.get("parameters") or {}
    is_many = parameters.get("multipleMethods") is True
    methods = parameters.get("httpMethod", ["GET", "POST"] if is_many else "GET")
    return (
        node.get("type") == "n8n-nodes-base.webhook"
        and not node.get("disabled")
        # Without this id n8n puts the workflow's id before the path.
        and node.get("webhookId") is not None
        and str(parameters.get("path")).strip("/") == channel
        and "POST" in ([methods] if isinstance(methods, str) else methods)
    )


def _required(folder: Path) -> dict[str, Path]:
    """Return our workflows in the folder; raises N8nError where something is missing."""
    if not any(folder.glob("*.json")) or not (folder.parent / CREDENTIALS).exists():
        raise N8nError(f"{folder} needs n8n's workflows (*.json) in it and {CREDENTIALS} beside it")
    ours = our_workflows(folder)
    if not ours:
        raise N8nError(f"there is no workflow with an id of ours in {folder}")
    return ours


def _import(run: Callable[..., str], folder: Path, files: Collection[Path]) -> None:
    if set(files) == set(folder.glob("*.json")):
        run("import:workflow", "--separate", f"--input={folder}")
    else:
        for file in files:
            run("import:workflow", f"--input={file}")


def _by_id(folder: Path) -> dict[str, Path]:
    files = {}
    for file in sorted(folder.glob("*.json")):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise N8nError(f"{file} is no JSON: {error}") from error
        if isinstance(content, dict) and isinstance(content.get("id"), str):
            files[content["id"]] = file
    return files


def _version(output: str) -> tuple[int, int]:
    numbers = re.search(r"^v?(\d+)\.(\d+)\.\d", output, re.MULTILINE)
    version = (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)
    if version < OLDEST:
        raise N8nError(
            f"n8n {OLDEST[0]}.{OLDEST[1]} or later is needed, and `--version` says "
            f"{output.strip() or 'nothing'}: upgrade n8n"
        )
    return version


def _run(command: Sequence[str], environment: Mapping[str, str]) -> str:
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
        lines = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace").splitlines()
        reason = _without_secrets(lines[-1] if lines else "it says nothing", environment)
        raise N8nError(
            f"`{line}` failed: {reason}; is it n8n {OLDEST[0]}.{OLDEST[1]} or later, with its "
            "database?"
        )
    return done.stdout.decode(errors="replace")


def _without_secrets(text: str, environment: Mapping[str, str]) -> str:
    for name, value in environment.items():
        if value and re.search("SECRET|PASSWORD|TOKEN|KEY|WEBHOOK_URL|DATABASE_URL", name):
            text = text.replace(value, f"<{name}>")
    return text
