"""What a STaR task is: its problems, how one is put to the model, and how an answer is read and graded.

To add a task, subclass `Task` in a file of your own; README.md in this folder has an example.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

from star_jax.errors import InputError
from star_jax.records import Example, Problem, Source

MAX_TOKENS = 2**24  # of a task's budget for one completion


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
      stop: strings that end a completion; end ids always do. A stop string is not part of the completion. No reference
        may contain one. They do not apply with prompt.format="chat", where an answer may have several paragraphs.
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

    def own_problem(self, values: dict[str, Any], name: str) -> Problem | None:
        """The problem, named `name`, of an object in the format of the task's own files; None if it is in another one.

        For star_jax.sample, which reads any other object as the task "jsonl" does. The answer is "" if there is none.
        Raises ValueError for a bad object.
        """
        return None

    def split_turns(self, text: str) -> tuple[str, str]:
        """(problem, completion) of a text: what `render` returns, or a shot, which also has a completion.

        They are the turns of user and assistant with prompt.format="chat". Here a line that begins with "A:" divides
        them, and neither has that mark; override it where `render` ends in another way.
        """
        if text.endswith("\nA:"):
            return text.removesuffix("\nA:"), ""
        problem, _, completion = text.partition("\nA:")
        return problem, completion

    def hinted_shot(self, shot: str) -> str | None:
        """A shot of the plain prompt file with its answer as a hint; None: hinted shots are in a file of their own."""
        return None

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

    def transcripts(self, gold: Sequence[float], count: int, seed: int) -> list[Example]:
        """`count` texts, made with `transcript`, on which one of `base.stages` pretrains a tiny base model.

        They are all that this model knows before STaR begins: the form of a completion, what to do with a hint, perhaps
        the easiest problems. The model sees each after the run's shots. The same arguments must give the same texts,
        and no text may show a problem of dev or test.

        Args:
          gold: the stage's option `gold`: shares of the kinds of texts that the task has; it defines them.
          seed: another one for each stage and each seed of the run.

        A task without this method needs a model in base.path. Raises InputError for shares of kinds that it lacks.
        """
        raise NotImplementedError

    def grade(self, problem: Problem, answer: str) -> bool:
        """Whether an answer that `parse` returned is right."""
        return answer == problem.answer

    def canonical(self, problem: Problem, answer: str) -> str:
        """Equal text for answers that mean the same, used to count majority votes."""
        return str(answer)

    def lenient(self) -> "Task | None":
        """The same task with a reader that also accepts answers in other forms; None if there is no other reader.

        Evaluations show the accuracy by that reader beside the task's own.
        """
        return None

    def available(self, problem: Problem, iteration: int) -> bool:
        """Whether a train problem may be sampled in iteration 1, 2, ...; lets a task introduce problems later."""
        return True

    def consistent(self, problem: Problem, text: str) -> bool | None:
        """Whether the steps of a completion are correct by machine check; None if the task cannot tell."""
        return None

    @classmethod
    def step_list(cls, rationale: str) -> tuple[str, ...] | None:
        """The steps of a rationale in their order, without differences of notation; None if the task cannot tell them.

        Rationales of a problem with equal lists count as one for selection.dedup="steps".
        """
        return None

    @classmethod
    def steps(cls, rationale: str) -> int | None:
        """Number of steps of a rationale; None if the task cannot count them. For the report's Figure 6."""
        steps = cls.step_list(rationale)
        return None if steps is None else len(steps)

    @classmethod
    def reference_steps(cls, problem: Problem) -> int | None:
        """Number of steps of a problem's reference rationale; None if it has none, or they cannot be counted."""
        return None if problem.rationale is None else cls.steps(problem.rationale)


def transcript(
    task: Task, problem: Problem, completion: str, hint: bool = False, unweighted: tuple[tuple[int, int], ...] = ()
) -> Example:
    """A pretraining text: the problem as the task renders it, with `hint` its answer too, and a completion.

    `unweighted`: spans [start, end) of the completion, in characters, that carry no loss.
    """
    return Example(
        problem_id=problem.id,
        prompt=task.render(problem, hint),
        completion=completion,
        iteration=0,
        source=Source.PRETRAINING,
        hint_kept=hint,
        unweighted=unweighted,
    )


def check_split(split: str, known: Sequence[str]) -> None:
    """Raises InputError unless `split` is one of `known`."""
    if split not in known:
        raise InputError(f"unknown split {split!r}; this task has {', '.join(known)}")
