"""A run's directory, the controller's only state: a stage is done when its output file exists.

Every file is written to a temporary name and renamed, its checksum before it. Sampling stages append finished chunks
to `<name>.part`; `<name>` is written when the last chunk is there.
"""

import contextlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from star_jax.distributed import preemption
from star_jax.errors import InputError, disk_errors_as_input_errors, os_errors_as_input_errors
from star_jax.json_reader import Fields, is_present, read_bytes
from star_jax.records import Completion, Record, from_json, side_fields, to_json, write_lines
from star_jax.runs import atomic_files, checksums, side_files
from star_jax.runs.layout import read_config
from star_jax.runs.lock import Lock

LOG = logging.getLogger("star_jax")
_T = TypeVar("_T")


class Processes(Protocol):
    """The processes of a run; the module star_jax.distributed.processes is one."""

    def count(self) -> int:
        """How many there are."""
        ...

    def broadcast_from_leader(self, make: Callable[[], _T], /) -> _T:
        """The value (JSON) or InputError of `make` in the leader, in all processes; OSErrors become InputErrors."""
        ...

    def check_stop(self) -> None:
        """Raises Stopped in all processes if one of them was asked to stop."""
        ...


class SingleProcess:
    """One process."""

    def count(self) -> int:
        return 1

    def broadcast_from_leader(self, make: Callable[[], _T], /) -> _T:
        with os_errors_as_input_errors():
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
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Creates the directory, locks it until `close`, and stores the config or compares it with the stored one.

        Args:
          world: name -> version or fingerprint of everything else that results depend on; compared likewise.
          may_change: keys that change no finished result ("star.iterations": run for longer); stored again.
          allow_changes: continue in spite of differences, and record them in provenance.json.
          defaults: of the config; an option that the stored config lacks, because it was added later, has its default.

        Raises InputError naming what differs, who else holds the lock, why the directory cannot be written, or the
        file of an iteration that is not what was written.
        """
        self.broadcast(lambda: self._open(lambda: self._compare(config, world, may_change, allow_changes, defaults)))

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
        return self.has(iteration) and self.broadcast(lambda: all(is_present(p) for p in checksums.files(folder)))

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
        return self.broadcast(lambda: checksums.read_verified_object(path))

    def read_text(self, path: Path) -> str:
        """Reads a text file. Raises InputError if it is missing, not UTF-8 or not what was written."""

        def read() -> str:
            try:
                return checksums.read_verified(path).decode()
            except UnicodeDecodeError as error:
                raise InputError(f"{path}: is not UTF-8 text; {checksums.REMEDY}") from error

        return self.broadcast(read)

    def read_config(self) -> dict[str, Any]:
        """Reads config.json. Raises InputError."""
        return self.broadcast(lambda: read_config(self.workdir))

    def seal(self, path: Path) -> None:
        """Stores the checksum of what a log holds now; of a log that is gone, none.

        Raises InputError if the part that had a checksum has changed.
        """

        def seal() -> None:
            if not is_present(path):  # deleted while the run went on
                self._discard(path.parent, path.name)
                return
            with self._directory_lock(path.parent):
                atomic_files.sync(path)
                self._locked_write(path.parent / checksums.NAME, checksums.with_log(path).encode())

        self.broadcast(seal)

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
        """Deletes a folder. Raises InputError if it is outside of the run's directory, or behind a link in it."""

        def remove() -> None:
            self._check_target(folder)
            shutil.rmtree(folder, ignore_errors=True)

        self.broadcast(remove)

    def discard(self, iteration: int, pattern: str) -> None:
        """Deletes the files of an iteration that match, because what they were made from is made again."""
        self.broadcast(lambda: self._discard(self.path(iteration), pattern))

    def _open(self, compare: Callable[[], None]) -> None:
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"workdir {self.workdir}: cannot be made ({error.strerror}); give another") from error
        self._lock = self._lock or Lock(self.workdir)
        try:
            compare()
            for folder in (self.workdir, *sorted(self.workdir.glob("iter_*"))):
                for path in checksums.files(folder):
                    if is_present(path):
                        checksums.check_file(path)
            for path in checksums.files(self.workdir):
                if not is_present(path):
                    LOG.info("%s is missing; it is written again if the run needs it", path)
                    self._discard(self.workdir, path.name)  # a new log has not the checksum of the one that is gone
        except BaseException:
            self.close()
            raise

    def _compare(
        self,
        config: Mapping[str, Any],
        world: Mapping[str, str],
        may_change: Sequence[str],
        allow_changes: bool,
        defaults: Mapping[str, Any],
    ) -> None:
        path, provenance = self.workdir / "config.json", self.workdir / "provenance.json"
        stored: dict[str, Any] = (
            checksums.read_verified_object(provenance)
            if is_present(provenance)
            else {"world": dict(world), "changes": []}
        )
        fields = Fields(stored, provenance, checksums.REMEDY)
        world_before, changes = fields.object("world"), fields.items("changes")
        by_file: dict[Path, list[str]] = {}
        if is_present(path):
            changed = _differences(_completed(read_config(self.workdir), defaults), json.loads(json.dumps(config)))
            by_file[path] = [text for key, text in changed.items() if key not in may_change]
            by_file[provenance] = list(_differences(world_before, dict(world)).values())
        elif any(self.workdir.glob("iter_*")):
            by_file[path] = ["it is missing, and there are iterations"]
        differences = [text for texts in by_file.values() for text in texts]
        if differences and not allow_changes:
            names = [str(file) for file, texts in by_file.items() if texts]
            raise InputError(
                f"{' and '.join(names)} belong{'s' if len(names) == 1 else ''} to a run with different settings: "
                f"{'; '.join(differences)}; give another --workdir, or --allow_changes to continue anyway"
            )
        if differences:
            when = time.strftime("%Y-%m-%d %H:%M:%S")
            finished = sorted(path.parent.name for path in self.workdir.glob("iter_*/DONE"))
            changes = [*changes, {"time": when, "after": finished[-1:], "what": differences}]
            LOG.warning("%s: continuing in spite of changes: %s", self.workdir, "; ".join(differences))
            for part in sorted(self.workdir.glob("iter_*/*.part")):
                LOG.warning(
                    "%s: its samples are from before the changes and stay; delete it to have them drawn anew", part
                )
        for file, value in ((provenance, {"world": dict(world), "changes": changes}), (path, config)):
            if not checksums.holds(file, content := _json(value).encode()):
                self._write(file, content)

    def _write(self, path: Path, content: bytes) -> None:
        if not checksums.kept_for(path):
            self._locked_write(path, content)
            return
        with self._directory_lock(path.parent):
            sums, replaces = path.parent / checksums.NAME, path.is_file() and not path.is_symlink()
            before = checksums.with_both(path, content) if replaces else checksums.with_file(path, content)
            self._locked_write(sums, before.encode())
            self._locked_write(path, content)
            if replaces:
                self._locked_write(sums, checksums.with_file(path, content).encode())

    def _discard(self, folder: Path, pattern: str) -> None:
        with self._directory_lock(folder):
            if names := [path.name for path in checksums.files(folder) if path.match(pattern)]:
                self._locked_write(folder / checksums.NAME, checksums.without_files(folder, names).encode())
            atomic_files.delete(folder, pattern)

    def _directory_lock(self, folder: Path) -> contextlib.AbstractContextManager[None]:
        self._check_target(folder)  # before a folder is created where the run's directory has been
        return atomic_files.directory_lock(folder)

    def _locked_write(self, path: Path, content: bytes) -> None:
        self._check_target(path.parent)
        atomic_files.atomic_write(path, content)

    def _check_target(self, folder: Path) -> None:
        """Raises InputError unless this run may write into a folder of its directory."""
        if self._lock is not None:
            self._lock.check()
        atomic_files.refuse_links(self.workdir, folder)

    def _broadcast_records(self, kind: type[Record], read: Callable[[], list[Record]]) -> list[Record]:
        if self._processes.count() == 1:
            return read()
        lines = self.broadcast(lambda: [to_json(record, with_side=True) for record in read()])
        return [from_json(kind, line) for line in lines]


class UnfinishedStage:
    """The completions of a sampling stage that are on disk already, and where further chunks are appended.

    Each line of `<name>.part` starts with its checksum, so that a torn write loses the last line and not the chunks
    before it.
    """

    def __init__(self, run_dir: RunDirectory, path: Path) -> None:
        self._run_dir, self._path, self.part = run_dir, path, path.with_name(path.name + ".part")
        self.completions: dict[tuple[str, int], Completion] = {}  # by problem id and sample index

    def load(self) -> None:
        """Reads the completions that an interrupted call has stored."""

        def read() -> list[Completion]:
            completions = self._read()
            atomic_files.append_text(self.part, "")  # a disk that refuses is known before anything is sampled
            return completions

        stored = self._run_dir._broadcast_records(Completion, read)
        self.completions = {(c.problem_id, c.sample_index): c for c in stored}

    def count(self) -> int:
        """How many completions an interrupted call has stored."""
        return self._run_dir.broadcast(lambda: len(self._read()))

    def append(self, chunk: Sequence[Completion]) -> None:
        """Stores a chunk. Raises Stopped after it is stored if the process was asked to stop."""

        def write() -> None:
            self._run_dir._check_target(self.part.parent)
            atomic_files.append_text(self.part, _part_lines(chunk))

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

        def delete() -> None:
            self._run_dir._check_target(self.part.parent)
            atomic_files.delete(self.part.parent, self.part.name)

        self._run_dir.broadcast(delete)

    def _read(self) -> list[Completion]:
        self._run_dir._check_target(self.part.parent)
        return _read_part(self.part)


def _read_part(part: Path) -> list[Completion]:
    """The undamaged lines at the start of an unfinished file, which is cut after the last of them."""
    with disk_errors_as_input_errors(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        if not part.exists():
            return []
        completions = []
        content = read_bytes(part, "delete it to sample again", limit=side_files.MAX_BYTES)
        for line in content.split(b"\n")[:-1]:
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
    records = checksums.read_verified_records(kind, path)
    if not records or not side_fields(kind):  # type: ignore[arg-type]
        return records
    side = side_files.side_path(path)
    content = read_bytes(side, f"delete {path.name} to regenerate both", limit=side_files.MAX_BYTES)
    checksums.check(side, content)
    return side_files.with_side_fields(side, content, records)


def _exists(path: Path) -> bool:
    if not is_present(path) or path.suffix != ".jsonl":
        return is_present(path)
    side_file = side_files.side_path(path)
    return is_present(side_file) or side_file not in checksums.files(path.parent)


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _completed(stored: dict[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The stored values, and the defaults of what they lack."""
    values = {key: json.loads(json.dumps(default)) for key, default in defaults.items()} | stored
    return {
        key: _completed(value, defaults[key])
        if isinstance(value, dict) and isinstance(defaults.get(key), dict)
        else value
        for key, value in values.items()
    }


def _differences(stored: Any, given: Any, name: str = "") -> dict[str, str]:
    """Dotted key -> the old and the new value, for every value that differs."""
    if isinstance(stored, dict) and isinstance(given, dict):
        changed: dict[str, str] = {}
        for key in [*stored, *(k for k in given if k not in stored)]:
            changed |= _differences(stored.get(key), given.get(key), f"{name}.{key}" if name else key)
        return changed
    return {} if stored == given else {name: f"{name} was {json.dumps(stored)}, now {json.dumps(given)}"}
