"""The last good settings: a home goes on with them while its strategy file can't be used.

Each reload of the code location and each run reads the strategy file anew, and an editor that is
just writing leaves it empty or cut off for a moment. What a file may hold belongs in
`strategy_file`; a start takes the file alone, and keeps it here.
"""

import logging
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from trading_pipelines.settings.environment import Environment
from trading_pipelines.settings.errors import SettingsError
from trading_pipelines.settings.strategy import StrategySettings
from trading_pipelines.settings.strategy_file import parse_strategy, read_strategy


@dataclass(frozen=True)
class RefusedSettings:
    """Why the strategy file can't be used, one problem a line, and since when its copy is (UTC)."""

    problem: str
    since: datetime


@dataclass(frozen=True)
class SettingsInUse:
    """The settings of the file, or the last good ones where the file is refused."""

    settings: StrategySettings
    raw: bytes
    refused: RefusedSettings | None = None


def read_settings(environment: Environment) -> SettingsInUse:
    """Return the settings in use; raises SettingsError where there are no last good ones.

    Only beside last good ones can a file be seen to be cut off: it says something else, and is
    their beginning or ends within a line where they don't. It writes nothing.
    """
    path = environment.trading_pipelines_config
    last = _last_good(environment)
    try:
        raw = read_strategy(path)
        settings = parse_strategy(raw, path)
        if last is not None:
            _refuse_cut_off(raw, settings, last, path)
    except SettingsError as error:
        if last is None:
            raise
        since = datetime.fromtimestamp(environment.last_good_settings.stat().st_mtime, UTC)
        return SettingsInUse(last.settings, last.raw, RefusedSettings(str(error), since))
    return SettingsInUse(settings, raw)


def load_settings(environment: Environment) -> StrategySettings:
    """Return the settings in use, and keep them where the file is good; raises SettingsError."""
    in_use = read_settings(environment)
    if in_use.refused:
        logging.getLogger(__name__).warning(
            "the last good settings, of %s, stay in use: %s",
            in_use.refused.since,
            in_use.refused.problem,
        )
    else:
        _keep(environment, in_use.raw)
    return in_use.settings


def start_with_settings(environment: Environment) -> None:
    """Take the settings of the file as it stands, and keep them.

    Raises SettingsError: whoever starts is there to mend the file.
    """
    path = environment.trading_pipelines_config
    raw = read_strategy(path)
    parse_strategy(raw, path)
    _keep(environment, raw)


def _first_line(environment: Environment) -> bytes:
    # The settings of another file are not this one's last good ones.
    path = str(environment.trading_pipelines_config.absolute())
    return f"# Kept from {path!a}, as it could last be used.\n".encode()


def _last_good(environment: Environment) -> SettingsInUse | None:
    kept = environment.last_good_settings
    try:
        content = kept.read_bytes()
        raw = content.removeprefix(_first_line(environment))
        return SettingsInUse(parse_strategy(raw, kept), raw) if raw != content else None
    except (OSError, SettingsError):
        return None


def _keep(environment: Environment, raw: bytes) -> None:
    """Write the copy where it differs: its time is since when these settings are in use."""
    kept = environment.last_good_settings
    content = _first_line(environment) + raw
    temporary = kept.with_name(f".{kept.name}.{os.getpid()}")
    try:
        if kept.exists() and kept.read_bytes() == content:
            return
        kept.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content)
        temporary.replace(kept)
    except OSError as error:
        logging.getLogger(__name__).warning("the settings can't be kept in %s: %s", kept, error)


def _refuse_cut_off(
    raw: bytes, settings: StrategySettings, last: SettingsInUse, path: Path
) -> None:
    if settings == last.settings:
        return
    if last.raw.startswith(raw):
        wrong = "ends where the settings in use go on"
        allowed = "all of them, or a last line of ... where no more is meant"
    elif last.raw.endswith(b"\n") and not raw.endswith(b"\n"):
        wrong = "ends within a line, the settings in use don't"
        allowed = "a line break at the end"
    else:
        return
    lines = len(raw.splitlines())
    raise SettingsError(f"{path}:{lines}: {wrong}; allowed: {allowed}")
