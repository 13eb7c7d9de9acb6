"""What the benchmarks know of the machine: its rates, and the allocator's settings that a fair comparison needs."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**35)}


def keep_freed_memory() -> None:
    """Starts the script again with MALLOC set, unless it is: torch loses up to half its speed to page faults else."""
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})


def best(function: Callable[[], Any], turns: int = 7, calls: int = 1) -> float:
    """Seconds of one of `calls` that wait for the device and not for each other, of the fastest of some turns.

    The first call, which compiles, is left out.
    """
    import jax

    jax.block_until_ready(function())
    seconds = []
    for _ in range(turns):
        started = time.perf_counter()
        for _ in range(calls):
            last = function()
        jax.block_until_ready(last)
        seconds.append(time.perf_counter() - started)
    return min(seconds) / calls


def matrix_rate(side: int, dtype: str = "float32") -> float:
    """FLOP/s of a product of square matrices."""
    import jax
    import jax.numpy as jnp

    # Drawn, for a chip can be faster on ones; waited for once, for starting a call takes as long as a small one.
    square, product = jax.random.normal(jax.random.key(0), (side, side), dtype), jax.jit(jnp.matmul)
    return 2.0 * side**3 / best(lambda: product(square, square), turns=3, calls=10)
