"""The sample of kept rationales in audit.txt: which examples it takes, and how it grows without changing the file."""

import collections
import dataclasses
import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from star_jax.errors import InputError
from star_jax.json_reader import is_present
from star_jax.records import Example, natural_order
from star_jax.report.marks import audit_file, estimates
from star_jax.report.marks.audit_file import Item
from star_jax.report.marks.estimates import Cell
from star_jax.report.run_data import RunData, setting, step_checks, train_problems
from star_jax.report.samples import SOURCES
from star_jax.runs.atomic_files import atomic_write


@dataclasses.dataclass(frozen=True)
class MarkSample:
    """The content of the file after `extend`."""

    items: list[tuple[Item, Cell]]
    sizes: dict[Cell, int]  # kept rationales in each cell of the items' iterations
    new: int  # items that this call added
    requested: int  # items of the requested iterations


def extend(run: RunData, path: Path, n: int, iterations: str | None) -> MarkSample:
    """Adds items to the file until it has `n` of the requested iterations. Existing bytes do not change.

    Args:
      iterations: a number, "last" or "all"; None: those of the file's items, the last one for a new file.

    Raises InputError if the file is broken or belongs to another run, if nothing was kept, or if it cannot be written.
    """
    text = audit_file.read_file(path, str(path)) if is_present(path) else ""
    old_items = audit_file.parse(text, str(path))
    kept = estimates.kept_by_cell(run, {item.iteration for item in old_items})
    items, unknown = estimates.match_items(old_items, kept)
    if unknown:
        raise InputError(
            f"{path}:{unknown[0].line}: {estimates.describe_unknown(unknown)} "
            "Delete those items, or give another --output"
        )
    numbers = _iteration_numbers(run, iterations, {cell.iteration for _, cell in items})
    kept |= estimates.kept_by_cell(run, numbers)
    candidates = {cell: examples for cell, examples in kept.items() if cell.iteration in numbers}
    chosen = choose_examples(candidates, {item.digest for item in old_items}, n, str(setting(run.config, "seed")))
    new_items = _make_items(run, kept, chosen, first=max((item.number for item in old_items), default=0) + 1)
    if new_items:
        newline = "\r\n" if "\r\n" in text else "\n"
        addition = ("" if text else audit_file.header()) + audit_file.format_items(item for item, _ in new_items)
        gap = "" if not text or text.endswith("\n") else newline
        atomic_write(path, text + gap + addition.replace("\n", newline), shared=True)
    items += new_items
    return MarkSample(
        items=items,
        sizes={cell: len(examples) for cell, examples in kept.items()},
        new=len(new_items),
        requested=sum(cell.iteration in numbers for _, cell in items),
    )


def choose_examples(
    kept: Mapping[Cell, Sequence[Example]], taken: Collection[str], n: int, seed: str
) -> list[tuple[Cell, Example]]:
    """Chooses examples until there are `n`, including those with digests in `taken`; fewer if no more were kept.

    Each choice takes the source with the fewest so far (of equals one chosen at random, so that the order gives no
    source away), then its category with the fewest, then that category's iteration with the fewest. So every prefix of
    the sequence is as balanced as the kept examples allow, and a larger n only extends it. Within a cell this is a
    simple random sample without replacement, fixed by the seed.
    """
    waiting: dict[Cell, list[tuple[str, Example]]] = {}  # (digest, example), the next one last
    counts: collections.Counter[tuple[object, ...]] = collections.Counter()
    for cell in sorted(kept, key=lambda c: (*cell_order(c), c.iteration)):
        with_digests = [(audit_file.digest_of(example), example) for example in kept[cell]]
        left = [(digest, example) for digest, example in with_digests if digest not in taken]
        _add(counts, cell, len(with_digests) - len(left))
        if left:
            waiting[cell] = sorted(left, key=lambda pair: _rank(seed, pair[0]), reverse=True)
    chosen: list[tuple[Cell, Example]] = []
    missing = n - counts[()]
    while len(chosen) < missing and waiting:
        cell = min(waiting, key=lambda c: _priority(counts, c, seed))
        chosen.append((cell, waiting[cell].pop()[1]))
        _add(counts, cell, 1)
        if not waiting[cell]:
            del waiting[cell]
    return chosen


def cell_order(cell: Cell) -> tuple[object, ...]:
    """A key that sorts cells by source and category."""
    return SOURCES.index(cell.source), natural_order(cell.category), cell.category


def _groups(cell: Cell) -> list[tuple[object, ...]]:
    """The groups to balance that a cell belongs to, the most important first.

    The last one only breaks ties: without it, one item of each category would always come from the first iteration.
    """
    iteration, source, category = cell
    return [
        (),
        (source,),
        (source, "category", category),
        (source, category, iteration),
        (source, "iteration", iteration),
    ]


def _priority(counts: collections.Counter[tuple[object, ...]], cell: Cell, seed: str) -> list[object]:
    """A key that sorts the cell to choose from next first."""
    total, of_source, *others = (counts[group] for group in _groups(cell))
    return [of_source, _rank(seed, f"{total} {cell.source}"), *others]


def _add(counts: collections.Counter[tuple[object, ...]], cell: Cell, number: int) -> None:
    counts.update(dict.fromkeys(_groups(cell), number))


def _rank(seed: str, digest: str) -> str:
    return hashlib.sha256(f"audit/{seed}/{digest}".encode()).hexdigest()


def _iteration_numbers(run: RunData, iterations: str | None, in_file: Collection[int]) -> set[int]:
    """The iterations to choose from."""
    with_rationales = [it.number for it in run.iterations if it.has_kept and estimates.own_rationales(it)]
    if not with_rationales:
        raise InputError(f"{run.directory}: no iteration has kept rationales that the model wrote: nothing to mark")
    if iterations is None and in_file:
        return set(in_file)
    if iterations in (None, "last"):
        return {with_rationales[-1]}
    if iterations == "all":
        return set(with_rationales)
    number = int(iterations) if iterations and re.fullmatch("[0-9]{1,9}", iterations) else None
    if number not in with_rationales:
        numbers = ", ".join(map(str, with_rationales))
        raise InputError(f"audit: --iteration must be last, all or one of {numbers}, got {(iterations or '')[:40]!r}")
    return {number}


def _make_items(
    run: RunData, kept: Mapping[Cell, Sequence[Example]], chosen: Sequence[tuple[Cell, Example]], first: int
) -> list[tuple[Item, Cell]]:
    """The chosen examples as items, numbered from `first`."""
    if not chosen:
        return []
    problems = train_problems(run)
    numbers = {cell.iteration for cell, _ in chosen}
    checks = {it.number: step_checks(it) for it in run.iterations if it.number in numbers}
    return [
        (
            audit_file.make_item(
                number,
                example,
                problems.get(example.problem_key),
                stratum=len(kept[cell]),
                consistent=estimates.is_consistent(checks[cell.iteration], example),
            ),
            cell,
        )
        for number, (cell, example) in enumerate(chosen, start=first)
    ]
