"""What a run leaves on disk. The files are the controller's only state: a stage is done when its output exists.

Every file is written aside and renamed, its checksum before it. The long sampling stages append complete chunks to
`<name>.part`, each line behind its checksum, and `<name>` is written when the last chunk is there.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from star_jax.runs import checksums, atomic_files; from star_jax.distributed import preemption
from star_jax.errors import InputError, disk_errors_as_input_errors
from star_jax.runs.lock import Lock
from star_jax.records import Completion, Record, from_json, read_jsonl, to_json, write_lines

_T = TypeVar("_T")


class Processes(Protocol):
    """Those that work on a run; star_jax.distributed.processes is one."""

    def broadcast_from_leader(self, make: Callable[[], _T], /) -> _T:
        """What `make` (JSON, or an InputError) gives where the files are, for all processes."""
        ...

    def check_stop(self) -> None:
        """Raises Stopped in all processes if one of them was told to stop."""
        ...


class Alone:
    """One process."""

    def broadcast_from_leader(self, make: Callable[[], _T], /) -> _T:
        return make()

    def check_stop(self) -> None:
        preemption.check()


class RunDirectory:
    """The directory of one run. Only one of several processes reads and writes it; all of them learn what it saw."""

    def __init__(self, workdir: Path | str, processes: Processes = Alone()) -> None:
        self.workdir = Path(workdir)
        self._agree, self._check_stop = processes.broadcast_from_leader, processes.check_stop
        self._lock: Lock | None = None  # where the files are

    def open(
        self,
        config: Mapping[str, Any],
        world: Mapping[str, str] = MappingProxyType({}),
        may_change: Sequence[str] = (),
        allow_changes: bool = False,
    ) -> None:
        """Makes the directory, locks it until `close`, and stores the config, or checks that it is the stored one.

        Args:
          world: name -> version or fingerprint of whatever else the results follow from, checked likewise.
          may_change: keys ("star.iterations": go on for longer) that change no finished result; stored anew.
          allow_changes: go on in spite of differences, and write them down in provenance.json.

        Raises InputError naming what differs, who else is at work here, why the directory cannot be written, or the
        line of an iteration's file that is not what was written.
        """
        self._agree(lambda: self._open(config, world, may_change, allow_changes))

    def close(self) -> None:
        """Lets go of the directory."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _open(
        self, config: Mapping[str, Any], world: Mapping[str, str], may_change: Sequence[str], allow_changes: bool
    ) -> None:
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"workdir {self.workdir}: cannot be made ({error.strerror}); give another") from error
        self._lock = self._lock or Lock(self.workdir)
        try:
            self._compare(config, world, may_change, allow_changes)
            for path in self._summed():
                if path.exists():
                    checksums.check(path, path.read_bytes())
        except BaseException:
            self.close()
            raise

    def _compare(
        self, config: Mapping[str, Any], world: Mapping[str, str], may_change: Sequence[str], allow_changes: bool
    ) -> None:
        path, about = self.workdir / "config.json", self.workdir / "provenance.json"
        stored: dict[str, Any] = _read_json(about) if about.exists() else {"world": dict(world), "changes": []}
        if not (isinstance(stored.get("world"), dict) and isinstance(stored.get("changes"), list)):
            raise InputError(f"{about}: damaged, world or changes is missing; delete it and run again")
        if path.exists():
            changed = _differences(_read_json(path), json.loads(json.dumps(config)))
            strange = [text for key, text in changed.items() if key not in may_change]
            strange += _differences(stored["world"], dict(world)).values()
        else:
            strange = ["it is missing, and there are iterations"] if any(self.workdir.glob("iter_*")) else []
        if strange and not allow_changes:
            raise InputError(
                f"{path} is of a run under other conditions: {'; '.join(strange)}; give another --workdir, or "
                "--allow_changes to go on all the same"
            )
        if strange:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            finished = sorted(found.parent.name for found in self.workdir.glob("iter_*/DONE"))
            stored["changes"].append({"time": when, "behind": finished[-1:], "what": strange})
        self._store(atomic_files.atomic_write, about, _json({**stored, "world": dict(world)}))
        self._store(atomic_files.atomic_write, path, _json(config))

    def _alone_in(self, directory: Path) -> contextlib.AbstractContextManager[None]:
        if self._lock is not None:
            self._lock.check()  # before a directory is made where the run's has been
        return atomic_files.directory_lock(directory)

    def _store(self, how: Callable[[Path, str], None], path: Path, text: str) -> None:
        if self._lock is not None:
            self._lock.check()
        how(path, text)

    def path(self, iteration: int, name: str = "") -> Path:
        """The place of an iteration's file."""
        return self.workdir / f"iter_{iteration:03d}" / name

    def done(self, iteration: int, name: str = "DONE") -> bool:
        """Whether a stage's output is complete."""
        return self.exists(self.path(iteration, name))

    def whole(self, iteration: int) -> bool:
        """Whether an iteration is done, and none of its files has gone since."""
        directory = self.path(iteration)
        return self.done(iteration) and self._agree(lambda: all(p.exists() for p in checksums.files(directory)))

    def _summed(self) -> list[Path]:
        return [path for found in sorted(self.workdir.glob("iter_*")) for path in checksums.files(found)]

    def exists(self, path: Path) -> bool:
        """Whether a file or a directory is there."""
        return self._agree(path.exists)

    def find(self, pattern: str) -> list[Path]:
        """The files of the run that match, in order."""
        names = self._agree(lambda: sorted(str(path.relative_to(self.workdir)) for path in self.workdir.glob(pattern)))
        return [self.workdir / name for name in names]

    def write_text(self, path: Path, text: str) -> None:
        """Writes a file aside and renames it into place. Raises InputError where the disk will not have it."""
        self._agree(lambda: self._write_summed(path, text))

    def _write_summed(self, path: Path, text: str) -> None:
        if not checksums.kept_for(path):
            self._store(atomic_files.atomic_write, path, text)
            return
        with self._alone_in(path.parent):
            self._store(atomic_files.atomic_write, path.parent / checksums.NAME, checksums.with_file(path, text))
            self._store(atomic_files.atomic_write, path, text)

    def write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        """Writes a JSON object."""
        self.write_text(path, _json(value))

    def remove(self, directory: Path) -> None:
        """Deletes a directory that is not needed any more."""
        self._agree(lambda: shutil.rmtree(directory, ignore_errors=True))

    def discard(self, iteration: int, pattern: str) -> None:
        """Deletes the files of an iteration that match: what they were made from is made anew."""
        self._agree(lambda: self._discard(self.path(iteration), pattern))

    def _discard(self, directory: Path, pattern: str) -> None:
        with self._alone_in(directory):
            if gone := [path.name for path in checksums.files(directory) if path.match(pattern)]:
                self._store(atomic_files.atomic_write, directory / checksums.NAME, checksums.without_files(directory, gone))
            atomic_files.delete(directory, pattern)

    def read_json(self, path: Path) -> dict[str, Any]:
        """Reads a JSON object. Raises InputError where it is missing, broken or not what was written."""
        return self._agree(lambda: _read_json(path))

    def read_lines(self, kind: type[Record], path: Path) -> list[Record]:
        """The records of a JSON-lines file. Raises InputError naming file and line of what is broken or damaged."""
        return self._told(kind, lambda: _read_lines(kind, path))

    def _told(self, kind: type[Record], read: Callable[[], list[Record]]) -> list[Record]:
        return [from_json(kind, line) for line in self._agree(lambda: [to_json(record) for record in read()])]

    def completions(
        self,
        path: Path,
        wanted: Sequence[tuple[str, int]],
        draw: Callable[[Sequence[int], Callable[[Sequence[Completion]], None]], None],
    ) -> list[Completion]:
        """The completions of a sampling stage: read if it is done, else drawn, appended chunk by chunk, and renamed.

        Args:
          wanted: (problem id, draw) of every completion, in the order of the finished file.
          draw: called with the places of `wanted` that are not on disk yet and a function that stores a chunk.

        Raises Stopped behind a chunk that is stored, if the process was told to stop.
        """
        part = path.with_name(path.name + ".part")
        if self.exists(path):
            self._agree(lambda: atomic_files.delete(part.parent, part.name))  # a kill may have come between the two
            return self.read_lines(Completion, path)
        found = {(c.problem_id, c.sample_index): c for c in self._told(Completion, lambda: _complete_lines(part))}

        def store(chunk: Sequence[Completion]) -> None:
            self._agree(lambda: self._store(atomic_files.append_text, part, _part_lines(chunk)))
            found.update({(c.problem_id, c.sample_index): c for c in chunk})
            self._check_stop()

        if missing := [i for i, key in enumerate(wanted) if key not in found]:
            draw(missing, store)
        completions = [found[key] for key in wanted]
        self.write_text(path, write_lines(completions))
        self._agree(lambda: atomic_files.delete(part.parent, part.name))
        return completions


def _complete_lines(part: Path) -> list[Completion]:
    """The undamaged lines that an unfinished file begins with; it is cut behind the last of them."""
    with disk_errors_as_input_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        if not part.exists():
            return []
        completions = []
        for line in part.read_bytes().split(b"\n")[:-1]:
            checksum, _, text = line.partition(b" ")
            if checksum != checksums.of_line(text).encode():
                break
            try:
                completions.append(from_json(Completion, text.decode()))
            except ValueError:  # of another version's form
                break
    atomic_files.atomic_write(part, _part_lines(completions))
    return completions


def _part_lines(chunk: Sequence[Completion]) -> str:
    lines = [to_json(completion) for completion in chunk]
    return "".join(f"{checksums.of_line(line.encode())} {line}\n" for line in lines)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _read_lines(kind: type[Record], path: Path) -> list[Record]:
    records = list(read_jsonl(kind, path))  # first: of a line that is no record it knows what is wrong
    checksums.check(path, path.read_bytes())
    return records


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
        checksums.check(path, content)
        value = json.loads(content)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); delete it and run again") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object; delete it and run again")
    return value


def _differences(stored: Any, given: Any, name: str = "") -> dict[str, str]:
    """Dotted key -> what it was and is, for every value that differs."""
    if isinstance(stored, dict) and isinstance(given, dict):
        found: dict[str, str] = {}
        for key in [*stored, *(k for k in given if k not in stored)]:
            found |= _differences(stored.get(key), given.get(key), f"{name}.{key}" if name else key)
        return found
    return {} if stored == given else {name: f"{name} was {json.dumps(stored)}, now {json.dumps(given)}"}
