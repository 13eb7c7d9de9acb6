"""The reader of files that hold one JSON object: every failure is an InputError of one line with path and remedy."""

import json
from pathlib import Path
from typing import Any

from star_jax.errors import InputError

REMEDY = "fix or delete the file and rerun"


def read_json_object(path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError, which ends with `remedy`, where it cannot be read or is none."""
    return parse_json_object(read_bytes(path, remedy), path, remedy)


def read_bytes(path: Path, remedy: str = REMEDY) -> bytes:
    """A file's content. Raises InputError where the file is missing or cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error


def parse_json_object(content: bytes, path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """The JSON object in the content of the file `path`. Raises InputError."""
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; {remedy}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: invalid JSON ({error.msg}); {remedy}") from error
    except RecursionError as error:
        raise InputError(f"{path}: invalid JSON (nested too deeply); {remedy}") from error
    except ValueError as error:  # a number of too many digits
        raise InputError(f"{path}: invalid JSON ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds {type(value).__name__}, not a JSON object; {remedy}")
    return value
