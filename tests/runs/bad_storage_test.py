"""Storage that fails: full, broken, read-only, gone. The run ends with one line and continues once it works again."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT
from tests.support.runs import small_config

ROOMY = 64  # MiB, more than a run takes
RUN = """
import json, os, sys
from pathlib import Path
from star_jax import config
from star_jax.algorithms import star
from star_jax.cli.parser import exit_on_bad_input
sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # as main has it
exit_on_bad_input(lambda: star.run(config.from_dict(json.loads(Path(sys.argv[1]).read_text())), sys.argv[2]))
"""
# A layer between the program (also TensorStore's native threads) and the C library: the n-th write or fsync of a file
# below a directory, and all after it, fail as they do on a broken disk.
FAILING = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long count;

static int fails(int fd) {
  const char *below = getenv("EIO_BELOW"), *at = getenv("EIO_AT");
  char link[64], path[4096];
  if (!below || !at) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  if (strncmp(path, below, strlen(below)) || strstr(path, "/LOCK")) return 0;
  if (atomic_fetch_add(&count, 1) < atol(at)) return 0;
  errno = EIO;
  return 1;
}

#define PASS(type, name, parameters, arguments)            \
  type name parameters {                                   \
    type(*real) parameters = dlsym(RTLD_NEXT, #name);      \
    return fails(fd) ? -1 : real arguments;                \
  }
PASS(ssize_t, write, (int fd, const void *data, size_t size), (fd, data, size))
PASS(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
PASS(ssize_t, pwrite64, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at))
PASS(ssize_t, writev, (int fd, const struct iovec *parts, int n), (fd, parts, n))
PASS(ssize_t, pwritev, (int fd, const struct iovec *parts, int n, off_t at), (fd, parts, n, at))
PASS(int, fsync, (int fd), (fd))
PASS(int, fdatasync, (int fd), (fd))

__attribute__((destructor)) static void tell(void) {
  const char *where = getenv("EIO_COUNT");
  FILE *file = where ? fopen(where, "w") : NULL;
  if (file) fprintf(file, "%ld", (long)count), fclose(file);
}
"""


@pytest.fixture(scope="module")
def failing(tmp_path_factory) -> Path:
    """The library that makes writes fail."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or not compiler:
        pytest.skip("needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("failing")
    (folder / "failing.c").write_text(FAILING)
    command = [compiler, "-shared", "-fPIC", "-o", folder / "failing.so", folder / "failing.c", "-ldl"]
    subprocess.run(command, check=True)
    return folder / "failing.so"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Callable[[int], bool]]]:
    """(a mounted file system, a function that changes its size in KiB)."""
    mount_point = tmp_path / "disk"
    mount_point.mkdir()

    def mount(*options: str) -> bool:
        command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(mount_point)]
        return bool(shutil.which("mount")) and not subprocess.run(command, capture_output=True).returncode

    if not mount("-o", f"size={ROOMY}m"):
        pytest.skip("cannot mount a file system here (needs root)")
    yield mount_point, lambda kib: mount("-o", f"remount,size={kib}k")
    subprocess.run(["umount", "-l", str(mount_point)], check=True)


@pytest.fixture
def file(base: Path, tmp_path: Path) -> Path:
    """A config, in a file, of a run of one iteration with checkpoints in it."""
    config = small_config(base__path=str(base), star__iterations=1, train__checkpoint_every=3)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


def results(workdir: Path) -> dict[Path, bytes]:
    """The outputs of a run, byte for byte."""
    names = ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl", "filter.json", "eval_dev.json", "*.safetensors")
    return {path.relative_to(workdir): path.read_bytes() for name in names for path in workdir.rglob(f"iter_*/{name}")}


def start(file: Path, workdir: Path, **env: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", **env}
    command = [sys.executable, "-c", RUN, file, workdir]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(file: Path, workdir: Path, **env: str) -> tuple[int, str]:
    """(exit status, standard error)."""
    process = start(file, workdir, **env)
    errors = process.communicate(timeout=300)[1]
    return process.returncode, errors


def assert_refused(status: int, errors: str, *expected: str) -> None:
    """Status 2, and the last line is ours, the only one."""
    lines = errors.splitlines()
    assert status == 2 and "Traceback" not in errors, errors[:2000]
    assert lines[-1].startswith("star_jax: ") and all(text in lines[-1] for text in expected), errors
    assert sum(line.startswith("star_jax: ") for line in lines) == 1, errors


@pytest.mark.slow
def test_a_disk_that_fails_at_any_write(failing, file, tmp_path):
    workdir, whole, counted = tmp_path / "run", tmp_path / "whole", tmp_path / "count"
    count_only = dict(EIO_BELOW=str(whole), EIO_AT="1000000", EIO_COUNT=str(counted))
    status, errors = run(file, whole, LD_PRELOAD=str(failing), **count_only)
    assert status == 0, errors
    writes = int(counted.read_text())
    assert writes > 50
    for number in (writes // 6, writes // 3, writes // 2):  # each start meets a run that is further on
        status, errors = run(file, workdir, LD_PRELOAD=str(failing), EIO_BELOW=str(workdir), EIO_AT=str(number))
        assert_refused(status, errors, "cannot be written", str(workdir))  # TensorStore gives no reason
    status, errors = run(file, workdir)
    assert status == 0, errors
    assert results(workdir) == results(whole)
    assert not list(workdir.rglob("*.tmp")) and not list(workdir.rglob("*.part"))


@pytest.mark.slow
def test_a_full_disk_and_a_run_that_continues_when_there_is_room(disk, file, tmp_path):
    """The disk is a little larger each time, so that it is full at another write: weights, samples, checkpoints."""
    mount_point, resize = disk
    assert run(file, tmp_path / "roomy")[0] == 0
    workdir, refusals, kib = mount_point / "run", 0, 32
    while True:
        assert resize(kib) and kib < 1024 * ROOMY
        status, errors = run(file, workdir)
        if status == 0:
            break
        refusals += 1
        assert status == 2 and "Traceback" not in errors, errors[:1500]
        line = errors.splitlines()[-1]
        assert line.startswith("star_jax: ") and "cannot be written" in line and str(workdir) in line, line
        kib = max(kib, shutil.disk_usage(mount_point).used // 1024) + 160
    assert refusals >= 3
    assert results(workdir) == results(tmp_path / "roomy")
    assert not list(workdir.rglob("*.tmp")) and not list(workdir.rglob("*.part"))


def test_a_read_only_disk(disk, file):
    mount_point, _ = disk
    assert not subprocess.run(["mount", "-o", "remount,ro", mount_point]).returncode
    assert_refused(*run(file, mount_point / "run"), "Read-only file system", str(mount_point / "run"))


@pytest.mark.slow
def test_a_directory_that_disappears(disk, file):
    """The run ends, and does not touch what is now in the directory's place."""
    mount_point, _ = disk
    process = start(file, mount_point / "run")
    deadline = time.monotonic() + 120
    while not (mount_point / "run/iter_001/samples.jsonl").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    subprocess.run(["umount", "-l", mount_point], check=True)
    errors = process.communicate(timeout=120)[1]
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", mount_point], check=True)  # for the fixture to unmount
    assert_refused(process.returncode, errors, str(mount_point / "run"))
