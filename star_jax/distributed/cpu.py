"""What this program knows of XLA on CPUs: what runs there on a single core, and how it is cut up for all of them."""

import jax

_LARGE, _PARTS = 4096, 256
_GROUPS, _GROUP_BYTES = 8, 2**21  # LOG.md of the benchmarks: 2 or 4 groups, or 16, gain less; small ones nothing


def is_target() -> bool:
    """Whether the program at hand is for CPUs: those of the mesh that is in use, or this process' own."""
    mesh = jax.sharding.get_abstract_mesh()
    device = None if mesh.empty else mesh.abstract_device
    return (jax.local_devices()[0] if device is None else device).device_kind == "cpu"


def row_groups(rows: int, row_bytes: int) -> int:
    """How many arrays of as many rows each hold the keys, of `row_bytes` a row and layer, of a decode step's rows.

    A product of one query a row with that row's own keys is done by one core from the first row to the last. Groups of
    rows are products of their own, and XLA gives them to all cores.
    """
    fits = is_target() and rows % _GROUPS == 0 and rows // _GROUPS * row_bytes >= _GROUP_BYTES
    return _GROUPS if fits else 1


def vocabulary_parts(size: int) -> int:
    """How many parts of equal size a vocabulary is gone over in, to find the largest logit.

    The place of a maximum is found a number at a time, and vectors do the rest: maxima first, the place in one part
    last. Sums are products with ones for the same reason. A vocabulary that is split over devices stays as it is.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if size < _LARGE or not is_target() or (not mesh.empty and mesh.shape.get("tensor", 1) > 1):
        return 1
    return next(parts for parts in range(_PARTS, 0, -1) if size % parts == 0)
