"""Platform of the program that is being compiled, and what is tuned for each platform.

The platform is that of the mesh in use. Without a mesh it is that of this process's first device, on which JAX would
run the program. So a program for a TPU compiles to the same code on a machine that has a CUDA GPU.
"""

import functools
from typing import Any

import jax

# With XLA's own choice, products of one operand are merged by copying weights on every step, and its Triton products
# are slower than cuBLAS at a few hundred rows: 235 against 161 us for a layer of GPT-J-6B.
CUDA_COMPILER_OPTIONS: dict[str, Any] = {"xla_gpu_dot_merger_threshold_mb": 0, "xla_gpu_enable_triton_gemm": False}

# tests/benchmarks/LOG.md: 2, 4 or 16 groups gain less, and small ones nothing, unless they have many rows.
_KV_ROW_GROUPS, _MIN_GROUP_BYTES, _MANY_ROWS, _MIN_BYTES_OF_MANY = 8, 2**21, 8, 2**20
_MIN_SPLIT_VOCABULARY, _MAX_VOCABULARY_PARTS = 4096, 256


def device_kind() -> str:
    """Kind of the devices that the program is compiled for, e.g. "cpu", "TPU v4", "NVIDIA H200"."""
    device = jax.sharding.get_abstract_mesh().abstract_device  # None without a mesh
    return str((jax.local_devices()[0] if device is None else device).device_kind)


def is_cpu() -> bool:
    """True if the program is compiled for CPUs."""
    return device_kind() == "cpu"


def cuda_capability() -> tuple[int, int]:
    """Compute capability of the CUDA GPU that the program is compiled for, e.g. (9, 0) for Hopper; (0, 0) if none.

    It is read from a local device of the same kind: the mesh does not hold it.
    """
    kind = device_kind()
    for device in jax.local_devices():
        if device.device_kind == kind and device.platform == "gpu" and "cuda" in device.client.platform_version.lower():
            major, minor = device.compute_capability.split(".")
            return int(major), int(minor)
    return 0, 0


@functools.cache
def has_triton() -> bool:
    """True if this JAX has Pallas's Triton backend, which it may drop, and the kernels of attention/triton.py need."""
    try:
        from jax.experimental.pallas import triton  # noqa: F401
    except ImportError:
        return False
    return True


def kv_row_groups(rows: int, row_bytes: int) -> int:
    """Number of equal groups of rows, each with its own KV array, in a decode step; `row_bytes`: of a row in one layer.

    XLA:CPU runs the product of each row's query with that row's keys on one core. Each group is a product of its own,
    so groups run on all cores.
    """
    group_rows, rest = divmod(rows, _KV_ROW_GROUPS)
    smallest = _MIN_BYTES_OF_MANY if group_rows >= _MANY_ROWS else _MIN_GROUP_BYTES
    return _KV_ROW_GROUPS if is_cpu() and not rest and group_rows * row_bytes >= smallest else 1


def vocabulary_parts(size: int) -> int:
    """Number of equal parts of a vocabulary of `size` ids in which the largest logit is searched for.

    XLA:CPU does not vectorize argmax, but it does vectorize max. So the maximum of each part comes first, and the index
    is searched for in one part only. A vocabulary that is sharded over devices stays one part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if size < _MIN_SPLIT_VOCABULARY or not is_cpu() or mesh.shape.get("tensor", 1) > 1:
        return 1
    return next(parts for parts in range(_MAX_VOCABULARY_PARTS, 0, -1) if size % parts == 0)
