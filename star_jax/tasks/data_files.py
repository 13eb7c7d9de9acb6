"""Problems that come from files: JSON lines read with the place of each fault, a slice held out of train, the hub.

{data_dir}/train.jsonl:17: the answer 'F' is no choice's label; mend the line, or leave it out with ...skip_bad=True
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
    """A task whose problems are objects in JSON-lines files, or rows of a hub dataset.

    The dev split is what the best iteration is chosen on. With `held_out` it is a slice of the train file, fixed
    by the problems' ids; "test" is the official file that results are reported on.
    """

    data_dir: str = ""  # folder of the official files; "": the dataset of that name on the hub, by `datasets`
    held_out: int = 0  # train problems kept back as the dev split; 0: the task's own dev file, where it has one
    skip_bad: bool = False  # leave broken lines out and count them, instead of stopping at the first
    max_tokens: int = 256  # token budget of one completion with a rationale

    FILES: ClassVar[dict[str, str]] = {}  # split -> file name
    HUB: ClassVar[tuple[str, str]] = ("", "default")  # dataset and configuration
    HUB_SPLITS: ClassVar[dict[str, str]] = {}  # split -> the hub's name of it

    def __post_init__(self) -> None:
        if self.held_out < 0 or self.max_tokens < 1:
            raise InputError("task: held_out must not be negative and max_tokens must be at least 1")

    def make_problem(self, values: dict[str, Any], name: str) -> Problem:
        """The problem of one object; `name` is "<split>-<line>". Raises ValueError with the reason."""
        raise NotImplementedError

    def source(self, split: str) -> Path | None:
        """The file of a split, or None: it is on the hub. Raises InputError for a split this task does not have."""
        if split not in self.FILES:
            raise InputError(f"this task has no {split} file; --config.task.held_out=500, say, takes it from train")
        return Path(self.data_dir) / self.FILES[split] if self.data_dir else None

    def problems(self, split: str) -> list[Problem]:
        check_split(split, SPLITS)
        if not self.held_out or split == "test":
            return list(_read(self, split))
        train = _read(self, "train")
        if self.held_out >= len(train):
            raise InputError(f"task.held_out: {self.held_out} of {len(train)} train problems leave none to train on")
        held = {p.id for p in sorted(train, key=lambda p: hashlib.sha256(p.id.encode()).digest())[: self.held_out]}
        return [p for p in train if (p.id in held) == (split == "dev")]


def text_of(values: dict[str, Any], *keys: str) -> str:
    """The text at values[key1][key2]... as it is. Raises ValueError where it is missing or blank."""
    found: Any = values
    for depth, key in enumerate(keys):
        if not isinstance(found, dict) or key not in found:
            raise ValueError(f"key {'.'.join(keys[: depth + 1])!r} is missing")
        found = found[key]
    if not isinstance(found, str) or not found.strip():
        raise ValueError(f"{'.'.join(keys)!r} must be a text that is not empty")
    return found


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any] | ValueError]]:
    """("file:line", the object there or what is wrong with the line) of a JSON-lines file; blank lines are none.

    Raises InputError for a file that cannot be read.
    """
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}:{number}", _object(line)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the right place in --config.task") from error


def _object(line: bytes) -> dict[str, Any] | ValueError:
    try:
        # A lone half of a surrogate pair ("\ud83d") is JSON but no text: no tokenizer takes it.
        text = line.decode("utf-8-sig")
        values = json.loads(text)
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        return ValueError("not UTF-8 text")
    except UnicodeEncodeError:
        return ValueError("holds half of a surrogate pair, which is no character")
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
        raise InputError(f"{remedy}, or `pip install datasets` to take {name} from the hub") from error
    try:
        rows = datasets.load_dataset(name, configuration, split=task.HUB_SPLITS[split])
    except Exception as error:  # the library raises a dozen kinds for a missing network, name or split
        raise InputError(f"{name} cannot be taken from the hub ({str(error).splitlines()[0]}); {remedy}") from error
    for number, row in enumerate(rows, start=1):
        yield f"{name} {split}:{number}", dict(row)


def _read(task: FileTask, split: str) -> tuple[Problem, ...]:
    """Every problem of a split's file, in its order; read again only where the file has changed."""
    path = task.source(split)
    try:
        stamp = path and (path.stat().st_mtime_ns, path.stat().st_size)
    except OSError:
        stamp = None  # the reading says what is wrong
    return _read_now(task, split, path, stamp)


@functools.lru_cache(maxsize=16)
def _read_now(task: FileTask, split: str, path: Path | None, stamp: tuple[int, int] | None) -> tuple[Problem, ...]:
    rows = _hub_objects(task, split) if path is None else read_objects(path)
    problems: dict[str, tuple[Problem, str]] = {}
    bad: list[str] = []
    for place, values in rows:
        try:
            problem = _checked(task.make_problem, values, f"{split}-{place.rpartition(':')[2]}")
            if problem.id in problems:
                raise ValueError(f"the id {problem.id!r} stands at {problems[problem.id][1]} too")
            problems[problem.id] = (problem, place)
        except ValueError as error:
            bad.append(f"{place}: {error}")
            if not task.skip_bad:
                remedy = "mend the line, or leave it out with --config.task.skip_bad=True"
                raise InputError(f"{bad[0]}; {remedy}") from error
    if bad:
        LOG.warning("lines left out: %d, problems read: %d; the first: %s", len(bad), len(problems), bad[0])
    if not problems:
        raise InputError(f"{path or task.HUB[0]}: holds no problems")
    return tuple(problem for problem, _ in problems.values())


def _checked(
    make_problem: Callable[[dict[str, Any], str], Problem], values: dict[str, Any] | ValueError, name: str
) -> Problem:
    if isinstance(values, ValueError):
        raise values
    return make_problem(values, name)
