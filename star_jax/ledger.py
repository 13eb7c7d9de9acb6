"""What a run leaves on disk. The files are the controller's only state: a stage is done when its output exists.

Every file is written aside and renamed. The long sampling stages append complete chunks to `<name>.part`,
which becomes `<name>` when the last chunk is there.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from star_jax.errors import InputError
from star_jax.records import Completion, from_json, read_jsonl, write_lines


class Ledger:
    """The directory of one run."""

    def __init__(self, workdir: Path | str) -> None:
        self.workdir = Path(workdir)

    def open(self, config: Mapping[str, Any], may_change: Sequence[str] = ()) -> None:
        """Makes the directory and stores the config, or checks that the stored one is the same.

        The keys of `may_change` ("star.iterations": go on for longer) change no finished result; they are
        stored anew. Raises InputError naming the keys that differ, or why the directory cannot be written.
        """
        try:
            self.workdir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"workdir {self.workdir}: cannot be made ({error.strerror}); give another") from error
        path = self.workdir / "config.json"
        if not path.exists():
            if any(self.workdir.glob("iter_*")):
                raise InputError(f"{self.workdir}: holds iterations and no config.json; give an empty workdir")
            self.write_json(path, config)
            return
        changed = _differences(self.read_json(path), json.loads(json.dumps(config)))
        if refused := [text for key, text in changed.items() if key not in may_change]:
            raise InputError(f"{path} is of a run with other settings: {'; '.join(refused)}; give another --workdir")
        if changed:
            self.write_json(path, config)

    def path(self, iteration: int, name: str = "") -> Path:
        """The place of an iteration's file."""
        return self.workdir / f"iter_{iteration:03d}" / name

    def done(self, iteration: int, name: str = "DONE") -> bool:
        """Whether a stage's output is complete."""
        return self.path(iteration, name).exists()

    def write_text(self, path: Path, text: str) -> None:
        """Writes a file aside and renames it into place. Raises InputError where the disk will not have it."""
        aside = path.with_name(path.name + ".tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(aside, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, path)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); mend that and run again") from error

    def write_json(self, path: Path, value: Mapping[str, Any]) -> None:
        """Writes a JSON object."""
        self.write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def read_json(self, path: Path) -> dict[str, Any]:
        """Reads a JSON object. Raises InputError where it is missing or broken."""
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise InputError(f"{path}: not JSON ({error}); delete it and run again") from error
        if not isinstance(value, dict):
            raise InputError(f"{path}: not a JSON object; delete it and run again")
        return value

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
        """
        if path.exists():
            return list(read_jsonl(Completion, path))
        part = path.with_name(path.name + ".part")
        found = {(c.problem_id, c.draw): c for c in self._complete_lines(part)}

        def store(chunk: Sequence[Completion]) -> None:
            try:
                with open(part, "a", encoding="utf-8") as file:
                    file.write(write_lines(chunk))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                raise InputError(f"{part}: cannot be written ({error.strerror}); mend that and run again") from error
            found.update({(c.problem_id, c.draw): c for c in chunk})

        if missing := [i for i, key in enumerate(wanted) if key not in found]:
            draw(missing, store)
        completions = [found[key] for key in wanted]
        self.write_text(path, write_lines(completions))
        part.unlink(missing_ok=True)
        return completions

    def _complete_lines(self, part: Path) -> list[Completion]:
        """The whole lines of an unfinished file, which is cut behind the last of them."""
        part.parent.mkdir(parents=True, exist_ok=True)
        if not part.exists():
            return []
        completions = []
        for line in part.read_bytes().split(b"\n")[:-1]:
            try:
                completions.append(from_json(Completion, line.decode()))
            except ValueError:
                break
        self.write_text(part, write_lines(completions))
        return completions


def _differences(stored: Any, given: Any, name: str = "") -> dict[str, str]:
    """Dotted key -> what it was and is, for every value that differs."""
    if isinstance(stored, dict) and isinstance(given, dict):
        found: dict[str, str] = {}
        for key in [*stored, *(k for k in given if k not in stored)]:
            found |= _differences(stored.get(key), given.get(key), f"{name}.{key}" if name else key)
        return found
    return {} if stored == given else {name: f"{name} was {json.dumps(stored)}, now {json.dumps(given)}"}
