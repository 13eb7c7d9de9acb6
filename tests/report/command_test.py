"""python -m star_jax.report: arguments, mistakes, imports."""

import sys

import pytest

from star_jax.errors import InputError
from star_jax.report.__main__ import main
from tests.support.commands import python
from tests.support.report_runs import make_run


def test_the_command_writes_the_page(tmp_path):
    arguments = (f"--workdir={make_run(tmp_path / 'run')}", f"--output={tmp_path / 'out.html'}")
    result = python("-m", "star_jax.report", *arguments)
    assert (result.returncode, result.stderr) == (0, "") and result.stdout.strip() == str(tmp_path / "out.html")


def test_a_mistake_takes_one_line():
    result = python("-m", "star_jax.report", "--workdir=absent")
    assert (result.returncode, result.stdout) == (2, "") and result.stderr.count("\n") == 1  # so no traceback


def test_mistakes(monkeypatch, tmp_path, capsys):
    mistakes = {
        "": "--workdir",
        "--workdir=absent": "no such directory",
        f"--workdir={tmp_path}": "neither config.json nor iter_000",
        f"--workdir={tmp_path} --nonsense": "--nonsense",
        f"--workdir={tmp_path} --watch=0": "--watch must be at least 1",
    }
    for arguments, reason in mistakes.items():
        monkeypatch.setattr(sys, "argv", ["report", *arguments.split()])
        with pytest.raises(InputError, match=reason) as caught:
            main()
        assert "\n" not in str(caught.value), arguments
    monkeypatch.setattr(sys, "argv", ["report", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "--workdir" in capsys.readouterr().out


def test_nothing_heavy_is_imported():
    """The report must open without JAX: it is written next to a training job, or on a laptop."""
    heavy = "{'jax', 'tensorflow', 'seqio', 'star_jax.runs.run_directory', 'star_jax.config'}"
    result = python("-c", f"import sys, star_jax.report; print(*{heavy} & sys.modules.keys())")
    assert result.returncode == 0 and result.stdout.strip() == ""
