"""Prefill attention over packed prompt bodies against float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.models.attention import prefill
from star_jax.models.attention.masks import KV, SharedPrefix
from star_jax.models.attention.prefill import PrefillMask
from tests.support.attention import BOTH, PLAIN, WINDOW, one_query, prefix_keys
from tests.support.models import normal_arrays

HEADS, KV_HEADS, SIZE = 4, 2, 4


def reference(q_BHTK, kv, body_ids_T, position_T, scores, prefix):
    """Its own body up to itself, and the prefix, as far as the window reaches."""
    q_HTK, k_HTK, v_HTK = (np.asarray(x[0], np.float64) for x in (q_BHTK, *kv))
    y_HTK = np.zeros(q_HTK.shape)
    for head in range(HEADS):
        kv_head = head * KV_HEADS // HEADS
        for t, body in enumerate(body_ids_T):
            first = max(0, t - scores.window + 1) if scores.window else 0
            visible = [s for s in range(first, t + 1) if body_ids_T[s] == body]
            shared = prefix_keys(prefix, kv_head, position_T[t], scores, SIZE)
            keys = (np.concatenate([x[kv_head, visible], y]) for x, y in zip((k_HTK, v_HTK), shared, strict=True))
            y_HTK[head, t] = one_query(q_HTK[head, t], *keys, scores)
    return y_HTK[None]


def check(lengths, padding, max_length, prefix=None, scores=PLAIN):
    body_ids_T = np.repeat(np.arange(len(lengths) + 1), [*lengths, padding])
    position_T = np.concatenate([np.arange(n) for n in (*lengths, padding)]) + (0 if prefix is None else prefix.length)
    shared = (1, KV_HEADS, len(body_ids_T), SIZE)
    q_BHTK, *kv = normal_arrays((1, HEADS, len(body_ids_T), SIZE), shared, shared, seed=len(body_ids_T))
    mask = PrefillMask(jnp.asarray(body_ids_T), max_length)
    y_BHTK = mask.attend(q_BHTK, KV(*kv), scores, jnp.asarray(position_T)[None], prefix)
    expected = reference(q_BHTK, kv, body_ids_T, position_T, scores, prefix)
    np.testing.assert_allclose(y_BHTK, expected, rtol=2e-6, atol=2e-6)


def test_blocks_attend_to_what_the_whole_row_attends_to():
    """Four blocks; bodies that end with a block, begin with one, fill one, and reach from one into the next."""
    assert prefill.MIN_BLOCK == 64
    keys = KV(*normal_arrays(*[(KV_HEADS, 6, SIZE)] * 2, seed=1))
    for scores in (PLAIN, WINDOW, BOTH):
        for prefix in (None, SharedPrefix(keys, 5), SharedPrefix(keys, 9, first=4)):
            check([30, 34, 65, 1, 62, 60], padding=4, max_length=65, prefix=prefix, scores=scores)


@pytest.mark.slow
@given(st.lists(st.integers(0, 90), min_size=1, max_size=6), st.integers(0, 70), st.integers(0, 40))
@settings(max_examples=40, deadline=None)
def test_any_lengths_and_any_padding(lengths, padding, excess):
    """Rows of a prime length are one block, others as many as divide them."""
    if sum(lengths) + padding:
        check(lengths, padding, max_length=max(*lengths, padding) + excess)
