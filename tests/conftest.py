"""Set before JAX is imported: eight virtual CPU devices, a compile cache for this run, no rank promotion.

Programs are compiled without most optimizations, those of processes that tests start, too: they are tiny, run for less
time than they take to compile, and must give the same results either way. `optimized` is for tests that compute longer.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
_CACHE = os.environ.setdefault("STAR_TEST_CACHE", tempfile.mkdtemp(prefix="star_jax_cache_"))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _CACHE)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from star_jax import model as gpt  # noqa: E402
from star_jax.config import ModelConfig  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

TINY = ModelConfig(
    n_layers=2, d_model=32, n_heads=2, d_mlp=64, rotary_dim=8, vocab_size=20, max_positions=512, scan_unroll=2
)


def numpy_params(config: ModelConfig, seed: int = 0, scale: float = 0.2) -> gpt.Params:
    """Random parameters of every leaf, made with NumPy (jit(init) would cost seconds of compiling)."""
    from star_jax import sharding

    rng = np.random.default_rng(seed)
    shapes = sharding.unbox(sharding.abstract_params(gpt.GPT(config)))
    return jax.tree.map(lambda s: (scale * rng.standard_normal(s.shape)).astype(np.float32), shapes)


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """Compiles as users' programs are compiled."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def tiny() -> tuple[gpt.GPT, gpt.Params]:
    """A two-layer model over the 20 symbols of the arithmetic task, with random weights."""
    return gpt.GPT(TINY), jax.tree.map(jax.numpy.asarray, numpy_params(TINY))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the real data and the original's fixtures; tests that need it skip where it is absent."""
    given = os.environ.get("STAR_DATA_DIR")
    folder = Path(given).parent if given else Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no shared data folder: set STAR_DATA_DIR to its data/")
    return folder
