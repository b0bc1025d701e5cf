"""Importing our workflows into n8n and publishing them, with n8n's own command line.

What a workflow does is in `config/n8n_workflows/`; asking n8n whether they work belongs in `check`,
posting alerts to it in `alerts/webhooks`.
"""

import json
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from trading_pipelines.errors import OperatorError

VERSION = "2.41.1"
CREDENTIALS = "n8n_credentials.json"
"""Beside the folder of the workflows."""

COMMAND_SECONDS = 120
RESTART = "restart n8n if it is running: until then it may answer 404, or go on as before"


class N8nError(OperatorError):
    """n8n can't be run, or refuses a workflow; the message says what to do and holds no secret."""


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
        workflows = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        names = {workflow["id"]: workflow["name"] for workflow in workflows}
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
        lines = (done.stderr.strip() or done.stdout.strip()).decode(errors="replace").splitlines()
        reason = _without_secrets(lines[-1] if lines else "it says nothing", environment)
        raise N8nError(
            f"`{line}` failed: {reason}; is it n8n {VERSION} or later, with its database?"
        )


def _without_secrets(text: str, environment: Mapping[str, str]) -> str:
    for name, value in environment.items():
        if value and re.search("SECRET|PASSWORD|TOKEN|KEY|WEBHOOK_URL|DATABASE_URL", name):
            text = text.replace(value, f"<{name}>")
    return text
