"""What the long files of an iteration come to: one pass over each, remembered by the file's stamp."""

import collections
import dataclasses
import functools
import math
import re
from pathlib import Path

from star_jax.records import Completion, Example
from star_jax.report.load import Iteration, records_of, stamp

# A rationale that speaks of the answer it was given reasons from it. Words that a problem itself uses prove nothing.
_HINT = re.compile(r"\bhint(?:s|ed)?\b|\(correct\)|\b(?:given|marked|provided|stated) (?:answer|as correct)\b", re.I)


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A file of completions."""

    draws: int
    verdicts: collections.Counter[str]
    wrong_steps: int  # right answers whose steps fail the task's check
    distinct: int  # texts
    tokens: int
    log_probability: float  # nats, summed over all tokens
    tried: frozenset[str]  # ids of problems
    solved: frozenset[str]  # of those with at least one right draw

    def share(self, verdict: str) -> float:
        """Of all draws."""
        return self.verdicts[verdict] / self.draws if self.draws else 0.0

    @property
    def nats(self) -> float | None:
        """Mean of -log p over the drawn tokens: an estimate of the model's entropy a token where it is sampled."""
        return -self.log_probability / self.tokens if self.tokens and math.isfinite(self.log_probability) else None


@dataclasses.dataclass(frozen=True)
class Kept:
    """What an iteration kept of its own draws, by source ("sampled", "rationalized", "reference")."""

    examples: collections.Counter[str]
    problems: dict[str, frozenset[str]]  # source -> ids
    leaks: collections.Counter[str]  # examples that speak of a hint; see `speaks_of_hint`


def drawn(iteration: Iteration, name: str) -> Drawn | None:
    """The completions of a file of the iteration, e.g. "samples"; None where it is not there. Raises InputError."""
    path = iteration.directory / f"{name}.jsonl"
    return _drawn(path, stamp(path)) if path.is_file() else None


def kept(iteration: Iteration) -> Kept | None:
    """The iteration's kept.jsonl; None where it is not there. Raises InputError."""
    path = iteration.directory / "kept.jsonl"
    return _kept(path, iteration.number, stamp(path)) if path.is_file() else None


def speaks_of_hint(completion: str, prompt: str) -> bool:
    """Whether a rationale gives away that it was told the answer, in a word that its problem does not use."""
    known = {found.lower() for found in _HINT.findall(prompt)}
    return any(found.lower() not in known for found in _HINT.findall(completion))


@functools.lru_cache(maxsize=4096)
def _drawn(path: Path, _: tuple[int, int]) -> Drawn:
    verdicts: collections.Counter[str] = collections.Counter()
    texts: set[str] = set()
    tried: set[str] = set()
    solved: set[str] = set()
    wrong_steps = tokens = 0
    log_probability = 0.0
    for record in records_of(Completion, path):
        right = record.verdict == "right"
        verdicts[record.verdict] += 1
        wrong_steps += right and record.consistent is False
        texts.add(record.text)
        tokens += record.tokens
        log_probability += record.log_probability
        tried.add(record.problem_id)
        if right:
            solved.add(record.problem_id)
    total = verdicts.total()
    return Drawn(total, verdicts, wrong_steps, len(texts), tokens, log_probability, frozenset(tried), frozenset(solved))


@functools.lru_cache(maxsize=4096)
def _kept(path: Path, iteration: int, _: tuple[int, int]) -> Kept:
    examples: collections.Counter[str] = collections.Counter()
    leaks: collections.Counter[str] = collections.Counter()
    problems: dict[str, set[str]] = collections.defaultdict(set)
    for example in records_of(Example, path):
        if example.iteration == iteration:  # with star.keep_previous the file holds earlier ones too
            examples[example.source] += 1
            leaks[example.source] += speaks_of_hint(example.completion, example.prompt)
            problems[example.source].add(example.problem_id)
    return Kept(examples, {source: frozenset(ids) for source, ids in problems.items()}, leaks)
