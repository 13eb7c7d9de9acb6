"""One checksum for each stored file, in `checksums.json` next to it, so that a flipped bit is an error and not data.

A file's checksum is written before the file: a file that exists is never without one. Lines of an unfinished stage
(`*.part`) carry one each instead, as such a file grows and the lines before a torn write stay valid.
"""

import json
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

from star_jax.errors import InputError
from star_jax.runs.json_files import read_bytes, read_json_object

NAME = "checksums.json"
SUFFIXES = (".json", ".jsonl", ".safetensors")  # of files with a checksum; programs do not read the others


def kept_for(path: Path) -> bool:
    """Whether a file of this name has a checksum."""
    return path.suffix in SUFFIXES and path.name != NAME


def of(content: bytes) -> str:
    """CRC-32, 8 hex digits."""
    return f"{zlib.crc32(content):08x}"


def with_file(path: Path, content: bytes) -> str:
    """The text of `path`'s checksums.json once `path` holds `content`. Raises InputError where it is damaged."""
    return _text({**_read(path.parent), path.name: of(content)})


def without_files(directory: Path, names: Collection[str]) -> str:
    """The text of a directory's checksums.json once these files are deleted. Raises InputError where it is damaged."""
    return _text({name: checksum for name, checksum in _read(directory).items() if name not in names})


def files(directory: Path) -> list[Path]:
    """The files that a directory holds according to its checksums.json. Raises InputError where that is damaged."""
    return [directory / name for name in _read(directory)]


def read_verified(path: Path) -> bytes:
    """A file's content. Raises InputError where it cannot be read or differs from what was stored."""
    content = read_bytes(path)
    check(path, content)
    return content


def check(path: Path, content: bytes) -> None:
    """Raises InputError if the checksum stored for `path` is not that of `content`. A file may have no checksum."""
    stored = _read(path.parent).get(path.name)
    if stored is not None and stored != of(content):
        raise InputError(
            f"{path}: damaged, its content is not what was written; delete the file to have it made again (or, to keep "
            f"it as it is, delete its entry in {path.parent / NAME})"
        )


def _text(checksums: Mapping[str, str]) -> str:
    return json.dumps(checksums, indent=1) + "\n"


def _read(directory: Path) -> dict[str, str]:
    """File name -> checksum; empty where the directory has no checksums.json."""
    path = directory / NAME
    if not path.exists():
        return {}
    return read_json_object(path, "delete it to continue without it")
