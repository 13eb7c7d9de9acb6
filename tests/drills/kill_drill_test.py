"""tests/drills/kill_drill.py in a short form: a run that is killed, stopped and crashed ends like one that is not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).parent / "kill_drill.py"


@pytest.mark.slow
def test_five_kills_change_nothing(tmp_path):
    env = {**os.environ, "XLA_FLAGS": ""}  # one device: eight virtual ones are only slower
    done = subprocess.run(
        [sys.executable, DRILL, "--kills=5", "--between=5", "--seed=4", f"--keep={tmp_path}"],
        env=env, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert re.search(r"^\d+ kills of .*; 0 runs differ", done.stdout, re.MULTILINE), done.stdout
