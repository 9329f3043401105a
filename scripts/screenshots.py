"""Pictures of a report for the manual: its top at desktop and phone width, light and dark, and its sections at desktop width.

    python -m scripts.screenshots results/reference/claims docs/images

The report is written again first. Chromium (or SQBENCH_CHROMIUM, a path) and Playwright of the dev extra are needed.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

from sqbench.errors import UserError
from sqbench.reporting.html.page import write

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
THEMES = ("light", "dark")
SECTIONS = ("table", "layers", "claims")
HIGHEST = 1000  # pixels; the most that a picture shows of a section


def taken(results: Path, folder: Path) -> list[Path]:
    """Write the pictures, and return their paths.

    Raises:
        UserError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    chromium = os.environ.get("SQBENCH_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        raise UserError("no chromium here: `apt-get install chromium` brings it, SQBENCH_CHROMIUM=PATH names one")
    address = write(results).resolve().as_uri()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for size, (width, height) in SIZES.items():
            for theme in THEMES:
                tab = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
                tab.goto(address)
                _drawn(tab)
                tab.screenshot(path=(path := folder / f"report-{size}-{theme}.png"))
                files.append(path)
                if (size, theme) == ("desktop", "light"):
                    files += [_section(tab, name, folder) for name in SECTIONS if tab.locator(f"#{name}").count()]
                tab.close()
        browser.close()
    return files


def _drawn(tab: Any) -> None:
    """Scroll through the page and back to its top, because figures are drawn when they come near."""
    for top in range(0, tab.evaluate("document.documentElement.scrollHeight"), 500):
        tab.evaluate(f"scrollTo({{top: {top}, behavior: 'instant'}})")
        tab.wait_for_timeout(100)
    tab.evaluate("scrollTo({top: 0, behavior: 'instant'})")
    tab.wait_for_timeout(300)


def _section(tab: Any, name: str, folder: Path) -> Path:
    path = folder / f"report-{name}.png"
    tab.locator(f"#{name}").scroll_into_view_if_needed()
    box = tab.locator(f"#{name}").bounding_box()
    offset = tab.evaluate("scrollY")
    clip = {"x": 0, "y": box["y"] + offset, "width": SIZES["desktop"][0], "height": min(box["height"], HIGHEST)}
    tab.screenshot(path=path, full_page=True, clip=clip)
    return path


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {(__doc__ or '').splitlines()[2].strip()}")
    try:
        print(*taken(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
    except UserError as error:
        sys.exit(f"error: {error}")
