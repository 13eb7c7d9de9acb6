"""Greedy token and its log-probability against NumPy. sampler_test.py tests the sampled distributions."""

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.distributed import platforms
from star_jax.sampling import token_sampling

SIZES = (20, 4096, 50257, 50400, 50411)  # symbols; a power of two; GPT-2's ids; GPT-J's rows; a prime


def test_the_likeliest_token_and_its_log_probability():
    wrong = []
    for size in SIZES:
        rng = np.random.default_rng(size)
        logits_BV = (3 * rng.standard_normal((9, size))).astype(np.float32)
        logits_BV[0, -1] = logits_BV[1, 0] = 40  # at both ends, and next to certain
        logits_BV[2] -= 1e4  # far from zero
        logits_BV[3, size // 3 :] = -np.inf  # ids that are never sampled
        logits_BV[4, [5, size // 2, size - 1]] = 30  # of tied ones the first, in any part
        logits_BV[5] = 0
        id_B, log_p_B = token_sampling.greedy_token_and_logprob(jnp.asarray(logits_BV))
        exact_BV = logits_BV.astype(np.float64)
        expected_id_B, max_B = exact_BV.argmax(axis=-1), exact_BV.max(axis=-1)
        expected_log_p_B = -np.log(np.exp(exact_BV - max_B[:, None]).sum(axis=-1))
        sampled_B = token_sampling.Decoding().sample(jnp.asarray(logits_BV), None)
        if id_B.dtype != jnp.int32 or not np.array_equal(id_B, expected_id_B) or not np.array_equal(sampled_B, id_B):
            wrong.append((size, "id"))
        if not np.allclose(log_p_B, expected_log_p_B, rtol=2e-6, atol=1e-6):
            wrong.append((size, "log p"))
    assert not wrong


def test_the_smallest_temperatures_and_top_p_sample_one_of_the_likeliest():
    """Where logits / temperature would overflow, or no token's probability would reach top_p."""
    rng = np.random.default_rng(0)
    logits_BV = np.concatenate([scale * rng.standard_normal((8, 64)) for scale in (1e-3, 1, 30, 1e4)]).astype(
        np.float32
    )
    logits_BV[::2, 0] = 0  # 0 / 0
    logits_BV[1::2, :5] = -np.inf
    logits_BV[3] = -1e4
    logits_BV[3, 7] = 0
    keys_B = jax.random.split(jax.random.key(0), len(logits_BV))
    wrong = []
    for how in [
        *({"temperature": t} for t in (5e-324, 1e-46, 1e-45, 1.2e-38, 1e-38, 1e-36, 1e-30, 1e-20)),
        *({"temperature": t, "top_p": p} for t in (1e-45, 1.0) for p in (0.0, 5e-324, 1e-46, 1e-40, 1e-20)),
        *({"temperature": t, "top_k": 1} for t in (1e-45, 1.0, 1e4)),
        {"temperature": 1e-45, "top_k": 3, "top_p": 0.5},
    ]:
        sampled_B = np.asarray(token_sampling.Decoding(**how).sample(jnp.asarray(logits_BV), keys_B))
        if not np.array_equal(sampled_B, logits_BV.argmax(axis=-1)):
            wrong.append((how, sampled_B))
    assert not wrong


def test_parts_of_the_vocabulary_change_only_the_last_bits(monkeypatch):
    logits = {size: np.random.default_rng(0).standard_normal((4, size)).astype(np.float32) for size in SIZES[1:4]}
    in_parts = {size: token_sampling.greedy_token_and_logprob(jnp.asarray(x_BV)) for size, x_BV in logits.items()}
    monkeypatch.setattr(platforms, "vocabulary_parts", lambda size: 1)
    for size, x_BV in logits.items():
        id_B, log_p_B = token_sampling.greedy_token_and_logprob(jnp.asarray(x_BV))
        np.testing.assert_array_equal(in_parts[size][0], id_B)
        np.testing.assert_allclose(in_parts[size][1], log_p_B, rtol=1e-6)
