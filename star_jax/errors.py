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
        print(f"star_jax: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
