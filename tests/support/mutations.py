"""Hypothesis strategies that change one field of a JSON value, for tests of files that other programs made."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

Path = tuple[str | int, ...]
CHANGED_ITEMS = 4  # at either end of a long list or object below the top level; those between are like them
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 400)
    | st.sampled_from([10**9, 2**31, 2**63, 10**60, -(2**63), 0.5, 1e308, float("nan"), float("inf")])
    | st.text(max_size=8)
    | st.sampled_from(["", "\ud800", "a\nb", "\0", "x" * 5000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def paths(values: Any, at: Path = ()) -> Iterator[Path]:
    """The places in a JSON value; of long lists and objects those of the first and the last items."""
    if isinstance(values, dict | list):
        keys: list[str | int] = list(values if isinstance(values, dict) else range(len(values)))
        if at and len(keys) > 2 * CHANGED_ITEMS:
            keys = [*keys[:CHANGED_ITEMS], *keys[-CHANGED_ITEMS:]]
        for key in keys:
            yield (*at, key)
            yield from paths(values[key], (*at, key))


def at_path(values: Any, path: Path) -> Any:
    """The value at a place."""
    for key in path:
        values = values[key]
    return values


@st.composite
def mutated(draw: st.DrawFn, values: Any, alternatives: Mapping[str, Sequence[Any]]) -> Any:
    """The JSON value with one place changed: dropped, doubled, retyped, nested, or set to another valid value.

    `alternatives`: key -> valid values of it, which are also put where the key is absent from the top level.
    """
    values = copy.deepcopy(values)
    places = list(paths(values))
    valid = [(key,) for key in alternatives] + [path for path in places if path[-1] in alternatives]
    kind = draw(st.sampled_from(["valid", "valid", "valid", "retyped", "dropped", "doubled", "nested", "exchanged"]))
    path = draw(st.sampled_from(valid if kind == "valid" and valid else places or valid))
    parent, key = at_path(values, path[:-1]), path[-1]
    if kind == "valid" and valid:
        parent[key] = copy.deepcopy(draw(st.sampled_from(list(alternatives[str(key)]))))
    elif not places or kind == "retyped":
        parent[key] = draw(VALUES)
    elif kind == "dropped":
        del parent[key]
    elif kind == "nested":
        parent[key] = draw(st.sampled_from([[parent[key]], {str(key): parent[key]}]))
    elif kind == "doubled" and isinstance(parent, list):
        parent.insert(draw(st.integers(0, len(parent))), copy.deepcopy(parent[key]))
    elif kind == "doubled":
        parent[draw(st.text(max_size=4))] = copy.deepcopy(parent[key])
    else:
        other = draw(st.sampled_from(places))
        parent[key] = copy.deepcopy(at_path(values, other))
    return values
