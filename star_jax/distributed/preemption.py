"""SIGTERM, the notice that a machine is taken away: long work stops where it has something to store, and stores it."""

import signal
import time
from typing import Any

from star_jax.errors import Stopped

_requested = False
_since = 0.0  # of the monotonic clock


def listen() -> None:
    """Takes SIGTERM for a request from now on; a second one ends the process as if nobody had listened.

    One that comes within a second is the same notice: of two processes that stand in for one another (processes.distributed_context)
    a notice to their group reaches the inner one twice.

    Call it in the main thread.
    """
    signal.signal(signal.SIGTERM, _request)


def end() -> None:
    """The work is done: a notice that comes now changes nothing.

    Python gives SIGTERM its deadly meaning back while it ends, and a run that had finished would seem to have failed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def requested() -> bool:
    """Whether the process was told to stop."""
    return _requested


def check() -> None:
    """Raises Stopped if the process was told to stop. Call it where nothing would be lost."""
    if _requested:
        raise Stopped


def _request(number: int, frame: Any) -> None:
    global _requested, _since
    now = time.monotonic()
    if not _requested:
        _requested, _since = True, now
    elif now - _since > 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
