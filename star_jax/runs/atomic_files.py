"""How files come to the disk, and go: whole, or not at all. Beside Orbax nothing else in the program writes a run's."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from star_jax.errors import disk_errors_as_input_errors


def atomic_write(path: Path, content: str | bytes, shared: bool = False) -> None:
    """Writes a file aside and renames it: nobody ever reads half of it. `shared`: other processes may write it too.

    What a killed process left aside is written over by the next. Raises InputError where the disk will not have it.
    """
    beside = path.with_name(f"{path.name}.tmp")
    with disk_errors_as_input_errors(path), directory_lock(path.parent) if shared else contextlib.nullcontext():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except OSError:
            beside.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def directory_lock(directory: Path) -> Iterator[None]:
    """Waits until no other process is in such a block of this directory, and keeps others waiting.

    For what is read, changed and written back, as a run and a command beside it both do with checksums.json. A process
    that dies lets go. Where the file system knows no such locks, the block runs all the same.
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
    """Appends to a log. Raises InputError where the disk will not have it."""
    with disk_errors_as_input_errors(path), open(path, "a+b") as file:
        # A run killed in mid-line leaves half a line; the next one must not be glued to it.
        torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")


def make_empty(directory: Path) -> None:
    """Makes a directory, in place of what is there. Raises InputError where the disk will not have it."""
    with disk_errors_as_input_errors(directory):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)


def append_text(path: Path, text: str) -> None:
    """Appends, and waits until it is on the disk. Raises InputError where the disk will not have it."""
    with disk_errors_as_input_errors(path), open(path, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def delete(directory: Path, pattern: str) -> None:
    """Deletes the files of a directory that match. Raises InputError where the disk will not have it."""
    for path in directory.glob(pattern):
        with disk_errors_as_input_errors(path):
            path.unlink(missing_ok=True)
