"""Whether weights are finite: a NaN or an infinity in one of them spoils all texts that are drawn from the model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from star_jax.distributed import sharding
from star_jax.weights.placement import leaf_name


def non_finite_leaf(tree: Any) -> str | None:
    """The name of the first leaf that holds NaN or infinities, such as "blocks/attention/query"; None if none does.

    Costs one pass over the leaves on their devices. All processes must call it together.
    """
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jnp.issubdtype(leaf.dtype, jnp.floating) and not all_finite(leaf):
            return leaf_name(path)
    return None


def all_finite(array: jax.Array) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(_all_finite(array, sharding.replicated(sharding.mesh_of(array))))


@functools.partial(jax.jit, static_argnums=1)
def _all_finite(array: jax.Array, replicated: NamedSharding) -> jax.Array:
    """Replicated, so that every process can read it."""
    return jax.lax.with_sharding_constraint(jnp.all(jnp.isfinite(array)), replicated)
