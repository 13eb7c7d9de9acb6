"""star_jax.models.decoder computes GPT-J and GPT-2, and all passes of it compute the same."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from star_jax.config import ModelConfig
from star_jax.models import decoder, families
from star_jax.models.attention.prefill import PrefillMask
from star_jax.sampling import kv_cache
from tests.support import mesh_transformer
from tests.support.families import LATER, tiny_spec
from tests.support.models import TINY, numpy_params
from tests.support.weights import from_torch, torch_model

forward = jax.jit(decoder.apply, static_argnums=0)
insert = jax.jit(kv_cache.insert)


def with_stacked_params(decode_pass, static_argnums=0):
    """The compiled pass, which splits stacked parameters itself."""

    def run(model, params, *args):
        return decode_pass(model, decoder.split_layers(params), *args)

    return jax.jit(run, static_argnums=static_argnums)


def _prefill(model, params, tokens_C, bodies_C, longest, positions_C, prefix):
    return kv_cache.prefill(model, params, tokens_C, PrefillMask(bodies_C, longest), positions_C, prefix)


encode_prefix = with_stacked_params(kv_cache.encode_prefix)
decode_step = with_stacked_params(kv_cache.decode_step)
encode_rows = with_stacked_params(kv_cache.encode_rows)
prefill = with_stacked_params(_prefill, static_argnums=(0, 4))


_TORCH = functools.partial(ModelConfig, max_positions=64)
_GPT2 = functools.partial(_TORCH, architecture="gpt2")
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
TORCH_SHAPES = {
    "two heads": _TORCH(n_layers=2, d_model=32, n_heads=2, d_mlp=64, rotary_dim=8, vocab_size=50),
    "whole head rotates": _TORCH(n_layers=1, d_model=24, n_heads=3, d_mlp=40, rotary_dim=8, vocab_size=31),
    "one pair rotates": _TORCH(n_layers=3, d_model=16, n_heads=4, d_mlp=64, rotary_dim=2, vocab_size=97),
    "gpt2, three heads": _GPT2(n_layers=2, d_model=24, n_heads=3, d_mlp=96, vocab_size=50),
    "gpt2, narrow mlp": _GPT2(n_layers=3, d_model=32, n_heads=4, d_mlp=40, vocab_size=97),
}
_RNG = np.random.default_rng(7)
BODIES = [_RNG.integers(0, 20, n).tolist() for n in (6, 1, 4)]
LATE_BODY = _RNG.integers(0, 20, 3).tolist()  # takes over row 1 while the others are decoding
PREFIX = _RNG.integers(0, 20, 5).tolist()


@functools.cache
def tiny_model(family: str, tied: bool | None = None) -> tuple[decoder.Decoder, decoder.Params]:
    """A model of TINY's sizes; `tied`: see tiny_spec."""
    spec = tiny_spec(family, tied)
    model = decoder.Decoder(spec, scan_unroll=TINY.scan_unroll)
    return model, jax.tree.map(jnp.asarray, numpy_params(spec, seed=4 if family == "gpt2" else 0))


@pytest.fixture(params=["gptj", *map(slow, ["gpt2", *LATER])])
def either(request) -> tuple[decoder.Decoder, decoder.Params]:
    """The tiny model of each family. The quick suite has GPT-2 in the tests against torch and of cached decoding."""
    return tiny_model(request.param)


def worst(actual, expected) -> float:
    """Largest absolute difference of two trees."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))) for a, b in pairs)


def pop_key_bias(*trees) -> None:
    """Removes the gradients of GPT-2's key biases. Softmax cancels these biases, so they are rounding alone."""
    for tree in trees:
        if "key_bias" in tree["blocks"]["attention"]:
            assert np.max(np.abs(tree["blocks"]["attention"].pop("key_bias"))) < 1e-6


def worst_relative(actual, expected) -> float:
    """Largest difference of two trees, relative to each leaf's largest value."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    ratios = jax.tree.map(lambda a, b: worst(a, b) / float(np.max(np.abs(b))), actual, expected)
    return max(jax.tree.leaves(ratios))


@functools.partial(jax.jit, static_argnums=0)
def logits_and_gradients(model, params, tokens_BT):
    """Logits, and the gradients of the mean next-token cross-entropy."""

    def loss(params):
        logits_BTV = decoder.apply(model, params, tokens_BT)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits_BTV[:, :-1], tokens_BT[:, 1:])
        return losses.mean(), logits_BTV

    gradients, logits_BTV = jax.grad(loss, has_aux=True)(params)
    return logits_BTV, gradients


@pytest.mark.parametrize(
    "shape", [name if name in ("two heads", "gpt2, three heads") else slow(name) for name in TORCH_SHAPES]
)
def test_logits_and_gradients_are_those_of_torch(shape, record_property):
    config = TORCH_SHAPES[shape]
    theirs = torch_model(config, seed=len(shape))
    import torch

    tokens_BT = np.random.default_rng(3).integers(0, config.vocab_size, (2, 12)).astype(np.int32)
    output = theirs(torch.from_numpy(tokens_BT).long())
    expected = output.logits.detach().numpy()
    labels = torch.from_numpy(tokens_BT[:, 1:]).long().flatten()
    torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), labels).backward()
    weights = from_torch({name: p.detach().numpy() for name, p in theirs.named_parameters()}, config)
    expected_gradients = from_torch({name: p.grad.numpy() for name, p in theirs.named_parameters()}, config)

    logits_BTV, gradients = logits_and_gradients(families.build(config), weights, tokens_BT)

    record_property("logits", worst(logits_BTV, expected))
    pop_key_bias(gradients, expected_gradients)
    record_property("gradients", worst_relative(gradients, expected_gradients))
    assert 5 < np.max(np.abs(expected)) < 50
    assert worst(logits_BTV, expected) < 1e-4
    assert worst_relative(gradients, expected_gradients) < 1e-4


def original(shared_dir):
    """(folder of the original's fixtures, its model)."""
    folder = shared_dir / "fixtures" / "mesh_transformer"
    sizes = json.loads((folder / "meta.json").read_text())["config"]
    config = ModelConfig(
        n_layers=sizes["layers"],
        d_model=sizes["d_model"],
        n_heads=sizes["n_heads"],
        d_mlp=4 * sizes["d_model"],
        rotary_dim=sizes["pe_rotary_dims"],
        vocab_size=sizes["n_vocab"],
        max_positions=sizes["seq"],
    )
    return folder, families.build(config)


@pytest.mark.parametrize(
    ("checkpoint", "logits"),
    [("ckpt_init_f32/step_0", "init_f32"), ("ckpt_slim_bf16/step_3", "step3_slim_bf16params")],
)
def test_logits_are_those_of_the_original(shared_dir, checkpoint, logits, record_property):
    """The original's own output for its own checkpoints; in bfloat16 only its weights are rounded."""
    folder, model = original(shared_dir)
    params = mesh_transformer.read_params(folder / checkpoint, model.spec.n_layers, model.spec.n_heads)
    with np.load(folder / "logits.npz", allow_pickle=False) as file:
        tokens_BT, expected = file["tokens"].astype(np.int32), file[logits]
    actual = forward(model, params, tokens_BT)
    record_property("logits", worst(actual, expected))
    assert worst(actual, expected) < 2e-5


@pytest.mark.slow
def test_the_first_logits_are_those_of_the_original(shared_dir, record_property):
    """Logits after prompts of six lengths, from which the original samples its first token."""
    folder, model = original(shared_dir)
    params = mesh_transformer.read_params(folder / "ckpt_init_f32/step_0", model.spec.n_layers, model.spec.n_heads)
    with np.load(folder / "generate.npz", allow_pickle=False) as file:
        tokens_RT, lengths_R = file["padded"].astype(np.int32), file["lengths"].astype(np.int32)
        expected = file["greedy_f32_logits_first8"][:, 0]
    fits = lengths_R < model.spec.max_positions  # a full row shifts the original's window before its first token
    bodies = [row[len(row) - length :].tolist() for row, length in zip(tokens_RT[fits], lengths_R[fits], strict=True)]
    empty = kv_cache.encode_prefix(model, params, jnp.zeros((0,), jnp.int32), 0)
    cache = put_bodies(model, params, kv_cache.empty_cache(model, len(bodies), 128), range(6), bodies, empty)
    actual, _ = decode_step(model, params, np.array([body[-1] for body in bodies], np.int32), cache, empty)
    record_property("logits", worst(actual, expected[fits]))
    assert len(bodies) == 6
    assert worst(actual, expected[fits]) < 2e-5


def prefix_of(model, params, tokens, padding):
    ids = np.array(tokens + [17] * padding, np.int32)
    return encode_prefix(model, params, ids, len(tokens))


def put_bodies(model, params, cache, rows, bodies, prefix, padding=3):
    """The cache with all but the last token of each body, prefilled in one packed row with padding at its end."""
    bodies = [body[:-1] for body in bodies]
    tokens_C = np.array([token for body in bodies for token in body] + [13] * padding, np.int32)
    owners_C = np.array([i for i, body in enumerate(bodies) for _ in body] + [len(bodies)] * padding, np.int32)
    places_C = np.array([t for body in bodies for t in range(len(body))] + [0] * padding, np.int32)
    lengths_R = np.array([len(body) for body in bodies], np.int32)
    new = prefill(model, params, tokens_C, owners_C, max(map(len, bodies)), places_C, prefix)
    return insert(cache, np.array([*rows]), new, np.cumsum(lengths_R), lengths_R)


def decode_rows(model, params, prefix, slots=12, steps=6, start=7):
    """Three rows of different lengths in a ring that wraps around. Row 1 gets another body after three steps.

    Yields (a row's tokens so far, its logits) after every step. The first step takes the body's last token.
    """
    cache = kv_cache.empty_cache(model, rows=3, slots=slots)._replace(time=jnp.asarray(start))
    cache = put_bodies(model, params, cache, range(3), BODIES, prefix)
    texts = [body[:-1] for body in BODIES]
    next_B = np.array([body[-1] for body in BODIES], np.int32)
    sampled_MB = np.random.default_rng(5).integers(0, 20, (steps, 3)).astype(np.int32)
    for step, sampled_B in enumerate(sampled_MB):
        if step == 3:
            # The second one has no row: dropped.
            cache = put_bodies(model, params, cache, [1, 99], [LATE_BODY, BODIES[0]], prefix)
            texts[1], next_B[1] = LATE_BODY[:-1], LATE_BODY[-1]
        texts = [text + [int(token)] for text, token in zip(texts, next_B, strict=True)]
        logits_BV, cache = decode_step(model, params, next_B, cache, prefix)
        next_B = sampled_B.copy()
        yield from ((list(texts[row]), logits_BV[row]) for row in range(3))


@pytest.mark.parametrize(
    ("family", "shots"),
    [
        ("gptj", PREFIX),
        ("gpt2", []),
        ("gemma3_text", PREFIX * 5),
        *(slow(family, PREFIX) for family in ("gpt2", *LATER)),
        *(slow(family, []) for family in ("gptj", *LATER)),
    ],
)
def test_cached_decoding_equals_the_reference_pass(family, shots):
    """Prefill and decode steps around the end of the ring, with a row refilled on the way.

    The longest prefix is 25 tokens; windows are 3 or 4, so that local layers keep its last 16 only.
    """
    model, params = tiny_model(family)
    prefix = prefix_of(model, params, shots, padding=3 if shots else 0)
    steps = list(decode_rows(model, params, prefix))
    length = len(shots) + 15
    padded_BT = np.array([(shots + tokens + [0] * 15)[:length] for tokens, _ in steps], np.int32)
    reference_BTV = forward(model, params, padded_BT)
    last = [len(shots) + len(tokens) - 1 for tokens, _ in steps]
    assert len(steps) == 6 * 3
    assert worst([logits for _, logits in steps], [reference_BTV[i, t] for i, t in enumerate(last)]) < 1e-5


def test_a_shared_prefix_equals_the_same_tokens_in_every_row(either):
    """Keys and values of the bodies, in all layers."""
    model, params = either
    bodies = [body + [0] for body in BODIES]  # their last tokens stay out of the cache
    layers_of = {}
    for cut in (0, len(PREFIX)):
        cache = kv_cache.empty_cache(model, rows=3, slots=12)
        whole, prefix = [PREFIX[cut:] + body for body in bodies], prefix_of(model, params, PREFIX[:cut], padding=3)
        layers = put_bodies(model, params, cache, range(3), whole, prefix).layers
        layers_of[cut] = [leaf[row, :, 12 - len(body) :] for leaf in jax.tree.leaves(layers)
                      for row, body in enumerate(BODIES)]  # fmt: skip
    assert worst(layers_of[0], layers_of[len(PREFIX)]) < 1e-5


def test_packed_bodies_have_the_keys_of_padded_rows(either):
    """prefill, with the bodies in one row, against encode_rows, with a row for each."""
    model, params = either
    bodies = [*BODIES, LATE_BODY]
    tokens_RT = np.array([[13] * (8 - len(body)) + body for body in bodies], np.int32)
    lengths_R = np.array([len(body) for body in bodies], np.int32)
    rows = encode_rows(model, params, tokens_RT, lengths_R)
    cache = kv_cache.empty_cache(model, rows=4, slots=8)
    cache = put_bodies(model, params, cache, range(4), [body + [0] for body in bodies], prefix_of(model, params, [], 0))
    assert cache.filled_B.tolist() == lengths_R.tolist()
    for one, other in zip(jax.tree.leaves(rows), jax.tree.leaves(cache.layers), strict=True):
        assert worst(*[[leaf[i, :, 8 - n :] for i, n in enumerate(lengths_R)] for leaf in (one, other)]) < 1e-5


def test_segments_do_not_attend_to_each_other(either):
    """In a row of four segments and padding, each text has the logits that it has in a row of its own."""
    model, params = either
    texts = [*BODIES, LATE_BODY]
    sizes = [len(text) for text in texts]
    tokens = np.array([[token for text in texts for token in text] + [0, 0]], np.int32)
    positions = np.array([[t for n in sizes for t in range(n)] + [0, 0]], np.int32)
    segments = np.array([[i + 1 for i, n in enumerate(sizes) for _ in range(n)] + [0, 0]], np.int32)
    packed_TV = jax.jit(model.apply)({"params": params}, tokens, positions, segments)[0]
    alone = np.asarray(forward(model, params, np.array([(text + [0] * 6)[:6] for text in texts], np.int32)))
    expected = np.concatenate([alone[i, :n] for i, n in enumerate(sizes)])
    assert worst(packed_TV[: sum(sizes)], expected) < 1e-5


def test_no_logit_depends_on_a_later_token(either):
    """By the gradients of the logits for the embedding of each token; the tokens are all different.

    For GPT-2, whose head is the embedding, by the gradients for the position vectors.
    """
    model, params = either
    if model.spec.tied_head and model.spec.rope.dim:  # the embedding reaches every logit as the head
        model, params = tiny_model(model.spec.family, tied=False)
    tokens = np.random.default_rng(0).permutation(20)[:6].astype(np.int32)
    weights_V = np.random.default_rng(1).standard_normal(20)
    name, rows = ("positions", np.arange(6)) if model.spec.family == "gpt2" else ("embedding", tokens)

    @jax.jit
    @jax.jacrev
    def influence(table):
        changed = {**params, name: {"embedding": table}}
        return decoder.apply(model, changed, tokens[None])[0] @ weights_V

    size_TS = np.linalg.norm(influence(params[name]["embedding"]), axis=-1)[:, rows]
    assert np.all(size_TS[np.triu_indices(6, k=1)] == 0)
    assert np.all(size_TS[np.tril_indices(6)] > 0)


@pytest.mark.parametrize("remat", ["dots", slow("full")])
def test_scan_unroll_and_remat_change_no_number(either, remat):
    """Logits and gradients of two unrolled layers against those of a loop over layers with rematerialization."""
    model, params = either
    assert model.scan_unroll == 2 and model.remat == "none"
    tokens_BT = np.random.default_rng(2).integers(0, 20, (2, 10)).astype(np.int32)
    expected = logits_and_gradients(model, params, tokens_BT)
    other = model.clone(scan_unroll=1, remat=remat)
    actual = logits_and_gradients(other, params, tokens_BT)
    if model.spec.family == "gpt2":
        pop_key_bias(actual[1], expected[1])
    assert worst_relative(actual, expected) < 1e-5


def test_full_remat_computes_the_blocks_again(tiny):
    """By the number of matrix products in the gradient's program."""
    _, params = tiny
    tokens_BT = np.zeros((1, 4), np.int32)
    text = {
        remat: logits_and_gradients.lower(
            families.build(dataclasses.replace(TINY, remat=remat, scan_unroll=1)), params, tokens_BT
        ).as_text()
        for remat in ("none", "full")
    }
    assert text["full"].count("dot_general") > text["none"].count("dot_general")


@pytest.mark.slow
def test_bfloat16_is_near_float32_with_logits_in_float32(either):
    """Activations and caches are bfloat16; the reference pass and a decode step stay within its precision."""
    model, params = either
    half = model.clone(compute_dtype="bfloat16")
    tokens_BT = np.array([PREFIX + BODIES[0]], np.int32)
    expected = np.asarray(forward(model, params, tokens_BT))
    actual = forward(half, params, tokens_BT)
    empty = prefix_of(half, params, [], padding=0)
    cache = put_bodies(half, params, kv_cache.empty_cache(half, 1, 12), [0], tokens_BT.tolist(), empty)
    last, cache = decode_step(half, params, tokens_BT[:, -1], cache, empty)
    assert actual.dtype == last.dtype == jnp.float32
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(cache.layers))
    assert 0 < np.linalg.norm(actual - expected) < 0.03 * np.linalg.norm(expected)
    assert np.linalg.norm(last - expected[:, -1]) < 0.03 * np.linalg.norm(expected[:, -1])


def test_padding_the_vocabulary_changes_no_other_logit(either):
    model, params = either
    wide = dataclasses.replace(model.spec, vocab_size=TINY.vocab_size + 4)
    more = numpy_params(wide, seed=9)

    def put(rows, old):
        rows = np.array(rows)
        rows[tuple(slice(0, size) for size in old.shape)] = old
        return rows

    wider = {"embedding", "head"} & params.keys()
    padded = {**params, **{name: jax.tree.map(put, more[name], params[name]) for name in wider}}
    tokens_BT = np.array([PREFIX + BODIES[0]], np.int32)
    actual = forward(decoder.Decoder(wide), padded, tokens_BT)
    assert worst(actual[..., : TINY.vocab_size], forward(model, params, tokens_BT)) < 1e-5


def test_padding_beyond_gpt_2_s_positions_reaches_no_logit():
    """A prefix of five tokens, padded to sixteen, in a model of eight positions: out-of-range lookups would be NaN."""
    config = dataclasses.replace(TINY, architecture="gpt2", rotary_dim=0, max_positions=8)
    model, params = families.build(config), jax.tree.map(jnp.asarray, numpy_params(config))
    prefix = prefix_of(model, params, PREFIX, padding=16 - len(PREFIX))
    cache = put_bodies(model, params, kv_cache.empty_cache(model, 1, 4), [0], [[3, 4]], prefix, padding=12)
    actual, _ = decode_step(model, params, np.array([4], np.int32), cache, prefix)
    expected = forward(model, params, np.array([PREFIX + [3, 4]], np.int32))[:, -1]
    assert worst(actual, expected) < 1e-5
