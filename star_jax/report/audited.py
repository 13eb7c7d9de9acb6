"""Is the reasoning right where the answer is? What a person marked in audit.txt, and what the machine checked."""

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from star_jax.errors import InputError
from star_jax.evaluation.statistics import Stratum, stratified, wilson
from star_jax.records import Example
from star_jax.report import audit_file
from star_jax.report.audit_file import MARKS, SOURCES, Item
from star_jax.report.load import Iteration, Run, checked_steps, kept_examples, setting, stamp, train_classes

MOST_SHOWN = 40  # items of the page that are not sound


class Cell(NamedTuple):
    """The kept rationales of an iteration, a source and a class: each is sampled by itself."""

    iteration: int
    source: str
    category: str


@dataclasses.dataclass(frozen=True)
class Share:
    """How often a mark was given; fractions in 0..1, the ends of the interval 95 %."""

    count: int | None  # None: an estimate for what was not looked at
    share: float
    low: float | None = None  # None: a share of the items marked, which speaks for no others
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table of marks."""

    label: str  # one of SOURCES, or "all"
    n: int  # items marked; of an estimate, the kept rationales it is about
    shares: dict[str, Share]  # by mark


@dataclasses.dataclass(frozen=True)
class Rates:
    """What the marks come to: as they were counted, and weighted back to all that was kept."""

    counted: list[Row]
    weighted: list[Row]
    unseen: int  # kept rationales of cells in which nothing is marked: no estimate is about them


@dataclasses.dataclass(frozen=True)
class Audit:
    """What the page's section shows."""

    has_kept: bool  # some iteration kept rationales of the model's own
    caution: str  # why audit.txt could not be read, or which of its items are not this run's; "": all is well
    items: int  # of this run, marked or not
    iterations: tuple[int, ...]  # that they come from
    rates: Rates | None  # None: nothing is marked
    marked: int
    doubtful: list[Item]  # at most MOST_SHOWN of those whose mark is not "sound"
    # (iteration, source -> steps check out True, False or None -> kept rationales); empty: the machine cannot tell
    checked: list[tuple[int, dict[str, collections.Counter[bool | None]]]]


def audit(run: Run) -> Audit:
    """Reads a run's audit.txt, if it has one. Raises InputError for a broken file of the run, never for audit.txt."""
    path, caution, items = run.directory / audit_file.NAME, "", list[Item]()
    if path.exists():
        try:
            items = audit_file.parse(audit_file.read_file(path, path.name), path.name)
        except InputError as error:  # a person's slip of the pen must not stop a run that writes its page
            caution = f"{error}. Until then its marks are not in this page."
    kept = kept_of(run, {item.iteration for item in items})
    own, strange = sort_out(items, kept)
    if strange:
        caution = f"{path.name}:{strange[0].line}: {unknown_items(strange)} They are left out here."
    iterations = {cell.iteration for _, cell in own}
    sizes = {cell: len(examples) for cell, examples in kept.items() if cell.iteration in iterations}
    marked = [(item, cell) for item, cell in own if item.mark]
    checks = [(iteration.number, _checked(run, iteration)) for iteration in run.iterations if iteration.has_kept]
    return Audit(
        has_kept=any(iteration.has_kept for iteration in run.iterations) and not setting(run.config, "star.direct"),
        caution=caution,
        items=len(own),
        iterations=tuple(sorted(iterations)),
        rates=rates(marked, sizes) if marked else None,
        marked=len(marked),
        doubtful=[item for item, _ in marked if item.mark != "sound"][:MOST_SHOWN],
        checked=checks if any(seen[told] for _, by in checks for seen in by.values() for told in (True, False)) else [],
    )


def kept_of(run: Run, numbers: Collection[int]) -> dict[Cell, list[Example]]:
    """The rationales that these iterations drew and kept, in the order of their files; what came with an answer that
    was given, or from an earlier iteration, is not among them. Raises InputError for a broken file.
    """
    class_of, kept = train_classes(run), dict[Cell, list[Example]]()
    for iteration in run.iterations:
        if iteration.number in numbers:
            for example in own_rationales(iteration):
                cell = Cell(iteration.number, example.source, class_of.get(example.problem_id, ""))
                kept.setdefault(cell, []).append(example)
    return kept


def own_rationales(iteration: Iteration) -> list[Example]:
    """The kept examples that the model reasoned out in this very iteration."""
    return [e for e in kept_examples(iteration) if e.iteration == iteration.number and e.source in SOURCES]


def sort_out(
    items: Sequence[Item], kept: Mapping[Cell, Sequence[Example]]
) -> tuple[list[tuple[Item, Cell]], list[Item]]:
    """(items with their cells, items that are not what was kept): an iteration may have been made anew since."""
    cell_of = {audit_file.digest_of(example): cell for cell, examples in kept.items() for example in examples}
    own, strange = [], []
    for item in items:
        cell = cell_of.get(item.digest)
        if cell and (cell[:2], len(kept[cell])) == ((item.iteration, item.source), item.stratum):
            own.append((item, cell))
        else:
            strange.append(item)
    return own, strange


def unknown_items(items: Sequence[Item]) -> str:
    """Says which items are not the run's, and why that may be."""
    numbers = ", ".join(str(item.number) for item in items[:10]) + (", ..." if len(items) > 10 else "")
    return (
        f"{len(items)} item(s) are not what this run's kept.jsonl holds (item {numbers}): the file is of another run, "
        "or an iteration was made anew."
    )


def rates(marked: Sequence[tuple[Item, Cell]], sizes: Mapping[Cell, int]) -> Rates:
    """The rates of marks by source and of all.

    Args:
      marked: at least one.
      sizes: of every cell of the iterations that were audited.
    """
    by_cell: dict[Cell, collections.Counter[str]] = {}
    for item, cell in marked:
        by_cell.setdefault(cell, collections.Counter())[item.mark] += 1
    groups = {source: [cell for cell in by_cell if cell.source == source] for source in SOURCES} | {"all": [*by_cell]}
    groups = {label: cells for label, cells in groups.items() if cells}
    counted = [_counted(label, [by_cell[cell] for cell in cells]) for label, cells in groups.items()]
    weighted = [_weighted(label, {cell: by_cell[cell] for cell in cells}, sizes) for label, cells in groups.items()]
    return Rates(counted, weighted, sum(size for cell, size in sizes.items() if cell not in by_cell))


def _counted(label: str, counts: Sequence[collections.Counter[str]]) -> Row:
    n = sum(seen.total() for seen in counts)
    hits = {mark: sum(seen[mark] for seen in counts) for mark in MARKS}
    # Sources are sampled in equal parts, whatever their sizes: the share of all items is no estimate of anything.
    intervals = {mark: (None, None) if label == "all" else wilson(k, n) for mark, k in hits.items()}
    return Row(label, n, {mark: Share(k, k / n, *intervals[mark]) for mark, k in hits.items()})


def _weighted(label: str, by_cell: Mapping[Cell, collections.Counter[str]], sizes: Mapping[Cell, int]) -> Row:
    shares = {}
    for mark in MARKS:
        strata = [Stratum(sizes[cell], seen.total(), seen[mark]) for cell, seen in by_cell.items()]
        shares[mark] = Share(None, *stratified(strata))
    return Row(label, sum(sizes[cell] for cell in by_cell), shares)


_CHECKED: dict[Any, dict[str, collections.Counter[bool | None]]] = {}  # by the state of the files: see load.stamp


def _checked(run: Run, iteration: Iteration) -> dict[str, collections.Counter[bool | None]]:
    """Source -> whether the steps check out (None: cannot be told) -> kept rationales."""
    names = ("kept.jsonl", "samples.jsonl", "rationalizations.jsonl")
    files = [iteration.directory / name for name in names]
    state = tuple((path, stamp(path)) for path in files if path.is_file())
    if state not in _CHECKED:
        told = checked_steps(iteration)
        counts = {source: collections.Counter[bool | None]() for source in SOURCES}
        for example in own_rationales(iteration):
            counts[example.source][consistent(told, example)] += 1
        _CHECKED[state] = counts
    return _CHECKED[state]


def consistent(told: Mapping[tuple[str, bool, int], bool | None], example: Example) -> bool | None:
    """What the machine said of the steps of a kept example when it was drawn; None: it could not tell."""
    return told.get((example.problem_id, example.source == "rationalized", example.sample_index))
