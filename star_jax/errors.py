"""The exceptions that end a command with one line instead of a traceback, and that line."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path


class InputError(Exception):
    """Bad input or a failing disk. The message says in one line what is wrong, where, and what to do."""


class Stopped(BaseException):
    """SIGTERM was received and all results are on disk. A BaseException, so that `except Exception` lets it pass."""


def report_error(error: BaseException) -> int | str:
    """Prints the line of an InputError, a Stopped or a KeyboardInterrupt on standard error; returns the exit status.

    A SystemExit prints nothing and keeps its own status.
    """
    if isinstance(error, SystemExit):
        return error.code or 0
    if isinstance(error, Stopped):
        line, status = "stopped as requested; all results are stored, the same command continues the run", 0
    elif isinstance(error, KeyboardInterrupt):
        line, status = "interrupted; the same command continues the run", 130
    else:
        # The text may quote a file's content: without control characters it cannot drive the terminal.
        text = "".join(c if c.isprintable() else " " for c in str(error))
        line, status = " ".join(text.split()), 2
    print(f"star_jax: {line}", file=sys.stderr)
    return status


@contextlib.contextmanager
def disk_errors_as_input_errors(path: Path, *also: type[Exception]) -> Iterator[None]:
    """Converts OSErrors, and errors of the types `also`, into a one-line InputError that names `path`.

    A lost peer process is not a disk error and passes unchanged.
    """
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except kinds as error:
        if is_peer_failure(error):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        raise InputError(f"{path}: cannot be written ({reason}); fix and rerun") from error


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error of JAX's runtime (JaxRuntimeError, or a bare ValueError) means that another process was lost."""
    markers = (
        "Gloo",
        "Connection reset",
        "Connection closed",
        "UNAVAILABLE",
        "heartbeat",
        "NCCL",
        "coordination service",
    )
    return isinstance(error, ValueError | RuntimeError) and any(marker in str(error) for marker in markers)
