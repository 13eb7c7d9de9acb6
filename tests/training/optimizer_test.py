"""star_jax.training.optimizer: the schedule and Adam against their closed forms."""

import json
import math

import jax
import numpy as np
import pytest

from star_jax.config import OptimizerConfig
from star_jax.training import optimizer

_RNG = np.random.default_rng(0)
PARAMS = {"w": _RNG.standard_normal((3, 2)).astype(np.float32), "b": _RNG.standard_normal(4).astype(np.float32)}
GRADIENTS = [jax.tree.map(lambda p: _RNG.standard_normal(p.shape).astype(np.float32), PARAMS) for _ in range(4)]


def rates(config: OptimizerConfig, steps: int) -> list[float]:
    return [optimizer.learning_rate(config, step, steps) for step in range(steps)]


def test_warm_up_is_linear_from_zero_and_then_constant():
    config = OptimizerConfig(learning_rate=1e-6, warmup_steps=100)
    schedule = rates(config, 200)
    assert schedule[0] == 0
    assert schedule[100:] == [1e-6] * 100
    np.testing.assert_allclose(np.diff(schedule[:101]), 1e-8, rtol=1e-9)


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_decay_goes_from_the_peak_to_its_end(decay):
    config = OptimizerConfig(learning_rate=2.0, warmup_steps=4, decay=decay, end_fraction=0.25)
    rate_of = {step: optimizer.learning_rate(config, step, 24) for step in (0, 2, 4, 14, 24)}
    assert rate_of == {0: 0.0, 2: 1.0, 4: 2.0, 14: pytest.approx(1.25), 24: pytest.approx(0.5)}
    quarter = 0.75 if decay == "linear" else 0.5 * (1 + math.cos(math.pi / 4))
    assert optimizer.learning_rate(config, 9, 24) == pytest.approx(0.5 + 1.5 * quarter)


def test_runs_without_warm_up_and_runs_of_one_step_have_rates():
    assert rates(OptimizerConfig(learning_rate=3.0, warmup_steps=0, decay="cosine"), 1) == [3.0]
    assert rates(OptimizerConfig(learning_rate=3.0, warmup_steps=5, decay="linear"), 2) == [0.0, 0.6]


def test_a_given_peak_replaces_the_configured_one():
    config = OptimizerConfig(learning_rate=1.0, warmup_steps=2, decay="cosine", end_fraction=0.1)
    schedule = [optimizer.learning_rate(config, step, 9, peak=7.0) for step in range(9)]
    np.testing.assert_allclose(schedule, 7 * np.array(rates(config, 9)), rtol=1e-12)


def test_the_schedules_are_those_of_the_original(shared_dir):
    """Warm-up 2 and cosine over 10 steps from 1e-3 to 1e-4; the paper's warm-up 100 and constant 1e-6."""
    meta = json.loads((shared_dir / "fixtures" / "mesh_transformer" / "meta.json").read_text())
    cosine = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, decay="cosine", end_fraction=0.1)
    expected = meta["lr_schedule_w2_a10_1e-3_1e-4_steps0..15"]
    schedule = [optimizer.learning_rate(cosine, step, 12) for step in range(len(expected))]
    np.testing.assert_allclose(schedule, expected, rtol=2e-6)
    rate_of = meta["lr_schedule_star_base_steps"]
    schedule = [optimizer.learning_rate(OptimizerConfig(), int(step), 2000) for step in rate_of]
    np.testing.assert_allclose(schedule, list(rate_of.values()), rtol=2e-6)


def reference_updates(config: OptimizerConfig, gradients) -> list:
    """The chain's update for each of the gradients, in float64, from the papers (Kingma & Ba; Loshchilov & Hutter)."""
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
    """Clipping is by the global norm and comes before the moments; decay is added after them and is not clipped."""
    chain = optimizer.chain(config)
    state = chain.init(PARAMS)
    for raw, expected in zip(GRADIENTS, reference_updates(config, GRADIENTS), strict=True):
        update, state = chain.update(raw, state, PARAMS)
        for name in PARAMS:
            # In float32, 1 - 0.999^t has a relative error of 6e-5, which the root halves; updates are of order 1.
            np.testing.assert_allclose(update[name], expected[name], rtol=0, atol=3e-5)


def test_the_chain_holds_no_learning_rate():
    """Configs that differ only in the schedule give the same state and update, so another rate compiles nothing."""
    one = optimizer.chain(OptimizerConfig(learning_rate=1.0, warmup_steps=1))
    two = optimizer.chain(OptimizerConfig(learning_rate=9.0, warmup_steps=7, decay="cosine"))
    updates = [chain.update(GRADIENTS[0], chain.init(PARAMS), PARAMS) for chain in (one, two)]
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.all(np.asarray(a) == np.asarray(b))), *updates))
