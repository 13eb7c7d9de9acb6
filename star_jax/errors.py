"""The one exception for bad input: its text is the one line a user reads."""

import sys
from collections.abc import Callable


class InputError(Exception):
    """Something the user gave is wrong. The message names the place and the remedy, in one line."""


def exit_on_bad_input(main: Callable[[], None]) -> None:
    """Calls `main`; an InputError ends the process with status 2 and its one line on standard error."""
    try:
        main()
    except InputError as error:
        # The text may quote a file's content: without control characters it cannot drive the terminal.
        line = "".join(c if c.isprintable() else " " for c in str(error))
        print(f"star_jax: {' '.join(line.split())}", file=sys.stderr)
        sys.exit(2)
