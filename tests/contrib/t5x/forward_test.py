"""star_jax.contrib.t5x.forward: over t5x's ids and layouts, the logits are those of a plain forward pass."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.contrib.t5x import forward, task
from star_jax.errors import InputError
from star_jax.models import decoder, families
from tests.support.t5x_runs import EXAMPLES, FOUR_HEADS, GPT2, TOKENIZER, converted, make_run, params_of

END = TOKENIZER.end_ids[0]
# GPT-2's learned positions are the harder case: the quick suite runs it alone.
BOTH = pytest.mark.parametrize("config", [pytest.param(FOUR_HEADS, marks=pytest.mark.slow), GPT2], ids=["gptj", "gpt2"])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("t5x") / "run")


def full_pass(model, params, ids) -> np.ndarray:
    """Logits of texts in one pass without a cache."""
    return np.asarray(jax.jit(decoder.apply, static_argnums=0)(model, params, jnp.asarray(ids)))


@BOTH
def test_the_id_0_before_a_text_changes_nothing(run, config):
    """A packed row has the logits of its texts alone, from position 0 on (positions matter to GPT-2 only)."""
    model, params = families.build(config), params_of(config)
    batch = converted(task.register(str(run)), {"inputs": 16, "targets": 16})
    batch = {key: jnp.asarray(value) for key, value in batch.items()}
    logits = jax.jit(forward.training_logits, static_argnums=(0, 3))(model, params, batch, END)
    assert logits.shape == (*batch["decoder_target_tokens"].shape, config.vocab_size + 1)
    assert np.all(np.asarray(logits[..., 0]) < -1e8)
    texts = 0
    for row, segments in enumerate(np.asarray(batch["decoder_segment_ids"])):
        for segment in range(1, segments.max() + 1):
            (at,) = np.nonzero(segments == segment)
            ids = np.asarray(batch["decoder_target_tokens"])[row, at] - 1
            alone = full_pass(model, params, np.pad(ids, (0, 32 - len(ids)))[None])[0, : len(ids)]
            # t5x's logits at index i predict its target i; ours at index i predict token i + 1.
            np.testing.assert_allclose(logits[row, at[1:], 1:], alone[:-1], atol=1e-4)
            texts += 1
    assert texts == len(EXAMPLES)


@BOTH
def test_cached_steps_equal_the_full_pass(config):
    """Prompts of 1, 3, 8 and no tokens in one batch; many of the ids are 0."""
    model, params = families.build(config), params_of(config)
    rng, length, lengths = np.random.default_rng(0), 12, np.array([1, 3, 8, 0])
    ids = rng.integers(0, 4, (4, length)) * rng.integers(0, 2, (4, length))
    index = np.arange(length + 1)
    shifted = np.concatenate([np.zeros((4, 1), int), ids + 1], axis=1)
    causal = (index[None] <= lengths[:, None]).astype(int)
    prefill = jax.jit(forward.prefilled_cache, static_argnums=0)
    cache, last = prefill(model, params, jnp.asarray(shifted * causal), jnp.asarray(causal))
    assert last.tolist() == lengths.tolist()
    # Without a prompt the text starts with end-of-text.
    texts = np.where((lengths == 0)[:, None], np.concatenate([np.full((4, 1), END), ids[:, :-1]], axis=1), ids)
    expected = full_pass(model, params, texts)
    step = jax.jit(forward.decode_step, static_argnums=(0, 4))
    for taken in range(4):
        at = lengths + taken
        tokens = jnp.asarray(shifted[np.arange(4), at])
        logits, cache = step(model, params, tokens, cache, END)
        source = np.where(lengths == 0, at, at - 1)
        np.testing.assert_allclose(logits[:, 1:], expected[np.arange(4), source], atol=1e-4)


def test_texts_beyond_the_positions_are_refused():
    model = families.build(dataclasses.replace(FOUR_HEADS, max_positions=8))
    tokens = jnp.ones((1, 10), jnp.int32)
    with pytest.raises(InputError, match="texts of 9 tokens do not fit the model's 8 positions"):
        forward.prefilled_cache(model, params_of(FOUR_HEADS), tokens, tokens)
