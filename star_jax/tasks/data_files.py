"""Tasks whose problems come from JSON-lines files or a hub dataset; every bad line is reported with file and line.

train.jsonl:17: the answer 'F' is not a choice's label; fix the line, or skip such lines with ...skip_bad=True
"""

import codecs
import dataclasses
import difflib
import functools
import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from star_jax.errors import InputError, MissingInput
from star_jax.json_reader import parse, read_lines
from star_jax.option_values import PATH
from star_jax.records import Problem
from star_jax.tasks.answers import choices
from star_jax.tasks.answers.folding import folded
from star_jax.tasks.base import MAX_TOKENS, Task, check_split

LOG = logging.getLogger("star_jax")
SPLITS = ("train", "dev", "test")
MARK = "####"  # the rest of its line is the answer
HINT_LINE = "Hint:"  # begins the line of `hint_line`


@dataclasses.dataclass(frozen=True)
class FileTask(Task):
    """Base class of tasks whose problems are objects in JSON-lines files, or rows of a hub dataset.

    A subclass sets FILES (and HUB) and defines `make_problem`, `question_text` and `parse`, which reads as
    `answer_rule` says and refuses a text that repeats a hint.
    The best iteration is selected on the dev split. With `held_out` that is a part of the train file, chosen by a hash
    of the problems' ids; problems of the same content are in the same split. "test" is the official file on which
    results are reported.
    """

    # Folder of the data files; "": download the dataset from the hub (needs `datasets`)
    data_dir: str = dataclasses.field(default="", metadata=PATH)
    held_out: int = 0  # number of train problems that form the dev split; 0: the task's dev file, if it has one
    skip_bad: bool = False  # skip and count bad lines instead of stopping at the first
    max_tokens: int = 256  # token budget of one completion with a rationale
    # A hint is a line "Hint: " before "A:", in the words that end a right completion; small models copy those more
    hint_line: bool = False
    # A hint is this share of the lines of the problem's reference rationale, from its start and rounded up, in such a
    # line and without the answer; 0: it is the answer
    hint_share: float = 0.0
    # "strict": answers count in the form that the task's prompts show, as in the paper; "lenient": in other forms too
    answer_rule: str = "strict"

    FILES: ClassVar[dict[str, str]] = {}  # split -> file name
    HUB: ClassVar[tuple[str, str]] = ("", "default")  # dataset and configuration
    HUB_SPLITS: ClassVar[dict[str, str]] = {}  # split -> its name on the hub

    def __post_init__(self) -> None:
        if self.held_out < 0 or not 1 <= self.max_tokens <= MAX_TOKENS:
            raise InputError(
                f"task: held_out must not be negative and max_tokens must be at least 1 and at most {MAX_TOKENS}"
            )
        if not 0 <= self.hint_share <= 1:
            raise InputError(f"task.hint_share must be between 0 and 1, got {self.hint_share}")
        if self.answer_rule not in ("strict", "lenient"):
            raise InputError(f"task.answer_rule must be strict or lenient, got {self.answer_rule!r}")

    def lenient(self) -> "FileTask | None":
        return None if self.answer_rule == "lenient" else dataclasses.replace(self, answer_rule="lenient")

    def question_text(self, problem: Problem, hint: bool) -> str:
        """The text after which the model writes its completion; with `hint`, the question shows the answer."""
        raise NotImplementedError

    @property
    def has_hint_line(self) -> bool:
        """Whether hints are a line of their own."""
        return self.hint_line or self.hint_share > 0

    def render(self, problem: Problem, hint: bool = False) -> str:
        """See Task.render. Raises InputError for a hint from a rationale that the problem lacks."""
        text = self.question_text(problem, hint and not self.has_hint_line)
        if not hint or not self.has_hint_line:
            return text
        if self.hint_share and problem.rationale is None:
            raise InputError(
                f"task.hint_share: problem {problem.id!r} has no reference rationale to take a hint from; set "
                "--config.task.hint_share=0 for the answer as the hint"
            )
        return self._with_hint_line(text, problem.rationale or "", problem.answer)

    def _with_hint_line(self, text: str, rationale: str, answer: str) -> str:
        """A question without a hint, or a shot, with the hint in a line before "A:"."""
        problem, completion = self.split_turns(text)
        hint = choices.conclusion_of(problem, answer) or f"{MARK} {answer}"
        if self.hint_share:
            lines = [
                line.strip() for line in rationale.split("\n") if line.strip() and not line.strip().startswith(MARK)
            ]
            hint = " ".join(lines[: math.ceil(self.hint_share * len(lines))])
        return f"{problem}\n{HINT_LINE} {hint}\nA:{completion}"

    def repeats_hint_line(self, text: str) -> bool:
        """Whether a completion repeats the line of a hint: it reasons from the hint."""
        return self.has_hint_line and HINT_LINE in text

    def hinted_shot(self, shot: str) -> str | None:
        """Where hints are a line of their own, the shot with its hint; otherwise None."""
        completion = self.split_turns(shot)[1].rstrip("\n")
        answer = self.parse(completion) if self.has_hint_line else None
        return None if answer is None else self._with_hint_line(shot, completion, answer)

    def make_problem(self, values: dict[str, Any], name: str) -> Problem:
        """The problem of one JSON object.

        `name` is "<split>-<line>", the id of a problem whose data has none. Raises ValueError with the reason if the
        object is bad; the caller adds file and line.
        """
        raise NotImplementedError

    def source(self, split: str) -> Path | None:
        """The file of a split; None if it comes from the hub. Raises InputError for a split that has no file."""
        if split not in self.FILES:
            remedy = "--config.task.held_out=500 takes the dev split from train"
            raise InputError(f"this task has no {split} file; {remedy}")
        return Path(self.data_dir) / self.FILES[split] if self.data_dir else None

    def problems(self, split: str) -> list[Problem]:
        check_split(split, SPLITS)
        if not self.held_out or split == "test":
            return list(_read(self, split))
        train = _read(self, "train")
        if self.held_out >= len(train):
            raise InputError(f"task.held_out: {self.held_out} of {len(train)} train problems leave none for training")
        dev_ids = _held_out_ids(train, self.held_out)
        return [p for p in train if (p.id in dev_ids) == (split == "dev")]


def text_of(values: dict[str, Any], *keys: str) -> str:
    """The text at values[key1][key2]..., unchanged. Raises ValueError if it is missing, blank or not a text."""
    value: Any = values
    for depth, key in enumerate(keys):
        if not isinstance(value, dict) or key not in value:
            raise ValueError(f"key {'.'.join(keys[: depth + 1])!r} is missing")
        value = value[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{'.'.join(keys)!r} must be a text that is not empty")
    return value


def check_keys(values: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raises ValueError that names the first key that is not known, and a known one that is similar."""
    if unknown := [key for key in values if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise ValueError(f"unknown key {unknown[0][:60]!r}; {remedy}")


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """`objects_of` the lines of a file. Raises InputError for a file that cannot be read."""
    lines = read_lines(path, remedy="correct the path in --config.task")
    yield from objects_of((line for _, line in lines), str(path))


def objects_of(lines: Iterable[bytes], name: str) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """Yields ("name:line", the line's object or a ValueError with what is wrong with it); skips blank lines."""
    for number, line in enumerate(lines, start=1):
        if line.removeprefix(codecs.BOM_UTF8).strip():
            yield f"{name}:{number}", _object(line)


def _object(line: bytes) -> dict[str, Any] | ValueError:
    try:
        # A lone half of a surrogate pair ("\ud83d") is valid JSON but not valid text: no tokenizer can encode it.
        values = parse(line.rstrip(b"\r\n"), unique_keys=True)
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        return ValueError("not UTF-8 text")
    except UnicodeEncodeError:
        return ValueError("holds half of a surrogate pair, which is not a character")
    except json.JSONDecodeError as error:  # its own text counts lines, from 1, within the line
        return ValueError(f"not JSON (column {error.colno}: {error.msg})")
    except ValueError as error:
        return ValueError(f"not JSON ({error})")
    return values if isinstance(values, dict) else ValueError("not a JSON object")


def _held_out_ids(train: Sequence[Problem], count: int) -> set[str]:
    """The ids of `count` train problems that form the dev split; no other problem has the content of one of them.

    Problems of equal content are ranked together, by the smallest hash of their ids; those that are more than what is
    left of `count` stay in train. Raises InputError if no choice of problems in that order gives `count`.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for problem in train:
        # The order of the choices makes no other problem.
        content = (folded(problem.question), *sorted(map(folded, problem.choices)))
        groups.setdefault(content, []).append(problem.id)
    ids: set[str] = set()
    for members in sorted(groups.values(), key=lambda g: min(hashlib.sha256(i.encode()).digest() for i in g)):
        if len(members) <= count - len(ids):
            ids.update(members)
    if len(ids) < count:
        remedy = f"set --config.task.held_out={len(ids)}, or " if ids else ""
        raise InputError(
            f"task.held_out: of {len(train)} train problems, {len(ids)} and not {count} can be held out together "
            f"with all that ask the same; {remedy}remove the repeated lines"
        )
    return ids


def _hub_objects(task: FileTask, split: str) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    name, configuration = task.HUB
    remedy = "set --config.task.data_dir to the folder of the official files"
    if not name:
        raise MissingInput(f"the task needs its files; {remedy}")
    try:
        import datasets
    except ImportError as error:
        raise MissingInput(f"{remedy}, or `pip install datasets` to load {name} from the hub") from error
    try:
        rows = datasets.load_dataset(name, configuration, split=task.HUB_SPLITS[split])
    except Exception as error:  # a missing network, name or split raise many types
        raise MissingInput(f"{name} cannot be loaded from the hub ({str(error).splitlines()[0]}); {remedy}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{name} {split}:{number}", dict(row)


def _read(task: FileTask, split: str) -> tuple[Problem, ...]:
    """All problems of a split's file, in its order; cached until the file's time or size changes."""
    path = task.source(split)
    try:
        stamp = path and (path.stat().st_mtime_ns, path.stat().st_size)
    except OSError:
        stamp = None  # reading the file reports what is wrong
    return _read_now(task, split, path, stamp)


@functools.lru_cache(maxsize=16)
def _read_now(task: FileTask, split: str, path: Path | None, stamp: tuple[int, int] | None) -> tuple[Problem, ...]:
    rows = _hub_objects(task, split) if path is None else read_objects(path)
    problems: dict[str, tuple[Problem, str]] = {}
    bad: list[str] = []
    for location, values in rows:
        try:
            problem = _checked(task.make_problem, values, f"{split}-{location.rpartition(':')[2]}")
            if problem.id in problems:
                raise ValueError(f"the id {problem.id!r} is also at {problems[problem.id][1]}")
            problems[problem.id] = (problem, location)
        except ValueError as error:
            bad.append(f"{location}: {error}")
            if not task.skip_bad:
                remedy = "fix the line, or skip such lines with --config.task.skip_bad=True"
                raise InputError(f"{bad[0]}; {remedy}") from error
    if bad:
        LOG.warning("skipped %d bad lines, read %d problems; the first bad line: %s", len(bad), len(problems), bad[0])
    if not problems:
        raise InputError(f"{path or task.HUB[0]}: holds no problems")
    return tuple(problem for problem, _ in problems.values())


def _checked(
    make_problem: Callable[[dict[str, Any], str], Problem], values: dict[str, Any] | ValueError, name: str
) -> Problem:
    if isinstance(values, ValueError):
        raise values
    return make_problem(values, name)
