"""The numbers that figures and tables show, as plain values by iteration."""

import collections
import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star_jax.evaluation.results import Rate
from star_jax.json_reader import is_number, is_present
from star_jax.records import Completion, Problem, ProblemKey, Source, Verdict
from star_jax.report.run_data import (
    FileStamp,
    Iteration,
    RunData,
    file_stamp,
    read_records,
    setting,
)
from star_jax.report.samples import sample_stats
from star_jax.tasks import TASKS, task_class

FINE_TUNE = "fine_tune"  # the stage whose loss belongs to an iteration; any other stage trains the base model
# Config keys in which the runs of a group may differ.
_NOT_GROUPED_BY = ("seed", "compile_cache", "tensorboard", "wandb")
_NOT_PHASES = ("time", "iteration", "step", "total")  # keys of a log line about phases


@dataclasses.dataclass(frozen=True)
class Point:
    """One accuracy in 0..1 with its 95 % interval, if that is on record; or the mean of several runs with its range."""

    iteration: int
    accuracy: float
    low: float | None = None
    high: float | None = None
    runs: int = 1


@dataclasses.dataclass(frozen=True)
class KeptCounts:
    """Examples that an iteration kept, by source, out of `problems` train problems (None: not on record)."""

    iteration: int
    category: str | None  # None: all categories together
    sampled: float
    rationalized: float
    reference: float
    problems: float | None


@dataclasses.dataclass(frozen=True)
class LossCurve:
    """The training loss of one stage of one iteration: (step, nats per token) in order of the steps."""

    stage: str
    iteration: int
    points: tuple[tuple[float, float], ...]
    not_finite: int  # steps with a loss of NaN or infinity, which are not among the points


@dataclasses.dataclass(frozen=True)
class RunGroup:
    """Runs whose settings differ in nothing but seeds."""

    names: tuple[str, ...]
    runs: tuple[RunData, ...]

    def spread(self, category: str | None) -> list[Point]:
        """By iteration: mean, minimum and maximum accuracy in a category over the runs that have it.

        Category None: over all problems.
        """
        accuracies: dict[int, list[float]] = {}
        for run in self.runs:
            points = overall_series(run) if category is None else accuracy_series(run).get(category, [])
            for point in points:
                accuracies.setdefault(point.iteration, []).append(point.accuracy)
        return [
            Point(n, sum(values) / len(values), min(values), max(values), len(values))
            for n, values in sorted(accuracies.items())
        ]


@dataclasses.dataclass(frozen=True)
class Effort:
    """Time and tokens of an iteration; None: not on record."""

    iteration: int
    columns: tuple[str, ...]  # the phases that took at least a second in any iteration of the run
    seconds: dict[str, float]  # wall-clock time by phase, for all phases
    sampled: int | None  # tokens
    speed: float | None  # tokens per second while sampling, without rationalization
    trained: float | None  # tokens, with or without loss

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class StepCounts:
    """Steps of an iteration's right solutions compared to those of the references (paper, Figure 6)."""

    iteration: int
    pairs: collections.Counter[tuple[int, int]]  # (the reference's steps, the model's) -> problems

    @property
    def problems(self) -> int:
        """Problems with a pair."""
        return self.pairs.total()

    @property
    def equal(self) -> int:
        """Problems solved in as many steps as the reference has."""
        return sum(n for (reference, model), n in self.pairs.items() if model == reference)

    @property
    def shorter(self) -> int:
        """Problems solved in fewer steps."""
        return sum(n for (reference, model), n in self.pairs.items() if model < reference)


def accuracy_series(run: RunData) -> dict[str, list[Point]]:
    """Category -> its accuracy by iteration, in the run's order of categories."""
    series: dict[str, list[Point]] = {}
    for category in run.categories:
        rates = [(it.number, it.evaluation.by_category.get(category)) for it in run.iterations if it.evaluation]
        if points := _points(rates):
            series[category] = points
    return series


def overall_series(run: RunData) -> list[Point]:
    """Accuracy over all problems by iteration."""
    return _points([(it.number, it.evaluation.overall) for it in run.iterations if it.evaluation])


def kept_series(run: RunData) -> list[KeptCounts]:
    """One entry for each filtered iteration, all categories together."""
    return [
        KeptCounts(
            iteration=iteration.number,
            category=None,
            sampled=result.counts.get("kept_sampled", 0),
            rationalized=result.counts.get("kept_rationalized", 0),
            reference=result.counts.get("kept_reference", 0),
            problems=result.counts.get("problems"),
        )
        for iteration in run.iterations
        if (result := iteration.filter_result)
    ]


def kept_by_category_series(run: RunData) -> list[KeptCounts]:
    """One entry for each category of each filtered iteration whose filter.json has categories."""
    return [entry for iteration in run.iterations for entry in _kept_by_category(run, iteration)]


def loss_series(run: RunData) -> list[LossCurve]:
    """One curve for each (stage, iteration) with a logged loss, by iteration."""
    grouped: dict[tuple[str, int], list[tuple[float, Any]]] = {}
    for line in run.metrics:
        step, iteration = line.get("step"), line.get("iteration", 0)
        if "loss" in line and is_number(step) and is_number(iteration):
            grouped.setdefault((str(line.get("stage", "")), int(iteration)), []).append((float(step), line["loss"]))
    curves = []
    for (stage, number), steps in sorted(grouped.items(), key=lambda item: (item[0][1], item[0][0])):
        points = tuple(sorted((step, float(loss)) for step, loss in steps if is_number(loss)))
        curves.append(LossCurve(stage, number, points, len(steps) - len(points)))
    return curves


def run_groups(names: Sequence[str], runs: Sequence[RunData]) -> list[RunGroup]:
    """The runs grouped by settings, in the order of each group's first run."""
    members: dict[str, list[tuple[str, RunData]]] = {}
    for name, run in zip(names, runs, strict=True):
        settings = {key: value for key, value in run.config.items() if key not in _NOT_GROUPED_BY}
        task = settings.get("task")
        if isinstance(task, dict):
            settings["task"] = {key: value for key, value in task.items() if key != "seed"}
        key = json.dumps(settings, sort_keys=True) if settings else f"no config: {name}"
        members.setdefault(key, []).append((name, run))
    return [RunGroup(*(tuple(column) for column in zip(*pairs, strict=True))) for pairs in members.values()]


def step_count_series(run: RunData) -> list[StepCounts]:
    """One entry for each evaluated iteration with a right solution whose steps, and the reference's, are countable."""
    name = setting(run.config, "task.name")
    if name not in TASKS or setting(run.config, "star.direct"):
        return []
    references = {problem.key: _reference_steps(name, problem) for problem in run.problems}
    if all(steps is None for steps in references.values()):
        return []
    series = []
    for iteration in run.iterations:
        path = iteration.directory / f"eval_{run.split}.jsonl"
        model_steps = _steps_of_right(path, name, file_stamp(path)) if is_present(path) else {}
        pairs = ((references.get(key), steps) for key, steps in model_steps.items())
        if counts := collections.Counter((reference, steps) for reference, steps in pairs if reference is not None):
            series.append(StepCounts(iteration.number, counts))
    return series


def first_trained_on(run: RunData) -> dict[str, int | None]:
    """Category -> the first iteration with train problems of it; None: evaluated, but not trained on so far.

    Empty if no iteration is filtered, or if filter.json has no problems by category.
    """
    problems = [(it.number, it.filter_result.problems_by_category) for it in run.iterations if it.filter_result]
    if not any(by_category for _, by_category in problems):
        return {}
    return {
        category: next((number for number, by_category in problems if by_category.get(category)), None)
        for category in run.categories
    }


def stage_seconds(run: RunData) -> dict[str, float]:
    """Stage -> wall-clock seconds over all iterations, from finetune.json and the log's lines of step 0.

    Those lines are about a whole stage; a line of another step is about that step.
    """
    seconds: dict[tuple[str, str], float] = {}
    for line in run.metrics:
        if line.get("step") in (None, 0) and is_number(line.get("seconds")):
            seconds[str(line.get("stage", "")), str(line.get("iteration", 0))] = line["seconds"]
    for iteration in run.iterations:
        if iteration.fine_tuning and "seconds" in iteration.fine_tuning:
            seconds[FINE_TUNE, str(iteration.number)] = iteration.fine_tuning["seconds"]
    totals: dict[str, float] = {}
    for (stage, _), value in seconds.items():
        totals[stage] = totals.get(stage, 0.0) + value
    return totals


def effort_series(run: RunData) -> list[Effort]:
    """One entry for each iteration whose phases are on record."""
    phases, speeds = {}, {}
    for line in run.metrics:
        numbers = {key: float(value) for key, value in line.items() if is_number(value)}
        if line.get("stage") == "phases" and "iteration" in numbers:
            phases[numbers["iteration"]] = {k: v for k, v in numbers.items() if k not in _NOT_PHASES}
        elif line.get("stage") == "sample":
            speeds[numbers.get("iteration")] = numbers.get("tokens_per_second")
    columns = dict.fromkeys(name for seconds in phases.values() for name, value in seconds.items() if value >= 1)
    rows = []
    for it in run.iterations:
        if it.number in phases:
            stats = [s for name in ("samples", "rationalizations") if (s := sample_stats(it, name))]
            sampled = sum(s.tokens for s in stats) if stats else None
            trained = it.fine_tuning.get("tokens") if it.fine_tuning else None
            seconds = phases[it.number]
            rows.append(Effort(it.number, tuple(columns), seconds, sampled, speeds.get(it.number), trained))
    return rows


def _points(rates: list[tuple[int, Rate | None]]) -> list[Point]:
    return [
        Point(number, rate.accuracy, rate.low, rate.high)
        for number, rate in rates
        if rate is not None and rate.accuracy is not None
    ]


def _kept_by_category(run: RunData, iteration: Iteration) -> list[KeptCounts]:
    if not iteration.filter_result:
        return []
    kept, problems = iteration.filter_result.kept_by_category, iteration.filter_result.problems_by_category
    categories = dict.fromkeys([*(c for c in run.categories if c in kept or c in problems), *kept, *problems])
    return [
        KeptCounts(
            iteration=iteration.number,
            category=category,
            sampled=kept.get(category, {}).get(Source.SAMPLED, 0),
            rationalized=kept.get(category, {}).get(Source.RATIONALIZED, 0),
            reference=kept.get(category, {}).get(Source.REFERENCE, 0),
            problems=problems.get(category),
        )
        for category in categories
    ]


def _reference_steps(task: str, problem: Problem) -> int | None:
    try:
        return task_class(task).reference_steps(problem)
    except (ValueError, IndexError):  # the file is not to be trusted: the problem may not have the task's form
        return None


@functools.lru_cache(maxsize=256)
def _steps_of_right(path: Path, task: str, _: FileStamp) -> dict[ProblemKey, int]:
    """Problem -> steps of its right rationale, if they can be counted."""
    completions = read_records(Completion, path)
    right = (c for c in completions if c.verdict == Verdict.RIGHT and c.sample_index == 0)
    steps = {c.problem_key: task_class(task).steps(c.text) for c in right}
    return {key: number for key, number in steps.items() if number is not None}
