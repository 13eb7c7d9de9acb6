"""The training loss from hidden states: logits exist for one chunk of tokens with loss at a time, never for all.

At GPT-J's vocabulary the logits of a step's tokens are larger than all else that a step keeps. So `summed` brings the
tokens that carry loss to the front, goes over them in chunks, as many as there are, and takes from each chunk's logits
the loss and, where it will be asked for, its gradient at once: nothing of a chunk outlives it. What is left to the
backward pass is a product with the loss's own gradient.

Under a mesh every device goes over its own rows. The gradient of the head's weights is summed over the devices once,
behind the last chunk; of a vocabulary that is split a chunk's maxima and sums are exchanged, never its logits.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from star_jax.config import ModelConfig
from star_jax.distributed import sharding
from star_jax.models import decoder

# Tokens: the fewer, the smaller a chunk's logits; the more, the fewer passes over the gradient of the head's weights.
CHUNK = 384
# Tokens of a chunk where fewer than CHUNK are left. Half of it is what is gone over in vain, in the mean; much fewer
# would take as long, for the head's weights have to be read for each.
TAIL = 96


@dataclasses.dataclass(frozen=True)
class Options:
    """What of the loss is fixed in a program."""

    z_loss: float = 0.0  # see config.ReplicationConfig
    chunk: int = CHUNK  # tokens of a device whose logits exist at a time
    tail: int = TAIL  # those of the last ones, unless a chunk is too small to be worth a program of its own


class Axes(NamedTuple):
    """The mesh axes over which a batch's rows, the head's stored rows and its columns are spread, if they are.

    An axis of one device is none: compilers for CPUs keep an exchange among one, and copy what is exchanged.
    """

    batch: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()


class Gradients(NamedTuple):
    """A device's own, while its chunks go by."""

    x_ND: jax.Array  # of the tokens with loss, in the order in which they are gone over
    kernel_DV: jax.Array
    bias_V: jax.Array | None


def use_chunked_loss(config: ModelConfig) -> bool:
    """Whether the logits of all tokens are worth avoiding: they are wider than what the MLP holds of each."""
    return config.vocab_size > config.d_mlp


def loss_sums(
    model: decoder.GPT, params: decoder.Params, batch: dict[str, jax.Array], options: Options = Options()
) -> tuple[jax.Array, jax.Array]:
    """(summed loss in nats, summed weight) of packed rows, as train.loss_sums has them."""
    x_RTD = decoder.call(
        model, params, batch["tokens_RT"], batch["positions_RT"], batch["segment_ids_RT"], method="packed_hidden"
    )
    kernel_DV, bias_V = decoder.head_weights(model.config, params)
    # Each token is predicted by the one before it; so the last place of a row predicts nothing.
    targets_RT, weights_RT = (jnp.pad(batch[name][:, 1:], ((0, 0), (0, 1))) for name in ("tokens_RT", "weights_RT"))
    return chunked_cross_entropy(options, x_RTD, kernel_DV, bias_V, targets_RT, weights_RT), jnp.sum(weights_RT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked_cross_entropy(
    options: Options,
    x_RTD: jax.Array,
    kernel_DV: jax.Array,
    bias_V: jax.Array | None,
    targets_RT: jax.Array,
    weights_RT: jax.Array,
) -> jax.Array:
    """The sum of weight x loss over all places, nats; a place of weight 0 costs nothing.

    Args:
      x_RTD: what the head is applied to, in the compute dtype.
      kernel_DV, bias_V: the head as it is stored, in any dtype and over the mesh; no bias: None.
      targets_RT: ids to be predicted, int32. weights_RT: of their losses; they get no gradient.
    """
    return _on_devices(options, False, x_RTD, kernel_DV, bias_V, targets_RT, weights_RT)[0]


def _forward(options, x_RTD, kernel_DV, bias_V, targets_RT, weights_RT):
    loss, *gradients = _on_devices(options, True, x_RTD, kernel_DV, bias_V, targets_RT, weights_RT)
    return loss, (gradients, targets_RT, weights_RT)


def _backward(options, kept, gradient):
    gradients, targets_RT, weights_RT = kept
    scaled = jax.tree.map(lambda leaf: (leaf * gradient).astype(leaf.dtype), gradients)
    return *scaled, jnp.zeros(targets_RT.shape, jax.dtypes.float0), jnp.zeros_like(weights_RT)


chunked_cross_entropy.defvjp(_forward, _backward)


def _on_devices(options, with_gradients, x_RTD, kernel_DV, bias_V, targets_RT, weights_RT):
    """(loss, gradients of x, kernel and bias, or None): each device has its own rows and its own vocabulary."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _over_chunks(options, with_gradients, Axes(), x_RTD, kernel_DV, bias_V, targets_RT, weights_RT)
    rules: dict[str, Any] = dict(sharding.RULES)
    named = (np.atleast_1d(rules[name]).tolist() for name in ("batch", "embed", "vocab"))
    axes = Axes(*(tuple(axis for axis in axes if mesh.shape[axis] > 1) for axes in named))
    rows, kernel, bias = PartitionSpec(axes.batch), PartitionSpec(axes.embed, axes.vocab), PartitionSpec(axes.vocab)
    gradients = (rows, kernel, bias) if with_gradients else (PartitionSpec(),) * 3
    body = jax.shard_map(
        functools.partial(_over_chunks, options, with_gradients, axes),
        mesh=mesh,
        in_specs=(rows, kernel, bias, rows, rows),
        out_specs=(PartitionSpec(), *gradients),
        check_vma=False,
    )
    return body(x_RTD, kernel_DV, bias_V, targets_RT, weights_RT)


def _over_chunks(options, with_gradients, axes, x_RTD, kernel_DV, bias_V, targets_RT, weights_RT):
    """As `_on_devices`, what a device does."""
    x_ND, targets_N, weights_N = x_RTD.reshape(-1, x_RTD.shape[-1]), targets_RT.reshape(-1), weights_RT.reshape(-1)
    head = _whole_head(axes, kernel_DV.astype(x_ND.dtype), bias_V)
    counts_N = weights_N != 0
    count = jnp.sum(counts_N)
    if axes.batch:  # those that share a vocabulary wait for each other inside, and all of them at the end
        count = jax.lax.pmax(count, axes.batch)
    chunk = min(options.chunk, x_ND.shape[0])
    tail = options.tail if 2 * options.tail <= chunk else chunk
    padding = (0, tail - 1)
    order_N = jnp.argsort(~counts_N, stable=True)
    front_N, order_N = jnp.pad(weights_N[order_N], padding), jnp.pad(order_N, padding)  # the padding weighs nothing

    def turn(size, start, i, carry):
        place = start + i * size
        order_C, weights_C = (jax.lax.dynamic_slice_in_dim(of, place, size) for of in (order_N, front_N))
        x_CD = jnp.where(weights_C[:, None] != 0, x_ND[order_C], 0)  # the last chunk is filled with what does not count
        loss, dlogits_CV = _chunk(options, with_gradients, axes, head, x_CD, targets_N[order_C], weights_C)
        return carry[0] + loss, carry[1] and _add(axes, head, carry[1], place, x_CD, dlogits_CV)

    gradients = None
    if with_gradients:
        dx_ND = jnp.zeros((order_N.shape[0], x_ND.shape[1]), x_ND.dtype)
        gradients = Gradients(dx_ND, *jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), head))
    carry, whole = (jnp.zeros(()), gradients), 0
    if tail < chunk:
        whole = count // chunk * chunk
        carry = jax.lax.fori_loop(0, whole // chunk, functools.partial(turn, chunk, 0), carry)
    turns = -(-(count - whole) // tail)
    loss, gradients = jax.lax.fori_loop(0, turns, functools.partial(turn, tail, whole), carry)
    if axes.batch:
        loss = jax.lax.psum(loss, axes.batch)
    if not with_gradients:
        return loss, None, None, None
    place_N = jnp.cumsum(counts_N) - 1  # of a token among those with loss
    dx_ND = jnp.where(counts_N[:, None], gradients.x_ND[place_N], 0)
    dkernel_DV, dbias_V = _sum_over_rows(axes, gradients.kernel_DV, gradients.bias_V)
    dbias_V = None if dbias_V is None else dbias_V.astype(bias_V.dtype)
    return loss, dx_ND.reshape(x_RTD.shape), dkernel_DV.astype(kernel_DV.dtype), dbias_V


def _whole_head(axes, kernel_DV, bias_V):
    """The head, whole along the axis that only stores it."""
    if axes.embed:
        kernel_DV = jax.lax.all_gather(kernel_DV, axes.embed, axis=0, tiled=True)
    return kernel_DV, bias_V


def _sum_over_rows(axes, kernel_DV, bias_V):
    """Gradients summed over the devices' rows; each device keeps the part of the kernel's that it stores."""
    if axes.embed:
        kernel_DV = jax.lax.psum_scatter(kernel_DV, axes.embed, scatter_dimension=0, tiled=True)
    if others := tuple(axis for axis in axes.batch if axis not in axes.embed):
        kernel_DV = jax.lax.psum(kernel_DV, others)
    return kernel_DV, jax.lax.psum(bias_V, axes.batch) if axes.batch else bias_V


def _chunk(options, with_gradients, axes, head, x_CD, targets_C, weights_C):
    """(the sum of weight x loss, its gradient at the logits [C, V] in float32), V being this device's vocabulary."""
    kernel_DV, bias_V = head
    logits_CV = jnp.matmul(x_CD, kernel_DV, preferred_element_type=jnp.float32)
    if bias_V is not None:
        logits_CV += bias_V.astype(x_CD.dtype).astype(jnp.float32)[None]
    vocabulary, place_C = logits_CV.shape[1], targets_C
    top_C = jnp.max(logits_CV, axis=1)
    if axes.vocab:
        place_C = targets_C - jax.lax.axis_index(axes.vocab) * vocabulary
        top_C = jax.lax.pmax(top_C, axes.vocab)
    exp_CV = jnp.exp(logits_CV - top_C[:, None])
    sum_C = jnp.sum(exp_CV, axis=1)
    picked_C = jnp.take_along_axis(logits_CV, jnp.clip(place_C, 0, vocabulary - 1)[:, None], axis=1)[:, 0]
    at_target_C = jnp.where((place_C >= 0) & (place_C < vocabulary), picked_C, 0.0)
    if axes.vocab:
        sum_C, at_target_C = jax.lax.psum((sum_C, at_target_C), axes.vocab)
    log_sum_C = jnp.log(sum_C)
    loss = jnp.sum(weights_C * (log_sum_C + top_C - at_target_C + options.z_loss * log_sum_C**2))
    if not with_gradients:
        return loss, None
    scale_C = weights_C * (1 + 2 * options.z_loss * log_sum_C) / sum_C
    at_target_CV = jnp.arange(vocabulary)[None] == place_C[:, None]
    return loss, scale_C[:, None] * exp_CV - jnp.where(at_target_CV, weights_C[:, None], 0.0)


def _add(axes, head, gradients, place, x_CD, dlogits_CV):
    """The gradients with a chunk's."""
    narrow_CV = dlogits_CV.astype(x_CD.dtype)
    dx_CD = narrow_CV @ head[0].T
    if axes.vocab:
        dx_CD = jax.lax.psum(dx_CD, axes.vocab)
    # Transposed beforehand: XLA's product for CPUs takes a third longer where it transposes an operand by itself.
    x_DC = jax.lax.optimization_barrier(x_CD.T)
    return Gradients(
        jax.lax.dynamic_update_slice_in_dim(gradients.x_ND, dx_CD, place, axis=0),
        gradients.kernel_DV + jnp.matmul(x_DC, narrow_CV, preferred_element_type=jnp.float32),
        None if gradients.bias_V is None else gradients.bias_V + _column_sums(dlogits_CV),
    )


def _column_sums(array_CV):
    """[V], as a product: XLA's own sum over rows takes sixty times as long on CPUs."""
    return jnp.matmul(jnp.ones(array_CV.shape[:1], array_CV.dtype), array_CV, precision=jax.lax.Precision.HIGHEST)
