"""The one exception for bad input: its text is the one line a user reads."""

import logging
import sys
from collections.abc import Callable
from typing import Any

from star_jax.stopping import Stopped


class InputError(Exception):
    """Something the user gave is wrong. The message names the place and the remedy, in one line."""


def exit_on_bad_input(main: Callable[[], None]) -> None:
    """Calls `main`; an InputError ends the process with status 2 and its one line on standard error.

    So do Ctrl-C, with the shell's usual status 130, and a SIGTERM that was answered (see stopping), with status 0: a
    run goes on with the same command.
    """
    logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns there of what we say in our own line
    try:
        main()
    except (KeyboardInterrupt, InputError, Stopped) as error:
        sys.exit(say(error))


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
