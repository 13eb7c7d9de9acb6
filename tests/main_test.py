"""The commands: a wrong invocation ends in one clear line and a non-zero exit status, and changes no file."""

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from star_jax import main
from star_jax.errors import InputError

ROOT = Path(__file__).parents[1]
CONFIG = "--config=configs/arithmetic.py"
FEW = ("--config.task.train_per_length=20", "--config.task.held_out_per_length=10")  # problems


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
    assert result.returncode == 2, (result.returncode, result.stdout, result.stderr)
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("star_jax: "), result.stderr
    assert expected in lines[0]


@pytest.fixture
def in_process(monkeypatch):
    """main.main of this process; afterwards standard error, log levels and signal handlers are as before."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    level, handler = logging.getLogger("star_jax").level, signal.getsignal(signal.SIGTERM)

    def run(*args: str) -> None:
        monkeypatch.setattr(sys, "argv", ["main", *args])
        main.main()

    yield run
    logging.getLogger("star_jax").setLevel(level)
    signal.signal(signal.SIGTERM, handler)


def test_wrong_settings_are_named(in_process, tmp_path):
    """What tests/cli/config_flags_test.py does not see: errors of the typed config, the task, the model, the files."""
    wrong = []
    for args, expected in (
        (["--config.star.iterations=-1"], "star.iterations must be at least 0"),
        (["--config.star.restart_from=nowhere"], "base, previous"),
        (["--config.sampling.top_p=1.5"], "top_p"),
        (["--config.task.name=chess"], "unknown task 'chess'"),
        (["--config.task.max_digits=0"], "min_digits"),
        (["--config.base.path=no/such/dir"], "no/such/dir"),
        (["--config.prompt.shots=99"], "99 are asked for"),
        (["--config.prompt.shots=1", "--config.prompt.directory=nowhere"], "nowhere/arithmetic.txt"),
        (["--config.tokenizer=no/such/dir"], "no/such/dir"),
        (["--config.model.vocab_size=5"], "vocab_size must be at least 19"),
        (["--config.model.n_heads=3"], "d_model, 64, must divide by n_heads, 3"),
        (["--config.evaluation.split=moon"], "unknown split 'moon'"),
        (["--config.mesh.tensor=64"], "does not fit"),
        (["--workdir=/dev/null/run"], "/dev/null/run"),
    ):
        try:
            in_process(CONFIG, f"--workdir={tmp_path / 'run'}", *FEW, *args)
            wrong.append((args, "accepted"))
        except InputError as error:
            if expected not in str(error):
                wrong.append((args, str(error)))
    assert not wrong
    assert not (tmp_path / "run" / "iter_000").exists()


def test_a_wrong_invocation_is_one_line(tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    assert_one_clear_line(call(CONFIG, workdir, "--config.star.steps=many"), "many")
    assert not (tmp_path / "run").exists()


def test_a_run_directory_of_another_config_is_refused_and_keeps_its_files(in_process, tmp_path):
    stored = '{"seed": 7}\n'
    (tmp_path / "config.json").write_text(stored)
    with pytest.raises(InputError, match="seed was 7, now 0"):
        in_process(CONFIG, f"--workdir={tmp_path}", *FEW)
    assert (tmp_path / "config.json").read_text() == stored


def test_a_file_where_the_run_directory_should_be(in_process, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(InputError, match="run: cannot be made"):
        in_process(CONFIG, f"--workdir={tmp_path / 'run'}", *FEW)
    assert (tmp_path / "run").read_text() == "mine"


@pytest.mark.parametrize("module", ["evaluate", pytest.param("sample", marks=pytest.mark.slow), "report"])
def test_other_commands_name_a_missing_run(module, tmp_path):
    assert_one_clear_line(call(f"--workdir={tmp_path / 'none'}", module=module), str(tmp_path / "none"))


@pytest.mark.parametrize(
    "module",
    [
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("evaluate", "sample", "convert", "preflight", "study")),
        "main",
    ],
)
def test_help_describes_every_flag(module):
    result = call("--help", module=module)
    assert (result.returncode, result.stderr) == (0, "")
    description, _, options = result.stdout.partition("\noptions:\n")
    lines = options.splitlines()
    flags = [i for i, line in enumerate(lines) if line.startswith("  -")]
    for i in flags:  # its help stands in the same line, in the next one, or in the description of the command
        described = lines[i].split()[0] in description or len(lines[i].strip().split("  ")) > 1
        assert described or lines[i + 1].startswith(" " * 20), lines[i]
    assert len(flags) > 3
