"""Accuracy of judged completions: greedy, by class, majority vote and pass@k."""

import collections
import math
from collections.abc import Mapping, Sequence
from typing import Any

from star_jax.evaluation import judging, statistics
from star_jax.records import Completion, Problem, Verdict, natural_order
from star_jax.tasks import Task


def score(problems: Sequence[Problem], completions: Sequence[Completion]) -> dict[str, Any]:
    """Accuracy of one completion a problem: over all, by class, and the mean over classes, with 95 % intervals."""
    verdict = {c.problem_id: c.verdict for c in completions}
    by_category: dict[str, list[bool]] = collections.defaultdict(list)
    for problem in problems:
        by_category[problem.category].append(verdict[problem.id] == Verdict.RIGHT)
    classes = _classes(by_category)
    counts = judging.counts(completions)
    return {
        **_accuracy(counts["right"], len(problems)),
        "mean_of_categories": sum(c["accuracy"] for c in classes.values()) / len(classes),
        "by_category": classes,
        **counts,
    }


def vote(task: Task, problems: Sequence[Problem], completions: Sequence[Completion]) -> dict[str, Any]:
    """K draws a problem: accuracy of the commonest answer (the earliest of equals) and pass@k for k = 1, 2, 4, ..., K.

    pass@k is the chance that at least one of k draws is right, estimated without bias from all K (Chen et al., 2021).
    """
    votes: dict[str, list[tuple[str, bool]]] = collections.defaultdict(list)
    right: collections.Counter[str] = collections.Counter()
    by_id = {p.id: p for p in problems}
    for c in completions:
        if c.answer is not None and c.verdict != Verdict.TRUNCATED:
            votes[c.problem_id].append((task.canonical(by_id[c.problem_id], c.answer), c.verdict == Verdict.RIGHT))
        right[c.problem_id] += c.verdict == Verdict.RIGHT
    draws = len(completions) // len(problems)
    voted = {p.id: _majority_is_right(votes[p.id]) for p in problems}
    by_category: dict[str, list[bool]] = collections.defaultdict(list)
    for problem in problems:
        by_category[problem.category].append(voted[problem.id])
    sizes = [2**i for i in range(draws.bit_length()) if 2**i < draws]
    return {
        "samples_per_problem": draws,
        "majority": _accuracy(sum(voted.values()), len(problems)),
        **{f"pass@{k}": _mean([pass_at(k, draws, right[p.id]) for p in problems]) for k in sizes},
        f"pass@{draws}": _accuracy(sum(right[p.id] > 0 for p in problems), len(problems)),
        "majority_by_category": _classes(by_category),
        **judging.counts(completions),
    }


def _majority_is_right(votes: Sequence[tuple[str, bool]]) -> bool:
    """Whether the commonest of (answer, judged right) pairs is right: most of the draws that gave it were."""
    if not votes:
        return False
    winner = collections.Counter(answer for answer, _ in votes).most_common(1)[0][0]
    verdicts = [right for answer, right in votes if answer == winner]
    return 2 * sum(verdicts) > len(verdicts)


def pass_at(k: int, draws: int, right: int) -> float:
    """The chance that k of `draws` draws, chosen at random, hold one of the `right` ones: 1 - C(n - c, k) / C(n, k)."""
    return 1.0 - math.comb(draws - right, k) / math.comb(draws, k)


def _mean(values: Sequence[float]) -> dict[str, Any]:
    """The mean of one figure a problem, with the 95 % interval of its standard error."""
    n, middle = len(values), sum(values) / len(values)
    variance = sum((v - middle) ** 2 for v in values) / max(1, n - 1)
    half = statistics.Z95 * math.sqrt(variance / n)
    return {"n": n, "accuracy": middle, "ci95": [round(max(0.0, middle - half), 4), round(min(1.0, middle + half), 4)]}


def _classes(right: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, Any]]:
    return {name: _accuracy(sum(right[name]), len(right[name])) for name in sorted(right, key=natural_order)}


def _accuracy(right: int, n: int) -> dict[str, Any]:
    low, high = statistics.wilson(right, n)
    return {"n": n, "accuracy": right / n, "ci95": [round(low, 4), round(high, 4)]}
