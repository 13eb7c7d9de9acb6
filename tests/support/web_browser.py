"""The report in a real web browser: Chromium through Playwright."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


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
