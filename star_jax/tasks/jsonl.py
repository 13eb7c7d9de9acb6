"""Your own problems, one JSON object per line:

    {"question": "Tom has 3 apples and buys 2. How many has he?", "answer": 5, "rationale": "3 + 2 = 5."}
    {"question": "Where is ink absorbed?", "choices": ["an inkwell", "a blotter"], "answer": "b"}

    Q: Tom has 3 apples and buys 2. How many has he?        Q: Where is ink absorbed?
    A: 3 + 2 = 5.                                           Answer Choices:
    #### 5                                                  (a) an inkwell
                                                            (b) a blotter
                                                            A: Therefore, the answer is a blotter (b).

The completion begins after "A:". A hint is " (5)" after the question, or " (CORRECT)" after the right choice.
"""

import dataclasses
import functools
import math
import random
import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from star_jax import user_code
from star_jax.errors import InputError
from star_jax.option_values import CODE, PATH
from star_jax.records import Example, Problem
from star_jax.tasks.answers import choices
from star_jax.tasks.answers.folding import folded
from star_jax.tasks.answers.numbers import MOST_DIGITS, canonical, parse_number
from star_jax.tasks.base import transcript
from star_jax.tasks.data_files import MARK, FileTask, check_keys, text_of

KEYS = ("question", "answer", "choices", "rationale", "id", "category")

_SCIENTIFIC = re.compile(r"[-+]?[0-9]+(?:\.[0-9]*)?[eE]([-+]?[0-9]{1,9})")
_LETTER = re.compile(r"\(?[A-Za-z]\)?\.?")
MOST_AROUND = 6  # layers of _AROUND; each takes time linear in the text
# What `same` ignores around an answer. "5!" is a factorial, "..." an ellipsis.
_AROUND = re.compile(
    r"\*\*(.+)\*\*|\*(.+)\*|`(.+)`|\"(.+)\"|'(.+)'|“(.+)”|‘(.+)’|«(.+)»|„(.+)[“”]"
    r"|\(([^\W\d_])\)|(.*[^.])\.|(.*[^!\d\s])!"
)


@dataclasses.dataclass(frozen=True)
class Jsonl(FileTask):
    """Problems from JSON-lines files. One file may hold problems with and without choices.

    "choices" is a list of 2 to 26 texts; "answer" is then the letter or the text of one of them, otherwise a text or a
    number. "rationale", "id" (a text or an integer) and "category" are optional, and may be null.
    """

    # Files; a relative path is relative to data_dir if that is set
    train: str = dataclasses.field(default="", metadata=PATH)
    dev: str = dataclasses.field(default="", metadata=PATH)  # instead of it, held_out takes the dev split from train
    test: str = dataclasses.field(default="", metadata=PATH)
    # Your own check of answers, "module:function" or "file.py:function": (Problem, answer as `parse` reads it) -> bool.
    # "": equal as texts or as numbers
    grader: str = dataclasses.field(default="", metadata=CODE)

    stop: ClassVar[tuple[str, ...]] = ("\n\n", "\nQ:")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.grader and not callable(self._grader):
            raise InputError(f"task.grader={self.grader}: is no function")
        if self.dev and self.held_out:
            raise InputError("task: the dev split comes from task.dev or from task.held_out; set one of the two")

    @property
    def max_new_tokens(self) -> int:
        return self.max_tokens

    def source(self, split: str) -> Path:
        file = {"train": self.train, "dev": self.dev, "test": self.test}[split]
        if not file:
            remedy = ", or --config.task.held_out=500 to take it from train" if split == "dev" else ""
            raise InputError(f"this task has no {split} file; set --config.task.{split}=FILE{remedy}")
        return Path(self.data_dir) / file

    def make_problem(self, values: dict[str, Any], name: str) -> Problem:
        problem = problem_of(values, name)
        if not problem.answer:
            raise ValueError("key 'answer' is missing")
        self._check_reference(problem)
        return problem

    def question_text(self, problem: Problem, hint: bool) -> str:
        if problem.choices:
            return choices.render(problem, hint)
        return f"Q: {problem.question}{f' ({problem.answer})' if hint else ''}\nA:"

    def parse(self, text: str) -> str | None:
        """The text after the marks if they agree; without a mark the chosen letter; with `direct`, the whole text.

        A letter is read as by the task "commonsense_qa".
        """
        if choices.HINT in text or self.repeats_hint_line(text):
            return None
        if MARK in text:
            marked = [part.partition("\n")[0].strip() for part in text.split(MARK)[1:]]
            first = _Comparable.of(marked[0])  # once: it may be long, and the marks many
            return marked[-1] or None if all(first.equals(_Comparable.of(answer)) for answer in marked) else None
        letter = choices.closing_choice(text) if self.answer_rule == "strict" else choices.stated_choice(text)
        return letter if letter is not None or not self.direct else text.strip() or None

    def grade(self, problem: Problem, answer: str) -> bool:
        if self.grader:
            return self._graded(problem, answer)
        if problem.choices:
            # A text is what follows a mark, or a whole direct answer.
            stated = isinstance(answer, choices.Choice) or self.answer_rule == "lenient" or _LETTER.fullmatch(answer)
            return bool(stated) and choices.agrees(problem, answer)
        if same(problem.answer, answer):
            return True
        # `parse` reads "option B" as "b" for any problem. It is right if the reference is that letter without a name.
        reference = choices.stated_choice(problem.answer) if isinstance(answer, choices.Choice) else None
        return reference == answer and not choices.normalised(reference.before + reference.after)

    def canonical(self, problem: Problem, answer: str) -> str:
        """A number in canonical form, another text without the differences that `same` ignores."""
        answer = decimal(answer)
        number = None if problem.choices or any(sign.isalpha() for sign in answer) else parse_number(answer)
        return _bare(answer) if number is None else canonical(number)

    def reference(self, problem: Problem) -> str:
        if self.direct:
            return f" ({problem.answer})." if problem.choices else f" {problem.answer}"
        closing = choices.conclusion(problem) if problem.choices else f" {MARK} {problem.answer}"
        if problem.rationale is None:
            return closing
        # A blank line would stop the completion.
        steps = " " + "\n".join(line.rstrip() for line in problem.rationale.splitlines() if line.strip()).lstrip()
        if self._right(problem, steps):
            return steps
        return steps + closing if problem.choices else f"{steps}\n{closing.lstrip()}"

    def transcripts(self, gold: Sequence[float], count: int, seed: int) -> list[Example]:
        """References of the train problems that have a rationale; `gold` is (the share of them without a hint,)."""
        if len(gold) != 1:
            raise InputError(f"base.stages: gold is one share here, of texts without a hint; got {len(gold)} shares")
        solved = [problem for problem in self.problems("train") if problem.rationale is not None]
        if not solved:
            raise InputError("base.stages: no train problem has a rationale to pretrain a base on; give base.path")
        rng = random.Random(f"base {seed}")
        chosen = rng.choices(solved, k=count)
        return [transcript(self, p, self.reference(p), hint=rng.random() >= gold[0]) for p in chosen]

    @functools.cached_property
    def _grader(self) -> Callable[[Problem, str], bool]:
        grader: Callable[[Problem, str], bool] = user_code.load(self.grader, "task.grader")
        return grader

    def _graded(self, problem: Problem, answer: str) -> bool:
        """What the user's function says. Raises InputError if it fails or returns anything but True or False."""
        try:
            right = self._grader(problem, answer)
        except Exception as error:
            raise user_code.failure(
                error, f"task.grader={self.grader}, problem {problem.id!r}, answer {answer[:60]!r}"
            ) from error
        if not isinstance(right, bool | np.bool_):
            raise InputError(
                f"task.grader={self.grader}: must return True or False, returned {type(right).__name__} for the answer "
                f"{answer[:60]!r} of problem {problem.id!r}"
            )
        return bool(right)

    def _right(self, problem: Problem, text: str) -> bool:
        answer = self.parse(text)
        return answer is not None and self.grade(problem, answer)

    def _check_reference(self, problem: Problem) -> None:
        """Raises ValueError unless the reference contains no stop and is parsed and graded as right."""
        text = self.reference(problem)
        if cut := [stop for stop in self.stop if stop in text]:
            raise ValueError(f"the rationale holds {cut[0]!r}, which is a stop of completions")
        if self.grader and not self.grade(problem, problem.answer):
            raise ValueError(f"task.grader={self.grader} refuses the reference answer {problem.answer!r}")
        marked = problem.rationale if problem.rationale and MARK in problem.rationale else text
        if not self._right(problem, text) or not self._right(problem, marked):
            raise ValueError(f"the rationale and the answer {problem.answer!r} contradict each other")


def problem_of(values: dict[str, Any], name: str) -> Problem:
    """The problem of an object with the keys KEYS; its answer is "" if the object has none. Raises ValueError.

    `name` is the id of a problem whose object has none.
    """
    values = {key: value for key, value in values.items() if value is not None}
    check_keys(values, KEYS)
    texts = choices.choice_texts(values["choices"]) if "choices" in values else ()
    answer = _answer(values)
    return Problem(
        id=_identifier(values.get("id", name)),
        question=text_of(values, "question"),
        answer=_letter(answer, texts) if texts and answer else answer,
        category=text_of(values, "category") if "category" in values else "",
        choices=texts,
        rationale=text_of(values, "rationale") if "rationale" in values else None,
    )


def same(reference: str, answer: str) -> bool:
    """Whether two answers are equal as texts or as numbers.

    As texts: case, spaces, the Unicode form, quotes and emphasis around the text, its final "." or "!", and brackets
    around a single letter do not count. As numbers: "72" equals "$72.00", and "1e-5" equals "0.00001". If both contain
    letters, as "5 apples" and "5 pears", only the comparison as texts counts.
    """
    return _Comparable.of(reference).equals(_Comparable.of(answer))


class _Comparable(NamedTuple):
    """What `same` compares of an answer."""

    bare: str
    has_letters: bool
    number: Fraction | None

    @classmethod
    def of(cls, answer: str) -> "_Comparable":
        answer = decimal(answer)
        return cls(_bare(answer), any(sign.isalpha() for sign in answer), parse_number(answer))

    def equals(self, other: "_Comparable") -> bool:
        if self.bare == other.bare:
            return True
        return not (self.has_letters and other.has_letters) and self.number is not None and self.number == other.number


def decimal(text: str) -> str:
    """A number in scientific notation as a decimal: "2.5e-5" is "0.000025". Any other text is unchanged.

    So is a number whose decimal has more than MOST_DIGITS digits, which `parse_number` does not read.
    """
    match = _SCIENTIFIC.fullmatch(text.strip())
    if not match or len(text) > MOST_DIGITS or abs(int(match[1])) > MOST_DIGITS:
        return text
    number = f"{Decimal(text.strip()):f}"
    return number if sum(sign.isdigit() for sign in number) <= MOST_DIGITS else text


def _bare(text: str) -> str:
    """The folded text without what surrounds it; a text of nothing else stays."""
    text = folded(text)
    for _ in range(MOST_AROUND):
        if match := _AROUND.fullmatch(text):
            text = next(group for group in match.groups() if group is not None).strip()
    return text


def _identifier(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError("'id' must be a text that is not empty, or an integer")
    return str(value)


def _answer(values: dict[str, Any]) -> str:
    """The answer as one line of text, a number as a decimal; "" if there is none. Raises ValueError."""
    value = values.get("answer")
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _number(value)
    if not isinstance(value, str):
        raise ValueError("'answer' must be a text or a number")
    text = decimal(text_of(values, "answer").strip())
    if len(text.splitlines()) > 1 or MARK in text:
        raise ValueError(f"the answer {text[:60]!r} must be one line without {MARK}")
    return text


def _number(value: int | float) -> str:
    # An integer of over 4,300 digits has no text, and one of over 308 digits is no float.
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"the answer {value} is not a finite number")
    if abs(value) >= 10**MOST_DIGITS:
        raise ValueError(f"the answer is a number of more than {MOST_DIGITS} digits; make it a text")
    text = decimal(str(value))
    if _SCIENTIFIC.fullmatch(text):
        raise ValueError(f"the answer {text} has more than {MOST_DIGITS} digits as a decimal; make it a text")
    return text


def _letter(answer: str, texts: tuple[str, ...]) -> str:
    """The letter of the choice whose letter or text is `answer`. Raises ValueError if none or several fit."""
    letters = choices.LETTERS[: len(texts)]
    exact = [letter for letter, text in zip(letters, texts, strict=True) if text.strip() == answer]
    alike = [letter for letter, text in zip(letters, texts, strict=True) if same(text, answer)]
    candidates = {*(exact or alike), *(answer.lower() if answer.lower() in [*letters] else "")}
    if not candidates:
        raise ValueError(f"the answer {answer!r} is neither a choice nor a choice's letter")
    if len(candidates) > 1:
        raise ValueError(
            f"the answer {answer!r} could be {' or '.join(f'({letter})' for letter in sorted(candidates))}"
        )
    return candidates.pop()
