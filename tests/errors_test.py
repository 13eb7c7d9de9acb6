"""star_jax.errors: bad input ends a command in one line, a bug in a traceback."""

import pytest

from star_jax.cli.parser import exit_on_bad_input
from star_jax.errors import InputError, disk_errors_as_input_errors, is_peer_failure


def raising(error: BaseException):
    def main() -> None:
        raise error

    return main


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("give --config=FILE", "star_jax: give --config=FILE\n"),
        ("first\n   second\tthird\n", "star_jax: first second third\n"),
        ("", "star_jax: \n"),
    ],
)
def test_bad_input_is_one_line_and_status_2(text, line, capsys):
    with pytest.raises(SystemExit) as caught:
        exit_on_bad_input(raising(InputError(text)))
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err) == (2, "", line)


@pytest.mark.parametrize("error", [ValueError("a bug"), SystemExit(3)])
def test_anything_else_passes_through(error, capsys):
    with pytest.raises(type(error)) as caught:
        exit_on_bad_input(raising(error))
    assert caught.value is error
    assert capsys.readouterr().err == ""


def test_ctrl_c_is_one_line_and_the_shell_s_status(capsys):
    with pytest.raises(SystemExit) as caught:
        exit_on_bad_input(raising(KeyboardInterrupt()))
    assert caught.value.code == 130
    assert capsys.readouterr().err == "star_jax: interrupted; the same command continues the run\n"


def test_a_main_that_succeeds_returns():
    called = []
    exit_on_bad_input(lambda: called.append(1))
    assert called == [1]


@pytest.mark.parametrize("kind", [ValueError, RuntimeError])
def test_the_loss_of_another_process_is_no_matter_of_the_disk(kind, tmp_path):
    """The runtime says it with errors that a damaged file or a full disk might raise, too."""
    lost = kind("UNKNOWN: Gloo AllGather failed: Connection reset by peer")
    with pytest.raises(kind, match="Gloo"), disk_errors_as_input_errors(tmp_path / "file", kind):
        raise lost
    with (
        pytest.raises(InputError, match=r"file: cannot be written \(no space\)"),
        disk_errors_as_input_errors(tmp_path / "file", kind),
    ):
        raise kind("no space")
    assert is_peer_failure(lost) and not is_peer_failure(kind("no space")) and not is_peer_failure(KeyError("Gloo"))
