"""One checksum for each stored file, in `checksums.json` next to it, so that a flipped bit is an error and not data.

    "filter.json": "6ec57f84"               the file's checksum, written before the file: none exists without one
    "config.json": "6ec57f84 680d3a37"      the file is being replaced: a kill leaves one of the two contents
    "metrics.jsonl": "6ec57f84:7432"        a log, which grows: the checksum of its first 7432 bytes

Lines of an unfinished stage (`*.part`) carry one each instead, since the lines before a torn write stay valid.
"""

import json
import re
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from star_jax.errors import InputError
from star_jax.json_reader import is_present, open_regular, parse_json_object, read_bytes, read_json_object, short
from star_jax.records import Record, read_jsonl

NAME = "checksums.json"
REMEDY = "delete the file to have it made again"
LOG_REMEDY = "delete the file to continue without what it holds"
SUFFIXES = (".json", ".jsonl", ".safetensors")  # of files with a checksum; programs do not read the others
_ENTRY = re.compile("[0-9a-f]{8}(( [0-9a-f]{8})*|:[0-9]{1,15})")


def kept_for(path: Path) -> bool:
    """Whether a file of this name has a checksum."""
    return path.suffix in SUFFIXES and path.name != NAME


def of(content: bytes) -> str:
    """CRC-32, 8 hex digits."""
    return f"{zlib.crc32(content):08x}"


def with_file(path: Path, content: bytes) -> str:
    """The text of `path`'s checksums.json once `path` holds `content`. Raises InputError where it is damaged."""
    return _text({**_read(path.parent), path.name: of(content)})


def with_both(path: Path, content: bytes) -> str:
    """The same while `path` holds `content` or still what it held before."""
    stored = _read(path.parent)
    before = (stored.get(path.name) or _of_file(path)[0]).split()
    return _text({**stored, path.name: " ".join(dict.fromkeys([*before, of(content)]))})


def with_log(path: Path) -> str:
    """The same once it covers all that the log `path` holds now. Raises InputError if what it covered has changed."""
    check_file(path)
    checksum, size = _of_file(path)
    return _text({**_read(path.parent), path.name: f"{checksum}:{size}"})


def without_files(directory: Path, names: Collection[str]) -> str:
    """The text of a directory's checksums.json once these files are deleted. Raises InputError where it is damaged."""
    return _text({name: checksum for name, checksum in _read(directory).items() if name not in names})


def files(directory: Path) -> list[Path]:
    """The files that a directory holds according to its checksums.json. Raises InputError where that is damaged."""
    return [directory / name for name in _read(directory)]


def holds(path: Path, content: bytes) -> bool:
    """Whether a file exists with this content and has its checksum. Raises InputError if it cannot be read."""
    return _read(path.parent).get(path.name) == of(content) and is_present(path) and read_bytes(path) == content


def read_verified(path: Path, remedy: str = REMEDY) -> bytes:
    """A file's content. Raises InputError where it cannot be read or differs from what was stored."""
    content = read_bytes(path, remedy)
    check(path, content, remedy)
    return content


def read_verified_object(path: Path, remedy: str = REMEDY) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError where it cannot be read, is none or differs from what was stored."""
    return parse_json_object(read_verified(path, remedy), path, remedy)


def read_verified_records(kind: type[Record], path: Path) -> list[Record]:
    """The records of a JSON-lines file. Raises InputError where one is broken or they differ from what was stored."""
    records = list(read_jsonl(kind, path))  # first: it knows what is wrong with a line that is no record
    check_file(path)
    return records


def check_file(path: Path, remedy: str = REMEDY) -> None:
    """`check` of a file of any size, which is not held in memory. Of a log it checks the part that is covered."""
    entry = _read(path.parent).get(path.name, "")
    checksums, _, covered = entry.partition(":")
    remedy = LOG_REMEDY if covered else remedy
    checksum, size = _of_file(path, int(covered) if covered else None, remedy)
    if entry and (checksum not in checksums.split() or (covered and size < int(covered))):
        raise _damaged(path, remedy)


def check(path: Path, content: bytes, remedy: str = REMEDY) -> None:
    """Raises InputError if the checksum stored for `path` is not that of `content`. A file may have no checksum."""
    entry = _read(path.parent).get(path.name)
    if entry and of(content) not in entry.split():
        raise _damaged(path, remedy)


def _damaged(path: Path, remedy: str) -> InputError:
    return InputError(
        f"{path}: damaged or edited, its content is not what was written; {remedy} (or, to keep it as it is, delete "
        f"its entry in {path.parent / NAME})"
    )


def _of_file(path: Path, first: int | None = None, remedy: str = REMEDY) -> tuple[str, int]:
    """(checksum, size) of a file, or of its `first` bytes. Raises InputError if it cannot be read."""
    checksum = size = 0
    try:
        with open_regular(path) as file:
            while block := file.read(1 << 20 if first is None else min(1 << 20, first - size)):
                checksum, size = zlib.crc32(block, checksum), size + len(block)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    return f"{checksum:08x}", size


def _text(checksums: Mapping[str, str]) -> str:
    return json.dumps(checksums, indent=1) + "\n"


def _read(directory: Path) -> dict[str, str]:
    """File name -> checksum; empty where the directory has no checksums.json."""
    path, remedy = directory / NAME, "delete it to continue without it"
    if not is_present(path):
        return {}
    values = read_json_object(path, remedy)
    for name, checksum in values.items():
        if not isinstance(checksum, str) or not _ENTRY.fullmatch(checksum):
            raise InputError(f"{path}: {short(name)} should have a checksum, has {short(checksum)}; {remedy}")
        # Names become paths, which must not lead elsewhere.
        if "/" in name or "\0" in name or not kept_for(Path(name)):
            raise InputError(f"{path}: {short(name)} is not the name of a file with a checksum; {remedy}")
    return values
