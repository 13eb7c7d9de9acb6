"""star_jax.models.attention.softmax: states over parts of the keys add up to the softmax over all keys."""

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.models.attention import softmax


def scores_and_values():
    """Scores far apart. Query 0 does not attend to the first four keys, query 1 only to them."""
    rng = np.random.default_rng(0)
    scores_QS, v_SK = 20 * rng.standard_normal((6, 12)), rng.standard_normal((12, 3))
    scores_QS[0, :4] = softmax.MASKED
    scores_QS[1, 4:] = softmax.MASKED
    return scores_QS.astype(np.float32), v_SK.astype(np.float32)


def reference(scores_QS, v_SK):
    scores_QS, v_SK = scores_QS.astype(np.float64), v_SK.astype(np.float64)
    weights_QS = np.exp(scores_QS - scores_QS.max(axis=-1, keepdims=True))
    return weights_QS @ v_SK / weights_QS.sum(axis=-1, keepdims=True)


def parts(scores_QS, v_SK, cuts):
    return zip(np.split(scores_QS, cuts, axis=1), np.split(v_SK, cuts), strict=True)


@pytest.mark.parametrize("cuts", [[], [4], [1, 2, 9]])
def test_states_merge_to_the_softmax_over_all_keys(cuts):
    scores_QS, v_SK = scores_and_values()
    states = [
        softmax.partial_softmax(jnp.asarray(scores), 1, lambda weights, v=v: weights @ v)
        for scores, v in parts(scores_QS, v_SK, cuts)
    ]
    np.testing.assert_allclose(softmax.merge(*states), reference(scores_QS, v_SK), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cuts", [[], [4], [1, 2, 9]])
def test_an_empty_state_extended_by_all_keys_is_the_softmax(cuts):
    scores_QS, v_SK = scores_and_values()
    state = softmax.empty((6, 3))
    for scores, v in parts(scores_QS, v_SK, cuts):
        state = softmax.extend(state, jnp.asarray(scores), lambda weights, v=v: weights @ v)
    # Where the first part holds no key of a query, the masked keys have weight 1 until a real one scales them to 0.
    np.testing.assert_allclose(softmax.merge(state), reference(scores_QS, v_SK), rtol=1e-5, atol=1e-6)
