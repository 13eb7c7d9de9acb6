"""star_jax.contrib.t5x with t5x: it trains and decodes as star_jax does.

The tests look for t5x installed, or as a checkout that STAR_T5X_DIR names, and skip without it.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from star_jax.weights import checkpoint
from tests.support.models import TINY
from tests.support.t5x_runs import FOUR_HEADS, GPT2, TOKENIZER, make_run

ROOT = Path(__file__).parents[3]
END = TOKENIZER.end_ids[0]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def t5x_environment() -> dict[str, str]:
    """Environment of a process with t5x and four devices."""
    folder = os.environ.get("STAR_T5X_DIR", "")
    if not (Path(folder) / "t5x").is_dir() if folder else importlib.util.find_spec("t5x") is None:
        pytest.skip("no t5x: install it (pip install 'star_jax[t5x]') or set STAR_T5X_DIR to a checkout")
    flags = "--xla_force_host_platform_device_count=4"
    paths = os.pathsep.join(filter(None, [str(ROOT), folder, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "3"}


def t5x_child(environment, *arguments):
    child = [sys.executable, "-m", "tests.support.t5x_child", *map(str, arguments)]
    done = subprocess.run(child, cwd=ROOT, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("config, two_ways", [(FOUR_HEADS, 4), (FOUR_HEADS, 2), (GPT2, 2)], ids=["1x4", "2x2", "gpt2"])
def test_t5x_decodes_and_measures_as_we_do(t5x_environment, tmp_path, config, two_ways):
    workdir = make_run(tmp_path / "run", config)
    both = t5x_child(t5x_environment, workdir, two_ways)
    ours, theirs = both["ours"], both["t5x"]
    assert ours["devices"] == 4
    assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
    limits = [32 - prompt for prompt in ours["prompts"]]
    expected = [ids[:limit] for ids, limit in zip(ours["samples"], limits, strict=True)]
    assert theirs["samples"] == expected and theirs["one_of_two"] == expected
    assert {0, END} < {token for ids in expected for token in ids} and len({*ours["prompts"]}) > 4
    assert theirs["fingerprint"] == checkpoint.stored_fingerprint(workdir / "base")
    # Our logical axes under standard_logical_axis_rules: heads, mlp and vocabulary are sharded over "model".
    assert theirs["specs"]["blocks/attention/query"] == [None, None, "model", None]
    assert theirs["specs"]["blocks/mlp/in/kernel"] == [None, None, "model"]
    assert theirs["specs"]["embedding/embedding"] == ["model", None]
    assert theirs["constraints"] > 0


def losses(model_dir: Path) -> list[float]:
    """The loss of each step from t5x's TensorBoard events."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(model_dir / "train"))
    events.Reload()
    return [float(make_ndarray(event.tensor_proto)) for event in events.Tensors("loss")]


def train_through_gin(environment, workdir, **bindings):
    values = {
        "RUN": f'"{workdir}"',
        "BASE": f'"{workdir}/base"',
        "MODEL_DIR": f'"{workdir}/t5x"',
        "TRAIN_STEPS": 3,
        "STATS_PERIOD": 1,
        "CHECKPOINT_PERIOD": 3,
        "LEARNING_RATE": 0.003,
        "BATCH_SIZE": 128,  # many repetitions of the few texts, so three batches are alike
        "TASK_FEATURE_LENGTHS": "{'inputs': 16, 'targets': 16}",
        **bindings,
    }
    command = [
        sys.executable,
        "-m",
        "star_jax.contrib.t5x",
        "--run_mode=train",
        "--gin_file=configs/t5x_finetune.gin",
    ]
    command += [f"--gin.{name}={value}" for name, value in values.items()]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)


def test_the_gin_file_trains_on_four_devices(t5x_environment, tmp_path):
    workdir = make_run(tmp_path / "run")
    done = train_through_gin(t5x_environment, workdir)
    assert done.returncode == 0, done.stderr[-4000:]
    first, second, third = losses(workdir / "t5x")
    assert first > second > third
    assert (workdir / "t5x" / "checkpoint_3").is_dir()


@pytest.mark.parametrize(
    "bindings, message",
    [
        ({}, "4 does not divide the 2 of blocks/attention/"),  # the tiny model's two heads
        ({"TRAIN_STEPS": "%gin.REQUIRED"}, "TRAIN_STEPS is not set; give --gin.TRAIN_STEPS="),
    ],
)
def test_bad_input_is_one_line(t5x_environment, tmp_path, bindings, message):
    done = train_through_gin(t5x_environment, make_run(tmp_path / "run", TINY), **bindings)
    last = done.stderr.splitlines()[-1]
    assert (done.returncode, last.startswith("star_jax: ")) == (2, True) and message in last
    assert "Traceback" not in done.stderr
