"""star_jax.runs.run_directory: the files of a run are its state, so they are whole, in order, and of one config."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.errors import InputError
from star_jax.records import Completion, read_jsonl, to_json
from star_jax.runs import atomic_files
from star_jax.runs.run_directory import RunDirectory

CONFIG = {"seed": 0, "star": {"iterations": 3, "steps": 40}, "base": {"stages": ({"gold": (1.0,)},)}}
WANTED = [(f"t-{i}", draw) for i in range(4) for draw in range(2)]


def completion(place: int) -> Completion:
    name, draw = WANTED[place]
    return Completion(name, 1, draw, False, f"text {place}\n!é", None, "wrong", None, -0.5, 3, f"seed {place}")


class Sample:
    """Draws in chunks, back to front; stops with an exception after `chunks` of them."""

    def __init__(self, chunks: int | None = None, size: int = 3) -> None:
        self.chunks, self.size = chunks, size
        self.asked: list[int] = []

    def __call__(self, missing, store) -> None:
        self.asked = list(missing)
        places = self.asked[::-1]
        for number, start in enumerate(range(0, len(places), self.size)):
            if number == self.chunks:
                raise KeyboardInterrupt
            store([completion(place) for place in places[start : start + self.size]])


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
    """As an unfinished file holds them, each behind its checksum."""
    return "".join(f"{zlib.crc32(line.encode()):08x} {line}\n" for line in lines)


def test_a_run_is_opened_again_with_the_same_config(run_dir):
    run_dir.open(CONFIG)
    run_dir.open(CONFIG)
    assert names(run_dir) == ["LOCK", "config.json", "provenance.json"]
    assert run_dir.read_json(run_dir.workdir / "config.json") == json.loads(json.dumps(CONFIG))


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({"seed": 1}, ["seed was 0, now 1"]),
        ({"star": {"iterations": 3, "steps": 50}}, ["star.steps was 40, now 50"]),
        ({"seed": 1, "star": {"iterations": 9, "steps": 50}}, ["seed was 0, now 1; star.steps was 40, now 50"]),
        ({"star": {"iterations": 3}}, ["star.steps was 40, now null"]),
        ({"star": {"iterations": 3, "steps": 40, "new": "x"}}, ['star.new was null, now "x"']),
        ({"base": {"stages": ({"gold": (0.5,)},)}}, ['base.stages was [{"gold": [1.0]}], now [{"gold": [0.5]}]']),
        ({"star": 3}, ["star was", "now 3"]),
    ],
)
def test_another_config_is_refused_and_the_keys_are_named(run_dir, change, reasons):
    run_dir.open(CONFIG)
    before = (run_dir.workdir / "config.json").read_bytes()
    with pytest.raises(InputError, match="another --workdir") as caught:
        run_dir.open(CONFIG | change, may_change=("star.iterations",))
    assert all(reason in str(caught.value) for reason in reasons) and "star.iterations" not in str(caught.value)
    assert (run_dir.workdir / "config.json").read_bytes() == before


def test_what_may_change_is_stored_anew(run_dir):
    run_dir.open(CONFIG)
    longer = CONFIG | {"star": {"iterations": 9, "steps": 40}}
    with pytest.raises(InputError, match=re.escape("star.iterations was 3, now 9")):
        run_dir.open(longer)
    run_dir.open(longer, may_change=("star.iterations",))
    assert run_dir.read_json(run_dir.workdir / "config.json")["star"]["iterations"] == 9
    assert names(run_dir) == ["LOCK", "config.json", "provenance.json"]


WORLD = {"star_jax": "1.0", "prompts": "ab12"}


def test_another_world_is_refused_unless_it_is_allowed_and_then_written_down(run_dir):
    """Versions, prompts, data: what differs is named, and on demand gone on with, once a change."""
    run_dir.open(CONFIG, WORLD)
    run_dir.write_text(run_dir.path(1, "DONE"), "")
    changed, before = WORLD | {"prompts": "cd34", "dev problems": "ef56"}, names(run_dir)
    said = ['prompts was "ab12", now "cd34"', 'dev problems was null, now "ef56"']
    with pytest.raises(InputError, match=re.escape("; ".join(said)) + ".*--allow_changes"):
        run_dir.open(CONFIG, changed)
    run_dir.open(CONFIG | {"seed": 5}, changed, allow_changes=True)
    run_dir.open(CONFIG | {"seed": 5}, changed)
    assert names(run_dir) == before
    stored = run_dir.read_json(run_dir.workdir / "provenance.json")
    assert stored["world"] == changed and run_dir.read_json(run_dir.workdir / "config.json")["seed"] == 5
    assert [(change["behind"], change["what"]) for change in stored["changes"]] == [
        (["iter_001"], ["seed was 0, now 5", *said])
    ]


def test_a_second_process_is_refused_until_the_first_lets_go(run_dir):
    run_dir.open(CONFIG)
    second = RunDirectory(run_dir.workdir)
    with pytest.raises(InputError, match="another run is at work there"):
        second.open(CONFIG)
    run_dir.close()
    second.open(CONFIG)
    second.close()


def test_a_refused_config_leaves_no_lock_behind(run_dir):
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
        InputError, match=r"config\.json is of a run under other .* it is missing, and there are iterations;"
    ):
        run_dir.open(CONFIG)


def test_a_workdir_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=re.escape(f"workdir {place}: cannot be made")):
            RunDirectory(place).open(CONFIG)


def test_a_file_that_cannot_be_written_is_bad_input(run_dir):
    path = run_dir.workdir / "x.json"
    (run_dir.workdir / "x.json.tmp").mkdir(parents=True)
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be written")):
        run_dir.write_json(path, {})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"{", "not JSON"),
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not JSON"),
    ],
)
def test_a_broken_json_file_is_named(tmp_path, content, reason):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(f"{path}: {reason}")):
        RunDirectory(tmp_path).read_json(path)


def test_a_written_file_replaces_the_old_one_whole(run_dir):
    path = run_dir.path(1, "filter.json")
    assert not run_dir.done(1, "filter.json")
    for value in ({"kept": 1, "note": "é\n!"}, {"kept": 2}):
        run_dir.write_json(path, value)
        assert run_dir.read_json(path) == value
    assert run_dir.done(1, "filter.json") and not run_dir.done(1) and not run_dir.done(2, "filter.json")
    assert names(run_dir) == ["iter_001/filter.json"]


def test_a_crash_before_the_renaming_leaves_the_old_file(run_dir, monkeypatch):
    path = run_dir.path(1, "DONE")
    run_dir.write_text(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_dir.write_text(path, "new")
    assert path.read_text() == "old"


def test_a_stage_is_drawn_once_and_then_read(run_dir):
    path, draw = run_dir.path(1, "samples.jsonl"), Sample()
    expected = [completion(place) for place in range(len(WANTED))]
    assert run_dir.completions(path, WANTED, draw) == expected
    assert draw.asked == list(range(len(WANTED)))
    assert list(read_jsonl(Completion, path)) == expected  # in the wanted order, though drawn back to front
    again = Sample()
    assert run_dir.completions(path, WANTED, again) == expected and again.asked == []
    assert names(run_dir) == ["iter_001/samples.jsonl"]


@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_a_stage_that_was_killed_draws_only_what_is_missing(run_dir, chunks):
    path, first, second = run_dir.path(1, "samples.jsonl"), Sample(chunks), Sample()
    with pytest.raises(KeyboardInterrupt):
        run_dir.completions(path, WANTED, first)
    assert not path.exists()
    drawn = run_dir.completions(path, WANTED, second)
    assert second.asked == list(range(len(WANTED) - 3 * chunks))
    assert drawn == [completion(place) for place in range(len(WANTED))]
    assert names(run_dir) == ["iter_001/samples.jsonl"]


@pytest.mark.parametrize(
    ("content", "whole"),
    [
        (part_lines(to_json(completion(5))) + part_lines(to_json(completion(1)))[:-7], [5]),  # killed within a line
        (part_lines(to_json(completion(5))) + part_lines(to_json(completion(1)))[:-1], [5]),  # before its newline
        (part_lines(to_json(completion(5))) + "\0\0\0\0\n" + part_lines(to_json(completion(1))), [5]),  # never written
        (part_lines(to_json(completion(5))) + part_lines(to_json(completion(1))).replace("1", "2", 1), [5]),
        (
            part_lines(to_json(completion(5)), to_json(completion(1))).replace('"iteration": 1', '"iteration": 2', 1),
            [],
        ),  # changed since
        (to_json(completion(5)) + "\n", []),
        (part_lines(to_json(completion(5)))[:9], []),
        ("", []),
        ("\n", []),
        (part_lines(*map(to_json, (completion(5), completion(5), completion(0)))), [0, 5]),
    ],
)
def test_a_torn_part_is_cut_behind_its_last_whole_line(run_dir, content, whole):
    path, draw = run_dir.path(1, "samples.jsonl"), Sample(chunks=1)
    path.parent.mkdir(parents=True)
    part = path.with_name("samples.jsonl.part")
    part.write_text(content, encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        run_dir.completions(path, WANTED, draw)
    assert draw.asked == [place for place in range(len(WANTED)) if place not in whole]
    for line in part.read_text(encoding="utf-8").splitlines():  # what was appended begins a line of its own
        assert part_lines(line[9:]) == line + "\n"
    assert run_dir.completions(path, WANTED, Sample()) == [completion(place) for place in range(len(WANTED))]
    assert names(run_dir) == ["iter_001/samples.jsonl"]


def test_a_part_torn_within_a_letter_is_cut_too(run_dir):
    path, draw = run_dir.path(1, "samples.jsonl"), Sample()
    path.parent.mkdir(parents=True)
    line = part_lines(to_json(completion(1))).encode()
    place = line.index("é".encode()) + 1
    whole = part_lines(to_json(completion(5))).encode()
    path.with_name("samples.jsonl.part").write_bytes(whole + line[:place] + b"\n")
    run_dir.completions(path, WANTED, draw)
    assert draw.asked == [0, 1, 2, 3, 4, 6, 7]


def test_a_part_that_holds_everything_draws_nothing(run_dir):
    path, draw = run_dir.path(1, "samples.jsonl"), Sample()
    path.parent.mkdir(parents=True)
    everything = [completion(place) for place in range(len(WANTED))]
    text = part_lines(*map(to_json, everything[::-1]))
    path.with_name("samples.jsonl.part").write_text(text, encoding="utf-8")
    assert run_dir.completions(path, WANTED, draw) == everything and draw.asked == []


def test_a_stage_without_problems_is_an_empty_file(run_dir):
    draw = Sample()
    assert run_dir.completions(run_dir.path(1, "rationalizations.jsonl"), [], draw) == [] and draw.asked == []
    assert run_dir.path(1, "rationalizations.jsonl").read_text() == ""


def test_discarded_files_are_gone_and_others_stay(tmp_path):
    run_dir = RunDirectory(tmp_path)
    for name in ("eval_dev.jsonl", "eval_dev.jsonl.part", "kept.jsonl"):
        run_dir.write_text(run_dir.path(1, name), "x")
    run_dir.discard(1, "eval_*")
    run_dir.discard(2, "eval_*")  # nothing is there
    assert names(run_dir) == ["iter_001/kept.jsonl"]
    assert json.loads((run_dir.path(1) / "checksums.json").read_text()).keys() == {"kept.jsonl"}


@pytest.mark.parametrize("place", [0, 30, 120, 200])
def test_a_changed_byte_is_named_with_its_line(run_dir, place):
    run_dir.open(CONFIG)
    path = run_dir.path(1, "samples.jsonl")
    run_dir.completions(path, WANTED, Sample())
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    for read in (lambda: run_dir.read_json(path), lambda: run_dir.open(CONFIG)):
        with pytest.raises(InputError, match=re.escape(f"{path}: damaged")):
            read()
    with pytest.raises(InputError, match=re.escape(f"{path}:")):  # a broken record, or one that is not what was written
        run_dir.read_lines(Completion, path)


def test_an_iteration_is_whole_as_long_as_its_files_are_there(run_dir):
    for name in ("samples.jsonl", "filter.json", "eval_dev.json"):
        run_dir.write_text(run_dir.path(1, name), "{}\n")
    assert not run_dir.whole(1)
    run_dir.write_text(run_dir.path(1, "DONE"), "1\n")
    assert run_dir.whole(1)
    run_dir.discard(1, "eval_*")
    assert run_dir.whole(1)
    run_dir.path(1, "filter.json").unlink()
    assert not run_dir.whole(1) and run_dir.done(1)


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
    crashes=st.lists(st.tuples(st.integers(1, 25), st.integers(0, 400)), max_size=6),
    size=st.integers(1, 5),
    evaluated_twice=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_whatever_dies_when_the_files_come_out_the_same(crashes, size, evaluated_twice):
    """A process a crash, the last one in peace: what one has stored none draws again, and nothing half is ever read."""
    expected = [completion(place) for place in range(len(WANTED))]
    with tempfile.TemporaryDirectory() as folder:
        stored: dict[str, set[int]] = {"samples.jsonl": set(), "eval_dev.jsonl": set()}

        def stage(run_dir: RunDirectory, name: str) -> None:
            def draw(missing, store):
                assert not stored[name].intersection(missing), "drawn twice"
                for start in range(0, len(missing), size):
                    store([completion(place) for place in missing[start : start + size]])
                    stored[name].update(missing[start : start + size])

            assert run_dir.completions(run_dir.path(1, name), WANTED, draw) == expected

        def live(run_dir: RunDirectory) -> None:
            run_dir.open(CONFIG)
            stage(run_dir, "samples.jsonl")
            if not run_dir.done(1, "filter.json"):
                run_dir.write_json(run_dir.path(1, "filter.json"), {"kept": "é"})
            assert run_dir.read_json(run_dir.path(1, "filter.json")) == {"kept": "é"}
            stage(run_dir, "eval_dev.jsonl")
            if evaluated_twice and not run_dir.done(1):
                stored["eval_dev.jsonl"].clear()
                run_dir.discard(1, "eval_*")
                stage(run_dir, "eval_dev.jsonl")
            run_dir.write_text(run_dir.path(1, "DONE"), "1\n")

        for crash in [*crashes, None]:
            run_dir = RunDirectory(folder)
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Crash):
                if crash:
                    crashing(patch, *crash)
                live(run_dir)
            run_dir.close()
        assert run_dir.whole(1) and names(run_dir) == [
            "LOCK", "config.json", "iter_001/DONE", "iter_001/eval_dev.jsonl", "iter_001/filter.json",
            "iter_001/samples.jsonl", "provenance.json",
        ]  # fmt: skip


def test_a_command_beside_the_run_loses_no_checksum(tmp_path):
    """Two processes write into one iteration at a time: each file's checksum is there, and right."""
    code = "import sys; from star_jax.runs.run_directory import RunDirectory; run_dir = RunDirectory(sys.argv[1]); "
    code += "[run_dir.write_json(run_dir.path(1, f'{sys.argv[2]}_{i}.json'), {'i': i}) for i in range(60)]"
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parents[2]
    writers = [subprocess.Popen([*command, name], cwd=root, stderr=subprocess.PIPE) for name in ("run", "beside")]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [(b"", 0)] * 2
    run_dir = RunDirectory(tmp_path)
    assert len(json.loads(run_dir.path(1, "checksums.json").read_text())) == 120
    for name in ("run", "beside"):
        for i in range(60):
            assert run_dir.read_json(run_dir.path(1, f"{name}_{i}.json")) == {"i": i}
