"""What a STaR task is: its problems, how one is put to the model, and how an answer is read and graded.

To add a task, subclass `Task` and add the class to `star_jax.tasks.TASKS`. README.md in this folder has an example.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from star_jax.errors import InputError
from star_jax.records import Problem


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """Base class of all tasks. A subclass is a frozen dataclass, and its fields are the options `config.task.*`.

    A field without a default is an option that the user must give. `__post_init__` checks values that depend on each
    other and raises InputError; types are checked by `tasks.make`. A task must not import JAX.

    A subclass must define `max_new_tokens`, `problems`, `render` and `parse`, and should define `reference`. The other
    methods have defaults.

    Attributes:
      direct: train on answers without rationales (the paper's "direct" baselines). Set by `star.direct`. `parse` then
        reads a bare answer and `reference` returns one; ignore it if the task is never run with star.direct=True.
      stop: strings that end a completion; end-of-text always does. A stop string is not part of the completion. No
        reference may contain one.
      symbols: all words of a formal task, "\\n" included, for tokenizer="symbols"; () otherwise.
    """

    direct: bool = False

    stop: ClassVar[tuple[str, ...]] = ()
    symbols: ClassVar[tuple[str, ...]] = ()

    @property
    @abc.abstractmethod
    def max_new_tokens(self) -> int:
        """Token budget of one completion, its stop included. `sampling.max_new_tokens` overrides it."""

    @abc.abstractmethod
    def problems(self, split: str) -> list[Problem]:
        """The problems of the split "train", "dev" or "test".

        The order and the ids must be the same in every process and every run: the random keys of samples, and the
        files of a run, refer to problems by id. Ids are unique within a split, and no two splits share a problem.
        `Problem.answer` is in the form that `parse` returns. `Problem.category` is optional; reports break accuracy
        down by it.

        Raises InputError for a split that the task does not have (see `check_split`) and for bad data.
        """

    @abc.abstractmethod
    def render(self, problem: Problem, hint: bool = False) -> str:
        """The text after which the model writes its completion; with `hint`, the text also states the answer.

        Hints are for rationalization (paper, section 3.2): state the answer, never the solution. A few-shot file holds
        examples as `render(...)` + completion, so the text must not contain a blank line. It should not end with a
        space: with byte-level BPE the completion's first token includes the space before its first word.
        """

    @abc.abstractmethod
    def parse(self, text: str) -> str | None:
        """The answer that a completion gives, in canonical form; None if it gives none, or several.

        `text` is whatever a model wrote before a stop. Must not raise, and must take time linear in the length.
        """

    def reference(self, problem: Problem) -> str | None:
        """A right completion, or None if the data has none.

        If there is one, `parse` must return an answer that `grade` accepts. star.direct=True trains on references.
        """
        return None

    def grade(self, problem: Problem, answer: str) -> bool:
        """Whether an answer that `parse` returned is right."""
        return answer == problem.answer

    def canonical(self, problem: Problem, answer: str) -> str:
        """Equal text for answers that mean the same, used to count majority votes."""
        return str(answer)

    def available(self, problem: Problem, iteration: int) -> bool:
        """Whether a train problem may be sampled in iteration 1, 2, ...; lets a task introduce problems later."""
        return True

    def consistent(self, problem: Problem, text: str) -> bool | None:
        """Whether the steps of a completion are correct by machine check; None if the task cannot tell."""
        return None

    @classmethod
    def steps(cls, rationale: str) -> int | None:
        """Number of steps of a rationale; None if the task cannot count them. For the report's Figure 6."""
        return None

    @classmethod
    def reference_steps(cls, problem: Problem) -> int | None:
        """Number of steps of a problem's reference rationale; None if it has none, or they cannot be counted."""
        return None if problem.rationale is None else cls.steps(problem.rationale)


def check_split(split: str, known: Sequence[str]) -> None:
    """Raises InputError unless `split` is one of `known`."""
    if split not in known:
        raise InputError(f"unknown split {split!r}; this task has {', '.join(known)}")
