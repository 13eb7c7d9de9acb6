"""The train state and the compiled train step."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from star_jax.config import OptimizerConfig
from star_jax.models import decoder
from star_jax.training import loss, optimizer
from star_jax.weights import checkpoint, placement


class TrainState(NamedTuple):
    """Everything a step updates."""

    step: jax.Array
    params: decoder.Params
    opt_state: optax.OptState


@functools.partial(jax.jit, static_argnums=(0, 1, 5, 6), donate_argnums=2)
def train_step(
    model: decoder.GPT,
    config: OptimizerConfig,
    state: TrainState,
    batch: dict[str, jax.Array],
    learning_rate: jax.Array,
    z_loss: float = 0.0,
    microbatches: int = 1,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step on the weighted mean of the batch's token losses. Donates the old state's buffers."""
    weight = jnp.sum(batch["weights_RT"][:, 1:])

    def share_of_loss(params, part):
        return loss.loss_sums(model, params, part, z_loss)[0] / jnp.maximum(weight, 1.0)

    mean, gradients = _in_parts(jax.value_and_grad(share_of_loss), state.params, batch, microbatches)
    # Reduce over the devices and shard like the parameters before anything is computed from them.
    gradients = placement.constrain_params(model, gradients)
    updates, opt_state = optimizer.chain(config).update(gradients, state.opt_state, state.params)
    params = jax.tree.map(lambda p, u: (p - learning_rate * u).astype(p.dtype), state.params, updates)
    metrics = {
        "loss": mean,
        "loss_tokens": weight,
        "tokens": jnp.sum(batch["segment_ids_RT"] > 0),
        "gradient_norm": optax.tree.norm(gradients),
    }
    return TrainState(state.step + 1, placement.constrain_params(model, params), opt_state), metrics


def _in_parts(
    value_and_grad: Callable[..., tuple[jax.Array, decoder.Params]],
    params: decoder.Params,
    batch: dict[str, jax.Array],
    microbatches: int,
) -> tuple[jax.Array, decoder.Params]:
    """Value and float32 gradients, summed over the batch's microbatches one after the other."""

    def widen(tree: decoder.Params) -> decoder.Params:
        return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), tree)

    if microbatches == 1:
        value, gradients = value_and_grad(params, batch)
        return value, widen(gradients)

    def split(array_RT: jax.Array) -> jax.Array:
        # Row i goes to microbatch i % microbatches: every device keeps its rows.
        rows, length = array_RT.shape
        return array_RT.reshape(rows // microbatches, microbatches, length).swapaxes(0, 1)

    def add(total: tuple[jax.Array, decoder.Params], part: dict[str, jax.Array]) -> tuple[Any, None]:
        value, gradients = value_and_grad(params, part)
        return jax.tree.map(jnp.add, total, (value, widen(gradients))), None

    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
    return jax.lax.scan(add, (jnp.zeros(()), zeros), jax.tree.map(split, batch))[0]


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
