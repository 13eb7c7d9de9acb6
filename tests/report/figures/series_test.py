"""star_jax.report.figures.series: the numbers that figures show, recomputed from the raw files."""

import json

import numpy as np
import pytest

from star_jax import tasks
from star_jax.records import Problem
from star_jax.report.figures import plots, series
from star_jax.report.run_data import RunData, read_run
from tests.support.pages import page_of, words_of
from tests.support.report_runs import make_big_run, make_run, problem, read_lines, remove


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunData:
    return read_run(make_big_run(tmp_path_factory.mktemp("numbers")))


def test_numbers_are_those_of_the_raw_files(tmp_path):
    run = read_run(make_run(tmp_path))
    category_of = {problem(index).id: problem(index).category for index in range(4)}
    for label, points in series.accuracy_series(run).items():
        for point in points:
            lines = read_lines(tmp_path / f"iter_{point.iteration:03d}" / "eval_dev.jsonl")
            right = [line["verdict"] == "right" for line in lines if category_of[line["problem_id"]] == label]
            assert point.accuracy == sum(right) / len(right)
    by_category = {label: [p.accuracy for p in points] for label, points in series.accuracy_series(run).items()}
    assert by_category == {"1 digit": [0.5, 1.0, 1.0], "2 digits": [0.0, 0.0, 0.5]}
    assert [p.accuracy for p in series.overall_series(run)] == [0.25, 0.5, 0.75]
    assert [(p.low, p.high) for p in series.overall_series(run)] == [(0.0625, 0.9375)] * 3
    assert series.stage_seconds(run) == {"sample": 30.0 + 30.0, "fine_tune": 90.0 + 180.0}


def test_kept_series(tmp_path):
    run = read_run(make_run(tmp_path))
    bars = series.kept_series(run)
    assert [(bar.sampled, bar.rationalized, bar.problems) for bar in bars] == [(2, 2, 8), (4, 2, 8)]
    bars = series.kept_by_category_series(run)
    by_category = [(bar.iteration, bar.category, bar.sampled, bar.rationalized) for bar in bars]
    assert by_category == [(1, "1 digit", 1, 1), (1, "2 digits", 1, 1), (2, "1 digit", 2, 1), (2, "2 digits", 2, 1)]


def test_losses_of_a_resumed_run_count_once_and_a_torn_line_is_left_out(tmp_path):
    """A kill tears a line; the resumed run logs step 20 again on a separate line, and is killed too."""
    with open(make_run(tmp_path) / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"iteration": 2, "stage": "fine_tune", "st\n')
        file.write('{"iteration": 2, "stage": "fine_tune", "step": 20, "loss": 0.25}\n')
        file.write('{"iteration": 2, "stage": "fine_tune", "step": 30, "loss": NaN}\n{"iteration": 2, "sta')
    losses = {(curve.stage, curve.iteration): curve for curve in series.loss_series(read_run(tmp_path))}
    assert losses["fine_tune", 2].points == ((10, 1.0), (20, 0.25)) and losses["fine_tune", 2].not_finite == 1
    assert losses["fine_tune", 1].points == ((10, 2.0), (20, 0.5))
    assert losses["pretrain", 0].points == ((0, 4.0), (1, 3.0))
    assert "2 line(s) of metrics.jsonl are unreadable" in words_of(page_of(tmp_path))


def test_steps_compared_to_the_references(run):
    task = tasks.make("arithmetic")
    references = {p.id: task.reference(p).count("\n") - 2 for p in run.problems}
    assert all("</scratch>" in task.reference(p) for p in run.problems)
    for counts in series.step_count_series(run):
        lines = read_lines(run.directory / f"iter_00{counts.iteration}/eval_dev.jsonl")
        lines = [line for line in lines if line["verdict"] == "right"]
        model = np.array([line["text"].split("</scratch>")[0].count("\n") - 1 for line in lines])
        reference = np.array([references[line["problem_id"]] for line in lines])
        assert counts.problems == len(lines) > 10
        assert (counts.equal, counts.shorter) == (np.sum(model == reference), np.sum(model < reference))
        assert 0 < counts.shorter < counts.problems
    assert len(series.step_count_series(run)) == 4


def test_gsm8k_counts_calculator_annotations():
    task = tasks.task_class("gsm8k")
    assert task.steps("He has 2*3=<<2*3=6>>6 and <<6+1=7>>7 in all.\n#### 7") == 2
    assert task.reference_steps(Problem("x", "q", "7", rationale="<<3+4=7>>7\n#### 7")) == 1
    assert task.reference_steps(Problem("x", "q", "7")) is None


def test_time_and_tokens(run):
    for row in series.effort_series(run):
        folder = run.directory / f"iter_00{row.iteration}"
        files = (folder / f"{name}.jsonl" for name in ("samples", "rationalizations"))
        sampled = sum(line["tokens"] for path in files for line in read_lines(path))
        assert (row.sampled, row.speed, row.trained) == (sampled, 10.0 * row.iteration, 100 * row.iteration)
        assert row.total == pytest.approx(3.0 * row.iteration + 0.25) and row.columns == ("sample",)


def test_a_category_that_joins_later_is_hollow_before(tmp_path):
    make_run(tmp_path)
    path = tmp_path / "iter_001/filter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problems_by_category": {"1 digit": 8}}))
    run = read_run(tmp_path)
    assert series.first_trained_on(run) == {"1 digit": 1, "2 digits": 2}
    plot = plots.accuracy(run, "f-")
    notes = {key.label: key.note for key in plot.legend}
    assert "trained on from iteration 2 on" in notes["2 digits"] and "trained" not in notes["1 digit"]
    assert "Hollow markers" in words_of(page_of(tmp_path))
    path = tmp_path / "iter_002/filter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problems_by_category": {"1 digit": 8}}))
    assert "not trained on" in next(k.note for k in plots.accuracy(read_run(tmp_path), "f-").legend[1:])


def test_runs_that_differ_in_seeds_are_one_line_in_a_band(tmp_path):
    runs = [read_run(make_big_run(tmp_path / f"seed{seed}", seed)) for seed in range(3)]
    other = read_run(make_run(tmp_path / "other"))
    first, second = series.run_groups(["a", "b", "c", "d"], [runs[0], other, *runs[1:]])
    assert (first.names, second.names) == (("a", "c", "d"), ("b",))
    means = np.array([[point.accuracy for point in series.overall_series(run)] for run in runs])
    spread = first.spread(None)
    assert np.allclose([p.accuracy for p in spread], means.mean(axis=0))
    assert np.allclose([(p.low, p.high) for p in spread], np.stack([means.min(axis=0), means.max(axis=0)], axis=1))
    plot = plots.accuracy_overlay([first, second], "o-")
    assert [key.label for key in plot.legend] == ["a, c, d: mean and range of 3 runs", "b"]
    remove(runs[2].directory, "iter_003", "iter_002")
    shorter, _ = series.run_groups(["a", "b", "c", "d"], [runs[0], other, runs[1], read_run(runs[2].directory)])
    assert [point.runs for point in shorter.spread(None)] == [3, 3, 2, 2]
    label = plots.accuracy_overlay([shorter, second], "o-").legend[0].label
    assert label == "a, c, d: mean and range of 3 runs (2 at iterations 2, 3)"
    assert str(plot.svg).count("fill-opacity: 0.2") + str(plot.svg).count("opacity: 0.2") >= 1
    assert set(plots.category_overlays([second], "c-")) == {"1 digit", "2 digits"}
