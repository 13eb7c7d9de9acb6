"""Storage that fails: writes that the disk refuses, a read-only one, one that goes away. One line, and on it goes."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star_jax.algorithms import star
from tests.runs.full_disk_test import ROOT, RUN, disk, results  # noqa: F401
from tests.support.runs import small_config

# Stands between the program (TensorStore's native threads, too) and the C library: the n-th write or fsync of a file
# below a directory, and all behind it, fail as they do on a broken disk.
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


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """A config, in a file, of a run with an iteration and checkpoints in it."""
    folder = tmp_path_factory.mktemp("bad_storage")
    star.run(small_config(star__iterations=0), folder / "base_run")
    config = small_config(
        base__path=str(folder / "base_run/base"), base__stages=(), star__iterations=1, train__checkpoint_every=3
    )
    path = folder / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


def start(file: Path, workdir: Path, **env: str) -> subprocess.Popen:
    whole = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": "", **env}
    command = [sys.executable, "-c", RUN, file, workdir]
    return subprocess.Popen(command, env=whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(file: Path, workdir: Path, **env: str) -> tuple[int, str]:
    process = start(file, workdir, **env)
    said = process.communicate(timeout=300)[1]
    return process.returncode, said


def refused(status: int, said: str, *words: str) -> None:
    """Status 2, and of what is said the last line is ours, the only one."""
    lines = said.splitlines()
    assert status == 2 and "Traceback" not in said, said[:2000]
    assert lines[-1].startswith("star_jax: ") and all(word in lines[-1] for word in words), said
    assert sum(line.startswith("star_jax: ") for line in lines) == 1, said


def test_a_disk_that_fails_at_any_write(failing, file, tmp_path):
    workdir, counted = tmp_path / "run", tmp_path / "count"
    shim = dict(LD_PRELOAD=str(failing), EIO_BELOW=str(workdir))
    status, said = run(file, tmp_path / "whole", **shim | dict(EIO_BELOW=str(tmp_path / "whole"), EIO_AT="1000000",
                                                              EIO_COUNT=str(counted)))  # fmt: skip
    assert status == 0, said
    writes = int(counted.read_text())
    assert writes > 50
    for place in (writes // 6, writes // 3, writes // 2):  # each meets a run that has got further
        status, said = run(file, workdir, **shim, EIO_AT=str(place))
        refused(status, said, "cannot be written", str(workdir))  # TensorStore does not say why
    status, said = run(file, workdir)
    assert status == 0, said
    assert results(workdir) == results(tmp_path / "whole")
    assert not list(workdir.rglob("*.tmp")) and not list(workdir.rglob("*.part"))


def test_a_read_only_disk(disk, file):  # noqa: F811
    place, _ = disk
    assert not subprocess.run(["mount", "-o", "remount,ro", place]).returncode
    refused(*run(file, place / "run"), "Read-only file system", str(place / "run"))


def test_a_directory_that_goes_away(disk, file, tmp_path):  # noqa: F811
    """The run ends, and what has taken the directory's place is left as it is."""
    place, _ = disk
    process = start(file, place / "run")
    deadline = time.monotonic() + 120
    while not (place / "run/iter_001/samples.jsonl").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    subprocess.run(["umount", "-l", place], check=True)
    said = process.communicate(timeout=120)[1]
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], check=True)  # for the fixture to unmount
    refused(process.returncode, said, str(place / "run"))
