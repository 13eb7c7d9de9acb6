"""The report's numbers, found again from the raw JSON lines in another way, with NumPy by hand."""

import json
import math
import random
import re
from pathlib import Path

import numpy as np
import pytest

from star_jax import report, tasks
from star_jax.errors import InputError
from star_jax.evaluation import statistics
from star_jax.records import Completion, Example, Problem
from star_jax.report import audit_file, draws, figures, health, load, panels, paper, series
from star_jax.tasks.arithmetic import make_problem, scratchpad
from tests.report.report_test import add_evaluation, make_run, page_of, put, shown
from tests.report.report_test import lines as raw

CLASSES = ("1 digit", "2 digits", "3 digits")
HINTS = {"by the hint it is 4": 1, "(CORRECT) is b": 1, "the given answer": 1, "3 + 4 is 7": 0, "a hinterland": 0}


def big_run(folder: Path, seed: int = 0, iterations: int = 3) -> Path:
    """A run of random draws: 60 train problems, 30 dev problems, two draws a problem."""
    rng = random.Random(seed)
    texts = [*HINTS, "so it is 12"]
    train = [Problem(f"t{i}", f"{i}?", str(i), CLASSES[i % 3]) for i in range(60)]
    dev = [make_problem(f"dev-{i}", 10 + i, 20 + i, 2) for i in range(30)]
    put(folder / "config.json", {"seed": seed, "task": {"name": "arithmetic"}, "star": {"iterations": iterations}})
    put(folder / "problems_train.jsonl", train)
    put(folder / "problems_dev.jsonl", dev)
    metrics = []
    for n in range(iterations + 1):
        directory = folder / f"iter_{n:03d}"
        letters = "".join(rng.choice("rrw") for _ in dev)
        add_evaluation(directory, n, letters)
        put(
            directory / "eval_dev.jsonl",
            [solution(rng, p, n, right == "r") for p, right in zip(dev, letters, strict=True)],
        )
        (directory / "DONE").touch()
        if not n:
            continue
        asked = rng.sample(train, 40) if n < iterations else train
        samples = [completion(rng, p, n, draw, False, texts) for p in asked for draw in (0, 1)]
        solved = {c.problem_id for c in samples if c.verdict == "right"}
        hinted = [completion(rng, p, n, draw, True, texts) for p in asked if p.id not in solved for draw in (0, 1)]
        put(directory / "samples.jsonl", samples)
        put(directory / "rationalizations.jsonl", hinted)
        kept = [c for c in (*samples, *hinted) if c.verdict == "right"]
        sources = {False: "sampled", True: "rationalized"}
        earlier = Example("t0", "old", "the hint", n - 1, "sampled")  # of star.keep_previous
        own = [
            Example(c.problem_id, "What is it?", c.text, n, sources[c.hinted], sample_index=c.sample_index)
            for c in kept
        ]
        put(directory / "kept.jsonl", [earlier, *own])
        sums = {f"kept_{source}": sum(e.source == source for e in own) for source in audit_file.SOURCES}
        label_of = {p.id: p.category for p in train}
        by_category = {c: {s: sum((label_of[e.problem_id], e.source) == (c, s) for e in own) for s in audit_file.SOURCES}
                    for c in CLASSES}  # fmt: skip
        counts = {"samples": len(samples), "problems": len(asked), "kept": len(own), "kept_by_category": by_category}
        put(directory / "filter.json", counts | sums | {"problems_by_category": classes_of(asked)})
        put(directory / "finetune.json", {"tokens": 100 * n, "steps": 5, "seconds": 2.0})
        metrics.append({"stage": "sample", "iteration": n, "step": 0, "tokens_per_second": 10.0 * n})
        metrics.append({"stage": "phases", "iteration": n, "step": 0, "time": 1e9, "sample": 3.0 * n, "save": 0.25,
                        "total": 3.0 * n + 0.25})  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return folder


def classes_of(problems: list[Problem]) -> dict[str, int]:
    return {label: sum(p.category == label for p in problems) for label in CLASSES}


def completion(rng, problem: Problem, n: int, draw: int, hinted: bool, texts: list[str]) -> Completion:
    verdict = rng.choice(("right", "wrong", "wrong", "unparsable", "truncated"))
    right, nats, tokens = verdict == "right", rng.random() * 9, rng.randint(1, 9)
    checked = rng.choice((True, False)) if right else None
    text, answer = rng.choice(texts), "x" if right else None
    return Completion(problem.id, n, draw, hinted, text, answer, verdict, checked, -nats, tokens, "")


def solution(rng, problem: Problem, n: int, right: bool) -> Completion:
    """A scratchpad of which up to two lines are missing, or one too many."""
    lines = scratchpad(*(int(part.replace(" ", "")) for part in problem.question.split("+"))).split("\n")
    change = rng.choice((-2, -1, 0, 0, 1))
    lines = lines[:1] + lines[1 - change :] if change < 0 else lines[:1] + lines[1:2] * change + lines[1:]
    verdict = "right" if right else "wrong"
    return Completion(problem.id, n, 0, False, "\n".join(lines), problem.answer, verdict, True, -1.0, 3, "")


def column(lines: list[dict], key: str) -> np.ndarray:
    return np.array([line[key] for line in lines])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> load.Run:
    return load.read_run(big_run(tmp_path_factory.mktemp("numbers")))


@pytest.mark.parametrize("name", ["samples", "rationalizations"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_what_a_file_of_draws_comes_to(run, n, name):
    lines, found = raw(run.directory / f"iter_00{n}" / f"{name}.jsonl"), draws.drawn(run.iterations[n], name)
    verdicts = column(lines, "verdict")
    for verdict in ("right", "wrong", "unparsable", "truncated"):
        assert found.share(verdict) == pytest.approx(np.mean(verdicts == verdict))
    assert found.draws == len(lines) and found.distinct == len(np.unique(column(lines, "text")))
    assert found.wrong_steps == np.sum((verdicts == "right") & (column(lines, "consistent") == False))  # noqa: E712
    assert found.nats == pytest.approx(-column(lines, "log_probability").sum() / column(lines, "tokens").sum())
    assert found.solved == set(column(lines, "problem_id")[verdicts == "right"])


def test_train_problems_used_and_never_solved(run):
    tried, solved = np.array([], str), np.array([], str)
    for row in health.health_series(run):
        folder = run.directory / f"iter_00{row.iteration}"
        samples, kept = raw(folder / "samples.jsonl"), raw(folder / "kept.jsonl")
        asked = np.unique(column(samples, "problem_id"))
        tried = np.union1d(tried, asked)
        solved = np.union1d(solved, column(samples, "problem_id")[column(samples, "verdict") == "right"])
        own = np.array([line["iteration"] == row.iteration for line in kept])
        used = {}
        for source in audit_file.SOURCES:
            of = own & (column(kept, "source") == source)
            used[source] = np.unique(column(kept, "problem_id")[of])
            assert row.used(source) == pytest.approx(len(used[source]) / len(asked))
            leaks = [HINTS.get(text, 0) for text in column(kept, "completion")[of]]
            assert row.leaking(source) == pytest.approx(np.mean(leaks))
        assert row.used_together == pytest.approx(len(np.union1d(*used.values())) / len(asked))
        assert row.never_solved == len(np.setdiff1d(tried, solved)) and row.tried_so_far == len(tried)


def test_the_panels_draw_these_numbers(run):
    """The points of each line, read off the SVG by its two ends, which the legend names."""
    shown_by = {panel.heading: panel for panel in panels.signs(health.health_series(run))}
    assert len(shown_by) == 7
    for heading, plot in panels.health(health.health_series(run), "p-").items():
        lines = shown_by[heading].lines
        paths = re.findall(r'<path d="([^"]*)"[^>]*style="fill: none; stroke: var\(--series-\d\)', str(plot.svg))
        assert len(paths) == len(lines) == len(plot.legend)
        for path, (name, points), key in zip(paths, lines.items(), plot.legend, strict=True):
            heights = [float(y) for y in re.findall(r"-?\d+\.?\d*", path)[1::2]]
            values = [value for _, value in points]
            assert key.label == name and len(heights) == len(values)
            line = np.polyfit(values, heights, 1)  # one scale for all points
            assert np.allclose(np.polyval(line, values), heights, atol=1e-3) and (line[0] < 0 or len(set(values)) == 1)


def test_steps_beside_the_references(run):
    task = tasks.make("arithmetic")
    references = {
        p.id: task.reference(p).index("</scratch>") and task.reference(p).count("\n") - 2 for p in run.problems
    }
    for found in series.steps_series(run):
        lines = [x for x in raw(run.directory / f"iter_00{found.iteration}/eval_dev.jsonl") if x["verdict"] == "right"]
        own = np.array([x["text"].split("</scratch>")[0].count("\n") - 1 for x in lines])
        reference = np.array([references[x["problem_id"]] for x in lines])
        assert found.problems == len(lines) > 10
        assert (found.equal, found.shorter) == (np.sum(own == reference), np.sum(own < reference))
        assert 0 < found.shorter < found.problems
    assert len(series.steps_series(run)) == 4


def test_figure_of_steps_has_a_dot_a_pair(run):
    (last,) = [found for found in series.steps_series(run) if found.iteration == 3]
    plot = figures.steps([last], "s-")
    assert str(plot.svg).count("<use") >= len(last.pairs) or str(plot.svg).count("fill: var(--series-0)") >= 1
    assert f"{100 * last.equal / last.problems:.1f} % equal" in plot.legend[0].note


def test_gsm8k_counts_calculator_annotations():
    task = tasks.task_class("gsm8k")
    assert task.steps("He has 2*3=<<2*3=6>>6 and <<6+1=7>>7 in all.\n#### 7") == 2
    assert task.reference_steps(Problem("x", "q", "7", rationale="<<3+4=7>>7\n#### 7")) == 1
    assert task.reference_steps(Problem("x", "q", "7")) is None


def test_time_and_tokens(run):
    for row in series.effort_series(run):
        folder = run.directory / f"iter_00{row.iteration}"
        drawn = sum(column(raw(folder / f"{name}.jsonl"), "tokens").sum() for name in ("samples", "rationalizations"))
        assert (row.drawn, row.speed, row.trained) == (drawn, 10.0 * row.iteration, 100 * row.iteration)
        assert row.total == pytest.approx(3.0 * row.iteration + 0.25) and row.columns == ("sample",)


def test_a_class_that_joins_later_is_hollow_before(tmp_path):
    make_run(tmp_path)
    path = tmp_path / "iter_001/filter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problems_by_category": {"1 digit": 8}}))
    run = load.read_run(tmp_path)
    assert series.introductions(run) == {"1 digit": 1, "2 digits": 2}
    plot = figures.accuracy(run, "f-")
    notes = {key.label: key.note for key in plot.legend}
    assert "trained on from iteration 2 on" in notes["2 digits"] and "trained" not in notes["1 digit"]
    assert "Hollow markers" in shown(page_of(tmp_path))
    path = tmp_path / "iter_002/filter.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"problems_by_category": {"1 digit": 8}}))
    assert "not trained on" in next(k.note for k in figures.accuracy(load.read_run(tmp_path), "f-").legend[1:])


def test_seeds_are_one_line_in_a_band(tmp_path):
    runs = [load.read_run(big_run(tmp_path / f"seed{seed}", seed)) for seed in range(3)]
    other = load.read_run(make_run(tmp_path / "other"))
    first, second = series.groups(["a", "b", "c", "d"], [runs[0], other, *runs[1:]])
    assert (first.names, second.names) == (("a", "c", "d"), ("b",))
    means = np.array([[point.accuracy for point in series.mean_series(run)] for run in runs])
    spread = first.spread(None)
    assert np.allclose([p.accuracy for p in spread], means.mean(axis=0))
    assert np.allclose([(p.low, p.high) for p in spread], np.stack([means.min(axis=0), means.max(axis=0)], axis=1))
    plot = figures.overlay([first, second], "o-")
    assert [key.label for key in plot.legend] == ["a, c, d: mean and range of 3", "b"]
    assert str(plot.svg).count("fill-opacity: 0.2") + str(plot.svg).count("opacity: 0.2") >= 1
    assert set(figures.overlays([second], "c-")) == {"1 digit", "2 digits"}


def test_the_papers_rows_and_ours(tmp_path):
    runs = [load.read_run(big_run(tmp_path / "one", seed=3))]
    table = paper.table(runs, ["one"])
    assert [row.rate.accuracy for row in table.rows[:2]] == [0.763, 0.895]
    base, best = table.rows[2:]
    assert (base.run, base.label) == ("one", "the base, few-shot rationale (dev)")
    number = series.best(runs[0]).iteration
    assert best.label == f"STaR without rationalization, iteration {number} (dev)"
    (found,) = [row for row in health.health_series(runs[0]) if row.iteration == number]
    assert best.used.startswith(f"{100 * found.used('sampled'):.1f} + {100 * found.used('rationalized'):.1f}")
    assert paper.table([*runs, load.read_run(make_run(tmp_path / "two"))], ["a", "b"]) is not None
    put(tmp_path / "two/config.json", {"task": {"name": "gsm8k"}})
    other = load.read_run(tmp_path / "two")
    assert paper.table([*runs, other], ["a", "b"]) is None, "two tasks have no common table"
    for row in paper.table([other], ["x"]).rows[:5]:
        assert (row.rate.low, row.rate.high) == statistics.wilson(round(row.rate.accuracy * 1319), 1319)


CONFIGS = {"commonsense_qa_gptj": {"prompt.shots"}, "gsm8k_gptj": set(), "arithmetic_gptj": set()}


@pytest.mark.parametrize("variant", ["", ":no_rationalization"])
@pytest.mark.parametrize(("name", "known"), CONFIGS.items())
def test_the_papers_settings_are_those_of_our_configs(tmp_path, name, known, variant):
    """CommonsenseQA's shots are ours, seven; all else that the paper says, configs/*_gptj.py say too."""
    import runpy

    config = runpy.run_path(f"{Path(__file__).parents[2]}/configs/{name}.py")["get_config"](variant[1:]).to_dict()
    put(tmp_path / "config.json", config)
    settings_diff = paper.settings_diff(load.read_run(tmp_path))
    assert {key for key, _, _ in settings_diff} == known
    put(tmp_path / "config.json", config | {"optimizer": {"learning_rate": 0.25}})
    assert ("optimizer.learning_rate", "1e-06", "0.25") in paper.settings_diff(load.read_run(tmp_path))


def test_words_of_the_problem_are_no_leak():
    assert draws.speaks_of_hint("The hint says 4.", "Q: what is it?")
    assert not draws.speaks_of_hint("The hint is a clue.", "Q: what is a hint?")
    assert draws.speaks_of_hint("The hint (correct) is a clue.", "Q: what is a hint?")


def test_what_is_no_number_in_a_record_is_named(tmp_path):
    path = make_run(tmp_path) / "iter_001/samples.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], json.dumps(json.loads(lines[1]) | {"tokens": "many"}), *lines[2:]]) + "\n")
    with pytest.raises(InputError, match=re.escape(f"{path}:2: 'tokens' should be a number, is \"many\"")):
        report.write(tmp_path)
    path.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"log_probability": 10**400}), *lines[1:]]) + "\n")
    with pytest.raises(InputError, match=re.escape(f"{path}:1: 'log_probability' should be a number")):
        report.write(tmp_path)
    path.write_text("\n".join([*lines[1:], json.dumps(json.loads(lines[0]) | {"log_probability": math.nan})]) + "\n")
    assert "Surprise" not in shown(page_of(tmp_path)).split("Distinct")[0]
