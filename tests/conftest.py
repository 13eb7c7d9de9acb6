"""Set before JAX is imported: eight virtual CPU devices, a compile cache for all test runs, no rank promotion.

Programs are compiled without most optimizations, those of processes that tests start, too: they are tiny, run for less
time than they take to compile, and must give the same results either way. `optimized` is for tests that compute longer.
"""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import compile_cache

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.environ.get("STAR_TEST_CACHE") or compile_cache.directory())
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # preflight counts with it
os.environ.pop("XLA_CLIENT_MEM_FRACTION", None)

import hypothesis
import jax
import pytest
from filelock import FileLock

from star_jax.algorithms import star
from star_jax.models import decoder, families
from tests.support.models import TINY, numpy_params
from tests.support.runs import small_config
from tests.support.web_browser import chromium, open_page  # noqa: F401 # fixtures: a session has one Chromium

jax.config.update("jax_numpy_rank_promotion", "raise")
# The same examples in every run, so that a failure is that of a change; --hypothesis-profile=explore draws new ones.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.register_profile("explore", derandomize=False)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """After a test the environment is as before: what a command or a benchmark sets must not reach the next test."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(autouse=True)
def log_handlers() -> Iterator[None]:
    """After a test that ran a command, which directs all logging to standard error, the loggers are as before."""
    root = logging.getLogger()
    before, level = _stream_handlers(root), root.level
    yield
    for handler in _stream_handlers(root):
        root.removeHandler(handler)
    for handler in before:
        root.addHandler(handler)
    root.setLevel(level)


def _stream_handlers(logger: logging.Logger) -> list[logging.Handler]:
    return [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]  # pytest's are others


@pytest.fixture(scope="module")
def optimized() -> Iterator[None]:
    """Compiles as users' programs are compiled."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="session")
def tiny() -> tuple[decoder.Decoder, decoder.Params]:
    """A two-layer model over the 20 symbols of the arithmetic task, with random weights."""
    return families.build(TINY), jax.tree.map(jax.numpy.asarray, numpy_params(TINY))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with the real data and the original's fixtures; tests that need it skip where it is absent."""
    given = os.environ.get("STAR_DATA_DIR")
    folder = Path(given).parent if given else Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no shared data folder: set STAR_DATA_DIR to its data/")
    return folder


def _made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A directory that one of pytest-xdist's workers makes and all of them read."""
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / name
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            make(folder.with_name(f"{name}.unfinished"))
            folder.with_name(f"{name}.unfinished").rename(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base model of small runs, pretrained in a few seconds. Read only."""

    def make(workdir: Path) -> None:
        star.run(small_config(star__iterations=0), workdir)

    return _made_once(tmp_path_factory, "small_base_run", make) / "base"


@pytest.fixture(scope="session")
def finished(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two iterations. Read only."""

    def make(workdir: Path) -> None:
        star.run(small_config(base__path=str(base)), workdir)

    return _made_once(tmp_path_factory, "small_finished_run", make)
