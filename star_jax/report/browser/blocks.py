"""Packs problems and samples into compressed blocks, which browser.js unpacks on request.

A run has up to two collections: "evaluation" (sample 0 of every evaluation on the split that selects) and "training"
(every sample of samples.jsonl and rationalizations.jsonl). A collection has a block of problems and a block of samples
for each iteration. What exceeds the page's budget goes to files in a folder next to the page.
"""

import base64
import dataclasses
import functools
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from star_jax.records import Completion, Example, Problem, Source, Verdict
from star_jax.report.browser.examples import interleave
from star_jax.report.formatting import page_text, problem_text, script_json
from star_jax.report.run_data import FileStamp, Iteration, RunData, file_stamp, is_number, read_records
from star_jax.runs.atomic_files import atomic_write, delete

EVALUATION, TRAINING = "evaluation", "training"
BUDGET = 6_000_000  # characters of blocks in one page, so that it opens fast
MAX_KEY = 200  # characters of a problem id in a link
_NAME = re.compile(rf"r[0-9]+_({EVALUATION}|{TRAINING})_(problems|[0-9]+)_[0-9a-f]{{16}}")

StampedFile = tuple[Path, FileStamp]


@dataclasses.dataclass(frozen=True)
class Block:
    """One block. Its name has numbers and a digest of the content, but no text of the run."""

    name: str
    text: str  # base64 of gzip of JSON


@dataclasses.dataclass(frozen=True)
class Collection:
    """The blocks of one collection of one run.

    `problems` holds {"categories": [label, ...], "problems": [[key, question, answer, index of the category or null,
    first iteration with a right unhinted sample or null], ...]}, ordered round-robin over categories.
    `samples`, by iteration, hold [[index of the problem, or its key if it is not on record; sample index; hinted 0 or
    1; kept 0, 1 or null (not filtered yet); verdict; parsed answer or null; steps check out or null; mean log p per
    token in nats or null; tokens or null; text], ...] in the order of the problems.
    """

    name: str
    title: str
    best: int | None  # the best iteration, if its samples are on record
    problems: Block
    samples: dict[int, Block]


@dataclasses.dataclass(frozen=True)
class PageBlocks:
    """The blocks of a page and where each of them is stored."""

    collections: tuple[tuple[Collection, ...], ...]  # of each run
    in_page: frozenset[str]  # names of the blocks within the page
    in_folder: tuple[Block, ...]  # blocks in files next to the page


def pack_page_data(runs: Sequence[RunData]) -> PageBlocks:
    """Packs the blocks of a page; the most important ones go into the page until BUDGET is spent.

    The order of importance: of the evaluations the problems, the base, the best and the last iteration, then the others
    from last to first; after them the training samples, problems first, from the last iteration to the first. Raises
    InputError for a broken file.
    """
    collections = tuple(_run_collections(run, index) for index, run in enumerate(runs))
    ranked = [entry for of_run in collections for collection in of_run for entry in _ranked(collection)]
    in_page, in_folder, budget_left = set(), [], BUDGET
    for _, block in sorted(ranked, key=lambda entry: entry[0]):
        if len(block.text) <= budget_left:
            in_page.add(block.name)
            budget_left -= len(block.text)
        else:
            in_folder.append(block)
    return PageBlocks(collections, frozenset(in_page), tuple(in_folder))


def template_values(page_blocks: PageBlocks, run: int, folder: str) -> dict[str, Any]:
    """What the template needs of a run's blocks.

    "blocks": [(name, text), ...] of those in the page. "contents": JSON for browser.js, None if there is nothing to
    show: {"run": "r0", "folder": the folder of the blocks that are not in the page, "collections": [{"name", "title",
    "best", "problems": name of a block, "samples": [[iteration, name of a block], ...]}, ...]}
    """
    collections = [
        {
            "name": collection.name,
            "title": page_text(collection.title),
            "best": collection.best,
            "problems": collection.problems.name,
            "samples": [[number, block.name] for number, block in collection.samples.items()],
        }
        for collection in page_blocks.collections[run]
    ]
    contents = {"run": f"r{run}", "folder": f"{quote(folder)}/", "collections": collections}
    blocks = [block for c in page_blocks.collections[run] for block in (c.problems, *c.samples.values())]
    return {
        "blocks": [(block.name, Markup(block.text)) for block in blocks if block.name in page_blocks.in_page],
        "contents": script_json(contents) if collections else None,
    }


def write_folder(page_blocks: PageBlocks, folder: Path) -> None:
    """Writes the blocks that are not in the page. An existing file stays: its name identifies its content.

    The files are scripts, since a page opened from disk can load no other files: each calls the page's starTexts with
    its name and its text.
    """
    for block in page_blocks.in_folder:
        path, script = folder / f"{block.name}.js", f'starTexts("{block.name}", "{block.text}");\n'
        if not path.is_file() or path.stat().st_size != len(script):
            atomic_write(path, script, shared=True)


def delete_stale(page_blocks: PageBlocks, folder: Path) -> None:
    """Deletes the blocks of earlier pages from the folder."""
    names = {block.name for block in page_blocks.in_folder}
    for path in folder.glob("r*.js"):
        if _NAME.fullmatch(path.stem) and path.stem not in names:
            delete(folder, path.name)


def problem_key(problem_id: str) -> str:
    """The name of a problem in links and in the page: its id, if that is short and visible."""
    text = page_text(problem_id)
    if text == problem_id and len(text) <= MAX_KEY:
        return text
    digest = hashlib.sha256(problem_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[:MAX_KEY]}~{digest[:8]}"  # two ids may look the same


def _ranked(collection: Collection) -> list[tuple[tuple[int, int], Block]]:
    """(rank, block) of each block; a lower rank goes into the page earlier."""
    training = collection.name == TRAINING
    important = set() if training else {0, collection.best, max(collection.samples, default=0)}
    ranked = [((10 * training, 0), collection.problems)]
    for number, block in collection.samples.items():
        rank = 1 if number in important else 2
        ranked.append(((10 * training + rank, number if rank == 1 else -number), block))
    return ranked


def _run_collections(run: RunData, index: int) -> tuple[Collection, ...]:
    paths = {it.number: it.directory / f"eval_{run.split}.jsonl" for it in run.iterations}
    evaluation = {
        number: _Inputs(EVALUATION, _stamped(run.directory / f"problems_{run.split}.jsonl"), (stamped,))
        for number, path in paths.items()
        if (stamped := _stamped(path))
    }
    training = {it.number: inputs for it in run.iterations if (inputs := _training_inputs(run, it)).samples}
    collections = []
    if run.problems or evaluation:
        best = run.best if run.best in evaluation else None
        title = f"Evaluation, {run.split} split"
        collections.append(_collection(EVALUATION, title, index, best, run.problems, evaluation))
    if training:
        problems = _problems(next(iter(training.values())).problems)
        collections.append(_collection(TRAINING, "Training samples", index, None, problems, training))
    return tuple(collections)


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The files of a block of samples; None: the file is absent."""

    collection: str
    problems: StampedFile | None
    samples: tuple[StampedFile, ...]
    kept: StampedFile | None = None


@dataclasses.dataclass(frozen=True)
class _PackedSamples:
    """A packed block of samples, and what the collection's problems need of it."""

    text: str
    digest: str
    unknown: tuple[str, ...]  # ids that the file of problems does not have
    solved: frozenset[str]  # ids of problems with a right unhinted sample


def _training_inputs(run: RunData, iteration: Iteration) -> _Inputs:
    names = ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl")
    *samples, kept = (_stamped(iteration.directory / name) for name in names)
    problems = _stamped(run.directory / "problems_train.jsonl")
    return _Inputs(TRAINING, problems, tuple(stamped for stamped in samples if stamped), kept)


def _stamped(path: Path) -> StampedFile | None:
    return (path, file_stamp(path)) if path.is_file() else None


def _collection(
    name: str, title: str, run: int, best: int | None, problems: Sequence[Problem], inputs: dict[int, _Inputs]
) -> Collection:
    packed = {number: _pack_samples(of_iteration) for number, of_iteration in inputs.items()}
    first_solved: dict[str, int] = {}
    for number, samples in packed.items():
        for problem_id in samples.solved:
            first_solved.setdefault(problem_id, number)
    ids = {problem.id for problem in problems}
    unknown = dict.fromkeys(i for samples in packed.values() for i in samples.unknown if i not in ids)
    text, digest = _pack(_problem_rows(problems, unknown, first_solved))
    blocks = {number: Block(f"r{run}_{name}_{number:03d}_{s.digest}", s.text) for number, s in packed.items()}
    return Collection(name, title, best, Block(f"r{run}_{name}_problems_{digest}", text), blocks)


def _problem_rows(problems: Sequence[Problem], unknown: Iterable[str], first_solved: dict[str, int]) -> dict[str, Any]:
    """The content of the block of problems; see `Collection`."""
    ordered = _ordered(problems)
    categories = list(dict.fromkeys(problem.category for problem in ordered))
    index_of = {category: index for index, category in enumerate(categories)}
    rows: list[list[Any]] = [
        [
            problem_key(p.id),
            page_text(problem_text(p)),
            page_text(p.answer),
            index_of[p.category],
            first_solved.get(p.id),
        ]
        for p in ordered
    ]
    rows += [[problem_key(problem_id), "", "–", None, first_solved.get(problem_id)] for problem_id in unknown]
    return {"categories": [page_text(category) for category in categories], "problems": rows}


@functools.lru_cache(maxsize=512)
def _pack_samples(inputs: _Inputs) -> _PackedSamples:
    """Cached by the files' stamps: a run writes its page after every iteration and packs only what is new."""
    index_of = {p.id: index for index, p in enumerate(_ordered(_problems(inputs.problems)))}
    completions = [completion for path, _ in inputs.samples for completion in read_records(Completion, path)]
    if inputs.collection == EVALUATION:
        completions = list({c.problem_id: c for c in completions if c.sample_index == 0}.values())
    kept = None
    if inputs.kept:
        examples = read_records(Example, inputs.kept[0])
        kept = {(e.problem_id, e.source, e.sample_index, e.iteration) for e in examples}
    completions.sort(
        key=lambda c: (index_of.get(c.problem_id, len(index_of)), bool(c.hinted), _finite(c.sample_index) or 0)
    )
    text, digest = _pack([_sample_row(completion, index_of, kept) for completion in completions])
    unknown = tuple(dict.fromkeys(c.problem_id for c in completions if c.problem_id not in index_of))
    solved = frozenset(c.problem_id for c in completions if c.verdict == Verdict.RIGHT and not c.hinted)
    return _PackedSamples(text, digest, unknown, solved)


@functools.lru_cache(maxsize=16)
def _problems(stamped: StampedFile | None) -> tuple[Problem, ...]:
    return tuple(read_records(Problem, stamped[0])) if stamped else ()


def _ordered(problems: Iterable[Problem]) -> list[Problem]:
    """Round-robin over categories. Of problems with the same id the first counts."""
    unique = list({p.id: p for p in reversed(list(problems))}.values())[::-1]
    return interleave(unique, lambda problem: problem.category)


def _sample_row(completion: Completion, index_of: dict[str, int], kept: set[Any] | None) -> list[Any]:
    """A row of a block of samples; see `Collection`."""
    problem_id, tokens = completion.problem_id, _finite(completion.tokens)
    source = Source.RATIONALIZED if completion.hinted else Source.SAMPLED
    log_probability = _finite(completion.log_probability)
    was_kept = None
    if kept is not None:
        was_kept = int((problem_id, source, completion.sample_index, completion.iteration) in kept)
    mean = None
    if log_probability is not None and tokens is not None and tokens >= 1:
        mean = round(log_probability / tokens, 3)
    return [
        index_of.get(problem_id, problem_key(problem_id)),
        _finite(completion.sample_index),
        int(bool(completion.hinted)),
        was_kept,
        page_text(completion.verdict),
        None if completion.answer is None else page_text(str(completion.answer)),
        completion.consistent if isinstance(completion.consistent, bool) else None,
        mean,
        tokens,
        page_text(completion.text),
    ]


def _finite(value: float) -> float | None:
    """None for NaN and infinity, which JSON does not have."""
    return value if is_number(value) else None


def _pack(value: Any) -> tuple[str, str]:
    """(base64 of gzip of JSON, digest of the JSON). Equal values give equal texts."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    text = base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()
    return text, hashlib.sha256(content).hexdigest()[:16]
