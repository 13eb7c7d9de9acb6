"""The page in Chromium, as wide as a desktop and as a phone: no table is cut, no word is broken, all can be saved."""

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib.image
import pytest

from star_jax import report
from tests.support.report_runs import make_big_run, make_run, put, read_lines, remove
from tests.support.web_browser import BROKEN_WORDS, CUT_TABLES, OPEN_ALL, WIDTHS, wait_for, wait_until_shown


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """The page of a run and of three runs, with long names of settings. Read only."""
    folder = tmp_path_factory.mktemp("layout")
    runs = [make_big_run(folder / f"with_a_long_name_and_seed_{seed}", seed) for seed in range(2)]
    runs.append(make_run(folder / "other"))
    for run in runs:
        setting = {"evaluation_of_a_very_long_name": {"samples_per_problem_that_are_drawn": "/a/long/path_of_a_file"}}
        put(run / "config.json", read_lines(run / "config.json")[0] | setting)
    return {"run": report.write(runs[0]), "comparison": report.write(runs)}


@pytest.mark.parametrize("name", ["run", "comparison"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_table_is_cut_and_no_word_broken(open_page, pages, name, width):
    page = open_page(pages[name], width)
    for opened in (False, True):
        if opened:
            page.evaluate(OPEN_ALL)
            page.wait_for_timeout(100)  # a hint appears with the next frame
        assert page.evaluate("document.documentElement.scrollWidth") == page.evaluate("innerWidth") == width
        assert page.evaluate(CUT_TABLES) == []
        assert page.evaluate(BROKEN_WORDS) == []


def test_the_hint_goes_away_at_the_last_column(open_page, pages):
    page = open_page(pages["run"], 390)
    shown = "[...document.querySelectorAll('.hint')].filter((hint) => !hint.hidden && hint.checkVisibility()).length"
    before = page.evaluate(shown)
    assert before > 0
    page.evaluate("document.querySelectorAll('.scroll').forEach((each) => { each.scrollLeft = 10 ** 6; })")
    wait_for(page, f"{shown} === 0")


def test_a_comparison_is_short_and_its_contents_lead_everywhere(open_page, pages):
    page = open_page(pages["comparison"], 1400)
    height = page.evaluate("document.documentElement.scrollHeight")
    page.evaluate(OPEN_ALL)
    assert height < 6_000 < page.evaluate("document.documentElement.scrollHeight") / 2
    page = open_page(pages["comparison"], 1400)
    links = page.locator("nav a")
    targets = [links.nth(index).get_attribute("href") for index in range(links.count())]
    parts = ("figures", "health", "counts", "audit", "rationales", "examples")
    assert set(targets) >= {f"#r{run}-{part}" for run in range(3) for part in ("run", *parts)}
    for index in (1, 3, links.count() - 2):
        links.nth(index).click()
        wait_for(page, f"Math.abs(document.querySelector('{targets[index]}').getBoundingClientRect().top) < 60")
        folded = f"document.querySelector('{targets[index]}').closest('details:not([open])')"
        assert page.evaluate(f"{folded} === null")


def test_a_page_that_reloads_itself_keeps_what_is_unfolded(open_page, pages, tmp_path):
    runs = [page.parent for page in (pages["run"], pages["run"])]
    page = open_page(report.write(runs, tmp_path / "live.html", reload=3600))
    page.locator("#r1-counts").click()
    page.reload()
    unfolded = "[...document.querySelectorAll('.part[open] > summary')].map((summary) => summary.id)"
    assert page.evaluate(unfolded) == ["r1-counts"]


def test_a_link_to_a_problem_unfolds_its_part(open_page, pages):
    page = open_page(pages["comparison"], fragment="#r1-rationales&in=evaluation&problem=dev-1")
    histories = page.locator(".history")
    assert [histories.nth(index).is_visible() for index in range(3)] == [False, True, False]


@pytest.mark.parametrize("name", ["run", "comparison"])
def test_every_figure_is_followed_by_what_is_healthy_and_what_is_trouble(open_page, pages, name):
    page = open_page(pages[name])
    page.evaluate(OPEN_ALL)
    figures = page.locator("figure")
    assert figures.count() >= 10
    for figure in figures.all():
        own = figure.locator(".reading")
        text = own if own.count() else figure.locator("xpath=../following-sibling::p[@class='reading'][1]")
        assert re.fullmatch(r"Healthy: .{5,}; trouble: .{15,}\.", text.inner_text()), figure.inner_text()


def save(page, button) -> tuple[str, bytes]:
    """(suggested name, content) of what a button or link saves."""
    with page.expect_download() as download:
        button.click()
    return download.value.suggested_filename, Path(download.value.path()).read_bytes()


def test_figures_and_tables_are_saved_from_a_page_on_disk(open_page, tmp_path):
    hostile = "<b>&'\"</svg><script>window.owned = 1</script>"
    run = make_run(tmp_path / "run")
    for path in run.rglob("*.json*"):
        path.write_text(path.read_text().replace("1 digit", hostile.replace('"', '\\"')))
    requests: list[str] = []
    page = open_page(report.write(run), scheme="dark", requests=requests)
    figures = page.locator("figure")
    name, content = save(page, figures.first.get_by_role("button", name="SVG"))
    assert name == "run-accuracy.svg"
    root = ElementTree.fromstring(content)  # well formed, as other programs demand
    texts = [element.text or "" for element in root.iter() if element.tag.endswith("}text")]
    assert any(text.startswith(hostile) for text in texts) and any("all problems" in text for text in texts)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and not [e for e in root.iter() if e.tag.endswith("}script")]
    assert b"var(" not in content and b"currentColor" not in content and b"#1f6fc4" in content  # light in dark mode
    assert page.evaluate("window.owned") is None
    for index in range(figures.count()):
        name, content = save(page, figures.nth(index).get_by_role("button", name="PNG"))
        pixels = matplotlib.image.imread(io.BytesIO(content), format="png")[..., :3]
        assert pixels.shape[1] >= 900 and pixels[0, 0].tolist() == [1, 1, 1] and pixels.min() < 0.3, name
        assert (pixels.max(axis=-1) - pixels.min(axis=-1) > 0.15).sum() > 100, name  # coloured: no empty axes
    name, content = save(page, page.get_by_role("link", name=re.compile("^Accuracy on the dev split.* as CSV")))
    assert name == "run-evaluation_dev.csv" and content.startswith(b"iteration,iteration: is best,problems,")
    assert all(request.startswith(("request: blob:", "request: data:")) for request in requests)


def test_two_completions_stand_side_by_side_with_their_differences_marked(open_page, tmp_path):
    run = make_run(tmp_path)
    texts = {0: "add 1 and 2 , carry 0 so it is 3", 1: "add 1 and 2 , carry 1 so it is 13 <b>", 2: "nothing alike"}
    for number, text in texts.items():
        path = run / f"iter_{number:03d}/eval_dev.jsonl"
        path.write_text("".join(json.dumps(line | {"text": text}) + "\n" for line in read_lines(path)))
    page = open_page(report.write(run))
    for field, value in (("iteration", "1"), ("change", "gained")):
        page.locator(f"[name={field}]").select_option(value)
        wait_until_shown(page)
    row = page.locator(".list tbody tr").first
    assert [cell.inner_text() for cell in row.locator("pre").all()] == [texts[0], texts[1]]
    marks = [[mark.inner_text() for mark in pre.locator("mark").all()] for pre in row.locator("pre").all()]
    assert marks == [["0", "3"], ["1", "13 <b>"]]
    page.locator("[name=against]").select_option("2")
    page.locator("[name=change]").select_option("lost")
    wait_until_shown(page)
    assert page.locator("th.other").inner_text() == "Iteration 2 (best)"
    wait_for(page, "location.hash.includes('against=2')")
    again = open_page(run / "report.html", fragment=page.evaluate("location.hash"))
    assert again.locator(".list tbody").inner_text() == page.locator(".list tbody").inner_text()
    assert again.locator("mark").count() == 1  # the one that explains marks: these texts have little in common


def test_the_card_leads_to_what_was_gained_and_lost(open_page, tmp_path):
    page = open_page(report.write(make_run(tmp_path)))
    gained = page.get_by_role("link", name=re.compile("2 dev problems gained"))
    gained.click()
    wait_for(page, "document.querySelector('.list output').textContent.startsWith('2 of 4')")
    assert page.locator("[name=change]").input_value() == "gained"
    remove(tmp_path, "iter_000/eval_dev.jsonl")
    page = open_page(report.write(tmp_path))
    assert page.locator(".list th.other").is_visible() is False
