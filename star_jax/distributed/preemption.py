"""SIGTERM as a preemption notice: long work stops at its next safe point and stores its results."""

import signal
import time
from typing import Any

from star_jax import terminal
from star_jax.errors import Stopped

_NOTICE = "star_jax: SIGTERM received; the run stops when what it has begun is stored"
_requested = False
_requested_at = 0.0  # time.monotonic()


def listen() -> None:
    """From now on the first SIGTERM sets a request, and a second one ends the process as by default.

    A second one within a second counts as the same notice: with several processes a supervisor stands between the
    sender and the worker (launch.distributed_context), and a notice to their process group reaches the worker twice.

    Call it in the main thread.
    """
    signal.signal(signal.SIGTERM, _request)


def end() -> None:
    """Ignores SIGTERM from now on: the work is done.

    Python restores the default action while it exits, and a finished run would seem to have failed.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def requested() -> bool:
    """Whether SIGTERM was received."""
    return _requested


def check() -> None:
    """Raises Stopped if SIGTERM was received. Call it where all results are stored."""
    if _requested:
        raise Stopped


def _request(number: int, frame: Any) -> None:
    global _requested, _requested_at
    now = time.monotonic()
    if not _requested:
        _requested, _requested_at = True, now
        terminal.note(_NOTICE)
    elif now - _requested_at > 1:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
