"""The one exception for bad input: its text is the one line a user reads."""

import argparse
import contextlib
import logging
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn


class InputError(Exception):
    """Something the user gave is wrong. The message names the place and the remedy, in one line."""


class Parser(argparse.ArgumentParser):
    """Of the command `python -m star_jax.NAME`, its `prog`: a mistake in its arguments is one line like any other."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog.rpartition('.')[2]}: {message}; see {self.prog} --help")


def is_peer_failure(error: BaseException) -> bool:
    """Whether an error of the runtime says that another process went away: a JaxRuntimeError, or a bare ValueError."""
    words = (
        "Gloo",
        "Connection reset",
        "Connection closed",
        "UNAVAILABLE",
        "heartbeat",
        "NCCL",
        "coordination service",
    )
    return isinstance(error, ValueError | RuntimeError) and any(word in str(error) for word in words)


@contextlib.contextmanager
def disk_errors_as_input_errors(path: Path, *also: type[Exception]) -> Iterator[None]:
    """Makes one line of what a disk that is full, broken, read-only or gone answers; of errors `also`, too."""
    kinds: tuple[type[Exception], ...] = (OSError, *also)
    try:
        yield
    except kinds as error:
        if is_peer_failure(error):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:300]
        raise InputError(f"{path}: cannot be written ({reason}); mend that and run again") from error


def exit_on_bad_input(main: Callable[[], None]) -> None:
    """Calls `main`; an InputError ends the process with status 2 and its one line on standard error.

    So do Ctrl-C, with the shell's usual status 130, and a SIGTERM that was answered (see stopping), with status 0: a
    run goes on with the same command.
    """
    _hush_orbax()
    try:
        main()
    except (KeyboardInterrupt, InputError, Stopped) as error:
        sys.exit(say(error))


def _hush_orbax() -> None:
    """Takes out what Orbax and TensorStore print of writes that fail, a traceback each: we say it in our own line."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    of_threads, of_callbacks = threading.excepthook, sys.unraisablehook

    def thread(args: Any) -> None:
        frames = traceback.walk_tb(args.exc_traceback)
        if not any("orbax" in frame.f_code.co_filename for frame, _ in frames):  # those are raised again in our thread
            of_threads(args)

    def callback(args: Any) -> None:
        if str(args.exc_value) != "Event loop is closed":
            of_callbacks(args)

    threading.excepthook, sys.unraisablehook = thread, callback


def say(error: BaseException) -> Any:
    """Prints the line of an InputError, a Ctrl-C, a Stopped or a SystemExit; returns the exit status."""
    if isinstance(error, SystemExit):
        return error.code or 0
    if isinstance(error, Stopped):
        print(
            "star_jax: told to stop; all that was done is stored, the same command goes on from here", file=sys.stderr
        )
        return 0
    if isinstance(error, KeyboardInterrupt):
        print("star_jax: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    # The text may quote a file's content: without control characters it cannot drive the terminal.
    line = "".join(c if c.isprintable() else " " for c in str(error))
    print(f"star_jax: {' '.join(line.split())}", file=sys.stderr)
    return 2


class Stopped(BaseException):
    """The process was told to stop, and all it had is on disk. No `except Exception` should hold it up."""
