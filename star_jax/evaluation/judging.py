"""Judging sampled text: the verdict on one completion, and the counts of many."""

import collections
from collections.abc import Sequence

from star_jax.records import VERDICTS, Completion, Problem
from star_jax.tasks.base import Task


def judge(
    task: Task,
    problem: Problem,
    *,
    text: str,
    cut_off: bool,
    iteration: int,
    draw: int,
    hinted: bool,
    log_probability: float,
    tokens: int,
    seed: str,
) -> Completion:
    """A drawn text with its verdict; see records.VERDICTS."""
    answer = task.parse(text)
    if cut_off:
        verdict = "cut_off"
    elif answer is None:
        verdict = "unparsable"
    else:
        verdict = "right" if task.grade(problem, answer) else "wrong"
    return Completion(
        problem_id=problem.id,
        iteration=iteration,
        draw=draw,
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
    doubtful = sum(c.verdict == "right" and c.consistent is False for c in completions)
    return {**{verdict: seen[verdict] for verdict in VERDICTS}, "right_wrong_steps": doubtful}
