"""Reads the files of a run into plain values. Any of them may be absent; one that is there and broken is an InputError.

The long files of an iteration (its dev completions, its kept examples) are not held here but read when asked for.
"""

import dataclasses
import functools
import json
import math
import re
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from star_jax.errors import InputError
from star_jax.records import Completion, Example, Problem, Record, natural_order, read_jsonl
from star_jax.runs.json_files import read_json_object

MOST_KEPT = 64_000_000  # bytes of a file whose records are remembered
_ITERATION = re.compile(r"iter_(\d{3,})")


@dataclasses.dataclass(frozen=True)
class Rate:
    """An accuracy: a fraction in 0..1 with the ends of its 95 % interval, of n problems. None: not on record."""

    n: int | None
    accuracy: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An eval_<split>.json."""

    overall: Rate
    mean_of_categories: float | None  # every class counts the same, however many problems it has
    by_category: dict[str, Rate]
    counts: dict[str, float]  # right, wrong, unparsable, truncated, right_wrong_steps: problems


@dataclasses.dataclass(frozen=True)
class Filtered:
    """A filter.json."""

    counts: dict[str, float]  # every number at its top level: problems, draws, right, kept, kept_sampled, ...
    kept_by_category: dict[str, dict[str, float]]  # class -> source ("sampled", "rationalized") -> examples
    problems_by_category: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One iter_NNN; iteration 0 is the base model and has an evaluation only."""

    number: int
    directory: Path
    done: bool
    evaluation: Evaluation | None
    reported: Evaluation | None  # on the run's `report_split`
    filtered: Filtered | None
    fine_tuned: dict[str, float] | None  # every number in finetune.json: steps, examples, loss_first, seconds, ...
    has_kept: bool


@dataclasses.dataclass(frozen=True)
class Run:
    """Everything of a run the report shows, but the long texts."""

    directory: Path
    name: str  # the directory's own name, never the path to it: the page is made to be passed on
    config: dict[str, Any]  # nested, as saved; empty when there is none
    split: str  # every iteration was evaluated on it, and the best one selected
    report_split: str  # what iterations were evaluated on besides, if at all, for reporting
    problems: tuple[Problem, ...]  # of `split`, in the file's order
    classes: tuple[str, ...]  # of `problems`, by name, then of the evaluations
    iterations: tuple[Iteration, ...]  # by number
    metrics: tuple[dict[str, Any], ...]  # one a (stage, iteration, step), in the order of first appearance
    unread_metrics: int  # lines of metrics.jsonl that are no JSON object: torn by a kill


def read_run(workdir: Path) -> Run:
    """Reads a run's directory. Raises InputError when it is no run's, or when a file in it is broken."""
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"{workdir}: there is no such directory; --workdir takes the directory of a run")
    found = sorted(_iteration_dirs(workdir).items())
    has_config = (workdir / "config.json").is_file()
    if not found and not has_config:
        raise InputError(f"{workdir}: holds neither config.json nor iter_000, so it is not the directory of a run")
    config = read_json_object(workdir / "config.json") if has_config else {}
    split = setting(config, "evaluation.split")
    report_split = setting(config, "evaluation.report_split") or "test"
    if not isinstance(split, str) or not re.fullmatch(r"[\w-]+", split):
        split = "dev"
    if not isinstance(report_split, str) or not re.fullmatch(r"[\w-]+", report_split):
        report_split = "test"
    problems = tuple(records_of(Problem, workdir / f"problems_{split}.jsonl"))
    iterations = tuple(_iteration(number, directory, split, report_split) for number, directory in found)
    metrics, unread = _metrics(workdir / "metrics.jsonl")
    classes = dict.fromkeys(sorted({problem.category for problem in problems}, key=natural_order))
    for iteration in iterations:
        classes |= dict.fromkeys(iteration.evaluation.by_category if iteration.evaluation else ())
    name = workdir.resolve().name or "run"
    return Run(workdir, name, config, split, report_split, problems, tuple(classes), iterations, metrics, unread)


def setting(config: dict[str, Any], dotted: str) -> Any:
    """The value of a dotted key, e.g. "star.iterations"; None where the config has no such key."""
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def verdicts(run: Run, iteration: Iteration, split: str) -> dict[str, bool]:
    """Problem id -> whether draw 0 of an evaluation was right; empty where there is none. Not to be changed."""
    path = iteration.directory / f"eval_{split}.jsonl"
    return _solved(path, stamp(path)) if path.is_file() else {}


@functools.lru_cache(maxsize=64)
def _solved(path: Path, _: tuple[int, int]) -> dict[str, bool]:
    return {
        record.problem_id: record.verdict == "right"
        for record in records_of(Completion, path)
        if not record.sample_index
    }


def kept_examples(iteration: Iteration) -> list[Example]:
    """What the iteration's model was fine-tuned on; empty where nothing was kept, or not yet."""
    return list(records_of(Example, iteration.directory / "kept.jsonl"))


def train_classes(run: Run) -> dict[str, str]:
    """Train problem id -> class, of a run that wrote problems_train.jsonl; empty without it. Not to be changed."""
    path = run.directory / "problems_train.jsonl"
    return _classes(path, stamp(path)) if path.is_file() else {}


def train_problems(run: Run) -> dict[str, Problem]:
    """Train problem id -> problem, of a run that wrote problems_train.jsonl; empty without it."""
    return {record.id: record for record in records_of(Problem, run.directory / "problems_train.jsonl")}


def checked_steps(iteration: Iteration) -> dict[tuple[str, bool, int], bool | None]:
    """(problem id, hinted, draw) -> whether the steps of that draw check out by machine; None: it could not tell.

    Empty where samples.jsonl is not there.
    """
    paths = (iteration.directory / f"{name}.jsonl" for name in ("samples", "rationalizations"))
    return {
        (c.problem_id, c.hinted, c.sample_index): c.consistent for path in paths for c in records_of(Completion, path)
    }


@functools.lru_cache(maxsize=8)
def _classes(path: Path, _: tuple[int, int]) -> dict[str, str]:
    return {record.id: record.category for record in records_of(Problem, path)}


def stamp(path: Path) -> tuple[int, int]:
    """Changes with a file's content. A run writes its page after every iteration, and its long files never change: with
    this in the key of a cache they are read once. Raises InputError.
    """
    try:
        about = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return about.st_mtime_ns, about.st_size


def _iteration_dirs(workdir: Path) -> dict[int, Path]:
    matches = ((_ITERATION.fullmatch(path.name), path) for path in workdir.iterdir() if path.is_dir())
    return {int(match.group(1)): path for match, path in matches if match}


def _iteration(number: int, directory: Path, split: str, report_split: str) -> Iteration:
    def optional(name: str, parse: Callable[[Path], Any]) -> Any:
        return parse(directory / name) if (directory / name).is_file() else None

    return Iteration(
        number=number,
        directory=directory,
        done=(directory / "DONE").exists(),
        evaluation=optional(f"eval_{split}.json", _evaluation),
        reported=optional(f"eval_{report_split}.json", _evaluation) if report_split != split else None,
        filtered=optional("filter.json", _filtered),
        fine_tuned=optional("finetune.json", lambda path: _numbers(read_json_object(path))),
        has_kept=(directory / "kept.jsonl").is_file(),
    )


def _evaluation(path: Path) -> Evaluation:
    values = read_json_object(path)
    by_category = {label: _rate(path, rate) for label, rate in _mapping(path, values, "by_category").items()}
    known = [rate.accuracy for rate in by_category.values() if rate.accuracy is not None]
    mean = _fraction(path, values, "mean_of_categories")
    if mean is None and known:
        mean = sum(known) / len(known)
    return Evaluation(_rate(path, values), mean, by_category, _numbers(values))


def _rate(path: Path, values: Any) -> Rate:
    if not isinstance(values, dict):
        raise InputError(f"{path}: a class of 'by_category' should be an object with 'n', 'accuracy' and 'ci95'")
    interval = values.get("ci95")
    if interval is None:
        interval = (None, None)
    if not isinstance(interval, (list, tuple)) or len(interval) != 2:
        raise InputError(f"{path}: 'ci95' should be [low, high], is {_short(interval)}")
    ends = {"ci95 low": interval[0], "ci95 high": interval[1]}
    low, high = (_fraction(path, ends, key) for key in ends)
    n = _numbers(values).get("n")
    return Rate(None if n is None else int(n), _fraction(path, values, "accuracy"), low, high)


def _filtered(path: Path) -> Filtered:
    values = read_json_object(path)
    kept = _mapping(path, values, "kept_by_category")
    return Filtered(
        counts=_numbers(values),
        kept_by_category={label: _numbers(_mapping(path, kept, label)) for label in kept},
        problems_by_category=_numbers(_mapping(path, values, "problems_by_category")),
    )


def _metrics(path: Path) -> tuple[tuple[dict[str, Any], ...], int]:
    """The log's lines, and how many could not be read. Of a step a resumed run repeated, the last values win."""
    if not path.is_file():
        return (), 0
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    unread = 0
    for line in filter(str.strip, _read_text(path).split("\n")):
        try:
            values = json.loads(line)
        except ValueError:
            values = None
        if not isinstance(values, dict):
            unread += 1
            continue
        key = tuple(str(values.get(name)) for name in ("stage", "iteration", "step"))
        merged[key] = {**merged.get(key, {}), **values}
    return tuple(merged.values()), unread


def records_of(kind: type[Record], path: Path) -> Sequence[Record]:
    """The records of a file, none where it is absent. Raises InputError naming file and line.

    Several parts of the page read the files of the newest iteration, so what was read last is kept for a while.
    """
    if not path.is_file():
        return ()
    now = stamp(path)
    kind_: Any = kind  # to mypy a class of dataclasses has no hash
    return _recent(kind_, path, now) if now[1] <= MOST_KEPT else _records(kind, path)


@functools.lru_cache(maxsize=6)  # a newest iteration has four such files
def _recent(kind: type[Record], path: Path, _: tuple[int, int]) -> Sequence[Record]:
    return _records(kind, path)


def _records(kind: type[Record], path: Path) -> Sequence[Record]:
    hints = typing.get_type_hints(kind)
    texts = [name for name, type_ in hints.items() if type_ is str]
    numbers = [name for name, type_ in hints.items() if type_ in (int, float)]
    records = []
    for number, record in enumerate(read_jsonl(kind, path), start=1):
        values = record.__dict__
        for name in texts:
            if type(values[name]) is not str:
                raise InputError(f"{path}:{number}: '{name}' should be text, is {_short(values[name])}")
        for name in numbers:
            value = values[name]
            if type(value) is not float and not is_number(value):  # NaN is one: a model can be that broken
                raise InputError(f"{path}:{number}: '{name}' should be a number, is {_short(value)}")
        records.append(record)
    return records


def _read_text(path: Path) -> str:
    """A file's text; bytes that are not UTF-8 (a write torn inside a letter) read as U+FFFD."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _mapping(path: Path, values: dict[str, Any], key: str) -> dict[str, Any]:
    """values[key], an object; empty where it is absent."""
    value = values.get(key, {})
    if not isinstance(value, dict):
        raise InputError(f"{path}: '{key}' should be an object, is {_short(value)}")
    return value


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers; null, NaN and texts are left out."""
    return {key: value for key, value in values.items() if is_number(value)}


def _fraction(path: Path, values: dict[str, Any], key: str) -> float | None:
    """values[key] in 0..1; None where it is absent, null or NaN (a class of no problems)."""
    value = values.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not is_number(value) or not 0 <= value <= 1:
        raise InputError(f"{path}: '{key}' should be a number in 0..1, is {_short(value)}")
    return float(value)


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a JSON value is a finite number (true and false are not)."""
    # Not math.isfinite: it fails on an integer that no float can hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
