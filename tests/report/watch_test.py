"""python -m star_jax.report --watch: the page follows its runs until they are finished."""

import functools
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star_jax.errors import InputError
from star_jax.report import watch
from tests.support.commands import ROOT
from tests.support.pages import words_of
from tests.support.report_runs import make_run, remove


@pytest.fixture
def watching(tmp_path):
    """Starts the command on an unfinished run; kills it at the end."""
    run = make_run(tmp_path / "run")
    (run / "iter_002/DONE").unlink()
    remove(run, "iter_002/eval_*")
    command = [sys.executable, "-m", "star_jax.report", f"--workdir={run}", "--watch=1"]
    # Children of a shell's background job ignore interrupts.
    restore = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, text=True, preexec_fn=restore, **pipes)
    assert process.stdout.readline().strip() == str(run / "live.html")
    yield run, process
    process.kill()
    process.wait()


def page_with(path: Path, words: str) -> str:
    """The page once it contains these words."""
    deadline = time.monotonic() + 60
    while words not in words_of(text := path.read_text(encoding="utf-8")):
        assert time.monotonic() < deadline, f"{words!r} never came"
        time.sleep(0.05)
    return text


def test_it_follows_the_run_and_ends_with_it(watching, tmp_path):
    run, process = watching
    page = run / "live.html"
    assert '<meta http-equiv="refresh" content="1">' in page_with(page, "evaluating comes next")
    (run / "iter_002/eval_dev.jsonl.part").write_text("a line\nanother line\n")
    page_with(page, "evaluating, 2 sampled so far")
    (run / "iter_002/filter.json").write_text("{")  # repaired below: the watch must survive it
    assert "filter.json:1: invalid JSON" in process.stderr.readline()
    whole = make_run(tmp_path / "whole")
    for name in ("filter.json", "eval_dev.jsonl", "eval_dev.json", "DONE"):
        (whole / "iter_002" / name).rename(run / "iter_002" / name)
    assert process.wait(timeout=60) == 0 and process.stdout.read().strip() == f"{page}: finished"
    text = page_with(page, "done: 2 of 2 iterations")
    assert "refresh" not in text and not (run / "report.html").exists()


def test_a_run_that_is_being_set_up_is_waited_for(tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    run.mkdir()
    (run / "LOCK").write_text("{}")
    whole = make_run(tmp_path / "whole")
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: shutil.copytree(whole, run, dirs_exist_ok=True))
    watch.watch([run], None, 1)
    assert capsys.readouterr().out.splitlines() == [
        f"{run}: waiting for config.json",
        f"{run / 'live.html'}",
        f"{run / 'live.html'}: finished",
    ]


def test_a_directory_that_a_run_left_before_it_had_a_config_is_refused(tmp_path):
    (tmp_path / "LOCK").touch()  # as a released lock is
    with pytest.raises(InputError, match="not a run directory"):
        watch.watch([tmp_path], None, 1)


@pytest.mark.slow
def test_an_interrupt_ends_it(watching):
    _, process = watching
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 0 and process.stderr.read() == ""
