"""CommonsenseQA: questions with five choices (paper, section 4.2). One problem and its reference completion:

    Q: What do people use to absorb extra ink from a fountain pen?
    Answer Choices:
    (a) shirt pocket
    (b) calligrapher's hand
    (c) inkwell
    (d) desk drawer
    (e) blotter
    A: Therefore, the answer is blotter (e).

The completion begins after "A:". With a hint, the line of the right choice ends in " (CORRECT)". The data has no
rationales, so the reference is the shortest right completion; for direct answers it is " (e).".
"""

import dataclasses
from typing import Any, ClassVar

from star_jax.records import Problem
from star_jax.tasks.answers import choices
from star_jax.tasks.data_files import FileTask, check_keys, text_of


@dataclasses.dataclass(frozen=True)
class CommonsenseQa(FileTask):
    """CommonsenseQA from its official files or the hub.

    The official test file has no answers. So "test" is the official dev file, on which the paper reports. "dev" is the
    same file unless `held_out` takes it from train, which a run that selects an iteration should do.
    """

    max_tokens: int = 128

    stop: ClassVar[tuple[str, ...]] = ("\n",)
    FILES: ClassVar[dict[str, str]] = {
        "train": "train_rand_split.jsonl",
        "dev": "dev_rand_split.jsonl",
        "test": "dev_rand_split.jsonl",
    }
    HUB: ClassVar[tuple[str, str]] = ("tau/commonsense_qa", "default")
    HUB_SPLITS: ClassVar[dict[str, str]] = {"train": "train", "dev": "validation", "test": "validation"}

    @property
    def max_new_tokens(self) -> int:
        return 12 if self.direct else self.max_tokens

    def make_problem(self, values: dict[str, Any], name: str) -> Problem:
        """The problem of a line of the official files, or of a row of the hub, where `choices` is two lists."""
        identifier = text_of(values, "id")
        nested = isinstance(values.get("question"), dict)
        stem = text_of(values, "question", "stem") if nested else text_of(values, "question")
        labels, texts = _official_lists(values["question"]) if nested else _hub_lists(values)
        chosen = choices.choice_texts(texts)
        expected = list(choices.LETTERS[: len(chosen)].upper())
        if labels != expected:
            raise ValueError(f"the choices' labels must be {', '.join(expected)} in this order")
        key = text_of(values, "answerKey")
        if key not in expected:
            raise ValueError(f"the answer {key!r} is not a choice's label")
        return Problem(id=identifier, question=stem, answer=key.lower(), choices=chosen)

    def own_problem(self, values: dict[str, Any], name: str) -> Problem | None:
        if "answerKey" not in values and not any(isinstance(values.get(key), dict) for key in ("question", "choices")):
            return None
        check_keys(values, ("id", "question", "choices", "answerKey", "question_concept"))
        if values.get("answerKey"):
            return self.make_problem(values, name)
        # The official test file has no answers; its choices are checked with any.
        return dataclasses.replace(self.make_problem({**values, "answerKey": "A"}, name), answer="")

    def question_text(self, problem: Problem, hint: bool) -> str:
        return choices.render(problem, hint)

    def parse(self, text: str) -> choices.Choice | None:
        """The chosen letter. A completion that repeats a hint has none: it reasons from the hint.

        Strict: of the "(e)." in which the completion ends. Lenient: as `choices.stated_choice` reads it.
        """
        if choices.HINT in text or self.repeats_hint_line(text):
            return None
        return choices.closing_choice(text) if self.answer_rule == "strict" else choices.stated_choice(text)

    def grade(self, problem: Problem, answer: str) -> bool:
        """Whether the answer is the right letter, and the text next to it names no other choice."""
        return choices.agrees(problem, answer)

    def reference(self, problem: Problem) -> str:
        return f" ({problem.answer})." if self.direct else choices.conclusion(problem)


def _official_lists(question: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Labels and texts of [{"label": "A", "text": "..."}, ...]."""
    rows = question.get("choices")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("'question.choices' must be a list of objects with 'label' and 'text'")
    return [row.get("label") for row in rows], [row.get("text") for row in rows]


def _hub_lists(values: dict[str, Any]) -> tuple[list[Any], list[Any]]:
    """Labels and texts of {"label": ["A", ...], "text": ["...", ...]}."""
    table = values.get("choices")
    labels, texts = (table.get("label"), table.get("text")) if isinstance(table, dict) else (None, None)
    if not isinstance(labels, list) or not isinstance(texts, list):
        raise ValueError("'choices' must hold the lists 'label' and 'text'")
    return labels, texts
