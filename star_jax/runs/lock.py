"""One run at a time in a directory: a lock that a dead process does not hold for ever.

On one machine the kernel keeps it (flock): it ends with its process, however that ended. A file system that machines
share need not pass such locks on, so the holder also counts on in the lock's file, every few seconds. Who finds another
machine's name there watches for a while whether that one still counts. No clocks are compared.
"""

import contextlib
import errno
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from star_jax.errors import InputError, disk_errors_as_input_errors

BEAT = 5.0  # seconds from one count to the next
WATCH = 30.0  # seconds without a count after which another machine's process is taken to be dead
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_SIZE = 512  # bytes of the file, padded, so that counting never changes its length


class Lock:
    """The lock of a directory, held from construction to `release`.

    Raises InputError, naming the holder, while another process holds it, and where the directory cannot be written.
    """

    def __init__(self, directory: Path, beat: float = BEAT, watch: float = WATCH) -> None:
        self._path, self._beat = directory / "LOCK", beat
        self._mine = {
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
            "token": uuid.uuid4().hex,
        }
        self._lost = False
        with disk_errors_as_input_errors(self._path):
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._take(watch)
        except BaseException:
            os.close(self._file)
            raise
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises InputError if another machine's process took the lock: it did not see this one count.

        Also if the directory is not there any more: a run must not go on in an empty one of the same name.
        """
        if not self._path.exists():
            raise InputError(
                f"{self._path.parent}: has gone while a run was at work in it; bring it back and run again"
            )
        if self._lost:
            raise InputError(
                f"{self._path}: {_named(self._read())} took over this run, as this process gave no sign for too long; "
                "only one of them may go on"
            )

    def release(self) -> None:
        """Lets it go. The file stays, empty: deleting it could take it from one who has just opened it."""
        self._stop.set()
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
        os.close(self._file)

    def _take(self, watch: float) -> None:
        kept_by_kernel = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._refusal(self._read()) from error
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise InputError(f"{self._path}: cannot be locked ({error.strerror}); mend that") from error
            kept_by_kernel = False
        text, holder = self._text(), self._read()
        elsewhere = holder is not None and not (kept_by_kernel and holder.get("machine") == self._mine["machine"])
        if elsewhere:
            self._watch(text, watch)
        with disk_errors_as_input_errors(self._path):
            self._write(0)

    def _watch(self, before: str, seconds: float) -> None:
        """Raises InputError if the holder counts on: if the file's text changes, and is not emptied."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._beat))
            now = self._text()
            if not now:
                return  # released meanwhile
            if now != before:
                raise self._refusal(self._read())

    def _refusal(self, holder: dict[str, Any] | None) -> InputError:
        return InputError(
            f"{self._path.parent}: another run is at work there ({_named(holder)}); wait for it, stop it, or give "
            "another --workdir"
        )

    def _count(self) -> None:
        count = 0
        while not self._stop.wait(self._beat):
            holder = self._read()
            if holder is not None and holder.get("token") != self._mine["token"]:
                self._lost = True
                return
            count += 1
            with contextlib.suppress(OSError):  # a full disk does not change who holds it
                self._write(count)

    def _write(self, count: int) -> None:
        text = json.dumps({**self._mine, "count": count}).encode()
        os.pwrite(self._file, text.ljust(_SIZE - 1) + b"\n", 0)

    def _read(self) -> dict[str, Any] | None:
        """The holder; None where there is none."""
        try:
            found: dict[str, Any] = json.loads(self._text())
            return found
        except ValueError:
            return None

    def _text(self) -> str:
        """The file's; opened anew, as only then network file systems ask the server."""
        try:
            return self._path.read_text(encoding="utf-8", errors="replace").strip()
        except OSError:
            return ""


def _named(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "a process unknown"
    return f"process {holder.get('pid')} on {holder.get('host')}, since {holder.get('since')}"


def _machine() -> str:
    """What tells machines apart: the kernel's own id, which containers share, or the name where there is none."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
