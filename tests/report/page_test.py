"""star_jax.report.write: a run written by hand goes in, the page's numbers and texts come out."""

import base64
import hashlib
import html
import json
import re

import pytest

from star_jax import report
from star_jax.errors import InputError
from star_jax.records import Example, Source
from star_jax.report.browser import examples
from star_jax.report.run_data import read_run
from tests.support.pages import collections_of, page_of, words_of
from tests.support.report_runs import CATEGORIES, make_big_run, make_run, match_contents, problem, put, remove


def test_a_finished_run(tmp_path):
    words = words_of(page := page_of(make_run(tmp_path)))
    assert "done: 2 of 2 iterations" in words and "base 25.0 % → 75.0 % at iteration 2, the best" in words
    assert "selected on this same split (dev)" in words
    assert "2, best 4 75.0 % 6.2 % to 93.8 % 3 1 0 0" in words
    for part in (
        "Accuracy.",
        "Examples kept.",
        "Training loss.",
        "Training loss of the base",
        "4 of 4 kept",
        "6 of 6 kept",
    ):
        assert part in words
    evaluation = collections_of(page)["evaluation"]
    assert list(evaluation["samples"]) == [0, 1, 2] and evaluation["best"] == 2
    problems = evaluation["problems"]
    assert problems["categories"] == list(CATEGORIES) and problems["problems"][1][:4] == ["dev-1", "1 + 1", "2", 1]
    of_problem_1 = [(rows[1][4], rows[1][-1]) for rows in evaluation["samples"].values()]
    assert of_problem_1 == [("wrong", "steps of 1 in 0"), ("wrong", "steps of 1 in 1"), ("right", "steps of 1 in 2")]


def test_the_lenient_reader_s_accuracy_stands_beside_the_strict_one(tmp_path):
    assert "by the lenient reader" not in words_of(page_of(make_run(tmp_path)))
    path = tmp_path / "iter_002/eval_dev.json"
    put(path, json.loads(path.read_text()) | {"lenient": {"n": 4, "accuracy": 1.0, "ci95": [0.5, 1.0]}})
    words = words_of(page_of(tmp_path))
    assert "by the lenient reader" in words and "75.0 % 6.2 % to 93.8 % 100.0 % 50.0 % to 100.0 % 3 1" in words
    put(path, json.loads(path.read_text()) | {"lenient": 1})
    with pytest.raises(InputError, match=r"eval_dev\.json"):
        page_of(tmp_path)


def test_the_best_is_compared_with_the_base_problem_by_problem(tmp_path):
    words = words_of(page_of(make_run(tmp_path)))
    assert "2 dev problems gained on the base, 0 lost (p = 1, corrected for the choice among 2 iterations)" in words
    remove(tmp_path, "iter_000/eval_dev.jsonl")
    assert "gained on the base" not in words_of(page_of(tmp_path))


def test_the_page_is_self_contained_and_its_ids_are_unique(tmp_path):
    page = page_of(make_run(tmp_path / "a"), make_run(tmp_path / "b"))
    assert not re.search(r'(?:src|href)="(?!#|data:text/csv;)|https?://|@import|url\((?!#)', page)
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")&]*)', page)) <= set(ids)
    assert str(tmp_path) not in page
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1))
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_figures_have_no_numbers_but_the_papers(tmp_path):
    for words in (words_of(page_of(make_big_run(tmp_path / "a"))), words_of(page_of(make_run(tmp_path / "b")))):
        numbered = re.findall(r"(\S+ \S+) (?:Figure|Table)s? [0-9]", words)
        assert numbered and all(before.endswith("the paper's") for before in numbered)
        assert "first loss" not in words.lower() and "loss at first step" in words


def test_the_evaluated_split_is_the_configs(tmp_path):
    config = make_run(tmp_path) / "config.json"
    put(config, json.loads(config.read_text()) | {"evaluation": {"split": "test"}})
    for path in [*tmp_path.glob("*_dev.jsonl"), *tmp_path.glob("iter_*/*_dev.json*")]:
        path.rename(path.with_name(path.name.replace("dev", "test")))
    page = page_of(tmp_path)
    samples = collections_of(page)["evaluation"]["samples"]
    assert (
        "selected on this same split (test)" in words_of(page) and [len(rows) for rows in samples.values()] == [4] * 3
    )


def test_hostile_text_is_only_ever_text(tmp_path):
    """Whatever a run contains, in any field that is shown, the page has the elements of a harmless run's page."""
    make_run(tmp_path / "plain")
    config = tmp_path / "plain" / "config.json"
    config.write_text(config.read_text().replace("arithmetic", "no task of the paper's"))
    make_run(tmp_path / "hostile")
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    evil = json.dumps(evil + "{{ 7 * 7 }}$x^$\u202egnp\u200f\x00\x1b&amp;\ud800")[1:-1]
    for path in (tmp_path / "hostile").rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        for word in ("1 digit", "steps of 1", "1 + 1", "arithmetic", "kept 0", "pretrain", 'train-0"'):
            text = text.replace(word, evil + word[-1:])
        path.write_text(text, encoding="utf-8")
    match_contents(tmp_path / "hostile")
    plain, hostile = (page_of(tmp_path / name) for name in ("plain", "hostile"))
    for text in ("alert(1)</script>", "<script>alert", "<img", "\u202e", "\u200f", "\x00", "\x1b", "\ud800"):
        assert text not in hostile
    tags = [re.findall(r"</?(?!wbr)[a-zA-Z]+", page) for page in (plain, hostile)]
    assert tags[0] == tags[1] and len(tags[0]) > 100
    words = words_of(hostile)
    assert "alert(1)" in words and "{{ 7 * 7 }}$x^$⟨U+202E⟩gnp⟨U+200F⟩␀␛&amp;⟨U+D800⟩" in words
    rows = collections_of(hostile)["evaluation"]["samples"][1]
    assert rows[1][-1].startswith("</script><script>alert(1)")


def test_an_unknown_verdict_is_refused(tmp_path):
    path = make_run(tmp_path) / "iter_000/eval_dev.jsonl"
    path.write_text(path.read_text().replace('"verdict": "unparsable"', '"verdict": "<script>"'))
    with pytest.raises(InputError, match=r"eval_dev\.jsonl:3: .*<script>"):
        report.write(tmp_path)


def test_several_runs_side_by_side(tmp_path):
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", iterations=1)
    path = report.write([first, second])
    assert path == first / "comparison.html" and {p.name for p in tmp_path.glob("*/*.html")} == {"comparison.html"}
    words = words_of(page := path.read_text(encoding="utf-8"))
    for part in ("2 STaR runs side by side", "first 25.0 → 75.0 %", "second 25.0 → 50.0 %"):
        assert part in words
    assert "first done: 2 of 2 iterations dev 25.0 % 2 75.0 % 6.2 % to 93.8 % 75.0 % 5 min 30 s" in words
    # Right are problems 1, 2, 3 in the first run's best iteration, 1 and 3 in the second's.
    assert "second dev 4 2 1 0 -25.0 points p = 1 (of 6 pairs)" in words
    assert (
        re.findall(r'class="differs"><th scope="row"><bdi>([^<]*)', page.replace("<wbr>", ""))
        == ["star.iterations"] * 2
    )
    assert [len(collections_of(page, run)["evaluation"]["samples"]) for run in (0, 1)] == [3, 2]
    words = words_of(page_of(make_run(tmp_path / "other" / "first"), first))
    assert "first (1)" in words and "first (2)" in words


def test_the_shown_training_examples_are_seeded_and_balanced(tmp_path):
    put(make_run(tmp_path) / "problems_train.jsonl", [problem(i, "train", category=int(i == 7)) for i in range(100)])
    sources = [Source.SAMPLED if i % 10 else Source.RATIONALIZED for i in range(100)]
    kept = [Example(f"train-{i}", "p", f"c {i}", 1, source) for i, source in enumerate(sources)]
    put(tmp_path / "iter_001" / "kept.jsonl", kept)
    run = read_run(tmp_path)
    number, total, shown = examples.training_examples(run)[0]
    assert (number, total, len(shown)) == (1, 100, examples.EXAMPLES_SHOWN)
    examples._CHOSEN.clear()
    assert shown == examples.training_examples(run)[0][2]
    groups = [(each.category, each.example.source) for each in shown]
    assert groups.count(("2 digits", "sampled")) == 1  # there is only one
    assert groups.count(("1 digit", "rationalized")) in (5, 6) and groups.count(("1 digit", "sampled")) in (5, 6)


def test_the_page_replaces_the_old_one_and_leaves_no_temporary_file(tmp_path):
    make_run(tmp_path)
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    path = report.write(tmp_path)
    assert path == tmp_path / "report.html" and path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not [other for other in tmp_path.iterdir() if "tmp" in other.name]
    with pytest.raises(InputError, match="cannot be written"):
        report.write(tmp_path, tmp_path / "config.json" / "report.html")
    for name in ("config.json", "problems_dev.jsonl"):
        before = (tmp_path / name).read_bytes()
        with pytest.raises(
            InputError, match=rf"^--output=\S+/{name}: holds something else than a report; delete it or"
        ):
            report.write(tmp_path, tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    (tmp_path / "empty.html").touch()
    for name in ("empty.html", "report.html"):
        assert report.write(tmp_path, tmp_path / name).read_bytes().startswith(report._HEAD)
    with pytest.raises(InputError, match="is a directory; give the name of a file"):
        report.write(tmp_path, tmp_path)
