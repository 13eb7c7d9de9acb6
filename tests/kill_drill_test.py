"""tests/drills/kill_drill.py in a short form: killed, told to stop, crashed between two files, a run ends the same."""

import os
import subprocess
import sys
from pathlib import Path

DRILL = Path(__file__).parent / "drills" / "kill_drill.py"


def test_three_kills_change_nothing(tmp_path):
    env = {**os.environ, "XLA_FLAGS": ""}  # one device: eight virtual ones only make it slower
    done = subprocess.run(
        [sys.executable, DRILL, "--kills=3", "--between=3", "--seed=4", f"--keep={tmp_path}"],
        env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "3 kills of" in done.stdout and "; 0 runs differ" in done.stdout
