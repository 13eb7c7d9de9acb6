"""Tasks whose problems come from JSON-lines files or a hub dataset; every bad line is reported with file and line.

train.jsonl:17: the answer 'F' is not a choice's label; fix the line, or skip such lines with ...skip_bad=True
"""

import dataclasses
import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from star_jax.errors import InputError
from star_jax.records import Problem
from star_jax.tasks.base import Task, check_split

LOG = logging.getLogger("star_jax")
SPLITS = ("train", "dev", "test")


@dataclasses.dataclass(frozen=True)
class FileTask(Task):
    """Base class of tasks whose problems are objects in JSON-lines files, or rows of a hub dataset.

    A subclass sets FILES (and HUB) and defines `make_problem`, `render` and `parse`. The best iteration is selected on
    the dev split. With `held_out` that is a part of the train file, chosen by a hash of the problems' ids. "test" is
    the official file on which results are reported.
    """

    data_dir: str = ""  # folder of the data files; "": download the dataset from the hub (needs `datasets`)
    held_out: int = 0  # number of train problems that form the dev split; 0: the task's dev file, if it has one
    skip_bad: bool = False  # skip and count bad lines instead of stopping at the first
    max_tokens: int = 256  # token budget of one completion with a rationale

    FILES: ClassVar[dict[str, str]] = {}  # split -> file name
    HUB: ClassVar[tuple[str, str]] = ("", "default")  # dataset and configuration
    HUB_SPLITS: ClassVar[dict[str, str]] = {}  # split -> its name on the hub

    def __post_init__(self) -> None:
        if self.held_out < 0 or self.max_tokens < 1:
            raise InputError("task: held_out must not be negative and max_tokens must be at least 1")

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
        dev_ids = {p.id for p in sorted(train, key=lambda p: hashlib.sha256(p.id.encode()).digest())[: self.held_out]}
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


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """Yields ("file:line", the line's object or a ValueError with what is wrong with it); skips blank lines.

    Raises InputError for a file that cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _object(line)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); correct the path in --config.task") from error


def _object(line: bytes) -> dict[str, Any] | ValueError:
    try:
        # A lone half of a surrogate pair ("\ud83d") is valid JSON but not valid text: no tokenizer can encode it.
        text = line.decode("utf-8-sig")
        values = json.loads(text)
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        return ValueError("not UTF-8 text")
    except UnicodeEncodeError:
        return ValueError("holds half of a surrogate pair, which is not a character")
    except (ValueError, RecursionError) as error:
        return ValueError(f"not JSON ({error})")
    return values if isinstance(values, dict) else ValueError("not a JSON object")


def _hub_objects(task: FileTask, split: str) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    name, configuration = task.HUB
    remedy = "set --config.task.data_dir to the folder of the official files"
    if not name:
        raise InputError(f"the task needs its files; {remedy}")
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{remedy}, or `pip install datasets` to load {name} from the hub") from error
    try:
        rows = datasets.load_dataset(name, configuration, split=task.HUB_SPLITS[split])
    except Exception as error:  # a missing network, name or split raise many types
        raise InputError(f"{name} cannot be loaded from the hub ({str(error).splitlines()[0]}); {remedy}") from error
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
