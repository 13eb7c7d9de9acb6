"""Small runs on sums of one and two digits, seconds long, and what tests compare of them."""

from pathlib import Path

import jax
import numpy as np

from star_jax import config
from star_jax.algorithms import star
from star_jax.records import Completion, Example
from star_jax.runs.run_directory import RunDirectory
from star_jax.weights import checkpoint


def small_config(**changes) -> config.Config:
    """A run of a few seconds; `changes` are dotted keys with __ for the dot."""
    values = config.default("arithmetic")
    values.tokenizer, values.tensorboard, values.mesh.data = "symbols", False, 1
    values.task.update(dict(max_digits=2, train_per_length=60, held_out_per_length=12))
    values.model.update(
        dict(n_layers=1, d_model=32, n_heads=2, d_mlp=64, rotary_dim=8, vocab_size=20, max_positions=512)
    )
    values.base.update(dict(stages=(dict(steps=400, learning_rate=1e-2, gold=(0.4, 0.1)),), examples=400))
    values.train.update(dict(batch_rows=8, row_tokens=64))
    values.optimizer.update(dict(learning_rate=3e-3, warmup_steps=5))
    values.sampling.update(dict(slots=16, queue=32))
    values.star.update(dict(iterations=2, steps=6, step_growth=1.5, problems_per_iteration=80))
    for key, value in changes.items():
        *groups, last = key.split("__")
        group = values
        for name in groups:
            group = group[name]
        group[last] = value
    return config.from_dict(values)


def run_with(base: Path, workdir: Path, **changes) -> RunDirectory:
    star.run(small_config(base__path=str(base), **changes), workdir)
    return RunDirectory(workdir)


def kept(run_dir: RunDirectory, n: int) -> list[Example]:
    return run_dir.read_records(Example, run_dir.path(n, "kept.jsonl"))


def completions(run_dir: RunDirectory, n: int, name: str = "samples") -> list[Completion]:
    return run_dir.read_records(Completion, run_dir.path(n, f"{name}.jsonl"))


RECORDS = ("samples", "rationalizations", "kept", "eval_dev")


def assert_same_result(a: Path, b: Path) -> None:
    """Both runs have two iterations with the same records, token ids and log-probabilities, counts and weights."""
    names = [f"{name}.{suffix}" for name in RECORDS for suffix in ("jsonl", "safetensors")]
    for n in (1, 2):
        for name in (*names, "filter.json", "eval_dev.json"):
            left, right = (p / f"iter_{n:03d}" / name for p in (a, b))
            assert left.read_bytes() == right.read_bytes(), (n, name)
        leaves = [jax.tree.leaves(checkpoint.load_model(p / f"iter_{n:03d}" / "params")[1]) for p in (a, b)]
        for x, y in zip(*leaves, strict=True):
            np.testing.assert_array_equal(x, y)
