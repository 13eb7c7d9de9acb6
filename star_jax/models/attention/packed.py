"""Attention of a train step over packed rows, causal within a segment.

The scores of all rows, [B, H, T, T] in float32, would be the largest array of a train step. No backend keeps them for
the backward pass: cuDNN's on CUDA GPUs, splash attention on TPUs from v4 on, blockwise.py elsewhere.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.distributed import platforms
from star_jax.models.attention import blockwise, dense
from star_jax.models.attention.masks import KV, PackedMask


def attend(q_BHTK: jax.Array, kv: KV, mask: PackedMask) -> jax.Array:
    """Attention output [B, H, T, K]; see backend.attend.

    Under a mesh, each device has its own rows and heads, as the logical axes "batch" and "heads" are sharded.
    """
    body = choose_backend(q_BHTK)
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and isinstance(q_BHTK, jax.core.Tracer):
        heads, rows = (nn.logical_to_mesh_axes(axes) for axes in (("batch", "heads", None, None), ("batch", None)))
        body = jax.shard_map(body, mesh=mesh, in_specs=(heads, heads, rows), out_specs=heads, check_vma=False)
    return body(q_BHTK, kv, mask)


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
    return blockwise.attend


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
