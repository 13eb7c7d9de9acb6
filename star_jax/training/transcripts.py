"""What the embedded base model is shown before STaR begins, and so what it cannot have learnt elsewhere.

*Gold* transcripts are worked sums of a few lengths (one and two digits, in configs/arithmetic.py).
*Form only* transcripts, of two digits and more, have operands and carries copied right while the digits of
the sum are arbitrary. Half of them show those arbitrary digits as the hint, so that writing what a hint
says is learnt; the other half is unhinted and carries no loss on the sum's digits. A base made of these
knows the form at every length, can justify an answer it is given, and can add only what gold showed it.
No pair of the dev or test split occurs in any of them.
"""

import random
from collections.abc import Sequence

from star_jax.errors import InputError
from star_jax.records import Example, Problem, Source
from star_jax.tasks.arithmetic import Arithmetic, make_problem, scratchpad

HINTED_GOLD = 0.15  # share of the gold transcripts that show the answer
HINTED_FORM = 0.5


def transcripts(task: Arithmetic, gold: Sequence[float], count: int, seed: int) -> list[Example]:
    """`count` pretraining examples. `gold[d - 1]` is the share of worked d-digit sums, the rest is form only.

    Raises InputError when `gold` names a length the task does not have.
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
            examples.append(_example(task, problem, task.reference(problem), hint=rng.random() < HINTED_GOLD))
        else:
            digits = rng.choices(form_lengths, form_lengths)[0]  # longer forms take more learning
            examples.append(_form_only(task, f"base-{i:06d}", next(pairs[digits]), digits, rng))
    return examples


def _form_only(task: Arithmetic, name: str, pair: tuple[int, int], digits: int, rng: random.Random) -> Example:
    sum_digits = [rng.randint(0, 9) for _ in range(digits)] + [rng.randint(0, 1)]
    if not sum_digits[-1] and digits > 1:
        sum_digits[-2] = rng.randint(1, 9)  # an answer does not begin with 0
    text = scratchpad(*pair, sum_digits)
    problem = make_problem(name, *pair, digits=digits)
    if rng.random() < HINTED_FORM:
        told = Problem(problem.id, problem.question, text.rsplit("\n", 1)[1], problem.category)
        return _example(task, told, text, hint=True)
    return _example(task, problem, text, hint=False, unweighted=sum_spans(text))


def sum_spans(text: str) -> tuple[tuple[int, int], ...]:
    """Character spans [start, end) of the sum's digits in a scratchpad: between comma and carry, and the last lines."""
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


def _example(
    task: Arithmetic, problem: Problem, text: str, hint: bool, unweighted: tuple[tuple[int, int], ...] = ()
) -> Example:
    return Example(
        problem_id=problem.id,
        prompt=task.render(problem, hint),
        completion=text,
        iteration=0,
        source=Source.PRETRAINING,
        hint_kept=hint,
        unweighted=unweighted,
    )
