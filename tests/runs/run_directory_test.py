"""star_jax.runs.run_directory: the files of a run are its state: complete, in order, and from one config."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.errors import InputError
from star_jax.records import Completion, Example, Source, Verdict, to_json
from star_jax.runs import atomic_files
from star_jax.runs.run_directory import RunDirectory

CONFIG = {"seed": 0, "star": {"iterations": 3, "steps": 40}, "base": {"stages": ({"gold": (1.0,)},)}}
WANTED = [(f"t-{i}", draw) for i in range(4) for draw in range(2)]


def completion(index: int) -> Completion:
    """With `index` tokens, so that one has none; the log-probabilities are float32 numbers."""
    problem_id, sample_index = WANTED[index]
    log_probs = np.random.default_rng(index).standard_normal(index).astype(np.float32)
    return Completion(
        problem_id, 1, sample_index, False, f"text {index}\n!é", None, Verdict.WRONG, None, -0.5, 3, f"seed {index}",
        token_ids=tuple(range(index, 2 * index)), token_log_probs=tuple(log_probs.tolist()),
    )  # fmt: skip


EVERYTHING = [completion(index) for index in range(len(WANTED))]


class Sampling:
    """A sampling stage like evaluation.generate's: stores chunks from the last to the first, dies after `chunks`."""

    def __init__(self, chunks: int | None = None, size: int = 3) -> None:
        self.chunks, self.size = chunks, size
        self.asked: list[int] = []

    def __call__(self, run_dir: RunDirectory, path: Path) -> list[Completion]:
        stage = run_dir.unfinished_stage(path)
        if run_dir.exists(path):
            stage.delete()
            return run_dir.read_records(Completion, path)
        stage.load()
        self.asked = [index for index, key in enumerate(WANTED) if key not in stage.completions]
        for number, start in enumerate(range(0, len(self.asked), self.size)):
            if number == self.chunks:
                raise KeyboardInterrupt
            stage.append([completion(index) for index in self.asked[::-1][start : start + self.size]])
        return stage.finish(WANTED)


@pytest.fixture
def run_dir(tmp_path):
    opened = RunDirectory(tmp_path / "run")
    yield opened
    opened.close()


def names(run_dir):
    """All files but the checksums."""
    files = (path for path in run_dir.workdir.rglob("*") if path.is_file() and path.name != "checksums.json")
    return sorted(str(path.relative_to(run_dir.workdir)) for path in files)


def part_lines(*lines: str) -> str:
    """The lines of an unfinished file, each after its checksum."""
    return "".join(f"{zlib.crc32(line.encode()):08x} {line}\n" for line in lines)


def test_a_run_is_opened_again_with_the_same_config(run_dir):
    run_dir.open(CONFIG)
    run_dir.open(CONFIG)
    assert names(run_dir) == ["LOCK", "config.json", "provenance.json"]
    assert run_dir.read_json(run_dir.workdir / "config.json") == json.loads(json.dumps(CONFIG))


CHANGES = [
    ({"seed": 1}, ["seed was 0, now 1"]),
    ({"star": {"iterations": 3, "steps": 50}}, ["star.steps was 40, now 50"]),
    ({"seed": 1, "star": {"iterations": 9, "steps": 50}}, ["seed was 0, now 1; star.steps was 40, now 50"]),
    ({"star": {"iterations": 3}}, ["star.steps was 40, now null"]),
    ({"star": {"iterations": 3, "steps": 40, "new": "x"}}, ['star.new was null, now "x"']),
    ({"base": {"stages": ({"gold": (0.5,)},)}}, ['base.stages was [{"gold": [1.0]}], now [{"gold": [0.5]}]']),
    ({"star": 3}, ["star was", "now 3"]),
]


def test_another_config_is_refused_and_the_keys_are_named(run_dir):
    run_dir.open(CONFIG)
    before = (run_dir.workdir / "config.json").read_bytes()
    for change, reasons in CHANGES:
        with pytest.raises(InputError, match="another --workdir") as caught:
            run_dir.open(CONFIG | change, may_change=("star.iterations",))
        assert all(reason in str(caught.value) for reason in reasons), (change, str(caught.value))
        assert "star.iterations" not in str(caught.value)
        assert (run_dir.workdir / "config.json").read_bytes() == before


def test_what_may_change_is_stored_again(run_dir):
    run_dir.open(CONFIG)
    longer = CONFIG | {"star": {"iterations": 9, "steps": 40}}
    with pytest.raises(InputError, match=re.escape("star.iterations was 3, now 9")):
        run_dir.open(longer)
    run_dir.open(longer, may_change=("star.iterations",))
    assert run_dir.read_json(run_dir.workdir / "config.json")["star"]["iterations"] == 9
    assert names(run_dir) == ["LOCK", "config.json", "provenance.json"]


WORLD = {"star_jax": "1.0", "prompts": "ab12"}


def test_other_versions_and_data_are_refused_unless_allowed_and_then_recorded(run_dir, caplog):
    """Versions, prompts, data: the error names what differs; --allow_changes continues and records each change once.

    The log says so, and names the samples of an unfinished stage, which are from before the change.
    """
    run_dir.open(CONFIG, WORLD)
    run_dir.write_text(run_dir.path(1, "DONE"), "")
    changed, before = WORLD | {"prompts": "cd34", "dev problems": "ef56"}, names(run_dir)
    said = ['prompts was "ab12", now "cd34"', 'dev problems was null, now "ef56"']
    with pytest.raises(InputError, match=re.escape("; ".join(said)) + ".*--allow_changes"):
        run_dir.open(CONFIG, changed)
    part = run_dir.path(2, "samples.jsonl.part")
    part.parent.mkdir()
    part.write_text("")
    run_dir.open(CONFIG | {"seed": 5}, changed, allow_changes=True)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 2 and said[0] in warnings[0] and str(part) in warnings[1]
    run_dir.open(CONFIG | {"seed": 5}, changed)
    assert len(caplog.records) == 2
    part.unlink()
    part.parent.rmdir()
    assert names(run_dir) == before
    stored = run_dir.read_json(run_dir.workdir / "provenance.json")
    assert stored["world"] == changed and run_dir.read_json(run_dir.workdir / "config.json")["seed"] == 5
    assert [(change["after"], change["what"]) for change in stored["changes"]] == [
        (["iter_001"], ["seed was 0, now 5", *said])
    ]


def test_a_second_process_is_refused_until_the_first_releases_the_lock(run_dir):
    run_dir.open(CONFIG)
    second = RunDirectory(run_dir.workdir)
    with pytest.raises(InputError, match="another run is at work there"):
        second.open(CONFIG)
    run_dir.close()
    second.open(CONFIG)
    second.close()


def test_a_refused_config_leaves_no_lock(run_dir):
    run_dir.open(CONFIG)
    run_dir.close()
    with pytest.raises(InputError, match="seed"):
        run_dir.open(CONFIG | {"seed": 1})
    second = RunDirectory(run_dir.workdir)
    second.open(CONFIG)
    second.close()


def test_iterations_without_a_config_are_refused(run_dir):
    run_dir.path(0).mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"config\.json belongs to a run with different .* it is missing, and there are iterations;"
    ):
        run_dir.open(CONFIG)


def test_a_workdir_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("x")
    for workdir in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=re.escape(f"workdir {workdir}: cannot be made")):
            RunDirectory(workdir).open(CONFIG)


def test_a_file_that_cannot_be_written_is_bad_input(run_dir):
    path = run_dir.workdir / "x.json"
    (run_dir.workdir / "x.json.tmp").mkdir(parents=True)
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be written")):
        run_dir.write_json(path, {})


def test_a_broken_json_file_is_named(tmp_path):
    """json_reader_test has all the ways in which a file can be broken."""
    path = tmp_path / "config.json"
    for content, reason in ((None, ": cannot be read"), (b"{", ":1: invalid JSON"), (b"[]", ": holds list")):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InputError, match=re.escape(f"{path}{reason}")):
            RunDirectory(tmp_path).read_json(path)


def test_a_written_file_replaces_the_old_one_whole(run_dir):
    path = run_dir.path(1, "filter.json")
    assert not run_dir.has(1, "filter.json")
    for value in ({"kept": 1, "note": "é\n!"}, {"kept": 2}):
        run_dir.write_json(path, value)
        assert run_dir.read_json(path) == value
    assert run_dir.has(1, "filter.json") and not run_dir.has(1) and not run_dir.has(2, "filter.json")
    assert names(run_dir) == ["iter_001/filter.json"]


def test_a_crash_before_the_renaming_leaves_the_old_file(run_dir, monkeypatch):
    path = run_dir.path(1, "DONE")
    run_dir.write_text(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_dir.write_text(path, "new")
    assert path.read_text() == "old"


SAMPLES = ["iter_001/samples.jsonl", "iter_001/samples.safetensors"]


def test_a_stage_is_sampled_once_and_then_read(run_dir):
    path, sampling = run_dir.path(1, "samples.jsonl"), Sampling()
    assert sampling(run_dir, path) == EVERYTHING and sampling.asked == list(range(len(WANTED)))
    assert run_dir.read_records(Completion, path) == EVERYTHING  # in the given order, though sampled in another
    again = Sampling()
    assert again(run_dir, path) == EVERYTHING and again.asked == []
    assert names(run_dir) == SAMPLES


def test_a_stage_that_was_killed_samples_only_what_is_missing(tmp_path):
    for chunks in (0, 1, 2):
        run_dir = RunDirectory(tmp_path / str(chunks))
        path, first, second = run_dir.path(1, "samples.jsonl"), Sampling(chunks), Sampling()
        with pytest.raises(KeyboardInterrupt):
            first(run_dir, path)
        assert not path.exists()
        assert second(run_dir, path) == EVERYTHING
        assert second.asked == list(range(len(WANTED) - 3 * chunks))
        assert names(run_dir) == SAMPLES


def stored_lines(*indices: int) -> str:
    return part_lines(*(to_json(completion(index), with_side=True) for index in indices))


# Content of a part file -> the completions that count as stored.
TORN = [
    (stored_lines(5) + stored_lines(1)[:-7], [5]),  # killed within a line
    (stored_lines(5) + stored_lines(1)[:-1], [5]),  # before its newline
    (stored_lines(5) + "\0\0\0\0\n" + stored_lines(1), [5]),  # never written
    (stored_lines(5) + stored_lines(1).replace("1", "2", 1), [5]),
    (stored_lines(5, 1).replace('"iteration": 1', '"iteration": 2', 1), []),  # changed since
    (to_json(completion(5), with_side=True) + "\n", []),
    (stored_lines(5)[:9], []),
    ("", []),
    ("\n", []),
    (stored_lines(5, 5, 0), [0, 5]),
]


def test_a_torn_part_is_cut_after_its_last_undamaged_line(tmp_path):
    for number, (content, stored) in enumerate(TORN):
        run_dir = RunDirectory(tmp_path / str(number))
        path, sampling = run_dir.path(1, "samples.jsonl"), Sampling(chunks=1)
        path.parent.mkdir(parents=True)
        part = path.with_name("samples.jsonl.part")
        part.write_text(content, encoding="utf-8")
        with pytest.raises(KeyboardInterrupt):
            sampling(run_dir, path)
        assert sampling.asked == [index for index in range(len(WANTED)) if index not in stored], content
        for line in part.read_text(encoding="utf-8").splitlines():  # what was appended starts a new line
            assert part_lines(line[9:]) == line + "\n", content
        assert Sampling()(run_dir, path) == EVERYTHING, content
        assert names(run_dir) == SAMPLES, content


def test_a_part_torn_within_a_letter_is_cut_too(run_dir):
    path, sampling = run_dir.path(1, "samples.jsonl"), Sampling()
    path.parent.mkdir(parents=True)
    line = stored_lines(1).encode()
    middle = line.index("é".encode()) + 1
    path.with_name("samples.jsonl.part").write_bytes(stored_lines(5).encode() + line[:middle] + b"\n")
    assert sampling(run_dir, path) == EVERYTHING
    assert sampling.asked == [0, 1, 2, 3, 4, 6, 7]


def test_a_part_that_holds_everything_samples_nothing(run_dir):
    path, sampling = run_dir.path(1, "samples.jsonl"), Sampling()
    path.parent.mkdir(parents=True)
    text = stored_lines(*reversed(range(len(WANTED))))
    path.with_name("samples.jsonl.part").write_text(text, encoding="utf-8")
    assert sampling(run_dir, path) == EVERYTHING and sampling.asked == []


def test_a_stage_without_problems_is_an_empty_file(run_dir):
    path = run_dir.path(1, "rationalizations.jsonl")
    stage = run_dir.unfinished_stage(path)
    stage.load()
    assert stage.finish([]) == [] == run_dir.read_records(Completion, path)
    assert path.read_text() == "" and names(run_dir) == ["iter_001/rationalizations.jsonl"]


EXAMPLES = [
    Example("a", "p", "c", 1, Source.SAMPLED, loss_weight=0.25, token_ids=(0, 50399, 0)),
    Example("b", "p", "c", 1, Source.REFERENCE),
    Example("c", "p", "c", 1, Source.SAMPLED, token_ids=(7,)),
]
ODD_FLOATS = (-0.0, float(np.float32(1e-45)), float(np.float32(-3.4e38)), float("-inf"), float(np.float32(0.1)))


def test_what_is_written_is_what_is_read_bit_for_bit(run_dir):
    """Ids and float32 log-probabilities, from one process and as several processes get them from their leader."""
    odd = dataclasses.replace(completion(5), token_log_probs=ODD_FLOATS)
    path, other = run_dir.path(1, "samples.jsonl"), run_dir.path(1, "kept.jsonl")
    run_dir.write_records(path, [*EVERYTHING, odd])
    run_dir.write_records(other, EXAMPLES)
    for reader in (run_dir, RunDirectory(run_dir.workdir, TwoProcesses())):
        records = reader.read_records(Completion, path)
        assert records == [*EVERYTHING, odd]
        pairs = [(r.token_log_probs, e.token_log_probs) for r, e in zip(records, [*EVERYTHING, odd], strict=True)]
        assert all(np.float32(a).tobytes() == np.float32(b).tobytes() for a, b in pairs)
        assert reader.read_records(Example, other) == EXAMPLES
    assert "token_ids" not in path.read_text()


class TwoProcesses:
    """What the leader makes reaches the others as JSON."""

    def count(self) -> int:
        return 2

    def broadcast_from_leader(self, make):
        return json.loads(json.dumps(make()))

    def check_stop(self) -> None:
        pass


def test_a_damaged_missing_or_foreign_side_file_is_named(run_dir):
    run_dir.open(CONFIG)
    path = run_dir.path(1, "samples.jsonl")
    run_dir.write_records(path, EVERYTHING)
    run_dir.write_records(run_dir.path(1, "eval_dev.jsonl"), EVERYTHING[:5])
    run_dir.write_records(run_dir.path(1, "kept.jsonl"), EXAMPLES)
    side = path.with_suffix(".safetensors")
    content = side.read_bytes()
    others = [path.with_name(name).read_bytes() for name in ("eval_dev.safetensors", "kept.safetensors")]
    flipped = [content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :] for at in (0, 30, len(content) - 1)]
    for damaged in [*flipped, content[:-1], b"", *others]:
        side.write_bytes(damaged)
        for read in (lambda: run_dir.read_records(Completion, path), lambda: run_dir.open(CONFIG)):
            with pytest.raises(InputError, match=re.escape(f"{side}: damaged")) as caught:
                read()
            assert "\n" not in str(caught.value)
    side.unlink()
    with pytest.raises(InputError, match=re.escape(f"{side}: cannot be read")):
        run_dir.read_records(Completion, path)
    run_dir.path(1, "checksums.json").unlink()  # without checksums: a file of another shape is refused all the same
    for damaged in [content[:-1], b"", *others]:
        side.write_bytes(damaged)
        with pytest.raises(InputError, match=re.escape(f"{side}: damaged; delete it and samples.jsonl")):
            run_dir.read_records(Completion, path)
    side.write_bytes(content)
    assert run_dir.read_records(Completion, path) == EVERYTHING


def test_discarded_files_are_gone_and_others_stay(tmp_path):
    run_dir = RunDirectory(tmp_path)
    for name in ("eval_dev.jsonl", "eval_dev.jsonl.part", "kept.jsonl"):
        run_dir.write_text(run_dir.path(1, name), "x")
    run_dir.discard(1, "eval_*")
    run_dir.discard(2, "eval_*")  # nothing is there
    assert names(run_dir) == ["iter_001/kept.jsonl"]
    assert json.loads((run_dir.path(1) / "checksums.json").read_text()).keys() == {"kept.jsonl"}


def test_a_changed_byte_is_named(run_dir):
    run_dir.open(CONFIG)
    path = run_dir.path(1, "samples.jsonl")
    Sampling()(run_dir, path)
    content = path.read_bytes()
    for offset in (0, 30, 120, 200):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 1]) + content[offset + 1 :])
        for read in (lambda: run_dir.read_json(path), lambda: run_dir.open(CONFIG)):
            with pytest.raises(InputError, match=re.escape(f"{path}: damaged")):
                read()
        with pytest.raises(InputError, match=re.escape(f"{path}:")):  # not a record, or not the one that was written
            run_dir.read_records(Completion, path)


def test_an_iteration_is_complete_as_long_as_its_files_exist(run_dir):
    for name in ("samples.jsonl", "filter.json", "eval_dev.json"):
        run_dir.write_text(run_dir.path(1, name), "{}\n")
    assert not run_dir.is_complete(1)
    run_dir.write_text(run_dir.path(1, "DONE"), "1\n")
    assert run_dir.is_complete(1)
    run_dir.discard(1, "eval_*")
    assert run_dir.is_complete(1)
    run_dir.path(1, "filter.json").unlink()
    assert not run_dir.is_complete(1) and run_dir.has(1)


class Crash(BaseException):
    """The process is gone."""


def crashing(patch: pytest.MonkeyPatch, after: int, torn: int) -> None:
    """The `after`-th operation on files does not happen, nor does any later; of its text `torn` bytes were written."""
    left = [after]

    def guarded(function):
        def operate(*args, **named):
            left[0] -= 1
            if left[0] == 0:
                if function is append:
                    args[0].open("ab").write(args[1].encode()[:torn])
                raise Crash
            return function(*args, **named)

        return operate

    append = atomic_files.append_text
    patch.setattr(atomic_files, "append_text", guarded(append))
    for name in ("fsync", "replace"):
        patch.setattr(atomic_files.os, name, guarded(getattr(os, name)))
    for name in ("unlink", "mkdir"):
        patch.setattr(Path, name, guarded(getattr(Path, name)))


@given(
    crashes=st.lists(st.tuples(st.integers(1, 35), st.integers(0, 400)), max_size=6),
    size=st.integers(1, 5),
    evaluated_twice=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_whatever_dies_when_the_files_come_out_the_same(crashes, size, evaluated_twice):
    """One process for each crash, then one that ends: none samples again what is stored, and no half file is read."""
    with tempfile.TemporaryDirectory() as folder:
        stored: dict[str, set[int]] = {"samples.jsonl": set(), "eval_dev.jsonl": set()}

        def run_stage(run_dir: RunDirectory, name: str) -> None:
            path = run_dir.path(1, name)
            stage = run_dir.unfinished_stage(path)
            if run_dir.exists(path):
                stage.delete()
                assert run_dir.read_records(Completion, path) == EVERYTHING
                return
            stage.load()
            missing = [index for index, key in enumerate(WANTED) if key not in stage.completions]
            assert not stored[name].intersection(missing), "sampled twice"
            for start in range(0, len(missing), size):
                stage.append([completion(index) for index in missing[start : start + size]])
                stored[name].update(missing[start : start + size])
            assert stage.finish(WANTED) == EVERYTHING

        def live(run_dir: RunDirectory) -> None:
            run_dir.open(CONFIG)
            run_stage(run_dir, "samples.jsonl")
            if not run_dir.has(1, "filter.json"):
                run_dir.write_json(run_dir.path(1, "filter.json"), {"kept": "é"})
            assert run_dir.read_json(run_dir.path(1, "filter.json")) == {"kept": "é"}
            run_stage(run_dir, "eval_dev.jsonl")
            if evaluated_twice and not run_dir.has(1):
                stored["eval_dev.jsonl"].clear()
                run_dir.discard(1, "eval_*")
                run_stage(run_dir, "eval_dev.jsonl")
            run_dir.write_text(run_dir.path(1, "DONE"), "1\n")

        for crash in [*crashes, None]:
            run_dir = RunDirectory(folder)
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Crash):
                if crash:
                    crashing(patch, *crash)
                live(run_dir)
            run_dir.close()
        assert run_dir.is_complete(1) and names(run_dir) == [
            "LOCK", "config.json", "iter_001/DONE", "iter_001/eval_dev.jsonl", "iter_001/eval_dev.safetensors",
            "iter_001/filter.json", *SAMPLES, "provenance.json",
        ]  # fmt: skip


def test_a_command_that_runs_at_the_same_time_loses_no_checksum(tmp_path):
    """Two processes write into one iteration at a time: each file's checksum is there, and right."""
    code = "import sys; from star_jax.runs.run_directory import RunDirectory; run_dir = RunDirectory(sys.argv[1]); "
    code += "[run_dir.write_json(run_dir.path(1, f'{sys.argv[2]}_{i}.json'), {'i': i}) for i in range(60)]"
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parents[2]
    writers = [subprocess.Popen([*command, name], cwd=root, stderr=subprocess.PIPE) for name in ("run", "other")]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [(b"", 0)] * 2
    run_dir = RunDirectory(tmp_path)
    assert len(json.loads(run_dir.path(1, "checksums.json").read_text())) == 120
    for name in ("run", "other"):
        for i in range(60):
            assert run_dir.read_json(run_dir.path(1, f"{name}_{i}.json")) == {"i": i}
