"""star_jax.errors, star_jax.cli.parser: bad input ends a command with one line, a bug with a traceback."""

import re
from pathlib import Path

import pytest

from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.errors import ExitStatus, InputError, Stopped, disk_errors_as_input_errors, is_peer_failure


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


def test_expected_errors_are_one_line_and_a_status(capsys):
    wrong = []
    for error, status, line in (
        (InputError("give --config=FILE"), 2, "star_jax: give --config=FILE\n"),
        (InputError("first\n   second\tthird\n"), 2, "star_jax: first second third\n"),
        (InputError("red \x1b[31m text"), 2, "star_jax: red ␛[31m text\n"),
        (InputError(""), 2, "star_jax: \n"),
        (InputError(f"c.json: {'x' * 10**6}; fix it"), 2, f"star_jax: c.json: {'x' * 1992} ... {'x' * 992}; fix it\n"),
        (PermissionError(13, "denied", "a/b"), 2, "star_jax: a/b: cannot be used (denied); fix and rerun\n"),
        (OSError(5, "I/O error"), 2, "star_jax: the file system: cannot be used (I/O error); fix and rerun\n"),
        (KeyboardInterrupt(), 130, "star_jax: interrupted; the same command continues the run\n"),
        (Stopped(), 75, "star_jax: stopped as requested; all results are stored, the same command continues the run\n"),
    ):
        with pytest.raises(SystemExit) as caught:
            exit_on_bad_input(raising(error))
        out, err = capsys.readouterr()
        if (caught.value.code, out, err) != (status, "", line):
            wrong.append((error, caught.value.code, out, err))
    assert not wrong


def test_the_documented_statuses_are_the_commands():
    """One table: the README's rows and --help's are those of ExitStatus, and none means two things."""
    text = (Path(__file__).parents[1] / "star_jax/runs/README.md").read_text()
    rows = dict(re.findall(r"^\| (\d+) \| (.*) \|$", text, re.MULTILINE))
    assert rows == {str(status.value): status.meaning for status in ExitStatus}
    assert [status.value for status in ExitStatus] == [0, 1, 2, 3, 75, 130]
    help_text = Parser("main", "A command.").format_help()
    assert all(f"  {value:<22}{meaning}\n" in help_text for value, meaning in rows.items())


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(3), FileNotFoundError(2, "No such file")])
def test_anything_else_passes_through(error, capsys):
    with pytest.raises(type(error)) as caught:
        exit_on_bad_input(raising(error))
    assert caught.value is error
    assert capsys.readouterr().err == ""


def test_a_main_that_succeeds_returns():
    called = []
    exit_on_bad_input(lambda: called.append(1))
    assert called == [1]


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_the_loss_of_another_process_is_not_a_disk_error(kind, tmp_path):
    """The runtime reports it with error types that a damaged file or a full disk might raise too."""
    lost = kind("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
    with pytest.raises(kind, match="Gloo"), disk_errors_as_input_errors(tmp_path / "file", kind):
        raise lost
    with (
        pytest.raises(InputError, match=r"file: cannot be written \(no space\)"),
        disk_errors_as_input_errors(tmp_path / "file", kind),
    ):
        raise kind("no space")
    assert is_peer_failure(lost) and not is_peer_failure(kind("no space")) and not is_peer_failure(KeyError("Gloo"))
