"""Reads a run directory into plain values, for the report and the audit. No JAX here.

Any file may be absent: the run may be unfinished. A file that exists and is broken raises InputError. The long files of
an iteration (completions, kept examples) are not held in `RunData`; functions here read them on request.
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
from star_jax.evaluation.best import best_iteration
from star_jax.records import Completion, Example, Problem, Record, Verdict, natural_order, read_jsonl
from star_jax.runs.json_files import read_json_object

MAX_CACHED_BYTES = 64_000_000  # of a file whose records stay in memory
_ITERATION = re.compile(r"iter_(\d{3,})")

FileStamp = tuple[int, int]  # (modification time in nanoseconds, size in bytes)


@dataclasses.dataclass(frozen=True)
class Rate:
    """An accuracy in 0..1 over n problems with its 95 % interval. None: not on record."""

    n: int | None
    accuracy: float | None
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Content of an eval_<split>.json."""

    overall: Rate
    mean_of_categories: float | None  # unweighted: a category counts the same whatever its number of problems
    by_category: dict[str, Rate]
    counts: dict[str, float]  # problems by verdict, and right_wrong_steps


@dataclasses.dataclass(frozen=True)
class FilterResult:
    """Content of a filter.json."""

    counts: dict[str, float]  # every number at its top level: problems, samples, right, kept, kept_sampled, ...
    kept_by_category: dict[str, dict[str, float]]  # category -> source -> examples
    problems_by_category: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One iter_NNN directory. Iteration 0 is the base model, which has evaluations only."""

    number: int
    directory: Path
    done: bool
    evaluation: Evaluation | None  # on the run's `split`
    report_evaluation: Evaluation | None  # on the run's `report_split`
    filter_result: FilterResult | None
    fine_tuning: dict[str, float] | None  # every number in finetune.json: steps, examples, loss_first, seconds, ...
    has_kept: bool  # kept.jsonl exists


@dataclasses.dataclass(frozen=True)
class RunData:
    """Everything of a run that the report shows, except the long texts."""

    directory: Path
    name: str  # the directory's name without its path: a page is made to be passed on
    config: dict[str, Any]  # nested, as saved; empty without config.json
    split: str  # every iteration is evaluated on it, and the best one is selected on it
    report_split: str  # a second split that iterations may be evaluated on; it selects nothing
    problems: tuple[Problem, ...]  # of `split`, in file order
    categories: tuple[str, ...]  # of `problems` in natural order, then any others that evaluations name
    iterations: tuple[Iteration, ...]  # by number
    metrics: tuple[dict[str, Any], ...]  # one line for each (stage, iteration, step), in order of first appearance
    unread_metrics: int  # lines of metrics.jsonl that are not JSON objects: torn by a kill

    @property
    def best(self) -> int | None:
        """The best iteration's number; 0 if none beats the base, None before the first evaluation."""
        rates = {it.number: it.evaluation.overall.accuracy for it in self.iterations if it.evaluation}
        accuracy = {number: rate for number, rate in rates.items() if rate is not None}
        return best_iteration(accuracy) if accuracy else None

    def iteration(self, number: int | None) -> Iteration | None:
        """The iteration with this number; None if the run does not have it."""
        return next((iteration for iteration in self.iterations if iteration.number == number), None)


def read_run(workdir: Path) -> RunData:
    """Reads a run directory. Raises InputError if it is not one, or if a file in it is broken."""
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise InputError(f"{workdir}: no such directory; --workdir takes a run directory")
    directories = sorted(_iteration_directories(workdir).items())
    has_config = (workdir / "config.json").is_file()
    if not directories and not has_config:
        raise InputError(f"{workdir}: not a run directory: it has neither config.json nor iter_000")
    config = read_json_object(workdir / "config.json") if has_config else {}
    split = _split_name(setting(config, "evaluation.split"), default="dev")
    report_split = _split_name(setting(config, "evaluation.report_split"), default="test")
    problems = tuple(read_records(Problem, workdir / f"problems_{split}.jsonl"))
    iterations = tuple(_iteration(number, directory, split, report_split) for number, directory in directories)
    metrics, unread = _metrics(workdir / "metrics.jsonl")
    categories = dict.fromkeys(sorted({problem.category for problem in problems}, key=natural_order))
    for iteration in iterations:
        categories |= dict.fromkeys(iteration.evaluation.by_category if iteration.evaluation else ())
    name = workdir.resolve().name or "run"
    return RunData(workdir, name, config, split, report_split, problems, tuple(categories), iterations, metrics, unread)


def setting(config: dict[str, Any], dotted: str) -> Any:
    """The value of a dotted key, e.g. "star.iterations"; None if the config does not have it."""
    value: Any = config
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def solved_by_problem(run: RunData, number: int | None) -> dict[str, bool]:
    """Problem id -> sample 0 of an iteration's evaluation on `split` was right; empty without it. Do not modify."""
    iteration = run.iteration(number)
    path = iteration.directory / f"eval_{run.split}.jsonl" if iteration else None
    return _solved_by_problem(path, file_stamp(path)) if path and path.is_file() else {}


@functools.lru_cache(maxsize=64)
def _solved_by_problem(path: Path, _: FileStamp) -> dict[str, bool]:
    completions = read_records(Completion, path)
    return {c.problem_id: c.verdict == Verdict.RIGHT for c in completions if not c.sample_index}


def kept_examples(iteration: Iteration) -> list[Example]:
    """What the iteration's model was fine-tuned on; empty if nothing was kept (yet)."""
    return list(read_records(Example, iteration.directory / "kept.jsonl"))


def train_categories(run: RunData) -> dict[str, str]:
    """Train problem id -> category; empty without problems_train.jsonl. Do not modify."""
    path = run.directory / "problems_train.jsonl"
    return _categories(path, file_stamp(path)) if path.is_file() else {}


@functools.lru_cache(maxsize=8)
def _categories(path: Path, _: FileStamp) -> dict[str, str]:
    return {record.id: record.category for record in read_records(Problem, path)}


def train_problems(run: RunData) -> dict[str, Problem]:
    """Train problem id -> problem; empty without problems_train.jsonl."""
    return {record.id: record for record in read_records(Problem, run.directory / "problems_train.jsonl")}


def step_checks(iteration: Iteration) -> dict[tuple[str, bool, int], bool | None]:
    """(problem id, hinted, sample index) -> the sample's steps pass the task's check; None: the task cannot tell.

    Empty without samples.jsonl and rationalizations.jsonl.
    """
    paths = (iteration.directory / f"{name}.jsonl" for name in ("samples", "rationalizations"))
    completions = (completion for path in paths for completion in read_records(Completion, path))
    return {(c.problem_id, c.hinted, c.sample_index): c.consistent for c in completions}


def read_records(kind: type[Record], path: Path) -> Sequence[Record]:
    """The records of a file; empty if it is absent. Raises InputError with file and line.

    The files read last stay in memory, since several parts of the page read the newest iteration's files.
    """
    if not path.is_file():
        return ()
    stamp = file_stamp(path)
    hashable_kind: Any = kind  # mypy takes a class of dataclasses for unhashable
    return _cached_records(hashable_kind, path, stamp) if stamp[1] <= MAX_CACHED_BYTES else _records(kind, path)


def file_stamp(path: Path) -> FileStamp:
    """A cache key that changes with a file's content. Raises InputError if the file cannot be read.

    A run writes its page after every iteration and never changes its long files: with the stamp as a cache key each is
    read once.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return stat.st_mtime_ns, stat.st_size


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite number of JSON; booleans are not numbers."""
    # Not math.isfinite: it fails on an integer that no float can hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def _split_name(value: Any, default: str) -> str:
    """A split as configured, if it can be part of a file's name."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w-]+", value) else default


def _iteration_directories(workdir: Path) -> dict[int, Path]:
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
        report_evaluation=optional(f"eval_{report_split}.json", _evaluation) if report_split != split else None,
        filter_result=optional("filter.json", _filter_result),
        fine_tuning=optional("finetune.json", lambda path: _numbers(read_json_object(path))),
        has_kept=(directory / "kept.jsonl").is_file(),
    )


def _evaluation(path: Path) -> Evaluation:
    values = read_json_object(path)
    by_category = {label: _rate(path, rate) for label, rate in _mapping(path, values, "by_category").items()}
    accuracies = [rate.accuracy for rate in by_category.values() if rate.accuracy is not None]
    mean = _fraction(path, values, "mean_of_categories")
    if mean is None and accuracies:
        mean = sum(accuracies) / len(accuracies)
    return Evaluation(_rate(path, values), mean, by_category, _numbers(values))


def _rate(path: Path, values: Any) -> Rate:
    if not isinstance(values, dict):
        raise InputError(f"{path}: a category of 'by_category' should be an object with 'n', 'accuracy' and 'ci95'")
    interval = values.get("ci95")
    if interval is None:
        interval = (None, None)
    if not isinstance(interval, (list, tuple)) or len(interval) != 2:
        raise InputError(f"{path}: 'ci95' should be [low, high], is {_short(interval)}")
    ends = {"ci95 low": interval[0], "ci95 high": interval[1]}
    low, high = (_fraction(path, ends, key) for key in ends)
    n = _numbers(values).get("n")
    return Rate(None if n is None else int(n), _fraction(path, values, "accuracy"), low, high)


def _filter_result(path: Path) -> FilterResult:
    values = read_json_object(path)
    kept = _mapping(path, values, "kept_by_category")
    return FilterResult(
        counts=_numbers(values),
        kept_by_category={label: _numbers(_mapping(path, kept, label)) for label in kept},
        problems_by_category=_numbers(_mapping(path, values, "problems_by_category")),
    )


def _metrics(path: Path) -> tuple[tuple[dict[str, Any], ...], int]:
    """(the log's lines, the number of unreadable ones). A step that a resumed run logged again has its last values."""
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
        merged[key] = merged.get(key, {}) | values
    return tuple(merged.values()), unread


@functools.lru_cache(maxsize=6)  # the newest iteration has four such files
def _cached_records(kind: type[Record], path: Path, _: FileStamp) -> Sequence[Record]:
    return _records(kind, path)


def _records(kind: type[Record], path: Path) -> Sequence[Record]:
    """The records of a file, with the types of their texts and numbers checked."""
    types = typing.get_type_hints(kind)
    texts = [name for name, type_ in types.items() if type_ is str]
    numbers = [name for name, type_ in types.items() if type_ in (int, float)]
    records = []
    for line, record in enumerate(read_jsonl(kind, path), start=1):
        values = record.__dict__
        for name in texts:
            if type(values[name]) is not str:
                raise InputError(f"{path}:{line}: '{name}' should be text, is {_short(values[name])}")
        for name in numbers:
            value = values[name]
            if type(value) is not float and not is_number(value):  # a float may be NaN: a broken model gives NaN
                raise InputError(f"{path}:{line}: '{name}' should be a number, is {_short(value)}")
        records.append(record)
    return records


def _read_text(path: Path) -> str:
    """A file's text. Bytes that are not UTF-8 (a write torn within a character) become U+FFFD."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _mapping(path: Path, values: dict[str, Any], key: str) -> dict[str, Any]:
    """values[key], an object; empty if absent."""
    value = values.get(key, {})
    if not isinstance(value, dict):
        raise InputError(f"{path}: '{key}' should be an object, is {_short(value)}")
    return value


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """The entries that are finite numbers, without null, NaN and texts."""
    return {key: value for key, value in values.items() if is_number(value)}


def _fraction(path: Path, values: dict[str, Any], key: str) -> float | None:
    """values[key] in 0..1; None if absent, null or NaN (a category without problems)."""
    value = values.get(key)
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not is_number(value) or not 0 <= value <= 1:
        raise InputError(f"{path}: '{key}' should be a number in 0..1, is {_short(value)}")
    return float(value)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
