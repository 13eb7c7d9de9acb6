"""Reads and writes audit.txt, the plain text file in which a person marks a sample of kept rationales.

    item: 1                         <- one field on each line; an item ends with its mark
    problem: train-2-00012
    ...
    rationale:
    | <scratch>                     <- a text of the run: each of its lines begins with "|", whatever it contains
    | mark: sound
    mark: w begging the question    <- a word or its first letter, then an optional note

Blank lines and lines that begin with "#" are ignored. A digest of the example identifies its item. The file is blind:
it has neither the source nor the machine's check, which files of earlier versions have.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from star_jax.errors import InputError
from star_jax.json_reader import open_regular
from star_jax.records import Example, Problem
from star_jax.report.formatting import problem_text
from star_jax.report.samples import SOURCES
from star_jax.terminal import visible

NAME = "audit.txt"  # in the run directory, where the report looks for it
# Mark -> its meaning.
MARKS = {
    "sound": "every step holds, and the answer follows from them",
    "wrong reasoning": "the answer is right, the reasoning is not",
    "leak": "it mentions the hint, or plainly uses the answer it was given",
    "other": "none of these",
}
STEP_CHECKS = {True: "the steps check out", False: "a step does not check out", None: "cannot tell"}

_MARK_OF_WORD = {mark: mark for mark in MARKS} | {mark[0]: mark for mark in MARKS} | {"wrong": "wrong reasoning"}
_MARK = re.compile(
    rf"({'|'.join(sorted(_MARK_OF_WORD, key=len, reverse=True))})(?:[\s,;:.–—-]+(.*)|(?=\()(.*)|)", re.IGNORECASE
)
_TEXT_FIELDS = ("question", "answer", "rationale")
_NUMBER_FIELDS = ("item", "iteration", "stratum")
_FIELDS = ("item", "problem", "iteration", "category", "stratum", "digest", *_TEXT_FIELDS, "mark")
_EARLIER_FIELDS = ("source", "machine")  # of files of earlier versions
_HEADER = """\
# Right answers are not right reasoning. These rationales reached the right answer: is their reasoning right, too?
#
# After each "mark:" write a word or its first letter, then a note if you like; leave it empty if you cannot tell.
{marks}
#     e.g.  mark: w begging the question
# Words for the note, the paper's failure modes: question implies answer, begging the question, exercise to the
# reader, world-state assertions, red herrings, hint short-cutting.
#
# Lines that begin with | are texts of the run; change nothing but the marks. Stop where you like: any number of marks
# from the top is balanced over sources and categories. Whether a rationale was sampled or written with the answer as a
# hint, and whether a program verified its steps, is not here, so that it does not sway you; the report shows both next
# to your marks. "stratum" is the number of kept rationales like this one; the report weights the marks by it. Save as
# plain text, then write the report:
#
#     python -m star_jax.report --workdir=DIR
"""


@dataclasses.dataclass(frozen=True)
class Item:
    """A kept rationale to mark. All texts have passed `visible`."""

    number: int  # 1, 2, ... in the file
    problem: str  # problem id
    iteration: int
    category: str
    stratum: int  # kept rationales of the same iteration, source and category, including this one
    digest: str
    question: str
    answer: str  # the reference answer
    rationale: str
    mark: str = ""  # one of MARKS; "": not marked
    note: str = ""
    fault: str = dataclasses.field(default="", compare=False)  # why its mark cannot be read; "": it can
    # Not in the file: a person marks without them. "": not known yet.
    source: str = dataclasses.field(default="", compare=False)  # one of samples.SOURCES
    machine: str = dataclasses.field(default="", compare=False)  # one of STEP_CHECKS' values
    line: int = dataclasses.field(default=0, compare=False)  # first line in the file; 0: not in a file yet


def digest_of(example: Example) -> str:
    """12 hex digits that identify an example among those of all runs."""
    values = [example.problem_id, example.iteration, example.source, example.sample_index, example.completion]
    if example.problem_fingerprint:  # examples of earlier versions have none
        values.append(example.problem_fingerprint)
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def make_item(number: int, example: Example, problem: Problem | None, stratum: int, consistent: bool | None) -> Item:
    """An unmarked item. Without a problem on record, the end of the prompt serves as the question."""
    if problem is None:
        question, answer, category = example.prompt.rpartition("\n\n")[2], "not on record", ""
    else:
        question, answer, category = problem_text(problem), problem.answer, problem.category
    return Item(
        number=number,
        problem=one_line(example.problem_id),
        iteration=example.iteration,
        source=example.source,
        category=one_line(category),
        stratum=stratum,
        digest=digest_of(example),
        question=visible(question),
        answer=visible(answer),
        rationale=visible(example.completion),
        machine=STEP_CHECKS[consistent],
    )


def one_line(text: str) -> str:
    """The text made visible, newlines and tabs included."""
    return visible(text).translate({ord("\n"): "␊", ord("\t"): "␉"}).strip()


def header() -> str:
    """The head of the file: instructions for marking."""
    width = max(map(len, MARKS))
    return _HEADER.format(marks="\n".join(f"#     {name:{width}}  {meaning}" for name, meaning in MARKS.items()))


def format_items(items: Iterable[Item]) -> str:
    """The items' part of the file."""
    return "".join(f"\n# {'-' * 70}\n{_format_item(item)}" for item in items)


def _format_item(item: Item) -> str:
    lines = [
        f"item: {item.number}",
        f"problem: {item.problem}",
        f"iteration: {item.iteration}",
        f"category: {item.category}".rstrip(),
        f"stratum: {item.stratum}",
        f"digest: {item.digest}",
    ]
    for field, text in {"question": item.question, "answer": item.answer, "rationale": item.rationale}.items():
        lines += [f"{field}:", *(f"| {line}" if line else "|" for line in text.split("\n"))]
    return "\n".join([*lines, f"mark: {item.mark} {item.note}".rstrip()]) + "\n"


def read_file(path: Path, name: str) -> str:
    """The file's text, byte for byte. Raises InputError that calls the file `name`."""
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: not UTF-8 text; save it as UTF-8 in your editor") from error


def parse(text: str, name: str) -> list[Item]:
    """The items of a file's text, with any kind of newline. A mark that is none of MARKS is its item's `fault`.

    Raises InputError with `name`, line and remedy if a line does not have the form at the head of this module, or an
    item is incomplete or duplicated.
    """
    items: list[Item] = []
    values: dict[str, str] = {}  # of the current item
    start, field = 0, ""  # the current item's first line; the field that lines with | belong to
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        where = f"{name}:{number}"
        if line.startswith("|"):
            if field not in _TEXT_FIELDS:
                raise InputError(
                    f"{where}: a line that begins with | belongs after question:, answer: or rationale:; delete it"
                )
            content = line[1:].removeprefix(" ")
            values[field] = f"{values[field]}\n{content}" if field in values else content
        elif line.strip() and not line.startswith("#"):
            field, value = _parse_field(line, where)
            if field == "item" and values:
                raise InputError(f"{name}:{start}: the item that begins here has no 'mark:'; put it back")
            if field != "item" and not values:
                raise InputError(
                    f"{where}: no 'item:' comes before this line; put it back, or delete the rest of the item"
                )
            if field in values:
                raise InputError(f"{where}: second '{field}:' in this item; delete one of them")
            if field not in _TEXT_FIELDS:
                values[field] = value
            if field == "item":
                start = number
            elif field == "mark":
                items.append(_parse_item(values, name, start, where))
                values = {}
    if values:
        raise InputError(f"{name}:{start}: the item that begins here has no 'mark:'; put it back")
    _check_unique(items, name)
    return items


def _parse_field(line: str, where: str) -> tuple[str, str]:
    """(field, value) of a line."""
    field, colon, value = line.partition(":")
    field = field.strip().lower()
    if not colon or field not in (*_FIELDS, *_EARLIER_FIELDS):
        raise InputError(
            f"{where}: {json.dumps(line[:40], ensure_ascii=False)} is not a line of this file; write a note after its "
            "mark, on the same line, or begin the line with #"
        )
    if field in _TEXT_FIELDS and value.strip():
        raise InputError(
            f"{where}: the text of '{field}:' belongs below it, with | before each of its lines; move it there"
        )
    return field, value.strip()


def _parse_item(values: dict[str, str], name: str, start: int, mark_where: str) -> Item:
    """The item with these fields, which begins in line `start`; `mark_where`: file and line of its mark."""
    if missing := [field for field in _FIELDS if field not in values]:
        raise InputError(f"{name}:{start}: the item that begins here has no '{missing[0]}:'; put it back, or delete it")
    for field in _NUMBER_FIELDS:
        if not re.fullmatch(r"[0-9]{1,15}", values[field]):
            raise InputError(f"{name}:{start}: '{field}' of the item that begins here is not a number; put it back")
    if values.get("source", SOURCES[0]) not in SOURCES:
        raise InputError(
            f"{name}:{start}: 'source' of the item that begins here is none of {', '.join(SOURCES)}; put it back"
        )
    mark, note, fault = _parse_mark(values["mark"], mark_where)
    return Item(
        number=int(values["item"]),
        problem=values["problem"],
        iteration=int(values["iteration"]),
        category=values["category"],
        stratum=int(values["stratum"]),
        digest=values["digest"],
        question=values["question"],
        answer=values["answer"],
        rationale=values["rationale"],
        mark=mark,
        note=note,
        fault=fault,
        source=values.get("source", ""),
        line=start,
    )


def _parse_mark(value: str, where: str) -> tuple[str, str, str]:
    """(mark, note, fault) of the text after "mark:"."""
    if not value:
        return "", "", ""
    match = _MARK.fullmatch(value)
    if not match:
        fault = (
            f"{where}: the mark {json.dumps(value[:40], ensure_ascii=False)} begins with none of {', '.join(MARKS)}; "
            "write one of them or its first letter, then the note"
        )
        return "", "", fault
    return _MARK_OF_WORD[match[1].lower()], (match[2] or match[3] or "").strip(), ""


def _check_unique(items: Iterable[Item], name: str) -> None:
    first_line: dict[str, int] = {}
    for item in items:
        if item.digest in first_line:
            raise InputError(f"{name}:{item.line}: same item as in line {first_line[item.digest]}; delete one of them")
        first_line[item.digest] = item.line
