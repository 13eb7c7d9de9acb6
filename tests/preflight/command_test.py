"""python -m star_jax.preflight: flags, exit status, and no local accelerator."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from star_jax.errors import InputError
from star_jax.preflight import __main__ as command

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


def test_a_published_model_needs_no_config_and_no_weights():
    done = run("-m", "star_jax.preflight", "--model=qwen3-4b", "--topology=gpu:8xH100", "--config.sampling.slots=64")
    assert done.returncode == 0, done.stderr
    options, lengths, parameters, *_, last = done.stdout.splitlines()
    assert lengths.startswith("tokens of a prompt: 1,024 of shots (assumed), 128 of a problem (assumed), 256 new")
    assert options.startswith("qwen3-4b with ") and "--config.sampling.tensor=1" in options
    assert parameters.startswith("4,022,468,096 parameters on 8 x H100") and last == "fits"
    assert "sampling: 64 slots of 383 tokens after a prefix of 1024" in done.stdout


def test_wrong_models_are_one_line(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", os.environ.get("JAX_PLATFORMS", "cpu"))  # the command sets it
    wrong = []
    for flags, reason in (
        (["--topology=gpu:1xT4"], "give --model=NAME, e.g. --model=qwen3-4b, or --config=FILE"),
        (["--topology=gpu:1xT4", "--model=qwen3-5b"], "--model=qwen3-5b: no sizes under this name; there are Qwen3-"),
        (["--topology=gpu:1xT4", "--model=gpt-2"], "are 1408 together; the model has 1024 positions"),
        (
            ["--topology=gpu:16xT4", "--model=qwen3-4b", "--config.sampling.tensor=16"],
            "sampling.tensor: 16 does not divide the model's 8 KV heads",
        ),
    ):
        monkeypatch.setattr(sys, "argv", ["preflight", *flags])
        with pytest.raises(InputError) as error:
            command.main()
        if reason not in str(error.value) or "\n" in str(error.value):
            wrong.append((flags, str(error.value)))
    assert not wrong


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
