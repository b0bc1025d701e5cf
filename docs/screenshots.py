"""Pictures of the docs, from a real browser: `make screenshots ARGS="http://127.0.0.1:3000 DAY"`.

Needs a running UI (`make demo`, `make up`) that has the UTC day DAY, and Debian's chromium. What
the pages must show is asserted by tests, not here.
"""

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).parent / "images"
# Name of the picture: path, a text that the page shows once it has filled, and what to click then.
PAGES = {
    "lineage": ("/asset-groups", "published_signals", ""),
    "partitions": ("/assets/candles_1m?view=partitions&partition={day}%7CKRW-DOGE", "quiet", ""),
    "signals": ("/assets/signals_overview", "Show Markdown", "Show Markdown"),
}


def main(url: str, day: str) -> None:
    """Write one picture a page."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(
            viewport={"width": 1400, "height": 800}, timezone_id="Asia/Seoul", locale="en-GB"
        )
        for name, (path, text, button) in PAGES.items():
            page.goto(url + path.format(day=day))
            page.get_by_text(text).first.wait_for(timeout=60_000)
            if button:
                page.get_by_text(button).first.click()
            page.wait_for_load_state("networkidle")
            page.screenshot(path=IMAGES / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
