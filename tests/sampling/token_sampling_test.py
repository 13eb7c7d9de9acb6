"""Greedy token and its log-probability against NumPy. sampler_test.py tests the sampled distributions."""

import jax.numpy as jnp
import numpy as np

from star_jax.distributed import platforms
from star_jax.sampling import token_sampling

SIZES = (20, 4096, 50257, 50400, 50411)  # symbols; powers; GPT-2's ids; GPT-J's rows; a prime


def test_the_likeliest_and_its_log_probability():
    for size in SIZES:
        check_greedy(size)


def check_greedy(size):
    rng = np.random.default_rng(size)
    logits_BV = (3 * rng.standard_normal((9, size))).astype(np.float32)
    logits_BV[0, -1] = logits_BV[1, 0] = 40  # at both ends, and next to certain
    logits_BV[2] -= 1e4  # far from zero
    logits_BV[3, size // 3 :] = -np.inf  # ids that are never sampled
    logits_BV[4, [5, size // 2, size - 1]] = 30  # of equals the first, in whatever part they lie
    logits_BV[5] = 0
    id_B, logp_B = token_sampling.greedy_token_and_logprob(jnp.asarray(logits_BV))
    exact_BV = logits_BV.astype(np.float64)
    top_B = exact_BV.max(axis=-1)
    np.testing.assert_array_equal(id_B, exact_BV.argmax(axis=-1))
    np.testing.assert_allclose(logp_B, -np.log(np.exp(exact_BV - top_B[:, None]).sum(axis=-1)), rtol=2e-6, atol=1e-6)
    assert id_B.dtype == jnp.int32
    np.testing.assert_array_equal(token_sampling.Decoding().sample(jnp.asarray(logits_BV), None), id_B)


def test_parts_of_the_vocabulary_change_the_last_bits_only(monkeypatch):
    for size in SIZES[1:4]:
        logits_BV = jnp.asarray(np.random.default_rng(0).standard_normal((4, size)), jnp.float32)
        ids_B, log_probs_B = token_sampling.greedy_token_and_logprob(logits_BV)
        with monkeypatch.context() as patch:
            patch.setattr(platforms, "vocabulary_parts", lambda size: 1)
            expected = token_sampling.greedy_token_and_logprob(logits_BV)
        np.testing.assert_array_equal(ids_B, expected[0])
        np.testing.assert_allclose(log_probs_B, expected[1], rtol=1e-6)
