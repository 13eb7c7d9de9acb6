"""Prefill attention over packed prompt bodies against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.models.attention import prefill
from star_jax.models.attention.masks import KV, SharedPrefix
from star_jax.models.attention.prefill import PrefillMask
from tests.support.models import normal_arrays

HEADS, SIZE = 2, 4


def reference(q_BHTK, kv, body_ids_T, prefix):
    """Float64, one query and head at a time: its own body up to itself, and the prefix."""
    q_HTK, k_HTK, v_HTK = (np.asarray(x[0], np.float64) for x in (q_BHTK, *kv))
    y_HTK = np.zeros(q_HTK.shape)
    for head in range(HEADS):
        for t, body in enumerate(body_ids_T):
            visible = [s for s in range(t + 1) if body_ids_T[s] == body]
            k_SK, v_SK = k_HTK[head, visible], v_HTK[head, visible]
            if prefix is not None:
                shared = (np.asarray(x, np.float64)[head, : prefix.length] for x in prefix.kv)
                k_SK, v_SK = (np.concatenate(both) for both in zip((k_SK, v_SK), shared, strict=True))
            score_S = k_SK @ q_HTK[head, t] / np.sqrt(SIZE)
            weight_S = np.exp(score_S - score_S.max())
            y_HTK[head, t] = weight_S @ v_SK / weight_S.sum()
    return y_HTK[None]


def check(lengths, padding, max_length, prefix=None):
    body_ids_T = np.repeat(np.arange(len(lengths) + 1), [*lengths, padding])
    q_BHTK, *kv = normal_arrays(*[(1, HEADS, len(body_ids_T), SIZE)] * 3, seed=len(body_ids_T))
    y_BHTK = PrefillMask(jnp.asarray(body_ids_T), max_length).attend(q_BHTK, KV(*kv), prefix)
    np.testing.assert_allclose(y_BHTK, reference(q_BHTK, kv, body_ids_T, prefix), rtol=2e-6, atol=2e-6)


def test_blocks_attend_to_what_the_whole_row_attends_to():
    """Four blocks; bodies that end with a block, begin with one, fill one, and reach from one into the next."""
    assert prefill.MIN_BLOCK == 64
    for prefix in (None, SharedPrefix(KV(*normal_arrays(*[(HEADS, 6, SIZE)] * 2, seed=1)), 5)):
        check([30, 34, 65, 1, 62, 60], padding=4, max_length=65, prefix=prefix)


@pytest.mark.slow
@given(st.lists(st.integers(0, 90), min_size=1, max_size=6), st.integers(0, 70), st.integers(0, 40))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_any_lengths_and_any_padding(lengths, padding, excess):
    """Rows of a prime length are one block, others as many as divide them."""
    if sum(lengths) + padding:
        check(lengths, padding, max_length=max(*lengths, padding) + excess)
