"""Scores, and their online softmax (Milakov & Gimelshein, 2018): attention over keys visited in several parts."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from star_jax.models.layers import softcap

MASKED = jnp.finfo(jnp.float32).min  # score of a key that the query does not attend to


@dataclasses.dataclass(frozen=True)
class ScoreSpec:
    """How the products of queries and keys become scores, and how far back a query attends. Static in a program."""

    scale: float
    softcap: float = 0.0  # scores become cap * tanh(scores / cap); 0: they stay
    window: int = 0  # a query attends to this many tokens, itself included; 0: to all before it

    def __call__(self, products: jax.Array) -> jax.Array:
        """Scores of products q k, elementwise, float32."""
        return softcap(products * self.scale, self.softcap)

    def slope(self, scores: jax.Array) -> jax.Array | float:
        """Derivative of scores by products."""
        return self.scale * (1 - jnp.square(scores / self.softcap)) if self.softcap else self.scale


class SoftmaxState(NamedTuple):
    """Online-softmax state over a subset of keys, float32, for queries of any leading shape [...]."""

    max: jax.Array  # [...]: the largest score
    sum_exp: jax.Array  # [...]: sum of exp(score - max)
    out: jax.Array  # [..., K]: sum of exp(score - max) * value


def empty(shape: tuple[int, ...]) -> SoftmaxState:
    """State over no keys, for queries of shape [..., K]."""
    return SoftmaxState(jnp.full(shape[:-1], MASKED), jnp.zeros(shape[:-1]), jnp.zeros(shape))


def partial_softmax(scores: jax.Array, axis: int, weighted_sum: Callable[[jax.Array], jax.Array]) -> SoftmaxState:
    """State over the keys along `axis` of the scores.

    `weighted_sum`: maps weights, of the scores' shape, to the sum of the values under them.
    """
    largest = jnp.max(scores, axis=axis, keepdims=True)
    weights = jnp.exp(scores - largest)
    return SoftmaxState(jnp.squeeze(largest, axis=axis), jnp.sum(weights, axis=axis), weighted_sum(weights))


def extend(state: SoftmaxState, scores: jax.Array, weighted_sum: Callable[[jax.Array], jax.Array]) -> SoftmaxState:
    """The state with further keys, along the last axis of the scores; `weighted_sum` as in partial_softmax."""
    largest = jnp.maximum(state.max, jnp.max(scores, axis=-1))
    scale, weights = jnp.exp(state.max - largest), jnp.exp(scores - largest[..., None])
    out = weighted_sum(weights)
    sum_exp = state.sum_exp * scale + jnp.sum(weights, axis=-1)
    return SoftmaxState(largest, sum_exp, state.out * scale[..., None] + out)


def merge(*states: SoftmaxState) -> jax.Array:
    """Attention output [..., K] over the keys of all states. At least one state must hold a key of the query."""
    if len(states) == 1:
        return states[0].out / states[0].sum_exp[..., None]
    largest = functools.reduce(jnp.maximum, (state.max for state in states))
    scales = [jnp.exp(state.max - largest) for state in states]
    sum_exp = functools.reduce(jnp.add, (scale * state.sum_exp for scale, state in zip(scales, states, strict=True)))
    out = functools.reduce(jnp.add, (scale[..., None] * state.out for scale, state in zip(scales, states, strict=True)))
    return out / sum_exp[..., None]
