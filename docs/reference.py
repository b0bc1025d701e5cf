"""The reference of commands, settings and variables, written from the code: `make docs`.

What a command or a setting says of itself belongs to the code and to config/strategy.yaml. Here is
only how it is drawn, and what a variable means where its model does not say so.
"""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import BaseModel

from trading_pipelines.cli.main import app
from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import allowed_text, setting_schema

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "reference.md"
DEFAULTS = ROOT / "config" / "strategy.yaml"
PROGRAM = "trading-pipelines"
COMMAND_LINE = typer.main.get_command(app)
HEAD = """\
<!-- Written by `make docs` (docs/reference.py) from the command line, the settings' model and
config/strategy.yaml: change those. -->

# Reference

[Commands](#commands) · [settings](#settings) · [environment variables](#environment-variables)
"""
COMMANDS = """\
## Commands

`trading-pipelines` is short for `.venv/bin/trading-pipelines` in the folder of the clone, and
`trading-pipelines COMMAND --help` prints the same as below. {epilog}
"""
SETTINGS = """\
## Settings

They are in `config/strategy.yaml`, or in the file that `TRADING_PIPELINES_CONFIG` names. A key or a
section that is left out has its default; a file that means all defaults says `{}`. A wrong one, or
a file without settings, stops the start, and the message names file, line, key and what is allowed;
while it runs, the [last good settings](decisions/0029-settings-of-a-moment.md) stay in use. The
bot's own sections `regimes`, `risk_management` and `regime_change_policy` may stand in the same
file; of them only the exits in `regimes` are read.
"""
VARIABLES = """\
## Environment variables

They are read when a command starts; an empty one counts as not set. A secret or a URL that
holds one can be in a file, which `<NAME>_FILE` names (`REDIS_URL_FILE=/run/secrets/REDIS_URL`).
"""
# Where the model has a description of a variable, that is taken; a test allows no second one here.
MEANINGS = {
    "n8n_command": "the n8n that the demo and the tests start; without it the one that `make n8n` "
    "has installed",
}


def text() -> str:
    """Return the page."""
    return "\n".join([HEAD, *_commands(), *_settings(), *_variables()])


def options() -> dict[str, set[str]]:
    """Return the options of each command, by the command as it is typed: `alerts list`."""
    return {
        context.command_path.removeprefix(f"{PROGRAM} "): {
            option for param in command.get_params(context) for option in param.opts
        }
        for command, context in walk()
    }


def without_help() -> list[str]:
    """Return the arguments and options that do not say what they mean, with their commands."""
    return [
        f"{context.command_path} {param.name}"
        for command, context in walk()
        for param in command.get_params(context)
        if not getattr(param, "help", None)
    ]


def walk() -> Iterator[tuple[Any, Any]]:
    """Yield each command with its context, in the order of `--help`."""

    def below(command: Any, name: str, parent: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401
        context = command.make_context(name, [], parent=parent, resilient_parsing=True)
        if not hasattr(command, "list_commands"):
            yield command, context
            return
        for child in command.list_commands(context):
            yield from below(command.get_command(context, child), child, context)

    yield from below(COMMAND_LINE, PROGRAM, None)


def _commands() -> Iterator[str]:
    yield COMMANDS.format(epilog=COMMAND_LINE.epilog)
    paths = [(context.command_path, command.get_short_help_str(200)) for command, context in walk()]
    yield _table(
        ["command", "what it does"],
        [[f"[`{path}`](#{path.replace(' ', '-')})", help_] for path, help_ in paths],
    )
    for command, context in walk():
        yield f"### {context.command_path}\n"
        words, _, example = (command.help or "").partition("Example: ")
        yield f"{words.strip()}\n"
        if example:
            yield f"```sh\n{example.strip()}\n```\n"
        records = filter(None, (param.get_help_record(context) for param in command.params))
        rows = [[f"`{name}`", *_split(help_)] for name, help_ in records]
        if rows:
            yield _table(["argument or option", "meaning", "default, limits"], rows)


def _split(help_: str) -> tuple[str, str]:
    """Part an option's help from the default and the limits that are printed behind it."""
    help_ = help_.replace("<", "\\<")  # GitHub takes <home> for a tag.
    parts = re.fullmatch(r"(.*?) *\[(?:default: )?([^]]*)]", help_)
    return (parts[1], parts[2]) if parts else (help_, "")


def _settings() -> Iterator[str]:
    yield SETTINGS
    sections = {
        name: field.default
        for name, field in StrategySettings.model_fields.items()
        if isinstance(field.default, BaseModel)
    }
    symbols = StrategySettings.model_fields["symbols"]
    yield f"`symbols`: {symbols.description}; by default `{_yaml(symbols.default)}`.\n"
    comments = _comments()
    for section, defaults in sections.items():
        yield f"### {section}\n"
        yield f"{inspect.getdoc(type(defaults))}\n"
        rows = [
            [
                f"`{key}`",
                f"`{_yaml(value)}`",
                allowed_text(setting_schema((section, key))),
                comments.get((section, key), ""),
            ]
            for key, value in defaults.model_dump().items()
        ]
        yield _table(["key", "default", "allowed", "meaning"], rows)


def _comments() -> dict[tuple[str, str], str]:
    """Return the strategy file's comment on each key: behind it, or in the lines before it."""
    comments: dict[tuple[str, str], str] = {}
    section, before = "", ""
    for line in DEFAULTS.read_text(encoding="utf-8").splitlines():
        if comment := re.match(r"  # (.*)", line):
            before += f" {comment[1]}"
            continue
        if heading := re.match(r"(\w+):", line):
            section = heading[1]
        elif key := re.match(r"  (\w+):[^#]*(?:# (.*))?", line):
            comments[section, key[1]] = (key[2] or before).strip()
        before = ""
    return comments


def _yaml(value: object) -> str:
    """Return a value as the strategy file writes it, in one line."""
    if value is None:
        return "nothing"
    line = yaml.safe_dump(
        value, default_flow_style=True, allow_unicode=True, width=10_000, sort_keys=False
    )
    return line.removesuffix("\n").removesuffix("\n...")


def _variables() -> Iterator[str]:
    yield VARIABLES
    fields: dict[str, Any] = {**Environment.model_fields, "n8n_command": None}
    rows = [
        [
            f"`{name.upper()}`",
            f"`{field.default}`" if field and field.default else "none",
            getattr(field, "description", None) or MEANINGS[name],
        ]
        for name, field in fields.items()
    ]
    yield _table(["variable", "default", "meaning"], rows)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return (
        "\n".join(
            f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
        )
        + "\n"
    )


def main() -> None:
    """Write the page."""
    PAGE.write_text(text(), encoding="utf-8")


if __name__ == "__main__":
    main()
