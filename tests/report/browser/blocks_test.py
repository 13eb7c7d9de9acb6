"""star_jax.report.browser.blocks: the packed rows are those of the files, in the page or in the folder next to it."""

import base64
import dataclasses
import gzip
import html
import json
import re
import shutil
from pathlib import Path

import pytest

from star_jax import report, terminal
from star_jax.errors import InputError
from star_jax.records import Problem
from star_jax.report.browser import blocks
from star_jax.report.run_data import read_run
from tests.support.pages import collections_of, page_of, words_of
from tests.support.report_runs import (
    CATEGORIES,
    add_training,
    completion,
    make_run,
    make_training_run,
    match_contents,
    problem,
    put,
    read_lines,
    remove,
)


def pack(*workdirs: Path) -> blocks.PageBlocks:
    return blocks.pack_page_data([read_run(workdir) for workdir in workdirs])


def all_blocks(page_blocks: blocks.PageBlocks) -> dict[str, blocks.Block]:
    """Name without digest -> block, in the order in which the page takes them."""
    ranked = [
        entry for of_run in page_blocks.collections for collection in of_run for entry in blocks._ranked(collection)
    ]
    return {block.name.rpartition("_")[0]: block for _, block in sorted(ranked, key=lambda entry: entry[0])}


def test_the_training_samples_are_those_of_the_files(tmp_path):
    training = collections_of(page_of(make_training_run(tmp_path)))["training"]
    categories, problems = training["problems"]["categories"], training["problems"]["problems"]
    keys = [row[0] for row in problems]
    lines = read_lines(tmp_path / "problems_train.jsonl")
    by_id = {p["id"]: [p["question"], p["answer"], p["category"]] for p in lines}
    for key, question, answer, category, solved in problems:
        assert by_id[key] == [question, answer, categories[category]]
        assert solved == (1 if int(key[-1]) % 2 == 0 else None)  # solved with a hint does not count
    assert list(training["samples"]) == [1, 2]
    for number, rows in training["samples"].items():
        folder = tmp_path / f"iter_{number:03d}"
        examples = read_lines(folder / "kept.jsonl")
        kept = {(e["problem_id"], e["source"], e["sample_index"], e["iteration"]) for e in examples}
        expected = []
        for name, source in (("samples", "sampled"), ("rationalizations", "rationalized")):
            for c in read_lines(folder / f"{name}.jsonl"):
                was_kept = (c["problem_id"], source, c["sample_index"], number) in kept
                first = [c["problem_id"], c["sample_index"], int(c["hinted"]), int(was_kept), c["verdict"]]
                mean = c["log_probability"] / c["tokens"]
                expected.append([*first, c["answer"], c["consistent"], mean, c["tokens"], c["text"]])
        actual = [[keys[row[0]], *row[1:7], pytest.approx(row[7], abs=6e-4), *row[8:]] for row in rows]
        assert len(actual) == 14 and all(line in expected for line in actual)
        assert [row[0] for row in rows] == sorted(row[0] for row in rows)


def test_an_evaluation_is_its_sample_0(tmp_path):
    path = make_run(tmp_path) / "iter_001/eval_dev.jsonl"
    first = [completion(index, 1, "wrong") for index in range(4)]
    put(path, [*first, *(dataclasses.replace(c, sample_index=1, verdict="right") for c in first)])
    evaluation = collections_of(page_of(tmp_path))["evaluation"]
    assert [row[4] for row in evaluation["samples"][1]] == ["wrong"] * 4 and len(evaluation["samples"][0]) == 4


def test_samples_not_filtered_yet_and_of_problems_not_on_record(tmp_path):
    remove(make_run(tmp_path), "iter_002/[!sr]*", "problems_*.jsonl")
    collections = collections_of(page_of(tmp_path))
    assert {row[3] for row in collections["training"]["samples"][2]} == {None}
    assert {row[3] for row in collections["training"]["samples"][1]} == {0, 1}
    assert {row[0] for row in collections["training"]["samples"][1]} == {f"train-{index}" for index in range(8)}
    keys = [row[0] for row in collections["evaluation"]["problems"]["problems"]]
    assert keys == [f"dev-{index}" for index in range(4)]


def test_samples_of_a_problem_s_earlier_content_have_a_row_of_their_own(tmp_path):
    """The data changed in the course of the run: nothing that was sampled for another question is shown with this."""
    run = make_run(tmp_path)
    (run / "problems_dev.jsonl").rename(run / "earlier_problems_dev_0123abcd.jsonl")
    put(run / "problems_dev.jsonl", [problem(0), Problem("dev-1", "7 + 7", "14", CATEGORIES[1]), problem(2)])
    evaluation = collections_of(page_of(run))["evaluation"]
    rows = {row[0]: row for row in evaluation["problems"]["problems"]}
    assert rows["dev-1"][1:3] == ["7 + 7", "14"]
    earlier = f"dev-1 (content {problem(1).fingerprint})"
    assert rows[earlier][1:3] == ["1 + 1", "2"] and rows["dev-3"][1:3] == ["3 + 3", "6"]
    names = [row[0] for row in evaluation["problems"]["problems"]]
    for samples in evaluation["samples"].values():
        keys = {row[0] if isinstance(row[0], str) else names[row[0]] for row in samples}
        assert keys == {"dev-0", earlier, "dev-2", "dev-3"}


def test_a_run_has_the_collections_that_it_can_fill(tmp_path):
    cases = [
        (["iter_00[12]"], ["evaluation"]),
        (["iter_*"], ["evaluation"]),
        (["iter_*/eval*"], ["evaluation", "training"]),
        (["iter_*/eval*", "problems_dev.jsonl"], ["training"]),
        (["iter_*", "problems_dev.jsonl"], []),
    ]
    wrong = []
    whole = make_run(tmp_path / "whole")
    for missing, names in cases:
        run = shutil.copytree(whole, tmp_path / "part")
        remove(run, *missing)
        page_blocks = pack(run)
        contents = blocks.template_values(page_blocks, 0, "folder")["contents"]
        if [c.name for c in page_blocks.collections[0]] != names or (contents is None) != (names == []):
            wrong.append((missing, names))
        if not names:
            assert "No problem and no sample is on record yet." in words_of(page_of(run))
        shutil.rmtree(run)
    assert not wrong


def test_an_iteration_that_kept_nothing(tmp_path):
    add_training(make_run(tmp_path, iterations=1) / "iter_001", 1, sampled=0, rationalized=0)
    rows = collections_of(page_of(tmp_path))["training"]["samples"][1]
    assert [row[3] for row in rows] == [0] * 8


def test_log_probabilities_that_json_does_not_have_are_left_out(tmp_path):
    """A broken model's log p is not finite; a value of another type is no record and is refused."""
    path = make_run(tmp_path) / "iter_002/samples.jsonl"
    values = read_lines(path)
    values[0] |= {"log_probability": float("-inf")}
    values[1] |= {"tokens": 0}
    values[2] |= {"log_probability": float("nan")}
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    rows = {row[0]: row for row in collections_of(page_of(tmp_path))["training"]["samples"][2]}
    assert [rows[f"train-{index}"][7] for index in range(3)] == [None] * 3 and rows["train-3"][7] is not None
    for change in ({"tokens": float("inf")}, {"sample_index": float("nan")}, {"consistent": "yes"}, {"answer": 17}):
        path.write_text("".join(json.dumps(value | change) + "\n" for value in values), encoding="utf-8")
        with pytest.raises(InputError, match=rf"samples\.jsonl:1: .*'{next(iter(change))}'"):
            report.write(tmp_path)


def test_keys_can_be_shown_and_do_not_collide():
    ids = ["dev-1", "a\u200bb", "a\u200cb", "a\x00", "\ud800", "x" * 5000, "x" * 5001, "</script>", "a b&c=d#e%"]
    keys = [blocks.problem_key(one) for one in ids]
    assert len(set(keys)) == len(ids) and keys[0] == "dev-1" and keys[-1] == ids[-1]
    for key in keys:
        key.encode()
        assert len(key) < 300 and terminal.visible(key) == key


def test_what_matters_most_is_in_the_page(tmp_path, monkeypatch):
    """Base, best and last evaluation, then the other ones; then training, from the last iteration."""
    put((make_training_run(tmp_path / "a") / "iter_001/eval_dev.json"), {"n": 4, "accuracy": 0.9})
    shutil.copytree(tmp_path / "a/iter_002", tmp_path / "a/iter_003")
    shutil.copytree(tmp_path / "a/iter_002", tmp_path / "a/iter_004")
    order = all_blocks(pack(tmp_path / "a"))
    numbers = ("problems", "000", "001", "004", "003", "002")
    assert list(order) == [f"r0_evaluation_{n}" for n in numbers] + [
        f"r0_training_{n}" for n in ("problems", "004", "003", "002", "001")
    ]
    sizes = [len(block.text) for block in order.values()]
    for most in (0, 4, 8, len(sizes)):
        monkeypatch.setattr(blocks, "BUDGET", sum(sizes[:most]))
        page_blocks = pack(tmp_path / "a")
        assert {block.name for block in list(order.values())[:most]} <= page_blocks.in_page
        in_page = [len(block.text) for block in order.values() if block.name in page_blocks.in_page]
        assert sum(in_page) <= blocks.BUDGET and len(in_page) + len(page_blocks.in_folder) == len(sizes)


def test_all_runs_of_a_page_share_the_budget(tmp_path, monkeypatch):
    runs = [make_run(tmp_path / name) for name in "ab"]
    order = all_blocks(pack(*runs))
    assert list(order)[:4] == ["r0_evaluation_problems", "r1_evaluation_problems", "r0_evaluation_000",
                               "r1_evaluation_000"]  # fmt: skip
    monkeypatch.setattr(blocks, "BUDGET", sum(len(block.text) for block in list(order.values())[:4]))
    assert pack(*runs).in_page == {block.name for block in list(order.values())[:4]}


def test_the_folder_is_written_once_and_stale_blocks_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "BUDGET", 0)
    page_of(make_training_run(tmp_path))
    folder = tmp_path / "report_texts"
    (folder / "mine.js").touch()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert all(re.fullmatch(r"r0_(evaluation|training)_(problems|\d{3})_[0-9a-f]{16}\.js|mine\.js", n) for n in before)
    page = page_of(tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert collections_of(page)["evaluation"]["samples"] == dict.fromkeys(range(3)) and "r0_" not in words_of(page)
    path = folder / next(name for name in before if name.startswith("r0_evaluation_002"))
    name, text = re.fullmatch(r'starTexts\("(\w+)", "([\w+/=]+)"\);\n', path.read_text()).groups()
    rows = json.loads(gzip.decompress(base64.b64decode(text)))
    assert name == path.stem and [row[-1] for row in rows] == [f"steps of {index} in 2" for index in range(4)]
    path.write_text("torn")
    put(tmp_path / "iter_001/eval_dev.jsonl", [completion(0, 1, "right")])
    page_of(tmp_path)
    after = {path.name for path in folder.iterdir()}
    assert "torn" not in path.read_text() and len(after) == len(before) and len(after - before.keys()) == 2
    monkeypatch.undo()
    page_of(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["mine.js"]


def test_a_planted_block_of_the_right_name_and_size_is_replaced(tmp_path, monkeypatch):
    """The folder may have been received: everything that a page loads is written by the command that wrote the page."""
    monkeypatch.setattr(blocks, "BUDGET", 0)
    page_of(make_training_run(tmp_path / "run"))
    folder = tmp_path / "run" / "report_texts"
    right = {path: path.read_bytes() for path in folder.iterdir()}
    evil = b"alert(document.cookie)//"
    (tmp_path / "evil.js").write_bytes(evil)
    for n, (path, content) in enumerate(right.items()):
        if n % 2:
            path.unlink()
            path.symlink_to(tmp_path / "evil.js")
        else:
            path.write_bytes(evil + content[len(evil) :])
            assert path.stat().st_size == len(content)
    page_of(tmp_path / "run")
    assert {path: path.read_bytes() for path in folder.iterdir()} == right
    assert not any(path.is_symlink() for path in right) and (tmp_path / "evil.js").read_bytes() == evil


def test_only_a_page_with_a_folder_may_load_scripts(tmp_path, monkeypatch):
    policy = r"script-src ('sha256-[\w+/=]+')(.*?);"
    assert re.search(policy, html.unescape(page_of(make_run(tmp_path)))).group(2) == ""
    assert not (tmp_path / "report_texts").exists()
    monkeypatch.setattr(blocks, "BUDGET", 0)
    assert re.search(policy, html.unescape(page_of(tmp_path))).group(2) == " 'self' file:"
    report.write(tmp_path, tmp_path / "other" / "a page's.html")
    assert len(list((tmp_path / "other" / "a page's_texts").iterdir())) == 7
    assert '"folder":"a%20page%27s_texts/"' in (tmp_path / "other" / "a page's.html").read_text()


def test_the_same_run_gives_the_same_bytes_and_is_packed_once(tmp_path, monkeypatch):
    make_training_run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    blocks._pack_samples.cache_clear()
    first, second = pack(tmp_path / "a"), pack(tmp_path / "b")
    assert first == second
    packed = []
    real = gzip.compress
    monkeypatch.setattr(gzip, "compress", lambda content, **how: packed.append(content) or real(content, **how))
    assert pack(tmp_path / "a") == first and len(packed) == 2  # the problems, which know who solved them
    put(tmp_path / "a/iter_002/eval_dev.jsonl", [completion(0, 2, "wrong")])
    pack(tmp_path / "a")
    assert len(packed) == 2 + 3


def test_problems_alternate_between_categories(tmp_path):
    problems = [Problem(f"dev-{i}", f"q {i}", "a", "rare" if i == 3 else "common") for i in range(4)]
    put(make_run(tmp_path) / "problems_dev.jsonl", problems)
    match_contents(tmp_path)
    evaluation = collections_of(page_of(tmp_path))["evaluation"]
    assert [row[0] for row in evaluation["problems"]["problems"]] == ["dev-0", "dev-3", "dev-1", "dev-2"]
    assert [row[-1] for row in evaluation["samples"][1]] == [f"steps of {index} in 1" for index in (0, 3, 1, 2)]


def test_every_evaluation_is_a_collection_and_has_a_table(tmp_path):
    run = make_run(tmp_path)
    put(run / "problems_test.jsonl", [problem(index, "test") for index in range(3)])
    of_test = [completion(index, 2, "right" if index else "wrong", "test") for index in range(3)]
    put(run / "iter_002/eval_test.jsonl", of_test)
    drawn = [
        dataclasses.replace(completion(index, 1, verdict), sample_index=sample)
        for index in range(4)
        for sample, verdict in enumerate(("right", "wrong", "wrong", "unparsable"))
    ]
    stem = "iter_001/eval_dev_4_samples_t0.7"
    put(run / f"{stem}.jsonl", drawn)
    rate = {"n": 4, "accuracy": 0.25, "ci95": [0.125, 0.375]}
    values = {"samples_per_problem": 4, "majority": rate, "pass@1": rate, "pass@4": rate | {"accuracy": 1.0}}
    put(run / f"{stem}.json", values | {"right": 4, "wrong": 8, "unparsable": 4, "truncated": 0})
    for stray in ("eval_.jsonl", "eval_dev x.jsonl", "eval_dev.copy.jsonl"):  # names that no evaluation has
        (run / "iter_001" / stray).write_text("{")
    page = page_of(run)
    collections = collections_of(page)
    assert [(each["name"], each["kind"], each["title"]) for each in collections.values()] == [
        ("evaluation", "evaluation", "Evaluation, dev split"),
        ("evaluation_test", "evaluation", "Evaluation, test split"),
        ("evaluation_dev_4_samples_t0_7", "samples", "Evaluation, dev split, 4 samples per problem at temperature 0.7"),
        ("training", "training", "Training samples"),
    ]
    assert [row[0] for row in collections["evaluation_test"]["problems"]["problems"]] == ["test-0", "test-1", "test-2"]
    assert [row[4] for row in collections["evaluation_test"]["samples"][2]] == ["wrong", "right", "right"]
    rows = collections["evaluation_dev_4_samples_t0_7"]["samples"][1]
    assert [(row[1], row[4]) for row in rows[:4]] == [(0, "right"), (1, "wrong"), (2, "wrong"), (3, "unparsable")]
    words = words_of(page)
    assert "1 dev split, 4 samples per problem at temperature 0.7 4 25.0 % 12.5 % to 37.5 %" in words
    assert (
        "pass@1 pass@4" in words and "25.0 % 12.5 % to 37.5 % 100.0 % 12.5 % to 37.5 %" in words and "4 8 4 0" in words
    )
    blocks_written = {block.name for block in all_blocks(pack(run)).values()}
    assert len(blocks_written) == 4 + 3 + 1 + 1 + 2 and all(blocks._NAME.fullmatch(name) for name in blocks_written)
    put(run / f"{stem}.json", values | {"majority": 1})
    with pytest.raises(InputError, match=r"eval_dev_4_samples_t0\.7\.json"):
        page_of(run)
