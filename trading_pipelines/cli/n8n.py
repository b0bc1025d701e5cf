"""`n8n import | check`: the workflows in the operator's n8n."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from trading_pipelines.alerts.n8n.check import check_workflows
from trading_pipelines.alerts.n8n.workflows import (
    N8nError,
    import_workflows,
    other_workflows,
    our_workflows,
)
from trading_pipelines.cli.render import fail, out
from trading_pipelines.cli.sessions import configured_webhooks
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.shipped import WORKFLOWS, shipped

app = typer.Typer(help="The workflows in the operator's n8n.", no_args_is_help=True)
Command = Annotated[str, typer.Option(help="How n8n's own command line is run on its machine.")]


@app.command("import")
def n8n_import(
    command: Command = "n8n",
    folder: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Where the workflows are (default: n8n_workflows beside the settings if it holds "
            "ours, or else those that come with the package).",
        ),
    ] = None,
) -> None:
    """Import the five workflows and their credential, and publish them.

    It may be run again at any time: what is there is replaced. n8n itself needs N8N_WEBHOOK_SECRET
    and DISCORD_WEBHOOK_URL in its environment. Where it runs in a container, the folder has to be
    mounted there at the same path.

    Example: trading-pipelines n8n import --command "npx n8n"
    """
    for line in import_workflows(shlex.split(command), folder or _workflows(), os.environ):
        out.print(escape(line), soft_wrap=True)
    for channel, names in _others(command).items():
        for name in names:
            out.print(
                escape(
                    f"{name} is active on /webhook/{channel} too, and n8n lets one of the two "
                    "answer: deactivate it before you restart n8n"
                ),
                style="yellow",
                soft_wrap=True,
            )


@app.command("check")
def n8n_check(command: Command = "n8n") -> None:
    """Ask n8n at N8N_URL whether each workflow is there and guarded. Sends nothing to Discord.

    Where another workflow answers in the place of ours, it is looked for with n8n's own command
    line, and named.

    Example: trading-pipelines n8n check
    """
    webhooks = configured_webhooks()
    if not webhooks.n8n_url:
        fail("N8N_URL is not set")
    checks = check_workflows(webhooks.n8n_url, webhooks.secret or "", webhooks.timeout)
    others = _others(command) if any(check.is_another for check in checks) else {}
    for check in checks:
        names = ", ".join(others.get(check.channel, [])) if check.is_another else ""
        finding = check.finding + (names and f": deactivate {names} and restart n8n")
        colour = "green" if check.is_good else "red"
        out.print(f"{check.channel:<13}[{colour}]{escape(finding)}[/]", soft_wrap=True)
    if wrong := [check for check in checks if not check.is_good]:
        fail(f"{len(wrong)} of {len(checks)} workflows can't be used")


def _workflows() -> Path:
    own = load_environment().own_or(shipped(WORKFLOWS))
    return own if our_workflows(own) else shipped(WORKFLOWS)


def _others(command: str) -> dict[str, list[str]]:
    try:
        return other_workflows(shlex.split(command), os.environ)
    except N8nError as error:
        note = f"whether other workflows have our webhooks is not known: {error}"
        out.print(escape(note), soft_wrap=True)
        return {}
