"""Accuracy of judged completions: greedy, by category, majority vote and pass@k."""

import collections
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from star_jax.evaluation import judging, statistics
from star_jax.records import Completion, Problem, ProblemKey, Verdict, natural_order
from star_jax.tasks import Task


def score(problems: Sequence[Problem], completions: Sequence[Completion]) -> dict[str, Any]:
    """Accuracy with one completion per problem: of all, by category, and the mean of categories; 95 % intervals.

    "lenient" is the accuracy by the task's lenient reader, where it has one.
    """
    _check_contents(problems, completions)
    verdict = {c.problem_key: c.verdict for c in completions}
    by_category: dict[str, list[bool]] = collections.defaultdict(list)
    for problem in problems:
        by_category[problem.category].append(verdict[problem.key] == Verdict.RIGHT)
    categories = _by_category(by_category)
    counts = judging.counts(completions)
    leniently = [c.right_leniently for c in completions]
    return {
        **_accuracy(counts["right"], len(problems)),
        **({} if None in leniently else {"lenient": _accuracy(sum(map(bool, leniently)), len(problems))}),
        "problem_set": problem_set(problems),
        "mean_of_categories": sum(c["accuracy"] for c in categories.values()) / len(categories),
        "by_category": categories,
        **counts,
    }


def vote(task: Task, problems: Sequence[Problem], completions: Sequence[Completion]) -> dict[str, Any]:
    """Majority vote (the earliest of equals) and pass@k, k = 1, 2, 4, ..., K, of K samples per problem.

    pass@k is the probability that at least one of k samples is right, the unbiased estimate (Chen et al., 2021).
    """
    _check_contents(problems, completions)
    votes: dict[ProblemKey, list[tuple[str, bool]]] = collections.defaultdict(list)
    right: collections.Counter[ProblemKey] = collections.Counter()
    by_key = {p.key: p for p in problems}
    for c in completions:
        if c.answer is not None and c.verdict != Verdict.TRUNCATED:
            votes[c.problem_key].append((task.canonical(by_key[c.problem_key], c.answer), c.verdict == Verdict.RIGHT))
        right[c.problem_key] += c.verdict == Verdict.RIGHT
    samples = len(completions) // len(problems)
    voted = {p.key: _majority_is_right(votes[p.key]) for p in problems}
    by_category: dict[str, list[bool]] = collections.defaultdict(list)
    for problem in problems:
        by_category[problem.category].append(voted[problem.key])
    sizes = [2**i for i in range(samples.bit_length()) if 2**i < samples]
    return {
        "samples_per_problem": samples,
        "problem_set": problem_set(problems),
        "majority": _accuracy(sum(voted.values()), len(problems)),
        **{f"pass@{k}": _mean([pass_at(k, samples, right[p.key]) for p in problems], len(completions)) for k in sizes},
        f"pass@{samples}": _accuracy(sum(right[p.key] > 0 for p in problems), len(problems)),
        "majority_by_category": _by_category(by_category),
        **judging.counts(completions),
    }


def problem_set(problems: Iterable[Problem]) -> str:
    """Twelve hex digits of the SHA-256 of the problems' fingerprints; only accuracies on one set are compared."""
    return hashlib.sha256("".join(sorted(problem.fingerprint for problem in problems)).encode()).hexdigest()[:12]


def _check_contents(problems: Sequence[Problem], completions: Sequence[Completion]) -> None:
    """Raises ValueError unless each problem has the same number of completions, at least one, and no other has any."""
    counts = collections.Counter(c.problem_key for c in completions)
    if counts.keys() != {problem.key for problem in problems} or len(set(counts.values())) != 1:
        raise ValueError("the completions are not those of the problems")


def _majority_is_right(votes: Sequence[tuple[str, bool]]) -> bool:
    """Whether the most frequent answer of (answer, judged right) pairs is right: most samples with it were."""
    if not votes:
        return False
    winner = collections.Counter(answer for answer, _ in votes).most_common(1)[0][0]
    verdicts = [right for answer, right in votes if answer == winner]
    return 2 * sum(verdicts) > len(verdicts)


def pass_at(k: int, samples: int, right: int) -> float:
    """The probability that one of k, chosen from n `samples` with c `right` ones, is right: 1 - C(n-c, k) / C(n, k)."""
    return 1.0 - math.comb(samples - right, k) / math.comb(samples, k)


def _mean(values: Sequence[float], samples: int) -> dict[str, Any]:
    """The mean of one figure per problem with its 95 % interval; `samples`: completions of all problems."""
    middle, low, high = statistics.bounded_mean(values, samples)
    return {"n": len(values), "accuracy": middle, "ci95": [round(low, 4), round(high, 4)]}


def _by_category(right: Mapping[str, Sequence[bool]]) -> dict[str, dict[str, Any]]:
    return {name: _accuracy(sum(right[name]), len(right[name])) for name in sorted(right, key=natural_order)}


def _accuracy(right: int, n: int) -> dict[str, Any]:
    low, high = statistics.wilson(right, n)
    return {"n": n, "accuracy": right / n, "ci95": [round(low, 4), round(high, 4)]}
