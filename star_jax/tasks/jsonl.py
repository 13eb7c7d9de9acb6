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
import difflib
import math
from pathlib import Path
from typing import Any, ClassVar

from star_jax.errors import InputError
from star_jax.records import Problem
from star_jax.tasks.answers import choices
from star_jax.tasks.answers.numbers import canonical, parse_number
from star_jax.tasks.data_files import FileTask, text_of

KEYS = ("question", "answer", "choices", "rationale", "id", "category")
MARK = "####"  # the rest of its line is the answer


@dataclasses.dataclass(frozen=True)
class Jsonl(FileTask):
    """Problems from JSON-lines files. One file may hold problems with and without choices.

    "choices" is a list of 2 to 26 texts; "answer" is then the letter or the text of one of them, otherwise a text or a
    number. "rationale", "id" (a text or an integer) and "category" are optional, and may be null.
    """

    train: str = ""  # a file; a relative path is relative to data_dir if that is set
    dev: str = ""  # a file; instead of it, held_out takes the dev split from train
    test: str = ""

    stop: ClassVar[tuple[str, ...]] = ("\n\n", "\nQ:")

    def __post_init__(self) -> None:
        super().__post_init__()
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
        values = {key: value for key, value in values.items() if value is not None}
        if unknown := [key for key in values if key not in KEYS]:
            near = difflib.get_close_matches(unknown[0], KEYS, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KEYS)}"
            raise ValueError(f"unknown key {unknown[0]!r}; {known}")
        texts = choices.choice_texts(values["choices"]) if "choices" in values else ()
        answer = _answer(values)
        problem = Problem(
            id=_identifier(values.get("id", name)),
            question=text_of(values, "question"),
            answer=_letter(answer, texts) if texts else answer,
            category=text_of(values, "category") if "category" in values else "",
            choices=texts,
            rationale=text_of(values, "rationale") if "rationale" in values else None,
        )
        self._check_reference(problem)
        return problem

    def render(self, problem: Problem, hint: bool = False) -> str:
        if problem.choices:
            return choices.render(problem, hint)
        return f"Q: {problem.question}{f' ({problem.answer})' if hint else ''}\nA:"

    def parse(self, text: str) -> str | None:
        """The text after the marks if they agree; without a mark the chosen letter; with `direct`, the whole text."""
        if choices.HINT in text:
            return None
        if MARK in text:
            marked = [part.partition("\n")[0].strip() for part in text.split(MARK)[1:]]
            return marked[-1] or None if all(same(answer, marked[0]) for answer in marked) else None
        letter = choices.parse_choice(text)
        return letter if letter is not None or not self.direct else text.strip() or None

    def grade(self, problem: Problem, answer: str) -> bool:
        if problem.choices:
            return choices.agrees(problem, answer)
        # `parse` reads "(b)" as "b" for any problem. It is right if the reference reads the same, with the same name.
        reference = choices.parse_choice(problem.answer)
        return same(problem.answer, answer) or (reference == answer and reference.named == getattr(answer, "named", ""))

    def canonical(self, problem: Problem, answer: str) -> str:
        """A number in canonical form, another text without the differences that `same` ignores."""
        number = None if problem.choices or any(sign.isalpha() for sign in answer) else parse_number(answer)
        return _folded(answer) if number is None else canonical(number)

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

    def _right(self, problem: Problem, text: str) -> bool:
        answer = self.parse(text)
        return answer is not None and self.grade(problem, answer)

    def _check_reference(self, problem: Problem) -> None:
        """Raises ValueError unless the reference contains no stop and is parsed and graded as right."""
        text = self.reference(problem)
        if cut := [stop for stop in self.stop if stop in text]:
            raise ValueError(f"the rationale holds {cut[0]!r}, which is a stop of completions")
        marked = problem.rationale if problem.rationale and MARK in problem.rationale else text
        if not self._right(problem, text) or not self._right(problem, marked):
            raise ValueError(f"the rationale and the answer {problem.answer!r} contradict each other")


def same(reference: str, answer: str) -> bool:
    """Whether two answers are equal as texts, ignoring case, spaces and a final full stop, or as numbers.

    "72" equals "$72.00". If both contain letters, as "5 apples" and "5 pears", only the comparison as texts counts.
    """
    if _folded(reference) == _folded(answer):
        return True
    if all(any(sign.isalpha() for sign in text) for text in (reference, answer)):
        return False
    number = parse_number(reference)
    return number is not None and number == parse_number(answer)


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def _identifier(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise ValueError("'id' must be a text that is not empty, or an integer")
    return str(value)


def _answer(values: dict[str, Any]) -> str:
    """The answer as one line of text. Raises ValueError."""
    value = values.get("answer")
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ValueError(f"the answer {value} is not a finite number")
        return str(value)
    if isinstance(value, bool) or ("answer" in values and not isinstance(value, str)):
        raise ValueError("'answer' must be a text or a number")
    text = text_of(values, "answer").strip()
    if len(text.splitlines()) > 1 or MARK in text:
        raise ValueError(f"the answer {text!r} must be one line without {MARK}")
    return text


def _letter(answer: str, texts: tuple[str, ...]) -> str:
    """The letter of the choice whose letter or text is `answer`. Raises ValueError if none or several fit."""
    letters = choices.LETTERS[: len(texts)]
    exact = [letter for letter, text in zip(letters, texts, strict=True) if text.strip() == answer]
    alike = [letter for letter, text in zip(letters, texts, strict=True) if _folded(text) == _folded(answer)]
    candidates = {*(exact or alike), *(answer.lower() if answer.lower() in [*letters] else "")}
    if not candidates:
        raise ValueError(f"the answer {answer!r} is neither a choice nor a choice's letter")
    if len(candidates) > 1:
        raise ValueError(
            f"the answer {answer!r} could be {' or '.join(f'({letter})' for letter in sorted(candidates))}"
        )
    return candidates.pop()
