"""python -m star_jax.preflight: flags, exit status, and no local accelerator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


# The command as `-m` runs it; then, which platform JAX has initialized, and whether it was imported before the flags.
COMMAND = """
import sys
from star_jax.preflight import __main__ as command
early = [name for name in sys.modules if name.split(".")[0] == "jax"]
try:
    command.main()
finally:
    import jax
    print("platform", jax.devices()[0].platform, "imported early", early)
"""


def run(*command: str, **env: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=env, timeout=300, check=False
    )


def test_the_command_uses_the_cpu_whatever_jax_platforms_names():
    """JAX reads the variable when it is imported, so the command sets it before that."""
    flags = ["--config=configs/commonsense_qa_gptj.py", "--topology=gpu:1xT4"]
    done = run("-c", COMMAND, *flags, JAX_PLATFORMS="no_such_platform")
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-2:] == ["does not fit", "platform cpu imported early []"]


def test_a_missing_topology_is_one_line():
    done = run("-m", "star_jax.preflight", "--config=configs/commonsense_qa_gptj.py")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "give --topology" in done.stderr


@pytest.mark.slow
def test_a_tpu_that_is_not_there():
    """The real compiler, where libtpu is installed: a small model for a topology of other chips than are here."""
    pytest.importorskip("libtpu", reason="the TPU compiler needs libtpu (the extra `preflight`)")
    sizes = dict(n_layers=2, d_model=256, n_heads=8, d_mlp=512, rotary_dim=32, vocab_size=50304)
    small = [f"--config.model.{name}={size}" for name, size in sizes.items()]
    small += ["--config.sampling.slots=16", "--prefix_tokens=128"]
    done = run("-m", "star_jax.preflight", "--config=configs/commonsense_qa_gptj.py", "--topology=v3:2x2", *small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8 x TPU v3 of 16 GiB; compiled" in done.stdout and "per decode step: " in done.stdout
