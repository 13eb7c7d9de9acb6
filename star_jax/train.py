"""Fine-tuning: loss, one compiled train step, and the loop that goes over packed rows."""

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

from star_jax import checkpoint, data, hosts, loss, optimizer, sharding, stopping
from star_jax import model as gpt
from star_jax.config import OptimizerConfig, TrainConfig
from star_jax.errors import InputError


class TrainState(NamedTuple):
    """Everything a step changes."""

    step: jax.Array
    params: gpt.Params
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Report:
    """What a fine-tuning did; the content of finetune.json beside the iteration and the example counts."""

    steps: int
    tokens: int  # real tokens the steps went over, padding not counted
    loss_tokens: int  # those that carried loss
    loss_first: float  # of the first and the last step, nats a token
    loss_last: float
    seconds: float


def loss_sums(
    model: gpt.GPT, params: gpt.Params, batch: dict[str, jax.Array], z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """(summed loss in nats, summed weight) of packed rows; each token is predicted by the one before it.

    The loss is the cross-entropy + z_loss * log(sum(exp(logits - their maximum)))^2, as the released code has it (the
    usual form does not subtract the maximum).
    """
    inputs = (batch[name] for name in ("tokens_RT", "positions_RT", "segment_ids_RT"))
    logits_RTV = gpt.call(model, params, *inputs, method="segmented")[:, :-1]
    losses_RT = -gpt.log_probability(logits_RTV, batch["tokens_RT"][:, 1:])
    if z_loss:
        top_RT1 = jax.lax.stop_gradient(jnp.max(logits_RTV, axis=-1, keepdims=True))
        losses_RT += z_loss * jax.nn.logsumexp(logits_RTV - top_RT1, axis=-1) ** 2
    weights_RT = batch["weights_RT"][:, 1:]
    return jnp.sum(losses_RT * weights_RT), jnp.sum(weights_RT)


@functools.partial(jax.jit, static_argnums=(0, 1, 5, 6), donate_argnums=2)
def train_step(
    model: gpt.GPT,
    config: OptimizerConfig,
    state: TrainState,
    batch: dict[str, jax.Array],
    learning_rate: jax.Array,
    z_loss: float = 0.0,
    microbatches: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on the mean loss of the batch's weighted tokens. The old state's buffers are given up."""
    weight = jnp.sum(batch["weights_RT"][:, 1:])

    def share_of_loss(params, part):
        if loss.pays(model.config):
            return loss.loss_sums(model, params, part, loss.Options(z_loss))[0] / jnp.maximum(weight, 1.0)
        return loss_sums(model, params, part, z_loss)[0] / jnp.maximum(weight, 1.0)

    mean, gradients = _in_parts(jax.value_and_grad(share_of_loss), state.params, batch, microbatches)
    # Summed over the devices and laid out as the parameters are, before anything is computed from them.
    gradients = sharding.constrain_params(model, gradients)
    updates, opt_state = optimizer.chain(config).update(gradients, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: (p - learning_rate * u).astype(p.dtype), state.params, updates)
    metrics = {
        "loss": mean,
        "loss_tokens": weight,
        "tokens": jnp.sum(batch["segment_ids_RT"] > 0),
        "gradient_norm": optax.tree.norm(gradients),
    }
    return TrainState(state.step + 1, sharding.constrain_params(model, params), opt_state), metrics


def _in_parts(
    value_and_grad: Callable[..., tuple[jax.Array, gpt.Params]],
    params: gpt.Params,
    batch: dict[str, jax.Array],
    microbatches: int,
) -> tuple[jax.Array, gpt.Params]:
    """The sum of value and float32 gradients over the batch's microbatches, one after the other."""

    def widen(tree: gpt.Params) -> gpt.Params:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

    if microbatches == 1:
        value, gradients = value_and_grad(params, batch)
        return value, widen(gradients)

    def deal(array_RT: jax.Array) -> jax.Array:
        # Row i goes into part i % microbatches: every device keeps its rows.
        rows, length = array_RT.shape
        return array_RT.reshape(rows // microbatches, microbatches, length).swapaxes(0, 1)

    def add(total: tuple[jax.Array, gpt.Params], part: dict[str, jax.Array]) -> tuple[Any, None]:
        value, gradients = value_and_grad(params, part)
        return jax.tree.map(jnp.add, total, (value, widen(gradients))), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    return jax.lax.scan(add, (jnp.zeros(()), zeros), jax.tree.map(deal, batch))[0]


def initial_state(config: OptimizerConfig, params: gpt.Params, moments: checkpoint.Moments | None = None) -> TrainState:
    """Step 0 from these weights, whose buffers the first step gives up.

    `moments`: Adam begins with them, and as many steps on, instead of with zeros.

    Adam's moments lie where their parameters lie and the counts on every device, as a step returns them: without
    that the moments would all begin on one device, and the second step would be compiled anew.
    """
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params)
    leaves, structure = jax.tree.flatten(like)
    make, places = _maker(config, tuple(leaves), structure)
    opt_state = make()
    if moments is not None:
        adam = optax.ScaleByAdamState(jnp.asarray(moments.steps, jnp.int32), moments.first, moments.second)
        opt_state = jax.tree.map(
            lambda part, place: _cast_like(adam, part, place) if isinstance(part, optax.ScaleByAdamState) else part,
            opt_state,
            places.opt_state,
            is_leaf=lambda part: isinstance(part, optax.ScaleByAdamState),
        )
    return TrainState(jax.device_put(np.zeros((), np.int32), places.step), params, opt_state)


@functools.lru_cache
def _maker(config: OptimizerConfig, leaves: tuple[Any, ...], structure: Any) -> tuple[Callable[[], Any], TrainState]:
    """(the program that makes a fresh optimizer state, where the train state lies); compiled once, not an iteration."""
    params = jax.tree.unflatten(structure, leaves)
    places = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(config, params))
    return jax.jit(lambda: _fresh(config, params), out_shardings=places.opt_state), places


def abstract_state(config: OptimizerConfig, params: gpt.Params) -> TrainState:
    """Shapes, dtypes and shardings of the state of (possibly abstract) parameters that have shardings."""
    opt_state = jax.eval_shape(lambda: _fresh(config, params))
    state = TrainState(cast(jax.Array, jax.ShapeDtypeStruct((), jnp.int32)), params, opt_state)
    places = state_shardings(config, state, jax.tree.map(lambda leaf: leaf.sharding, params))
    return jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), state, places)


def _fresh(config: OptimizerConfig, params: gpt.Params) -> optax.OptState:
    # From float32 whatever the parameters are: of them only shapes count, and moments take the dtype they see.
    return optimizer.chain(config).init(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params))


def _cast_like(tree: Any, like: Any, places: Any) -> Any:
    return jax.tree.map(lambda x, y, place: jax.device_put(x.astype(y.dtype), place), tree, like, places)


def state_shardings(config: OptimizerConfig, state: TrainState, params: gpt.Params) -> TrainState:
    """The shardings of a (possibly abstract) train state whose parameters have the shardings `params`."""
    some = jax.tree.leaves(params)[0]
    scalar: Any = NamedSharding(some.mesh, PartitionSpec()) if isinstance(some, NamedSharding) else some
    moments = optax.tree_map_params(
        optimizer.chain(config), lambda _, place: place, state.opt_state, params, transform_non_params=lambda _: scalar
    )
    return TrainState(scalar, params, moments)


def fine_tune(
    model: gpt.GPT,
    params: gpt.Params,
    rows: data.PackedRows,
    *,
    steps: int,
    seed: int,
    train: TrainConfig,
    optimizer_config: OptimizerConfig,
    mesh: Mesh,
    peak: float | None = None,
    moments: checkpoint.Moments | None = None,
    state_dir: Path | None = None,
    on_step: Callable[[int, dict[str, Any]], None] | None = None,
) -> tuple[gpt.Params, Report]:
    """Trains `steps` steps from `params`, whose buffers are given up, and returns the new weights.

    Args:
      params: on `mesh`.
      rows: packed examples; gone over in an order fixed by `seed`, as often as the steps need.
      peak: learning rate in place of the config's.
      moments: Adam's state to begin with; a fresh one where not given.
      state_dir: where checkpoints inside this fine-tuning go (train.checkpoint_every, and when the process is told to
        stop) and it resumes from. The last two stay.
      on_step: called with (step, metrics) for every `log_every`-th step and the last.

    Raises InputError when the loss is not finite, naming the step and its rows; Stopped when the process was told to
    stop: one alone behind the step it is at, several, which have to agree, where numbers are fetched.
    """
    keeper = checkpoint.StateKeeper(state_dir) if state_dir else None
    state, totals = _begin(keeper, optimizer_config, params, moments)
    begin = int(state.step)
    started = time.monotonic() - totals["seconds"]
    account = _Account(totals, steps, train.log_every, on_step, lambda n: data.named(rows, train.batch_rows, seed, n))
    with sharding.use(mesh):
        batches = _ahead(_on_mesh(rows, train, seed, begin, mesh))
        for step, batch in zip(range(begin, steps), batches, strict=False):
            rate = optimizer.learning_rate(optimizer_config, step, steps, peak)
            state, metrics = train_step(
                model, optimizer_config, state, batch, np.float32(rate), train.z_loss, train.microbatches
            )
            fetched = account.add(step, {**metrics, "learning_rate": rate})
            told = stopping.requested() if hosts.count() == 1 else fetched and hosts.told_to_stop()
            if keeper and step + 1 < steps and (told or (step + 1) % (train.checkpoint_every or steps) == 0):
                account.fetch()
                keeper.save(state, {**totals, "seconds": time.monotonic() - started})
                if told:
                    raise stopping.Stopped
    account.fetch()
    if keeper:
        keeper.close()
    return state.params, Report(steps=steps, **{**totals, "seconds": round(time.monotonic() - started, 2)})


def _begin(
    keeper: checkpoint.StateKeeper | None,
    config: OptimizerConfig,
    params: gpt.Params,
    moments: checkpoint.Moments | None,
) -> tuple[TrainState, dict[str, Any]]:
    """(state, totals): those of the last good checkpoint, or of step 0."""
    # What is restored lies beside the weights for a moment: no more than a step's gradients take.
    if keeper and (found := keeper.restore(abstract_state(config, params))):
        jax.tree.map(lambda leaf: leaf.delete(), params)
        return found
    totals = {"tokens": 0, "loss_tokens": 0, "loss_first": math.nan, "loss_last": math.nan, "seconds": 0.0}
    return initial_state(config, params, moments), totals


def _on_mesh(
    rows: data.PackedRows, train: TrainConfig, seed: int, begin: int, mesh: Mesh
) -> Iterator[dict[str, jax.Array]]:
    for batch in data.batches(rows, train.batch_rows, seed, begin):
        yield {name: sharding.put_rows(mesh, array) for name, array in batch.items()}


def _ahead(batches: Iterator[dict[str, jax.Array]]) -> Iterator[dict[str, jax.Array]]:
    """The same, each asked for before the one in front of it is worked on: it is on its way meanwhile."""
    batch = next(batches)
    for following in batches:
        yield batch
        batch = following


class _Account:
    """What the steps come to. Their numbers are fetched once in `every` steps, while the device works on the next."""

    def __init__(
        self,
        totals: dict[str, Any],
        steps: int,
        every: int,
        on_step: Callable[[int, dict[str, Any]], None] | None,
        batch: Callable[[int], str],
    ) -> None:
        self._totals, self._steps, self._every, self._on_step, self._batch = totals, steps, every, on_step, batch
        self._pending: list[tuple[int, dict[str, Any]]] = []

    def add(self, step: int, metrics: dict[str, Any]) -> bool:
        """Takes a step's numbers, which may not be there yet; returns whether earlier steps' were fetched."""
        if fetched := len(self._pending) >= self._every:
            self.fetch()
        self._pending.append((step, metrics))
        return fetched

    def fetch(self) -> None:
        """Waits for all numbers, takes them into the totals, and reports every few steps and the last.

        Raises InputError at a loss that is no number.
        """
        fetched = jax.device_get([metrics for _, metrics in self._pending])
        for (step, _), metrics in zip(self._pending, fetched, strict=True):
            self._take(step, {name: float(value) for name, value in metrics.items()})
        self._pending.clear()

    def _take(self, step: int, values: dict[str, float]) -> None:
        if not math.isfinite(values["loss"]):
            raise InputError(
                f"fine-tuning: the loss of step {step} is {values['loss']}, over {self._batch(step)}; "
                "lower optimizer.learning_rate or look at these examples"
            )
        totals = self._totals
        totals["tokens"] += int(values["tokens"])
        totals["loss_tokens"] += int(values["loss_tokens"])
        totals["loss_last"] = values["loss"]
        if step == 0:
            totals["loss_first"] = values["loss"]
        if self._on_step and ((step + 1) % self._every == 0 or step + 1 == self._steps):
            self._on_step(step + 1, values)
