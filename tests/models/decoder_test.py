"""star_jax.models.decoder: it computes GPT-J and GPT-2, and every pass of it computes the same."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from star_jax.config import ModelConfig
from star_jax.models import decoder
from star_jax.models.attention.masks import PrefillMask
from star_jax.sampling import kv_cache
from tests.support import mesh_transformer
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
TORCH_SHAPES = {
    "two heads": _TORCH(n_layers=2, d_model=32, n_heads=2, d_mlp=64, rotary_dim=8, vocab_size=50),
    "whole head rotates": _TORCH(n_layers=1, d_model=24, n_heads=3, d_mlp=40, rotary_dim=8, vocab_size=31),
    "one pair rotates": _TORCH(n_layers=3, d_model=16, n_heads=4, d_mlp=64, rotary_dim=2, vocab_size=97),
    "gpt2, three heads": _GPT2(n_layers=2, d_model=24, n_heads=3, d_mlp=96, vocab_size=50),
    "gpt2, narrow mlp": _GPT2(n_layers=3, d_model=32, n_heads=4, d_mlp=40, vocab_size=97),
}
_DRAW = np.random.default_rng(7)
BODIES = [_DRAW.integers(0, 20, n).tolist() for n in (6, 1, 4)]
LATE_BODY = _DRAW.integers(0, 20, 3).tolist()  # takes over row 1 while the others are decoding
PREFIX = _DRAW.integers(0, 20, 5).tolist()


@pytest.fixture(scope="module", params=["gptj", "gpt2"])
def either(request, tiny) -> tuple[decoder.GPT, decoder.Params]:
    """The tiny model, and a GPT-2 of the same sizes."""
    if request.param == "gptj":
        return tiny
    config = dataclasses.replace(TINY, architecture="gpt2", rotary_dim=0)
    return decoder.GPT(config), jax.tree.map(jnp.asarray, numpy_params(config, seed=4))


def worst(found, expected) -> float:
    """Largest absolute difference of two trees."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))) for a, b in pairs)


def check_silent(*trees) -> None:
    """Takes GPT-2's key biases out of gradients: softmax takes no notice of them, so theirs are rounding alone."""
    for tree in trees:
        if "key_bias" in tree["blocks"]["attention"]:
            assert np.max(np.abs(tree["blocks"]["attention"].pop("key_bias"))) < 1e-6


def worst_relative(found, expected) -> float:
    """Largest difference of two trees, relative to each leaf's largest value."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    ratios = jax.tree.map(lambda a, b: worst(a, b) / float(np.max(np.abs(b))), found, expected)
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


@pytest.mark.parametrize("shape", TORCH_SHAPES)
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

    logits_BTV, gradients = logits_and_gradients(decoder.GPT(config), weights, tokens_BT)

    record_property("logits", worst(logits_BTV, expected))
    check_silent(gradients, expected_gradients)
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
    return folder, decoder.GPT(config)


@pytest.mark.parametrize(
    ("checkpoint", "logits"),
    [("ckpt_init_f32/step_0", "init_f32"), ("ckpt_slim_bf16/step_3", "step3_slim_bf16params")],
)
def test_logits_are_those_of_the_original(shared_dir, checkpoint, logits, record_property):
    """The original's own output for its own checkpoints; in bfloat16 only its weights are rounded."""
    folder, model = original(shared_dir)
    params = mesh_transformer.read_params(folder / checkpoint, model.config.n_layers, model.config.n_heads)
    with np.load(folder / "logits.npz", allow_pickle=False) as file:
        tokens_BT, expected = file["tokens"].astype(np.int32), file[logits]
    found = forward(model, params, tokens_BT)
    record_property("logits", worst(found, expected))
    assert worst(found, expected) < 2e-5


def test_the_first_logits_are_those_of_the_original(shared_dir, record_property):
    """Those behind prompts of six lengths, from which the original draws its first token."""
    folder, model = original(shared_dir)
    params = mesh_transformer.read_params(folder / "ckpt_init_f32/step_0", model.config.n_layers, model.config.n_heads)
    with np.load(folder / "generate.npz", allow_pickle=False) as file:
        tokens_RT, lengths_R = file["padded"].astype(np.int32), file["lengths"].astype(np.int32)
        expected = file["greedy_f32_logits_first8"][:, 0]
    fits = lengths_R < model.config.max_positions  # a full row slides the original's window before its first draw
    bodies = [row[len(row) - length :].tolist() for row, length in zip(tokens_RT[fits], lengths_R[fits], strict=True)]
    empty = kv_cache.encode_prefix(model, params, jnp.zeros((0,), jnp.int32), 0)
    cache = put_bodies(model, params, kv_cache.empty_cache(model.config, len(bodies), 128), range(6), bodies, empty)
    found, _ = decode_step(model, params, np.array([body[-1] for body in bodies], np.int32), cache, empty)
    record_property("logits", worst(found, expected[fits]))
    assert len(bodies) == 6
    assert worst(found, expected[fits]) < 2e-5


def prefix_of(model, params, tokens, padding):
    ids = np.array(tokens + [17] * padding, np.int32)
    return encode_prefix(model, params, ids, len(tokens))


def put_bodies(model, params, cache, rows, bodies, prefix, padding=3):
    """The cache with all but the last token of each body, packed, with padding that must not matter."""
    bodies = [body[:-1] for body in bodies]
    tokens_C = np.array([token for body in bodies for token in body] + [13] * padding, np.int32)
    owners_C = np.array([i for i, body in enumerate(bodies) for _ in body] + [len(bodies)] * padding, np.int32)
    places_C = np.array([t for body in bodies for t in range(len(body))] + [0] * padding, np.int32)
    lengths_R = np.array([len(body) for body in bodies], np.int32)
    new = prefill(model, params, tokens_C, owners_C, max(map(len, bodies)), places_C, prefix)
    return insert(cache, np.array([*rows]), new, np.cumsum(lengths_R), lengths_R)


def decode_rows(model, params, prefix, slots=12, steps=6, start=7):
    """Three rows of different lengths in a ring that wraps around; row 1 is given to another body on the way.

    Yields (row's body and drawn tokens, its logits) after every step, of which the first takes the body's last token.
    """
    cache = kv_cache.empty_cache(model.config, rows=3, slots=slots)._replace(time=jnp.asarray(start))
    cache = put_bodies(model, params, cache, range(3), BODIES, prefix)
    texts = [body[:-1] for body in BODIES]
    next_B = np.array([body[-1] for body in BODIES], np.int32)
    drawn_MB = np.random.default_rng(5).integers(0, 20, (steps, 3)).astype(np.int32)
    for step, drawn_B in enumerate(drawn_MB):
        if step == 3:
            # The second one has no row: dropped.
            cache = put_bodies(model, params, cache, [1, 99], [LATE_BODY, BODIES[0]], prefix)
            texts[1], next_B[1] = LATE_BODY[:-1], LATE_BODY[-1]
        texts = [text + [int(token)] for text, token in zip(texts, next_B, strict=True)]
        logits_BV, cache = decode_step(model, params, next_B, cache, prefix)
        next_B = drawn_B.copy()
        yield from ((list(texts[row]), logits_BV[row]) for row in range(3))


@pytest.mark.parametrize("shots", [[], PREFIX], ids=["no prefix", "shared prefix"])
def test_cached_decoding_equals_the_full_forward_pass(either, shots):
    """Prefill and decode steps through the ring, its end crossed, with a row refilled on the way."""
    model, params = either
    prefix = prefix_of(model, params, shots, padding=3 if shots else 0)
    found = list(decode_rows(model, params, prefix))
    padded_BT = np.array([(shots + text + [0] * 20)[:20] for text, _ in found], np.int32)
    full_BTV = forward(model, params, padded_BT)
    last = [len(shots) + len(text) - 1 for text, _ in found]
    assert len(found) == 6 * 3
    assert worst([logits for _, logits in found], [full_BTV[i, t] for i, t in enumerate(last)]) < 1e-5


def test_a_shared_prefix_equals_the_same_tokens_in_every_row(either):
    """KV and values of the bodies, in all layers."""
    model, params = either
    bodies = [body + [0] for body in BODIES]  # their last tokens stay out of the cache
    found = {}
    for cut in (0, len(PREFIX)):
        cache = kv_cache.empty_cache(model.config, rows=3, slots=12)
        whole, prefix = [PREFIX[cut:] + body for body in bodies], prefix_of(model, params, PREFIX[:cut], padding=3)
        layers = put_bodies(model, params, cache, range(3), whole, prefix).layers
        found[cut] = [leaf[row, :, 12 - len(body) :] for leaf in jax.tree.leaves(layers)
                      for row, body in enumerate(BODIES)]  # fmt: skip
    assert worst(found[0], found[len(PREFIX)]) < 1e-5


def test_packed_bodies_have_the_keys_of_padded_rows(either):
    """One body after the other in one row, against rows of their own: prefill against encode_rows."""
    model, params = either
    bodies = [*BODIES, LATE_BODY]
    tokens_RT = np.array([[13] * (8 - len(body)) + body for body in bodies], np.int32)
    lengths_R = np.array([len(body) for body in bodies], np.int32)
    rows = encode_rows(model, params, tokens_RT, lengths_R)
    cache = kv_cache.empty_cache(model.config, rows=4, slots=8)
    cache = put_bodies(model, params, cache, range(4), [body + [0] for body in bodies], prefix_of(model, params, [], 0))
    assert cache.filled_B.tolist() == lengths_R.tolist()
    for one, other in zip(jax.tree.leaves(rows), jax.tree.leaves(cache.layers), strict=True):
        assert worst(*[[leaf[i, :, 8 - n :] for i, n in enumerate(lengths_R)] for leaf in (one, other)]) < 1e-5


def test_packed_texts_do_not_see_each_other(either):
    """A row of three segments and padding gives each text the logits it has alone."""
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
    """Each row of the table is used once, so its gradient tells which logits it reaches.

    The table is the embedding, each token of the text a different one; for GPT-2, whose head is the embedding too,
    the positions.
    """
    model, params = either
    tokens = np.random.default_rng(0).permutation(20)[:6].astype(np.int32)
    weights_V = np.random.default_rng(1).standard_normal(20)
    name, rows = ("positions", np.arange(6)) if model.config.is_gpt2 else ("embedding", tokens)

    @jax.jit
    @jax.jacrev
    def influence(table):
        changed = {**params, name: {"embedding": table}}
        return decoder.apply(model, changed, tokens[None])[0] @ weights_V

    size_TS = np.linalg.norm(influence(params[name]["embedding"]), axis=-1)[:, rows]
    assert np.all(size_TS[np.triu_indices(6, k=1)] == 0)
    assert np.all(size_TS[np.tril_indices(6)] > 0)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_scan_unroll_and_remat_change_no_number(either, remat):
    """Logits and gradients of two unrolled layers, against a loop over layers that recomputes activations."""
    model, params = either
    assert model.config.scan_unroll == 2 and model.config.remat == "none"
    tokens_BT = np.random.default_rng(2).integers(0, 20, (2, 10)).astype(np.int32)
    expected = logits_and_gradients(model, params, tokens_BT)
    other = decoder.GPT(dataclasses.replace(model.config, scan_unroll=1, remat=remat))
    found = logits_and_gradients(other, params, tokens_BT)
    check_silent(found[1], expected[1])
    assert worst_relative(found, expected) < 1e-5


def test_remat_computes_the_blocks_a_second_time(tiny):
    """The gradient's program holds more matrix products with it than without."""
    _, params = tiny
    tokens_BT = np.zeros((1, 4), np.int32)
    text = {
        remat: logits_and_gradients.lower(
            decoder.GPT(dataclasses.replace(TINY, remat=remat, scan_unroll=1)), params, tokens_BT
        ).as_text()
        for remat in ("none", "full")
    }
    assert text["full"].count("dot_general") > text["none"].count("dot_general")


def test_bfloat16_runs_near_float32_with_logits_in_float32(either):
    """Activations and caches are bfloat16; the full pass and the cached one stay within its precision."""
    model, params = either
    half = decoder.GPT(dataclasses.replace(model.config, compute_dtype="bfloat16"))
    tokens_BT = np.array([PREFIX + BODIES[0]], np.int32)
    expected = np.asarray(forward(model, params, tokens_BT))
    found = forward(half, params, tokens_BT)
    empty = prefix_of(half, params, [], padding=0)
    cache = put_bodies(half, params, kv_cache.empty_cache(half.config, 1, 12), [0], tokens_BT.tolist(), empty)
    last, cache = decode_step(half, params, tokens_BT[:, -1], cache, empty)
    assert found.dtype == last.dtype == jnp.float32
    assert all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(cache.layers))
    assert 0 < np.linalg.norm(found - expected) < 0.03 * np.linalg.norm(expected)
    assert np.linalg.norm(last - expected[:, -1]) < 0.03 * np.linalg.norm(expected[:, -1])


def test_padding_the_vocabulary_changes_no_other_logit(either):
    model, params = either
    wide = dataclasses.replace(model.config, vocab_size=TINY.vocab_size + 4)
    more = numpy_params(wide, seed=9)

    def put(rows, old):
        rows = np.array(rows)
        rows[tuple(slice(0, size) for size in old.shape)] = old
        return rows

    wider = {"embedding", "head"} & params.keys()
    padded = {**params, **{name: jax.tree.map(put, more[name], params[name]) for name in wider}}
    tokens_BT = np.array([PREFIX + BODIES[0]], np.int32)
    found = forward(decoder.GPT(wide), padded, tokens_BT)
    assert worst(found[..., : TINY.vocab_size], forward(model, params, tokens_BT)) < 1e-5


def test_padding_beyond_gpt_2_s_positions_reaches_no_logit():
    """Five tokens of prefix, padded to sixteen, for a model of eight positions: a lookup out of range would be NaN."""
    config = dataclasses.replace(TINY, architecture="gpt2", rotary_dim=0, max_positions=8)
    model, params = decoder.GPT(config), jax.tree.map(jnp.asarray, numpy_params(config))
    prefix = prefix_of(model, params, PREFIX, padding=16 - len(PREFIX))
    cache = put_bodies(model, params, kv_cache.empty_cache(config, 1, 4), [0], [[3, 4]], prefix, padding=12)
    found, _ = decode_step(model, params, np.array([4], np.int32), cache, prefix)
    expected = forward(model, params, np.array([PREFIX + [3, 4]], np.int32))[:, -1]
    assert worst(found, expected) < 1e-5
