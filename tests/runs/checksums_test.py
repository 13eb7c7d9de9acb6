"""star_jax.runs.checksums: a replaced file is the old or the new one, a log is checked as far as it was sealed."""

import json
from pathlib import Path

import pytest

from star_jax.errors import InputError
from star_jax.runs import atomic_files, checksums
from star_jax.runs.layout import read_config
from star_jax.runs.metrics import MetricsLog
from star_jax.runs.run_directory import RunDirectory
from tests.support.advice import follow_advice

CONFIG = {"seed": 0, "star": {"iterations": 3}}
LONGER = {"seed": 0, "star": {"iterations": 9}}


class Killed(BaseException):
    """The process is gone."""


def refused(path: Path) -> bool:
    try:
        checksums.read_verified(path)
    except InputError as error:
        return str(error).startswith(f"{path}: damaged or edited")
    return False


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_a_file_that_is_replaced_is_the_old_or_the_new_one_whenever_the_process_dies(tmp_path, monkeypatch):
    """Also a file of an earlier version, which has no checksum. A flipped bit is seen after the kill, too."""
    write, outcomes = atomic_files.atomic_write, []
    for with_checksum in (True, False):
        for writes in range(4):
            folder = tmp_path / f"{with_checksum}{writes}"
            run_dir, path = RunDirectory(folder), folder / "eval_dev.json"
            run_dir.write_json(path, {"n": 1})
            if not with_checksum:
                (folder / checksums.NAME).unlink()
            left = [writes]

            def write_or_die(*args, left=left):
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
                write(*args)

            with monkeypatch.context() as patch:
                patch.setattr(atomic_files, "atomic_write", write_or_die)
                try:
                    run_dir.write_json(path, {"n": 2})
                except Killed:
                    outcomes.append(writes)
            assert run_dir.read_json(path) == {"n": 1 if writes < 2 else 2}, writes
            flip(path, 6)
            assert refused(path) == (with_checksum or writes > 0), writes
            run_dir.write_json(path, {"n": 3})
            assert run_dir.read_json(path) == {"n": 3}
    assert outcomes == [0, 1, 2] * 2


def test_the_sealed_part_of_a_log_is_checked_and_what_follows_may_grow(tmp_path):
    run_dir, log = RunDirectory(tmp_path), MetricsLog(tmp_path)
    for step in range(3):
        log.log("fine_tune", 1, step, {"loss": 1.0})
        checksums.check_file(log.path)
        run_dir.seal(log.path)
    log.log("fine_tune", 1, 3, {"loss": 1.0})
    whole = log.path.read_bytes()
    sealed = whole.index(b'"step": 3') - 80
    for content in (whole, whole[:-5], whole + whole):
        log.path.write_bytes(content)
        checksums.check_file(log.path)
    for content in (whole[:sealed], b"", whole[1:], whole.replace(b"1.0", b"2.0", 1)):
        log.path.write_bytes(content)
        for check in (checksums.check_file, run_dir.seal):
            with pytest.raises(InputError, match=r"metrics\.jsonl: damaged or edited.*delete the file to continue"):
                check(log.path)
    log.path.unlink()
    run_dir.seal(log.path)
    assert log.path not in checksums.files(tmp_path)
    log.log("fine_tune", 1, 4, {"loss": 1.0})
    run_dir.seal(log.path)
    log.path.unlink()
    run_dir.open(CONFIG)  # a new log begins
    log.log("fine_tune", 1, 4, {"loss": 1.0})
    run_dir.seal(log.path)
    checksums.check_file(log.path)
    run_dir.close()


def test_an_edited_config_is_named_and_both_ways_on_work(tmp_path):
    for keep_edit in (False, True):
        run_dir = RunDirectory(tmp_path / str(keep_edit))
        run_dir.open(CONFIG)
        run_dir.path(1).mkdir()
        path = run_dir.workdir / "config.json"
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 7'))
        for read in (lambda run_dir=run_dir: run_dir.open(CONFIG), run_dir.read_config):
            with pytest.raises(InputError, match=r"config\.json: damaged or edited.*run's command.*allow_changes") as e:
                read()
        if keep_edit:
            entries = json.loads((run_dir.workdir / checksums.NAME).read_text())
            del entries["config.json"]
            (run_dir.workdir / checksums.NAME).write_text(json.dumps(entries))
            with pytest.raises(InputError, match="seed was 7, now 0"):
                run_dir.open(CONFIG)
            run_dir.open({**CONFIG, "seed": 7})
        else:
            assert follow_advice(run_dir.workdir, str(e.value))
            run_dir.open(CONFIG, allow_changes=True)
        assert read_config(run_dir.workdir)["seed"] == 7 * keep_edit
        run_dir.open({**LONGER, "seed": 7 * keep_edit}, may_change=("star.iterations",))
        flip(path, 30)
        assert refused(path)
        run_dir.close()


def test_a_copied_run_and_one_of_an_earlier_version_are_opened(tmp_path):
    run_dir = RunDirectory(tmp_path)
    run_dir.open(CONFIG)
    run_dir.close()
    (tmp_path / checksums.NAME).unlink()
    run_dir.open(CONFIG)
    assert json.loads((tmp_path / checksums.NAME).read_text()).keys() == {"config.json", "provenance.json"}
    run_dir.close()
