"""star_jax.report.run_data: what it reads, and broken files by name and line."""

import json
import math
import re
from pathlib import Path

import pytest

from star_jax import report
from star_jax.errors import InputError
from star_jax.evaluation.best import best_iteration
from star_jax.report import run_data
from star_jax.report.figures import series
from star_jax.runs import checksums
from tests.support.pages import page_of, words_of
from tests.support.report_runs import CATEGORIES, make_run, put, remove

# (file, content appended to a .jsonl or written to a .json, reason)
BROKEN = [
    ("iter_001/samples.jsonl", b'{"problem_id": "x"', "Expecting"),
    ("iter_001/samples.jsonl", b'{"text": "\xff"}', "not UTF-8"),
    ("iter_001/eval_dev.jsonl", b'{"problem_id": "x"}', "key 'answer' is missing"),
    ("iter_001/eval_dev.jsonl", b"[]", "not a JSON object"),
    ("iter_001/kept.jsonl", b"nonsense", "Expecting value"),
    ("problems_dev.jsonl", b'{"id": "x", "question": 5, "answer": "y"}', "'question' should be text, is 5"),
    ("config.json", b"{", "invalid JSON"),
    ("config.json", b"[1]", "not a JSON object"),
    ("iter_001/eval_dev.json", b'{"accuracy": 55}', "'accuracy' should be a number in 0..1, is 55"),
    ("iter_001/eval_dev.json", b'{"accuracy": 0.5, "ci95": [0.5]}', "'ci95' should be [low, high]"),
    ("iter_001/eval_dev.json", b'{"by_category": {"a": 3}}', "should be an object"),
    ("iter_001/filter.json", b'{"kept_by_category": []}', "'kept_by_category' should be an object"),
]


def test_a_broken_file_is_named_with_its_line(tmp_path):
    wrong = []
    run = make_run(tmp_path / "run")
    for name, content, reason in BROKEN:
        path = run / name
        whole = path.read_bytes()
        before = whole if path.suffix == ".jsonl" else b""
        path.write_bytes(before + content + b"\n")
        where = f"{path}:{len(before.splitlines()) + 1}: " if before else f"{path}:"
        if not (message := refusal(run)).startswith(where) or reason not in message:
            wrong.append((name, content, message))
        path.write_bytes(whole)
    assert not wrong and not (run / "report.html").exists()


def refusal(run: Path) -> str:
    """The error of writing the report."""
    try:
        report.write(run)
    except InputError as error:
        return str(error)
    return "no error"


def test_a_value_that_is_no_number_is_named(tmp_path):
    path = make_run(tmp_path) / "iter_001/samples.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps(json.loads(lines[1]) | {"tokens": "many"}), *lines[2:]]) + "\n")
    with pytest.raises(
        InputError, match=re.escape(f"{path}:2: not a Completion record ('tokens' should be an integer")
    ):
        report.write(tmp_path)
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"log_probability": 10**400}), *lines[1:]]) + "\n")
    with pytest.raises(InputError, match=re.escape(f"{path}:1: not a Completion record ('log_probability' should be")):
        report.write(tmp_path)
    path.write_text("\n".join([*lines[1:], json.dumps(json.loads(lines[0]) | {"log_probability": math.nan})]) + "\n")
    assert "NLL per token" not in words_of(page_of(tmp_path)).split("Distinct")[0]


def test_a_category_without_problems_and_an_accuracy_without_interval(tmp_path):
    path = make_run(tmp_path) / "iter_001" / "eval_dev.json"
    values = json.loads(path.read_text())
    values["by_category"]["9 digits"] = {"n": 0, "accuracy": None, "ci95": None}
    del values["ci95"], values["mean_of_categories"]
    put(path, values)
    run = run_data.read_run(tmp_path)
    assert run.categories == (*CATEGORIES, "9 digits") and "9 digits" not in series.accuracy_series(run)
    assert [p.accuracy for p in series.overall_series(run)] == [0.25, 0.5, 0.75]
    assert "1 4 50.0 % 2 2" in words_of(page_of(tmp_path))


def test_the_best_iteration_is_the_earliest_of_equals(tmp_path):
    cases = [({0: 0.1, 1: 0.5, 2: 0.5, 3: 0.2}, 1), ({0: 0.9, 1: 0.1}, 0), ({2: 0.3, 1: 0.3}, 1)]
    wrong = [case for case, best in cases if best_iteration(case) != best]
    assert not wrong
    run = make_run(tmp_path)
    assert run_data.read_run(run).best == 2
    path = run / "iter_001/eval_dev.json"
    put(path, json.loads(path.read_text()) | {"accuracy": 0.75})
    assert run_data.read_run(run).best == 1
    remove(run, "iter_*/eval_dev.json")
    assert run_data.read_run(run).best is None


def test_a_flipped_bit_is_not_shown_as_a_result(tmp_path):
    run = make_run(tmp_path)
    for name in ("iter_001/samples.jsonl", "iter_001/eval_dev.json"):
        path = run / name
        path.with_name(checksums.NAME).write_text(checksums.with_file(path, path.read_bytes()))
        report.write(run)
        path.write_bytes(path.read_bytes().replace(b"1", b"3", 1))
        with pytest.raises(InputError, match=re.escape(f"{path}: damaged")):
            report.write(run)
        path.write_bytes(path.read_bytes().replace(b"3", b"1", 1))
