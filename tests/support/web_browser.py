"""The report in a real web browser: Chromium through Playwright."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
WIDTHS = (1400, 390)  # of a desktop and of a phone
OPEN_ALL = "document.querySelectorAll('details').forEach((each) => { each.open = true; })"
# Words of the tables that stand on more than one line.
BROKEN_WORDS = """
(() => {
  const broken = [];
  for (const cell of document.querySelectorAll(".numbers :is(th, td), .settings th")) {
    const walker = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    for (let text = walker.nextNode(); text; text = walker.nextNode()) {
      for (const word of text.data.matchAll(/[\\p{L}\\p{N}]+/gu)) {
        const range = document.createRange();
        range.setStart(text, word.index);
        range.setEnd(text, word.index + word[0].length);
        if (new Set([...range.getClientRects()].map((rect) => rect.top)).size > 1) broken.push(word[0]);
      }
    }
  }
  return broken;
})()
"""
# Regions whose table is cut: a wider table must scroll, with a hint in sight.
CUT_TABLES = """
[...document.querySelectorAll("table")].filter((table) => table.checkVisibility()).filter((table) => {
  const region = table.closest(".scroll") ?? table.parentElement;
  const { left, right } = region.getBoundingClientRect();
  if (left < 0 || right > innerWidth) return true;
  if (region.scrollWidth <= region.clientWidth) return false;
  const hint = region.previousElementSibling?.querySelector(".hint");
  const style = hint && getComputedStyle(hint);
  return getComputedStyle(region).overflowX !== "auto" || !hint || style.visibility !== "visible";
}).map((table) => table.parentElement.ariaLabel)
"""


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """A running Chromium; skips without it or without Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install -e '.[test]')")
    path = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if not path:
        pytest.skip(f"no browser here: none of {', '.join(PROGRAMS)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium) -> Iterator[Callable]:
    """Opens a page from disk; at the end no page may have requested, printed or thrown anything."""
    trouble: list[str] = []
    pages = []

    def open_page(
        path: Path, width: int = 1200, scheme: str = "light", fragment: str = "", requests: list | None = None
    ):
        """`requests`: receives the page's requests, which are trouble otherwise."""
        page = chromium.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        others = trouble if requests is None else requests
        address = path.as_uri()
        page.on("request", lambda request: request.url == address or others.append(f"request: {request.url}"))
        page.goto(address + fragment)
        wait_until_shown(page)
        return page

    yield open_page
    for page in pages:
        page.close()
    assert trouble == []


def wait_until_shown(page) -> None:
    """Waits until every rationale browser of the page shows what was requested last."""
    wait_for(page, "!document.querySelector('.browser:not([aria-busy=false])')")


def wait_for(page, condition: str) -> None:
    """Waits for a JavaScript condition. Playwright's wait_for_function needs what the page's policy forbids."""
    start = time.monotonic()
    while not page.evaluate(condition):
        assert time.monotonic() - start < 30, condition
        page.wait_for_timeout(5)
