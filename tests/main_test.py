"""The command line: wrong invocations end in one clear line and a non-zero exit, with nothing lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = "--config=configs/arithmetic.py"


def call(*args: str, module: str = "main", cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"star_jax.{module}", *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_one_clear_line(result: subprocess.CompletedProcess, expected: str) -> None:
    assert result.returncode not in (0, None), result.stdout
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("star_jax: "), result.stderr
    assert expected in lines[0]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "give --config=FILE"),
        (["--config=configs/no_such.py"], "configs/no_such.py"),
        ([CONFIG + ":nonsense"], "nonsense"),
        ([CONFIG, "--config.star.nonsense=1"], "nonsense"),
        ([CONFIG, "--config.star.steps=many"], "many"),
        ([CONFIG, "--config.star.iterations=-1"], "star.iterations must be at least 0"),
        ([CONFIG, "--config.star.restart_from=nowhere"], "base, previous"),
        ([CONFIG, "--config.sampling.top_p=1.5"], "top_p"),
        ([CONFIG, "--config.task.name=chess"], "unknown task 'chess'"),
        ([CONFIG, "--config.task.max_digits=0"], "min_digits"),
        ([CONFIG, "--config.base.path=no/such/dir"], "no/such/dir"),
        ([CONFIG, "--config.prompt.shots=99"], "99 are asked for"),
        ([CONFIG, "--config.prompt.shots=1", "--config.prompt.directory=nowhere"], "nowhere/arithmetic.txt"),
        ([CONFIG, "--config.tokenizer=no/such/dir"], "no/such/dir"),
        ([CONFIG, "--config.model.vocab_size=5"], "vocab_size must be at least 19"),
        ([CONFIG, "--config.model.n_heads=3"], "d_model must divide"),
        ([CONFIG, "--config.evaluation.split=moon"], "unknown split 'moon'"),
        ([CONFIG, "--config.mesh.tensor=64"], "does not fit"),
        ([CONFIG, "surplus"], "surplus"),
        ([CONFIG, "--nonsense=1"], "nonsense"),
        ([CONFIG, "--workdir=/dev/null/run"], "/dev/null/run"),
    ],
)
def test_a_wrong_invocation_is_one_line(args, expected, tmp_path):
    workdir = [] if any(a.startswith("--workdir") for a in args) else [f"--workdir={tmp_path / 'run'}"]
    assert_one_clear_line(call(*args, *workdir), expected)
    assert not (tmp_path / "run" / "iter_000").exists()


def test_a_workdir_of_another_config_is_refused_and_keeps_its_files(tmp_path):
    stored = '{"seed": 7}\n'
    (tmp_path / "config.json").write_text(stored)
    assert_one_clear_line(call(CONFIG, f"--workdir={tmp_path}"), "seed was 7, now 0")
    assert (tmp_path / "config.json").read_text() == stored


def test_a_file_where_the_workdir_should_be(tmp_path):
    (tmp_path / "run").write_text("mine")
    assert_one_clear_line(call(CONFIG, f"--workdir={tmp_path / 'run'}"), "cannot be made")
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("module", ["evaluate", "sample", "report"])
def test_other_commands_name_a_missing_run(module, tmp_path):
    assert_one_clear_line(call(f"--workdir={tmp_path / 'none'}", module=module), str(tmp_path / "none"))


@pytest.mark.parametrize("module", ["main", "evaluate", "sample", "report"])
def test_help_says_what_there_is(module):
    result = call("--help", module=module)
    assert "--workdir" in result.stdout and "Traceback" not in result.stderr
