"""A run's directory, the controller's only state: a stage is done when its output file exists.

Every file is written to a temporary name and renamed, its checksum before it. Sampling stages append finished chunks
to `<name>.part`; `<name>` is written when the last chunk is there.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from star_jax.distributed import preemption
from star_jax.errors import InputError, disk_errors_as_input_errors
from star_jax.records import Completion, Record, from_json, read_jsonl, side_fields, to_json, write_lines
from star_jax.runs import atomic_files, checksums, side_files
from star_jax.runs.json_files import parse_json_object
from star_jax.runs.lock import Lock

_T = TypeVar("_T")


class Processes(Protocol):
    """The processes of a run; the module star_jax.distributed.processes is one."""

    def count(self) -> int:
        """How many there are."""
        ...

    def broadcast_from_leader(self, make: Callable[[], _T], /) -> _T:
        """The value (JSON) or InputError of `make` in the leader, in all processes."""
        ...

    def check_stop(self) -> None:
        """Raises Stopped in all processes if one of them was asked to stop."""
        ...


class SingleProcess:
    """One process."""

    def count(self) -> int:
        return 1

    def broadcast_from_leader(self, make: Callable[[], _T], /) -> _T:
        return make()

    def check_stop(self) -> None:
        preemption.check()


class RunDirectory:
    """The directory of one run. Only the leader process reads and writes it; the others get what it read."""

    def __init__(self, workdir: Path | str, processes: Processes = SingleProcess()) -> None:
        self.workdir = Path(workdir)
        self.broadcast, self.check_stop = processes.broadcast_from_leader, processes.check_stop
        self._processes = processes
        self._lock: Lock | None = None  # in the leader

    def open(
        self,
        config: Mapping[str, Any],
        world: Mapping[str, str] = MappingProxyType({}),
        may_change: Sequence[str] = (),
        allow_changes: bool = False,
    ) -> None:
        """Creates the directory, locks it until `close`, and stores the config or compares it with the stored one.

        Args:
          world: name -> version or fingerprint of everything else that results depend on; compared likewise.
          may_change: keys that change no finished result ("star.iterations": run for longer); stored again.
          allow_changes: continue in spite of differences, and record them in provenance.json.

        Raises InputError naming what differs, who else holds the lock, why the directory cannot be written, or the
        file of an iteration that is not what was written.
        """
        self.broadcast(lambda: self._open(config, world, may_change, allow_changes))

    def close(self) -> None:
        """Releases the lock."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def path(self, iteration: int, name: str = "") -> Path:
        """The path of an iteration's file."""
        return self.workdir / f"iter_{iteration:03d}" / name

    def exists(self, path: Path) -> bool:
        """Whether a file or a directory is there, with its side file if it was written with one."""
        return self.broadcast(lambda: _exists(path))

    def has(self, iteration: int, name: str = "DONE") -> bool:
        """Whether an iteration's file is there: the stage that writes it is done."""
        return self.exists(self.path(iteration, name))

    def is_complete(self, iteration: int) -> bool:
        """Whether an iteration is done and none of its files has disappeared since."""
        folder = self.path(iteration)
        return self.has(iteration) and self.broadcast(lambda: all(p.exists() for p in checksums.files(folder)))

    def find(self, pattern: str) -> list[Path]:
        """The paths below the directory that match, sorted."""
        names = self.broadcast(
            lambda: sorted(str(path.relative_to(self.workdir)) for path in self.workdir.glob(pattern))
        )
        return [self.workdir / name for name in names]

    def write_text(self, path: Path, text: str) -> None:
        """Writes a file atomically. Raises InputError if the disk refuses."""
        self.broadcast(lambda: self._write(path, text.encode()))

    def write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        """Writes a JSON object."""
        self.write_text(path, _json(value))

    def read_json(self, path: Path) -> dict[str, Any]:
        """Reads a JSON object. Raises InputError if it is missing, broken or not what was written."""
        return self.broadcast(lambda: _read_json(path))

    def write_records(self, path: Path, records: Sequence[Record]) -> None:
        """Writes a JSON-lines file; before it, the side file with the records' token ids and log-probabilities."""

        def write() -> None:
            if records and side_fields(type(records[0])):  # type: ignore[arg-type]
                self._write(side_files.side_path(path), side_files.to_bytes(records))
            self._write(path, write_lines(records).encode())

        self.broadcast(write)

    def read_records(self, kind: type[Record], path: Path) -> list[Record]:
        """Reads a JSON-lines file with its side file. Raises InputError naming file and line of what is damaged."""
        return self._broadcast_records(kind, lambda: _read_records(kind, path))

    def unfinished_stage(self, path: Path) -> "UnfinishedStage":
        """The chunks of a sampling stage that were stored before `path`, its output, is complete."""
        return UnfinishedStage(self, path)

    def remove(self, folder: Path) -> None:
        """Deletes a folder."""
        self.broadcast(lambda: shutil.rmtree(folder, ignore_errors=True))

    def discard(self, iteration: int, pattern: str) -> None:
        """Deletes the files of an iteration that match, because what they were made from is made again."""
        self.broadcast(lambda: self._discard(self.path(iteration), pattern))

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
            for folder in sorted(self.workdir.glob("iter_*")):
                for path in checksums.files(folder):
                    if path.exists():
                        checksums.check(path, path.read_bytes())
        except BaseException:
            self.close()
            raise

    def _compare(
        self, config: Mapping[str, Any], world: Mapping[str, str], may_change: Sequence[str], allow_changes: bool
    ) -> None:
        path, provenance = self.workdir / "config.json", self.workdir / "provenance.json"
        stored: dict[str, Any] = (
            _read_json(provenance) if provenance.exists() else {"world": dict(world), "changes": []}
        )
        if not (isinstance(stored.get("world"), dict) and isinstance(stored.get("changes"), list)):
            raise InputError(f"{provenance}: damaged (world or changes is missing). Delete it to regenerate it")
        if path.exists():
            changed = _differences(_read_json(path), json.loads(json.dumps(config)))
            differences = [text for key, text in changed.items() if key not in may_change]
            differences += _differences(stored["world"], dict(world)).values()
        else:
            differences = ["it is missing, and there are iterations"] if any(self.workdir.glob("iter_*")) else []
        if differences and not allow_changes:
            raise InputError(
                f"{path} belongs to a run with different settings: {'; '.join(differences)}; give another --workdir, "
                "or --allow_changes to continue anyway"
            )
        if differences:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            finished = sorted(path.parent.name for path in self.workdir.glob("iter_*/DONE"))
            stored["changes"].append({"time": when, "after": finished[-1:], "what": differences})
        self._locked_write(provenance, _json({**stored, "world": dict(world)}).encode())
        self._locked_write(path, _json(config).encode())

    def _write(self, path: Path, content: bytes) -> None:
        if not checksums.kept_for(path):
            self._locked_write(path, content)
            return
        with self._directory_lock(path.parent):
            sums = checksums.with_file(path, content)
            self._locked_write(path.parent / checksums.NAME, sums.encode())
            self._locked_write(path, content)

    def _discard(self, folder: Path, pattern: str) -> None:
        with self._directory_lock(folder):
            if names := [path.name for path in checksums.files(folder) if path.match(pattern)]:
                self._locked_write(folder / checksums.NAME, checksums.without_files(folder, names).encode())
            atomic_files.delete(folder, pattern)

    def _directory_lock(self, folder: Path) -> contextlib.AbstractContextManager[None]:
        self._check_lock()  # before a folder is created where the run's directory has been
        return atomic_files.directory_lock(folder)

    def _locked_write(self, path: Path, content: bytes) -> None:
        self._check_lock()
        atomic_files.atomic_write(path, content)

    def _check_lock(self) -> None:
        if self._lock is not None:
            self._lock.check()

    def _broadcast_records(self, kind: type[Record], read: Callable[[], list[Record]]) -> list[Record]:
        if self._processes.count() == 1:
            return read()
        lines = self.broadcast(lambda: [to_json(record, with_side=True) for record in read()])
        return [from_json(kind, line) for line in lines]


def model_directory(workdir: Path, iteration: int) -> Path:
    """The directory of an iteration's model; 0: the base's."""
    return workdir / f"iter_{iteration:03d}" / "params" if iteration else workdir / "base"


class UnfinishedStage:
    """The completions of a sampling stage that are on disk already, and where further chunks are appended.

    Each line of `<name>.part` starts with its checksum, so that a torn write loses the last line and not the chunks
    before it.
    """

    def __init__(self, run_dir: RunDirectory, path: Path) -> None:
        self._run_dir, self._path, self._part = run_dir, path, path.with_name(path.name + ".part")
        self.completions: dict[tuple[str, int], Completion] = {}  # by problem id and sample index

    def load(self) -> None:
        """Reads the completions that an interrupted call has stored."""
        stored = self._run_dir._broadcast_records(Completion, lambda: _read_part(self._part))
        self.completions = {(c.problem_id, c.sample_index): c for c in stored}

    def append(self, chunk: Sequence[Completion]) -> None:
        """Stores a chunk. Raises Stopped after it is stored if the process was asked to stop."""

        def write() -> None:
            self._run_dir._check_lock()
            atomic_files.append_text(self._part, _part_lines(chunk))

        self._run_dir.broadcast(write)
        self.completions |= {(c.problem_id, c.sample_index): c for c in chunk}
        self._run_dir.check_stop()

    def finish(self, order: Sequence[tuple[str, int]]) -> list[Completion]:
        """Writes the stage's output, the completions of these (problem id, sample index) in this order."""
        completions = [self.completions[key] for key in order]
        self._run_dir.write_records(self._path, completions)
        self.delete()
        return completions

    def delete(self) -> None:
        """Deletes the part file."""
        self._run_dir.broadcast(lambda: atomic_files.delete(self._part.parent, self._part.name))


def _read_part(part: Path) -> list[Completion]:
    """The undamaged lines at the start of an unfinished file, which is cut after the last of them."""
    with disk_errors_as_input_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        if not part.exists():
            return []
        completions = []
        for line in part.read_bytes().split(b"\n")[:-1]:
            checksum, _, text = line.partition(b" ")
            if checksum != checksums.of(text).encode():
                break
            try:
                completions.append(from_json(Completion, text.decode()))
            except ValueError:  # another version's format
                break
    atomic_files.atomic_write(part, _part_lines(completions).encode())
    return completions


def _part_lines(chunk: Sequence[Completion]) -> str:
    lines = [to_json(completion, with_side=True) for completion in chunk]
    return "".join(f"{checksums.of(line.encode())} {line}\n" for line in lines)


def _read_records(kind: type[Record], path: Path) -> list[Record]:
    records = list(read_jsonl(kind, path))  # first: it knows what is wrong with a line that is no record
    checksums.check(path, path.read_bytes())
    if not records or not side_fields(kind):  # type: ignore[arg-type]
        return records
    side = side_files.side_path(path)
    try:
        content = side.read_bytes()
    except OSError as error:
        raise InputError(f"{side}: cannot be read ({error.strerror}). Delete {path.name} to regenerate both") from error
    checksums.check(side, content)
    return side_files.with_side_fields(side, content, records)


def _exists(path: Path) -> bool:
    if not path.exists() or path.suffix != ".jsonl":
        return path.exists()
    side_file = side_files.side_path(path)
    return side_file.exists() or side_file not in checksums.files(path.parent)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _read_json(path: Path) -> dict[str, Any]:
    return parse_json_object(checksums.read_verified(path), path)


def _differences(stored: Any, given: Any, name: str = "") -> dict[str, str]:
    """Dotted key -> the old and the new value, for every value that differs."""
    if isinstance(stored, dict) and isinstance(given, dict):
        changed: dict[str, str] = {}
        for key in [*stored, *(k for k in given if k not in stored)]:
            changed |= _differences(stored.get(key), given.get(key), f"{name}.{key}" if name else key)
        return changed
    return {} if stored == given else {name: f"{name} was {json.dumps(stored)}, now {json.dumps(given)}"}
