"""Every write, append and deletion in a run directory, except for Orbax's: complete, or not at all.

A run directory may have been received, so no write follows a link that lies in it: temporary files are made afresh,
logs are opened only if they are plain files with one name, and `refuse_links` looks at folders.
"""

import contextlib
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from star_jax.errors import InputError, disk_errors_as_input_errors


def atomic_write(path: Path, content: str | bytes, shared: bool = False) -> None:
    """Writes a temporary file and renames it, so that no reader ever sees half of it.

    Args:
      shared: other processes may write the same file; they take turns.

    The next call replaces the temporary file of a killed process, and a link at `path`. Raises InputError if
    the disk refuses, or if `path` is a device, a pipe or a folder: /dev/null, replaced by a file, is gone.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    with disk_errors_as_input_errors(path), directory_lock(path.parent) if shared else contextlib.nullcontext():
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_symlink():
            raise InputError(f"{path}: is not a plain file; delete it, or give another path")
        try:
            temporary.unlink(missing_ok=True)  # of a killed process, or a link
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
            with open(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


def check_output(path: Path) -> None:
    """Raises InputError unless a file that a user names as output is new or a plain file.

    `atomic_write` replaces a link: --output=/dev/stdout would do that to the machine's own.
    """
    kind = "a directory" if path.is_dir() else "a symbolic link" if path.is_symlink() else ""
    if kind or (path.exists() and not path.is_file()):
        raise InputError(f"--output={path}: is {kind or 'not a plain file'}; give the name of a file")


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
    with disk_errors_as_input_errors(path), open(open_own(path, os.O_RDWR | os.O_APPEND), "a+b") as file:
        # A killed process may leave half a line; the next line must not be appended to that.
        torn = file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if torn else b"") + line.encode() + b"\n")


def open_own(path: Path, flags: int) -> int:
    """A descriptor of a file that is written in place; creates it.

    Raises InputError if the disk refuses, or if writing would change another file: through a symbolic link, or a second
    name (a run copied with `cp -l` shares its files with the original). Pipes and devices are refused too.
    """
    try:
        handle = os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise InputError(f"{path}: is a symbolic link, which a run does not write through; delete it") from error
        raise InputError(f"{path}: cannot be written ({error.strerror}); fix and rerun") from error
    state = os.fstat(handle)
    if stat.S_ISREG(state.st_mode) and state.st_nlink <= 1:
        return handle
    os.close(handle)
    if stat.S_ISREG(state.st_mode):
        raise InputError(
            f"{path}: has {state.st_nlink} names (hard links), and writing would change them all; replace it by a copy"
        )
    raise InputError(f"{path}: is not a plain file; delete it")


def refuse_links(root: Path, path: Path, below: bool = False) -> None:
    """Raises InputError if a folder on the way from `root` to `path`, or `path` itself, is a symbolic link.

    Args:
      root: may be a link, since the user chose it.
      below: also look at everything in `path`, for programs that write there themselves (Orbax).
    """
    parts = path.relative_to(root).parts
    links = [folder for n in range(len(parts)) if (folder := root.joinpath(*parts[: n + 1])).is_symlink()]
    if below and not links:
        inside = (Path(top, name) for top, folders, files in os.walk(path) for name in (*folders, *files))
        links = [entry for entry in inside if entry.is_symlink()]
    if links:
        raise InputError(
            f"{links[0]}: is a symbolic link; a run writes only into its own directory, so replace the link by the "
            "folder it points to, or delete it"
        )


def make_empty(directory: Path) -> None:
    """Creates an empty directory in place of an existing one. Raises InputError if the disk refuses."""
    with disk_errors_as_input_errors(directory):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)


def append_text(path: Path, text: str) -> None:
    """Appends, and waits until the text is on the disk. Raises InputError if the disk refuses."""
    handle = open_own(path, os.O_WRONLY | os.O_APPEND)
    with disk_errors_as_input_errors(path), open(handle, "a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Waits until what was appended to a file is on the disk. Raises InputError if the disk refuses."""
    with disk_errors_as_input_errors(path):
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def delete(directory: Path, pattern: str) -> None:
    """Deletes the files of a directory that match. Raises InputError if the disk refuses."""
    for path in directory.glob(pattern):
        with disk_errors_as_input_errors(path):
            path.unlink(missing_ok=True)
