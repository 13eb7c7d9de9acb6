"""The exceptions that end a command with one line instead of a traceback, and that line."""

import contextlib
import enum
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

from star_jax import terminal


class ExitStatus(enum.IntEnum):
    """How a command ended. A signal that ends the process gives 128 + its number, as in a shell."""

    meaning: str

    def __new__(cls, value: int, meaning: str) -> "ExitStatus":
        member = int.__new__(cls, value)
        member._value_, member.meaning = value, meaning
        return member

    DONE = 0, "done: nothing is left to do"
    BUG = 1, "a bug, with a traceback (star_jax.preflight: it does not fit)"
    BAD_INPUT = 2, "bad input or a failing disk: one line names the place and the remedy"
    PEER_LOST = 3, "another process of the run died: see the end of the others' logs, start all of them again"
    STOPPED = 75, "stopped by SIGTERM with all results stored, or preempted: the same command continues the run"
    INTERRUPTED = 130, "Ctrl-C: the same command continues the run"


_MAX_LINE = 4000  # characters; a path may have nearly as many


class InputError(Exception):
    """Bad input or a failing disk. The message says in one line what is wrong, where, and what to do."""


class MissingInput(InputError):
    """A file or a data set that is not on this machine. star_jax.preflight needs none."""


class Stopped(BaseException):
    """SIGTERM was received and all results are on disk. A BaseException, so that `except Exception` lets it pass."""


def _bounded(line: str) -> str:
    """The line without its middle if it is long: a value from a file may be. Place and remedy stay."""
    return line if len(line) <= _MAX_LINE else f"{line[: _MAX_LINE // 2]} ... {line[-_MAX_LINE // 4 :]}"


def shown(value: object) -> str:
    """A value as a message shows it: its repr, of which at most 60 characters."""
    return cut(repr(value))


def cut(text: str) -> str:
    """At most 60 characters of a text, for a message."""
    return text if len(text) <= 60 else f"{text[:57]}..."


def first_line(error: BaseException) -> str:
    """The first line of another library's error, at most 200 characters, for the message of an InputError."""
    return str(error).partition("\n")[0][:200] or type(error).__name__


def report_error(error: BaseException) -> int | str:
    """Prints the line of an expected error on standard error; returns the exit status.

    A SystemExit prints nothing and keeps its own status. Nor does an OutputError whose reader has left: the status is
    that of a program that the signal SIGPIPE ends.
    """
    if isinstance(error, SystemExit):
        return error.code or 0
    if isinstance(error, terminal.OutputError) and error.reader_left:
        return 128 + signal.SIGPIPE
    if isinstance(error, Stopped):
        line = "stopped as requested; all results are stored, the same command continues the run"
        status = ExitStatus.STOPPED
    elif isinstance(error, KeyboardInterrupt):
        line, status = "interrupted; the same command continues the run", ExitStatus.INTERRUPTED
    else:
        line, status = _bounded(terminal.one_line(str(error))), ExitStatus.BAD_INPUT
    terminal.say(f"star_jax: {line}", sys.stderr)
    return int(status)


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


@contextlib.contextmanager
def os_errors_as_input_errors() -> Iterator[None]:
    """Converts OSErrors of any access to files into a one-line InputError that names the file."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:300]
        raise InputError(
            f"{error.filename or 'a file'}: cannot be read or written ({reason}); fix and rerun"
        ) from error


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
