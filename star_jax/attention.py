"""Attention over a cache: the plain form, and for a decode step on a CUDA GPU one through kernels.

The attention of training is in segments.py.
"""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from star_jax import cuda, softmax

_LOW = jnp.finfo(jnp.float32).min
_BLOCK = 64  # queries that a block of `packed` has at least: smaller products do not pay


def masked(q_BHTK, k_BHSK, v_BHSK, mask_BTS, prefix=None, prefix_length=None):
    """softmax(q k / sqrt(K)) v [B, H, T, K] over own keys and the shared prefix, scores in float32.

    Args:
      mask_BTS: True where query t may see key s.
      prefix: model.Keys [H, P, K] or None; its first `prefix_length` keys are seen by every query.
    """
    if prefix is not None and prefix.k.shape[1]:
        parts = _own(q_BHTK, k_BHSK, v_BHSK, mask_BTS), _shared(q_BHTK, prefix, prefix_length)
        return softmax.whole(*parts).astype(q_BHTK.dtype)
    weights_BHTS = jax.nn.softmax(_own_scores(q_BHTK, k_BHSK, mask_BTS), axis=-1).astype(q_BHTK.dtype)
    return jnp.einsum("BHTS,BHSK->BHTK", weights_BHTS, v_BHSK)


def _own_scores(q_BHTK, k_BHSK, mask_BTS):
    scores_BHTS = jnp.einsum("BHTK,BHSK->BHTS", q_BHTK, k_BHSK, preferred_element_type=jnp.float32)
    return jnp.where(mask_BTS[:, None], scores_BHTS * q_BHTK.shape[-1] ** -0.5, _LOW)


def _own(q_BHTK, k_BHSK, v_BHSK, mask_BTS):
    """Partial [B, H, T] over keys of the rows' own."""
    scores_BHTS = _own_scores(q_BHTK, k_BHSK, mask_BTS)
    return softmax.over(scores_BHTS, 3, lambda weights_BHTS: _weighted("BHTS,BHSK->BHTK", weights_BHTS, v_BHSK))


def _shared(q_BHTK, prefix, prefix_length):
    """Partial [B, H, T] over the prefix: one product a head for the queries of all rows.

    One query a row: scores [H, P, B], whose sums over P go along whole vectors of rows; LOG.md of the benchmarks.
    """
    rows, heads, count, size = q_BHTK.shape
    real_P = jnp.arange(prefix.k.shape[1]) < prefix_length
    if count == 1:
        scores_HPB = jnp.einsum("HPK,BHK->HPB", prefix.k, q_BHTK[:, :, 0], preferred_element_type=jnp.float32)
        scores_HPB = jnp.where(real_P[None, :, None], scores_HPB * size**-0.5, _LOW)
        found = softmax.over(scores_HPB, 1, lambda weights_HPB: _weighted("HPB,HPK->BHK", weights_HPB, prefix.v))
        return softmax.Partial(found.top.T[..., None], found.total.T[..., None], found.y[:, :, None])

    def by_rows(x_HQ):
        return x_HQ.reshape(heads, rows, count, *x_HQ.shape[2:]).swapaxes(0, 1)

    q_HQK = q_BHTK.swapaxes(0, 1).reshape(heads, rows * count, size)
    scores_HQP = jnp.einsum("HQK,HPK->HQP", q_HQK, prefix.k, preferred_element_type=jnp.float32)
    scores_HQP = jnp.where(real_P[None, None], scores_HQP * size**-0.5, _LOW)
    found = softmax.over(scores_HQP, 2, lambda weights_HQP: _weighted("HQP,HPK->HQK", weights_HQP, prefix.v))
    return softmax.Partial(*map(by_rows, found))


def _weighted(axes, weights, values):
    return jnp.einsum(axes, weights.astype(values.dtype), values, preferred_element_type=jnp.float32)


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


def written(groups, keys, slot):
    """The ring with the newest keys, model.Keys [B, H, 1, K], at `slot`; see over_ring for `groups`."""

    def at_slot(ring, new):
        return jax.lax.dynamic_update_slice_in_dim(ring, new, slot, axis=2)

    return tuple(
        old._replace(k=at_slot(old.k, keys.k[rows]), v=at_slot(old.v, keys.v[rows])) for old, rows in _rows_of(groups)
    )


def _rows_of(groups):
    """Each group with its rows, a slice."""
    size = groups[0].k.shape[0]
    return [(keys, slice(i * size, (i + 1) * size)) for i, keys in enumerate(groups)]


def over_ring(q_BHTK, groups, slot, filled_B, prefix=None, prefix_length=None):
    """A decode step's (T = 1), over keys in a ring: a row sees the one at `slot` and the `filled_B` in front of it.

    `groups`: model.Keys [B / G, H, S, K] of the first rows, of the next ones, and so on: see cpu.row_groups.
    """
    if _has_kernel(q_BHTK, prefix):
        (keys,) = groups
        return kernel_over_ring(q_BHTK, keys.k, keys.v, slot, filled_B, prefix, prefix_length)
    slots = groups[0].k.shape[2]
    age_S = (slot - jnp.arange(slots)) % slots  # 0 for the slot that is written now
    mask_BTS = (age_S[None] <= filled_B[:, None])[:, None]
    parts = [_own(q_BHTK[rows], keys.k, keys.v, mask_BTS[rows]) for keys, rows in _rows_of(groups)]
    found = [jax.tree.map(lambda *of_groups: jnp.concatenate(of_groups), *parts)]
    if prefix is not None and prefix.k.shape[1]:
        found.append(_shared(q_BHTK, prefix, prefix_length))
    return softmax.whole(*found).astype(q_BHTK.dtype)


def kernel_over_ring(q_BHTK, k_BHSK, v_BHSK, slot, filled_B, prefix=None, prefix_length=None, interpret=False):
    """The same through the kernels; `interpret`: on any device."""
    from star_jax import kernels  # here, for what they need of jax may be gone one day: see cuda.has_triton

    def of_heads(q_BHK, k_BHSK, v_BHSK, slot, filled_B, length, *keys):
        if keys:
            shared = kernels.over_prefix(q_BHK, keys[0], keys[1], length, interpret=interpret)
        else:
            low_BH = jnp.full(q_BHK.shape[:2], _LOW)
            shared = softmax.Partial(low_BH, jnp.zeros_like(low_BH), jnp.zeros(q_BHK.shape))
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
