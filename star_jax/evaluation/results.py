"""The figures of an iteration in its files, eval_<split>.json and filter.json, as typed values. No JAX here."""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from star_jax.evaluation import best
from star_jax.json_reader import Fields
from star_jax.runs.checksums import REMEDY


@dataclasses.dataclass(frozen=True)
class EvaluationPass:
    """One evaluation of an iteration, which names its files."""

    split: str
    samples: int = 0  # per problem, drawn at random; 0: one, greedy
    temperature: float = 0.0  # of these samples

    @property
    def stem(self) -> str:
        """The name of its files without suffix: STEM.jsonl holds the completions, STEM.json the figures."""
        if not self.samples:
            return f"eval_{self.split}"
        return f"eval_{self.split}_{self.samples}_samples_t{digits(self.temperature)}"

    @property
    def files(self) -> tuple[str, str]:
        return f"{self.stem}.jsonl", f"{self.stem}.json"


def digits(number: float) -> str:
    """A number in a file's name: short, and different for different numbers."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


@dataclasses.dataclass(frozen=True)
class Rate:
    """An accuracy in 0..1 over n problems with its 95 % interval. None: not on record."""

    n: int | None
    accuracy: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Content of an eval_<split>.json."""

    overall: Rate
    mean_of_categories: float | None  # unweighted: a category counts the same whatever its number of problems
    by_category: dict[str, Rate]
    counts: dict[str, float]  # problems by verdict, and right_wrong_steps
    problem_set: str  # fingerprint of the evaluated problems' contents; "": not on record
    lenient: Rate | None  # accuracy by the task's lenient reader, where it has one

    @property
    def mean_differs(self) -> bool:
        """True if the mean of the categories is another number than the accuracy over all problems."""
        mean, overall = self.mean_of_categories, self.overall.accuracy
        return mean is not None and (overall is None or abs(mean - overall) > 5e-4)


@dataclasses.dataclass(frozen=True)
class SampledEvaluation:
    """Content of an eval_<split>_<K>_samples_t<T>.json."""

    majority: Rate  # of the majority vote over the K samples
    pass_at: dict[int, Rate]  # k -> at least one of k samples is right
    counts: dict[str, float]  # samples by verdict, and right_wrong_steps


@dataclasses.dataclass(frozen=True)
class FilterResult:
    """Content of a filter.json."""

    counts: dict[str, float]  # every number at its top level: problems, samples, right, kept, kept_sampled, ...
    kept_by_category: dict[str, dict[str, float]]  # category -> source -> examples
    problems_by_category: dict[str, float]
    sampled_from: str  # fingerprint of the weights that the samples were drawn from; "": none, or not on record


def evaluation(values: dict[str, Any], path: Path) -> Evaluation:
    """The values of the file `path`, an eval_<split>.json. Raises InputError for one of another type."""
    fields = Fields(values, path, REMEDY)
    categories = Fields(fields.object("by_category", {}), f"{path}: by_category", REMEDY)
    by_category = {label: _rate(Fields(categories.object(label), path, REMEDY)) for label in categories.values}
    accuracies = [rate.accuracy for rate in by_category.values() if rate.accuracy is not None]
    mean = fields.optional_number("mean_of_categories", 0, 1)
    if mean is None and accuracies:
        mean = sum(accuracies) / len(accuracies)
    problem_set, lenient = fields.text("problem_set", ""), None
    if "lenient" in values:
        lenient = _rate(Fields(fields.object("lenient"), f"{path}: lenient", REMEDY))
    return Evaluation(_rate(fields), mean, by_category, fields.numbers(), problem_set, lenient)


def sampled_evaluation(values: dict[str, Any], path: Path) -> SampledEvaluation:
    """The values of the file `path`, an eval_<split>_<K>_samples_t<T>.json. Raises InputError for another type."""
    fields = Fields(values, path, REMEDY)

    def rate(key: str) -> Rate:
        return _rate(Fields(fields.object(key), f"{path}: {key}", REMEDY))

    pass_at = {int(key[5:]): rate(key) for key in values if re.fullmatch("pass@[0-9]{1,9}", key)}
    return SampledEvaluation(rate("majority"), dict(sorted(pass_at.items())), fields.numbers())


def filter_result(values: dict[str, Any], path: Path) -> FilterResult:
    """The values of the file `path`, a filter.json. Raises InputError for one of another type."""
    fields = Fields(values, path, REMEDY)
    kept = Fields(fields.object("kept_by_category", {}), f"{path}: kept_by_category", REMEDY)
    problems = Fields(fields.object("problems_by_category", {}), path, REMEDY)
    return FilterResult(
        counts=fields.numbers(),
        kept_by_category={label: Fields(kept.object(label), path, REMEDY).numbers() for label in kept.values},
        problems_by_category=problems.numbers(),
        sampled_from=fields.text("sampled_from", ""),
    )


def reason_to_stop(evaluations: Sequence[SampledEvaluation], count: int) -> str:
    """star.stop_when: why a run stops after the last of these iterations, 0 for the base; "" if it does not.

    pass@k, of the largest k, has fallen in each of the last `count` iterations. More rounds of self-improvement can
    raise accuracy and narrow what the model can solve at all (Wu et al., arXiv 2407.05013).
    """
    if not 0 < count < len(evaluations):
        return ""
    last = [evaluation.pass_at for evaluation in evaluations[-count - 1 :]]
    k = max(last[-1], default=0)
    rates = [of[k].accuracy if k in of else None for of in last]
    known = [rate for rate in rates if rate is not None]
    if len(known) < len(rates) or any(after >= before for before, after in itertools.pairwise(known)):
        return ""
    times = f" {count} times in a row" if count > 1 else ""
    return f"pass@{k} fell{times}, {' -> '.join(f'{rate:.3f}' for rate in known)}"


def anchoring(values: dict[str, Any], path: Path) -> dict[str, float]:
    """Seed of each scored rationalization -> nats, of the file `path`, an anchoring.json. Raises InputError."""
    return Fields(Fields(values, path, REMEDY).object("nats"), path, REMEDY).numbers()


def best_iteration(evaluations: Mapping[int, Evaluation]) -> int | None:
    """`best.best_iteration` of the evaluations on one split, by iteration; None if none has an accuracy on record."""
    rated = {n: result for n, result in evaluations.items() if result.overall.accuracy is not None}
    if not rated:
        return None
    accuracy = {n: result.overall.accuracy or 0.0 for n, result in rated.items()}
    return best.best_iteration(accuracy, {n: result.problem_set for n, result in rated.items()})


def _rate(fields: Fields) -> Rate:
    low, high = fields.interval("ci95")
    n = fields.values.get("n")
    return Rate(None if n is None else fields.integer("n"), fields.optional_number("accuracy", 0, 1), low, high)
