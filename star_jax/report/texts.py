"""Texts of a run made safe to show, and a few of the examples it was trained on."""

import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from markupsafe import Markup

from star_jax.records import Example, Problem
from star_jax.report.load import Iteration, Run, kept_examples, stamp, train_classes

LONGEST_TEXT = 4_000  # characters of one text; a model that never stops can draw far more
EXAMPLES_SHOWN = 12  # of those an iteration was trained on
PROMPT_TAIL = 600  # characters of an example's prompt; what stands before are few-shot examples

Item = TypeVar("Item")


@dataclasses.dataclass(frozen=True)
class Pick:
    """A training example to show; `label` is its class, None where the run does not tell."""

    example: Example
    label: str | None
    prompt: str
    completion: str


def visible(text: str) -> str:
    """The text with what cannot be seen made visible: control characters, direction marks, lone surrogates.

    Such characters can hide a text, reorder it, or make the page unreadable as UTF-8. Tabs and newlines stay.
    """
    return text.translate(_INVISIBLE)


def clipped(text: str) -> str:
    """At most LONGEST_TEXT characters of a text, and how many it had."""
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT]} … [cut for this page; {len(text):,} characters in all]"


def shown(text: str) -> str:
    """As it can stand in the page: visible, and not too long."""
    return visible(clipped(text))


def asked(problem: Problem) -> str:
    """The question with its choices, a line each."""
    choices = problem.choices if isinstance(problem.choices, tuple) else ()
    return "\n".join([problem.question, *(f"({chr(97 + i)}) {choice}" for i, choice in enumerate(choices))])


def script_json(value: Any) -> Markup:
    """JSON that can stand in a script element: `<`, `>` and `&` occur in it as escapes only."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.translate({ord(char): f"\\u{ord(char):04x}" for char in "<>&"}))


def in_turn(items: Sequence[Item], group: Callable[[Item], Any]) -> list[Item]:
    """The items, one of each group in turn, each group in its own order."""
    groups: dict[Any, int] = {}
    turns = []
    for index, item in enumerate(items):
        name = group(item)
        groups[name] = groups.get(name, 0) + 1
        turns.append((groups[name], index))
    return [items[index] for _, index in sorted(turns)]


def kept_picks(run: Run) -> list[tuple[int, int, list[Pick]]]:
    """(iteration, examples it was trained on, some of them) for each iteration that kept any.

    The pick is random with a fixed seed, and takes classes and sources in turn.
    """
    picks = [(iteration.number, *_picked(run, iteration)) for iteration in run.iterations]
    return [(number, total, chosen) for number, total, chosen in picks if total]


_PICKED: dict[Any, tuple[int, list[Pick]]] = {}  # by the state of the files: see load.stamp


def _picked(run: Run, iteration: Iteration) -> tuple[int, list[Pick]]:
    """How many examples an iteration kept, and some of them."""
    files = (iteration.directory / "kept.jsonl", run.directory / "problems_train.jsonl")
    state = tuple((path, stamp(path)) for path in files if path.is_file())
    if state not in _PICKED:
        class_of, examples = train_classes(run), kept_examples(iteration)
        total = len(examples)
        random.Random(f"kept {iteration.number}").shuffle(examples)
        chosen = in_turn(examples, lambda example: (class_of.get(example.problem_id), example.source))
        _PICKED[state] = total, [_pick(example, class_of) for example in chosen[:EXAMPLES_SHOWN]]
    return _PICKED[state]


def _pick(example: Example, class_of: dict[str, str]) -> Pick:
    prompt = example.prompt if len(example.prompt) <= PROMPT_TAIL else f"… {example.prompt[-PROMPT_TAIL:]}"
    return Pick(example, class_of.get(example.problem_id), prompt, clipped(example.completion))


def _names_of(codes: Iterable[int]) -> dict[int, str]:
    return {code: f"⟨U+{code:04X}⟩" for code in codes}


_INVISIBLE = {
    # Unicode has a picture of each of the first 32 control characters, U+2400 NUL and so on.
    **{code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"},
    **_names_of(range(0x7F, 0xA0)),
    **_names_of((0x061C, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A), 0xFEFF)),
    **_names_of((*range(0xD800, 0xE000), 0xFFFE, 0xFFFF)),
    **_names_of(range(0xE0000, 0xE0080)),  # "tags", an invisible copy of ASCII
}
