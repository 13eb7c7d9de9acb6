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


def best(function: Callable[[], Any], turns: int = 7) -> float:
    """Seconds of the fastest of some turns, the first one (which compiles) left out."""
    import jax

    seconds = []
    for _ in range(turns + 1):
        started = time.perf_counter()
        jax.block_until_ready(function())
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def queued(function: Callable[[], Any], calls: int = 10, turns: int = 3) -> float:
    """Seconds of one of some calls that wait for the device and not for each other, of the fastest turn."""
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
    return 2.0 * side**3 / queued(lambda: product(square, square))
