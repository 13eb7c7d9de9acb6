"""Examples that each iteration was trained on: a few for the page, balanced over categories and sources."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from star_jax.json_reader import is_present
from star_jax.records import Example, ProblemKey
from star_jax.report.formatting import clipped
from star_jax.report.run_data import Iteration, RunData, file_stamp, kept_examples, problem_files, train_problems

EXAMPLES_SHOWN = 12  # for each iteration
PROMPT_TAIL = 600  # characters at the end of a prompt; the few-shot examples come before them

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class ShownExample:
    """A training example of the page."""

    example: Example
    category: str | None  # None: not on record
    prompt: str
    completion: str


def training_examples(run: RunData) -> list[tuple[int, int, list[ShownExample]]]:
    """(iteration, number of its training examples, a few of them) for each iteration that kept any.

    The choice is random with a fixed seed and alternates between categories and sources.
    """
    entries = [(iteration.number, *_choose(run, iteration)) for iteration in run.iterations]
    return [(number, total, examples) for number, total, examples in entries if total]


def interleave(items: Sequence[Item], group: Callable[[Item], Any]) -> list[Item]:
    """The items ordered round-robin over their groups; the order within a group stays."""
    group_sizes: dict[Any, int] = {}
    rounds = []
    for index, item in enumerate(items):
        key = group(item)
        group_sizes[key] = group_sizes.get(key, 0) + 1
        rounds.append((group_sizes[key], index))
    return [items[index] for _, index in sorted(rounds)]


_CHOSEN: dict[Any, tuple[int, list[ShownExample]]] = {}  # by the stamps of the files: see run_data.file_stamp


def _choose(run: RunData, iteration: Iteration) -> tuple[int, list[ShownExample]]:
    """(number of kept examples, a few of them)."""
    paths = (iteration.directory / "kept.jsonl", *problem_files(run, "train"))
    key = tuple((path, file_stamp(path)) for path in paths if is_present(path))
    if key not in _CHOSEN:
        categories = {key: problem.category for key, problem in train_problems(run).items()}
        examples = kept_examples(iteration)
        total = len(examples)
        random.Random(f"kept {iteration.number}").shuffle(examples)
        balanced = interleave(examples, lambda example: (categories.get(example.problem_key), example.source))
        _CHOSEN[key] = total, [_shown(example, categories) for example in balanced[:EXAMPLES_SHOWN]]
    return _CHOSEN[key]


def _shown(example: Example, categories: dict[ProblemKey, str]) -> ShownExample:
    prompt = example.prompt if len(example.prompt) <= PROMPT_TAIL else f"… {example.prompt[-PROMPT_TAIL:]}"
    return ShownExample(example, categories.get(example.problem_key), prompt, clipped(example.completion))
