"""Training texts of the demo's base model (training/pretrain.py): all it knows before STaR begins.

*Gold* transcripts are correct scratchpads of a few lengths (one and two digits in configs/arithmetic.py).
*Form-only* transcripts have correct operands and carries, and never the sum. Those with a hint, of two and more digits,
have random digits in its place, which the hint states: they teach the model to write what a hint states. Those without
a hint are of lengths that gold lacks. Each place has the larger of its two digits plus the carry into it there, so the
model looks up all three at every place of every length; what it makes of them is wrong. What was not looked up there,
fine-tuning on right sums often failed to teach (tests/benchmarks/LOG.md).

A base trained on these knows the format at every length and can justify a given answer, but can add only the lengths
of the gold transcripts. No pair of dev or test occurs in them.
"""

import dataclasses
import random
from collections.abc import Iterator, Sequence

from star_jax.errors import InputError
from star_jax.records import Example
from star_jax.tasks.arithmetic import Arithmetic, Pair, make_problem, scratchpad
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
    hinted_forms = [digits for digits in lengths if digits > 1] or [1]
    plain_forms = [digits for digits in hinted_forms if digits > len(gold)]
    weights = [*gold, max(0.0, 1.0 - sum(gold))]
    examples = []
    for i in range(count):
        kind, name = rng.choices(range(len(weights)), weights)[0], f"base-{i:06d}"
        if kind < len(gold):
            problem = make_problem(name, *next(pairs[kind + 1]), digits=kind + 1)
            examples.append(transcript(task, problem, task.reference(problem), hint=rng.random() < HINTED_GOLD))
            continue
        hint = rng.random() < HINTED_FORM or not plain_forms
        forms = hinted_forms if hint else plain_forms
        digits = rng.choices(forms, forms)[0]  # more of the longer forms, which are harder to learn
        examples.append(_form_only(task, name, pairs[digits], digits, hint, rng))
    return examples


def _form_only(
    task: Arithmetic, name: str, pairs: Iterator[Pair], digits: int, hint: bool, rng: random.Random
) -> Example:
    """A scratchpad with wrong digits in place of the sum's."""
    while True:
        pair = next(pairs)
        wrong = _random_digits(digits, rng) if hint else _wrong_digits(pair)
        if sum(digit * 10**place for place, digit in enumerate(wrong)) != sum(pair):
            break
    text = scratchpad(*pair, wrong)
    problem = make_problem(name, *pair, digits=digits)
    return transcript(task, dataclasses.replace(problem, answer=text.rsplit("\n", 1)[1]), text, hint=hint)


def _random_digits(digits: int, rng: random.Random) -> list[int]:
    """Digits of a wrong sum, the units first, and its last carry."""
    wrong = [rng.randint(0, 9) for _ in range(digits)] + [rng.randint(0, 1)]
    if not wrong[-1] and digits > 1:
        wrong[-2] = rng.randint(1, 9)  # an answer has no leading zero
    return wrong


def _wrong_digits(pair: Pair) -> list[int]:
    """The larger digit at each place plus the carry into it, modulo 10, the units first, and the sum's last carry."""
    first, second = (str(number)[::-1] for number in pair)
    digits, carry = [], 0
    for a, b in zip(map(int, first), map(int, second), strict=True):
        digits.append((max(a, b) + carry) % 10)
        carry = (a + b + carry) // 10
    return [*digits, carry]
