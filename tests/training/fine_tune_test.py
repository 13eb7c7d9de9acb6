"""Fine-tuning: loss on the weighted tokens only, and interrupted equals uninterrupted."""

import dataclasses
import logging
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax import errors
from star_jax.config import MeshConfig, ModelConfig, OptimizerConfig, TrainConfig
from star_jax.distributed import preemption, sharding
from star_jax.errors import InputError
from star_jax.models import families
from star_jax.training import fine_tune, loss, packing
from star_jax.weights import placement
from tests.support.models import numpy_params

CONFIG = ModelConfig(n_layers=1, d_model=16, n_heads=2, d_mlp=32, rotary_dim=4, vocab_size=20, max_positions=64)
MODEL = families.build(CONFIG)
OPTIMIZER = OptimizerConfig(learning_rate=0.01, warmup_steps=2)
TRAIN = TrainConfig(batch_rows=4, row_tokens=12, log_every=1, checkpoint_every=2)


def make_rows(texts, row_tokens=12) -> packing.PackedRows:
    """One row for each list of (ids, length of the prompt), padded."""
    names = ("tokens_RT", "positions_RT", "segment_ids_RT", "weights_RT")
    columns = {name: np.zeros((len(texts), row_tokens), np.int32) for name in names}
    for r, row in enumerate(texts):
        start = 0
        for segment, (ids, prompt) in enumerate(row, start=1):
            cells = (r, slice(start, start + len(ids)))
            columns["tokens_RT"][cells] = ids
            columns["positions_RT"][cells] = np.arange(len(ids))
            columns["segment_ids_RT"][cells] = segment
            columns["weights_RT"][cells] = np.arange(len(ids)) >= prompt
            start += len(ids)
    names = tuple(tuple(f"{r}.{segment}" for segment in range(len(row))) for r, row in enumerate(texts))
    columns["weights_RT"] = columns["weights_RT"].astype(np.float32)
    return packing.PackedRows(**columns, too_long=0, problem_ids=names)


def random_texts(count, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 7, count)
    return [(rng.integers(0, 20, size).tolist(), int(rng.integers(1, size))) for size in sizes]


TEXTS = random_texts(12)
PACKED = make_rows([TEXTS[i : i + 2] for i in range(0, 12, 2)])


def batch_of(rows, count=4):
    return {name: jnp.asarray(array) for name, array in rows.take(np.arange(count)).items()}


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(MeshConfig(data=1))


@pytest.fixture(scope="module")
def base(mesh):
    return jax.device_put(numpy_params(CONFIG), placement.param_shardings(MODEL, mesh))


def tune(base, mesh, steps=7, rows=PACKED, train=TRAIN, peak_learning_rate=None, **options):
    spec = fine_tune.FineTuneSpec(steps, 5, train, OPTIMIZER, peak_learning_rate=peak_learning_rate)
    # fine_tune donates the buffers of its parameters.
    return fine_tune.fine_tune(MODEL, jax.tree.map(jnp.copy, base), rows, spec, mesh, **options)


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b))


def test_the_loss_is_the_mean_cross_entropy_of_the_weighted_tokens(base, mesh):
    """Against float64 NumPy on the model's logits; the counts in the metrics are those of the batch."""
    batch = batch_of(PACKED)
    inputs = (batch[name] for name in ("tokens_RT", "positions_RT", "segment_ids_RT"))
    logits_RTV = np.asarray(jax.jit(MODEL.apply)({"params": base}, *inputs), np.float64)
    log_sum_RT = np.log(np.sum(np.exp(logits_RTV), axis=-1))
    host = PACKED.take(np.arange(4))
    losses = [
        log_sum_RT[r, t - 1] - logits_RTV[r, t - 1, host["tokens_RT"][r, t]]
        for r, t in zip(*np.nonzero(host["weights_RT"]), strict=True)
    ]
    batch_on_mesh = {name: sharding.put_rows(mesh, array) for name, array in host.items()}
    copied = jax.tree.map(jnp.copy, base)
    state, metrics = fine_tune.train_step(
        MODEL, OPTIMIZER, fine_tune.initial_state(OPTIMIZER, copied), batch_on_mesh, np.float32(0.01)
    )
    assert float(metrics["loss"]) == pytest.approx(np.mean(losses), rel=1e-6)
    assert int(metrics["loss_tokens"]) == len(losses) == int(host["weights_RT"].sum())
    assert int(metrics["tokens"]) == sum(len(ids) for ids, _ in TEXTS[:8])
    assert int(state.step) == 1


def test_packed_losses_are_the_sum_of_those_of_each_text_alone(base):
    sums = jax.jit(loss.unchunked_loss_sums, static_argnums=0)
    packed = sums(MODEL, base, batch_of(PACKED))
    halves = [batch_of(make_rows([[text] for text in texts])) for texts in (TEXTS[:4], TEXTS[4:8])]
    alone = [sums(MODEL, base, half) for half in halves]
    np.testing.assert_allclose(packed, np.sum(alone, axis=0), rtol=1e-6)


class Logits:
    """A model whose parameters are its logits."""

    def apply(self, variables, tokens_RT, positions_RT, segment_ids_RT, method=None):
        return variables["params"]


def test_the_loss_has_a_gradient_at_completion_tokens_alone():
    """Not at the prompt, nor at the border of two packed texts, nor in padding."""
    batch = batch_of(PACKED)
    logits_RTV = np.random.default_rng(1).standard_normal((4, 12, 20)).astype(np.float32)
    gradient_RTV = jax.jit(jax.grad(lambda logits: loss.unchunked_loss_sums(Logits(), logits, batch)[0]))(logits_RTV)
    predicts_RT = np.zeros((4, 12), bool)
    for r in range(4):
        (first, prompt), (second, second_prompt) = TEXTS[2 * r : 2 * r + 2]
        predicts_RT[r, prompt - 1 : len(first) - 1] = True
        predicts_RT[r, len(first) + second_prompt - 1 : len(first) + len(second) - 1] = True
    assert np.array_equal(np.any(gradient_RTV != 0, axis=-1), predicts_RT)


def test_fine_tuning_lowers_the_loss_and_is_the_same_each_time(base, mesh):
    params, report = tune(base, mesh, steps=7)
    assert not equal(params, base)
    assert report.loss_last < report.loss_first
    assert report.steps == 7
    seen = [sum(len(ids) for ids, _ in TEXTS[2 * r : 2 * r + 2]) for r in range(6)]
    assert report.tokens > 4 * sum(seen)  # 28 rows: four epochs of six rows and four rows more
    again, _ = tune(base, mesh, steps=7)
    assert equal(again, params)


def test_a_fine_tuning_that_was_stopped_ends_like_one_that_was_not(base, mesh, tmp_path):
    """Stopped after a checkpoint and started again: the same bits and totals; once more from the last checkpoint."""

    def stop(step, metrics):
        if step == 5:
            raise KeyboardInterrupt

    whole, report = tune(base, mesh)
    with pytest.raises(KeyboardInterrupt):
        tune(base, mesh, state_dir=tmp_path / "state", on_step=stop)
    assert (tmp_path / "state").is_dir()
    steps = []
    resumed, second = tune(base, mesh, state_dir=tmp_path / "state", on_step=lambda step, _: steps.append(step))
    assert steps == [5, 6, 7]  # continues after step 4
    assert equal(resumed, whole)
    assert dataclasses.replace(second, seconds=0) == dataclasses.replace(report, seconds=0)
    again, _ = tune(base, mesh, state_dir=tmp_path / "state", on_step=lambda step, _: steps.append(step))
    assert steps == [5, 6, 7, 7]
    assert equal(again, whole)


def test_asked_to_stop_it_stores_its_current_step(base, mesh, tmp_path, monkeypatch):
    """Also without regular checkpoints."""
    rare = dataclasses.replace(TRAIN, checkpoint_every=0, log_every=1)
    monkeypatch.setattr(preemption, "_requested", False)

    def request_stop(step, metrics):
        monkeypatch.setattr(preemption, "_requested", step >= 3)

    whole, report = tune(base, mesh)
    with pytest.raises(errors.Stopped):
        tune(base, mesh, state_dir=tmp_path / "state", train=rare, on_step=request_stop)
    assert len(list((tmp_path / "state").iterdir())) == 1
    monkeypatch.setattr(preemption, "_requested", False)
    resumed, second = tune(base, mesh, state_dir=tmp_path / "state", train=rare)
    assert equal(resumed, whole)
    assert dataclasses.replace(second, seconds=0) == dataclasses.replace(report, seconds=0)


def test_at_most_one_step_is_queued_behind_the_one_in_progress():
    """Else a stop would wait for as many steps as `log_every` has."""

    class Loss:
        def __init__(self, step: int) -> None:
            self.step = step

        def block_until_ready(self) -> None:
            awaited.append(self.step)

    awaited: list[int] = []
    spec = types.SimpleNamespace(train=types.SimpleNamespace(log_every=1000))
    accumulator = fine_tune.MetricsAccumulator({}, spec, None, str)
    for step in range(5):
        accumulator.add(step, {"loss": Loss(step), "learning_rate": 0.1})
        assert max(awaited) == max(0, step - 1)


def test_without_checkpoints_a_fine_tuning_writes_nothing(base, mesh, tmp_path):
    tune(base, mesh, steps=3, state_dir=tmp_path / "state", train=dataclasses.replace(TRAIN, checkpoint_every=0))
    assert not (tmp_path / "state").exists()


def test_metrics_are_reported_every_few_steps_and_at_the_last(base, mesh):
    seen = {}
    tune(base, mesh, train=dataclasses.replace(TRAIN, log_every=3), on_step=seen.__setitem__)
    assert list(seen) == [3, 6, 7]
    assert seen[3]["learning_rate"] == pytest.approx(0.01)
    assert all(math.isfinite(value) for metrics in seen.values() for value in metrics.values())
    assert seen[7].keys() == {"loss", "loss_tokens", "tokens", "gradient_norm", "learning_rate"}


def test_a_loss_that_is_not_finite_stops_with_the_step_named(base, mesh):
    broken = jax.tree.map(lambda leaf: leaf * np.nan, base)
    with pytest.raises(
        InputError, match=r"the loss of step 0 is nan, over packed rows \d+, .*: problems \d+\.0, "
    ) as e:
        tune(broken, mesh)
    assert str(e.value).endswith(" or look at these examples")
    with pytest.raises(InputError, match=r"the loss of step 2 is (nan|inf)"):  # step 0 has rate 0, step 1 does it
        tune(base, mesh, peak_learning_rate=1e30)


def test_metrics_are_fetched_once_in_log_every_steps(base, mesh, monkeypatch):
    """A fetch waits for the device: one per step would slow the host. A loss that is not finite is still named."""
    fetches, device_get = [], jax.device_get

    def counting(tree):
        fetches.append(len(tree))
        return device_get(tree)

    _, often = tune(base, mesh)
    monkeypatch.setattr(jax, "device_get", counting)
    seldom = dataclasses.replace(TRAIN, log_every=3)
    _, report = tune(base, mesh, train=seldom)
    assert fetches == [3, 3, 1]
    assert dataclasses.replace(report, seconds=0) == dataclasses.replace(often, seconds=0)
    with pytest.raises(InputError, match=r"the loss of step 0 is nan"):
        tune(jax.tree.map(lambda leaf: leaf * np.nan, base), mesh, train=seldom)


def test_the_next_batch_is_prefetched():
    asked = []

    def batches():
        for number in range(9):
            asked.append(number)
            yield {"tokens_RT": number}

    ahead = fine_tune.prefetch_one(batches())
    for number in range(3):
        assert next(ahead) == {"tokens_RT": number} and asked[-1] == number + 1


def test_other_step_counts_rates_and_a_resume_compile_nothing_again(base, mesh, tmp_path, caplog):
    """One program serves all iterations; its first call and its second must not differ either."""
    tune(base, mesh, steps=1)
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        for steps, peak in ((2, None), (5, 0.5), (3, 1e-7)):
            tune(base, mesh, steps=steps, peak_learning_rate=peak)
        with pytest.raises(RuntimeError):
            tune(base, mesh, steps=9, state_dir=tmp_path / "state", on_step=fail_at_four)
        tune(base, mesh, steps=9, state_dir=tmp_path / "state")
    messages = [record.getMessage() for record in caplog.records]
    assert messages  # the log does show compilations: the small programs around the step
    assert not [message for message in messages if "Compiling" in message and "train_step" in message]


def fail_at_four(step, metrics):
    if step == 4:
        raise RuntimeError


def test_the_state_of_a_sharded_model_is_sharded_and_stays_so(caplog):
    """Adam's moments are sharded like their parameters from the start: they would not fit on one device.

    Nor may the second step be compiled again because the first one's outputs have another sharding than its inputs.
    """
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = placement.param_shardings(MODEL, mesh)
    params = jax.device_put(numpy_params(CONFIG), shardings)
    batch = {name: sharding.put_rows(mesh, array) for name, array in PACKED.take(np.arange(4)).items()}
    state = fine_tune.initial_state(OPTIMIZER, params)

    def check(state):
        adam = state.opt_state[1]
        for tree in (state.params, adam.mu, adam.nu):
            assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), tree, shardings))
        assert state.step.sharding.is_fully_replicated and adam.count.sharding.is_fully_replicated
        assert len(state.step.sharding.device_set) == len(adam.count.sharding.device_set) == 8

    check(state)
    with sharding.use(mesh), jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        for _ in range(3):
            state, _ = fine_tune.train_step(MODEL, OPTIMIZER, state, batch, np.float32(0.01))
            check(state)
    compiled = [r for r in caplog.records if "Compiling" in r.getMessage() and "train_step" in r.getMessage()]
    assert len(compiled) == 1
