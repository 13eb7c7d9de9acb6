"""The check that every option's value passes, from a config or a command line: type, finite, in range, a local path."""

import errno
import math
import os
import re
from typing import Any

from star_jax.errors import InputError, shown

MAX_INTEGER = 2**31 - 1  # what an integer of JAX holds
PATH = {"is_path": True}  # metadata of a dataclass field whose text is a path, or a name if there is no such path
CODE = {"names_code": True}  # metadata of a field that names a Python module to import
# Literals of Python and JSON that a text option would take for a name: --config.wandb=None logs to a project "None".
_LITERALS = ("None", "null", "True", "False", "true", "false")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def checked(value: Any, expected: type, option: str, is_path: bool = False) -> Any:
    """The value of an option, an integer as a float where one is expected, a path with its `~` expanded.

    Raises InputError, which names the option, for a value of another type, a number that is not finite or exceeds
    MAX_INTEGER, a text that is a literal such as "None", and a path that is none (see `local_path`).
    """
    if isinstance(value, int) and abs(value) > MAX_INTEGER:  # whose digits Python may refuse to print
        raise InputError(f"{option} must be at most {MAX_INTEGER}, got a number of {value.bit_length()} bits")
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise InputError(f"{option} must be {expected.__name__}, got {shown(value)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{option} must be a finite number, got {value}")
    if isinstance(value, str):
        if value in _LITERALS:
            raise InputError(f"{option}: {value!r} would be taken as a text; leave it empty for none: {option}=")
        return local_path(value, option) if is_path and value else check_text(value, option)
    return value


def check_text(text: str, option: str) -> str:
    """The text. Raises InputError unless it can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{option}={text}: is not UTF-8; give another text (for a path: rename it)") from error
    return text


def local_path(text: str, option: str) -> str:
    """A path as a user typed it, with `~` and `~user` expanded: a shell leaves them after `--option=`.

    Raises InputError as `check_path` does, and for a `~` without a home directory.
    """
    check_path(text, option)
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise InputError(f"{option}={text}: there is no home directory {text.partition('/')[0]!r}; give the whole path")
    return path


def check_path(text: str, option: str) -> None:
    """Raises InputError for an empty path, a URL (which would become a local directory of that name), and a text that
    no file system takes.
    """
    if not text.strip():
        raise InputError(f"{option}: the path is empty")
    if _URL.match(text):
        raise InputError(
            f"{option}={text}: is a URL; star_jax uses files of this machine, so mount the bucket (gcsfuse, s3fs) or "
            "download it, and give the path"
        )
    if "\0" in check_text(text, option):
        raise InputError(f"{option}={text}: holds a NUL character, which no path has")
    try:
        os.lstat(text)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise InputError(f"{option}={text[:60]}...: the path is too long for the file system") from error
