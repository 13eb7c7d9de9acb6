"""Attention of a train step over packed rows, causal within a segment.

The scores of all rows, [B, H, T, T] in float32, would be the largest array of a train step. No backend keeps them for
the backward pass: cuDNN's on CUDA GPUs, splash attention on TPUs from v4 on, blockwise attention elsewhere.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from star_jax.distributed import platforms
from star_jax.models.attention import dense, softmax
from star_jax.models.attention.masks import KV, SharedPrefix
from star_jax.models.attention.softmax import MASKED, SoftmaxState

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

    def attend(self, q_BHTK: jax.Array, kv: KV, prefix: SharedPrefix | None = None) -> jax.Array:
        """Attention output [B, H, T, K]; see masks.AttentionMask.

        Under a mesh, each device has its own rows and heads, as the logical axes "batch" and "heads" are sharded.
        """
        body = choose_backend(q_BHTK)
        mesh = jax.sharding.get_abstract_mesh()
        if not mesh.empty and isinstance(q_BHTK, jax.core.Tracer):
            heads, rows = (nn.logical_to_mesh_axes(axes) for axes in (("batch", "heads", None, None), ("batch", None)))
            body = jax.shard_map(body, mesh=mesh, in_specs=(heads, heads, rows), out_specs=heads, check_vma=False)
        return body(q_BHTK, kv, self)


def choose_backend(q_BHTK: jax.Array) -> Callable[[jax.Array, KV, PackedMask], jax.Array]:
    """The fastest backend of the program's platform that takes the queries' shape and dtype."""
    length, size = q_BHTK.shape[2:]
    is_half = q_BHTK.dtype in (jnp.bfloat16, jnp.float16)
    if (capability := platforms.cuda_capability()) > (0, 0):
        # Not `blockwise`: a loop of unknown length waits for the host at every turn.
        max_size = 256 if capability >= (9, 0) else 128
        fits = is_half and size <= max_size and size % 8 == 0 and length % 2 == 0
        return _cudnn if fits else _recomputed_dense
    kind = platforms.device_kind()
    has_splash = kind.startswith("TPU") and kind not in ("TPU v2", "TPU v3")
    if has_splash and is_half and length % 128 == 0 and size % 128 == 0:
        return splash
    return blockwise


def _cudnn(q_BHTK, kv, mask):
    q_BTHK, k_BTHK, v_BTHK = (array.swapaxes(1, 2) for array in (q_BHTK, *kv))
    mask_B1TS = mask.boolean()[:, None]
    y_BTHK = jax.nn.dot_product_attention(q_BTHK, k_BTHK, v_BTHK, mask=mask_B1TS, implementation="cudnn")
    return y_BTHK.swapaxes(1, 2)


@jax.checkpoint
def _recomputed_dense(q_BHTK, kv, mask):
    return dense.attend(q_BHTK, kv, mask.boolean())


def splash(q_BHTK: jax.Array, kv: KV, mask: PackedMask, interpret: bool = False) -> jax.Array:
    """Splash attention, JAX's kernel for TPUs. `interpret`: emulate it, on any device."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, heads, length, size = q_BHTK.shape
    block = next(block for block in (512, 256, 128) if length % block == 0)
    forward: dict[str, Any] = dict(block_q=block, block_kv=block, block_kv_compute=block)
    backward: dict[str, Any] = dict(
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block
    )
    kernel = kernels.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, length)) for _ in range(heads)]),
        block_sizes=kernels.BlockSizes(**forward, **backward), head_shards=1, q_seq_shards=1, interpret=interpret,
    )  # fmt: skip

    def attend_row(q_HTK, k_HTK, v_HTK, ids_T):
        return kernel(q_HTK * size**-0.5, k_HTK, v_HTK, segment_ids=kernels.SegmentIds(ids_T, ids_T))

    return jax.vmap(attend_row)(q_BHTK, *kv, *mask)


def blockwise(q_BHTK: jax.Array, kv: KV, mask: PackedMask) -> jax.Array:
    """Blockwise attention in plain JAX (FlashAttention; Dao et al., 2022), for platforms without a kernel.

    Rows are visited one after the other, each in blocks of queries over blocks of keys, no further back than the
    block's segments reach. The backward pass computes the scores again: attention keeps its inputs, its output, and
    one number per query and head.
    """
    batch, heads, length, size = q_BHTK.shape
    block = BLOCK // 2 if platforms.is_cpu() else BLOCK
    padding = -length % block
    # Padding is a segment of its own.
    ids_BT = jnp.pad(mask.segment_ids_BT, ((0, 0), (0, padding)), constant_values=-1)

    def to_blocks(x_BHTK):  # [N, T, H, K] is the layout of the model's products, so nothing is moved
        x_BTHK = jnp.pad(x_BHTK.swapaxes(1, 2), ((0, 0), (0, padding), (0, 0), (0, 0)))
        return x_BTHK.reshape(-1, block, heads, size)

    first_N = _first_visible_block(ids_BT, block)
    y_NTHK = _attend_blocks(*map(to_blocks, (q_BHTK, *kv)), ids_BT.reshape(-1, block), first_N)
    return y_NTHK.reshape(batch, length + padding, heads, size)[:, :length].swapaxes(1, 2)


def _first_visible_block(ids_BT, block):
    """[N]: for each of the N = B * T / block blocks of queries, the first block of keys that it attends to."""
    rows, length = ids_BT.shape
    first_BT = jnp.argmax(ids_BT[:, :, None] == ids_BT[:, None], axis=2) + jnp.arange(rows)[:, None] * length
    return jnp.min(first_BT.reshape(-1, block), axis=1) // block


@jax.custom_vjp
def _attend_blocks(q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N):
    """Attention output [N, T, H, K] of N blocks of T tokens, those of all rows in order."""
    return _forward(q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N)[0]


def _forward(q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N):
    """(output, residuals: the inputs, the output, and log(sum(exp(scores))) of each query)."""

    def query_block(i):
        q_HTK = _block(q_NTHK, i)

        def key_block(back, state):
            j = i - back
            scores_HTS = _scores(q_HTK, _block(k_NTHK, j)) + _mask_bias(ids_NT, i, j)[None]
            return softmax.extend(
                state,
                scores_HTS,
                lambda weights_HTS: _product("HTS,HSK->HTK", weights_HTS.astype(q_HTK.dtype), _block(v_NTHK, j)),
            )

        # The diagonal comes first: a query attends to itself, so the masked scores of later blocks are below its max.
        state: SoftmaxState = jax.lax.fori_loop(0, i - first_N[i] + 1, key_block, softmax.empty(q_HTK.shape))
        y_THK = (state.out / state.sum_exp[..., None]).astype(q_HTK.dtype).swapaxes(0, 1)
        return y_THK, state.max + jnp.log(state.sum_exp)

    outputs = jax.lax.map(query_block, jnp.arange(q_NTHK.shape[0]))
    y_NTHK, log_sum_NHT = (checkpoint_name(x, SAVED) for x in outputs)
    return y_NTHK, (q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N, y_NTHK, log_sum_NHT)


def _backward(residuals, dy_NTHK):
    """The gradient of the scores is weights * (dy v - sum(dy y)); Dao et al., appendix B."""
    q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N, y_NTHK, log_sum_NHT = residuals
    zeros_NTHK = jnp.zeros(q_NTHK.shape)
    sum_NTH = jnp.sum(dy_NTHK.astype(jnp.float32) * y_NTHK.astype(jnp.float32), axis=-1)

    def query_block(carry, i):
        q_HTK, dy_HTK = _block(q_NTHK, i), _block(dy_NTHK, i)
        log_sum_HT, sum_HT = log_sum_NHT[i], sum_NTH[i].T

        def key_block(j, carry):
            dq_HTK, dk_NTHK, dv_NTHK = carry
            k_HSK = _block(k_NTHK, j)
            # Keys first, [S, T]: two of the three products over the scores then need no transpose.
            weights_HST = jnp.exp(_scores(k_HSK, q_HTK) + _mask_bias(ids_NT, i, j).T[None] - log_sum_HT[:, None])
            slope_HST = _product("HSK,HTK->HST", _block(v_NTHK, j), dy_HTK) - sum_HT[:, None]
            dscores_HST = (weights_HST * slope_HST * q_HTK.shape[-1] ** -0.5).astype(q_HTK.dtype)
            dk_NTHK = _add_to_block(dk_NTHK, j, _product("HST,HTK->HSK", dscores_HST, q_HTK))
            dv_NTHK = _add_to_block(dv_NTHK, j, _product("HST,HTK->HSK", weights_HST.astype(q_HTK.dtype), dy_HTK))
            return dq_HTK + _product("HST,HSK->HTK", dscores_HST, k_HSK), dk_NTHK, dv_NTHK

        dq_HTK, *carry = jax.lax.fori_loop(first_N[i], i + 1, key_block, (jnp.zeros(q_HTK.shape), *carry))
        return tuple(carry), dq_HTK.astype(q_HTK.dtype).swapaxes(0, 1)

    (dk_NTHK, dv_NTHK), dq_NTHK = jax.lax.scan(query_block, (zeros_NTHK, zeros_NTHK), jnp.arange(q_NTHK.shape[0]))
    return dq_NTHK, dk_NTHK.astype(k_NTHK.dtype), dv_NTHK.astype(v_NTHK.dtype), None, None


_attend_blocks.defvjp(_forward, _backward)


def _scores(q_HTK, k_HSK):
    return _product("HTK,HSK->HTS", q_HTK, k_HSK) * q_HTK.shape[-1] ** -0.5


def _mask_bias(ids_NT, i, j):
    """[T, S]: 0 where a query of block i attends to a key of block j, else MASKED."""
    block = ids_NT.shape[1]
    offset = jnp.arange(block)
    mask_TS = i * block + offset[:, None] >= j * block + offset[None]
    mask_TS &= ids_NT[i][:, None] == ids_NT[j][None]
    return jnp.where(mask_TS, 0.0, MASKED)


def _product(axes, x, y):
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def _block(x_NTHK, n):
    """Block n as [H, T, K]."""
    return x_NTHK[n].swapaxes(0, 1)


def _add_to_block(x_NTHK, n, more_HTK):
    return x_NTHK.at[n].add(more_HTK.swapaxes(0, 1))
