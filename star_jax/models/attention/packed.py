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
from jax.ad_checkpoint import checkpoint_name

from star_jax.distributed import platforms
from star_jax.models.attention.dense import masked

# Queries, and keys. Half of it on CPUs, to which a turn of a loop is cheap and the scores of what is not seen are not.
BLOCK = 128
KEPT = "attended"  # what the backward pass needs beside the inputs: a name for remat's policies
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
    if (capability := platforms.cuda_capability()) > (0, 0):
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
    batch, heads, length, size = q_BHTK.shape
    block = BLOCK // 2 if platforms.is_cpu() else BLOCK
    padding = -length % block
    ids_BT = jnp.pad(ids_BT, ((0, 0), (0, padding)), constant_values=-1)  # a segment of its own

    def blocks(x_BHTK):  # as the model's products left it, so nothing is moved
        x_BTHK = jnp.pad(x_BHTK.swapaxes(1, 2), ((0, 0), (0, padding), (0, 0), (0, 0)))
        return x_BTHK.reshape(-1, block, heads, size)

    first_N = _first_blocks(ids_BT, block)
    y_NTHK = _blocks(*map(blocks, (q_BHTK, k_BHTK, v_BHTK)), ids_BT.reshape(-1, block), first_N)
    return y_NTHK.reshape(batch, length + padding, heads, size)[:, :length].swapaxes(1, 2)


@jax.custom_vjp
def _blocks(q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N):
    """[N, T, H, K] for N blocks of T tokens, those of all rows one behind the other; first_N as of `_first_blocks`."""
    return _forward(q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N)[0]


def _forward(q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N):
    """(y, what the backward pass needs: the inputs, y, and log(sum(exp(scores))) of each query)."""
    blocks, length, heads, _ = q_NTHK.shape

    def block(i):
        q_HTK = _part(q_NTHK, i)

        def turn(back, carry):
            j = i - back
            top_HT, total_HT, y_HTK = carry
            scores_HTS = _scores(q_HTK, _part(k_NTHK, j)) + _unseen(ids_NT, i, j)[None]
            higher_HT = jnp.maximum(top_HT, jnp.max(scores_HTS, axis=-1))
            kept_HT, weights_HTS = jnp.exp(top_HT - higher_HT), jnp.exp(scores_HTS - higher_HT[..., None])
            more_HTK = _product("HTS,HSK->HTK", weights_HTS.astype(q_HTK.dtype), _part(v_NTHK, j))
            total_HT = total_HT * kept_HT + jnp.sum(weights_HTS, axis=-1)
            return higher_HT, total_HT, y_HTK * kept_HT[..., None] + more_HTK

        nothing = jnp.full((heads, length), _LOW), jnp.zeros((heads, length)), jnp.zeros(q_HTK.shape)
        # The diagonal first: a query sees itself, so there is a score for what is masked to be below.
        top_HT, total_HT, y_HTK = jax.lax.fori_loop(0, i - first_N[i] + 1, turn, nothing)
        return (y_HTK / total_HT[..., None]).astype(q_HTK.dtype).swapaxes(0, 1), top_HT + jnp.log(total_HT)

    kept = jax.lax.map(block, jnp.arange(blocks))
    y_NTHK, log_sum_NHT = (checkpoint_name(x, KEPT) for x in kept)
    return y_NTHK, (q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N, y_NTHK, log_sum_NHT)


def _backward(kept, dy_NTHK):
    """The gradients at the scores are weights * (dy v - sum(dy y)); Dao et al., appendix B."""
    q_NTHK, k_NTHK, v_NTHK, ids_NT, first_N, y_NTHK, log_sum_NHT = kept
    zeros_NTHK = jnp.zeros(q_NTHK.shape)
    sum_NTH = jnp.sum(dy_NTHK.astype(jnp.float32) * y_NTHK.astype(jnp.float32), axis=-1)

    def block(carry, i):
        q_HTK, dy_HTK = _part(q_NTHK, i), _part(dy_NTHK, i)
        log_sum_HT, sum_HT = log_sum_NHT[i], sum_NTH[i].T

        def turn(j, carry):
            dq_HTK, dk_NTHK, dv_NTHK = carry
            k_HSK = _part(k_NTHK, j)
            # KV first: so two of the three products over a block's scores need not turn them.
            weights_HST = jnp.exp(_scores(k_HSK, q_HTK) + _unseen(ids_NT, i, j).T[None] - log_sum_HT[:, None])
            slope_HST = _product("HSK,HTK->HST", _part(v_NTHK, j), dy_HTK) - sum_HT[:, None]
            slope_HST = (weights_HST * slope_HST * q_HTK.shape[-1] ** -0.5).astype(q_HTK.dtype)
            dk_NTHK = _add(dk_NTHK, j, _product("HST,HTK->HSK", slope_HST, q_HTK))
            dv_NTHK = _add(dv_NTHK, j, _product("HST,HTK->HSK", weights_HST.astype(q_HTK.dtype), dy_HTK))
            return dq_HTK + _product("HST,HSK->HTK", slope_HST, k_HSK), dk_NTHK, dv_NTHK

        dq_HTK, *carry = jax.lax.fori_loop(first_N[i], i + 1, turn, (jnp.zeros(q_HTK.shape), *carry))
        return tuple(carry), dq_HTK.astype(q_HTK.dtype).swapaxes(0, 1)

    (dk_NTHK, dv_NTHK), dq_NTHK = jax.lax.scan(block, (zeros_NTHK, zeros_NTHK), jnp.arange(q_NTHK.shape[0]))
    return dq_NTHK, dk_NTHK.astype(k_NTHK.dtype), dv_NTHK.astype(v_NTHK.dtype), None, None


_blocks.defvjp(_forward, _backward)


def _first_blocks(ids_BT, block):
    """[B * T / block]: for each block of queries, those of all rows one behind the other, the first block they see."""
    rows, length = ids_BT.shape
    first_BT = jnp.argmax(ids_BT[:, :, None] == ids_BT[:, None], axis=2) + jnp.arange(rows)[:, None] * length
    return jnp.min(first_BT.reshape(-1, block), axis=1) // block


def _scores(q_HTK, k_HSK):
    return _product("HTK,HSK->HTS", q_HTK, k_HSK) * q_HTK.shape[-1] ** -0.5


def _unseen(ids_NT, i, j):
    """[T, S]: 0 where a query of block i sees a key of block j, else the lowest number."""
    block = ids_NT.shape[1]
    place = jnp.arange(block)
    seen_TS = i * block + place[:, None] >= j * block + place[None]
    seen_TS &= ids_NT[i][:, None] == ids_NT[j][None]
    return jnp.where(seen_TS, 0.0, _LOW)


def _product(axes, x, y):
    return jnp.einsum(axes, x, y, preferred_element_type=jnp.float32)


def _part(array_NTHK, n):
    """[H, T, K] of block n."""
    return array_NTHK[n].swapaxes(0, 1)


def _add(array_NTHK, n, more_HTK):
    return array_NTHK.at[n].add(more_HTK.swapaxes(0, 1))
