"""What a compiled program says between devices, read off its text (HLO): kinds, counts and bytes, loop by loop."""

import collections
import dataclasses
import math
import re

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_WHILE = re.compile(r" while\(.*?condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_UNTIL = re.compile(r"ROOT .* compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT")
_CALLED = re.compile(r"(?:calls|branch_computations|true_computation|false_computation)=\{?([^}\s]+(?:, %[^}\s]+)*)\}?")
_SHAPE = re.compile(r"([a-z]+[0-9]+|pred)\[([0-9,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction: its kind, the bytes of its result on a device, how often it runs in its loop."""

    kind: str
    size: int
    times: int


def collectives(text: str) -> dict[int, list[Collective]]:
    """Loop depth -> what runs in one turn of the loops there; 0: once a call of the program.

    A loop whose number of turns the compiler knows (layers, microbatches) is counted out and adds no depth; one that
    it does not know adds one: in the sampler 1 is the prefill and 2 the decode step.
    """
    bodies, entry = _computations(text)
    found: dict[int, list[Collective]] = collections.defaultdict(list)

    def walk(name: str, depth: int, times: int) -> None:
        for line in bodies.get(name, ()):
            if match := _COLLECTIVE.search(line):
                shapes, kind, start = match.groups()
                found[depth].append(Collective(kind, _bytes(shapes, bool(start) and kind != "all-reduce"), times))
            elif match := _WHILE.search(line):
                condition, body = match.groups()
                trips = _trips(line, bodies.get(condition, []))
                walk(body, depth + (trips is None), times * trips if trips else 1)
            elif match := _CALLED.search(line):
                for called in match.group(1).split(", "):
                    walk(called.lstrip("%"), depth, times)

    walk(entry, 0, 1)
    return dict(found)


def _trips(loop: str, condition: list[str]) -> int | None:
    """The turns of a loop: where the compiler notes them, or where its condition is only `counter < constant`."""
    if noted := _TRIPS.search(loop):
        return int(noted.group(1))
    limit = next((match.group(1) for line in condition if (match := _UNTIL.search(line))), None)
    constants = (re.search(rf"%?{re.escape(limit)} = .* constant\((\d+)\)", line) for line in condition if limit)
    return next((int(match.group(1)) for match in constants if match), None)


def summary(found: list[Collective]) -> dict[str, tuple[int, int]]:
    """Kind -> (how many, bytes in all) in one turn."""
    kinds: dict[str, tuple[int, int]] = {}
    for one in found:
        count, size = kinds.get(one.kind, (0, 0))
        kinds[one.kind] = count + one.times, size + one.size * one.times
    return kinds


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies: dict[str, list[str]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        if match := _HEADER.match(line):
            current = match.group(2)
            bodies[current] = []
            entry = current if match.group(1) else entry
        elif current:
            bodies[current].append(line)
    return bodies, entry


def _bytes(shapes: str, last_alone: bool) -> int:
    """The size of a result; of the pair (operand, result) that some asynchronous starts give, the second's."""
    sizes = [
        math.prod(int(n) for n in dims.split(",") if n) * max(1, int(re.sub(r"\D", "", kind) or 8) // 8)
        for kind, dims in _SHAPE.findall(shapes)
    ]
    if not sizes:
        return 0
    return sizes[1] if last_alone and len(sizes) > 1 else sum(sizes)
