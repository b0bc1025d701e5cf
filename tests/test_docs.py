"""The pages that are generated are as the definitions are now."""

from pathlib import Path

import psycopg

from docs.asset_pages import FOLDER, write


def texts(folder: Path) -> dict[str, str]:
    return {page.name: page.read_text(encoding="utf-8") for page in folder.glob("*.md")}


def test_the_pages_of_the_assets_are_what_make_docs_writes(
    connection: psycopg.Connection, tmp_path: Path
) -> None:
    write(tmp_path, connection)
    written, kept = texts(tmp_path), texts(FOLDER)
    differing = {name for name in written | kept if written.get(name) != kept.get(name)}
    assert not differing, (
        f"docs/assets/ is not as the definitions are: {sorted(differing)}. Run `make docs`"
    )


def test_a_page_of_a_group_that_is_gone_goes_too(
    connection: psycopg.Connection, tmp_path: Path
) -> None:
    (tmp_path / "gone.md").touch()
    write(tmp_path, connection)
    assert "gone.md" not in texts(tmp_path)
    assert "market_data.md" in texts(tmp_path)
