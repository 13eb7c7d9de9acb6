"""What this program knows of CUDA GPUs: which one is here, and what XLA is told for one that draws."""

import functools
from typing import Any

import jax

# XLA joins products of the same operand by copying weights together at every step, and its own product kernels are
# slower at a few hundred rows than cuBLAS's, which adds bias and gelu besides: 235 against 161 us a layer of GPT-J-6B.
COMPILER_OPTIONS: dict[str, Any] = {"xla_gpu_dot_merger_threshold_mb": 0, "xla_gpu_enable_triton_gemm": False}


@functools.cache
def capability() -> tuple[int, int]:
    """(9, 0) for Hopper, and so on; (0, 0) where the default device is no CUDA GPU."""
    device = jax.local_devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
        return 0, 0
    major, minor = device.compute_capability.split(".")
    return int(major), int(minor)


@functools.cache
def has_triton() -> bool:
    """Whether this jax still takes kernels.py's kernels: their backend is to leave it one day."""
    try:
        from jax.experimental.pallas import triton  # noqa: F401
    except ImportError:
        return False
    return True
