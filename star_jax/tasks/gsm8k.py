"""Grade-school word problems, GSM8K (paper, section 4.3). One problem and its reference completion:

    Q: Weng earns $12 an hour for babysitting. Yesterday, she just did 50 minutes. How much did she earn?
    A: Weng earns 12/60 = $<<12/60=0.2>>0.2 per minute.             <- the completion begins after "A:"
    Working 50 minutes, she earned 0.2 x 50 = $<<0.2*50=10>>10.
    #### 10

With a hint, the first line ends in "did she earn? (10)": the number only, never the solution.
"""

import dataclasses
import re
from fractions import Fraction
from typing import Any, ClassVar

from star_jax.records import Problem
from star_jax.tasks.answers.numbers import calculations, canonical, last_number, parse_number
from star_jax.tasks.data_files import MARK, FileTask, check_keys, text_of

_PLAIN = re.compile(r"\s*-?[0-9][0-9,]*(?:\.[0-9]+)?\.?\s*")  # what follows it
MAX_STEPS_CATEGORY = 8  # longer solutions (103 of 7,473 have 8 or 9 steps) share the category


@dataclasses.dataclass(frozen=True)
class Gsm8k(FileTask):
    """The 7,473 train and 1,319 test problems of GSM8K, from its official files or the hub. `held_out` makes dev.

    Category: number of lines of the reference solution.
    """

    max_tokens: int = 320  # all references but one (343) fit, in GPT-2's tokens; the median is 87

    stop: ClassVar[tuple[str, ...]] = ("\n\n", "\nQ:")
    FILES: ClassVar[dict[str, str]] = {"train": "train.jsonl", "test": "test.jsonl"}
    HUB: ClassVar[tuple[str, str]] = ("openai/gsm8k", "main")
    HUB_SPLITS: ClassVar[dict[str, str]] = {"train": "train", "test": "test"}

    @property
    def max_new_tokens(self) -> int:
        return 16 if self.direct else self.max_tokens

    def make_problem(self, values: dict[str, Any], name: str) -> Problem:
        question, solution = text_of(values, "question"), text_of(values, "answer")
        if MARK not in solution:
            raise ValueError(f"the answer has no '{MARK}' followed by the final number")
        answer = self.parse(solution)
        if answer is None:
            raise ValueError(f"the answer does not state exactly one number, as digits, after '{MARK}'")
        if "\nQ:" in solution:
            raise ValueError("a line of the answer begins with 'Q:', which is a stop of completions")
        return Problem(
            id=name, question=question, answer=answer, category=_steps_category(solution), rationale=solution
        )

    def own_problem(self, values: dict[str, Any], name: str) -> Problem | None:
        if MARK not in str(values.get("answer")):
            return None
        check_keys(values, ("question", "answer", "id"))
        return self.make_problem(values, name)

    def question_text(self, problem: Problem, hint: bool) -> str:
        return f"Q: {problem.question}{f' ({problem.answer})' if hint else ''}\nA:"

    def parse(self, text: str) -> str | None:
        """The number after the marker; of several, all must agree.

        Strict: the plain number, "#### 1,080". Lenient: also "#### **$1,080** a day", and without a marker the last
        number of the text.
        """
        if self.repeats_hint_line(text):
            return None
        marked = [line.partition(MARK)[2] for line in text.split("\n") if MARK in line]
        if self.answer_rule == "strict":
            marked = [answer if _PLAIN.fullmatch(answer) else "" for answer in marked]
        elif not marked:
            return _canonical({last_number(text)})
        return _canonical({parse_number(answer) for answer in marked})

    def reference(self, problem: Problem) -> str | None:
        if self.direct:
            return f" {MARK} {problem.answer}"
        return None if problem.rationale is None else " " + "\n".join(_lines(problem.rationale))

    def grade(self, problem: Problem, answer: str) -> bool:
        number = parse_number(answer)
        return number is not None and number == parse_number(problem.answer)

    def consistent(self, problem: Problem, text: str) -> bool | None:
        """Whether all calculator annotations are right; None if there are none."""
        annotations = [] if self.direct else calculations(text)
        return all(annotation.right for annotation in annotations) if annotations else None

    @classmethod
    def step_list(cls, rationale: str) -> tuple[str, ...]:
        """The equations of the calculator annotations, without blanks: "4*12=48" (RFT, arXiv 2308.01825, section 3.3).

        Their number is the paper's number of steps (Figure 6).
        """
        return tuple(f"{step.expression}={step.result}".replace(" ", "") for step in calculations(rationale))


def _lines(solution: str) -> list[str]:
    """The lines that are not blank. Six real solutions have blank lines, which would stop a completion."""
    return [line for line in solution.strip().split("\n") if line.strip()]


def _canonical(stated: set[Fraction | None]) -> str | None:
    """The number in canonical form; None if there is none, or they disagree."""
    number = next(iter(stated)) if len(stated) == 1 else None
    return None if number is None else canonical(number)


def _steps_category(solution: str) -> str:
    steps = len(_lines(solution.partition(MARK)[0]))
    return (
        f"{MAX_STEPS_CATEGORY}+ steps" if steps >= MAX_STEPS_CATEGORY else "1 step" if steps == 1 else f"{steps} steps"
    )
