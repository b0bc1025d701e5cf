"""The command line's entry: which commands there are, and which module has each.

A module is imported when one of its commands is run or listed, so that looking costs little. Exit
status: 0 done, 1 failed (with the partitions named), 2 wrong usage.
"""

import signal
import sys
import traceback
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_group

from trading_pipelines.cli.render import fail, out
from trading_pipelines.errors import OperatorError
from trading_pipelines.settings.environment import without_secrets

MODULES = {
    "init": "run",
    "up": "run",
    "down": "run",
    "serve": "run",
    "backfill": "backfill",
    "demo": "scenarios",
    "drill": "scenarios",
    "status": "watch",
    "health": "watch",
    "signals": "watch",
    "flags": "watch",
    "explain": "explain",
    "trades": "bot",
    "decisions": "bot",
    "risk": "bot",
    "rejections": "bot",
    "ai": "ai",
    "replay": "simulate",
    "inbox": "simulate",
    "env": "run",
    "db": "db",
    "alerts": "alerts",
    "n8n": "n8n",
}
"""The module of each command, in the order of `--help`."""


class Commands(TyperGroup):
    """The commands of MODULES; a command that its module does not have is the module's group."""

    def list_commands(self, _: Any) -> list[str]:  # noqa: ANN401 - typer's context is private
        """Return the names, in the order of `--help`."""
        return list(MODULES)

    def get_command(self, _: Any, name: str) -> Any:  # noqa: ANN401 - as its command
        """Return the command, or None where there is none of that name."""
        if name not in MODULES:
            return None
        group = get_group(import_module(f"trading_pipelines.cli.{MODULES[name]}").app)
        return group.commands.get(name, group)


app = typer.Typer(
    cls=Commands,
    help=(
        "Market data and alerts of an Upbit trading bot.\n\n"
        "Environment: DATABASE_URL (default: an embedded Postgres), UPBIT_BASE_URL, "
        "N8N_URL and N8N_WEBHOOK_SECRET, DISCORD_WEBHOOK_URL, HEARTBEAT_URL (asked while health is "
        "good), DOCS_URL (where docs/ can be read: the UI links to it), TRADING_PIPELINES_HOME "
        "(default .data), TRADING_PIPELINES_CONFIG (default config/strategy.yaml)."
    ),
    epilog="Exit status: 0 done, 1 failed, 2 wrong usage.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(*, is_asked: bool) -> None:
    if is_asked:
        out.print(version("trading-pipelines"))
        raise typer.Exit


@app.callback()
def _options(
    *,
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; expected failures are one message and exit status 1."""
    # A command that is terminated leaves by its `finally`s, which stop what it has started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # A shell starts a background command with SIGINT ignored. Dagster's processes inherit that and
    # handle SIGTERM alike: stopping them then took 30 s and a SIGKILL.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        app()
    except OperatorError as error:
        fail(str(error))
    except OSError as error:
        # A folder that can't be written, a full disk; without a file's name it is a bug.
        if error.filename is None:
            _show_bug()
        fail(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception:  # noqa: BLE001 - a bug: its traceback is shown, and no secret in it
        _show_bug()


def _show_bug() -> NoReturn:
    sys.stderr.write(without_secrets(traceback.format_exc()))
    sys.exit(1)


if __name__ == "__main__":
    main()
