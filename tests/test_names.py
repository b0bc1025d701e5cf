"""Names that stand for nothing in particular may only become fewer."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "trading_pipelines"
FILLERS = {"one", "found", "known", "said", "mine", "wanted"}
# `found` is a key of what `health --json` prints.
AT_MOST = 1


def bindings(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield each name that is bound in a module, with its line."""
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name, ctx=ast.Store(), lineno=line):
                yield name, line
            case ast.arg(arg=name, lineno=line) | ast.alias(asname=str(name), lineno=line):
                yield name, line
            case ast.ExceptHandler(name=str(name), lineno=line):
                yield name, line
            case (
                ast.MatchAs(name=str(name), lineno=line)
                | ast.MatchStar(name=str(name), lineno=line)
            ):
                yield name, line


def test_a_name_says_what_it_stands_for() -> None:
    fillers = [
        f"{path.relative_to(PACKAGE.parent)}:{line}: {name}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for name, line in bindings(ast.parse(path.read_text(encoding="utf-8")))
        if name in FILLERS
    ]
    assert len(fillers) <= AT_MOST, (
        f"{len(fillers)} names of {sorted(FILLERS)}, at most {AT_MOST} may be: give the new one "
        "the noun it stands for (rows, partition, message, …):\n" + "\n".join(fillers)
    )


def test_every_way_to_bind_a_name_is_counted() -> None:
    source = """
import os as one
def f(found, *known, said=1, **mine): pass
with open("") as wanted: pass
try: pass
except OSError as one: pass
for found, (known, *said) in (): pass
[mine for mine in ()]
(wanted := 1)
lambda one: one
match 1:
    case [found, *known]: pass
    case int() as said: pass
"""
    assert Counter(name for name, _ in bindings(ast.parse(source)) if name in FILLERS) == {
        "one": 3,
        "found": 3,
        "known": 3,
        "said": 3,
        "mine": 2,
        "wanted": 2,
    }
