"""`n8n import | check`: the workflows in the operator's n8n."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from trading_pipelines.alerts.n8n.check import check_workflows
from trading_pipelines.alerts.n8n.workflows import import_workflows
from trading_pipelines.cli.render import fail, out
from trading_pipelines.cli.sessions import configured_webhooks
from trading_pipelines.settings.environment import load_environment
from trading_pipelines.settings.shipped import WORKFLOWS, shipped

app = typer.Typer(help="The workflows in the operator's n8n.", no_args_is_help=True)


@app.command("import")
def n8n_import(
    command: Annotated[
        str, typer.Option(help="How n8n's own command line is run on its machine.")
    ] = "n8n",
    folder: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Where the workflows are (default: n8n_workflows beside the settings).",
        ),
    ] = None,
) -> None:
    """Import the five workflows and their credential, and publish them.

    It may be run again at any time: what is there is replaced. n8n itself needs N8N_WEBHOOK_SECRET
    and DISCORD_WEBHOOK_URL in its environment. Where it runs in a container, the folder has to be
    mounted there at the same path.

    Example: trading-pipelines n8n import --command "npx n8n"
    """
    workflows = folder or load_environment().own_or(shipped(WORKFLOWS))
    for line in import_workflows(shlex.split(command), workflows, os.environ):
        out.print(escape(line))


@app.command("check")
def n8n_check() -> None:
    """Ask n8n at N8N_URL whether each workflow is there and guarded. Sends nothing to Discord.

    Example: trading-pipelines n8n check
    """
    webhooks = configured_webhooks()
    if not webhooks.n8n_url:
        fail("N8N_URL is not set")
    checks = check_workflows(webhooks.n8n_url, webhooks.secret or "", webhooks.timeout)
    for check in checks:
        colour = "green" if check.is_good else "red"
        out.print(f"{check.channel:<13}[{colour}]{escape(check.finding)}[/]")
    if wrong := [check for check in checks if not check.is_good]:
        fail(f"{len(wrong)} of {len(checks)} workflows can't be used")
