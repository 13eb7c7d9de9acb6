"""This machine's rates, and the allocator settings of a fair comparison with torch."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**35)}


def keep_freed_memory() -> None:
    """Starts the script again with MALLOC set, without which torch loses up to half its speed to page faults."""
    if any(os.environ.get(name) != value for name, value in MALLOC.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})


def best(function: Callable[[], Any], turns: int = 7, calls: int = 1) -> float:
    """Seconds of one call: the mean over `calls` of them, which wait only for the device, in the fastest of `turns`.

    One more call before them compiles.
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

    # Random numbers: a chip can be faster on constants. Ten calls for each wait: launching one takes as long as a small
    # product.
    square, product = jax.random.normal(jax.random.key(0), (side, side), dtype), jax.jit(jnp.matmul)
    return 2.0 * side**3 / best(lambda: product(square, square), turns=3, calls=10)
