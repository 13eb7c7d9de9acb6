"""Prefill attention over packed prompt bodies against a float64 NumPy reference."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.models import decoder
from star_jax.models.attention import dense, prefill

HEADS, SIZE = 2, 4


def arrays(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes)


def plain(q_BHTK, k_BHTK, v_BHTK, texts_T, prefix, length):
    """A query sees those of its own text at or before its own place, and the prefix."""
    q_HTK, k_HTK, v_HTK = (np.asarray(x[0], np.float64) for x in (q_BHTK, k_BHTK, v_BHTK))
    y_HTK = np.zeros(q_HTK.shape)
    for head in range(HEADS):
        for t, text in enumerate(texts_T):
            seen = [s for s in range(t + 1) if texts_T[s] == text]
            k_SK, v_SK = k_HTK[head, seen], v_HTK[head, seen]
            if prefix is not None:
                shared = (np.asarray(x, np.float64)[head, :length] for x in prefix)
                k_SK, v_SK = (np.concatenate(both) for both in zip((k_SK, v_SK), shared, strict=True))
            score_S = k_SK @ q_HTK[head, t] / np.sqrt(SIZE)
            weight_S = np.exp(score_S - score_S.max())
            y_HTK[head, t] = weight_S @ v_SK / weight_S.sum()
    return y_HTK[None]


def check(lengths, padding, longest, prefix=None, length=0):
    texts_T = np.repeat(np.arange(len(lengths) + 1), [*lengths, padding])
    q, k, v = arrays(*[(1, HEADS, len(texts_T), SIZE)] * 3, seed=len(texts_T))
    found = prefill.packed(q, k, v, jnp.asarray(texts_T), longest, prefix, length)
    np.testing.assert_allclose(found, plain(q, k, v, texts_T, prefix, length), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("length", [0, 5])
def test_blocks_of_the_row_see_what_the_whole_row_sees(length):
    """Four blocks; texts that end with one, begin with one, fill one, and reach from one into the next."""
    assert dense._BLOCK == 64
    prefix = decoder.KV(*arrays(*[(HEADS, 6, SIZE)] * 2, seed=1)) if length else None
    check([30, 34, 65, 1, 62, 60], padding=4, longest=65, prefix=prefix, length=length)


@given(st.lists(st.integers(0, 90), min_size=1, max_size=6), st.integers(0, 70), st.integers(0, 40))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_lengths_and_any_padding(lengths, padding, more):
    """Rows of a prime length are one block, others as many as divide them."""
    if sum(lengths) + padding:
        check(lengths, padding, longest=max(*lengths, padding) + more)
