"""Checksums of what is stored, a line each, in `checksums.json` beside it: a bit that flips is named, not trained on.

The checksum of a file is written before the file, so that a file which is there is never without it.
"""

import json
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path

from star_jax.errors import InputError

NAME = "checksums.json"
SUFFIXES = (".json", ".jsonl", ".safetensors")  # of the files that have them; the others are for people to look at


def kept_for(path: Path) -> bool:
    """Whether a file of this name has a checksum."""
    return path.suffix in SUFFIXES and path.name != NAME


def of_line(line: bytes) -> str:
    """CRC-32, 8 hex digits."""
    return f"{zlib.crc32(line):08x}"


def with_file(path: Path, content: bytes) -> str:
    """The text of `path`'s checksums.json once `path` holds `content`. Raises InputError where that is broken."""
    return _text({**_read(path), path.name: _of(content)})


def without_files(directory: Path, names: Collection[str]) -> str:
    """The text of a directory's checksums.json once these files are not there. Raises InputError where it is broken."""
    return _text({name: sums for name, sums in _read(directory / NAME).items() if name not in names})


def files(directory: Path) -> list[Path]:
    """The files that a directory should hold by its checksums.json. Raises InputError where that is broken."""
    return [directory / name for name in _read(directory / NAME)]


def check(path: Path, content: bytes) -> None:
    """Raises InputError, naming the line, unless `content` is what was stored at `path`, or no checksum of it is."""
    stored, found = _read(path).get(path.name), _of(content)
    if stored is None or stored == found:
        return
    was, now = str(stored).split(), found.split()
    line = next((n for n, (a, b) in enumerate(zip(was, now, strict=False), 1) if a != b), min(len(was), len(now)) + 1)
    raise InputError(
        f"{path}:{line}: damaged, it is not what was written; delete the file to have it made anew (or, to go on with "
        f"it as it is, its entry in {path.parent / NAME})"
    )


def _of(content: bytes) -> str:
    # Split at newlines, the empty rest behind the last one counts too: a file that lost its end has fewer.
    return " ".join(of_line(line) for line in content.split(b"\n"))


def _text(sums: Mapping[str, str]) -> str:
    return json.dumps(sums, indent=1) + "\n"


def _read(path: Path) -> dict[str, str]:
    beside = path.parent / NAME
    try:
        stored = json.loads(beside.read_bytes())
        if not isinstance(stored, dict):
            raise ValueError("it is not a JSON object")
        return stored
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{beside}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{beside}: damaged ({error}); delete it to go on without it") from error
