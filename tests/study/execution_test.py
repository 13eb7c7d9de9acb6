"""A study from end to end: its runs are those of star_jax.main, and its table survives kills."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from star_jax.algorithms import star
from star_jax.errors import InputError
from star_jax.study import execution, findings
from star_jax.study.spec import Place
from tests.support.commands import ROOT
from tests.support.runs import assert_same_result, run_with
from tests.support.studies import small_study, study_file


@pytest.fixture(scope="module")
def made(base, tmp_path_factory) -> Path:
    """The directory of a finished study of one seed. Read only."""
    workdir, study = tmp_path_factory.mktemp("study"), small_study(base)
    for place in execution.places(study):
        assert execution.make(study, workdir, place, allow_changes=False)
    return workdir


def test_the_runs_are_those_of_the_same_config_on_its_own(base, made, tmp_path):
    """The base's evaluation, too, although an arm takes it from the run that made the base."""
    alone = run_with(base, tmp_path / "alone", tensorboard=True).workdir  # another option: no part of an evaluation
    of_study = made / "with/seed_0"
    assert_same_result(alone, of_study)
    for name in ("eval_dev.json", "eval_dev.jsonl", "eval_dev.safetensors"):
        assert (alone / "iter_000" / name).read_bytes() == (of_study / "iter_000" / name).read_bytes()
    assert_same_result(made / "same/seed_0", of_study)


def test_the_base_is_evaluated_once(base, tmp_path, monkeypatch):
    from star_jax.algorithms import stages

    calls, generate = [], stages.generate

    def counted(run_dir, path, *args):
        calls.append((run_dir.workdir.parent.name, path.parent.name, path.name))
        return generate(run_dir, path, *args)

    monkeypatch.setattr(stages, "generate", counted)
    arms = {"with": {}, "hot": {"sampling": {"temperature": 0.9}}}
    study = small_study(base, arms=arms, evaluation__problems=20)  # unlike the run that made the fixture's base
    for place in execution.places(study):
        execution.make(study, tmp_path, place, allow_changes=False)
    assert [call for call in calls if call[1:] == ("iter_000", "eval_dev.jsonl")] == [
        ("base", "iter_000", "eval_dev.jsonl")
    ]


def test_a_finished_run_is_left_and_a_changed_one_refused(base, made, monkeypatch):
    study = small_study(base)
    with monkeypatch.context() as patch:
        patch.setattr(star, "run", lambda *args: pytest.fail("a finished run was started"))
        for place in execution.places(study):
            assert not execution.make(study, made, place, allow_changes=False)
    changed = small_study(base, star__steps=7)
    with pytest.raises(InputError, match=r"base/seed_0.*star\.steps"):
        execution.make(changed, made, Place("with", 0), allow_changes=False)


def test_a_moved_study_is_still_finished(base, made, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    subprocess.run(["cp", "-r", str(made), str(moved)], check=True)
    monkeypatch.setattr(star, "run", lambda *args: pytest.fail("a finished run was started"))
    study = small_study(base)
    for place in execution.places(study):
        execution.make(study, moved, place, allow_changes=False)


def test_the_findings_are_those_of_the_runs(base, made):
    found = findings.read(small_study(base), made, {})
    assert list(found.outcomes) == ["base", "with", "same", "none"]
    same, none = found.differences
    assert (same.arm, same.gain, same.p_models, same.sampled, same.trained) == ("same", 0, 1, 1, 1)
    assert none.sampled < 1


def test_commands_are_one_for_each_run(base):
    study = small_study(base, seeds=(0, 1))
    argv = ["--config=a b.py", "--config.common.star.iterations=1"]
    lines = execution.commands(study, argv, "all")
    assert lines == execution.commands(study, argv, "all")
    words = [shlex.split(line) for line in lines]
    assert {tuple(line[1:5]) for line in words} == {("-m", "star_jax.study", *argv)}
    runs = [tuple(line[5:]) for line in words]
    assert runs[:2] == [("--arm=base", "--seed=0"), ("--arm=with", "--seed=0")] and len(set(runs)) == 8
    bases, arms = (execution.commands(study, argv, which) for which in ("bases", "arms"))
    assert sorted(bases + arms) == sorted(lines) and all("--arm=base " in line for line in bases)


def command(file: Path, workdir: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "star_jax.study", f"--config={file}", f"--workdir={workdir}", *flags]


def run_command(words: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=500)


def environment() -> dict[str, str]:
    return {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_printed_commands_make_the_same_study(base, tmp_path):
    file = study_file(tmp_path, base, arms={"with": {}, "none": {"star": {"rationalize": "none"}}})
    whole = run_command(command(file, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr[-2000:]
    printed = run_command(command(file, tmp_path / "parts", "--print"))
    lines = printed.stdout.splitlines()
    assert printed.returncode == 0 and len(lines) == 3
    for line in lines:
        done = subprocess.run(line, shell=True, cwd=ROOT, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    table = run_command(command(file, tmp_path / "parts"))
    assert table.stdout.replace("parts/study.html", "whole/study.html") == whole.stdout
    parts = (tmp_path / "parts/study.html").read_text()
    assert parts.replace("parts", "whole") == (tmp_path / "whole/study.html").read_text()


@pytest.mark.slow
def test_a_run_that_fails_costs_its_row_only(base, tmp_path):
    arms = {"with": {}, "strict": {"selection": {"min_kept": 5000}}}
    file = study_file(tmp_path, base, arms=arms, star__iterations=1)
    done = run_command(command(file, tmp_path / "runs"))
    assert done.returncode == 2
    assert re.search(r"^star_jax: 1 of 3 runs failed; the first, strict, seed 0: iteration 1 kept", done.stderr, re.M)
    assert re.search(r"^2 +strict +0 of 1, 1 failed", done.stdout, re.MULTILINE), done.stdout
    assert "iteration 1 kept" in (tmp_path / "runs/study.html").read_text()


def kills() -> int:
    return int(os.environ.get("STUDY_KILLS", "4"))


@pytest.mark.slow
def test_a_killed_study_ends_with_the_same_bytes(base, tmp_path):
    """STUDY_KILLS=20: more of them."""
    file, rng = study_file(tmp_path, base, seeds=(0, 1)), random.Random(0)
    started = time.monotonic()
    expected = run_command(command(file, tmp_path / "undisturbed"))
    seconds = time.monotonic() - started
    assert expected.returncode == 0, expected.stderr[-2000:]
    number = left = 0
    for _ in range(kills()):
        if not left:
            number, left = number + 1, 5  # five kills for each study, or it would be finished
        left -= 1
        workdir = tmp_path / f"killed_{number}"
        process = subprocess.Popen(
            command(file, workdir), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(0.2, 0.8) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    for n in range(1, number + 1):
        done = run_command(command(file, tmp_path / f"killed_{n}"))
        assert done.stdout.replace(f"killed_{n}", "undisturbed") == expected.stdout, done.stderr[-2000:]
        page_ = (tmp_path / f"killed_{n}/study.html").read_text().replace(f"killed_{n}", "undisturbed")
        assert page_ == (tmp_path / "undisturbed/study.html").read_text()
