"""Cross-entropy of packed rows. If the vocabulary is wide, logits exist for one chunk of tokens at a time only.

At GPT-J's vocabulary, a batch's logits would be larger than everything else that a train step keeps. The chunked loss
moves the tokens that carry loss to the front, computes logits for one chunk of them after the other, and takes the loss
and its gradients from each chunk at once. The backward pass only scales these gradients.

Under a mesh, each device visits its own rows. The gradient of the head's weights is reduced over the devices once,
after the last chunk. If the vocabulary is sharded, devices exchange each chunk's maxima and sums, never its logits.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from star_jax.distributed import sharding
from star_jax.models import decoder
from star_jax.models.layers import softcap
from star_jax.models.spec import DecoderSpec

# Chunk size in tokens per device. Smaller: a chunk's logits take less memory. Larger: fewer passes over the gradient of
# the head's weights.
CHUNK = 384
# Chunk size for the remainder. On average half of it is padding; smaller does not help, since each chunk re-reads the
# head.
TAIL = 96


@dataclasses.dataclass(frozen=True)
class ChunkOptions:
    """Static options of the chunked loss."""

    z_loss: float = 0.0  # see unchunked_loss_sums
    chunk: int = CHUNK
    tail: int = TAIL  # unused if it is more than half of a chunk
    logit_softcap: float = 0.0  # of the model; see DecoderSpec


def use_chunked_loss(spec: DecoderSpec) -> bool:
    """True if a token's logits are wider than its activations in the MLP, so that avoiding them saves memory."""
    return spec.vocab_size > spec.d_mlp


def unchunked_loss_sums(
    model: decoder.Decoder, params: decoder.Params, batch: dict[str, jax.Array], z_loss: float = 0.0
) -> tuple[jax.Array, jax.Array]:
    """(sum of weight * loss in nats, sum of weights) of packed rows. Each token is predicted by the one before it.

    The logits of all tokens exist at once: for narrow vocabularies, such as the demo's. The loss is the cross-entropy
    + z_loss * log(sum(exp(logits - their maximum)))^2, as in the released code of the paper; the usual form does not
    subtract the maximum.

    Args:
      batch: tokens_RT, positions_RT and segment_ids_RT, int32, and weights_RT, float32: the weight of each token as a
        target.
    """
    inputs = (batch[name] for name in ("tokens_RT", "positions_RT", "segment_ids_RT"))
    logits_RTV = decoder.call(model, params, *inputs, method="packed_logits")[:, :-1]
    losses_RT = -decoder.log_probability(logits_RTV, batch["tokens_RT"][:, 1:])
    if z_loss:
        max_RT1 = jax.lax.stop_gradient(jnp.max(logits_RTV, axis=-1, keepdims=True))
        losses_RT += z_loss * jax.nn.logsumexp(logits_RTV - max_RT1, axis=-1) ** 2
    weights_RT = batch["weights_RT"][:, 1:]
    return jnp.sum(losses_RT * weights_RT), jnp.sum(weights_RT)


def chunked_loss_sums(
    model: decoder.Decoder, params: decoder.Params, batch: dict[str, jax.Array], options: ChunkOptions = ChunkOptions()
) -> tuple[jax.Array, jax.Array]:
    """`unchunked_loss_sums` with logits for one chunk of tokens at a time; for wide vocabularies, such as GPT-J's."""
    inputs = (batch[name] for name in ("tokens_RT", "positions_RT", "segment_ids_RT"))
    x_RTD: Any = model.apply({"params": params}, *inputs, method="packed_hidden")
    kernel_DV, bias_V = decoder.head_weights(model.spec, params)
    # A token's target is the next one; the last token of a row has none.
    targets_RT, weights_RT = (jnp.pad(batch[name][:, 1:], ((0, 0), (0, 1))) for name in ("tokens_RT", "weights_RT"))
    options = dataclasses.replace(options, logit_softcap=model.spec.logit_softcap)
    return chunked_cross_entropy(options, x_RTD, kernel_DV, bias_V, targets_RT, weights_RT), jnp.sum(weights_RT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def chunked_cross_entropy(
    options: ChunkOptions,
    x_RTD: jax.Array,
    kernel_DV: jax.Array,
    bias_V: jax.Array | None,
    targets_RT: jax.Array,
    weights_RT: jax.Array,
) -> jax.Array:
    """The sum of weight * loss over all tokens, in nats. Tokens of weight 0 cost nothing.

    Args:
      x_RTD: inputs of the output head, in the compute dtype.
      kernel_DV: the head's weights, in the stored dtype; bias_V likewise.
      targets_RT: ids to be predicted, int32.
      weights_RT: float32; they get no gradient.
    """
    return _on_each_device(options, False, x_RTD, kernel_DV, bias_V, targets_RT, weights_RT)[0]


def _forward(options, x_RTD, kernel_DV, bias_V, targets_RT, weights_RT):
    loss, *gradients = _on_each_device(options, True, x_RTD, kernel_DV, bias_V, targets_RT, weights_RT)
    return loss, (gradients, targets_RT, weights_RT)


def _backward(options, residuals, dloss):
    gradients, targets_RT, weights_RT = residuals
    scaled = jax.tree.map(lambda leaf: (leaf * dloss).astype(leaf.dtype), gradients)
    return *scaled, jnp.zeros(targets_RT.shape, jax.dtypes.float0), jnp.zeros_like(weights_RT)


chunked_cross_entropy.defvjp(_forward, _backward)


class _Axes(NamedTuple):
    """Mesh axes that shard a batch's rows, the head's stored rows (FSDP) and its columns.

    Axes of one device are left out: XLA:CPU keeps a collective over one device and copies its operand.
    """

    batch: tuple[str, ...] = ()
    embed: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()


class _Gradients(NamedTuple):
    """A device's gradients, accumulated over its chunks."""

    x_ND: jax.Array  # of the tokens with loss, in the order of the chunks
    kernel_DV: jax.Array
    bias_V: jax.Array | None


def _on_each_device(options, with_gradients, x_RTD, kernel_DV, bias_V, targets_RT, weights_RT):
    """(loss, gradients of x, kernel and bias, or None). Each device has its own rows and its part of the vocabulary."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return _over_chunks(options, with_gradients, _Axes(), x_RTD, kernel_DV, bias_V, targets_RT, weights_RT)
    rules: dict[str, Any] = dict(sharding.RULES)
    mesh_axes = (np.atleast_1d(rules[name]).tolist() for name in ("batch", "embed", "vocab"))
    axes = _Axes(*(tuple(axis for axis in axes if mesh.shape[axis] > 1) for axes in mesh_axes))
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
    """_on_each_device, for one device."""
    x_ND, targets_N, weights_N = x_RTD.reshape(-1, x_RTD.shape[-1]), targets_RT.reshape(-1), weights_RT.reshape(-1)
    head = _gather_head(axes, kernel_DV.astype(x_ND.dtype), bias_V)
    has_loss_N = weights_N != 0
    count = jnp.sum(has_loss_N)
    if axes.batch:  # every device visits as many chunks, since a chunk's collectives and the last ones need all of them
        count = jax.lax.pmax(count, axes.batch)
    chunk = min(options.chunk, x_ND.shape[0])
    tail = options.tail if 2 * options.tail <= chunk else chunk
    padding = (0, tail - 1)
    order_N = jnp.argsort(~has_loss_N, stable=True)
    sorted_weights_N, order_N = jnp.pad(weights_N[order_N], padding), jnp.pad(order_N, padding)  # padding: weight 0

    def add_chunk(size, start, i, carry):
        offset = start + i * size
        order_C, weights_C = (jax.lax.dynamic_slice_in_dim(x_N, offset, size) for x_N in (order_N, sorted_weights_N))
        x_CD = jnp.where(weights_C[:, None] != 0, x_ND[order_C], 0)  # the last chunk holds tokens without loss, too
        loss, dlogits_CV = _chunk_loss(options, with_gradients, axes, head, x_CD, targets_N[order_C], weights_C)
        return carry[0] + loss, carry[1] and _add_gradients(axes, head, carry[1], offset, x_CD, dlogits_CV)

    gradients = None
    if with_gradients:
        dx_ND = jnp.zeros((order_N.shape[0], x_ND.shape[1]), x_ND.dtype)
        gradients = _Gradients(dx_ND, *jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), head))
    carry, in_chunks = (jnp.zeros(()), gradients), 0
    if tail < chunk:
        in_chunks = count // chunk * chunk
        carry = jax.lax.fori_loop(0, in_chunks // chunk, functools.partial(add_chunk, chunk, 0), carry)
    tails = -(-(count - in_chunks) // tail)
    loss, gradients = jax.lax.fori_loop(0, tails, functools.partial(add_chunk, tail, in_chunks), carry)
    if axes.batch:
        loss = jax.lax.psum(loss, axes.batch)
    if not with_gradients:
        return loss, None, None, None
    index_N = jnp.cumsum(has_loss_N) - 1  # of a token among those with loss
    dx_ND = jnp.where(has_loss_N[:, None], gradients.x_ND[index_N], 0)
    dkernel_DV, dbias_V = _reduce_over_rows(axes, gradients.kernel_DV, gradients.bias_V)
    dbias_V = None if dbias_V is None else dbias_V.astype(bias_V.dtype)
    return loss, dx_ND.reshape(x_RTD.shape), dkernel_DV.astype(kernel_DV.dtype), dbias_V


def _gather_head(axes, kernel_DV, bias_V):
    """The head with its FSDP axis gathered."""
    if axes.embed:
        kernel_DV = jax.lax.all_gather(kernel_DV, axes.embed, axis=0, tiled=True)
    return kernel_DV, bias_V


def _reduce_over_rows(axes, kernel_DV, bias_V):
    """The head's gradients summed over the devices' rows. Each device keeps the rows of the kernel that it stores."""
    if axes.embed:
        kernel_DV = jax.lax.psum_scatter(kernel_DV, axes.embed, scatter_dimension=0, tiled=True)
    if others := tuple(axis for axis in axes.batch if axis not in axes.embed):
        kernel_DV = jax.lax.psum(kernel_DV, others)
    return kernel_DV, jax.lax.psum(bias_V, axes.batch) if axes.batch else bias_V


def _chunk_loss(options, with_gradients, axes, head, x_CD, targets_C, weights_C):
    """(sum of weight * loss, its gradient for the logits [C, V], float32), where V is this device's vocabulary."""
    kernel_DV, bias_V = head
    logits_CV = jnp.matmul(x_CD, kernel_DV, preferred_element_type=jnp.float32)
    if bias_V is not None:
        logits_CV += bias_V.astype(x_CD.dtype).astype(jnp.float32)[None]
    logits_CV = softcap(logits_CV, options.logit_softcap)
    vocabulary, index_C = logits_CV.shape[1], targets_C
    max_C = jnp.max(logits_CV, axis=1)
    if axes.vocab:
        index_C = targets_C - jax.lax.axis_index(axes.vocab) * vocabulary
        max_C = jax.lax.pmax(max_C, axes.vocab)
    exp_CV = jnp.exp(logits_CV - max_C[:, None])
    sum_C = jnp.sum(exp_CV, axis=1)
    clipped_logit_C = jnp.take_along_axis(logits_CV, jnp.clip(index_C, 0, vocabulary - 1)[:, None], axis=1)[:, 0]
    target_logit_C = jnp.where((index_C >= 0) & (index_C < vocabulary), clipped_logit_C, 0.0)
    if axes.vocab:
        sum_C, target_logit_C = jax.lax.psum((sum_C, target_logit_C), axes.vocab)
    log_sum_C = jnp.log(sum_C)
    loss = jnp.sum(weights_C * (log_sum_C + max_C - target_logit_C + options.z_loss * log_sum_C**2))
    if not with_gradients:
        return loss, None
    scale_C = weights_C * (1 + 2 * options.z_loss * log_sum_C) / sum_C
    is_target_CV = jnp.arange(vocabulary)[None] == index_C[:, None]
    dlogits_CV = scale_C[:, None] * exp_CV - jnp.where(is_target_CV, weights_C[:, None], 0.0)
    if options.logit_softcap:
        dlogits_CV *= 1 - jnp.square(logits_CV / options.logit_softcap)
    return loss, dlogits_CV


def _add_gradients(axes, head, gradients, offset, x_CD, dlogits_CV):
    """The gradients with those of the chunk at `offset` added."""
    narrow_CV = dlogits_CV.astype(x_CD.dtype)
    dx_CD = narrow_CV @ head[0].T
    if axes.vocab:
        dx_CD = jax.lax.psum(dx_CD, axes.vocab)
    # Transposed explicitly: a product whose operand XLA:CPU transposes itself takes a third longer.
    x_DC = jax.lax.optimization_barrier(x_CD.T)
    return _Gradients(
        jax.lax.dynamic_update_slice_in_dim(gradients.x_ND, dx_CD, offset, axis=0),
        gradients.kernel_DV + jnp.matmul(x_DC, narrow_CV, preferred_element_type=jnp.float32),
        None if gradients.bias_V is None else gradients.bias_V + _column_sums(dlogits_CV),
    )


def _column_sums(x_CV):
    """[V], as a product: on CPUs, XLA's own sum over rows takes sixty times as long."""
    return jnp.matmul(jnp.ones(x_CV.shape[:1], x_CV.dtype), x_CV, precision=jax.lax.Precision.HIGHEST)
