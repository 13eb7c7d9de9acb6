"""star_jax.runs.atomic_files: a file is complete or missing, with several writers and after a kill."""

import subprocess
import sys

from star_jax.runs import atomic_files
from tests.support.commands import ROOT

WRITER = """
import sys
from pathlib import Path
from star_jax.runs.atomic_files import atomic_write
for _ in range(60):
    atomic_write(Path(sys.argv[1]), sys.argv[2] * int(sys.argv[3]), shared=True)
"""


def test_the_next_write_removes_the_temporary_file_of_a_killed_writer(tmp_path):
    path = tmp_path / "report.html"
    # Killed before the rename.
    code = f"""
import os, signal, sys
from pathlib import Path
from star_jax.runs import atomic_files
from tests.support.commands import ROOT
os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)
atomic_files.atomic_write(Path({str(path)!r}), "half", shared=True)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -9
    assert [left.name for left in tmp_path.iterdir()] == ["report.html.tmp"]
    atomic_files.atomic_write(path, "whole", shared=True)
    assert [left.name for left in tmp_path.iterdir()] == ["report.html"] and path.read_text() == "whole"


def test_two_writers_of_a_file_never_mix(tmp_path):
    path, texts = tmp_path / "page", {"a": "a" * 300_000, "b": "b" * 200_000}
    command = [sys.executable, "-c", WRITER, str(path)]
    writers = [subprocess.Popen([*command, letter, str(len(text))], cwd=ROOT) for letter, text in texts.items()]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            seen.add(path.read_text())
    assert [writer.returncode for writer in writers] == [0, 0]
    assert seen == set(texts.values()) and [left.name for left in tmp_path.iterdir()] == ["page"]
