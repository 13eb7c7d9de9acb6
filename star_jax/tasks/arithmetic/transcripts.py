"""Training texts of the demo's base model (training/pretrain.py): all it knows before STaR begins.

*Gold* transcripts are correct scratchpads of a few lengths (one and two digits in configs/arithmetic.py).
*Form-only* transcripts, of two and more digits, have correct operands and carries, but random digits of the sum. In
half of them the hint states these random digits, which teaches the model to write what a hint states; the other half
has no hint, and no loss on the digits of the sum. A base trained on these knows the format at every length and can
justify a given answer, but can add only the lengths of the gold transcripts. No pair of dev or test occurs in them.
"""

import random
from collections.abc import Sequence

from star_jax.errors import InputError
from star_jax.records import Example, Problem
from star_jax.tasks.arithmetic import Arithmetic, make_problem, scratchpad
from star_jax.tasks.base import transcript

HINTED_GOLD = 0.15  # share of the gold transcripts with a hint
HINTED_FORM = 0.5  # share of the form-only transcripts with a hint


def transcripts(task: Arithmetic, gold: Sequence[float], count: int, seed: int) -> list[Example]:
    """`count` pretraining examples, a function of `task`, `gold` and `seed`.

    Args:
      gold: `gold[d - 1]` is the share of correct scratchpads of d digits; the rest is form only.

    Raises InputError if `gold` has shares for lengths that the task does not have.
    """
    if len(gold) > task.max_digits or any(gold[: task.min_digits - 1]):
        raise InputError(
            f"base.stages: gold has shares for {len(gold)} lengths, the task has {task.min_digits} to {task.max_digits}"
        )
    rng = random.Random(f"base {seed}")
    lengths = range(task.min_digits, task.max_digits + 1)
    pairs = {digits: task.sample_pairs(digits, rng) for digits in lengths}
    form_lengths = [digits for digits in lengths if digits > 1] or [1]
    weights = [*gold, max(0.0, 1.0 - sum(gold))]
    examples = []
    for i in range(count):
        kind = rng.choices(range(len(weights)), weights)[0]
        if kind < len(gold):
            problem = make_problem(f"base-{i:06d}", *next(pairs[kind + 1]), digits=kind + 1)
            examples.append(transcript(task, problem, task.reference(problem), hint=rng.random() < HINTED_GOLD))
        else:
            digits = rng.choices(form_lengths, form_lengths)[0]  # more of the longer forms, which are harder to learn
            examples.append(_form_only(task, f"base-{i:06d}", next(pairs[digits]), digits, rng))
    return examples


def _form_only(task: Arithmetic, name: str, pair: tuple[int, int], digits: int, rng: random.Random) -> Example:
    sum_digits = [rng.randint(0, 9) for _ in range(digits)] + [rng.randint(0, 1)]
    if not sum_digits[-1] and digits > 1:
        sum_digits[-2] = rng.randint(1, 9)  # an answer has no leading zero
    text = scratchpad(*pair, sum_digits)
    problem = make_problem(name, *pair, digits=digits)
    if rng.random() < HINTED_FORM:
        hinted = Problem(problem.id, problem.question, text.rsplit("\n", 1)[1], problem.category)
        return transcript(task, hinted, text, hint=True)
    return transcript(task, problem, text, unweighted=sum_spans(text))


def sum_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Spans [start, end), in characters, of the sum's digits: between comma and carry, and in the last lines."""
    spans, start = [], 0
    for line in text.split("\n"):
        if "C:" in line:
            first, last = line.index(",") + 1, line.index("C:")
        else:
            first, last = 0, 0 if "scratch>" in line else len(line)
        if line[first:last].strip():
            spans.append((start + first, start + last))
        start += len(line) + 1
    return tuple(spans)
