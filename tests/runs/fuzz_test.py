"""Any harm to a JSON file of a run: one line that names the file, or what the command makes of the unharmed run."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from star_jax import evaluate, report
from star_jax.algorithms import star
from star_jax.audit import mark_sample
from star_jax.config import Config
from star_jax.errors import InputError
from star_jax.report.figures import panels, plots
from star_jax.report.run_data import read_run
from tests.support.runs import small_config

ITERATION = ("checksums.json", "eval_dev.json", "eval_dev.jsonl")
TRAINING = ("filter.json", "finetune.json", "kept.jsonl", "rationalizations.jsonl", "samples.jsonl")
MODEL = ("checksums.json", "model.json")
FOLDERS = {
    "": ("checksums.json", "config.json", "metrics.jsonl", "problems_dev.jsonl", "problems_train.jsonl",
         "provenance.json"),
    "base": MODEL,
    "iter_000": ITERATION,
    **{f"iter_00{n}": (*ITERATION, *TRAINING) for n in (1, 2)},
    **{f"iter_00{n}/params": MODEL for n in (1, 2)},
}  # fmt: skip
NAMES = [str(Path(folder, name)) for folder, names in FOLDERS.items() for name in names]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**60), 10**60) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
KINDS = ("truncated", "flipped", "emptied", "directory", "nested", "retyped", "dropped")
DEPTH = 100_000  # more than Python's recursion


@dataclasses.dataclass(frozen=True)
class Harm:
    """A change of a file."""

    kind: str
    at: float  # 0..1: where in the file, in bytes or lines
    bit: int
    keys: list[int]  # the way to a value: of each object or list on it the place, modulo its size
    value: object  # to put there
    depth: int  # of nesting around the value that is there

    def apply(self, path: Path) -> None:
        content = path.read_bytes()
        offset = int(self.at * len(content))
        if self.kind == "truncated":
            path.write_bytes(content[:offset])
        elif self.kind == "flipped":
            path.write_bytes(content[:offset] + bytes([content[offset] ^ 1 << self.bit]) + content[offset + 1 :])
        elif self.kind == "emptied":
            path.write_bytes(b"")
        elif self.kind == "directory":
            path.unlink()
            path.mkdir()
        else:
            lines = content.decode().splitlines() if path.suffix == ".jsonl" else [content.decode()]
            number = int(self.at * len(lines))
            lines[number] = self._changed(lines[number])
            path.write_text("\n".join(lines) + "\n" * content.endswith(b"\n"), encoding="utf-8")

    def _changed(self, line: str) -> str:
        """A line of JSON with another value, deeper nesting, or without a key."""
        values = json.loads(line)
        parent, keys = values, self.keys
        while True:
            places = list(parent) if isinstance(parent, dict) else range(len(parent))
            place, keys = places[keys[0] % len(places)], keys[1:]
            if not keys or not isinstance(parent[place], (dict, list)) or not parent[place]:
                break
            parent = parent[place]
        old = json.dumps(parent[place], ensure_ascii=False)
        if self.kind == "dropped":
            del parent[place]
        else:
            parent[place] = self.value if self.kind == "retyped" else "HERE"
        text = json.dumps(values, ensure_ascii=False, indent=2 if "\n" in line else None) + "\n" * line.endswith("\n")
        deep = '{"a": [' * self.depth + old + "]}" * self.depth
        return (text.replace('"HERE"', deep) if self.kind == "nested" else text).encode("utf-8", "replace").decode()


HARMS = st.builds(
    Harm,
    kind=st.sampled_from(KINDS),
    at=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
    keys=st.lists(st.integers(0, 99), min_size=1, max_size=4),
    value=VALUES,
    depth=st.sampled_from([1, 70, DEPTH]),
)


class Commands:
    """What the commands make of a run, without plotting, which would take nearly all of the time."""

    NAMES = ("report", "audit", "resume", "evaluate")

    def __init__(self, config: Config, unharmed: Path, folder: Path, patch: pytest.MonkeyPatch, capsys) -> None:
        for module in (plots, panels):
            patch.setattr(module, "render", lambda draw, prefix, title, *sizes, **named: Markup(title))
        self._config, self._unharmed, self._folder, self._patch, self._capsys = config, unharmed, folder, patch, capsys
        self._expected = {name: self._outcome(name, self._copy()) for name in self.NAMES}

    def check(self, command: str, name: str, harm: Harm, has_checksums: bool) -> None:
        """With checksums the line names the file, and no harm changes a result.

        Without them, as in runs of earlier versions, a well-formed change may pass for what was written. It changes the
        result, or does not fit another file, which the line then names.
        """
        run = self._copy()
        if not has_checksums:
            for path in run.rglob("checksums.json"):
                path.unlink()
        if not (run / name).exists():
            return
        harm.apply(run / name)
        try:
            outcome = self._outcome(command, run)
        except InputError as error:
            assert len(str(error).splitlines()) == 1, error
            assert not has_checksums or str(run / name) in str(error), error
        else:
            assert not has_checksums or outcome == self._expected[command]

    def _copy(self) -> Path:
        shutil.rmtree(self._folder, ignore_errors=True)
        return shutil.copytree(self._unharmed, self._folder / "run")

    def _outcome(self, command: str, run: Path) -> object:
        self._capsys.readouterr()
        return getattr(self, f"_{command}")(run)

    def _report(self, run: Path) -> object:
        page = report.write(run).read_text(encoding="utf-8").splitlines()
        return [line for line in page if "UTC" not in line], read_run(run).metrics

    def _audit(self, run: Path) -> object:
        mark_sample.extend(read_run(run), run / "audit.txt", 12, "all")
        return (run / "audit.txt").read_text(encoding="utf-8")

    def _resume(self, run: Path) -> object:
        """As after a kill at the end of the last iteration, whose end reads the figures of all iterations."""
        (run / "iter_002/DONE").unlink()
        with self._patch.context() as patch:
            patch.setattr(report, "write", lambda _: run)
            star.run(self._config, run)
        table = [line for line in self._capsys.readouterr().err.splitlines() if "%" in line]
        names = ("eval_dev.json", *TRAINING, "eval_dev.jsonl", "*.safetensors")
        files = [path for name in names for path in sorted(run.glob(f"iter_*/{name}")) if path.is_file()]
        return table, {str(path.relative_to(run)): path.read_bytes() for path in [*files, run / "config.json"]}

    def _evaluate(self, run: Path) -> object:
        self._patch.setattr(sys, "argv", ["evaluate", f"--workdir={run}", "--iteration=best"])
        evaluate.main()
        return self._capsys.readouterr().out


@pytest.fixture
def commands(base, finished, tmp_path, monkeypatch, capsys) -> Commands:
    """Of a finished run without the arrays of its weights: no command here loads them."""
    run = shutil.copytree(finished, tmp_path / "unharmed", ignore=shutil.ignore_patterns("weights", "*.html"))
    assert {str(path.relative_to(run)) for path in run.rglob("*.json*")} == set(NAMES)
    return Commands(small_config(base__path=str(base)), run, tmp_path / "copy", monkeypatch, capsys)


CASES = dict(
    command=st.sampled_from(Commands.NAMES), name=st.sampled_from(NAMES), harm=HARMS, has_checksums=st.booleans()
)
LIMITS = dict(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@settings(max_examples=60, **LIMITS)
@given(**CASES)
def test_a_harmed_file_changes_no_result(commands, command, name, harm, has_checksums):
    commands.check(command, name, harm, has_checksums)


@pytest.mark.slow
@settings(max_examples=2000, **LIMITS)
@given(**CASES)
def test_no_harmed_file_changes_a_result(commands, command, name, harm, has_checksums):
    commands.check(command, name, harm, has_checksums)
