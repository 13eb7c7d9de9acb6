"""star_jax.models.attention.softmax: parts put together are the softmax over all keys."""

import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.models.attention import softmax


def partial(scores_QS, v_SK):
    top_Q = scores_QS.max(axis=-1)
    weights_QS = np.exp(scores_QS - top_Q[:, None])
    found = top_Q, weights_QS.sum(axis=-1), weights_QS @ v_SK
    return softmax.SoftmaxState(*(jnp.asarray(x, jnp.float32) for x in found))


@pytest.mark.parametrize("cuts", [[], [4], [1, 2, 9]])
def test_parts_are_the_whole(cuts):
    """Scores far apart, and a part of which a query sees nothing: its scores are the lowest number there is."""
    rng = np.random.default_rng(0)
    scores_QS, v_SK = 20 * rng.standard_normal((6, 12)), rng.standard_normal((12, 3))
    scores_QS[0, :4] = np.finfo(np.float32).min
    scores_QS[1, 4:] = np.finfo(np.float32).min
    parts = [partial(*both) for both in zip(np.split(scores_QS, cuts, axis=1), np.split(v_SK, cuts), strict=True)]
    weights_QS = np.exp(scores_QS - scores_QS.max(axis=-1, keepdims=True))
    wanted_QK = weights_QS @ v_SK / weights_QS.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(softmax.merge(*parts), wanted_QK, rtol=1e-5, atol=1e-6)
