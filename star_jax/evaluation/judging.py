"""Judging sampled text: the verdict on one completion, and the counts of many."""

import collections
from collections.abc import Sequence

from star_jax.records import RIGHT_WRONG_STEPS, Completion, Problem, Verdict
from star_jax.tasks.base import Task


def judge(
    task: Task,
    problem: Problem,
    *,
    text: str,
    truncated: bool,
    iteration: int,
    sample_index: int,
    hinted: bool,
    log_probability: float,
    tokens: int,
    seed: str,
) -> Completion:
    """A drawn text with its verdict; see records.Verdict."""
    answer = task.parse(text)
    if truncated:
        verdict = Verdict.TRUNCATED
    elif answer is None:
        verdict = Verdict.UNPARSABLE
    else:
        verdict = Verdict.RIGHT if task.grade(problem, answer) else Verdict.WRONG
    return Completion(
        problem_id=problem.id,
        iteration=iteration,
        sample_index=sample_index,
        hinted=hinted,
        text=text,
        answer=answer,
        verdict=verdict,
        consistent=None if answer is None else task.consistent(problem, text),
        log_probability=round(log_probability, 4),
        tokens=tokens,
        seed=seed,
    )


def counts(completions: Sequence[Completion]) -> dict[str, int]:
    """How many were right, wrong, unparsable and cut off, and right with steps that do not check out."""
    seen = collections.Counter(c.verdict for c in completions)
    doubtful = sum(c.verdict == Verdict.RIGHT and c.consistent is False for c in completions)
    return {**{verdict: seen[verdict] for verdict in Verdict}, RIGHT_WRONG_STEPS: doubtful}
