"""What the browser of rationales shows, cut into blocks: one of the problems and one an iteration, a collection each.

"evaluation" holds draw 0 of every evaluation on the split that selects; "training" every draw of samples.jsonl and
rationalizations.jsonl. A block is JSON, compressed, in base64. browser.js unpacks one when it is asked for.
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

from star_jax.records import Completion, Example, Problem
from star_jax.report import series
from star_jax.report.load import Iteration, Run, is_number, records_of, stamp
from star_jax.report.texts import asked, in_turn, script_json, shown
from star_jax.runs.atomic_files import atomic_write, delete

EVALUATION, TRAINING = "evaluation", "training"
BUDGET = 6_000_000  # characters of blocks in one page, so that it opens fast; the rest lies beside it
LONGEST_KEY = 200  # characters of a problem's id in a link
_NAME = re.compile(rf"r[0-9]+_({EVALUATION}|{TRAINING})_(problems|[0-9]+)_[0-9a-f]{{16}}")

State = tuple[Path, tuple[int, int]]  # a file and its stamp


@dataclasses.dataclass(frozen=True)
class Block:
    """One block. `name` holds numbers and a digest of the content and nothing that a run's files say."""

    name: str
    text: str  # base64 of gzip of JSON


@dataclasses.dataclass(frozen=True)
class Collection:
    """The blocks of one collection of one run.

    `problems`: {"classes": [label, ...], "problems": [[key, question, answer, class's index or null, first iteration
    in which it was right without a hint or null], ...]}, the classes in turn.
    `draws`, by iteration: [[problem's place, or its key where it is not on record, draw, hinted 0 or 1, kept 0, 1 or
    null (not filtered yet), verdict, parsed answer or null, steps check out or null, mean log p a token in nats or
    null, tokens or null, text], ...] in the order of the problems.
    """

    name: str
    title: str
    best: int | None  # the iteration with the highest accuracy, if its draws are on record
    problems: Block
    draws: dict[int, Block]


@dataclasses.dataclass(frozen=True)
class Shelf:
    """Where the blocks of a page are."""

    collections: tuple[tuple[Collection, ...], ...]  # of each run
    inside: frozenset[str]  # names of the blocks that are in the page
    beside: tuple[Block, ...]  # those that are files beside it


def pack_page_data(runs: Sequence[Run]) -> Shelf:
    """Packs the blocks of a page, and puts into it what matters most, as far as BUDGET goes.

    The order: of the evaluations the problems, the base, the best and the last iteration, the others from the last to
    the first; then the training draws, problems first, from the last iteration to the first. Raises InputError for a
    broken file.
    """
    collections = tuple(_collections(run, index) for index, run in enumerate(runs))
    ranked = [entry for of_run in collections for collection in of_run for entry in _ranked(collection)]
    inside, beside, room = set(), [], BUDGET
    for _, block in sorted(ranked, key=lambda entry: entry[0]):
        if len(block.text) <= room:
            inside.add(block.name)
            room -= len(block.text)
        else:
            beside.append(block)
    return Shelf(collections, frozenset(inside), tuple(beside))


def view(shelf: Shelf, run: int, folder: str) -> dict[str, Any]:
    """What the template needs to know of a run's blocks.

    "blocks": [(name, text), ...] of those in the page. "contents": JSON for browser.js, None where there is nothing
    to show: {"run": "r0", "folder": where the blocks are that are not in the page, "collections": [{"name", "title",
    "best", "problems": block's name, "draws": [[iteration, block's name], ...]}, ...]}
    """
    collections = [
        {
            "name": collection.name,
            "title": shown(collection.title),
            "best": collection.best,
            "problems": collection.problems.name,
            "draws": [[number, block.name] for number, block in collection.draws.items()],
        }
        for collection in shelf.collections[run]
    ]
    contents = {"run": f"r{run}", "folder": f"{quote(folder)}/", "collections": collections}
    blocks = [block for c in shelf.collections[run] for block in (c.problems, *c.draws.values())]
    return {
        "blocks": [(block.name, Markup(block.text)) for block in blocks if block.name in shelf.inside],
        "contents": script_json(contents) if collections else None,
    }


def store(shelf: Shelf, folder: Path) -> None:
    """Writes the blocks beside the page. One that is there is not written again: its name tells its content.

    A script can be loaded from disk, other files cannot: each calls the page's starTexts with its name and its text.
    """
    for block in shelf.beside:
        path, script = folder / f"{block.name}.js", f'starTexts("{block.name}", "{block.text}");\n'
        if not path.is_file() or path.stat().st_size != len(script):
            atomic_write(path, script, shared=True)


def clear(shelf: Shelf, folder: Path) -> None:
    """Deletes the blocks of earlier pages from the folder."""
    names = {block.name for block in shelf.beside}
    for path in folder.glob("r*.js"):
        if _NAME.fullmatch(path.stem) and path.stem not in names:
            delete(folder, path.name)


def key_of(problem_id: str) -> str:
    """A problem's id as it stands in links and in the page: the id itself if that can be shown as it is."""
    text = shown(problem_id)
    if text == problem_id and len(text) <= LONGEST_KEY:
        return text
    digest = hashlib.sha256(problem_id.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[:LONGEST_KEY]}~{digest[:8]}"  # two ids may look the same


def _ranked(collection: Collection) -> list[tuple[tuple[int, int], Block]]:
    """(rank, block) of each block; the lower the rank, the earlier it comes into the page."""
    training = collection.name == TRAINING
    first = set() if training else {0, collection.best, max(collection.draws, default=0)}
    ranked = [((10 * training, 0), collection.problems)]
    for number, block in collection.draws.items():
        rank = 1 if number in first else 2
        ranked.append(((10 * training + rank, number if rank == 1 else -number), block))
    return ranked


def _collections(run: Run, index: int) -> tuple[Collection, ...]:
    evaluated = {it.number: it.directory / f"eval_{run.split}.jsonl" for it in run.iterations}
    of_evaluation = {
        number: _Sources(EVALUATION, _state(run.directory / f"problems_{run.split}.jsonl"), (state,))
        for number, path in evaluated.items()
        if (state := _state(path))
    }
    of_training = {it.number: sources for it in run.iterations if (sources := _training_sources(run, it)).draws}
    best = series.best(run)
    found = []
    if run.problems or of_evaluation:
        number = best.iteration if best and best.iteration in of_evaluation else None
        title = f"Evaluation, {run.split} split"
        found.append(_collection(EVALUATION, title, index, number, list(run.problems), of_evaluation))
    if of_training:
        known = list(_problems(next(iter(of_training.values())).problems))
        found.append(_collection(TRAINING, "Training draws", index, None, known, of_training))
    return tuple(found)


@dataclasses.dataclass(frozen=True)
class _Sources:
    """The files a block of draws is made from; None: it is not there."""

    collection: str
    problems: State | None
    draws: tuple[State, ...]
    kept: State | None = None


@dataclasses.dataclass(frozen=True)
class _Draws:
    """A packed block of draws, and what the collection needs to know of it."""

    text: str
    digest: str
    unknown: tuple[str, ...]  # ids that the file of problems does not have
    solved: frozenset[str]  # ids of problems with a right draw that was not hinted


def _training_sources(run: Run, iteration: Iteration) -> _Sources:
    names = ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl")
    *draws, kept = (_state(iteration.directory / name) for name in names)
    problems_file = _state(run.directory / "problems_train.jsonl")
    return _Sources(TRAINING, problems_file, tuple(state for state in draws if state), kept)


def _state(path: Path) -> State | None:
    return (path, stamp(path)) if path.is_file() else None


def _collection(
    name: str, title: str, run: int, best: int | None, known: list[Problem], sources: dict[int, _Sources]
) -> Collection:
    packed = {number: _pack_draws(of_iteration) for number, of_iteration in sources.items()}
    solved: dict[str, int] = {}
    for number, draws in packed.items():
        for problem_id in draws.solved:
            solved.setdefault(problem_id, number)
    ids = {problem.id for problem in known}
    unknown = dict.fromkeys(i for draws in packed.values() for i in draws.unknown if i not in ids)
    text, digest = _pack(_problems_block(known, unknown, solved))
    return Collection(
        name,
        title,
        best,
        Block(f"r{run}_{name}_problems_{digest}", text),
        {number: Block(f"r{run}_{name}_{number:03d}_{draws.digest}", draws.text) for number, draws in packed.items()},
    )


def _problems_block(known: list[Problem], unknown: Iterable[str], solved: dict[str, int]) -> dict[str, Any]:
    ordered = _ordered(known)
    classes = list(dict.fromkeys(problem.category for problem in ordered))
    places = {label: place for place, label in enumerate(classes)}
    rows: list[list[Any]] = [
        [key_of(p.id), shown(asked(p)), shown(p.answer), places[p.category], solved.get(p.id)] for p in ordered
    ]
    rows += [[key_of(problem_id), "", "–", None, solved.get(problem_id)] for problem_id in unknown]
    return {"classes": [shown(label) for label in classes], "problems": rows}


@functools.lru_cache(maxsize=512)
def _pack_draws(sources: _Sources) -> _Draws:
    """Kept by the state of the files: a run writes its page after every iteration, and packs only what is new."""
    places = {p.id: place for place, p in enumerate(_ordered(_problems(sources.problems)))}
    drawn = [completion for path, _ in sources.draws for completion in records_of(Completion, path)]
    if sources.collection == EVALUATION:
        drawn = list({c.problem_id: c for c in drawn if c.sample_index == 0}.values())
    kept = None
    if sources.kept:
        kept = {(e.problem_id, e.source, e.sample_index, e.iteration) for e in records_of(Example, sources.kept[0])}
    drawn.sort(key=lambda c: (places.get(c.problem_id, len(places)), bool(c.hinted), _number(c.sample_index) or 0))
    text, digest = _pack([_row(completion, places, kept) for completion in drawn])
    unknown = tuple(dict.fromkeys(c.problem_id for c in drawn if c.problem_id not in places))
    solved = frozenset(c.problem_id for c in drawn if c.verdict == "right" and not c.hinted)
    return _Draws(text, digest, unknown, solved)


@functools.lru_cache(maxsize=16)
def _problems(state: State | None) -> tuple[Problem, ...]:
    return tuple(records_of(Problem, state[0])) if state else ()


def _ordered(known: Iterable[Problem]) -> list[Problem]:
    """One of each class in turn. Of problems with the same id the first counts."""
    return in_turn(list({p.id: p for p in reversed(list(known))}.values())[::-1], lambda problem: problem.category)


def _row(completion: Completion, places: dict[str, int], kept: set[Any] | None) -> list[Any]:
    problem_id, tokens = completion.problem_id, _number(completion.tokens)
    source = "rationalized" if completion.hinted else "sampled"
    total = _number(completion.log_probability)
    was_kept = None
    if kept is not None:
        was_kept = int((problem_id, source, completion.sample_index, completion.iteration) in kept)
    return [
        places.get(problem_id, key_of(problem_id)),
        _number(completion.sample_index),
        int(bool(completion.hinted)),
        was_kept,
        shown(completion.verdict),
        None if completion.answer is None else shown(str(completion.answer)),
        completion.consistent if isinstance(completion.consistent, bool) else None,
        round(total / tokens, 3) if total is not None and tokens is not None and tokens >= 1 else None,
        tokens,
        shown(completion.text),
    ]


def _number(value: float) -> float | None:
    """None for what JSON cannot say: NaN, infinity."""
    return value if is_number(value) else None


def _pack(value: Any) -> tuple[str, str]:
    """(base64 of gzip of JSON, a digest of the JSON). The same value gives the same text."""
    content = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    text = base64.b64encode(gzip.compress(content, compresslevel=6, mtime=0)).decode()
    return text, hashlib.sha256(content).hexdigest()[:16]
