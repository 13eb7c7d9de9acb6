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
from star_jax.runs.run_directory import Ledger

CONFIG = {"seed": 0, "star": {"iterations": 3, "steps": 40}, "base": {"stages": ({"gold": (1.0,)},)}}
WANTED = [(f"t-{i}", draw) for i in range(4) for draw in range(2)]


def completion(place: int) -> Completion:
    name, draw = WANTED[place]
    return Completion(name, 1, draw, False, f"text {place}\n!é", None, "wrong", None, -0.5, 3, f"seed {place}")


class Draw:
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
def ledger(tmp_path):
    opened = Ledger(tmp_path / "run")
    yield opened
    opened.close()


def names(ledger):
    """All files but the checksums."""
    files = (path for path in ledger.workdir.rglob("*") if path.is_file() and path.name != "checksums.json")
    return sorted(str(path.relative_to(ledger.workdir)) for path in files)


def part_lines(*lines: str) -> str:
    """As an unfinished file holds them, each behind its checksum."""
    return "".join(f"{zlib.crc32(line.encode()):08x} {line}\n" for line in lines)


def test_a_run_is_opened_again_with_the_same_config(ledger):
    ledger.open(CONFIG)
    ledger.open(CONFIG)
    assert names(ledger) == ["LOCK", "config.json", "provenance.json"]
    assert ledger.read_json(ledger.workdir / "config.json") == json.loads(json.dumps(CONFIG))


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
def test_another_config_is_refused_and_the_keys_are_named(ledger, change, reasons):
    ledger.open(CONFIG)
    before = (ledger.workdir / "config.json").read_bytes()
    with pytest.raises(InputError, match="another --workdir") as caught:
        ledger.open(CONFIG | change, may_change=("star.iterations",))
    assert all(reason in str(caught.value) for reason in reasons) and "star.iterations" not in str(caught.value)
    assert (ledger.workdir / "config.json").read_bytes() == before


def test_what_may_change_is_stored_anew(ledger):
    ledger.open(CONFIG)
    longer = CONFIG | {"star": {"iterations": 9, "steps": 40}}
    with pytest.raises(InputError, match=re.escape("star.iterations was 3, now 9")):
        ledger.open(longer)
    ledger.open(longer, may_change=("star.iterations",))
    assert ledger.read_json(ledger.workdir / "config.json")["star"]["iterations"] == 9
    assert names(ledger) == ["LOCK", "config.json", "provenance.json"]


WORLD = {"star_jax": "1.0", "prompts": "ab12"}


def test_another_world_is_refused_unless_it_is_allowed_and_then_written_down(ledger):
    """Versions, prompts, data: what differs is named, and on demand gone on with, once a change."""
    ledger.open(CONFIG, WORLD)
    ledger.write_text(ledger.path(1, "DONE"), "")
    changed, before = WORLD | {"prompts": "cd34", "dev problems": "ef56"}, names(ledger)
    said = ['prompts was "ab12", now "cd34"', 'dev problems was null, now "ef56"']
    with pytest.raises(InputError, match=re.escape("; ".join(said)) + ".*--allow_changes"):
        ledger.open(CONFIG, changed)
    ledger.open(CONFIG | {"seed": 5}, changed, allow_changes=True)
    ledger.open(CONFIG | {"seed": 5}, changed)
    assert names(ledger) == before
    stored = ledger.read_json(ledger.workdir / "provenance.json")
    assert stored["world"] == changed and ledger.read_json(ledger.workdir / "config.json")["seed"] == 5
    assert [(change["behind"], change["what"]) for change in stored["changes"]] == [
        (["iter_001"], ["seed was 0, now 5", *said])
    ]


def test_a_second_process_is_refused_until_the_first_lets_go(ledger):
    ledger.open(CONFIG)
    second = Ledger(ledger.workdir)
    with pytest.raises(InputError, match="another run is at work there"):
        second.open(CONFIG)
    ledger.close()
    second.open(CONFIG)
    second.close()


def test_a_refused_config_leaves_no_lock_behind(ledger):
    ledger.open(CONFIG)
    ledger.close()
    with pytest.raises(InputError, match="seed"):
        ledger.open(CONFIG | {"seed": 1})
    second = Ledger(ledger.workdir)
    second.open(CONFIG)
    second.close()


def test_iterations_without_a_config_are_refused(ledger):
    ledger.path(0).mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"config\.json is of a run under other .* it is missing, and there are iterations;"
    ):
        ledger.open(CONFIG)


def test_a_workdir_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match=re.escape(f"workdir {place}: cannot be made")):
            Ledger(place).open(CONFIG)


def test_a_file_that_cannot_be_written_is_bad_input(ledger):
    path = ledger.workdir / "x.json"
    (ledger.workdir / "x.json.tmp").mkdir(parents=True)
    with pytest.raises(InputError, match=re.escape(f"{path}: cannot be written")):
        ledger.write_json(path, {})


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
        Ledger(tmp_path).read_json(path)


def test_a_written_file_replaces_the_old_one_whole(ledger):
    path = ledger.path(1, "filter.json")
    assert not ledger.done(1, "filter.json")
    for value in ({"kept": 1, "note": "é\n!"}, {"kept": 2}):
        ledger.write_json(path, value)
        assert ledger.read_json(path) == value
    assert ledger.done(1, "filter.json") and not ledger.done(1) and not ledger.done(2, "filter.json")
    assert names(ledger) == ["iter_001/filter.json"]


def test_a_crash_before_the_renaming_leaves_the_old_file(ledger, monkeypatch):
    path = ledger.path(1, "DONE")
    ledger.write_text(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ledger.write_text(path, "new")
    assert path.read_text() == "old"


def test_a_stage_is_drawn_once_and_then_read(ledger):
    path, draw = ledger.path(1, "samples.jsonl"), Draw()
    expected = [completion(place) for place in range(len(WANTED))]
    assert ledger.completions(path, WANTED, draw) == expected
    assert draw.asked == list(range(len(WANTED)))
    assert list(read_jsonl(Completion, path)) == expected  # in the wanted order, though drawn back to front
    again = Draw()
    assert ledger.completions(path, WANTED, again) == expected and again.asked == []
    assert names(ledger) == ["iter_001/samples.jsonl"]


@pytest.mark.parametrize("chunks", [0, 1, 2])
def test_a_stage_that_was_killed_draws_only_what_is_missing(ledger, chunks):
    path, first, second = ledger.path(1, "samples.jsonl"), Draw(chunks), Draw()
    with pytest.raises(KeyboardInterrupt):
        ledger.completions(path, WANTED, first)
    assert not path.exists()
    drawn = ledger.completions(path, WANTED, second)
    assert second.asked == list(range(len(WANTED) - 3 * chunks))
    assert drawn == [completion(place) for place in range(len(WANTED))]
    assert names(ledger) == ["iter_001/samples.jsonl"]


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
def test_a_torn_part_is_cut_behind_its_last_whole_line(ledger, content, whole):
    path, draw = ledger.path(1, "samples.jsonl"), Draw(chunks=1)
    path.parent.mkdir(parents=True)
    part = path.with_name("samples.jsonl.part")
    part.write_text(content, encoding="utf-8")
    with pytest.raises(KeyboardInterrupt):
        ledger.completions(path, WANTED, draw)
    assert draw.asked == [place for place in range(len(WANTED)) if place not in whole]
    for line in part.read_text(encoding="utf-8").splitlines():  # what was appended begins a line of its own
        assert part_lines(line[9:]) == line + "\n"
    assert ledger.completions(path, WANTED, Draw()) == [completion(place) for place in range(len(WANTED))]
    assert names(ledger) == ["iter_001/samples.jsonl"]


def test_a_part_torn_within_a_letter_is_cut_too(ledger):
    path, draw = ledger.path(1, "samples.jsonl"), Draw()
    path.parent.mkdir(parents=True)
    line = part_lines(to_json(completion(1))).encode()
    place = line.index("é".encode()) + 1
    whole = part_lines(to_json(completion(5))).encode()
    path.with_name("samples.jsonl.part").write_bytes(whole + line[:place] + b"\n")
    ledger.completions(path, WANTED, draw)
    assert draw.asked == [0, 1, 2, 3, 4, 6, 7]


def test_a_part_that_holds_everything_draws_nothing(ledger):
    path, draw = ledger.path(1, "samples.jsonl"), Draw()
    path.parent.mkdir(parents=True)
    everything = [completion(place) for place in range(len(WANTED))]
    text = part_lines(*map(to_json, everything[::-1]))
    path.with_name("samples.jsonl.part").write_text(text, encoding="utf-8")
    assert ledger.completions(path, WANTED, draw) == everything and draw.asked == []


def test_a_stage_without_problems_is_an_empty_file(ledger):
    draw = Draw()
    assert ledger.completions(ledger.path(1, "rationalizations.jsonl"), [], draw) == [] and draw.asked == []
    assert ledger.path(1, "rationalizations.jsonl").read_text() == ""


def test_discarded_files_are_gone_and_others_stay(tmp_path):
    ledger = Ledger(tmp_path)
    for name in ("eval_dev.jsonl", "eval_dev.jsonl.part", "kept.jsonl"):
        ledger.write_text(ledger.path(1, name), "x")
    ledger.discard(1, "eval_*")
    ledger.discard(2, "eval_*")  # nothing is there
    assert names(ledger) == ["iter_001/kept.jsonl"]
    assert json.loads((ledger.path(1) / "checksums.json").read_text()).keys() == {"kept.jsonl"}


@pytest.mark.parametrize("place", [0, 30, 120, 200])
def test_a_changed_byte_is_named_with_its_line(ledger, place):
    ledger.open(CONFIG)
    path = ledger.path(1, "samples.jsonl")
    ledger.completions(path, WANTED, Draw())
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    line = bytes(content[:place]).count(b"\n") + 1
    for read in (lambda: ledger.read_json(path), lambda: ledger.open(CONFIG)):
        with pytest.raises(InputError, match=re.escape(f"{path}:{line}: damaged")):
            read()
    with pytest.raises(InputError, match=re.escape(f"{path}:")):  # a broken record, or one that is not what was written
        ledger.read_lines(Completion, path)


def test_an_iteration_is_whole_as_long_as_its_files_are_there(ledger):
    for name in ("samples.jsonl", "filter.json", "eval_dev.json"):
        ledger.write_text(ledger.path(1, name), "{}\n")
    assert not ledger.whole(1)
    ledger.write_text(ledger.path(1, "DONE"), "1\n")
    assert ledger.whole(1)
    ledger.discard(1, "eval_*")
    assert ledger.whole(1)
    ledger.path(1, "filter.json").unlink()
    assert not ledger.whole(1) and ledger.done(1)


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

        def stage(ledger: Ledger, name: str) -> None:
            def draw(missing, store):
                assert not stored[name].intersection(missing), "drawn twice"
                for start in range(0, len(missing), size):
                    store([completion(place) for place in missing[start : start + size]])
                    stored[name].update(missing[start : start + size])

            assert ledger.completions(ledger.path(1, name), WANTED, draw) == expected

        def live(ledger: Ledger) -> None:
            ledger.open(CONFIG)
            stage(ledger, "samples.jsonl")
            if not ledger.done(1, "filter.json"):
                ledger.write_json(ledger.path(1, "filter.json"), {"kept": "é"})
            assert ledger.read_json(ledger.path(1, "filter.json")) == {"kept": "é"}
            stage(ledger, "eval_dev.jsonl")
            if evaluated_twice and not ledger.done(1):
                stored["eval_dev.jsonl"].clear()
                ledger.discard(1, "eval_*")
                stage(ledger, "eval_dev.jsonl")
            ledger.write_text(ledger.path(1, "DONE"), "1\n")

        for crash in [*crashes, None]:
            ledger = Ledger(folder)
            with pytest.MonkeyPatch.context() as patch, contextlib.suppress(Crash):
                if crash:
                    crashing(patch, *crash)
                live(ledger)
            ledger.close()
        assert ledger.whole(1) and names(ledger) == [
            "LOCK", "config.json", "iter_001/DONE", "iter_001/eval_dev.jsonl", "iter_001/filter.json",
            "iter_001/samples.jsonl", "provenance.json",
        ]  # fmt: skip


def test_a_command_beside_the_run_loses_no_checksum(tmp_path):
    """Two processes write into one iteration at a time: each file's checksum is there, and right."""
    code = "import sys; from star_jax.runs.run_directory import Ledger; ledger = Ledger(sys.argv[1]); "
    code += "[ledger.write_json(ledger.path(1, f'{sys.argv[2]}_{i}.json'), {'i': i}) for i in range(60)]"
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).parents[2]
    writers = [subprocess.Popen([*command, name], cwd=root, stderr=subprocess.PIPE) for name in ("run", "beside")]
    assert [(writer.communicate()[1], writer.returncode) for writer in writers] == [(b"", 0)] * 2
    ledger = Ledger(tmp_path)
    assert len(json.loads(ledger.path(1, "checksums.json").read_text())) == 120
    for name in ("run", "beside"):
        for i in range(60):
            assert ledger.read_json(ledger.path(1, f"{name}_{i}.json")) == {"i": i}
