"""star_jax.distributed.compile_cache: programs are stored once, it can be turned off, a bad directory warns once."""

import os
import subprocess
import sys
from pathlib import Path

from tests.support import compile_cache as cache_for_tests
from tests.support.commands import ROOT

PROGRAM = """
import sys, logging
logging.basicConfig(level=logging.WARNING, format="%(message)s")
import jax
from star_jax.distributed import compile_cache
compile_cache._MIN_COMPILE_SECONDS = 0
compile_cache.enable(sys.argv[1])
print(jax.jit(lambda x: (x @ x).sum())(jax.numpy.ones((3, 3))))
"""


def start(directory: str, home: Path, **env: str) -> str:
    """What the program logs; its result is always the same."""
    keep = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    env = {**keep, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", "HOME": str(home), **env}
    command = [sys.executable, "-c", PROGRAM, directory]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout == "27.0\n", done.stderr
    return done.stderr


def entries(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*-cache")}


def test_programs_are_stored_once_and_a_torn_entry_is_compiled_again(tmp_path):
    assert start("~/programs", tmp_path) == ""
    stored = entries(tmp_path / "programs")
    assert stored
    assert start("~/programs", tmp_path) == "" and entries(tmp_path / "programs") == stored
    for path in stored:
        path.write_bytes(path.read_bytes()[:100])
    assert "Error reading persistent compilation cache entry" in start("~/programs", tmp_path)


def test_the_cache_can_be_off_or_elsewhere_and_a_directory_that_cannot_be_written_is_one_warning(tmp_path):
    assert start("", tmp_path) == "" and not list(tmp_path.iterdir())
    assert start("~/programs", tmp_path, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "elsewhere")) == ""
    assert not entries(tmp_path / "programs")
    (tmp_path / "file").touch()
    warning = start(str(tmp_path / "file" / "programs"), tmp_path)
    assert len(warning.splitlines()) == 1 and "file/programs: cannot be written" in warning


def test_the_tests_cache_is_trimmed_from_its_oldest_file(tmp_path):
    for age, name in enumerate(("new", "middle", "old")):
        (tmp_path / name).write_bytes(bytes(100))
        os.utime(tmp_path / name, (1e9 - age, 1e9 - age))
    cache_for_tests._trim(tmp_path, 250)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["middle", "new"]
    cache_for_tests._trim(tmp_path, 200)
    assert len(list(tmp_path.iterdir())) == 2
