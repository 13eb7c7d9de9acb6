"""A command whose standard streams are closed, full or without a reader. One line and a status, or work as usual."""

import os
import subprocess
import sys

import pytest

from tests.support.commands import ROOT
from tests.support.tables import every_row

PROGRAM = """
import sys
from pathlib import Path
from star_jax import terminal
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.errors import InputError
from star_jax.runs import console

def main():
    Parser("x", "about").parse_args(["--help"] if "help" in sys.argv else [])
    Path(sys.argv[1]).touch()  # it works until it prints
    if "table" in sys.argv:
        terminal.console().print("[a] table")
    if "error" in sys.argv:
        raise InputError("a mistake")
    terminal.say("read " + sys.stdin.read())
    terminal.say("a note", sys.stderr)

exit_on_bad_input(main)
"""
FULL = "star_jax: standard output: cannot be written (No space left on device); redirect it elsewhere and rerun\n"
CLOSED = "star_jax: standard output is closed; redirect it to a file, or to /dev/null\n"


def run(tmp_path, redirection: str, *words: str) -> tuple[int, str, str]:
    """(status, standard output, standard error)."""
    command = ["bash", "-o", "pipefail", "-c", f'"$@" {redirection}', "bash", sys.executable, "-c", PROGRAM]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [*command, tmp_path / "worked", *words], env=env, input="input", capture_output=True, text=True, timeout=60
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
@every_row(
    ("redirection", "words", "works", "result"),
    [
        ("", "", True, (0, "read input\n", "a note\n")),
        (">&-", "", False, (2, "", CLOSED)),
        (">/dev/full", "", True, (2, "", FULL)),
        (">/dev/full", "table", True, (2, "", FULL)),
        (">/dev/full", "help", False, (2, "", FULL)),
        ("| head -c 0", "", True, (141, "", "")),
        ("| head -c 0", "table", True, (141, "", "")),
        ("| head -c 0", "help", False, (141, "", "")),
        ("<&-", "", True, (0, "read \n", "a note\n")),
        ("2>&-", "", True, (0, "read input\n", "")),
        ("2>/dev/full", "", True, (0, "read input\n", "")),
        ("2>&-", "error", True, (2, "", "")),
        ("2>/dev/full", "error", True, (2, "", "")),
        ("<&- >&- 2>&-", "", False, (2, "", "")),
    ],
)
def test_streams(tmp_path, redirection, words, works, result):
    assert run(tmp_path, redirection, *words.split()) == result
    assert (tmp_path / "worked").exists() == works


def test_what_a_library_writes_to_a_closed_stream_gets_into_no_file(tmp_path):
    """XLA writes its warnings to descriptor 2, whatever file that is."""
    program = "import os, sys\nfrom star_jax.cli.parser import exit_on_bad_input\n"
    program += "exit_on_bad_input(lambda: [open(sys.argv[1], 'w'), [os.write(n, b'!') for n in (1, 2)]])"
    command = ["bash", "-c", '"$@" <&- 2>&-', "bash", sys.executable, "-c", program, tmp_path / "file"]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60)
    assert (result.returncode, (tmp_path / "file").read_bytes()) == (0, b"")
