"""The argument parser of every `python -m star_jax.NAME`, and the wrapper around each command's `main`."""

import argparse
import errno
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TextIO

from star_jax import option_values, terminal, user_code
from star_jax.errors import ExitStatus, InputError, Stopped, report_error

# What a file system answers whose permissions, space or connection are at fault, and no file's content.
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


class Parser(argparse.ArgumentParser):
    """Parser of one command. Keeps the line breaks of its description and accepts no abbreviated flags.

    Args:
      name: the command's name, as in `python -m star_jax.NAME`.
      about: the description that --help prints, usually the module's docstring.

    `parse_args` raises InputError for a wrong argument.
    """

    def __init__(self, name: str, about: str) -> None:
        super().__init__(
            prog=f"python -m star_jax.{name}",
            description=about,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            epilog=_exit_statuses(),
        )

    def add_path(self, flag: str, **options: Any) -> None:
        """Adds a flag that takes a path; `parse_args` gives a Path with `~` expanded. See option_values.local_path."""
        options.setdefault("metavar", "DIR")
        self.add_argument(flag, type=lambda text: Path(option_values.local_path(text, flag)), **options)

    def add_number(self, flag: str, low: float, high: float, **options: Any) -> None:
        """Adds a flag that takes a number in low..high: an integer if `low` is one."""
        kind = int if isinstance(low, int) else float

        def number(text: str) -> float:
            try:
                value = kind(text)
            except ValueError as error:
                noun = "an integer" if kind is int else "a number"
                raise InputError(f"{flag} must be {noun} in {low}..{high}, got {text[:40]}") from error
            if not low <= value <= high:  # NaN too
                bound = f"at least {low}" if value < low else f"at most {high}"
                raise InputError(f"{flag} must be {bound}, got {text[:40]}")
            return value

        self.add_argument(flag, type=number, **options)

    def add_allow_import(self) -> None:
        """Adds the flag without which a command imports no module that a run's config.json names."""
        help_ = "import the Python code that the run's config.json names (task.name, .grader, .module), which runs it"
        self.add_argument("--allow_import", action="store_true", help=help_)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog.rpartition('.')[2]}: {message}; see {self.prog} --help")

    def _print_message(self, message: str, file: TextIO | None = None) -> None:  # type: ignore[override]
        terminal.say(message.rstrip("\n"), file)  # argparse ignores that its help could not be printed


def _exit_statuses() -> str:
    lines = [f"  {status.value:<22}{status.meaning}" for status in ExitStatus]
    return "\n".join(["exit status:", *lines, f"  {'128 + N':<22}killed by signal N"])


def exit_on_bad_input(main: Callable[[], None]) -> None:
    """Calls `main` and turns expected errors into one line on standard error and an exit status.

    The statuses are those of errors.ExitStatus. Standard output that cannot be written counts as bad input, and is
    status 141 if its reader has left. So does a file system that refuses what no module foresees. Any other error keeps
    its traceback, printed as visible text.
    """
    sys.excepthook = _print_traceback
    try:
        _open_streams()
        terminal.start_logging()
        _silence_orbax()
        _call(main)
    except (KeyboardInterrupt, InputError, Stopped, terminal.OutputError) as error:
        sys.exit(report_error(error))
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        place = error.filename or "the file system"
        sys.exit(report_error(InputError(f"{place}: cannot be used ({error.strerror}); fix and rerun")))
    except (RuntimeError, AssertionError) as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            sys.exit(report_error(InputError(f"the devices have too little memory ({_first_line(error)}); {_LESS}")))
        if not (reason := _backend_failure(error)):
            raise
        platforms = os.environ.get("JAX_PLATFORMS", "")
        sys.exit(report_error(InputError(f"JAX_PLATFORMS={platforms}: {reason}; correct the variable or unset it")))
    finally:
        terminal.drop_unwritten(sys.stderr)


def _call(main: Callable[[], None]) -> None:
    """Calls `main`. What a user's own code raised becomes an InputError that names its line."""
    try:
        main()
    except (InputError, terminal.OutputError, OSError):
        raise
    except Exception as error:
        if refusal := user_code.refusal(error):
            raise refusal from error
        raise


_LESS = (
    "lower sampling.slots, sampling.queue, train.batch_rows or train.row_tokens, or shard over more devices "
    "(star_jax.preflight counts what a config takes)"
)


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200]


def _open_streams() -> None:
    """Opens the null device in place of a closed standard input or error. Raises InputError for a closed output.

    Otherwise the next file that the process opens would be the stream: a library's warning would go into a run's file.
    """
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 # open as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    if sys.stdout is None:
        raise InputError("standard output is closed; redirect it to a file, or to /dev/null")


def _backend_failure(error: BaseException) -> str:
    """Why JAX has no devices, if that is the error; else "". With JAX_PLATFORMS=cuda and no GPU it fails an assert."""
    if "Unable to initialize backend" in str(error):
        return _first_line(error)
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    is_assert = isinstance(error, AssertionError) and frame.f_globals.get("__name__") == "jax._src.xla_bridge"
    return "JAX finds no such device here" if is_assert else ""


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    terminal.say("".join(traceback.format_exception(kind, error, trace)).rstrip(), sys.stderr)


def _silence_orbax() -> None:
    """Drops the tracebacks that Orbax and TensorStore print for failed writes: our thread gets the same error."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    thread_hook, unraisable_hook = threading.excepthook, sys.unraisablehook

    def on_thread_error(args: Any) -> None:
        modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(args.exc_traceback)]
        if not any(module.startswith("orbax.") for module in modules):
            thread_hook(args)

    def on_unraisable(args: Any) -> None:
        if str(args.exc_value) != "Event loop is closed":
            unraisable_hook(args)

    threading.excepthook, sys.unraisablehook = on_thread_error, on_unraisable
