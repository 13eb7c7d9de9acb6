"""tests/benchmarks/train_step.py runs at a tiny size, and its table ends with the ratios."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_two_sides_agree_and_the_table_ends_with_the_ratios():
    pytest.importorskip("torch", reason="transformers' side needs torch")
    pytest.importorskip("transformers", reason="transformers is the other side")
    sizes = ("layers=2", "d_model=32", "heads=2", "vocabulary=400", "rows=2", "row_tokens=40", "steps=1")
    command = [sys.executable, "tests/benchmarks/train_step.py", *(f"--{size}" for size in sizes)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 rows of 40 tokens, 32 of 80 with loss" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert re.fullmatch(r"ours / transformers: [\d.]+ x the tokens/s, -?[\d.]+ x the memory", last), last
