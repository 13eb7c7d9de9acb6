"""The rationale browser in Chromium: it shows what the files contain, and a model's text is never more than text."""

import dataclasses
import functools
import http.server
import itertools
import json
import shutil
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from star_jax import report
from star_jax.records import Verdict
from star_jax.report.browser import blocks
from star_jax.report.run_data import read_run
from tests.support.report_runs import (
    completion,
    make_random_run,
    make_run,
    match_contents,
    problem,
    put,
    read_lines,
    remove,
)
from tests.support.web_browser import wait_for, wait_until_shown

EVIL = (
    "</script><script>window.owned = 1</script><img src=x onerror='window.owned = 2'><svg onload='window.owned = 3'>"
    "<a href='javascript:window.owned = 4'>x</a>\"'`--><!--\u202egnp\u200f\u2066\x00\x1b[31m&lt;{{ 7 * 7 }}\ud800"
)
LONG = "a" * 1_000_000  # a megabyte without a line break


def hostile(workdir: Path) -> Path:
    """A run in which every text that is shown is hostile, and two are a megabyte long."""
    make_run(workdir)
    for path in workdir.rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        for word in ("1 digit", "steps of 1", "1 + 1", "arithmetic", "kept 0", "pretrain", 'train-0"'):
            text = text.replace(word, json.dumps(EVIL)[1:-1] + word[-1:])
        path.write_text(text, encoding="utf-8")
    texts = [LONG, LONG, EVIL[:-1], EVIL[:-1]]
    completions = [completion(i, 2, "right" if i else "wrong", text=text) for i, text in enumerate(texts)]
    put(workdir / "iter_002/eval_dev.jsonl", [])
    match_contents(workdir)
    put(workdir / "iter_002/eval_dev.jsonl", completions)
    return report.write(workdir)


def test_hostile_text_does_nothing(open_page, tmp_path):
    page = open_page(hostile(tmp_path))
    assert page.evaluate("window.owned") is None
    config = make_run(tmp_path / "plain") / "config.json"
    config.write_text(config.read_text().replace("arithmetic", "no task of the paper's"))
    harmless = open_page(report.write(config.parent))
    for tag in ("script", "img", "svg", "a", "iframe", "form"):
        assert page.locator(tag).count() == harmless.locator(tag).count(), tag
    words = page.locator("body").inner_text()
    assert "<script>window.owned = 1</script><img src=x" in words and "{{ 7 * 7 }}" in words
    assert "⟨U+202E⟩gnp⟨U+200F⟩" in words and "\u202e" not in words and "\x00" not in words and "49" not in words


@pytest.mark.slow
def test_hostile_texts_can_be_searched_and_filtered(open_page, tmp_path):
    page = open_page(hostile(tmp_path))
    browser = page.locator(".browser").first
    rows, search = browser.locator(".list tbody tr"), browser.get_by_label("Search")
    assert rows.count() == 4
    search.fill("<img src=x onerror")
    wait_until_shown(page)
    assert 1 <= rows.count() < 4 and "window.owned = 1" in rows.first.inner_text()
    search.fill("")
    browser.get_by_label("Verdict").select_option("wrong")
    wait_until_shown(page)
    assert rows.count() == 1 and rows.first.inner_text().count("a") >= 1000
    browser.locator("[name=iteration]").select_option("0")
    rows.first.locator("a").click()
    wait_until_shown(page)
    assert page.evaluate("window.owned") is None


@pytest.mark.slow
def test_a_megabyte_in_one_line_does_not_widen_the_page(open_page, tmp_path):
    path = hostile(tmp_path)
    assert path.stat().st_size < 10_000_000
    for width in (390, 1200):
        assert open_page(path, width).evaluate("document.documentElement.scrollWidth") <= width, width


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A random run with its page. Read only."""
    run = make_random_run(tmp_path_factory.mktemp("random"))
    report.write(run)
    return run


def choose(page, **values) -> None:
    for name, value in values.items():
        field = page.locator(f".list [name={name}]").first
        field.fill(value) if name == "search" else field.select_option(value)
    wait_until_shown(page)


def listed(page) -> list[str]:
    """The selected iteration's texts in all rows on all pages."""
    texts = []
    for number in itertools.count(1):
        texts += page.locator(".list tbody tr td:last-child").all_inner_texts()
        output = page.locator(".list output").first.inner_text()
        assert output.startswith(f"{len(texts)} of ") or f"page {number} of" in output
        if page.locator(".list [name=next]").first.is_disabled():
            return [text.split("\n")[0] for text in texts]
        page.locator(".list [name=next]").first.click()


def evaluated(workdir: Path, number: int) -> dict[str, dict]:
    return {line["problem_id"]: line for line in read_lines(workdir / f"iter_{number:03d}/eval_dev.jsonl")}


def test_the_filters_of_the_evaluation_give_what_the_files_say(open_page, run):
    page = open_page(run / "report.html")
    base, now = evaluated(run, 0), evaluated(run, 2)
    category_of = {line["id"]: line["category"] for line in read_lines(run / "problems_dev.jsonl")}
    right = [{key for key, line in evaluated(run, n).items() if line["verdict"] == "right"} for n in range(3)]
    assert "(best)" in page.locator("[name=iteration] option", has_text="Iteration 2").inner_text()
    choose(page, iteration="2")
    assert sorted(listed(page)) == sorted(line["text"] for line in now.values())
    expected = {
        ("verdict", "steps"): {k for k in right[2] if now[k]["consistent"] is False},
        ("change", "gained"): right[2] - right[0],
        ("change", "lost"): right[0] - right[2],
        ("change", "right"): right[2] & right[0],
        ("change", "wrong"): base.keys() - right[2] - right[0],
        ("solved", "never"): base.keys() - right[0] - right[1] - right[2],
        ("solved", "yes"): right[0] | right[1] | right[2],
        ("category", "1"): {k for k in now if category_of[k] == "two"},
        ("category", "2"): {k for k in now if category_of[k] == ""},
        **{("verdict", verdict): {k for k in now if now[k]["verdict"] == verdict} for verdict in Verdict},
    }
    for (name, value), keys in expected.items():
        assert keys
        choose(page, **{name: value})
        assert sorted(listed(page)) == sorted(now[key]["text"] for key in keys), (name, value)
        choose(page, **{name: ""})
    choose(page, iteration="1")
    assert sorted(listed(page))[-1] == "no completion on record"


@pytest.mark.slow
def test_the_filters_of_the_training_samples_give_what_the_files_say(open_page, run):
    page = open_page(run / "report.html")
    choose(page, collection="training")
    samples = [c for name in ("samples", "rationalizations") for c in read_lines(run / f"iter_002/{name}.jsonl")]
    kept = {(e["problem_id"], e["source"], e["sample_index"]) for e in read_lines(run / "iter_002/kept.jsonl")}
    solved = {
        c["problem_id"]
        for n in (1, 2)
        for c in read_lines(run / f"iter_{n:03d}/samples.jsonl")
        if c["verdict"] == "right"
    }
    source = {False: "sampled", True: "rationalized"}
    was_kept = {c["text"]: (c["problem_id"], source[c["hinted"]], c["sample_index"]) in kept for c in samples}
    expected = {
        ("kept", "kept"): [c for c in samples if was_kept[c["text"]]],
        ("kept", "not"): [c for c in samples if not was_kept[c["text"]]],
        ("source", "sampled"): [c for c in samples if not c["hinted"]],
        ("source", "rationalized"): [c for c in samples if c["hinted"]],
        ("solved", "never"): [c for c in samples if c["problem_id"] not in solved],
        ("verdict", "right"): [c for c in samples if c["verdict"] == "right"],
        ("verdict", ""): samples,
    }
    for (name, value), rows in expected.items():
        assert rows
        choose(page, **{name: value})
        assert sorted(listed(page)) == sorted(c["text"] for c in rows), (name, value)
        choose(page, **{name: ""})
    choose(page, kept="kept", source="rationalized")
    both = [c["text"] for c in samples if c["hinted"] and was_kept[c["text"]]]
    assert both and sorted(listed(page)) == sorted(both)
    words = page.locator(".list tbody tr").first.inner_text()
    assert "NLL 0.333 nats per token, 3 tokens" in words and "rationalized, kept, sample 0" in words


@pytest.mark.slow
def test_search_looks_through_what_is_shown(open_page, run):
    page = open_page(run / "report.html")
    now, base = evaluated(run, 2), evaluated(run, 0)
    choose(page, iteration="2")
    for needle in ("sample 0 of 0", now["dev-7"]["text"][-4:], "7 + 7", "DEV-3"):
        choose(page, search=needle)
        texts = {key: f"{key} {key[4:]} + {key[4:]}\n{now[key]['text']}\n{base[key]['text']}" for key in now}
        keys = [key for key in now if needle.lower() in texts[key].lower()]
        assert keys and sorted(listed(page)) == sorted(now[key]["text"] for key in keys), needle
    choose(page, search="no such words")
    assert page.locator(".list output").first.inner_text() == "0 of 45 problems match"
    page.get_by_role("button", name="Clear").first.click()
    wait_until_shown(page)
    assert len(listed(page)) == 45


def test_a_history_shows_all_samples_of_a_problem_in_order(open_page, run):
    for collection in ("evaluation", "training"):
        check_history(open_page(run / "report.html"), run, collection)


def check_history(page, run: Path, collection: str) -> None:
    choose(page, collection=collection)
    row = page.locator(".list tbody tr").nth(2)
    key = row.get_attribute("data-key")
    names = ["eval_dev"] if collection == "evaluation" else ["samples", "rationalizations"]
    expected = [
        (f"Iteration {n}" if n else "Base model", c["text"], c["verdict"])
        for n in range(3)
        for name in names
        if (run / f"iter_{n:03d}/{name}.jsonl").exists()
        for c in read_lines(run / f"iter_{n:03d}/{name}.jsonl")
        if c["problem_id"] == key
    ]
    row.get_by_role("link", name="All iterations").click()
    wait_until_shown(page)
    lines_shown = page.locator(".history tbody tr").all()
    shown = [
        (one.locator("th").inner_text().removesuffix(" (best)"), one.locator("pre").inner_text()) for one in lines_shown
    ]
    assert shown == [line[:2] for line in expected] and len(expected) >= 3
    for one, (_, _, verdict) in zip(lines_shown, expected, strict=True):
        assert one.locator(".verdict").inner_text() in (verdict, "right answer, wrong steps")
    assert not page.locator(".list").is_visible() and f"problem={key}" in page.url
    page.go_back()
    assert page.locator(".list").is_visible() and not page.locator(".history").is_visible()
    row.get_by_role("link", name="All iterations").click()
    page.get_by_role("button", name="Back to the list").click()
    assert page.evaluate("document.activeElement.dataset.key") == key and "problem=" not in page.url


def test_the_keys(open_page, run):
    page = open_page(run / "report.html")
    focused = "[...document.querySelectorAll('.list tbody tr')].indexOf(document.activeElement)"
    page.evaluate("document.querySelector('.browser').scrollIntoView()")
    focused_rows = []
    for key in ("j", "j", "ArrowDown", "k", "ArrowUp", "k", "n", "j", "p"):
        page.keyboard.press(key)
        focused_rows.append(page.evaluate(focused))
    assert focused_rows == [0, 1, 2, 1, 0, 0, 0, 1, 0]
    page.keyboard.press("n")
    page.keyboard.press("n")
    for _ in range(5):
        page.keyboard.press("j")
    assert page.evaluate(focused) == 4 and "page 3 of 3" in page.locator(".list output").first.inner_text()
    page.keyboard.press("Enter")
    wait_until_shown(page)
    assert page.locator(".history").is_visible()
    page.keyboard.press("Escape")
    assert page.locator(".list").is_visible() and page.evaluate(focused) == 4
    page.keyboard.press("/")
    page.keyboard.type("jk/n?p")
    wait_until_shown(page)
    search = page.locator("[name=search]")
    assert search.input_value() == "jk/n?p" and page.locator(".list tbody tr").count() == 0
    search.fill("sample 0")
    wait_until_shown(page)
    page.locator("[name=iteration]").focus()
    page.keyboard.press("j")
    assert page.evaluate(focused) == -1
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Escape")
    wait_until_shown(page)
    assert search.input_value() == ""
    page.keyboard.press("?")
    assert page.locator(".keys dl").is_visible()
    page.locator("[name=keys]").uncheck()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("j")
    assert page.evaluate(focused) == -1


@pytest.mark.slow
def test_a_page_turned_past_its_first_row_ends_on_the_page_before(open_page, run):
    page = open_page(run / "report.html", fragment="#r0-rationales&page=2")
    assert "page 2 of 3" in page.locator(".list output").first.inner_text()
    for key in ("j", "k"):
        page.keyboard.press(key)
    assert "page 1 of 3" in page.locator(".list output").first.inner_text()
    assert page.evaluate("document.activeElement.sectionRowIndex") == 19


@pytest.mark.slow
def test_a_link_shows_in_a_fresh_page_what_it_was_taken_from(open_page, run):
    """Filters, search and page; a problem; and the state follows in the address from disk."""
    path = run / "report.html"
    page = open_page(path)
    choose(page, collection="training", iteration="1", kept="not", search="of 1")
    page.locator(".list [name=next]").first.click()
    wait_for(page, "location.hash.includes('page=2')")
    asked = parse_qs(urlsplit(page.url).fragment)
    assert asked == {"in": ["training"], "iteration": ["1"], "kept": ["not"], "search": ["of 1"], "page": ["2"]}
    again = open_page(path, fragment="#" + urlsplit(page.url).fragment)
    assert again.locator(".list tbody").inner_text() == page.locator(".list tbody").inner_text()
    link = page.locator(".list tbody a").nth(3)
    third = open_page(path, fragment=link.get_attribute("href"))
    link.click()
    wait_until_shown(page)
    assert third.locator(".history").inner_text() == page.locator(".history").inner_text()
    third.get_by_role("button", name="Back to the list").click()
    assert third.locator(".list tbody").inner_text() == again.locator(".list tbody").inner_text()
    fourth = open_page(path, fragment="#r0-rationales&in=nothing&iteration=99&category=x&verdict=%ff&problem=%E0%A4%A")
    assert "This run has no such problem." in fourth.locator(".history").inner_text()


@pytest.mark.slow
def test_links_of_two_runs_and_ordinary_anchors(open_page, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    make_random_run(first), make_random_run(second)
    path = report.write([first, second])
    page = open_page(path, fragment="#r1-rationales&in=training&iteration=1&problem=train-2")
    histories = page.locator(".history")
    assert [histories.nth(index).is_visible() for index in (0, 1)] == [False, True]
    top = "Math.abs(document.getElementById('r0-figures').getBoundingClientRect().top) < 5"
    page.goto(path.as_uri() + "#r0-figures")
    assert page.evaluate(top) and not histories.nth(1).is_visible()
    assert open_page(path, fragment="#r0-figures").evaluate(top)


@pytest.mark.slow
def test_hostile_ids_and_categories_make_links_that_work(open_page, tmp_path):
    make_run(tmp_path)
    ids = [EVIL[:-1], "a&problem=b#c%41 +", "\u202ea\x00", "__proto__"]
    problems = [dataclasses.replace(problem(i), id=name, category=f"{EVIL[:-1]}{i % 2}") for i, name in enumerate(ids)]
    put(tmp_path / "problems_dev.jsonl", problems)
    for number in range(3):
        completions = [
            dataclasses.replace(completion(i, number, "right"), problem_id=name) for i, name in enumerate(ids)
        ]
        put(tmp_path / f"iter_{number:03d}/eval_dev.jsonl", completions)
    path = report.write(tmp_path)
    page = open_page(path)
    for index in range(4):
        choose(page, category=str(index % 2))
        row = page.locator(".list tbody tr").nth(index // 2)
        address, text = row.locator("a").get_attribute("href"), row.locator("pre").last.inner_text()
        fresh = open_page(path, fragment=address)
        assert fresh.locator(".history pre").last.inner_text() == text
        fresh.get_by_role("button", name="Back to the list").click()
        assert fresh.locator(".list tbody").inner_text() == page.locator(".list tbody").inner_text()
        assert fresh.evaluate("window.owned") is None


@pytest.mark.slow
def test_blocks_in_the_folder_are_loaded_on_demand(open_page, tmp_path, monkeypatch):
    """From disk and over HTTP; a missing file is named."""
    make_random_run(tmp_path)
    page_blocks = blocks.pack_page_data([read_run(tmp_path)])
    evaluation, training = page_blocks.collections[0]
    first = (evaluation.problems, evaluation.samples[0], evaluation.samples[evaluation.best])
    monkeypatch.setattr(blocks, "BUDGET", sum(len(block.text) for block in first))
    path, asked = report.write(tmp_path), []
    page = open_page(path, requests=asked)
    assert asked == [] and len(listed(page)) == 45
    choose(page, iteration="1")
    (only,) = asked
    assert only.endswith(f"/report_texts/{evaluation.samples[1].name}.js")
    assert sorted(listed(page))[:-1] == sorted(line["text"] for line in evaluated(tmp_path, 1).values())
    choose(page, iteration="0")
    choose(page, iteration="1")
    assert len(asked) == 1
    served = functools.partial(Quiet, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), served) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.goto(f"http://127.0.0.1:{server.server_port}/report.html#r0-rationales&in=training&problem=train-3")
        wait_until_shown(page)
        assert page.locator(".history tbody tr").count() == 4
        server.shutdown()
    (tmp_path / "report_texts" / f"{training.samples[2].name}.js").write_text("")
    page = open_page(path, requests=asked)
    choose(page, collection="training")
    failed = page.locator(".failed")
    assert f"report_texts/{training.samples[2].name}.js is missing or damaged" in failed.inner_text()
    choose(page, iteration="1")
    assert not failed.is_visible() and len(listed(page)) == 45


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.mark.slow
def test_a_phone_does_not_scroll_sideways(open_page, run):
    for fragment in ("", "#r0-rationales&in=training", "#r0-rationales&problem=dev-3"):
        page = open_page(run / "report.html", width=390, scheme="dark", fragment=fragment)
        page.evaluate("document.querySelector('.keys').open = true")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, fragment


def test_without_what_it_needs_the_page_says_so(chromium, run):
    path = run / "report.html"
    with chromium.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(path.as_uri())
        assert page.locator(".browser").inner_text() == (
            "The rationale browser needs JavaScript; the rest of the page does not."
        )
    page = chromium.new_page()
    page.add_init_script("delete window.DecompressionStream")
    page.goto(path.as_uri())
    assert "too old to unpack the rationales" in page.locator(".browser").inner_text()
    assert not page.locator(".list").is_visible()


@pytest.mark.slow
def test_runs_with_missing_files_open(open_page, tmp_path):
    whole = make_random_run(tmp_path / "whole")
    for missing in ("iter_00[12]", "iter_*/eval*", "iter_*"):
        run = shutil.copytree(whole, tmp_path / "part")
        remove(run, missing)
        page = open_page(report.write(run))
        assert page.locator(".list tbody tr").count() == 20, missing
        page.locator(".list a").first.click()
        wait_until_shown(page)
        assert page.locator(".history h3").inner_text() == "Problem dev-0", missing
        shutil.rmtree(run)
