"""A softmax over keys that are gone over in parts, each with a largest score and a sum of its own."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class SoftmaxState(NamedTuple):
    """A softmax over some of the keys, to be gone on with: float32, for queries of any leading shape.

    `top`: the largest score. `total`: the sum of exp(score - top). `y` [..., K]: the values' sum under these weights.
    """

    top: jax.Array
    total: jax.Array
    y: jax.Array


def partial_softmax(scores: jax.Array, axis: int, weighted: Callable[[jax.Array], jax.Array]) -> SoftmaxState:
    """The softmax over the keys along `axis`; `weighted`: from weights, of the scores' shape, to the values' sum."""
    top = jnp.max(scores, axis=axis, keepdims=True)
    weights = jnp.exp(scores - top)
    return SoftmaxState(jnp.squeeze(top, axis=axis), jnp.sum(weights, axis=axis), weighted(weights))


def merge(*parts: SoftmaxState) -> jax.Array:
    """[..., K] of the softmax over the keys of all parts, of which one has a key that the query sees."""
    if len(parts) == 1:
        return parts[0].y / parts[0].total[..., None]
    top = functools.reduce(jnp.maximum, (part.top for part in parts))
    kept = [jnp.exp(part.top - top) for part in parts]
    total = functools.reduce(jnp.add, (share * part.total for share, part in zip(kept, parts, strict=True)))
    y = functools.reduce(jnp.add, (share[..., None] * part.y for share, part in zip(kept, parts, strict=True)))
    return y / total[..., None]
