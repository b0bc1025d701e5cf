"""What is private to Dagster: imported by two modules, and still there in the installed version."""

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "trading_pipelines"
ROOMS = {PACKAGE / "monitoring" / name for name in ("dagster_instance.py", "partition_events.py")}


def private_names(module: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, name) of each import of what Dagster does not publish."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dagster"):
            for alias in node.names:
                if "._" in f"{node.module}.{alias.name}":
                    yield str(node.module), alias.name
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("dagster") and "._" in alias.name:
                    yield alias.name, ""


def test_two_modules_import_them() -> None:
    users = {path for path in PACKAGE.rglob("*.py") if list(private_names(path))}
    assert users == ROOMS


@pytest.mark.parametrize(
    ("module", "name"), sorted({name for room in ROOMS for name in private_names(room)})
)
def test_the_installed_version_has_it(module: str, name: str) -> None:
    assert hasattr(import_module(module), name), f"{module}.{name} is gone: see ROOMS"
