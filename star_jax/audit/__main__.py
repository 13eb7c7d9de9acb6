"""Right answers are not right reasoning: a sample of what a run kept, for a person to mark.

    python -m star_jax.audit --workdir=DIR [--n=50] [--iteration=N|last|all] [--output=FILE]

writes audit.txt into the run's directory: kept rationales, by source (sampled, rationalized) and class in equal parts.
Mark them in any editor; python -m star_jax.report then shows how much of the reasoning is sound, and this command too.
The same command with a larger --n adds items behind those that are there, and changes none of them.
"""

import collections
import dataclasses
import hashlib
import shlex
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.errors import InputError
from star_jax.records import Example, natural_order
from star_jax.report import audit_file, audited
from star_jax.report.audit_file import MARKS, SOURCES, Item
from star_jax.report.audited import Cell, Row
from star_jax.report.load import Run, checked_steps, read_run, setting, train_problems
from star_jax.runs.atomic_files import atomic_write


def main() -> None:
    """The command line at the head of this file."""
    about = __doc__.split("\n")[0]
    parser = Parser("audit", about)
    parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="a run's directory")
    parser.add_argument("--n", type=int, default=50, help="items that the file should have (default: 50)")
    parser.add_argument(
        "--iteration",
        metavar="N|last|all",
        help="of which iterations; default: of those that the file has items of, in a new file of the last",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=f"the file (default: {audit_file.NAME} in the run's directory, where the report looks for it)",
    )
    arguments = parser.parse_args()
    if arguments.n < 1:
        raise InputError(f"audit: --n must be at least 1, got {arguments.n}")
    path = arguments.output or arguments.workdir / audit_file.NAME
    run = read_run(arguments.workdir)
    _tell(run, path, extend(run, path, arguments.n, arguments.iteration), arguments.n)


@dataclasses.dataclass(frozen=True)
class Sample:
    """What is in the file now."""

    items: list[tuple[Item, Cell]]
    sizes: dict[Cell, int]  # kept rationales in each cell of the items' iterations
    new: int  # items that were not there before
    asked: int  # items of the iterations that were asked for


def extend(run: Run, path: Path, n: int, which: str | None) -> Sample:
    """Brings the file to at least `n` items of the wanted iterations; what stands in it is not changed by a byte.

    Raises InputError where the file is broken or another run's, where nothing was kept, or where the disk will not
    have it.
    """
    text = audit_file.read_file(path, str(path)) if path.exists() else ""
    found = audit_file.parse(text, str(path))
    kept = audited.kept_of(run, {item.iteration for item in found})
    items, strange = audited.sort_out(found, kept)
    if strange:
        raise InputError(
            f"{path}:{strange[0].line}: {audited.unknown_items(strange)} Take those items out, or give another --output"
        )
    numbers = _iterations(run, which, {cell.iteration for _, cell in items})
    kept |= audited.kept_of(run, numbers)
    wanted = {cell: examples for cell, examples in kept.items() if cell.iteration in numbers}
    drawn = draw(wanted, {item.digest for item in found}, n, str(setting(run.config, "seed")))
    added = _items(run, kept, drawn, first=max((item.number for item in found), default=0) + 1)
    if added:
        newline = "\r\n" if "\r\n" in text else "\n"
        addition = ("" if text else audit_file.head()) + audit_file.write_items(item for item, _ in added)
        gap = "" if not text or text.endswith("\n") else newline
        atomic_write(path, text + gap + addition.replace("\n", newline), shared=True)
    items += added
    return Sample(
        items=items,
        sizes={cell: len(examples) for cell, examples in kept.items()},
        new=len(added),
        asked=sum(cell.iteration in numbers for _, cell in items),
    )


def draw(
    kept: Mapping[Cell, Sequence[Example]], taken: Collection[str], n: int, seed: str
) -> list[tuple[Cell, Example]]:
    """Further examples, so that there are `n` with those whose digests are `taken`; fewer where no more were kept.

    Each is of the source that has fewest so far, of its class that has fewest, of that class's iteration that has
    fewest: any beginning of the sequence is as even as the kept examples allow, and a larger n only adds to its end.
    Within a cell it is a simple random sample without replacement, fixed by the seed.
    """
    waiting: dict[Cell, list[tuple[str, Example]]] = {}  # the next one last
    had: collections.Counter[tuple[object, ...]] = collections.Counter()
    for cell in sorted(kept, key=lambda c: (*_order(c), c.iteration)):
        named = [(audit_file.digest_of(example), example) for example in kept[cell]]
        left = [(digest, example) for digest, example in named if digest not in taken]
        _count(had, cell, len(named) - len(left))
        if left:
            waiting[cell] = sorted(left, key=lambda pair: _lot(seed, pair[0]), reverse=True)
    drawn: list[tuple[Cell, Example]] = []
    missing = n - had[()]
    while len(drawn) < missing and waiting:
        cell = min(waiting, key=lambda c: [had[group] for group in _groups(c)])
        drawn.append((cell, waiting[cell].pop()[1]))
        _count(had, cell, 1)
        if not waiting[cell]:
            del waiting[cell]
    return drawn


def _groups(cell: Cell) -> list[tuple[object, ...]]:
    """What should have equally many, the most important first. The last one only breaks ties: without it one item of
    each class would mean the first iteration's every time.
    """
    iteration, source, category = cell
    return [(), (source,), (source, "class", category), (source, category, iteration), (source, "iteration", iteration)]


def _count(had: collections.Counter[tuple[object, ...]], cell: Cell, more: int) -> None:
    had.update(dict.fromkeys(_groups(cell), more))


def _order(cell: Cell) -> tuple[object, ...]:
    return SOURCES.index(cell.source), natural_order(cell.category), cell.category


def _lot(seed: str, digest: str) -> str:
    return hashlib.sha256(f"audit/{seed}/{digest}".encode()).hexdigest()


def _iterations(run: Run, which: str | None, in_file: Collection[int]) -> set[int]:
    """The numbers of the iterations to draw from."""
    having = [it.number for it in run.iterations if it.has_kept and audited.own_rationales(it)]
    if not having:
        raise InputError(
            f"{run.directory}: no iteration has kept rationales of the model's own, so there is nothing to mark"
        )
    if which is None and in_file:
        return set(in_file)
    if which in (None, "last"):
        return {having[-1]}
    if which == "all":
        return set(having)
    if not (which or "").isdecimal() or int(which or "") not in having:
        raise InputError(f"audit: --iteration must be last, all or one of {', '.join(map(str, having))}, got {which!r}")
    return {int(which or "")}


def _items(
    run: Run, kept: Mapping[Cell, Sequence[Example]], chosen: Sequence[tuple[Cell, Example]], first: int
) -> list[tuple[Item, Cell]]:
    """The chosen examples as items, numbered from `first` on."""
    if not chosen:
        return []
    problems = train_problems(run)
    wanted = {cell.iteration for cell, _ in chosen}
    told = {it.number: checked_steps(it) for it in run.iterations if it.number in wanted}
    return [
        (
            audit_file.make_item(
                number,
                example,
                problems.get(example.problem_id),
                stratum=len(kept[cell]),
                consistent=audited.consistent(told[cell.iteration], example),
            ),
            cell,
        )
        for number, (cell, example) in enumerate(chosen, start=first)
    ]


def _tell(run: Run, path: Path, sample: Sample, wanted: int) -> None:
    """Says what is in the file, what the marks come to, and how to go on."""
    console = Console(highlight=False, markup=False, emoji=False)  # class names are the run's, and no markup
    marked = [(item, cell) for item, cell in sample.items if item.mark]
    total = len(sample.items)
    console.print(f"{path}: {total} items, {sample.new} of them new; {len(marked)} marked", soft_wrap=True)
    if sample.asked > wanted:
        console.print(f"The file has {sample.asked} items, more than --n={wanted}: all of them stay.")
    if sample.asked < wanted:
        console.print(f"No more than {sample.asked} rationales were kept, fewer than --n={wanted}.")
    console.print(_cells(sample))
    if marked:
        found = audited.rates(marked, sample.sizes)
        console.print("Marks in percent, with 95 % intervals; weighted: for all that was kept.")
        console.print(_rates("as marked", found.counted))
        console.print(_rates("weighted", found.weighted))
    if len(marked) < total:
        words = ", ".join(f"{name} ({name[0]})" for name in MARKS)
        console.print(f'Write one of these, or its letter, behind each "mark:" in the file: {words}.', soft_wrap=True)
    if path.resolve() == (run.directory / audit_file.NAME).resolve():
        console.print(f"Then: python -m star_jax.report --workdir={shlex.quote(str(run.directory))}", soft_wrap=True)
    else:
        console.print(f"The report reads {audit_file.NAME} of the run's directory, not this file.")


def _cells(sample: Sample) -> Table:
    """Kept, drawn and marked, a row a cell."""
    table = _table("iteration", "source", "class", "kept", "items", "marked")
    for cell in sorted(sample.sizes, key=lambda c: (c.iteration, *_order(c))):
        here = [item for item, other in sample.items if other == cell]
        counts = (sample.sizes[cell], len(here), sum(bool(item.mark) for item in here))
        name = audit_file.one_line(cell.category) or "–"
        table.add_row(str(cell.iteration), cell.source, name, *(f"{count:,}" for count in counts))
    return table


def _rates(title: str, rows: Sequence[Row]) -> Table:
    """The marks' shares, a row a source; at most eighty characters wide."""
    table = _table(title, "n", *(mark.replace(" ", "\n") for mark in MARKS))
    for row in rows:
        shares = []
        for share in row.shares.values():
            ends = () if share.low is None or share.high is None else (share.low, share.high)
            between = "–".join(f"{100 * end:.0f}" for end in ends)
            shares.append(f"{100 * share.share:.0f}{between and f' ({between})'}")
        table.add_row(row.label, f"{row.n:,}", *shares)
    return table


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


if __name__ == "__main__":
    exit_on_bad_input(main)
