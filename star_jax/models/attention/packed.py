"""Attention of a train step over packed rows, causal within a segment.

The scores of all rows, [B, H, T, T] in float32, would be the largest array of a train step. No backend keeps them for
the backward pass: cuDNN's on CUDA GPUs, splash attention on TPUs from v4 on, blockwise attention elsewhere.
"""

import functools
from typing import Any, NamedTuple, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from star_jax.distributed import platforms
from star_jax.models.attention import dense, softmax
from star_jax.models.attention.masks import KV, SharedPrefix
from star_jax.models.attention.softmax import MASKED, ScoreSpec, SoftmaxState

BLOCK = 128  # queries, and keys. Halved on CPUs, where loop iterations are cheap and masked scores are not
SAVED = "attended"  # checkpoint name of what the backward pass needs besides its inputs


class PackedMask(NamedTuple):
    """Mask for packed training rows: causal within a segment. Without a cache or prefix."""

    segment_ids_BT: jax.Array

    def boolean(self) -> jax.Array:
        """[B, T, S]: True where query t attends to key s."""
        length = self.segment_ids_BT.shape[1]
        causal_TS = jnp.tril(jnp.ones((length, length), bool))
        return causal_TS[None] & (self.segment_ids_BT[:, :, None] == self.segment_ids_BT[:, None])

    def attend(
        self,
        q_BHTK: jax.Array,
        kv: KV,
        scores: ScoreSpec,
        positions_BT: jax.Array,
        prefix: SharedPrefix | None = None,
    ) -> jax.Array:
        """Attention output [B, H, T, K]; see masks.AttentionMask.

        Under a mesh, each device has its own rows and heads, as the logical axes "batch" and "heads" are sharded.
        """
        body = functools.partial(choose_backend(q_BHTK, scores), scores=scores)
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.empty and isinstance(q_BHTK, jax.core.Tracer):
            heads, rows = (nn.logical_to_mesh_axes(axes) for axes in (("batch", "heads", None, None), ("batch", None)))
            body = jax.shard_map(body, mesh=mesh, in_specs=(heads, heads, rows), out_specs=heads, check_vma=False)
        return body(q_BHTK, kv, self)


class Backend(Protocol):
    """Attention of packed rows on one device: (queries, keys and values, mask) -> output [B, H, T, K]."""

    def __call__(self, q_BHTK: jax.Array, kv: KV, mask: PackedMask, /, scores: ScoreSpec) -> jax.Array: ...


def choose_backend(q_BHTK: jax.Array, scores: ScoreSpec) -> Backend:
    """The fastest backend of the program's platform that takes the queries' shape and dtype, and such scores."""
    length, size = q_BHTK.shape[2:]
    is_half = q_BHTK.dtype in (jnp.bfloat16, jnp.float16)
    if (capability := platforms.cuda_capability()) > (0, 0):
        # Not `blockwise`: a loop of unknown length waits for the host at every turn.
        max_size = 256 if capability >= (9, 0) else 128
        fits = is_half and size <= max_size and size % 8 == 0 and length % 2 == 0 and not scores.softcap
        return cudnn if fits else recomputed_dense
    kind = platforms.device_kind()
    has_splash = kind.startswith("TPU") and kind not in ("TPU v2", "TPU v3")
    if has_splash and is_half and length % 128 == 0 and size % 64 == 0:
        return splash
    return blockwise


def cudnn(q_BHTK: jax.Array, kv: KV, mask: PackedMask, scores: ScoreSpec) -> jax.Array:
    """cuDNN's kernel for CUDA GPUs, which takes grouped queries and any mask, but no soft cap."""
    q_BTHK, k_BTHK, v_BTHK = (array.swapaxes(1, 2) for array in (q_BHTK, *kv))
    mask_B1TS = dense.windowed(mask.boolean(), scores)[:, None]
    y_BTHK = jax.nn.dot_product_attention(
        q_BTHK, k_BTHK, v_BTHK, mask=mask_B1TS, scale=scores.scale, implementation="cudnn"
    )
    return y_BTHK.swapaxes(1, 2)


@functools.partial(jax.checkpoint, static_argnums=(3,))
def recomputed_dense(q_BHTK: jax.Array, kv: KV, mask: PackedMask, scores: ScoreSpec) -> jax.Array:
    """Dense attention, which keeps no scores for the backward pass."""
    positions_BT = jnp.zeros(mask.segment_ids_BT.shape, jnp.int32)  # for a prefix, which there is none of
    return dense.attend(q_BHTK, kv, dense.windowed(mask.boolean(), scores), scores, positions_BT)


def splash(q_BHTK: jax.Array, kv: KV, mask: PackedMask, scores: ScoreSpec, interpret: bool = False) -> jax.Array:
    """Splash attention, JAX's kernel for TPUs. `interpret`: emulate it, on any device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, heads, length, _ = q_BHTK.shape
    block = next(block for block in (512, 256, 128) if length % block == 0)
    forward: dict[str, Any] = dict(block_q=block, block_kv=block, block_kv_compute=block)
    backward: dict[str, Any] = dict(
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block
    )
    square = (length, length)
    visible = masks.LocalMask(square, (scores.window - 1, 0), 0) if scores.window else masks.CausalMask(square)
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([visible for _ in range(heads)]),
        block_sizes=kernels.BlockSizes(**forward, **backward), head_shards=1, q_seq_shards=1, interpret=interpret,
        attn_logits_soft_cap=scores.softcap or None,
    )  # fmt: skip

    def attend_row(q_HTK, k_HTK, v_HTK, ids_T):
        return kernel(q_HTK * scores.scale, k_HTK, v_HTK, segment_ids=kernels.SegmentIds(ids_T, ids_T))

    return jax.vmap(attend_row)(q_BHTK, *kv, *mask)


def blockwise(q_BHTK: jax.Array, kv: KV, mask: PackedMask, scores: ScoreSpec) -> jax.Array:
    """Blockwise attention in plain JAX (FlashAttention; Dao et al., 2022), for platforms without a kernel.

    Rows are visited one after the other, each in blocks of queries over blocks of keys, no further back than the
    block's segments and the window reach. The backward pass computes the scores again: attention keeps its inputs, its
    output, and one number per query and head.
    """
    batch, heads, length, size = q_BHTK.shape
    block = BLOCK // 2 if platforms.is_cpu() else BLOCK
    padding = -length % block
    # Padding is a segment of its own.
    ids_BT = jnp.pad(mask.segment_ids_BT, ((0, 0), (0, padding)), constant_values=-1)

    def to_blocks(x_BHTK):  # [N, T, H, K] is the layout of the model's products, so nothing is moved
        x_BTHK = jnp.pad(x_BHTK.swapaxes(1, 2), ((0, 0), (0, padding), (0, 0), (0, 0)))
        return x_BTHK.reshape(-1, block, *x_BTHK.shape[2:])

    first_N = _first_visible_block(ids_BT, block, scores.window)
    y_NTHK = _attend_blocks(scores, *map(to_blocks, (q_BHTK, *kv)), ids_BT.reshape(-1, block), first_N)
    return y_NTHK.reshape(batch, length + padding, heads, size)[:, :length].swapaxes(1, 2)


def _first_visible_block(ids_BT, block, window):
    """[N]: for each of the N = B * T / block blocks of queries, the first block of keys that it attends to."""
    rows, length = ids_BT.shape
    first_BT = jnp.argmax(ids_BT[:, :, None] == ids_BT[:, None], axis=2)
    if window:
        first_BT = jnp.maximum(first_BT, jnp.arange(length)[None] - window + 1)
    first_BT += jnp.arange(rows)[:, None] * length
    return jnp.min(first_BT.reshape(-1, block), axis=1) // block


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend_blocks(scores, q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N):
    """Attention output [N, T, H, K] of N blocks of T tokens, those of all rows in order."""
    return _forward(scores, q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N)[0]


def _forward(scores, q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N):
    """(output, residuals: the inputs, the output, and log(sum(exp(scores))) of each query).

    Q runs over the queries of all heads that share a KV head.
    """

    def query_block(i):
        q_HQK = _group(_block(q_NTHK, i), k_NTHK)

        def key_block(back, state):
            j = i - back
            scores_HQS = scores(_products(q_HQK, _block(k_NTHK, j)))
            scores_HQS += _mask_bias(ids_NT, i, j, scores.window, q_HQK.shape[1])[None]
            return softmax.extend(
                state,
                scores_HQS,
                lambda weights_HQS: _product("HQS,HSK->HQK", weights_HQS.astype(q_HQK.dtype), _block(v_NTHK, j)),
            )

        # The diagonal comes first: a query attends to itself, so the masked scores of later blocks are below its max.
        state: SoftmaxState = jax.lax.fori_loop(0, i - first_N[i] + 1, key_block, softmax.empty(q_HQK.shape))
        y_HQK = (state.out / state.sum_exp[..., None]).astype(q_HQK.dtype)
        return _ungroup(y_HQK, q_NTHK), state.max + jnp.log(state.sum_exp)

    outputs = jax.lax.map(query_block, jnp.arange(q_NTHK.shape[0]))
    y_NTHK, log_sum_NHQ = (checkpoint_name(x, SAVED) for x in outputs)
    return y_NTHK, (q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N, y_NTHK, log_sum_NHQ)


def _backward(scores, residuals, dy_NTHK):
    """The gradient of the scores is weights * (dy v - sum(dy y)); Dao et al., appendix B."""
    q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N, y_NTHK, log_sum_NHQ = residuals
    zeros_NTHK = jnp.zeros(k_NTHK.shape)
    sum_NTH = jnp.sum(dy_NTHK.astype(jnp.float32) * y_NTHK.astype(jnp.float32), axis=-1)

    def query_block(carry, i):
        q_HQK, dy_HQK = _group(_block(q_NTHK, i), k_NTHK), _group(_block(dy_NTHK, i), k_NTHK)
        log_sum_HQ, sum_HQ = log_sum_NHQ[i], sum_NTH[i].T.reshape(q_HQK.shape[:2])

        def key_block(j, carry):
            dq_HQK, dk_NTHK, dv_NTHK = carry
            k_HSK = _block(k_NTHK, j)
            # Keys first, [S, Q]: two of the three products over the scores then need no transpose. The products sum
            # over the queries of a group, as the gradients of a shared key and value must.
            scores_HSQ = scores(_products(k_HSK, q_HQK))
            bias_SQ = _mask_bias(ids_NT, i, j, scores.window, q_HQK.shape[1]).T
            weights_HSQ = jnp.exp(scores_HSQ + bias_SQ[None] - log_sum_HQ[:, None])
            slope_HSQ = _product("HSK,HQK->HSQ", _block(v_NTHK, j), dy_HQK) - sum_HQ[:, None]
            dproducts_HSQ = (weights_HSQ * slope_HSQ * scores.slope(scores_HSQ)).astype(q_HQK.dtype)
            dk_NTHK = _add_to_block(dk_NTHK, j, _product("HSQ,HQK->HSK", dproducts_HSQ, q_HQK))
            dv_NTHK = _add_to_block(dv_NTHK, j, _product("HSQ,HQK->HSK", weights_HSQ.astype(q_HQK.dtype), dy_HQK))
            return dq_HQK + _product("HSQ,HSK->HQK", dproducts_HSQ, k_HSK), dk_NTHK, dv_NTHK

        dq_HQK, *carry = jax.lax.fori_loop(first_N[i], i + 1, key_block, (jnp.zeros(q_HQK.shape), *carry))
        return tuple(carry), _ungroup(dq_HQK.astype(q_HQK.dtype), q_NTHK)

    (dk_NTHK, dv_NTHK), dq_NTHK = jax.lax.scan(query_block, (zeros_NTHK, zeros_NTHK), jnp.arange(q_NTHK.shape[0]))
    return dq_NTHK, dk_NTHK.astype(k_NTHK.dtype), dv_NTHK.astype(v_NTHK.dtype), None, None


_attend_blocks.defvjp(_forward, _backward)


def _group(x_HTK, k_NTHK):
    """[H of the keys, Q, K] from a block of all heads."""
    return x_HTK.reshape(k_NTHK.shape[2], -1, x_HTK.shape[-1])


def _ungroup(x_HQK, q_NTHK):
    """A block [T, H, K] of all heads."""
    _, length, heads, size = q_NTHK.shape
    return x_HQK.reshape(heads, length, size).swapaxes(0, 1)


def _products(x_HTK, y_HSK):
    return _product("HTK,HSK->HTS", x_HTK, y_HSK)


def _mask_bias(ids_NT, i, j, window, queries):
    """[Q, S]: 0 where a query of block i attends to a key of block j, else MASKED; each head's queries in turn."""
    block = ids_NT.shape[1]
    offset = jnp.arange(block)
    mask_TS = i * block + offset[:, None] >= j * block + offset[None]
    mask_TS &= ids_NT[i][:, None] == ids_NT[j][None]
    if window:
        mask_TS &= (i - j) * block + offset[:, None] - offset[None] < window
    bias_TS = jnp.where(mask_TS, 0.0, MASKED)
    return bias_TS if queries == block else jnp.tile(bias_TS, (queries // block, 1))


def _product(axes, x, y):
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def _block(x_NTHK, n):
    """Block n as [H, T, K]."""
    return x_NTHK[n].swapaxes(0, 1)


def _add_to_block(x_NTHK, n, more_HTK):
    return x_NTHK.at[n].add(more_HTK.swapaxes(0, 1))
