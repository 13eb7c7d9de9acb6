"""The report in a real browser: what a model writes is text and nothing else, whatever it writes."""

import json
import shutil
from pathlib import Path

import pytest
from report_test import completion, make_run, put

from star_jax import report

EVIL = (
    "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 2'><svg onload='window.owned = 3'>"
    "<a href='javascript:window.owned = 4'>x</a>\"'`--><!--\u202egnp\u200f\u2066\x00\x1b[31m&lt;{{ 7 * 7 }}\ud800"
)
LONG = "a" * 1_000_000  # a megabyte without a place to break the line
NAMES = ("chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install -e '.[test]')")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is on the PATH")
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser):
    """Opens a page; at the end nothing may have been asked for, said or thrown."""
    trouble: list[str] = []

    def go(path: Path, width: int = 1200, scheme: str = "light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page.on("console", lambda message: trouble.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: trouble.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (trouble.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda request: trouble.append(f"request: {request.url}") if request.url != address else 0)
        address = path.as_uri()
        page.goto(address)
        return page

    yield go
    assert trouble == []


def hostile(workdir: Path) -> Path:
    """A run in which every text that is shown is hostile, and two are a megabyte long."""
    make_run(workdir)
    for path in workdir.rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        for word in ("1 digit", "steps of 1", "1 + 1", "arithmetic", "kept 0", "pretrain", 'train-0"'):
            text = text.replace(word, json.dumps(EVIL)[1:-1] + word[-1:])
        path.write_text(text, encoding="utf-8")
    lines = [completion(i, 2, "right" if i else "wrong", text=LONG if i < 2 else EVIL[:-1]) for i in range(4)]
    put(workdir / "iter_002/eval_dev.jsonl", lines)
    return report.write(workdir)


def test_hostile_text_does_nothing(opened, tmp_path):
    page = opened(hostile(tmp_path))
    assert page.evaluate("window.owned") is None
    harmless = opened(report.write(make_run(tmp_path / "plain")))
    for tag in ("script", "img", "svg", "a", "iframe", "form"):
        assert page.locator(tag).count() == harmless.locator(tag).count(), tag
    words = page.locator("body").inner_text()
    assert "<script>window.owned = 1</script><img src=x" in words and "{{ 7 * 7 }}" in words
    assert "⟨U+202E⟩gnp⟨U+200F⟩" in words and "\u202e" not in words and "\x00" not in words and "49" not in words


def test_hostile_texts_can_be_searched_and_filtered(opened, tmp_path):
    page = opened(hostile(tmp_path))
    browser = page.locator(".browser").first
    rows, search = browser.locator("tbody tr"), browser.get_by_label("Search")
    assert rows.count() == 4
    search.fill("<img src=x onerror")
    assert 1 <= rows.count() < 4 and "window.owned = 1" in rows.first.inner_text()
    search.fill("")
    browser.get_by_label("Verdict").select_option("wrong")
    assert rows.count() == 1 and rows.first.inner_text().count("a") >= 1000
    browser.get_by_label("Iteration").select_option("0")
    assert page.evaluate("window.owned") is None


@pytest.mark.parametrize("width", [390, 1200])
def test_a_megabyte_in_one_line_does_not_widen_the_page(opened, tmp_path, width):
    path = hostile(tmp_path)
    page = opened(path, width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert path.stat().st_size < 10_000_000
