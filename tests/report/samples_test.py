"""star_jax.report.samples: statistics recomputed from the raw JSON lines with NumPy."""

import numpy as np
import pytest

from star_jax.records import Verdict, write_lines
from star_jax.report import samples
from star_jax.report.figures import panels
from star_jax.report.run_data import RunData, read_run
from star_jax.tasks.arithmetic import make_problem
from tests.algorithms.selection_test import completion
from tests.support.report_runs import HINTS, SOURCES, make_big_run, put, read_lines


def column(lines: list[dict], key: str) -> np.ndarray:
    return np.array([line[key] for line in lines])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunData:
    return read_run(make_big_run(tmp_path_factory.mktemp("numbers")))


def test_statistics_of_a_file_of_samples(run):
    for n in (1, 2, 3):
        for name in ("samples", "rationalizations"):
            lines = read_lines(run.directory / f"iter_00{n}" / f"{name}.jsonl")
            stats = samples.sample_stats(run.iterations[n], name)
            verdicts = column(lines, "verdict")
            for verdict in Verdict:
                assert stats.share(verdict) == pytest.approx(np.mean(verdicts == verdict)), (n, name)
            assert stats.samples == len(lines) and stats.distinct == len(np.unique(column(lines, "text")))
            assert stats.wrong_steps == np.sum((verdicts == "right") & (column(lines, "consistent") == False))  # noqa: E712
            nll = -column(lines, "log_probability").sum() / column(lines, "tokens").sum()
            assert stats.nll_per_token == pytest.approx(nll), (n, name)
            assert {problem_id for problem_id, _ in stats.solved} == set(
                column(lines, "problem_id")[verdicts == "right"]
            ), (n, name)


def test_train_problems_used_and_never_solved(run):
    tried, solved = np.array([], str), np.array([], str)
    for row in samples.health_series(run):
        folder = run.directory / f"iter_00{row.iteration}"
        lines, kept = read_lines(folder / "samples.jsonl"), read_lines(folder / "kept.jsonl")
        problems = np.unique(column(lines, "problem_id"))
        tried = np.union1d(tried, problems)
        solved = np.union1d(solved, column(lines, "problem_id")[column(lines, "verdict") == "right"])
        from_this = np.array([line["iteration"] == row.iteration for line in kept])
        used = {}
        for source in SOURCES:
            of_source = from_this & (column(kept, "source") == source)
            used[source] = np.unique(column(kept, "problem_id")[of_source])
            assert row.used(source) == pytest.approx(len(used[source]) / len(problems))
            leaks = [HINTS.get(text, 0) for text in column(kept, "completion")[of_source]]
            assert row.leaking(source) == pytest.approx(np.mean(leaks))
        assert row.used_together == pytest.approx(len(np.union1d(*used.values())) / len(problems))
        assert row.never_solved == len(np.setdiff1d(tried, solved)) and row.tried_so_far == len(tried)


def test_words_of_the_problem_are_no_leak():
    assert samples.mentions_hint("The hint says 4.", "Q: what is it?")
    assert not samples.mentions_hint("The hint is a clue.", "Q: what is a hint?")
    assert samples.mentions_hint("The hint (correct) is a clue.", "Q: what is a hint?")


def test_exploration_of_several_samples(tmp_path):
    """Two problems, three samples each: the figures against the definitions, and the panels that they get."""
    texts = {
        "a": ["<<1+1=2>>2 so\n#### 2", "Now <<1+1=2>>2\n#### 2", "<<2-0=2>>2\n#### 2"],
        "b": ["#### 3", "#### 4", ""],
    }
    right = {"a": [True, True, True], "b": [True, False, False]}
    lines = [
        completion(
            make_problem(name, 1, 1, digits=1), "right" if right[name][i] else "wrong", text=text, sample_index=i
        )
        for name, of in texts.items()
        for i, text in enumerate(of)
    ]
    for task, solutions in (("gsm8k", 2 + 1), ("jsonl", 3 + 1), ("elsewhere.py:Own", 3 + 1)):
        folder = tmp_path / task.replace(":", "_")
        (folder / "iter_001").mkdir(parents=True)
        put(folder / "config.json", {"task": {"name": task}, "star": {"iterations": 1}})
        (folder / "iter_001" / "samples.jsonl").write_text(write_lines(lines))
        (row,) = samples.health_series(read_run(folder))
        stats = row.sampled
        assert (stats.draws, stats.solutions, stats.solutions_per_problem) == (3, solutions, solutions / 2), task
        assert stats.exploration == pytest.approx(2 / 2 - 4 / 6)
        headings = [panel.heading for panel in panels.health_panels([row])]
        assert headings[-2:] == ["pass@k − pass@1", "Solutions per solved problem"]
