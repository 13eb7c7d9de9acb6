"""star_jax.sampling.scoring against plain forward passes and the sampler's own log-probabilities."""

import functools

import jax
import numpy as np
import pytest

from star_jax.config import MeshConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder, families
from star_jax.records import Prompt
from star_jax.sampling.scoring import score
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.tokenizers.simple import SymbolTokenizer
from star_jax.weights import placement
from tests.support.models import TINY, numpy_params
from tests.support.sampling import TextSampler

SYMBOLS = SymbolTokenizer(Arithmetic.symbols)
MODEL = families.build(TINY)
USED = SYMBOLS.vocab_size


@pytest.fixture(scope="module")
def params() -> decoder.Params:
    made = numpy_params(TINY, seed=1, scale=0.6)
    made["blocks"]["norm"]["scale"][:] = made["final_norm"]["scale"][:] = 1
    made["head"]["bias"][19] = 5  # the row of no token must not count
    return made


@pytest.fixture(scope="module")
def pairs() -> list[tuple[list[int], list[int]]]:
    """Twelve pairs; one completion is empty."""
    rng = np.random.default_rng(0)
    sizes = [(1, 4), (30, 0), *rng.integers(1, 24, (10, 2)).tolist()]
    return [(rng.integers(0, USED, n).tolist(), rng.integers(0, USED, m).tolist()) for n, m in sizes]


def on_mesh(params, mesh):
    return jax.tree.map(sharding.put, params, placement.param_shardings(MODEL, mesh))


@pytest.fixture(scope="module")
def expected(params, pairs) -> list[np.ndarray]:
    """By one forward pass over each pair, in float64 after the logits."""
    forward = jax.jit(functools.partial(decoder.apply, MODEL))
    arrays = jax.tree.map(jax.numpy.asarray, params)
    log_probs = []
    for prompt_ids, ids in pairs:
        tokens_T = np.zeros(64, np.int32)
        tokens_T[: len(prompt_ids) + len(ids)] = [*prompt_ids, *ids]
        logits_TV = np.asarray(forward(arrays, tokens_T[None]), np.float64)[0, :, :USED]
        log_TV = logits_TV - np.log(np.sum(np.exp(logits_TV), axis=-1, keepdims=True))
        log_probs.append(np.array([log_TV[len(prompt_ids) + i - 1, token] for i, token in enumerate(ids)]))
    return log_probs


def assert_close(log_probs, expected) -> None:
    assert [len(one) for one in log_probs] == [len(other) for other in expected]
    np.testing.assert_allclose(np.concatenate(log_probs), np.concatenate(expected), atol=2e-4)


def test_scores_are_those_of_plain_forward_passes_however_they_are_packed(params, pairs, expected):
    mesh = sharding.make_mesh(MeshConfig(data=1))
    placed = on_mesh(params, mesh)
    assert_close(score(MODEL, placed, pairs, mesh, vocab_used=USED, row_tokens=128), expected)  # several in a row
    one_by_one = [score(MODEL, placed, [pair], mesh, vocab_used=USED, row_tokens=64, batch_rows=1)[0] for pair in pairs]
    assert_close(one_by_one, expected)
    assert score(MODEL, placed, [], mesh, vocab_used=USED) == []


def test_scores_do_not_depend_on_the_mesh(params, pairs, expected):
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    assert_close(
        score(MODEL, on_mesh(params, mesh), pairs, mesh, vocab_used=USED, row_tokens=64, batch_rows=8), expected
    )


def test_scores_of_sampled_ids_are_the_sampler_s_log_probabilities(params):
    """With a shared prefix; some samples stop, others are truncated."""
    arrays = jax.tree.map(jax.numpy.asarray, params)
    sampler = TextSampler(
        MODEL, arrays, SYMBOLS, decoding=Decoding(temperature=0.8), stop=("3",), max_new_tokens=12, prefill_tokens=32,
        slots=5, queue=16,
    )  # fmt: skip
    rng = np.random.default_rng(3)
    prompts = [Prompt("1 + 1 , 2", " ".join(rng.choice(SYMBOLS.symbols, n))) for n in rng.integers(1, 20, 11)]
    samples = sampler(prompts)
    assert {sample.truncated for sample in samples} == {True, False}
    pairs = [
        ([*request.prompt.prefix_ids, *request.prompt.body_ids], sample.token_ids)
        for request, sample in zip(sampler.requests(prompts), samples, strict=True)
    ]
    mesh = sharding.make_mesh(MeshConfig(data=1))
    log_probs = score(MODEL, on_mesh(params, mesh), pairs, mesh, vocab_used=USED, row_tokens=128)
    assert_close(log_probs, [np.array(sample.token_log_probs) for sample in samples])


def test_bad_pairs_are_reported(params):
    mesh = sharding.make_mesh(MeshConfig(data=1))
    for pair, reason in ((([], [1]), "a prompt has no tokens"), (([1] * 500, [1] * 13), "513 tokens exceed")):
        with pytest.raises(InputError, match=reason):
            score(MODEL, params, [([1], [2]), pair], mesh, vocab_used=USED)
