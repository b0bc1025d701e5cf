"""The documents: what is generated is as the code is now, and what is linked or named is there."""

import re
from collections import Counter
from pathlib import Path

import psycopg
import pytest

from docs import reference
from docs.asset_pages import FOLDER, columns_of_ours, write
from trading_pipelines.assets.about import COLUMNS_FILE
from trading_pipelines.settings.environment import Environment

ROOT = Path(__file__).parent.parent
READMES = [ROOT / "README.md", ROOT / "README.ko.md"]
PAGES = [*READMES, *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
# Not where it is the name of a folder or of something in Kubernetes.
EXAMPLE = re.compile(r"(?<!-n )(?<!generic )trading-pipelines ([a-z0-9-][^\n`#|&)]*)")
NAMED = re.compile(r"`((?:trading_pipelines|config|deploy|docs|tests|benchmarks)/[^`\s]*)`")
HEADING = re.compile(r"^(#{1,6}) (.+)$", re.MULTILINE)


def of_each_page(page: Path) -> str:
    return str(page.relative_to(ROOT))


def texts(folder: Path) -> dict[str, str]:
    return {page.name: page.read_text(encoding="utf-8") for page in folder.glob("*.md")}


def headings(page: Path) -> list[str]:
    """The page's headings below its title, without what would be one in a block of code."""
    prose = FENCED.sub("", page.read_text(encoding="utf-8"))
    return [heading for level, heading in HEADING.findall(prose) if len(level) > 1]


def code(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    return "\n".join([*FENCED.findall(text), *INLINE.findall(FENCED.sub("", text))])


def anchors(page: Path) -> list[str]:
    """GitHub's anchors: signs left out, spaces as hyphens, a number behind one that comes again."""
    seen: Counter[str] = Counter()
    names = []
    for heading in headings(page):
        name = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        names.append(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def test_the_pages_of_the_assets_are_what_make_docs_writes(
    connection: psycopg.Connection, tmp_path: Path
) -> None:
    write(tmp_path, connection)
    written, kept = texts(tmp_path), texts(FOLDER)
    differing = {name for name in written | kept if written.get(name) != kept.get(name)}
    assert not differing, (
        f"docs/assets/ is not as the definitions are: {sorted(differing)}. Run `make docs`"
    )


def test_the_columns_that_the_ui_shows_are_those_of_a_migrated_database(
    connection: psycopg.Connection,
) -> None:
    assert COLUMNS_FILE.read_text(encoding="utf-8") == columns_of_ours(connection), (
        f"{COLUMNS_FILE.name} is not as the migrations are. Run `make docs`"
    )


def test_a_page_of_a_group_that_is_gone_goes_too(
    connection: psycopg.Connection, tmp_path: Path
) -> None:
    (tmp_path / "gone.md").touch()
    write(tmp_path, connection)
    assert "gone.md" not in texts(tmp_path)
    assert "market_data.md" in texts(tmp_path)


def test_the_reference_is_what_make_docs_writes() -> None:
    assert reference.PAGE.read_text(encoding="utf-8") == reference.text(), (
        "docs/reference.md is not as the command line and the settings are. Run `make docs`"
    )


def test_each_variable_has_one_meaning() -> None:
    described = [name for name, field in Environment.model_fields.items() if field.description]
    assert sorted([*described, *reference.MEANINGS]) == sorted(
        [*Environment.model_fields, "n8n_command"]
    )


@pytest.mark.parametrize("page", PAGES, ids=of_each_page)
def test_each_link_leads_to_a_file_and_a_heading_that_are_there(page: Path) -> None:
    prose = INLINE.sub("", FENCED.sub("", page.read_text(encoding="utf-8")))
    for link in LINK.findall(prose):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=of_each_page)
def test_each_file_of_ours_that_is_named_is_there(page: Path) -> None:
    paths = NAMED.findall(page.read_text(encoding="utf-8"))
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_list_of_symptoms_names_each_heading_in_its_order() -> None:
    page = ROOT / "docs" / "troubleshooting.md"
    head = page.read_text(encoding="utf-8").partition("\n## ")[0]
    assert re.findall(r"\]\(#([^)]+)\)", head) == anchors(page)


@pytest.mark.parametrize("page", PAGES, ids=of_each_page)
def test_each_example_is_a_command_with_options_that_there_are(page: Path) -> None:
    options = reference.options()
    for line in EXAMPLE.findall(code(page)):
        words = [word.strip(",") for word in line.split()]
        command = next((name for name in (" ".join(words[:2]), words[0]) if name in options), "")
        assert command, f"no command: trading-pipelines {line}"
        assert set(re.findall(r"--[a-z-]+", line)) <= options[command], line


def test_no_merge_was_left_half_done() -> None:
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        assert not re.search(r"^(<{7}|>{7}) ", page.read_text(encoding="utf-8"), re.MULTILINE), page


@pytest.mark.parametrize("page", READMES, ids=of_each_page)
def test_each_target_of_make_is_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named_targets = re.findall(r"(?:^|`)make ([a-z0-9-]+)", code(page), re.MULTILINE)
    assert set(named_targets) <= targets
    assert {"demo", "up"} <= set(named_targets)


@pytest.mark.parametrize("page", READMES, ids=of_each_page)
def test_a_readme_has_at_most_150_lines(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= 150
