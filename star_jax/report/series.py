"""What each figure plots, as plain numbers; figures.py only draws them."""

import collections
import dataclasses
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from star_jax.records import Completion, Problem
from star_jax.report import draws
from star_jax.report.load import Iteration, Rate, Run, is_number, records_of, setting, stamp
from star_jax.tasks import TASKS, task_class

_NOT_SETTINGS = ("seed", "tensorboard", "wandb")  # of a config: runs that differ in these are of the same kind
_NOT_PHASES = ("time", "iteration", "step", "total")  # of a log's line about phases
FINE_TUNE = "fine_tune"  # the stage whose loss belongs to an iteration; any other stage's is the base's own training


@dataclasses.dataclass(frozen=True)
class Point:
    """One accuracy, a fraction in 0..1, with the ends of its 95 % interval where they are on record."""

    iteration: int
    accuracy: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Kept:
    """What an iteration kept, in examples, out of `problems` train problems (None: not on record)."""

    iteration: int
    label: str | None  # the class; None: all classes together
    sampled: float
    rationalized: float
    reference: float
    problems: float | None


@dataclasses.dataclass(frozen=True)
class Loss:
    """The training loss of one stage of one iteration: (step, nats a token) in the order of the steps."""

    stage: str
    iteration: int
    points: tuple[tuple[float, float], ...]
    not_finite: int  # steps whose loss was logged as NaN or infinity; they are not among the points


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs whose settings differ in seeds alone."""

    names: tuple[str, ...]
    runs: tuple[Run, ...]

    def spread(self, label: str | None) -> list[Point]:
        """By iteration the mean accuracy of a class over the runs that have it, and the lowest and highest of them.

        Label None: the mean of the classes.
        """
        found: dict[int, list[float]] = {}
        for run in self.runs:
            points = mean_series(run) if label is None else accuracy_series(run).get(label, [])
            for point in points:
                found.setdefault(point.iteration, []).append(point.accuracy)
        return [Point(n, sum(all_) / len(all_), min(all_), max(all_)) for n, all_ in sorted(found.items())]


@dataclasses.dataclass(frozen=True)
class Effort:
    """Where an iteration's time went, and how many tokens it took; what is not on record is None."""

    iteration: int
    columns: tuple[str, ...]  # the phases of the run's iterations, those that took a second or more in any
    seconds: dict[str, float]  # wall clock by phase, of all phases
    drawn: int | None  # tokens
    speed: float | None  # tokens drawn a second, of the first tries
    trained: float | None  # tokens, loss on them or not

    @property
    def total(self) -> float:
        """Seconds."""
        return sum(self.seconds.values())


@dataclasses.dataclass(frozen=True)
class Steps:
    """The steps of an iteration's right solutions beside those of the references (paper, Figure 6)."""

    iteration: int
    pairs: collections.Counter[tuple[int, int]]  # (the reference's, the model's) -> problems

    @property
    def problems(self) -> int:
        return self.pairs.total()

    @property
    def equal(self) -> int:
        """Problems solved in as many steps as the reference takes."""
        return sum(n for (reference, own), n in self.pairs.items() if own == reference)

    @property
    def shorter(self) -> int:
        """Problems solved in fewer."""
        return sum(n for (reference, own), n in self.pairs.items() if own < reference)


def accuracy_series(run: Run) -> dict[str, list[Point]]:
    """Class -> its accuracy by iteration, the classes in the run's order; iterations without it are left out."""
    series: dict[str, list[Point]] = {}
    for label in run.classes:
        rates = [(it.number, it.evaluation.by_category.get(label)) for it in run.iterations if it.evaluation]
        if points := _points(rates):
            series[label] = points
    return series


def overall_series(run: Run) -> list[Point]:
    """The accuracy over all problems by iteration."""
    return _points([(it.number, it.evaluation.overall) for it in run.iterations if it.evaluation])


def mean_series(run: Run) -> list[Point]:
    """The mean of the classes' accuracies by iteration; it has no interval."""
    means = [(it.number, it.evaluation.mean_of_categories) for it in run.iterations if it.evaluation]
    return [Point(number, mean) for number, mean in means if mean is not None]


def best(run: Run) -> Point | None:
    """The iteration with the highest overall accuracy, the earliest of equals; 0 if none is better than the base."""
    return max(overall_series(run), key=lambda point: point.accuracy, default=None)


def kept_series(run: Run) -> list[Kept]:
    """One entry for each filtered iteration, all classes together."""
    return [
        Kept(
            iteration=iteration.number,
            label=None,
            sampled=filtered.counts.get("kept_sampled", 0),
            rationalized=filtered.counts.get("kept_rationalized", 0),
            reference=filtered.counts.get("kept_reference", 0),
            problems=filtered.counts.get("problems"),
        )
        for iteration in run.iterations
        if (filtered := iteration.filtered)
    ]


def kept_by_class_series(run: Run) -> list[Kept]:
    """One entry for each class of each filtered iteration, where filter.json breaks it down."""
    return [entry for iteration in run.iterations for entry in _kept_by_class(run, iteration)]


def loss_series(run: Run) -> list[Loss]:
    """One entry for each (stage, iteration) that logged a loss, by iteration; resumed steps count once."""
    grouped: dict[tuple[str, int], list[tuple[float, Any]]] = {}
    for line in run.metrics:
        step, iteration = line.get("step"), line.get("iteration", 0)
        if "loss" in line and is_number(step) and is_number(iteration):
            grouped.setdefault((str(line.get("stage", "")), int(iteration)), []).append((float(step), line["loss"]))
    series = []
    for (stage, number), steps in sorted(grouped.items(), key=lambda item: (item[0][1], item[0][0])):
        points = tuple(sorted((step, float(loss)) for step, loss in steps if is_number(loss)))
        series.append(Loss(stage, number, points, len(steps) - len(points)))
    return series


def groups(names: Sequence[str], runs: Sequence[Run]) -> list[Group]:
    """The runs by settings, in the order of the first of each group."""
    found: dict[str, list[tuple[str, Run]]] = {}
    for name, run in zip(names, runs, strict=True):
        rest = {key: value for key, value in run.config.items() if key not in _NOT_SETTINGS}
        task = rest.get("task")
        if isinstance(task, dict):
            rest["task"] = {key: value for key, value in task.items() if key != "seed"}
        key = json.dumps(rest, sort_keys=True) if rest else f"no config: {name}"
        found.setdefault(key, []).append((name, run))
    return [Group(*(tuple(column) for column in zip(*members, strict=True))) for members in found.values()]


def steps_series(run: Run) -> list[Steps]:
    """One entry for each evaluated iteration that solved a problem whose steps, and the reference's, can be counted."""
    name = setting(run.config, "task.name")
    if name not in TASKS or setting(run.config, "star.direct"):
        return []
    references = {problem.id: _reference_steps(name, problem) for problem in run.problems}
    if all(steps is None for steps in references.values()):
        return []
    series = []
    for iteration in run.iterations:
        path = iteration.directory / f"eval_{run.split}.jsonl"
        own = _steps_of_right(path, name, stamp(path)) if path.is_file() else {}
        known = ((references.get(id_), steps) for id_, steps in own.items())
        if pairs := collections.Counter((reference, steps) for reference, steps in known if reference is not None):
            series.append(Steps(iteration.number, pairs))
    return series


def _reference_steps(task: str, problem: Problem) -> int | None:
    try:
        return task_class(task).reference_steps(problem)
    except (ValueError, IndexError):  # a problem that is not of the task's form: the file is not to be trusted
        return None


@functools.lru_cache(maxsize=256)
def _steps_of_right(path: Path, task: str, _: tuple[int, int]) -> dict[str, int]:
    """Problem id -> steps of its right rationale, where they can be counted."""
    right = (c for c in records_of(Completion, path) if c.verdict == "right" and c.sample_index == 0)
    counted = {completion.problem_id: task_class(task).steps(completion.text) for completion in right}
    return {name: steps for name, steps in counted.items() if steps is not None}


def introductions(run: Run) -> dict[str, int | None]:
    """Class -> the first iteration with train problems of it; None: it was evaluated and never trained on so far.

    Empty where no iteration has been filtered, or where its file does not break the problems down.
    """
    filtered = [(it.number, it.filtered.problems_by_category) for it in run.iterations if it.filtered]
    if not any(problems for _, problems in filtered):
        return {}
    return {label: next((n for n, problems in filtered if problems.get(label)), None) for label in run.classes}


def stage_seconds(run: Run) -> dict[str, float]:
    """Stage -> wall-clock seconds over all iterations, from finetune.json and the log's lines of step 0.

    Those are about a stage as a whole; a line of another step is about that step.
    """
    seconds: dict[tuple[str, str], float] = {}
    for line in run.metrics:
        if line.get("step") in (None, 0) and is_number(line.get("seconds")):
            seconds[str(line.get("stage", "")), str(line.get("iteration", 0))] = line["seconds"]
    for iteration in run.iterations:
        if iteration.fine_tuned and "seconds" in iteration.fine_tuned:
            seconds[FINE_TUNE, str(iteration.number)] = iteration.fine_tuned["seconds"]
    totals: dict[str, float] = {}
    for (stage, _), value in seconds.items():
        totals[stage] = totals.get(stage, 0.0) + value
    return totals


def effort_series(run: Run) -> list[Effort]:
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
            found = [file for name in ("samples", "rationalizations") if (file := draws.drawn(it, name))]
            drawn = sum(file.tokens for file in found) if found else None
            trained = it.fine_tuned.get("tokens") if it.fine_tuned else None
            seconds = phases[it.number]
            rows.append(Effort(it.number, tuple(columns), seconds, drawn, speeds.get(it.number), trained))
    return rows


def _points(rates: list[tuple[int, Rate | None]]) -> list[Point]:
    return [
        Point(number, rate.accuracy, rate.low, rate.high)
        for number, rate in rates
        if rate is not None and rate.accuracy is not None
    ]


def _kept_by_class(run: Run, iteration: Iteration) -> list[Kept]:
    if not iteration.filtered:
        return []
    kept, problems = iteration.filtered.kept_by_category, iteration.filtered.problems_by_category
    labels = dict.fromkeys([*(label for label in run.classes if label in kept or label in problems), *kept, *problems])
    return [
        Kept(
            iteration=iteration.number,
            label=label,
            sampled=kept.get(label, {}).get("sampled", 0),
            rationalized=kept.get(label, {}).get("rationalized", 0),
            reference=kept.get(label, {}).get("reference", 0),
            problems=problems.get(label),
        )
        for label in labels
    ]
