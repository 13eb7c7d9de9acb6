"""star_jax.load_model: logits, tokenizer and samples of a model in three lines."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import star_jax
from star_jax.errors import InputError
from star_jax.models import decoder, families
from star_jax.tokenizers.simple import ByteTokenizer
from star_jax.weights import checkpoint
from star_jax.weights.sources import hf
from tests.support.models import TINY, numpy_params

SPEC = families.spec_of(TINY.__class__(**{**TINY.__dict__, "vocab_size": 257, "max_positions": 64}))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model over bytes, with random weights."""
    folder = tmp_path_factory.mktemp("models") / "model"
    params = jax.tree.map(jax.numpy.asarray, numpy_params(SPEC, scale=0.4))
    checkpoint.save_model(folder, decoder.Decoder(SPEC), params, ByteTokenizer())
    return folder


@pytest.fixture(scope="module")
def model(directory):
    return star_jax.load_model(directory)


def test_importing_star_jax_does_not_import_jax():
    program = "import sys, star_jax; star_jax.load_model; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=False).returncode == 0


def test_logits_are_those_of_the_decoder(model):
    ids_BT = np.random.default_rng(0).integers(0, 257, (2, 9))
    logits_BTV = model.logits(ids_BT)
    assert (type(logits_BTV), logits_BTV.dtype, logits_BTV.shape) == (np.ndarray, np.float32, (2, 9, 257))
    expected = decoder.apply(decoder.Decoder(SPEC), numpy_params(SPEC, scale=0.4), ids_BT)
    np.testing.assert_allclose(logits_BTV, expected, atol=1e-4)
    np.testing.assert_array_equal(model.logits(ids_BT.tolist()), logits_BTV)


def test_greedy_samples_follow_the_logits(model):
    """Token by token, for prompts of different lengths, given as texts or as ids."""
    prompts = ["Q: 1 + 1", "a", "", "longer than the others"]
    prompts[2] = [7, 250, 3]
    samples = model.generate(prompts, max_new_tokens=6)
    tokens = 0
    for prompt, sample in zip(prompts, samples, strict=True):
        ids = model.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        logits_TV = model.logits([[*ids, *sample.token_ids]])[0, len(ids) - 1 :].astype(np.float64)
        for token, log_prob, last_V in zip(sample.token_ids, sample.token_log_probs, logits_TV, strict=False):
            assert token == last_V.argmax()
            assert log_prob == pytest.approx(last_V[token] - np.log(np.exp(last_V).sum()), abs=1e-3)
            tokens += 1
        assert sample.text == model.tokenizer.decode(sample.token_ids)
    assert tokens > 12


def test_a_sample_depends_on_the_seed_and_not_on_the_batch(model):
    prompts = [f"{n}" for n in range(4)]
    drawn = model.generate(prompts, max_new_tokens=6, temperature=1.0, seed=1)
    assert model.generate(prompts[:2], max_new_tokens=6, temperature=1.0, seed=1) == drawn[:2]
    assert model.generate(prompts, max_new_tokens=6, temperature=1.0, seed=2) != drawn
    assert model.generate([]) == []


def test_a_stop_string_ends_a_sample(model):
    (free, *_) = model.generate(["abc"] * 4, max_new_tokens=6)
    stop = free.text[3]
    (stopped, *_) = model.generate(["abc"] * 4, max_new_tokens=6, stop=[stop])
    assert stopped.text == free.text[: free.text.index(stop)] and not stopped.truncated and free.truncated


def test_weights_and_activations_have_the_dtype(directory, model):
    half = star_jax.load_model(str(directory), dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half.params)} == {"bfloat16"}
    difference = np.abs(half.logits([[1, 2, 3]]) - model.logits([[1, 2, 3]])).max()
    assert 1e-4 < difference < 0.5


def test_bad_input_is_named(model, directory, tmp_path):
    hf.save(tmp_path / "bare", SPEC, numpy_params(SPEC), None, np.dtype("float32"))
    bare = star_jax.load_model(tmp_path / "bare")
    assert bare.logits([[0]]).shape == (1, 1, 257)
    rows = [
        (lambda: model.logits([[1, 2], [3]]), "logits: give rows of equal lengths"),
        (lambda: model.logits([1, 2]), "logits: give an array [B, T] of token ids, got shape [2]"),
        (lambda: model.logits([[1, 257]]), "logits: ids 1 to 257; the model has ids 0 to 256"),
        (lambda: model.logits([[1] * 65]), "logits: 65 tokens exceed the model's 64 positions"),
        (lambda: model.generate(["a" * 60], max_new_tokens=8), "do not fit the model's 64 positions"),
        (lambda: model.generate([""]), "body has no tokens"),
        (lambda: model.generate(["a"], stop=[""]), "a stop string is empty"),
        (lambda: bare.generate(["a"]), f"{tmp_path / 'bare'}: has no tokenizer"),
        (lambda: star_jax.load_model(directory, dtype="int8"), "dtype must be one of float32, bfloat16"),
        (lambda: star_jax.load_model(tmp_path / "none"), "no complete model is there"),
    ]
    wrong = []
    for call, expected in rows:
        with pytest.raises(InputError) as caught:
            call()
        wrong += [] if expected in str(caught.value) else [(expected, str(caught.value))]
    assert not wrong
