"""Multi-digit addition with a scratchpad (paper, section 4.1). One problem and its reference completion:

    Input:
    3 4 + 5 6
    Target:
                                    <- the completion begins here; with a hint, the line above is "Target: 9 0"
    <scratch>
    3 4 + 5 6 , C: 0
    3 + 5 , 0 C: 1
    , 9 0 C: 0
    0 9 0
    </scratch>
    9 0

A line of the scratchpad has the digits that are still to add, the digits of the sum so far, and the carry.
"""

import dataclasses
import functools
import random
import re
from collections.abc import Iterator, Sequence
from typing import ClassVar

from star_jax.errors import InputError
from star_jax.records import Example, Problem
from star_jax.tasks.base import Task, check_split

MAX_DIGITS = 100  # a scratchpad grows with the square of it; the paper has 10
Pair = tuple[int, int]
_LINES = re.compile(r"<scratch>\n(?:[^\n]*\n)*</scratch>\n([0-9](?: [0-9])*)\n?")
_BARE = re.compile(r"([0-9](?: [0-9])*)\n?")


@dataclasses.dataclass(frozen=True)
class Arithmetic(Task):
    """Sums of two numbers with the same number of digits, which is the category.

    Train problems are sampled with replacement from all pairs that are not in dev or test, so the hundred one-digit
    sums repeat. No two splits share a pair.
    """

    min_digits: int = 1
    max_digits: int = 5  # longest sums of the train split
    later_digits: int = 0  # set by replication.later_digits
    later_from: int = 20  # set by replication.later_from
    eval_digits: int = 0  # longest sums of dev and test (paper, Figure 5: 10); 0: as in train
    train_per_length: int = 10_000  # train problems per number of digits (the paper generates 50,000 in all)
    held_out_per_length: int = (
        200  # dev problems per number of digits, and as many for test; at most a tenth of all pairs
    )
    seed: int = 0  # of the problems, not of the run

    stop: ClassVar[tuple[str, ...]] = ("\n\n",)
    symbols: ClassVar[tuple[str, ...]] = (
        *"0123456789", "+", ",", "C:", "Input:", "Target:", "<scratch>", "</scratch>", "\n",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 1 <= self.min_digits <= self.max_digits:
            raise InputError(f"task: needs 1 <= min_digits <= max_digits, got {self.min_digits}, {self.max_digits}")
        if any(0 < digits < self.max_digits for digits in (self.later_digits, self.eval_digits)):
            raise InputError("replication.later_digits and task.eval_digits must be 0 or at least task.max_digits")
        if max(self.max_digits, self.later_digits, self.eval_digits) > MAX_DIGITS:
            raise InputError(f"task: max_digits, later_digits and eval_digits must be at most {MAX_DIGITS}")
        if not all(1 <= number <= 10**7 for number in (self.train_per_length, self.held_out_per_length)):
            raise InputError("task: train_per_length and held_out_per_length must be in 1..10000000")

    @property
    def max_new_tokens(self) -> int:
        # Symbols of the longest sum's reference, end-of-text, and room for the additional tokens of GPT-2's BPE.
        digits = max(self.max_digits, self.later_digits, self.eval_digits)
        if self.direct:
            return 2 * digits + 4
        widest = 10**digits - 1
        words = scratchpad(widest, widest).replace("\n", " \n ").split(" ")
        return len([word for word in words if word]) + 4 * digits + 6

    def problems(self, split: str) -> list[Problem]:
        check_split(split, ("train", "dev", "test"))
        trained = max(self.max_digits, self.later_digits)
        longest = trained if split == "train" else max(trained, self.eval_digits)
        lengths = range(self.min_digits, longest + 1)
        pairs_of = {d: self._train(d) if split == "train" else self.held_out(d)[split] for d in lengths}
        most = max(len(pairs) for pairs in pairs_of.values())
        # Interleaved, so that every slice of a split has sums of all lengths.
        return [
            make_problem(f"{split}-{d}-{i:05d}", *pairs_of[d][i], digits=d)
            for i in range(most)
            for d in lengths
            if i < len(pairs_of[d])
        ]

    def render(self, problem: Problem, hint: bool = False) -> str:
        return f"Input:\n{problem.question}\nTarget:{' ' + problem.answer if hint else ''}\n"

    def split_turns(self, text: str) -> tuple[str, str]:
        question, mark, rest = text.partition("\nTarget:")
        hint, _, completion = rest.partition("\n")
        return question + mark + hint, completion

    def parse(self, text: str) -> str | None:
        match = (_BARE if self.direct else _LINES).fullmatch(text)
        return match.group(1) if match else None

    def reference(self, problem: Problem) -> str:
        if self.direct:
            return problem.answer
        return scratchpad(*operands(problem))

    def available(self, problem: Problem, iteration: int) -> bool:
        """Sums of more than `max_digits` digits are available from iteration `later_from` on."""
        return iteration >= self.later_from or int(problem.category.split()[0]) <= self.max_digits

    def consistent(self, problem: Problem, text: str) -> bool | None:
        return None if self.direct else text.rstrip("\n") == self.reference(problem)

    @classmethod
    def step_list(cls, rationale: str) -> tuple[str, ...] | None:
        """The lines of the scratchpad; None without one."""
        lines = rationale.split("\n")
        if "<scratch>" not in lines or "</scratch>" not in lines:
            return None
        return tuple(lines[lines.index("<scratch>") + 1 : lines.index("</scratch>")])

    @classmethod
    def reference_steps(cls, problem: Problem) -> int | None:
        return cls.steps(scratchpad(*operands(problem)))

    def transcripts(self, gold: Sequence[float], count: int, seed: int) -> list[Example]:
        """`gold[d - 1]` is the share of correct scratchpads of d digits; the rest is form only. See transcripts.py."""
        from star_jax.tasks.arithmetic import transcripts  # which uses this module

        return transcripts.transcripts(self, gold, count, seed)

    def held_out(self, digits: int) -> dict[str, list[Pair]]:
        """{"dev": pairs, "test": pairs} with `digits` digits: distinct, disjoint, each at most a tenth of all pairs."""
        return _held_out(digits, self.held_out_per_length, self.seed)

    def sample_pairs(self, digits: int, rng: random.Random) -> Iterator[Pair]:
        """Samples pairs endlessly, with replacement, from those that are neither in dev nor in test."""
        held_out = {pair for split in self.held_out(digits).values() for pair in split}
        while True:
            pair = random_pair(digits, rng)
            if pair not in held_out:
                yield pair

    def _train(self, digits: int) -> list[Pair]:
        pairs = self.sample_pairs(digits, random.Random(f"train {self.seed} {digits}"))
        return [next(pairs) for _ in range(self.train_per_length)]


def make_problem(name: str, first: int, second: int, digits: int) -> Problem:
    """The problem `first + second`. Its category is the number of digits of the operands."""
    return Problem(
        id=name,
        question=f"{spaced(first)} + {spaced(second)}",
        answer=spaced(first + second),
        category=f"{digits} digit{'s' if digits > 1 else ''}",
    )


def operands(problem: Problem) -> Pair:
    """The two numbers of a problem's question."""
    first, second = problem.question.replace(" ", "").split("+")
    return int(first), int(second)


def scratchpad(first: int, second: int, sum_digits: list[int] | None = None) -> str:
    """The scratchpad with its answer line, in the format at the top of this file.

    Args:
      first, second: the operands, which must have the same number of digits.
      sum_digits: replaces the digits of the sum (least significant first, the last carry at the end); operands and
        carries stay true. For the form-only transcripts of the embedded base (transcripts.py).
    """
    a, b = str(first), str(second)
    lines, carry, shown = ["<scratch>"], 0, ""
    for column in range(len(a) + 1):
        left = len(a) - column
        todo = f"{' '.join(a[:left])} + {' '.join(b[:left])} , " if left else ", "
        lines.append(f"{todo}{shown}C: {carry}")
        if not left:
            break
        total = int(a[left - 1]) + int(b[left - 1]) + carry
        digit = total % 10 if sum_digits is None else sum_digits[column]
        shown, carry = f"{digit} {shown}", total // 10
    lead = carry if sum_digits is None else sum_digits[-1]
    lines += [f"{lead} {shown}".strip(), "</scratch>"]
    answer = f"{lead} {shown}".strip() if lead else shown.strip()
    return "\n".join([*lines, answer])


def spaced(number: int) -> str:
    """Digits with spaces between them: 90 -> "9 0"."""
    return " ".join(str(number))


def random_pair(digits: int, rng: random.Random) -> Pair:
    """Two numbers with exactly `digits` digits, uniformly distributed."""
    low, high = (0 if digits == 1 else 10 ** (digits - 1)), 10**digits - 1
    return rng.randint(low, high), rng.randint(low, high)


@functools.cache
def _held_out(digits: int, count: int, seed: int) -> dict[str, list[Pair]]:
    rng = random.Random(f"held out {seed} {digits}")
    all_pairs = (10 if digits == 1 else 9 * 10 ** (digits - 1)) ** 2
    count = min(count, all_pairs // 10)
    pairs: dict[Pair, None] = {}
    while len(pairs) < 2 * count:
        pairs[random_pair(digits, rng)] = None
    ordered = list(pairs)
    return {"dev": ordered[:count], "test": ordered[count:]}
