"""Reads a run directory into plain values, for the report and the audit. No JAX here.

Any file may be absent: the run may be unfinished. A file that exists and is broken raises InputError. The long files of
an iteration (completions, kept examples) are not held in `RunData`; functions here read them on request.
"""

import contextlib
import dataclasses
import functools
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from star_jax.errors import InputError
from star_jax.evaluation import results
from star_jax.evaluation.results import Evaluation, FilterResult, SampledEvaluation
from star_jax.json_reader import Fields, is_present, parse_object, read_lines
from star_jax.records import Completion, Example, Problem, ProblemKey, Record, Verdict, natural_order
from star_jax.runs import checksums
from star_jax.runs.layout import iteration_number, read_config

MAX_CACHED_BYTES = 64_000_000  # of a file whose records stay in memory

_EVALUATION = re.compile(r"eval_(\w[\w-]{0,79}?)(?:_([0-9]{1,9})_samples_t([0-9.e+-]{1,30}))?", re.ASCII)

FileStamp = tuple[int, int]  # (modification time in nanoseconds, size in bytes)


@dataclasses.dataclass(frozen=True)
class EvaluationName:
    """An evaluation by the name of its files in an iteration's directory, `stem`.json and `stem`.jsonl."""

    stem: str
    split: str
    samples: int = 0  # per problem, drawn at random; 0: one, greedy
    temperature: str = ""

    @property
    def title(self) -> str:
        """In words."""
        drawn = f", {self.samples:,} samples per problem at temperature {self.temperature}" if self.samples else ""
        return f"{self.split} split{drawn}"


@dataclasses.dataclass(frozen=True)
class Iteration:
    """One iter_NNN directory. Iteration 0 is the base model, which has evaluations only."""

    number: int
    directory: Path
    done: bool
    evaluation: Evaluation | None  # on the run's `split`
    report_evaluation: Evaluation | None  # on the run's `report_split`
    sampled: dict[EvaluationName, SampledEvaluation]  # with several samples per problem
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
        return results.best_iteration({it.number: it.evaluation for it in self.iterations if it.evaluation})

    def iteration(self, number: int | None) -> Iteration | None:
        """The iteration with this number; None if the run does not have it."""
        return next((iteration for iteration in self.iterations if iteration.number == number), None)


def read_run(workdir: Path) -> RunData:
    """Reads a run directory. Raises InputError if it is not one, or if a file in it is broken."""
    workdir = Path(workdir)
    if not os.path.isdir(workdir):
        raise InputError(f"{workdir}: no such directory; --workdir takes a run directory")
    directories = sorted(_iteration_directories(workdir).items())
    has_config = is_present(workdir / "config.json")
    if not directories and not has_config:
        raise InputError(f"{workdir}: not a run directory: it has neither config.json nor iter_000")
    config = read_config(workdir) if has_config else {}
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


def rationalizes(config: dict[str, Any]) -> bool:
    """Whether a run samples with the answer as a hint."""
    return setting(config, "star.rationalize") in ("failed", "all")


def evaluation_names(run: RunData) -> list[EvaluationName]:
    """All evaluations with completions on record, and the one that selects if its problems are: that comes first."""
    stems = {path.stem for it in run.iterations for path in it.directory.glob("eval_*.jsonl")}
    names = [name for stem in stems if (name := _evaluation_name(stem))]
    selecting = EvaluationName(f"eval_{run.split}", run.split)
    others = [name for name in names if name != selecting]
    others.sort(key=lambda name: (name.samples > 0, name.split, name.samples, name.stem))
    return [selecting, *others] if run.problems or selecting in names else others


def _evaluation_name(stem: str) -> EvaluationName | None:
    match = _EVALUATION.fullmatch(stem)
    return EvaluationName(stem, match[1], int(match[2] or 0), match[3] or "") if match else None


def solved_by_problem(run: RunData, number: int | None, split: str = "") -> dict[ProblemKey, bool]:
    """Problem -> sample 0 of an iteration's evaluation was right; empty without it. Do not modify.

    `split`: the evaluated split; by default the one that selects.
    """
    iteration = run.iteration(number)
    path = iteration.directory / f"eval_{split or run.split}.jsonl" if iteration else None
    return _solved_by_problem(path, file_stamp(path)) if path and is_present(path) else {}


@functools.lru_cache(maxsize=256)  # a study has some sixty runs
def _solved_by_problem(path: Path, _: FileStamp) -> dict[ProblemKey, bool]:
    completions = read_records(Completion, path)
    return {c.problem_key: c.verdict == Verdict.RIGHT for c in completions if not c.sample_index}


def kept_examples(iteration: Iteration) -> list[Example]:
    """What the iteration's model was fine-tuned on; empty if nothing was kept (yet)."""
    return list(read_records(Example, iteration.directory / "kept.jsonl"))


def problem_files(run: RunData, split: str) -> list[Path]:
    """The files of a split's problems: those of the data now, then those of before each change of the data."""
    now = run.directory / f"problems_{split}.jsonl"
    earlier = sorted(run.directory.glob(f"earlier_problems_{split}_*.jsonl"))
    return [path for path in (now, *earlier) if is_present(path)]


def train_problems(run: RunData) -> dict[ProblemKey, Problem]:
    """All train problems of a run, also those of before a change of the data. Do not modify."""
    return problems_by_key(tuple((path, file_stamp(path)) for path in problem_files(run, "train")))


@functools.lru_cache(maxsize=8)
def problems_by_key(files: tuple[tuple[Path, FileStamp], ...]) -> dict[ProblemKey, Problem]:
    """The problems of some files. Do not modify."""
    return {problem.key: problem for path, _ in files for problem in read_records(Problem, path)}


def step_checks(iteration: Iteration) -> dict[tuple[ProblemKey, bool, int], bool | None]:
    """(problem, hinted, sample index) -> the sample's steps pass the task's check; None: the task cannot tell.

    Empty without samples.jsonl and rationalizations.jsonl.
    """
    paths = (iteration.directory / f"{name}.jsonl" for name in ("samples", "rationalizations"))
    completions = (completion for path in paths for completion in read_records(Completion, path))
    return {(c.problem_key, c.hinted, c.sample_index): c.consistent for c in completions}


def read_records(kind: type[Record], path: Path) -> Sequence[Record]:
    """The records of a file; empty if it is absent. Raises InputError with file and line.

    The files read last stay in memory, since several parts of the page read the newest iteration's files.
    """
    if not is_present(path):
        return ()
    stamp = file_stamp(path)
    hashable_kind: Any = kind  # mypy takes a class of dataclasses for unhashable
    return (
        _cached_records(hashable_kind, path, stamp)
        if stamp[1] <= MAX_CACHED_BYTES
        else checksums.read_verified_records(kind, path)
    )


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


def file_stamps(workdirs: Sequence[Path]) -> dict[str, FileStamp]:
    """Path -> stamp of every file of these runs that the page is made from."""
    stamps = {}
    for workdir in workdirs:
        for folder in (workdir, *workdir.glob("iter_*")):
            with contextlib.suppress(OSError):  # a temporary file already renamed, a folder just replaced
                for entry in os.scandir(folder):
                    if entry.name.endswith((".json", ".jsonl", ".part", ".txt")) or entry.name == "DONE":
                        stat = entry.stat()
                        stamps[entry.path] = stat.st_mtime_ns, stat.st_size
    return stamps


def _split_name(value: Any, default: str) -> str:
    """A split as configured, if it can be part of a file's name."""
    return value if isinstance(value, str) and re.fullmatch(r"[\w-]+", value) else default


def _iteration_directories(workdir: Path) -> dict[int, Path]:
    try:
        numbers = {path: iteration_number(path) for path in workdir.iterdir() if path.is_dir()}
    except OSError as error:
        raise InputError(f"{workdir}: cannot be read ({error.strerror})") from error
    return {number: path for path, number in numbers.items() if number is not None}


def _iteration(number: int, directory: Path, split: str, report_split: str) -> Iteration:
    def optional(name: str, parse: Callable[[dict[str, Any], Path], Any]) -> Any:
        path = directory / name
        return parse(checksums.read_verified_object(path), path) if is_present(path) else None

    return Iteration(
        number=number,
        directory=directory,
        done=is_present(directory / "DONE"),
        evaluation=optional(f"eval_{split}.json", results.evaluation),
        report_evaluation=optional(f"eval_{report_split}.json", results.evaluation) if report_split != split else None,
        sampled={
            name: results.sampled_evaluation(checksums.read_verified_object(path), path)
            for path in sorted(directory.glob("eval_*_samples_t*.json"))
            if (name := _evaluation_name(path.stem)) and name.samples
        },
        filter_result=optional("filter.json", results.filter_result),
        fine_tuning=optional("finetune.json", lambda values, path: Fields(values, path).numbers()),
        has_kept=is_present(directory / "kept.jsonl"),
    )


def _metrics(path: Path) -> tuple[tuple[dict[str, Any], ...], int]:
    """(the log's lines, the number of unreadable ones). A step that a resumed run logged again has its last values.

    Raises InputError if the log cannot be read, or a part of it that has a checksum was changed.
    """
    if not is_present(path):
        return (), 0
    checksums.check_file(path)
    merged: dict[tuple[Any, ...], dict[str, Any]] = {}
    unread = 0
    for _, content in read_lines(path):
        line = content.decode(errors="replace")  # a write torn within a character
        if not line.strip():
            continue
        try:
            values = parse_object(line)
        except ValueError:
            unread += 1
            continue
        key = tuple(str(values.get(name)) for name in ("stage", "iteration", "step"))
        merged[key] = merged.get(key, {}) | values
    return tuple(merged.values()), unread


@functools.lru_cache(maxsize=6)  # the newest iteration has four such files
def _cached_records(kind: type[Record], path: Path, _: FileStamp) -> Sequence[Record]:
    return checksums.read_verified_records(kind, path)
