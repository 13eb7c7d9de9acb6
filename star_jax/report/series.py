"""What each figure plots, as plain numbers; figures.py only draws them."""

import dataclasses
from typing import Any

from star_jax.report.load import Iteration, Rate, Run, is_number

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


def accuracy_series(run: Run) -> dict[str, list[Point]]:
    """Class -> its accuracy by iteration, the classes in the run's order; iterations without it are left out."""
    series: dict[str, list[Point]] = {}
    for label in run.classes:
        rates = [(it.number, it.evaluation.by_class.get(label)) for it in run.iterations if it.evaluation]
        if points := _points(rates):
            series[label] = points
    return series


def overall_series(run: Run) -> list[Point]:
    """The accuracy over all problems by iteration."""
    return _points([(it.number, it.evaluation.overall) for it in run.iterations if it.evaluation])


def mean_series(run: Run) -> list[Point]:
    """The mean of the classes' accuracies by iteration; it has no interval."""
    means = [(it.number, it.evaluation.mean_of_classes) for it in run.iterations if it.evaluation]
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


def _points(rates: list[tuple[int, Rate | None]]) -> list[Point]:
    return [
        Point(number, rate.accuracy, rate.low, rate.high)
        for number, rate in rates
        if rate is not None and rate.accuracy is not None
    ]


def _kept_by_class(run: Run, iteration: Iteration) -> list[Kept]:
    if not iteration.filtered:
        return []
    kept, problems = iteration.filtered.kept_by_class, iteration.filtered.problems_by_class
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
