"""What a STaR task is: problems, how one is put to the model, and how an answer is read and judged."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from star_jax.errors import InputError
from star_jax.records import Problem


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """Base class of all tasks. A subclass is a frozen dataclass whose fields are its options.

    `stop`: strings that end a completion (end-of-text always does). `max_new_tokens`: the token budget of
    one completion. `symbols`: the closed set of words of a formal task, for tokenizer='symbols'.
    `direct`: answers only, no rationale, in prompts, in parsing and in the reference.
    """

    direct: bool = False

    stop: ClassVar[tuple[str, ...]] = ()
    symbols: ClassVar[tuple[str, ...]] = ()

    @property
    @abc.abstractmethod
    def max_new_tokens(self) -> int:
        """Token budget of one completion, the stop included."""

    @abc.abstractmethod
    def problems(self, split: str) -> list[Problem]:
        """The problems of "train", "dev" or "test", in a fixed order. Raises InputError for another split."""

    @abc.abstractmethod
    def render(self, problem: Problem, hint: bool = False) -> str:
        """The text put to the model; with `hint` it holds the right answer (paper, section 3.2)."""

    @abc.abstractmethod
    def parse(self, text: str) -> str | None:
        """The answer a completion reaches, in canonical form, or None when it holds none."""

    @abc.abstractmethod
    def reference(self, problem: Problem) -> str | None:
        """A right completion, or None where only the answer is known."""

    def grade(self, problem: Problem, answer: str) -> bool:
        """Whether a parsed answer is right."""
        return answer == problem.answer

    def canonical(self, problem: Problem, answer: str) -> str:
        """The form in which equal answers are the same text, for votes."""
        return str(answer)

    def available(self, problem: Problem, iteration: int) -> bool:
        """Whether a train problem may be drawn in iteration 1, 2, ...; a task may keep some for later."""
        return True

    def consistent(self, problem: Problem, text: str) -> bool | None:
        """Whether the steps of a completion check out by machine; None where they cannot be checked."""
        return None

    @classmethod
    def steps(cls, rationale: str) -> int | None:
        """How many steps a rationale takes; None where the task cannot count them."""
        return None

    @classmethod
    def reference_steps(cls, problem: Problem) -> int | None:
        """The steps of a problem's reference rationale; None where it has none, or they cannot be counted."""
        return None if problem.rationale is None else cls.steps(problem.rationale)


def check_split(split: str, known: Sequence[str]) -> None:
    """Raises InputError unless `split` is one of `known`."""
    if split not in known:
        raise InputError(f"unknown split {split!r}; this task has {', '.join(known)}")
