"""The argument parser of every `python -m star_jax.NAME`, and the wrapper around each command's `main`."""

import argparse
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from star_jax.errors import InputError, Stopped, report_error


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
        )

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog.rpartition('.')[2]}: {message}; see {self.prog} --help")


def exit_on_bad_input(main: Callable[[], None]) -> None:
    """Calls `main` and turns expected errors into one line on standard error and an exit status.

    InputError: status 2. Ctrl-C: status 130, as in a shell. Stopped (SIGTERM, see distributed.preemption): status 0,
    since the same command continues the run. Any other error keeps its traceback.
    """
    _silence_orbax()
    try:
        main()
    except (KeyboardInterrupt, InputError, Stopped) as error:
        sys.exit(report_error(error))


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
