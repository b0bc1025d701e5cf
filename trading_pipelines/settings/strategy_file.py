"""Reads and writes the strategy file: YAML with the line of every key.

Each problem is said at its line. What a setting allows belongs in `strategy`.
"""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from trading_pipelines.settings.errors import Place, SettingsError, shown_value
from trading_pipelines.settings.strategy import StrategySettings

# The bot keeps these in the same file: any content is fine, and nothing here reads it.
_BOT_SECTIONS = ("risk_management", "regime_change_policy")


class _Loader(yaml.SafeLoader):
    """Leaves timestamps as text: PyYAML itself would crash on 2024-02-30, and without a line."""


_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda _, node: node.value)


class _StrategyFile:
    """The content of a YAML text, the line of every key and item, and the keys given twice."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Place, int] = {}
        self.problems: list[tuple[int, str]] = []
        self._loader = _Loader(text)
        node = self._loader.get_single_node()
        self.content = self._value(node, ()) if node else None

    def _value(self, node: yaml.Node, at: Place) -> object:
        # A section's keys are the deepest settings: anything below them is a value of wrong type.
        if isinstance(node, yaml.MappingNode) and len(at) <= 1:
            return dict(self._pairs(node, at))
        if isinstance(node, yaml.SequenceNode) and at:
            self.lines |= {(*at, n): _line(item) for n, item in enumerate(node.value)}
        return self._loader.construct_object(node, deep=True)

    def _pairs(self, node: yaml.MappingNode, at: Place) -> Iterator[tuple[str, Any]]:
        for key, value in node.value:
            name = str(key.value)
            place = (*at, name)
            if place in self.lines:
                text = f"given twice, first on line {self.lines[place]}; allowed: once"
                self.problems.append((_line(key), f"{_dotted(place)}: {text}"))
                continue
            self.lines[place] = _line(key)
            if place == ("regimes",):
                # The bot's own too: nothing in it stops a start, were it a tag that we don't know.
                try:
                    yield name, self._loader.construct_object(value, deep=True)
                except (yaml.YAMLError, ValueError) as error:
                    yield name, f"regimes can't be read: {' '.join(str(error).split())}"
            elif at or name not in _BOT_SECTIONS:
                yield name, self._value(value, place)

    def describe(self, error: ErrorDetails) -> tuple[int, str]:
        """The line and the text of one of the model's errors."""
        context, loc = error.get("ctx", {}), error["loc"]
        loc = next((place for place in context.get("places", ()) if place in self.lines), loc)
        # Inside a setting that is a mapping, the setting is what has a line and a description.
        while loc and loc not in self.lines:
            loc = loc[:-1]
        if error["type"] == "extra_forbidden":
            keys = [*setting_schema(loc[:-1])["properties"], *(() if loc[:-1] else _BOT_SECTIONS)]
            near = difflib.get_close_matches(str(loc[-1]), keys, n=1)
            wrong = "unknown key" + "".join(f", did you mean {key}?" for key in near)
            allowed = ", ".join(keys)
        else:
            return self.lines[loc], f"{_dotted(loc)}: {in_words(error, loc)}"
        return self.lines[loc], f"{_dotted(loc)}: {wrong}; allowed: {allowed}"


def in_words(error: ErrorDetails, loc: Place) -> str:
    """Return what is wrong with the value of a setting, and what is allowed there."""
    context = error.get("ctx", {})
    wrong = context.get("wrong") or f"is {shown_value(error['input'])}"
    return f"{wrong}; allowed: {context.get('allowed') or allowed_text(setting_schema(loc))}"


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _dotted(loc: Place) -> str:
    return ".".join(part for part in loc if isinstance(part, str))


def setting_schema(loc: Place) -> dict[str, Any]:
    """Return the JSON schema of the setting at the place in the file."""
    schema = root = StrategySettings.model_json_schema()
    for part in loc:
        schema = schema["items"] if isinstance(part, int) else schema["properties"][part]
        schema = root["$defs"][schema["$ref"].rsplit("/")[-1]] if "$ref" in schema else schema
    return schema


def allowed_text(schema: dict[str, Any]) -> str:
    """What a JSON schema allows, in words: the model stays the only place that knows it."""
    if "properties" in schema:
        return "a section with the keys " + ", ".join(schema["properties"])
    if "description" in schema:
        return str(schema["description"])
    if "const" in schema or "enum" in schema:
        return " or ".join(schema.get("enum") or [schema["const"]])
    kinds = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}
    bounds = {
        "minimum": "of at least",
        "exclusiveMinimum": "above",
        "maximum": "and at most",
        "exclusiveMaximum": "and below",
    }
    limits = [f"{words} {schema[key]:g}" for key, words in bounds.items() if key in schema]
    return " ".join([kinds[schema["type"]], *limits])


def read_strategy(path: Path) -> bytes:
    """Return the strategy file as it stands; raises SettingsError where it can't be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(
            f"{path}: {error.strerror}; allowed: a YAML file; start where config/strategy.yaml is "
            "(a new folder: `trading-pipelines init .`), or set TRADING_PIPELINES_CONFIG to its "
            "path"
        ) from error


def _parsed(raw: bytes, path: Path) -> _StrategyFile:
    """Raise SettingsError where there is nothing to validate: not UTF-8, not YAML."""
    try:
        return _StrategyFile(raw.decode())
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        problem = f":{line}: not UTF-8; allowed: YAML saved as UTF-8"
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = f":{line}: {error.problem}; allowed: YAML"
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = ": " + " ".join(f"{error}; allowed: YAML".split())
    raise SettingsError(f"{path}{problem}")


def load_strategy(path: Path) -> StrategySettings:
    """Read the strategy file; sections and keys left out mean the defaults.

    Raises SettingsError with every problem as `file:line: key: what is wrong; allowed: what is`. A
    file without content is one: an editor that is just writing leaves it so for a moment.
    """
    return parse_strategy(read_strategy(path), path)


def parse_strategy(raw: bytes, path: Path) -> StrategySettings:
    """Return the settings that the content of `path` means; raises as `load_strategy` does."""
    file = _parsed(raw, path)
    content = file.content
    if content is None:
        raise SettingsError(
            f"{path}:1: the file holds no settings; allowed: sections, or {{}} where all defaults "
            "are meant"
        )
    if not isinstance(content, dict):
        sections = ", ".join(StrategySettings.model_fields)
        raise SettingsError(
            f"{path}:1: is {shown_value(content)}; allowed: the sections {sections}"
        )
    problems = file.problems
    try:
        settings = StrategySettings.model_validate(content)
        if not problems:
            return settings
    except ValidationError as error:
        problems += [file.describe(detail) for detail in error.errors(include_url=False)]
    raise SettingsError("\n".join(f"{path}:{line}: {text}" for line, text in sorted(problems)))


def dump_strategy(settings: StrategySettings, path: Path) -> None:
    """Write a file that `load_strategy` reads back equal; a reader never sees half of it.

    Makes the folder where it is missing. Raises OSError where the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        text = yaml.safe_dump(settings.model_dump(), sort_keys=False)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
