"""How much of the kept reasoning is sound: estimates from a person's marks, and counts of the machine's step checks."""

import collections
import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from star_jax.errors import InputError
from star_jax.evaluation.statistics import Stratum, stratified, wilson
from star_jax.json_reader import is_present
from star_jax.records import Example, ProblemKey, Source
from star_jax.report.marks import audit_file
from star_jax.report.marks.audit_file import MARKS, Item
from star_jax.report.run_data import (
    Iteration,
    RunData,
    file_stamp,
    kept_examples,
    setting,
    step_checks,
    train_problems,
)
from star_jax.report.samples import SOURCES

MAX_ITEMS_SHOWN = 40  # items of the page that are not sound


class Cell(NamedTuple):
    """A stratum: the kept rationales of one iteration, source and category. Each is sampled separately."""

    iteration: int
    source: str
    category: str


@dataclasses.dataclass(frozen=True)
class Share:
    """Share of a mark in 0..1 with its 95 % interval."""

    count: int | None  # marks; None: an estimate
    share: float
    low: float | None = None  # None: the share of the marked items only, not an estimate of anything
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class MarkRow:
    """A row of the table of marks."""

    label: str  # one of SOURCES, or "all"
    n: int  # marked items; of an estimate, the kept rationales it covers
    shares: dict[str, Share]  # by mark


@dataclasses.dataclass(frozen=True)
class MarkRates:
    """Rates of the marks: as counted, and weighted to all that was kept."""

    counted: list[MarkRow]
    weighted: list[MarkRow]
    unseen: int  # kept rationales of cells without a mark, which no estimate covers


StepCounts = dict[str, collections.Counter[bool | None]]  # source -> steps check out (None: cannot tell) -> rationales


@dataclasses.dataclass(frozen=True)
class Audit:
    """Content of the page's section on the audit."""

    has_kept: bool  # an iteration kept rationales that the model wrote
    caution: str  # why audit.txt could not be read, or which of its items are unknown; "" if all is well
    faults: tuple[str, ...]  # marks that cannot be read; each costs no other mark
    items: int  # of this run, marked or not
    iterations: tuple[int, ...]  # of the items
    rates: MarkRates | None  # None: nothing is marked
    marked: int
    doubtful: list[Item]  # the first MAX_ITEMS_SHOWN with a mark other than "sound"
    checked: list[tuple[int, StepCounts]]  # by iteration; empty: the task cannot check steps


def read_audit(run: RunData) -> Audit:
    """Reads a run's audit.txt, if it has one. Raises InputError for a broken file of the run, never for audit.txt."""
    path, caution, items = run.directory / audit_file.NAME, "", list[Item]()
    if is_present(path):
        try:
            items = audit_file.parse(audit_file.read_file(path, path.name), path.name)
        except InputError as error:  # a typo in the file must not stop a run that writes its page
            caution = f"{error}. Until then its marks are not in this page."
    kept = kept_by_cell(run, {item.iteration for item in items})
    known, unknown = match_items(items, kept)
    if unknown:
        caution = f"{path.name}:{unknown[0].line}: {describe_unknown(unknown)} They are left out here."
    iterations = {cell.iteration for _, cell in known}
    sizes = {cell: len(examples) for cell, examples in kept.items() if cell.iteration in iterations}
    marked = [(item, cell) for item, cell in known if item.mark]
    checked = [(iteration.number, _step_counts(run, iteration)) for iteration in run.iterations if iteration.has_kept]
    can_check = any(counter[check] for _, counts in checked for counter in counts.values() for check in (True, False))
    return Audit(
        has_kept=any(iteration.has_kept for iteration in run.iterations) and not setting(run.config, "star.direct"),
        caution=caution,
        faults=tuple(item.fault for item in items if item.fault),
        items=len(known),
        iterations=tuple(sorted(iterations)),
        rates=mark_rates(marked, sizes) if marked else None,
        marked=len(marked),
        doubtful=_with_step_checks(run, kept, [pair for pair in marked if pair[0].mark != "sound"][:MAX_ITEMS_SHOWN]),
        checked=checked if can_check else [],
    )


def _with_step_checks(
    run: RunData, kept: Mapping[Cell, Sequence[Example]], marked: Sequence[tuple[Item, Cell]]
) -> list[Item]:
    """The items with the machine's checks of their steps."""
    numbers = {cell.iteration for _, cell in marked}
    checks = {iteration.number: step_checks(iteration) for iteration in run.iterations if iteration.number in numbers}
    consistent = {
        audit_file.digest_of(example): is_consistent(checks[cell.iteration], example)
        for cell in {cell for _, cell in marked}
        for example in kept[cell]
    }
    return [dataclasses.replace(item, machine=audit_file.STEP_CHECKS[consistent[item.digest]]) for item, _ in marked]


def kept_by_cell(run: RunData, numbers: Collection[int]) -> dict[Cell, list[Example]]:
    """The rationales that these iterations sampled and kept, in file order.

    Reference solutions and examples of earlier iterations are left out. Raises InputError for a broken file.
    """
    problems, kept = train_problems(run), dict[Cell, list[Example]]()
    for iteration in run.iterations:
        if iteration.number in numbers:
            for example in own_rationales(iteration):
                problem = problems.get(example.problem_key)
                cell = Cell(iteration.number, example.source, problem.category if problem else "")
                kept.setdefault(cell, []).append(example)
    return kept


def own_rationales(iteration: Iteration) -> list[Example]:
    """The kept examples that the model wrote in this iteration."""
    return [e for e in kept_examples(iteration) if e.iteration == iteration.number and e.source in SOURCES]


def match_items(
    items: Sequence[Item], kept: Mapping[Cell, Sequence[Example]]
) -> tuple[list[tuple[Item, Cell]], list[Item]]:
    """(items with their sources and cells, items that are not among `kept`: the iteration may have run again since)."""
    cell_of = {audit_file.digest_of(example): cell for cell, examples in kept.items() for example in examples}
    known, unknown = [], []
    for item in items:
        cell = cell_of.get(item.digest)
        if cell and (*cell[:2], len(kept[cell])) == (item.iteration, item.source or cell.source, item.stratum):
            known.append((dataclasses.replace(item, source=cell.source), cell))
        else:
            unknown.append(item)
    return known, unknown


def describe_unknown(items: Sequence[Item]) -> str:
    """A sentence about items that are not of this run."""
    numbers = ", ".join(str(item.number) for item in items[:10]) + (", ..." if len(items) > 10 else "")
    return (
        f"{len(items)} item(s) are not in this run's kept.jsonl (item {numbers}): the file belongs to another run, "
        "or an iteration was run again."
    )


def mark_rates(marked: Sequence[tuple[Item, Cell]], sizes: Mapping[Cell, int]) -> MarkRates:
    """The rates of the marks for each source and for all.

    Args:
      marked: at least one.
      sizes: kept rationales of every cell of the audited iterations.
    """
    by_cell: dict[Cell, collections.Counter[str]] = {}
    for item, cell in marked:
        by_cell.setdefault(cell, collections.Counter())[item.mark] += 1
    groups: dict[str, list[Cell]] = {s: [cell for cell in by_cell if cell.source == s] for s in SOURCES}
    groups = {label: cells for label, cells in (groups | {"all": [*by_cell]}).items() if cells}
    counted = [_counted(label, [by_cell[cell] for cell in cells]) for label, cells in groups.items()]
    weighted = [_weighted(label, {cell: by_cell[cell] for cell in cells}, sizes) for label, cells in groups.items()]
    return MarkRates(counted, weighted, sum(size for cell, size in sizes.items() if cell not in by_cell))


def is_consistent(checks: Mapping[tuple[ProblemKey, bool, int], bool | None], example: Example) -> bool | None:
    """The step check of a kept example; None: the task cannot tell. `checks`: see run_data.step_checks."""
    return checks.get((example.problem_key, example.source == Source.RATIONALIZED, example.sample_index))


def _counted(label: str, counts: Sequence[collections.Counter[str]]) -> MarkRow:
    n = sum(counter.total() for counter in counts)
    hits = {mark: sum(counter[mark] for counter in counts) for mark in MARKS}
    # Sources are sampled in equal parts whatever their sizes, so the share among all items estimates nothing.
    intervals = {mark: (None, None) if label == "all" else wilson(k, n) for mark, k in hits.items()}
    return MarkRow(label, n, {mark: Share(k, k / n, *intervals[mark]) for mark, k in hits.items()})


def _weighted(label: str, by_cell: Mapping[Cell, collections.Counter[str]], sizes: Mapping[Cell, int]) -> MarkRow:
    shares = {}
    for mark in MARKS:
        strata = [Stratum(sizes[cell], counter.total(), counter[mark]) for cell, counter in by_cell.items()]
        shares[mark] = Share(None, *stratified(strata))
    return MarkRow(label, sum(sizes[cell] for cell in by_cell), shares)


_STEP_COUNTS: dict[Any, StepCounts] = {}  # by the stamps of the files: see run_data.file_stamp


def _step_counts(run: RunData, iteration: Iteration) -> StepCounts:
    names = ("kept.jsonl", "samples.jsonl", "rationalizations.jsonl")
    paths = [iteration.directory / name for name in names]
    key = tuple((path, file_stamp(path)) for path in paths if is_present(path))
    if key not in _STEP_COUNTS:
        checks = step_checks(iteration)
        counts: StepCounts = {source: collections.Counter() for source in SOURCES}
        for example in own_rationales(iteration):
            counts[example.source][is_consistent(checks, example)] += 1
        _STEP_COUNTS[key] = counts
    return _STEP_COUNTS[key]
