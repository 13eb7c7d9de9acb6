"""Statistics of what an iteration sampled and kept, each file read once, and the health of sampling by iteration."""

import collections
import dataclasses
import functools
import math
import re
from pathlib import Path
from typing import Any

from star_jax.json_reader import is_present
from star_jax.records import Completion, Example, ProblemKey, Source, Verdict
from star_jax.report.run_data import FileStamp, Iteration, RunData, file_stamp, read_records, setting
from star_jax.tasks import TASKS, task_class

SOURCES = (Source.SAMPLED, Source.RATIONALIZED)  # those whose rationales the model wrote itself
# A rationale that mentions the answer it was given reasons from it. Words that the problem itself uses do not count.
_HINT = re.compile(r"\bhint(?:s|ed)?\b|\(correct\)|\b(?:given|marked|provided|stated) (?:answer|as correct)\b", re.I)


@dataclasses.dataclass(frozen=True)
class SampleStats:
    """Statistics of a file of completions: samples.jsonl or rationalizations.jsonl."""

    samples: int
    verdicts: collections.Counter[str]
    wrong_steps: int  # right answers whose steps fail the task's check
    distinct: int  # different texts
    tokens: int
    log_probability: float  # nats, summed over all tokens
    tried: frozenset[ProblemKey]
    solved: frozenset[ProblemKey]  # ids of problems with at least one right sample
    solutions: int  # different right solutions of a problem, by their steps where the task can tell; all problems

    @property
    def draws(self) -> int:
        """Samples per problem; 0 without samples."""
        return self.samples // len(self.tried) if self.tried else 0

    @property
    def exploration(self) -> float:
        """pass@k - pass@1 for the k samples of each problem: what several tries solve and one does not."""
        return len(self.solved) / len(self.tried) - self.share(Verdict.RIGHT) if self.tried else 0.0

    @property
    def solutions_per_problem(self) -> float | None:
        """Different right solutions of a solved problem, in the mean; None without one."""
        return self.solutions / len(self.solved) if self.solved else None

    def share(self, verdict: Verdict) -> float:
        """Share of all samples with this verdict."""
        return self.verdicts[verdict] / self.samples if self.samples else 0.0

    @property
    def nll_per_token(self) -> float | None:
        """Mean of -log p over the sampled tokens, nats: an estimate of the model's entropy per token."""
        return -self.log_probability / self.tokens if self.tokens and math.isfinite(self.log_probability) else None


@dataclasses.dataclass(frozen=True)
class KeptStats:
    """Statistics of the examples that an iteration kept of its own samples, by source."""

    examples: collections.Counter[str]
    problems: dict[str, frozenset[ProblemKey]]
    leaks: collections.Counter[str]  # examples that mention a hint; see `mentions_hint`


@dataclasses.dataclass(frozen=True)
class Health:
    """Health of sampling in one iteration. None: the stage has not written its file yet."""

    iteration: int
    sampled: SampleStats
    rationalized: SampleStats | None
    kept: KeptStats | None
    tried_so_far: int  # train problems sampled without the hint in this iteration or an earlier one
    solved_so_far: int  # those solved at least once without the hint

    @property
    def never_solved(self) -> int:
        """Train problems tried and not solved yet without the hint."""
        return self.tried_so_far - self.solved_so_far

    def used(self, source: Source) -> float | None:
        """Share of the iteration's problems with a kept example of this source (the paper's "train data used")."""
        return len(self.kept.problems.get(source, ())) / len(self.sampled.tried) if self.kept else None

    @property
    def used_together(self) -> float | None:
        """Share of the iteration's problems with a kept example of any source."""
        return len(frozenset().union(*self.kept.problems.values())) / len(self.sampled.tried) if self.kept else None

    def leaking(self, source: Source) -> float | None:
        """Share of the kept examples of this source that mention a hint; None if there are none."""
        if not self.kept or not self.kept.examples[source]:
            return None
        return self.kept.leaks[source] / self.kept.examples[source]


def sample_stats(iteration: Iteration, name: str, task: str = "") -> SampleStats | None:
    """Statistics of "samples" or "rationalizations"; None if the file is absent. Raises InputError.

    `task`: name of the task whose `step_list` tells solutions apart; by default equal texts are one.
    """
    path = iteration.directory / f"{name}.jsonl"
    return _sample_stats(path, task, file_stamp(path)) if is_present(path) else None


def kept_stats(iteration: Iteration) -> KeptStats | None:
    """Statistics of the iteration's kept.jsonl; None if it is absent. Raises InputError."""
    path = iteration.directory / "kept.jsonl"
    return _kept_stats(path, iteration.number, file_stamp(path)) if is_present(path) else None


def health_series(run: RunData) -> list[Health]:
    """One entry for each iteration with samples. Raises InputError for a broken file."""
    series: list[Health] = []
    task = setting(run.config, "task.name")
    tried: set[ProblemKey] = set()
    solved: set[ProblemKey] = set()
    for iteration in run.iterations:
        sampled = sample_stats(iteration, "samples", task if task in TASKS else "")
        if sampled is None or not sampled.samples:
            continue
        tried |= sampled.tried
        solved |= sampled.solved
        rationalized, kept = sample_stats(iteration, "rationalizations"), kept_stats(iteration)
        series.append(Health(iteration.number, sampled, rationalized, kept, len(tried), len(solved)))
    return series


def mentions_hint(completion: str, prompt: str) -> bool:
    """True if a rationale mentions the given answer in words that its problem does not use."""
    problem_words = {match.lower() for match in _HINT.findall(prompt)}
    return any(match.lower() not in problem_words for match in _HINT.findall(completion))


@functools.lru_cache(maxsize=4096)
def _sample_stats(path: Path, task: str, _: FileStamp) -> SampleStats:
    verdicts: collections.Counter[str] = collections.Counter()
    texts: set[str] = set()
    tried: set[ProblemKey] = set()
    solved: set[ProblemKey] = set()
    solutions: set[tuple[Any, ...]] = set()
    wrong_steps = tokens = 0
    log_probability = 0.0
    for record in read_records(Completion, path):
        right = record.verdict == Verdict.RIGHT
        verdicts[record.verdict] += 1
        wrong_steps += right and record.consistent is False
        texts.add(record.text)
        tokens += record.tokens
        log_probability += record.log_probability
        tried.add(record.problem_key)
        if right:
            solved.add(record.problem_key)
            steps = task_class(task).step_list(record.text) if task else None
            solutions.add((record.problem_key, record.text if steps is None else steps))
    return SampleStats(
        samples=verdicts.total(),
        verdicts=verdicts,
        wrong_steps=wrong_steps,
        distinct=len(texts),
        tokens=tokens,
        log_probability=log_probability,
        tried=frozenset(tried),
        solved=frozenset(solved),
        solutions=len(solutions),
    )


@functools.lru_cache(maxsize=4096)
def _kept_stats(path: Path, iteration: int, _: FileStamp) -> KeptStats:
    examples: collections.Counter[str] = collections.Counter()
    leaks: collections.Counter[str] = collections.Counter()
    problems: dict[str, set[ProblemKey]] = collections.defaultdict(set)
    for example in read_records(Example, path):
        if example.iteration == iteration:  # with star.keep_previous the file holds earlier examples too
            examples[example.source] += 1
            leaks[example.source] += mentions_hint(example.completion, example.prompt)
            problems[example.source].add(example.problem_key)
    return KeptStats(examples, {source: frozenset(ids) for source, ids in problems.items()}, leaks)
