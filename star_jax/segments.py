"""Attention of training, over packed rows: a token sees those of its own segment up to itself.

The scores of all rows at once, [B, H, T, T] in float32, would be the largest array of a step. So rows are gone over one
after the other, and each in blocks of queries over blocks of keys, no further back than the block's segments reach
(online softmax; Dao et al., 2022). Scores are made again in the backward pass: of a layer's attention nothing is kept
but its inputs, its outputs and a number a query. Where the platform has a kernel that does so for all rows at once, it
is taken: cuDNN's on CUDA GPUs (where a loop of unknown length waits for its host), splash attention on TPUs from v4 on.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax import cuda
from star_jax.attention import masked

BLOCK = 128  # queries, and keys
_LOW = jnp.finfo(jnp.float32).min


def attend(q_BHTK: jax.Array, k_BHTK: jax.Array, v_BHTK: jax.Array, segment_ids_BT: jax.Array) -> jax.Array:
    """softmax(q k / sqrt(K)) v [B, H, T, K] over the tokens of a query's own segment up to itself, scores in float32.

    Under a mesh every device has its own rows and heads, as the logical axes "batch" and "heads" say.
    """
    mesh = jax.sharding.get_abstract_mesh()
    body = _best(q_BHTK, None if mesh.empty else mesh.abstract_device)
    if mesh.empty or not isinstance(q_BHTK, jax.core.Tracer):
        return body(q_BHTK, k_BHTK, v_BHTK, segment_ids_BT)
    heads, ids = (nn.logical_to_mesh_axes(axes) for axes in (("batch", "heads", None, None), ("batch", None)))
    body = jax.shard_map(body, mesh=mesh, in_specs=(heads, heads, heads, ids), out_specs=heads, check_vma=False)
    return body(q_BHTK, k_BHTK, v_BHTK, segment_ids_BT)


def _best(q_BHTK, device):
    """The way that the program's device has for heads and rows of these sizes."""
    length, size = q_BHTK.shape[2:]
    half = q_BHTK.dtype in (jnp.bfloat16, jnp.float16)
    if (capability := cuda.capability()) > (0, 0):
        largest = 256 if capability >= (9, 0) else 128
        return _cudnn if half and size <= largest and size % 8 == 0 and length % 2 == 0 else jax.checkpoint(_at_once)
    is_tpu = device is not None and device.device_kind.startswith("TPU")
    if is_tpu and device.device_kind not in ("TPU v2", "TPU v3") and half and not length % 128 and not size % 128:
        return _splash
    return _rows


def _cudnn(q_BHTK, k_BHTK, v_BHTK, ids_BT):
    q_BTHK, k_BTHK, v_BTHK = (array.swapaxes(1, 2) for array in (q_BHTK, k_BHTK, v_BHTK))
    seen_B1TS = _seen(ids_BT)[:, None]
    y_BTHK = jax.nn.dot_product_attention(q_BTHK, k_BTHK, v_BTHK, mask=seen_B1TS, implementation="cudnn")
    return y_BTHK.swapaxes(1, 2)


def _splash(q_BHTK, k_BHTK, v_BHTK, ids_BT, interpret=False):
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    _, heads, length, size = q_BHTK.shape
    block = next(block for block in (512, 256, 128) if length % block == 0)
    forward: dict[str, Any] = dict(block_q=block, block_kv=block, block_kv_compute=block)
    backward: dict[str, Any] = dict(
        block_q_dkv=block, block_kv_dkv=block, block_kv_dkv_compute=block, block_q_dq=block, block_kv_dq=block
    )
    kernel = splash.make_splash_mha(
        masks.MultiHeadMask([masks.CausalMask((length, length)) for _ in range(heads)]),
        block_sizes=splash.BlockSizes(**forward, **backward), head_shards=1, q_seq_shards=1, interpret=interpret,
    )  # fmt: skip

    def of_row(q_HTK, k_HTK, v_HTK, ids_T):
        return kernel(q_HTK * size**-0.5, k_HTK, v_HTK, segment_ids=splash.SegmentIds(ids_T, ids_T))

    return jax.vmap(of_row)(q_BHTK, k_BHTK, v_BHTK, ids_BT)


def _at_once(q_BHTK, k_BHTK, v_BHTK, ids_BT):
    return masked(q_BHTK, k_BHTK, v_BHTK, _seen(ids_BT))


def _seen(ids_BT):
    """[B, T, S]: True where query t may see key s."""
    length = ids_BT.shape[1]
    return jnp.tril(jnp.ones((length, length), bool)) & (ids_BT[:, :, None] == ids_BT[:, None])


def _rows(q_BHTK, k_BHTK, v_BHTK, ids_BT):
    length = ids_BT.shape[1]
    padding = -length % BLOCK
    if padding:  # a segment of its own
        q_BHTK, k_BHTK, v_BHTK = (jnp.pad(x, ((0, 0), (0, 0), (0, padding), (0, 0))) for x in (q_BHTK, k_BHTK, v_BHTK))
        ids_BT = jnp.pad(ids_BT, ((0, 0), (0, padding)), constant_values=-1)
    return jax.lax.map(lambda row: _row(*row), (q_BHTK, k_BHTK, v_BHTK, ids_BT))[:, :, :length]


@jax.custom_vjp
def _row(q_HTK, k_HTK, v_HTK, ids_T):
    """[H, T, K] of one row, T a multiple of BLOCK."""
    return _forward(q_HTK, k_HTK, v_HTK, ids_T)[0]


def _forward(q_HTK, k_HTK, v_HTK, ids_T):
    """(y, what the backward pass needs: the inputs, y, and log(sum(exp(scores))) of each query)."""
    (heads, length, size), first_N = q_HTK.shape, _first_blocks(ids_T)

    def block(i):
        def turn(j, carry):
            top_HT, total_HT, y_HTK = carry
            scores_HTS = _scores(q_HTK, k_HTK, ids_T, i, j)
            higher_HT = jnp.maximum(top_HT, jnp.max(scores_HTS, axis=-1))
            kept_HT, weights_HTS = jnp.exp(top_HT - higher_HT), jnp.exp(scores_HTS - higher_HT[..., None])
            more_HTK = _product("HTS,HSK->HTK", weights_HTS.astype(q_HTK.dtype), _part(v_HTK, j))
            total_HT = total_HT * kept_HT + jnp.sum(weights_HTS, axis=-1)
            return higher_HT, total_HT, y_HTK * kept_HT[..., None] + more_HTK

        nothing = jnp.full((heads, BLOCK), _LOW), jnp.zeros((heads, BLOCK)), jnp.zeros((heads, BLOCK, size))
        # The diagonal first: a query sees itself, so there is a score for what is masked to be below.
        top_HT, total_HT, y_HTK = jax.lax.fori_loop(first_N[i], i, turn, turn(i, nothing))
        return (y_HTK / total_HT[..., None]).astype(q_HTK.dtype), top_HT + jnp.log(total_HT)

    y_NHTK, log_sum_NHT = jax.lax.map(block, jnp.arange(length // BLOCK))
    y_HTK, log_sum_HT = _joined(y_NHTK), log_sum_NHT.swapaxes(0, 1).reshape(heads, length)
    return y_HTK, (q_HTK, k_HTK, v_HTK, ids_T, y_HTK, log_sum_HT)


def _backward(kept, dy_HTK):
    """The gradients at the scores are weights * (dy v - sum(dy y)); Dao et al., appendix B."""
    q_HTK, k_HTK, v_HTK, ids_T, y_HTK, log_sum_HT = kept
    first_N, zeros_HTK = _first_blocks(ids_T), jnp.zeros(q_HTK.shape)
    sum_HT = jnp.sum(dy_HTK.astype(jnp.float32) * y_HTK.astype(jnp.float32), axis=-1)

    def block(carry, i):
        dy, q = _part(dy_HTK, i), _part(q_HTK, i)
        log_sum, total = (_part(x_HT, i)[..., None] for x_HT in (log_sum_HT, sum_HT))

        def turn(j, carry):
            dq, dk_HTK, dv_HTK = carry
            weights_HTS = jnp.exp(_scores(q_HTK, k_HTK, ids_T, i, j) - log_sum)
            slope_HTS = weights_HTS * (_product("HTK,HSK->HTS", dy, _part(v_HTK, j)) - total) * q.shape[-1] ** -0.5
            weights_HTS, slope_HTS = weights_HTS.astype(q.dtype), slope_HTS.astype(q.dtype)
            dk_HTK = _add(dk_HTK, j, _product("HTS,HTK->HSK", slope_HTS, q))
            dv_HTK = _add(dv_HTK, j, _product("HTS,HTK->HSK", weights_HTS, dy))
            return dq + _product("HTS,HSK->HTK", slope_HTS, _part(k_HTK, j)), dk_HTK, dv_HTK

        dq, *carry = jax.lax.fori_loop(first_N[i], i + 1, turn, (jnp.zeros(q.shape), *carry))
        return tuple(carry), dq

    (dk_HTK, dv_HTK), dq_NHTK = jax.lax.scan(block, (zeros_HTK, zeros_HTK), jnp.arange(first_N.shape[0]))
    return *(x.astype(q_HTK.dtype) for x in (_joined(dq_NHTK), dk_HTK, dv_HTK)), None


_row.defvjp(_forward, _backward)


def _first_blocks(ids_T):
    """For each block of queries the first block of keys that one of them sees."""
    first_T = jnp.argmax(ids_T[:, None] == ids_T[None], axis=1)
    return jnp.min(first_T.reshape(-1, BLOCK), axis=1) // BLOCK


def _scores(q_HTK, k_HTK, ids_T, i, j):
    """[H, T, S] of the queries of block i and the keys of block j, the lowest number where a query does not see."""
    scores_HTS = _product("HTK,HSK->HTS", _part(q_HTK, i), _part(k_HTK, j)) * q_HTK.shape[-1] ** -0.5
    place = jnp.arange(BLOCK)
    seen_TS = i * BLOCK + place[:, None] >= j * BLOCK + place[None]
    seen_TS &= _part(ids_T, i, axis=0)[:, None] == _part(ids_T, j, axis=0)[None]
    return jnp.where(seen_TS[None], scores_HTS, _LOW)


def _product(axes, x, y):
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def _part(array, n, axis=1):
    return jax.lax.dynamic_slice_in_dim(array, n * BLOCK, BLOCK, axis=axis)


def _add(array_HTK, n, more):
    return jax.lax.dynamic_update_slice_in_dim(array_HTK, _part(array_HTK, n) + more, n * BLOCK, axis=1)


def _joined(blocks_NHTK):
    """[H, T, K] of blocks that lie one behind the other."""
    count, heads, length, size = blocks_NHTK.shape
    return blocks_NHTK.swapaxes(0, 1).reshape(heads, count * length, size)
