"""tests/drills/kill_drill.py in a short form: killed, told to stop, crashed between two files, a run ends the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

DRILL = Path(__file__).parent / "kill_drill.py"


def test_five_kills_change_nothing(tmp_path):
    env = {**os.environ, "XLA_FLAGS": ""}  # one device: eight virtual ones only make it slower
    done = subprocess.run(
        [sys.executable, DRILL, "--kills=5", "--between=5", "--seed=4", f"--keep={tmp_path}"],
        env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"^\d+ kills of .*; 0 runs differ", done.stdout, re.MULTILINE), done.stdout
