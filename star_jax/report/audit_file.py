"""The file that a person marks: a sample of kept rationales as plain text. No run is read here, only the file's form.

    item: 1                         <- a field a line; an item ends with its mark
    problem: train-2-00012
    ...
    rationale:
    | <scratch>                     <- a text of the run: whatever it says, its lines begin with "|"
    | mark: sound
    machine: the steps check out
    mark: w begging the question    <- a word or its first letter, and a note for whoever likes to write one

Blank lines and lines that begin with "#" say nothing. Items are told apart by a digest of the example they show.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from star_jax.errors import InputError
from star_jax.records import Example, Problem
from star_jax.report.texts import asked, visible

NAME = "audit.txt"  # in the run's directory; the report reads it there
# What a person can say of a rationale -> what that means.
MARKS = {
    "sound": "every step holds, and the answer follows from them",
    "wrong reasoning": "the answer is right, the reasoning is not",
    "leak": "it speaks of the hint, or plainly uses the answer it was given",
    "other": "none of these",
}
SOURCES = ("sampled", "rationalized")  # those of records.Example that have a rationale of the model's own
MACHINE = {True: "the steps check out", False: "a step does not check out", None: "cannot tell"}

_WORDS = {name: name for name in MARKS} | {name[0]: name for name in MARKS} | {"wrong": "wrong reasoning"}
_MARK = re.compile(
    rf"({'|'.join(sorted(_WORDS, key=len, reverse=True))})(?:[\s,;:.–—-]+(.*)|(?=\()(.*)|)", re.IGNORECASE
)
_TEXTS = ("question", "answer", "rationale")
_NUMBERS = ("item", "iteration", "stratum")
_FIELDS = ("item", "problem", "iteration", "source", "class", "stratum", "digest", *_TEXTS, "machine", "mark")
_HEAD = """\
# Right answers are not right reasoning. These rationales reached the right answer: is their reasoning right, too?
#
# Behind each "mark:" write a word or its first letter, then a note if you like; leave blank what you cannot say.
{marks}
#     e.g.  mark: w begging the question
# Words for the note, the paper's failure modes: question implies answer, begging the question, exercise to the
# reader, world-state assertions, red herrings, hint short-cutting.
#
# Lines with | are texts of the run, whatever they say; change nothing but the marks. Stop where you like: sources and
# classes take turns, so that what you have marked is balanced. "stratum" is how many kept rationales share the item's
# iteration, source and class; the report weights the marks by it. Save as plain text, then write the report:
#
#     python -m star_jax.report --workdir=DIR
"""


@dataclasses.dataclass(frozen=True)
class Item:
    """A kept rationale to mark. All texts are as shown: see `visible`."""

    number: int  # 1, 2, ... in the file
    problem: str  # its id
    iteration: int
    source: str  # one of SOURCES
    category: str
    stratum: int  # kept rationales of the same iteration, source and class, this one included
    digest: str
    question: str
    answer: str  # the reference answer
    rationale: str
    machine: str  # one of MACHINE's values
    mark: str = ""  # one of MARKS; "": not marked
    note: str = ""
    line: int = dataclasses.field(default=0, compare=False)  # where it begins in the file; 0: not in a file yet


def digest_of(example: Example) -> str:
    """12 hex digits that tell an example from every other of a run, and from itself in another run."""
    values = [example.problem_id, example.iteration, example.source, example.sample_index, example.completion]
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:12]


def make_item(number: int, example: Example, problem: Problem | None, stratum: int, consistent: bool | None) -> Item:
    """An item not marked yet; without its problem the end of the prompt stands for the question."""
    if problem is None:
        question, answer, category = example.prompt.rpartition("\n\n")[2], "not on record", ""
    else:
        question, answer, category = asked(problem), problem.answer, problem.category
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
        machine=MACHINE[consistent],
    )


def head() -> str:
    """What the file begins with: how to mark it."""
    width = max(map(len, MARKS))
    return _HEAD.format(marks="\n".join(f"#     {name:{width}}  {meaning}" for name, meaning in MARKS.items()))


def write_items(items: Iterable[Item]) -> str:
    """The items' part of the file."""
    return "".join(f"\n# {'-' * 70}\n{_lines(item)}" for item in items)


def read_file(path: Path, name: str) -> str:
    """The file's text, byte for byte. Raises InputError, calling it `name`, where that cannot be had."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{name}: cannot be read ({error.strerror})") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{name}:{line}: is not UTF-8 text; save it as that in your editor") from error


def parse(text: str, name: str) -> list[Item]:
    """The items of a file's text; any editor's newlines will do.

    Raises InputError naming `name`, the line and the remedy where a line is not of the form at the head of this module,
    a mark is none of MARKS, or an item is incomplete or there twice.
    """
    items: list[Item] = []
    values: dict[str, str] = {}  # of the item at hand
    begun, field = 0, ""  # the line it began in, and the field that lines with | belong to
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    for number, line in enumerate(lines, start=1):
        place = f"{name}:{number}"
        if line.startswith("|"):
            if field not in _TEXTS:
                raise InputError(f"{place}: a line with | belongs behind question:, answer: or rationale:; take it out")
            shown = line[1:].removeprefix(" ")
            values[field] = f"{values[field]}\n{shown}" if field in values else shown
        elif line.strip() and not line.startswith("#"):
            field, value = _field(line, place)
            if field == "item" and values:
                raise InputError(f"{name}:{begun}: the item that begins here has no 'mark:'; put it back")
            if field != "item" and not values:
                raise InputError(
                    f"{place}: no 'item:' comes before this line; put it back, or delete the rest of the item"
                )
            if field in values:
                raise InputError(f"{place}: '{field}:' for the second time in this item; delete one of them")
            if field not in _TEXTS:
                values[field] = value
            if field == "item":
                begun = number
            elif field == "mark":
                items.append(_item(values, begun, name, place))
                values = {}
    if values:
        raise InputError(f"{name}:{begun}: the item that begins here has no 'mark:'; put it back")
    _check_once(items, name)
    return items


def _check_once(items: Iterable[Item], name: str) -> None:
    first: dict[str, int] = {}
    for item in items:
        if item.digest in first:
            raise InputError(
                f"{name}:{item.line}: the same item stands in line {first[item.digest]}; delete one of them"
            )
        first[item.digest] = item.line


def _field(line: str, place: str) -> tuple[str, str]:
    """(field, value) of a line."""
    field, colon, value = line.partition(":")
    field = field.strip().lower()
    if not colon or field not in _FIELDS:
        raise InputError(
            f"{place}: {json.dumps(line[:40], ensure_ascii=False)} is no line of this file; write a note behind its "
            "mark, on the same line, or begin the line with #"
        )
    if field in _TEXTS and value.strip():
        raise InputError(f"{place}: a text stands below '{field}:', with | before each of its lines; put it there")
    return field, value.strip()


def _item(values: dict[str, str], begun: int, name: str, place: str) -> Item:
    """The item of these fields, the last of which stands at `place`."""
    if missing := [field for field in _FIELDS if field not in values]:
        raise InputError(f"{name}:{begun}: the item that begins here has no '{missing[0]}:'; put it back, or delete it")
    for field in _NUMBERS:
        if not re.fullmatch(r"[0-9]{1,15}", values[field]):
            raise InputError(f"{name}:{begun}: '{field}' of the item that begins here is no number; put it back")
    if values["source"] not in SOURCES:
        raise InputError(f"{name}:{begun}: 'source' of the item that begins here is none of {', '.join(SOURCES)}")
    mark, note = _mark(values["mark"], place)
    return Item(
        number=int(values["item"]),
        problem=values["problem"],
        iteration=int(values["iteration"]),
        source=values["source"],
        category=values["class"],
        stratum=int(values["stratum"]),
        digest=values["digest"],
        question=values["question"],
        answer=values["answer"],
        rationale=values["rationale"],
        machine=values["machine"],
        mark=mark,
        note=note,
        line=begun,
    )


def _mark(value: str, place: str) -> tuple[str, str]:
    """(mark, note) of what stands behind "mark:"."""
    if not value:
        return "", ""
    found = _MARK.fullmatch(value)
    if not found:
        raise InputError(
            f"{place}: the mark {json.dumps(value[:40], ensure_ascii=False)} begins with none of {', '.join(MARKS)}; "
            "write one of them or its first letter, and the note behind it"
        )
    return _WORDS[found[1].lower()], (found[2] or found[3] or "").strip()


def _lines(item: Item) -> str:
    texts = {"question": item.question, "answer": item.answer, "rationale": item.rationale}
    lines = [
        f"item: {item.number}",
        f"problem: {item.problem}",
        f"iteration: {item.iteration}",
        f"source: {item.source}",
        f"class: {item.category}".rstrip(),
        f"stratum: {item.stratum}",
        f"digest: {item.digest}",
    ]
    for field, text in texts.items():
        lines += [f"{field}:", *(f"| {line}" if line else "|" for line in text.split("\n"))]
    lines += [f"machine: {item.machine}", f"mark: {item.mark} {item.note}".rstrip()]
    return "\n".join(lines) + "\n"


def one_line(text: str) -> str:
    """A text made visible, newlines and tabs too."""
    return visible(text).translate({ord("\n"): "␊", ord("\t"): "␉"}).strip()
