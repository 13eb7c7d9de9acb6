"""Collectives (kind, count, bytes) parsed from the text of a compiled program (HLO), by loop depth."""

import collections
import dataclasses
import math
import re

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_WHILE = re.compile(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIP_COUNT = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_LESS_THAN = re.compile(r"ROOT .* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT")
_CALLED = re.compile(r"(?:calls|branch_computations|true_computation|false_computation)=\{?([^}\s]+(?:, %[^}\s]+)*)\}?")
_SHAPE = re.compile(r"([a-z]+[0-9]+|pred)\[([0-9,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction."""

    kind: str
    size: int  # bytes of its result on a device
    times: int  # executions per iteration of the loops at its depth


def collectives(text: str) -> dict[int, list[Collective]]:
    """Loop depth -> collectives in one iteration of the loops at that depth; 0: in one call of the program.

    A loop with a trip count that the compiler knows (layers, microbatches) multiplies `times` and adds no depth. Any
    other loop adds one: in the sampling loop 1 is the prefill and 2 the decode step.
    """
    computations, entry = _computations(text)
    by_depth: dict[int, list[Collective]] = collections.defaultdict(list)

    def walk(name: str, depth: int, times: int) -> None:
        for line in computations.get(name, ()):
            if match := _COLLECTIVE.search(line):
                shapes, kind, start = match.groups()
                result_only = bool(start) and kind != "all-reduce"
                by_depth[depth].append(Collective(kind, _bytes(shapes, result_only), times))
            elif match := _WHILE.search(line):
                condition, body = match.groups()
                trips = _trip_count(line, computations.get(condition, []))
                walk(body, depth + (trips is None), times * trips if trips else 1)
            elif match := _CALLED.search(line):
                for called in match.group(1).split(", "):
                    walk(called.lstrip("%"), depth, times)

    walk(entry, 0, 1)
    return dict(by_depth)


def totals(items: list[Collective]) -> dict[str, tuple[int, int]]:
    """Kind -> (executions, bytes of all results)."""
    kinds: dict[str, tuple[int, int]] = {}
    for item in items:
        count, size = kinds.get(item.kind, (0, 0))
        kinds[item.kind] = count + item.times, size + item.size * item.times
    return kinds


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(computation name -> its lines, the entry computation's name)."""
    computations: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if match := _HEADER.match(line):
            current = match.group(2)
            computations[current] = []
            entry = current if match.group(1) else entry
        elif current:
            computations[current].append(line)
    return computations, entry


def _trip_count(loop: str, condition: list[str]) -> int | None:
    """Iterations of a loop if the compiler noted them, or if its condition is `counter < constant`; else None."""
    if noted := _TRIP_COUNT.search(loop):
        return int(noted.group(1))
    limit = next((match.group(1) for line in condition if (match := _LESS_THAN.search(line))), None)
    constants = (re.search(rf"%?{re.escape(limit)} = .* constant\((\d+)\)", line) for line in condition if limit)
    return next((int(match.group(1)) for match in constants if match), None)


def _bytes(shapes: str, result_only: bool) -> int:
    """Bytes of a result. Asynchronous starts return (operand, result): `result_only` counts the second alone."""
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n) * max(1, int(re.sub(r"\D", "", kind) or 8) // 8)
        for kind, dims in _SHAPE.findall(shapes)
    ]
    if not sizes:
        return 0
    return sizes[1] if result_only and len(sizes) > 1 else sum(sizes)
