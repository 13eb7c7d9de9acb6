"""Lock of a run directory: one run at a time, and a dead process holds nothing.

On one machine the kernel's lock (flock) ends with its process. A network file system need not pass such locks on, so
the holder also writes a heartbeat into the lock's file: a process that finds another machine's lock waits to see
whether it advances. No clocks are compared. The library flufl.lock needs hard links, which mounted buckets lack, and
holds a dead process's lock for its lifetime.
"""

import contextlib
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
from star_jax.json_reader import open_regular, parse_object
from star_jax.runs.atomic_files import open_own

BEAT = 5.0  # seconds between heartbeats
WATCH = 30.0  # seconds without a heartbeat after which another machine's process counts as dead
_SIZE = 512  # bytes of the file, padded: a heartbeat never changes its length


class Lock:
    """The lock of a directory, held from construction to `release`.

    Raises InputError, naming the holder, if another process holds it, and if the directory cannot be written.
    """

    def __init__(self, directory: Path, beat: float = BEAT, watch: float = WATCH) -> None:
        self._path, self._beat = directory / "LOCK", beat
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._entry = {
            "token": uuid.uuid4().hex,
            "machine": _machine(),
            "holder": f"process {os.getpid()} on {socket.gethostname()}, since {since}",
        }
        self._lost = False
        self._stop = threading.Event()
        self._file = open_own(self._path, os.O_RDWR)
        try:
            self._acquire(watch)
        except BaseException:
            os.close(self._file)
            raise
        self._thread = threading.Thread(target=self._send_heartbeats, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raises InputError if another machine's process took the lock, as it saw no heartbeat for too long.

        Also if the directory has disappeared: a run must not continue in an empty one of the same name.
        """
        if not self._path.exists():
            raise InputError(f"{self._path.parent}: disappeared while a run used it; bring it back and rerun")
        if self._lost:
            raise InputError(
                f"{self._path}: {self._read().get('holder')} took over this run, as it saw no heartbeat of this "
                "process for too long; only one of them may continue"
            )

    def release(self) -> None:
        """Releases the lock. The file stays, empty: another process may just have opened it."""
        self._stop.set()
        self._thread.join()
        if not self._lost:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, 0)
        os.close(self._file)

    def _acquire(self, watch: float) -> None:
        kernel_lock = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._refusal() from error
        except OSError:  # a file system without such locks
            kernel_lock = False
        entry = self._read()
        if entry and not (kernel_lock and entry.get("machine") == self._entry["machine"]):
            self._wait_for_heartbeat(entry, watch)
        with disk_errors_as_input_errors(self._path):
            self._write(0)

    def _wait_for_heartbeat(self, entry: dict[str, Any], seconds: float) -> None:
        """Returns if the holder releases the lock or is silent for so long; raises InputError at its heartbeat."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._beat))
            now = self._read()
            if not now:
                return
            if now != entry:
                raise self._refusal()

    def _refusal(self) -> InputError:
        holder = self._read().get("holder", "an unknown process")
        return InputError(
            f"{self._path.parent}: another run is at work there ({holder}); wait for it, stop it, or give another "
            "--workdir"
        )

    def _send_heartbeats(self) -> None:
        count = 0
        while not self._stop.wait(self._beat):
            if self._read().get("token", self._entry["token"]) != self._entry["token"]:
                self._lost = True
                return
            count += 1
            with contextlib.suppress(OSError):  # a full disk does not change who holds the lock
                self._write(count)

    def _write(self, count: int) -> None:
        text = json.dumps({**self._entry, "count": count}).encode()
        os.pwrite(self._file, text.ljust(_SIZE - 1) + b"\n", 0)

    def _read(self) -> dict[str, Any]:
        """The holder's entry; empty if there is none. Opens the file: network file systems ask the server only then."""
        try:
            with open_regular(self._path) as file:
                return parse_object(file.read(_SIZE + 1))
        except (OSError, ValueError):
            return {}


def _machine() -> str:
    """A machine's identity: the kernel's boot id, which its containers share, or the host's name without one."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return socket.gethostname()
