"""The reader of all JSON: files that hold one object, lines of JSON-lines files, and their values by type.

Nothing read here exceeds a depth or a size, so no value makes a later step fail by recursion or exhaust memory. Errors
are an InputError of one line that names the file, or, for a text whose place only the caller knows, a ValueError with
the reason.
"""

import errno
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from star_jax.errors import InputError, MissingInput, cut

REMEDY = "fix or delete the file and rerun"
MAX_DEPTH = 64  # of nested lists and objects; a template of a tokenizer.json has about ten
MAX_FILE_BYTES = 1 << 28  # of a file that holds one object; the largest tokenizer.json have 35 MB
MAX_LINE_BYTES = 1 << 26
MAX_INTEGER = 2**53  # larger ones are not exact as float64; sums of many remain finite


def read_json_object(path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError, which ends with `remedy`, where it cannot be read or is none."""
    return parse_json_object(read_bytes(path, remedy), path, remedy)


def read_bytes(path: Path, remedy: str = REMEDY, limit: int = MAX_FILE_BYTES) -> bytes:
    """A regular file's content. Raises InputError where it is missing, cannot be read or has over `limit` bytes."""
    try:
        with open_regular(path) as file:
            if (size := os.fstat(file.fileno()).st_size) > limit:
                raise InputError(f"{path}: has {size:,} bytes, more than the {limit:,} that are read; {remedy}")
            return file.read()
    except OSError as error:
        raise unreadable(path, error, remedy) from error


def read_lines(path: Path, remedy: str = REMEDY) -> Iterator[tuple[int, bytes]]:
    """Yields (number from 1, line) of a regular file. Raises InputError if it cannot be read or a line is too long."""
    try:
        with open_regular(path) as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"{path}:{number}: the line has more than {MAX_LINE_BYTES:,} bytes; {remedy}")
                yield number, line
    except OSError as error:
        raise unreadable(path, error, remedy) from error


def unreadable(path: Path, error: OSError, remedy: str = REMEDY) -> InputError:
    """The error of one line for a file that cannot be read. A file without permission is not to be deleted."""
    remedy = "make it readable (chmod) and rerun" if isinstance(error, PermissionError) else remedy
    kind = MissingInput if isinstance(error, FileNotFoundError) else InputError
    return kind(f"{path}: cannot be read ({error.strerror}); {remedy}")


def is_present(path: Path) -> bool:
    """Whether something is at a path, be it a link to nothing.

    Raises InputError where that cannot be known: files in a folder that may not be entered do not count as missing.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise unreadable(path, error) from error
    return True


def open_regular(path: Path) -> BinaryIO:
    """Opens a regular file for reading. Raises OSError for anything else: a read of a pipe waits for a writer, a read
    of a device may never end."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = "directory" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device"
        raise OSError(None, f"a {kind}, not a file")
    return open(handle, "rb")


def refuse_special_files(folder: Path, remedy: str = REMEDY) -> None:
    """Raises InputError for a pipe or a device in a folder, a link to a folder or to one of them, and for what may not
    be read.

    For folders that a library reads: it may wait for a pipe for ever, in a thread that no signal interrupts, and may
    take what it cannot read for missing.
    """

    def refuse(error: OSError) -> None:
        if isinstance(error, PermissionError):  # not for a folder that is missing
            raise unreadable(Path(error.filename), error, remedy) from error

    for top, folders, files in os.walk(folder, onerror=refuse):
        links = [name for name in folders if os.path.islink(os.path.join(top, name))]
        special = [
            name for name in files if os.path.exists(path := os.path.join(top, name)) and not os.path.isfile(path)
        ]
        if names := sorted([*links, *special]):
            raise InputError(f"{os.path.join(top, names[0])}: is not a plain file or folder; {remedy}")
        for name in files:
            if os.path.exists(path := os.path.join(top, name)) and not os.access(path, os.R_OK):
                raise unreadable(Path(path), PermissionError(errno.EACCES, os.strerror(errno.EACCES)), remedy)


def parse_json_object(content: bytes, path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """The JSON object in the content of the file `path`. Raises InputError."""
    try:
        value = parse(content)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: invalid JSON ({error.msg}); {remedy}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; {remedy}") from error
    except ValueError as error:  # nested too deeply, or a number of too many digits
        raise InputError(f"{path}: invalid JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {type(value).__name__}, not a JSON object; {remedy}")
    return value


def parse_object(text: str | bytes, unique_keys: bool = False) -> dict[str, Any]:
    """`parse` of a text that must be an object. Raises ValueError with the reason."""
    value = parse(text, unique_keys)
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def parse(text: str | bytes, unique_keys: bool = False) -> Any:
    """The value of a JSON text. NaN and infinities, which json.dumps writes for a broken model, are numbers.

    `unique_keys`: refuse an object with two equal keys, in files that people write: one of the values is a mistake.

    Raises ValueError with the reason; JSONDecodeError (line, column) for bad syntax, UnicodeDecodeError for bytes that
    are not UTF-8.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8-sig")
    try:
        value = json.loads(text, object_pairs_hook=_unique) if unique_keys else json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth_exceeds(value, MAX_DEPTH):
        raise ValueError(f"nested too deeply, more than {MAX_DEPTH} levels")
    return value


def is_number(value: Any) -> TypeGuard[float]:
    """True for a finite number of JSON; booleans are not numbers."""
    # Not math.isfinite: it fails on an integer that no float can hold.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e300


def is_integer(value: Any) -> TypeGuard[int]:
    """True for an integer whose magnitude is at most MAX_INTEGER; booleans are not integers."""
    return type(value) is int and abs(value) <= MAX_INTEGER


def short(value: Any) -> str:
    """A value as an error message shows it: JSON of at most 60 characters."""
    return cut(json.dumps(value))


class Fields:
    """The values of a stored JSON object by key and type. All methods raise InputError naming place, key and remedy.

    `place`: the file, or "file:line". A key that is absent or null gives `default`; without one it is missing.
    """

    def __init__(self, values: dict[str, Any], place: Path | str, remedy: str = REMEDY) -> None:
        self.values, self._place, self._remedy = values, place, remedy

    def text(self, key: str, default: str | None = None) -> str:
        """A text."""
        value = self._get(key, default)
        return value if isinstance(value, str) else self._refuse(key, "text", value)

    def integer(self, key: str, low: int = 0, high: int = MAX_INTEGER, default: int | None = None) -> int:
        """An integer in low..high."""
        value = self._get(key, default)
        if not is_integer(value) or not low <= value <= high:
            self._refuse(key, f"an integer of {low} to {high}" if high < MAX_INTEGER else f"an integer >= {low}", value)
        return int(value)

    def number(self, key: str, low: float = -1e300, high: float = 1e300, default: float | None = None) -> float:
        """A finite number in low..high, which the message names as the range if they were given."""
        value = self._get(key, default)
        if not is_number(value) or not low <= value <= high:
            self._refuse(key, "a number" if high == 1e300 else f"a number in {low:g}..{high:g}", value)
        return float(value)

    def optional_number(self, key: str, low: float, high: float) -> float | None:
        """`number`; None if absent, null or NaN."""
        value = self.values.get(key)
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        return None if missing else self.number(key, low, high)

    def interval(self, key: str) -> tuple[float | None, float | None]:
        """[low, high] of a rate in 0..1, with null or NaN where an end is unknown; (None, None) if absent or null."""
        value = self.values.get(key, None)
        if value is None:
            return None, None
        if not isinstance(value, list) or len(value) != 2:
            self._refuse(key, "[low, high]", value)
        ends = Fields({f"{key} low": value[0], f"{key} high": value[1]}, self._place, self._remedy)
        low, high = (ends.optional_number(end, 0, 1) for end in ends.values)
        return low, high

    def object(self, key: str, default: dict[str, Any] | None = None) -> dict[str, Any]:
        """An object."""
        value = self._get(key, default)
        return value if isinstance(value, dict) else self._refuse(key, "an object", value)

    def items(self, key: str) -> list[Any]:
        """A list of any values."""
        value = self._get(key, None)
        return value if isinstance(value, list) else self._refuse(key, "a list", value)

    def texts(self, key: str, default: list[str] | None = None) -> list[str]:
        """A list of texts."""
        value = self._get(key, default)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self._refuse(key, "a list of texts", value)
        return list(value)

    def numbers(self) -> dict[str, float]:
        """The entries that are finite numbers, without null, NaN and texts."""
        return {key: value for key, value in self.values.items() if is_number(value)}

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise InputError(f"{self._place}: key {key!r} is missing; {self._remedy}")
        return value

    def _refuse(self, key: str, kind: str, value: Any) -> Any:
        raise InputError(f"{self._place}: '{key}' should be {kind}, is {short(value)}; {self._remedy}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {key[:60]!r} is there twice")
        values[key] = value
    return values


def _depth_exceeds(value: Any, limit: int) -> bool:
    """Whether lists and objects are nested deeper than `limit`; no recursion."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(limit):
        items = (item for parent in level for item in (parent.values() if isinstance(parent, dict) else parent))
        level = [item for item in items if isinstance(item, (dict, list))]
    return bool(level)
