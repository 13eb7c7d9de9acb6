"""Attention over a cache: the plain form, and for a decode step on a CUDA GPU one through kernels.

The attention of training is in segments.py.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from star_jax import cuda

_BLOCK = 64  # queries that a block of `packed` has at least: smaller products do not pay


def masked(q_BHTK, k_BHSK, v_BHSK, mask_BTS, prefix=None, prefix_length=None):
    """softmax(q k / sqrt(K)) v [B, H, T, K] over own or cached keys and the shared prefix, scores in float32.

    Args:
      mask_BTS: True where query t may see key s.
      prefix: model.Keys [H, P, K] or None; its first `prefix_length` keys are seen by every query.

    The prefix is one product for all rows, its scores [H, P, B, T]: sums over P then go along whole vectors of rows.
    """
    scale = q_BHTK.shape[-1] ** -0.5
    low = jnp.finfo(jnp.float32).min
    own_BHTS = jnp.einsum("BHTK,BHSK->BHTS", q_BHTK, k_BHSK, preferred_element_type=jnp.float32) * scale
    own_BHTS = jnp.where(mask_BTS[:, None], own_BHTS, low)
    if prefix is None or not prefix.k.shape[1]:
        weights_BHTS = jax.nn.softmax(own_BHTS, axis=-1).astype(q_BHTK.dtype)
        return jnp.einsum("BHTS,BHSK->BHTK", weights_BHTS, v_BHSK)
    shared_HPBT = jnp.einsum("HPK,BHTK->HPBT", prefix.k, q_BHTK, preferred_element_type=jnp.float32) * scale
    real_P = jnp.arange(prefix.k.shape[1]) < prefix_length
    shared_HPBT = jnp.where(real_P[None, :, None, None], shared_HPBT, low)
    top_BHT = jnp.maximum(jnp.max(own_BHTS, axis=-1), jnp.max(shared_HPBT, axis=1).transpose(1, 0, 2))
    own_BHTS = jnp.exp(own_BHTS - top_BHT[..., None])
    shared_HPBT = jnp.exp(shared_HPBT - top_BHT.transpose(1, 0, 2)[:, None])
    total_BHT = jnp.sum(own_BHTS, axis=-1) + jnp.sum(shared_HPBT, axis=1).transpose(1, 0, 2)
    y_BHTK = jnp.einsum(
        "BHTS,BHSK->BHTK", own_BHTS.astype(q_BHTK.dtype), v_BHSK, preferred_element_type=jnp.float32
    ) + jnp.einsum("HPBT,HPK->BHTK", shared_HPBT.astype(q_BHTK.dtype), prefix.v, preferred_element_type=jnp.float32)
    return (y_BHTK / total_BHT[..., None]).astype(q_BHTK.dtype)


def packed(q_BHTK, k_BHTK, v_BHTK, texts_T, longest, prefix=None, prefix_length=None):
    """Attention in one row (B = 1) of texts one behind the other: a query sees those of its own text up to itself.

    Queries go in blocks of at least `longest` - 1 (no text has more than `longest` tokens; it is static), over the
    keys of their own block and the one before: no text that reaches into a block begins earlier.
    """
    length = q_BHTK.shape[2]
    blocks = max(1, length // max(longest - 1, _BLOCK))
    while length % blocks:
        blocks -= 1
    size = length // blocks
    back = size if blocks > 1 else 0  # keys in front of a block's own

    def as_rows(x_BHTK):
        return x_BHTK[0].reshape(-1, blocks, size, x_BHTK.shape[-1]).swapaxes(0, 1)

    def with_previous(x, axis):
        return jnp.concatenate([jnp.roll(x, 1, axis=0), x], axis=axis) if back else x

    place_S, texts_BT = jnp.arange(-back, size), texts_T.reshape(blocks, size)
    mask_BTS = texts_BT[:, :, None] == with_previous(texts_BT, 1)[:, None]
    mask_BTS &= (place_S[None] <= jnp.arange(size)[:, None])[None]
    # In front of the first block nothing is, though the roll has put the last one there.
    mask_BTS &= ((jnp.arange(blocks)[:, None] > 0) | (place_S[None] >= 0))[:, None]
    keys = with_previous(as_rows(k_BHTK), 2), with_previous(as_rows(v_BHTK), 2)
    y_BHTK = masked(as_rows(q_BHTK), *keys, mask_BTS, prefix, prefix_length)
    return y_BHTK.swapaxes(0, 1).reshape(q_BHTK.shape)


def over_ring(q_BHTK, k_BHSK, v_BHSK, slot, filled_B, prefix=None, prefix_length=None):
    """A decode step's (T = 1), over keys in a ring: a row sees the one at `slot` and the `filled_B` in front of it."""
    if not _has_kernel(q_BHTK, prefix):
        slots = k_BHSK.shape[2]
        age_S = (slot - jnp.arange(slots)) % slots  # 0 for the slot that is written now
        return masked(q_BHTK, k_BHSK, v_BHSK, (age_S[None] <= filled_B[:, None])[:, None, :], prefix, prefix_length)
    return kernel_over_ring(q_BHTK, k_BHSK, v_BHSK, slot, filled_B, prefix, prefix_length)


def kernel_over_ring(q_BHTK, k_BHSK, v_BHSK, slot, filled_B, prefix=None, prefix_length=None, interpret=False):
    """The same through the kernels; `interpret`: on any device."""
    from star_jax import kernels  # here, for what they need of jax may be gone one day: see cuda.has_triton

    def of_heads(q_BHK, k_BHSK, v_BHSK, slot, filled_B, length, *keys):
        if keys:
            shared = kernels.over_prefix(q_BHK, keys[0], keys[1], length, interpret=interpret)
        else:
            low_BH = jnp.full(q_BHK.shape[:2], jnp.finfo(jnp.float32).min)
            shared = kernels.Partial(low_BH, jnp.zeros_like(low_BH), jnp.zeros(q_BHK.shape))
        return kernels.over_ring(q_BHK, k_BHSK, v_BHSK, slot, filled_B, shared, interpret=interpret)

    keys = () if prefix is None or not prefix.k.shape[1] else tuple(prefix)
    args = (
        q_BHTK[:, :, 0],
        k_BHSK,
        v_BHSK,
        jnp.asarray(slot),
        filled_B,
        jnp.asarray(0 if prefix_length is None else prefix_length),
        *keys,
    )
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.shape["tensor"] > 1:  # a kernel knows nothing of meshes: each device gets its heads
        rows, whole, heads = PartitionSpec(None, "tensor"), PartitionSpec(), PartitionSpec("tensor")
        specs = rows, rows, rows, whole, whole, whole, *(heads for _ in keys)
        of_heads = jax.shard_map(
            of_heads, mesh=mesh, in_specs=specs, out_specs=rows, axis_names={"tensor"}, check_vma=False
        )
    return of_heads(*args)[:, :, None]


def _has_kernel(q_BHTK, prefix):
    """Whether this program is for a CUDA GPU, heads have a size that its kernels take, and a kernel can be called.

    It cannot where more than heads is spread over devices and no shard_map is around.
    """
    size, mesh = q_BHTK.shape[-1], jax.sharding.get_abstract_mesh()
    spread = not mesh.empty and any(mesh.shape[axis] > 1 for axis in mesh.auto_axes if axis != "tensor")
    fits = size >= 16 and size & (size - 1) == 0 and (prefix is None or prefix.k.shape[1] % 16 == 0)
    return cuda.capability() >= (8, 0) and cuda.has_triton() and fits and not spread
