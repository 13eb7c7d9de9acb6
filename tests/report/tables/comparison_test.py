"""Paired comparisons of selected models: honest p values, on the split that may be tested."""

import dataclasses
import types

import numpy as np
import pytest

from star_jax.evaluation import statistics
from star_jax.evaluation.best import best_iteration
from star_jax.records import Verdict
from star_jax.report.run_data import read_run
from star_jax.report.tables import comparison
from tests.support.report_runs import completion, make_run, match_contents, problem, put

RUNS, PROBLEMS, ITERATIONS = 2000, 200, 20


def test_a_run_without_effect_is_rarely_significant(monkeypatch):
    """2,000 runs whose iterations solve each problem with the base's probability; the best of 20 is tested."""
    tables = _null_tables(np.random.default_rng(0), 1 + ITERATIONS)
    _read_from_memory(monkeypatch)
    tested = [comparison.with_base(_run(table)) for table in tables]
    p = [result.p for result in tested if result]
    naive = [result.paired.p for result in tested if result]
    assert np.sum(np.array(p) < 0.05) / RUNS <= 0.06
    assert np.sum(np.array(naive) < 0.05) / RUNS > 0.1  # what the correction is for


@pytest.mark.parametrize("iterations", [(5, 5), (9, 2)])
def test_two_runs_without_a_difference_rarely_differ_significantly(monkeypatch, iterations):
    rng = np.random.default_rng(1)
    _read_from_memory(monkeypatch)
    several = zip(*(_null_tables(np.random.default_rng(2), 1 + n, rng) for n in iterations), strict=True)
    p = [comparison.of_best(_run(first), _run(second)).p for first, second in several]
    assert np.mean(np.array(p) < 0.05) <= 0.06


def test_an_effect_is_found_after_the_correction(monkeypatch):
    _read_from_memory(monkeypatch)
    tables = _null_tables(np.random.default_rng(3), 1 + ITERATIONS)[:200]
    gained = np.random.default_rng(4).random(tables.shape) < 0.25
    gained[:, 0] = False
    p = [result.p if (result := comparison.with_base(_run(table))) else 1.0 for table in tables | gained]
    assert np.mean(np.array(p) < 0.05) > 0.9


def test_the_reported_split_is_tested_where_it_has_other_questions(tmp_path):
    run = make_run(tmp_path)
    assert comparison.with_base(read_run(run)).split == "dev"
    put(run / "problems_test.jsonl", [problem(100 + index) for index in range(4)])
    for number, right in ((0, 0), (2, 3)):
        verdicts = [Verdict.RIGHT if index < right else Verdict.WRONG for index in range(4)]
        lines = [completion(100 + index, number, verdict) for index, verdict in enumerate(verdicts)]
        put(run / f"iter_{number:03d}" / "eval_test.jsonl", lines)
    found = comparison.with_base(read_run(run))
    assert (found.split, found.choices, found.paired.second, found.paired.first) == ("test", 1, 3, 0)
    assert found.p == statistics.mcnemar(0, 3)
    put(run / "problems_test.jsonl", [problem(index) for index in range(4)])  # CommonsenseQA without held_out
    found = comparison.with_base(read_run(run))
    assert (found.split, found.choices) == ("dev", 2)
    assert found.p == min(1.0, 2 * statistics.mcnemar(0, 2))


def test_the_base_as_the_best_is_not_compared(tmp_path):
    run = make_run(tmp_path, iterations=0)
    assert comparison.with_base(read_run(run)) is None


def test_runs_are_compared_on_equal_contents_and_not_on_equal_ids(tmp_path):
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second")
    assert comparison.of_best(read_run(first), read_run(second)).paired.problems == 4
    changed = [dataclasses.replace(problem(index), answer="7") for index in range(4)]
    put(second / "problems_dev.jsonl", [*changed[:3], problem(3)])
    match_contents(second)
    assert comparison.of_best(read_run(first), read_run(second)).paired.problems == 1
    put(second / "problems_dev.jsonl", changed)
    match_contents(second)
    assert comparison.of_best(read_run(first), read_run(second)) is None


def _null_tables(rng: np.random.Generator, models: int, draws: np.random.Generator | None = None) -> np.ndarray:
    """[RUNS, models, PROBLEMS]: whether each model solves each problem; all have the problem's own probability."""
    difficulty = rng.beta(0.7, 0.7, (RUNS, 1, PROBLEMS))
    return (draws or rng).random((RUNS, models, PROBLEMS)) < difficulty


def _run(table: np.ndarray) -> types.SimpleNamespace:
    iterations = tuple(types.SimpleNamespace(number=number, evaluation=True) for number in range(len(table)))
    best = best_iteration({number: row.mean() for number, row in enumerate(table)})
    shared = {"iterations": iterations, "best": best, "split": "dev", "report_split": "test", "problems": ()}
    return types.SimpleNamespace(table=table, directory=None, **shared)


def _read_from_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def solved(run, number, split=""):
        return {} if split == "test" else {(i, "content"): right for i, right in enumerate(run.table[number].tolist())}

    monkeypatch.setattr(comparison, "solved_by_problem", solved)
    monkeypatch.setattr(comparison, "_selects_nothing", lambda run: True)
