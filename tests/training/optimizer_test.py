"""star_jax.training.optimizer: the schedule and Adam against their closed forms."""

import json
import math

import jax
import numpy as np
import pytest

from star_jax.config import OptimizerConfig
from star_jax.training import optimizer

_DRAW = np.random.default_rng(0)
PARAMS = {"w": _DRAW.standard_normal((3, 2)).astype(np.float32), "b": _DRAW.standard_normal(4).astype(np.float32)}
GRADIENTS = [jax.tree.map(lambda p: _DRAW.standard_normal(p.shape).astype(np.float32), PARAMS) for _ in range(4)]


def rates(config: OptimizerConfig, steps: int) -> list[float]:
    return [optimizer.learning_rate(config, step, steps) for step in range(steps)]


def test_the_warm_up_is_linear_from_zero_and_then_constant():
    config = OptimizerConfig(learning_rate=1e-6, warmup_steps=100)
    found = rates(config, 200)
    assert found[0] == 0
    assert found[100:] == [1e-6] * 100
    np.testing.assert_allclose(np.diff(found[:101]), 1e-8, rtol=1e-9)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_a_decay_runs_from_the_peak_to_its_end(decay):
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, decay=decay, end_fraction=0.25)
    at = {step: optimizer.learning_rate(config, step, 24) for step in (0, 2, 4, 14, 24)}
    assert at == {0: 0.0, 2: 1.0, 4: 2.0, 14: pytest.approx(1.25), 24: pytest.approx(0.5)}
    quarter = 0.75 if decay == "linear" else 0.5 * (1 + math.cos(math.pi / 4))
    assert optimizer.learning_rate(config, 9, 24) == pytest.approx(0.5 + 1.5 * quarter)


def test_a_run_without_warm_up_or_of_one_step_has_a_rate():
    assert rates(OptimizerConfig(learning_rate=3.0, warmup_steps=0, decay="cosine"), 1) == [3.0]
    assert rates(OptimizerConfig(learning_rate=3.0, warmup_steps=5, decay="linear"), 2) == [0.0, 0.6]


def test_a_peak_takes_the_place_of_the_configured_one():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, decay="cosine", end_fraction=0.1)
    found = [optimizer.learning_rate(config, step, 9, peak=7.0) for step in range(9)]
    np.testing.assert_allclose(found, 7 * np.array(rates(config, 9)), rtol=1e-12)


def test_the_schedules_are_those_of_the_original(shared_dir):
    """Warm-up 2 and cosine over 10 steps from 1e-3 to 1e-4; the paper's warm-up 100 and constant 1e-6."""
    meta = json.loads((shared_dir / "fixtures" / "mesh_transformer" / "meta.json").read_text())
    cosine = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, decay="cosine", end_fraction=0.1)
    expected = meta["lr_schedule_w2_a10_1e-3_1e-4_steps0..15"]
    found = [optimizer.learning_rate(cosine, step, 12) for step in range(len(expected))]
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    base = meta["lr_schedule_star_base_steps"]
    found = [optimizer.learning_rate(OptimizerConfig(), int(step), 2000) for step in base]
    np.testing.assert_allclose(found, list(base.values()), rtol=2e-6)


def adam(config: OptimizerConfig, gradients) -> list:
    """What the chain should return for each of the gradients, in float64 and written from the papers."""
    first = {name: np.zeros(p.shape) for name, p in PARAMS.items()}
    second = {name: np.zeros(p.shape) for name, p in PARAMS.items()}
    updates = []
    for t, raw in enumerate(gradients, start=1):
        norm = math.sqrt(sum(np.sum(g.astype(np.float64) ** 2) for g in raw.values()))
        shrink = min(1.0, config.clip_norm / norm) if config.clip_norm else 1.0
        update = {}
        for name, p in PARAMS.items():
            g = raw[name].astype(np.float64) * shrink
            first[name] = config.b1 * first[name] + (1 - config.b1) * g
            second[name] = config.b2 * second[name] + (1 - config.b2) * g**2
            step = first[name] / (1 - config.b1**t)
            step /= np.sqrt(second[name] / (1 - config.b2**t)) + config.eps
            update[name] = step + config.weight_decay * p
        updates.append(update)
    return updates


@pytest.mark.parametrize(
    "config",
    [
        OptimizerConfig(clip_norm=0),
        OptimizerConfig(clip_norm=0, b1=0.5, b2=0.9, eps=1e-3),
        OptimizerConfig(clip_norm=0.7),
        OptimizerConfig(clip_norm=100.0),
        OptimizerConfig(clip_norm=1.0, weight_decay=0.3),
    ],
    ids=["adam", "other moments", "clipped", "clip out of reach", "clipped and decayed"],
)
def test_the_chain_is_adam_with_clipping_and_decoupled_decay(config):
    """Clipping is by the global norm, ahead of the moments; the decay is added behind them and not clipped."""
    chain = optimizer.chain(config)
    state = chain.init(PARAMS)
    for raw, expected in zip(GRADIENTS, adam(config, GRADIENTS), strict=True):
        update, state = chain.update(raw, state, PARAMS)
        for name in PARAMS:
            # Float32 holds 1 - 0.999^t to 6e-5 of its value and the root halves that; Adam's part is of order 1.
            np.testing.assert_allclose(update[name], expected[name], rtol=0, atol=3e-5)


def test_the_chain_holds_no_learning_rate():
    """Two configs that differ in schedule alone make the same state and the same update: nothing to compile anew."""
    one = optimizer.chain(OptimizerConfig(learning_rate=1.0, warmup_steps=1))
    two = optimizer.chain(OptimizerConfig(learning_rate=9.0, warmup_steps=7, decay="cosine"))
    found = [chain.update(GRADIENTS[0], chain.init(PARAMS), PARAMS) for chain in (one, two)]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.all(np.asarray(a) == np.asarray(b))), *found))
