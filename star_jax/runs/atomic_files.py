"""Every write, append and deletion in a run directory, except for Orbax's and the lock: complete, or not at all."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from star_jax.errors import disk_errors_as_input_errors


def atomic_write(path: Path, content: str | bytes, shared: bool = False) -> None:
    """Writes a temporary file and renames it, so that no reader ever sees half of it.

    Args:
      shared: other processes may write the same file; they take turns.

    The next call overwrites the temporary file of a killed process. Raises InputError if the disk refuses.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with disk_errors_as_input_errors(path), directory_lock(path.parent) if shared else contextlib.nullcontext():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Mutual exclusion of processes on a directory, e.g. of a run and an evaluation that both update checksums.json.

    The kernel releases the lock of a process that dies. On a file system without such locks the block runs anyway.
    """
    with disk_errors_as_input_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def append_line(path: Path, line: str) -> None:
    """Appends a line to a log. Raises InputError if the disk refuses."""
    with disk_errors_as_input_errors(path), open(path, "a+b") as file:
        # A killed process may leave half a line; the next line must not be appended to that.
        torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")


def make_empty(directory: Path) -> None:
    """Creates an empty directory in place of an existing one. Raises InputError if the disk refuses."""
    with disk_errors_as_input_errors(directory):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)


def append_text(path: Path, text: str) -> None:
    """Appends, and waits until the text is on the disk. Raises InputError if the disk refuses."""
    with disk_errors_as_input_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def delete(directory: Path, pattern: str) -> None:
    """Deletes the files of a directory that match. Raises InputError if the disk refuses."""
    for path in directory.glob(pattern):
        with disk_errors_as_input_errors(path):
            path.unlink(missing_ok=True)
