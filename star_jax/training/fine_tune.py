"""Fine-tuning: the loop over packed rows, with checkpoints and metrics, and the compiled train step."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax.config import OptimizerConfig, TrainConfig
from star_jax.distributed import preemption, processes, sharding
from star_jax.errors import InputError, Stopped
from star_jax.models import decoder
from star_jax.training import loss, optimizer, packing
from star_jax.weights import checkpoint, placement, train_state
from star_jax.weights.finite import non_finite_leaf


@dataclasses.dataclass(frozen=True)
class FineTuneSpec:
    """The settings of one fine-tuning."""

    steps: int
    seed: int  # fixes the order of the rows
    train: TrainConfig
    optimizer: OptimizerConfig
    z_loss: float = 0.0  # see ReplicationConfig
    peak_learning_rate: float | None = None  # in place of the optimizer's
    name: str = "fine-tuning"  # for messages: which iteration's


@dataclasses.dataclass(frozen=True)
class Report:
    """The figures of a fine-tuning. finetune.json holds them next to the iteration and the example counts."""

    steps: int
    tokens: int  # tokens trained on, without padding
    loss_tokens: int  # sum of their loss weights
    loss_first: float  # of the first and of the last step, nats per token
    loss_last: float
    seconds: float


class TrainState(NamedTuple):
    """Everything a step updates."""

    step: jax.Array
    params: decoder.Params
    opt_state: optax.OptState


def fine_tune(
    model: decoder.Decoder,
    params: decoder.Params,
    rows: packing.PackedRows,
    spec: FineTuneSpec,
    mesh: Mesh,
    *,
    moments: checkpoint.Moments | None = None,
    state_dir: Path | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[decoder.Params, Report]:
    """Trains `spec.steps` steps from `params` and returns the new weights.

    Args:
      params: on `mesh`; their buffers are donated.
      rows: packed examples, repeated as often as the steps need.
      moments: Adam's initial state; zeros if None.
      state_dir: the directory for checkpoints inside this fine-tuning (every train.checkpoint_every steps, and on
        SIGTERM), from which it resumes. The last two are kept.
      on_step: called with (step, metrics) after every `train.log_every`-th step and the last.

    Raises InputError if a loss, a gradient or, at a checkpoint or the end, a weight is not finite, naming the step:
    neither such weights nor such a state are stored. Raises Stopped if the process was asked to
    stop: a single process after the current step, several where metrics are fetched, since they have to agree.
    """
    train = spec.train
    checkpointer = train_state.TrainStateCheckpointer(state_dir) if state_dir else None
    state, totals = _initial_state(checkpointer, spec.optimizer, params, moments)
    first_step = int(state.step)
    started = time.monotonic() - totals["seconds"]
    accumulator = MetricsAccumulator(
        totals, spec, on_step, lambda n: packing.describe_batch(rows, train.batch_rows, spec.seed, n)
    )
    with sharding.use(mesh):
        batches = prefetch_one(_sharded_batches(rows, spec, first_step, mesh))
        for step, batch in zip(range(first_step, spec.steps), batches, strict=False):
            rate = optimizer.learning_rate(spec.optimizer, step, spec.steps, spec.peak_learning_rate)
            state, metrics = train_step(
                model, spec.optimizer, state, batch, np.float32(rate), spec.z_loss, train.microbatches
            )
            fetched = accumulator.add(step, {**metrics, "learning_rate": rate})
            stop = preemption.requested() if processes.count() == 1 else fetched and processes.preemption_requested()
            due = (step + 1) % (train.checkpoint_every or spec.steps) == 0
            if checkpointer and step + 1 < spec.steps and (stop or due):
                accumulator.fetch()
                _check_finite(spec, state, step)
                checkpointer.save(state, {**totals, "seconds": time.monotonic() - started})
                if stop:
                    raise Stopped
    accumulator.fetch()
    _check_finite(spec, state, spec.steps - 1)
    if checkpointer:
        checkpointer.close()
    return state.params, Report(steps=spec.steps, **{**totals, "seconds": round(time.monotonic() - started, 2)})


_LOWER = "lower optimizer.learning_rate (with --allow_changes the run continues with what it has stored)"


def _check_finite(spec: FineTuneSpec, state: TrainState, step: int) -> None:
    """Raises InputError if a step left a weight or a moment that is NaN or infinite. Losses show it a step later."""
    if name := non_finite_leaf(state):
        raise InputError(f"{spec.name}: after step {step}, {name} holds values that are not finite; {_LOWER}")


def _initial_state(
    checkpointer: train_state.TrainStateCheckpointer | None,
    config: OptimizerConfig,
    params: decoder.Params,
    moments: checkpoint.Moments | None,
) -> tuple[TrainState, dict[str, Any]]:
    """(state, totals) of the last intact checkpoint, or of step 0."""
    # For a moment the restored state and the weights are both in memory: no more than a step's gradients take.
    if checkpointer and (restored := checkpointer.restore(abstract_state(config, params))):
        jax.tree.map(lambda leaf: leaf.delete(), params)
        return restored
    totals = {"tokens": 0, "loss_tokens": 0, "loss_first": math.nan, "loss_last": math.nan, "seconds": 0.0}
    return initial_state(config, params, moments), totals


def _sharded_batches(
    rows: packing.PackedRows, spec: FineTuneSpec, first_step: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    for batch in packing.batches(rows, spec.train.batch_rows, spec.seed, first_step):
        yield {name: sharding.put_rows(mesh, array) for name, array in batch.items()}


def prefetch_one(batches: Iterator[dict[str, jax.Array]]) -> Iterator[dict[str, jax.Array]]:
    """Prefetches one batch."""
    batch = next(batches)
    for following in batches:
        yield batch
        batch = following


class MetricsAccumulator:
    """Totals of a fine-tuning. Metrics are fetched every `log_every` steps, while the device computes the next."""

    def __init__(
        self,
        totals: dict[str, Any],
        spec: FineTuneSpec,
        on_step: Callable[[int, dict[str, Any]], None] | None,
        describe_batch: Callable[[int], str],
    ) -> None:
        self._totals, self._spec, self._on_step, self._describe_batch = totals, spec, on_step, describe_batch
        self._pending: list[tuple[int, dict[str, Any]]] = []

    def add(self, step: int, metrics: dict[str, Any]) -> bool:
        """Queues a step's metrics, which may not be computed yet; returns whether earlier ones were fetched."""
        if fetched := len(self._pending) >= self._spec.train.log_every:
            self.fetch()
        self._pending.append((step, metrics))
        # The host goes ahead of the device by one step only, or SIGTERM would wait for all that it had queued.
        jax.block_until_ready(self._pending[-2:][0][1])
        return fetched

    def fetch(self) -> None:
        """Waits for the queued metrics, adds them to the totals, and reports every `log_every`-th step and the last.

        Raises InputError if a loss or a gradient is not finite.
        """
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        for (step, _), metrics in zip(self._pending, fetched, strict=True):
            self._add(step, {name: float(value) for name, value in metrics.items()})
        self._pending.clear()

    def _add(self, step: int, values: dict[str, float]) -> None:
        for what, value in (("loss", values["loss"]), ("gradient's norm", values["gradient_norm"])):
            if not math.isfinite(value):
                raise InputError(
                    f"{self._spec.name}: the {what} of step {step} is {value}, over {self._describe_batch(step)}; "
                    f"{_LOWER} or look at these examples"
                )
        totals, every = self._totals, self._spec.train.log_every
        totals["tokens"] += int(values["tokens"])
        totals["loss_tokens"] += int(values["loss_tokens"])
        totals["loss_last"] = values["loss"]
        if step == 0:
            totals["loss_first"] = values["loss"]
        if self._on_step and ((step + 1) % every == 0 or step + 1 == self._spec.steps):
            self._on_step(step + 1, values)


@functools.partial(jax.jit, static_argnums=(0, 1, 5, 6), donate_argnums=2)
def train_step(
    model: decoder.Decoder,
    config: OptimizerConfig,
    state: TrainState,
    batch: dict[str, jax.Array],
    learning_rate: jax.Array,
    z_loss: float = 0.0,
    microbatches: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on the weighted mean of the batch's token losses. Donates the old state's buffers."""
    # Of the whole batch, not of a microbatch: the microbatches' shares add up to the mean.
    total_weight = jnp.sum(batch["weights_RT"][:, 1:])

    def share_of_mean(params, part):
        if loss.use_chunked_loss(model.spec):
            total, _ = loss.chunked_loss_sums(model, params, part, loss.ChunkOptions(z_loss))
        else:
            total, _ = loss.unchunked_loss_sums(model, params, part, z_loss)
        return total / jnp.maximum(total_weight, 1.0)

    value_and_grad: Any = jax.value_and_grad(share_of_mean)
    if microbatches > 1:
        value_and_grad = _accumulated(value_and_grad, microbatches)
    mean, gradients = value_and_grad(state.params, batch)
    gradients = _to_float32(gradients)
    # Reduce over the devices and shard like the parameters before anything is computed from them.
    gradients = placement.constrain_params(model, gradients)
    updates, opt_state = optimizer.chain(config).update(gradients, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: (p - learning_rate * u).astype(p.dtype), state.params, updates)
    metrics = {
        "loss": mean,
        "loss_tokens": total_weight,
        "tokens": jnp.sum(batch["segment_ids_RT"] > 0),
        "gradient_norm": optax.tree.norm(gradients),
    }
    return TrainState(state.step + 1, placement.constrain_params(model, params), opt_state), metrics


def _accumulated(value_and_grad: Any, microbatches: int) -> Any:
    """The same function of (params, batch), summed in float32 over the batch's microbatches one after the other."""

    def split(array_RT: jax.Array) -> jax.Array:
        # Row i goes to microbatch i % microbatches: every device keeps its rows.
        rows, length = array_RT.shape
        return array_RT.reshape(rows // microbatches, microbatches, length).swapaxes(0, 1)

    def accumulated(params: decoder.Params, batch: dict[str, jax.Array]) -> tuple[jax.Array, decoder.Params]:
        def add(total: tuple[jax.Array, decoder.Params], part: dict[str, jax.Array]) -> tuple[Any, None]:
            value, gradients = value_and_grad(params, part)
            return jax.tree.map(jnp.add, total, (value, _to_float32(gradients))), None

        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
        return jax.lax.scan(add, (jnp.zeros(()), zeros), jax.tree.map(split, batch))[0]

    return accumulated


def _to_float32(tree: decoder.Params) -> decoder.Params:
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)


def initial_state(
    config: OptimizerConfig, params: decoder.Params, moments: checkpoint.Moments | None = None
) -> TrainState:
    """The state of step 0 from these weights, whose buffers the first step donates.

    `moments`: Adam's initial moments and step count, in place of zeros.

    Moments are sharded like their parameters and counts are replicated, as a step returns them. Otherwise the moments
    would start on one device, and the second step would be compiled again.
    """
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params)
    leaves, structure = jax.tree.flatten(like)
    make, shardings = _maker(config, tuple(leaves), structure)
    opt_state = make()
    if moments is not None:
        adam = optax.ScaleByAdamState(jnp.asarray(moments.steps, jnp.int32), moments.first, moments.second)
        opt_state = jax.tree.map(
            lambda part, s: _cast_like(adam, part, s) if isinstance(part, optax.ScaleByAdamState) else part,
            opt_state,
            shardings.opt_state,
            is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState),
        )
    return TrainState(jax.device_put(np.zeros((), np.int32), shardings.step), params, opt_state)


@functools.lru_cache
def _maker(config: OptimizerConfig, leaves: tuple[Any, ...], structure: Any) -> tuple[Callable[[], Any], TrainState]:
    """(program that initializes an optimizer state, shardings of the train state); compiled once per run."""
    params = jax.tree.unflatten(structure, leaves)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, params))
    return jax.jit(lambda: _init_optimizer(config, params), out_shardings=shardings.opt_state), shardings


def abstract_state(config: OptimizerConfig, params: decoder.Params) -> TrainState:
    """Shapes, dtypes and shardings of the train state of (possibly abstract) sharded parameters."""
    opt_state = jax.eval_shape(lambda: _init_optimizer(config, params))
    state = TrainState(cast(jax.Array, jax.ShapeDtypeStruct((), jnp.int32)), params, opt_state)
    shardings = state_shardings(config, state, jax.tree.map(lambda leaf: leaf.sharding, params))
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)


def _init_optimizer(config: OptimizerConfig, params: decoder.Params) -> optax.OptState:
    # Always from float32 zeros: optax's moments take the dtype of what they are initialized from.
    return optimizer.chain(config).init(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params))


def _cast_like(tree: Any, like: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, y, s: jax.device_put(x.astype(y.dtype), s), tree, like, shardings)


def state_shardings(config: OptimizerConfig, state: TrainState, params: decoder.Params) -> TrainState:
    """The shardings of a (possibly abstract) train state whose parameters have the shardings `params`."""
    first = jax.tree.leaves(params)[0]
    scalar: Any = NamedSharding(first.mesh, PartitionSpec()) if isinstance(first, NamedSharding) else first
    moments = optax.tree_map_params(
        optimizer.chain(config), lambda _, s: s, state.opt_state, params, transform_non_params=lambda _: scalar
    )
    return TrainState(scalar, params, moments)
