"""The error of wrong settings, and how a value is shown in it.

The message with file, line and key is made in `strategy_file`.
"""

import json

from pydantic_core import PydanticCustomError

from trading_pipelines.errors import OperatorError

Place = tuple[str | int, ...]


class SettingsError(OperatorError):
    """The settings cannot be used; the message lists every problem found, one a line."""


def settings_problem(wrong: str, allowed: str, *places: Place) -> PydanticCustomError:
    """Make an error that is reported at the first of `places` that the file holds."""
    context = {"wrong": wrong, "allowed": allowed, "places": places}
    return PydanticCustomError("settings", "{wrong}; allowed: {allowed}", context)


def shown_value(value: object) -> str:
    """Return a value as an error's line shows it: on one line, at most 80 characters."""
    kind = "the text " if isinstance(value, str) else ""
    text = json.dumps(value, ensure_ascii=False, skipkeys=True, default=str)
    # One problem is one line, whatever breaks lines in the value.
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return "empty" if value is None else f"{kind}{text:.80}"
