"""Judging: the verdict on one sample, and the counts of many."""

import collections
import dataclasses
from collections.abc import Sequence

from star_jax.records import RIGHT_WRONG_STEPS, Completion, Problem, Verdict
from star_jax.sampling.sampler import Sample
from star_jax.tasks.base import Task


@dataclasses.dataclass(frozen=True)
class SamplingPass:
    """One pass of sampling over a list of problems. Every field is part of the random keys."""

    name: str  # "sample", "rationalization" or "evaluate"; the words are frozen
    seed: int
    iteration: int
    samples_per_problem: int = 1
    hinted: bool = False  # the prompts show the answer

    def key(self, problem: Problem, sample_index: int) -> str:
        """The text from which a sample's random key is derived."""
        return f"{self.seed}/{self.name}/{self.iteration}/{problem.id}/{sample_index}/{int(self.hinted)}"


def judge(task: Task, problem: Problem, sample: Sample, sampling_pass: SamplingPass, sample_index: int) -> Completion:
    """The completion with its verdict (records.Verdict)."""
    answer, verdict = _read(task, problem, sample)
    lenient = task.lenient()
    return Completion(
        problem_id=problem.id,
        iteration=sampling_pass.iteration,
        sample_index=sample_index,
        hinted=sampling_pass.hinted,
        text=sample.text,
        answer=answer,
        verdict=verdict,
        consistent=None if answer is None else task.consistent(problem, sample.text),
        log_probability=round(sample.log_probability, 4),
        tokens=len(sample.token_ids),
        seed=sampling_pass.key(problem, sample_index),
        problem_fingerprint=problem.fingerprint,
        right_leniently=None if lenient is None else _read(lenient, problem, sample)[1] == Verdict.RIGHT,
        token_ids=sample.token_ids,
        token_log_probs=sample.token_log_probs,
    )


def _read(task: Task, problem: Problem, sample: Sample) -> tuple[str | None, Verdict]:
    """The answer as the task reads it, and its verdict."""
    answer = answer_of(task, sample)
    if sample.truncated:
        return answer, Verdict.TRUNCATED
    if answer is None:
        return None, Verdict.UNPARSABLE
    return answer, Verdict.RIGHT if task.grade(problem, answer) else Verdict.WRONG


def answer_of(task: Task, sample: Sample) -> str | None:
    """The answer that a sample gives; None if there is none. Bytes that are no text give none."""
    return task.parse(sample.text) if sample.valid_utf8 else None


def counts(completions: Sequence[Completion]) -> dict[str, int]:
    """Completions by verdict, and those that are right although their steps fail the task's check."""
    by_verdict = collections.Counter(c.verdict for c in completions)
    wrong_steps = sum(c.verdict == Verdict.RIGHT and c.consistent is False for c in completions)
    return {**{verdict: by_verdict[verdict] for verdict in Verdict}, RIGHT_WRONG_STEPS: wrong_steps}
