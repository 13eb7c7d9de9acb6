"""SIGTERM, the notice that a machine is taken away: long work stops where it has something to store, and stores it."""

import signal
from typing import Any

_requested = False


class Stopped(BaseException):
    """The process was told to stop, and all it had is on disk. No `except Exception` should hold it up."""


def listen() -> None:
    """Takes SIGTERM for a request from now on; a second one ends the process as if nobody had listened.

    Call it in the main thread.
    """
    signal.signal(signal.SIGTERM, _request)


def requested() -> bool:
    """Whether the process was told to stop."""
    return _requested


def check() -> None:
    """Raises Stopped if the process was told to stop. Call it where nothing would be lost."""
    if _requested:
        raise Stopped


def _request(number: int, frame: Any) -> None:
    global _requested
    _requested = True
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
