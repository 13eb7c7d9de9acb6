"""Packs problems and samples into compressed blocks, which browser.js unpacks on request.

A run's collections: "evaluation" (sample 0 of every evaluation on the split that selects), one for each other
evaluation on record, e.g. "evaluation_test" and "evaluation_dev_4_samples_t0_7" (all of the samples), and "training"
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
import stat
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from star_jax.json_reader import is_number, is_present
from star_jax.records import Completion, Example, Problem, ProblemKey, Source, Verdict
from star_jax.report.browser.examples import interleave
from star_jax.report.formatting import page_text, problem_text, script_json
from star_jax.report.run_data import (
    EvaluationName,
    FileStamp,
    Iteration,
    RunData,
    evaluation_names,
    file_stamp,
    problem_files,
    problems_by_key,
    read_records,
)
from star_jax.runs.atomic_files import atomic_write, delete, refuse_links

# Kinds of collections: one sample per problem, several, and the training samples.
EVALUATION, SAMPLES, TRAINING = "evaluation", "samples", "training"
BUDGET = 6_000_000  # characters of blocks in one page, so that it opens fast
MAX_KEY = 200  # characters of a problem id in a link
_NAME = re.compile(rf"r[0-9]+_({EVALUATION}\w*|{TRAINING})_(problems|[0-9]+)_[0-9a-f]{{16}}", re.ASCII)

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
    first iteration with a right unhinted sample or null], ...]}, ordered round-robin over categories. Samples of a
    problem's content before a change of the data belong to a row of their own, with its fingerprint in the key.
    `samples`, by iteration, hold [[index of the problem, or its key if it is not on record; sample index; hinted 0 or
    1; kept 0, 1 or null (not filtered yet); verdict; parsed answer or null; steps check out or null; mean log p per
    token in nats or null; tokens or null; text], ...] in the order of the problems.
    """

    name: str  # letters, digits and underscores
    kind: str  # EVALUATION, SAMPLES or TRAINING
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

    The order of importance: of the evaluations that select the problems, the base, the best and the last iteration,
    then the others from last to first; then the other evaluations likewise; after them the training samples, problems
    first, from the last iteration to the first. Raises InputError for a broken file.
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
    show: {"run": "r0", "folder": the folder of the blocks that are not in the page, "collections": [{"name", "kind",
    "title", "best", "problems": name of a block, "samples": [[iteration, name of a block], ...]}, ...]}
    """
    collections = [
        {
            "name": collection.name,
            "kind": collection.kind,
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


def evaluation_collection(run: RunData, stem: str) -> str:
    """The name of the collection of an evaluation, by the name of its files (see EvaluationName)."""
    if stem == f"eval_{run.split}":
        return EVALUATION
    return f"{EVALUATION}_" + re.sub(r"\W", "_", stem.removeprefix("eval_"), flags=re.ASCII)


def write_folder(page_blocks: PageBlocks, folder: Path) -> None:
    """Writes the blocks that are not in the page. A file that holds the same stays; of its name alone nothing follows.

    The files are scripts, since a page opened from disk can load no other files: each calls the page's starTexts with
    its name and its text.
    """
    refuse_links(folder.parent, folder)
    for block in page_blocks.in_folder:
        path, script = folder / f"{block.name}.js", f'starTexts("{block.name}", "{block.text}");\n'
        if not _holds(path, script.encode()):
            atomic_write(path, script, shared=True)


def _holds(path: Path, content: bytes) -> bool:
    """Whether a path is a file, and no link, with this content."""
    try:
        is_same_size = stat.S_ISREG(path.lstat().st_mode) and path.stat().st_size == len(content)
        return is_same_size and path.read_bytes() == content
    except OSError:
        return False


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
    training = collection.kind == TRAINING
    first = 20 if training else 10 * (collection.name != EVALUATION)
    important = set() if training else {0, collection.best, max(collection.samples, default=0)}
    ranked = [((first, 0), collection.problems)]
    for number, block in collection.samples.items():
        rank = 1 if number in important else 2
        ranked.append(((first + rank, number if rank == 1 else -number), block))
    return ranked


def _run_collections(run: RunData, index: int) -> tuple[Collection, ...]:
    collections = [_evaluation_collection(run, index, name) for name in evaluation_names(run)]
    training = {it.number: inputs for it in run.iterations if (inputs := _training_inputs(run, it)).samples}
    if training:
        head = _Head(TRAINING, TRAINING, "Training samples", index, None)
        problems = _problems(next(iter(training.values())).problems)
        collections.append(_collection(head, problems, training, _earlier(run, "train")))
    return tuple(collections)


@dataclasses.dataclass(frozen=True)
class _Head:
    """What a collection has besides its blocks."""

    name: str
    kind: str
    title: str
    run: int  # index
    best: int | None


def _evaluation_collection(run: RunData, index: int, name: EvaluationName) -> Collection:
    """The collection of one of the run's evaluations."""
    problems = _stamped(run.directory / f"problems_{name.split}.jsonl")
    kind = SAMPLES if name.samples else EVALUATION
    inputs = {
        it.number: _Inputs(kind, problems, (stamped,))
        for it in run.iterations
        if (stamped := _stamped(it.directory / f"{name.stem}.jsonl"))
    }
    best = run.best if run.best in inputs else None
    head = _Head(evaluation_collection(run, name.stem), kind, f"Evaluation, {name.title}", index, best)
    return _collection(head, _problems(problems), inputs, _earlier(run, name.split))


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """The files of a block of samples; None: the file is absent."""

    kind: str
    problems: StampedFile | None
    samples: tuple[StampedFile, ...]
    kept: StampedFile | None = None


@dataclasses.dataclass(frozen=True)
class _PackedSamples:
    """A packed block of samples, and what the collection's problems need of it."""

    text: str
    digest: str
    unknown: tuple[ProblemKey, ...]  # problems that the file of problems does not have, with this content
    solved: frozenset[ProblemKey]  # problems with a right unhinted sample


def _training_inputs(run: RunData, iteration: Iteration) -> _Inputs:
    names = ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl")
    *samples, kept = (_stamped(iteration.directory / name) for name in names)
    problems = _stamped(run.directory / "problems_train.jsonl")
    return _Inputs(TRAINING, problems, tuple(stamped for stamped in samples if stamped), kept)


def _stamped(path: Path) -> StampedFile | None:
    return (path, file_stamp(path)) if is_present(path) else None


def _earlier(run: RunData, split: str) -> dict[ProblemKey, Problem]:
    """The problems of before changes of the data."""
    return problems_by_key(tuple((path, file_stamp(path)) for path in problem_files(run, split)))


def _collection(
    head: _Head,
    problems: Sequence[Problem],
    inputs: dict[int, _Inputs],
    earlier: dict[ProblemKey, Problem],
) -> Collection:
    packed = {number: _pack_samples(of_iteration) for number, of_iteration in inputs.items()}
    first_solved: dict[ProblemKey, int] = {}
    for number, samples in packed.items():
        for key in samples.solved:
            first_solved.setdefault(key, number)
    keys = {problem.key for problem in problems}
    unknown = dict.fromkeys(key for samples in packed.values() for key in samples.unknown if key not in keys)
    text, digest = _pack(_problem_rows(problems, {key: earlier.get(key) for key in unknown}, first_solved))
    prefix = f"r{head.run}_{head.name}"
    blocks = {number: Block(f"{prefix}_{number:03d}_{s.digest}", s.text) for number, s in packed.items()}
    problems_block = Block(f"{prefix}_problems_{digest}", text)
    return Collection(head.name, head.kind, head.title, head.best, problems_block, blocks)


def _problem_rows(
    problems: Sequence[Problem], unknown: dict[ProblemKey, Problem | None], first_solved: dict[ProblemKey, int]
) -> dict[str, Any]:
    """The content of the block of problems; see `Collection`. `unknown`: None if the content is not on record."""
    ordered, known_ids = _ordered(problems), {problem.id for problem in problems}
    categories = list(dict.fromkeys(problem.category for problem in ordered))
    index_of = {category: index for index, category in enumerate(categories)}
    rows: list[list[Any]] = [
        [
            problem_key(p.id),
            page_text(problem_text(p)),
            page_text(p.answer),
            index_of[p.category],
            first_solved.get(p.key),
        ]
        for p in ordered
    ]
    rows += [
        [
            _unknown_key(key, known_ids),
            page_text(problem_text(problem)) if problem else "",
            page_text(problem.answer) if problem else "–",
            None,
            first_solved.get(key),
        ]
        for key, problem in unknown.items()
    ]
    return {"categories": [page_text(category) for category in categories], "problems": rows}


@functools.lru_cache(maxsize=512)
def _pack_samples(inputs: _Inputs) -> _PackedSamples:
    """Cached by the files' stamps: a run writes its page after every iteration and packs only what is new."""
    index_of = {p.key: index for index, p in enumerate(_ordered(_problems(inputs.problems)))}
    completions = [completion for path, _ in inputs.samples for completion in read_records(Completion, path)]
    if inputs.kind == EVALUATION:
        completions = list({c.problem_key: c for c in completions if c.sample_index == 0}.values())
    kept = None
    if inputs.kept:
        examples = read_records(Example, inputs.kept[0])
        kept = {(e.problem_key, e.source, e.sample_index, e.iteration) for e in examples}
    completions.sort(
        key=lambda c: (index_of.get(c.problem_key, len(index_of)), bool(c.hinted), _finite(c.sample_index) or 0)
    )
    known_ids = {problem_id for problem_id, _ in index_of}
    text, digest = _pack([_sample_row(completion, index_of, known_ids, kept) for completion in completions])
    unknown = tuple(dict.fromkeys(c.problem_key for c in completions if c.problem_key not in index_of))
    solved = frozenset(c.problem_key for c in completions if c.verdict == Verdict.RIGHT and not c.hinted)
    return _PackedSamples(text, digest, unknown, solved)


@functools.lru_cache(maxsize=16)
def _problems(stamped: StampedFile | None) -> tuple[Problem, ...]:
    return tuple(read_records(Problem, stamped[0])) if stamped else ()


def _ordered(problems: Iterable[Problem]) -> list[Problem]:
    """Round-robin over categories. Of problems with the same id the first counts."""
    unique = list({p.id: p for p in reversed(list(problems))}.values())[::-1]
    return interleave(unique, lambda problem: problem.category)


def _sample_row(
    completion: Completion, index_of: dict[ProblemKey, int], known_ids: Container[str], kept: set[Any] | None
) -> list[Any]:
    """A row of a block of samples; see `Collection`."""
    key, tokens = completion.problem_key, _finite(completion.tokens)
    source = Source.RATIONALIZED if completion.hinted else Source.SAMPLED
    log_probability = _finite(completion.log_probability)
    was_kept = None
    if kept is not None:
        was_kept = int((key, source, completion.sample_index, completion.iteration) in kept)
    mean = None
    if log_probability is not None and tokens is not None and tokens >= 1:
        mean = round(log_probability / tokens, 3)
    return [
        index_of[key] if key in index_of else _unknown_key(key, known_ids),
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


def _unknown_key(key: ProblemKey, known_ids: Container[str]) -> str:
    """The name of a problem that is not among the known ones; with its content if one of them has the same id."""
    problem_id, fingerprint = key
    return problem_key(f"{problem_id} (content {fingerprint or 'unknown'})" if problem_id in known_ids else problem_id)


def _finite(value: float) -> float | None:
    """None for NaN and infinity, which JSON does not have."""
    return value if is_number(value) else None


def _pack(value: Any) -> tuple[str, str]:
    """(base64 of gzip of JSON, digest of the JSON). Equal values give equal texts."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    text = base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()
    return text, hashlib.sha256(content).hexdigest()[:16]
