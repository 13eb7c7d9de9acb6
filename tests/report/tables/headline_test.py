"""star_jax.report.tables.headline: one accuracy, the same on the card, in the figures and in the tables."""

import json

from star_jax.report.run_data import read_run
from star_jax.report.tables.headline import has_test_split, headline
from tests.support.pages import page_of, words_of
from tests.support.report_runs import make_run, put, remove


def evaluated_on_test(run, number: int, accuracy: float) -> None:
    values = json.loads((run / f"iter_{number:03d}/eval_dev.json").read_text())
    put(run / f"iter_{number:03d}/eval_test.json", values | {"split": "test", "accuracy": accuracy})


def test_the_headline_moves_to_the_test_split_once_the_best_iteration_was_evaluated_on_it(tmp_path):
    run = make_run(tmp_path)
    of_dev = headline(read_run(run))
    assert (of_dev.split, of_dev.base.accuracy, of_dev.best.accuracy, of_dev.iteration) == ("dev", 0.25, 0.75, 2)
    assert of_dev.is_optimistic
    evaluated_on_test(run, 1, 0.9)
    assert headline(read_run(run)).split == "dev", "iteration 1 is not the best"
    evaluated_on_test(run, 2, 0.625)
    of_test = headline(read_run(run))
    assert (of_test.split, of_test.base, of_test.best.accuracy, of_test.iteration) == ("test", None, 0.625, 2)
    assert not of_test.is_optimistic and of_test.selecting.accuracy == 0.75
    words = words_of(page_of(run))
    assert "all test problems 62.5 % at iteration 2, the best on dev (75.0 % there)" in words
    assert "optimistic" not in words and "--split=test" not in words
    evaluated_on_test(run, 0, 0.125)
    assert "all test problems base 12.5 % → 62.5 %" in words_of(page_of(run))
    other = make_run(tmp_path / "other")
    words = words_of(page_of(run, other))
    assert "done: 2 of 2 iterations test 12.5 % 2 62.5 % 6.2 % to 93.8 % 75.0 %" in words
    assert "done: 2 of 2 iterations dev 25.0 % 2 75.0 % 6.2 % to 93.8 % 75.0 %" in words


def test_the_mean_of_categories_is_shown_only_where_it_is_another_number(tmp_path):
    run = make_run(tmp_path)
    assert "mean of categories" not in words_of(page_of(run))
    path = run / "iter_001/eval_dev.json"
    put(path, json.loads(path.read_text()) | {"mean_of_categories": 0.375})
    assert "unweighted mean of categories" in (words := words_of(page_of(run))) and "37.5 %" in words


def test_before_the_first_evaluation_there_is_none(tmp_path):
    run = make_run(tmp_path)
    remove(run, "iter_*/eval_*")
    assert headline(read_run(run)) is None


def test_an_evaluation_on_test_is_advised_only_where_there_is_a_test_split(tmp_path):
    splits = [
        ({"name": "arithmetic"}, True),
        ({"name": "gsm8k"}, True),
        ({"name": "jsonl", "train": "a", "test": "b"}, True),
        ({"name": "jsonl", "train": "a", "test": ""}, False),
        ({"name": "commonsense_qa", "held_out": 500}, True),
        ({"name": "commonsense_qa", "held_out": 0}, False),
        ({"name": "parity"}, False),
        ("hostile", False),
    ]
    run = make_run(tmp_path)
    for task, has_test in splits:
        config = json.loads((run / "config.json").read_text()) | {"task": task}
        put(run / "config.json", config)
        assert has_test_split(config) == has_test, task
        words = words_of(page_of(run))
        assert ("--split=test" in words) == has_test and "optimistic estimate" in words, task
    assert not has_test_split({"task": {"name": "arithmetic"}, "evaluation": {"split": "test"}})
