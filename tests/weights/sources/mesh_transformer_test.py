"""star_jax.weights.sources.mesh_transformer: the original's checkpoints give its logits, losses and texts."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from star_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder, families
from star_jax.training import optimizer
from star_jax.training.loss import unchunked_loss_sums
from star_jax.weights import checkpoint
from star_jax.weights.sources import loader
from star_jax.weights.sources.mesh_transformer import MeshTransformerSource
from tests.support import mesh_transformer
from tests.support.sampling import TextSampler
from tests.support.weights import IdsTokenizer, convert, torch_logits

N_LAYERS, N_HEADS = 12, 4
SCHEDULE = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, decay="cosine", end_fraction=0.1, clip_norm=1.0)
WIDE = ModelConfig(
    n_layers=12, d_model=16, n_heads=8, d_mlp=64, rotary_dim=2, vocab_size=24, max_positions=8, architecture="gptj"
)
forward = jax.jit(decoder.apply, static_argnums=0)


@pytest.fixture(scope="module")
def folder(shared_dir) -> Path:
    return shared_dir / "fixtures" / "mesh_transformer"


@pytest.fixture(scope="module")
def meta(folder) -> dict:
    return json.loads((folder / "meta.json").read_text())


@pytest.fixture(scope="module")
def config_file(meta, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(meta["config"]))
    return path


@pytest.fixture(scope="module")
def original(folder, config_file):
    """(model, parameters) of the float32 checkpoint that most figures are of."""
    return load(folder / "ckpt_init_f32/step_0", config_file)


def load(directory, config_file, part="params"):
    source = MeshTransformerSource(directory, config_file, part)
    return loader.load(source, sharding.make_mesh(MeshConfig(data=1)), "float32")


def arrays(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def worst(values, expected) -> float:
    pairs = zip(jax.tree.leaves(values), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)))) for a, b in pairs)


def assert_same(params, expected) -> None:
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def rounded(source: Path, target: Path) -> Path:
    """The checkpoint with every leaf rounded to bfloat16, as the original's network reads it."""
    shards = mesh_transformer.read_shards(source, N_LAYERS)
    half = [{name: leaf.astype(ml_dtypes.bfloat16) for name, leaf in shard.items()} for shard in shards]
    mesh_transformer.write(target, half)
    return target


@pytest.mark.parametrize(
    ("name", "logits"),
    [
        ("ckpt_init_f32/step_0", "init_f32"),
        ("ckpt_init_f32/step_0 in bfloat16", "init_bf16params"),
        ("ckpt_slim_bf16/step_3", "step3_slim_bf16params"),
    ],
)
def test_logits_are_those_of_the_original(name, logits, folder, config_file, tmp_path, record_property):
    directory = folder / name.removesuffix(" in bfloat16")
    if directory != folder / name:
        directory = rounded(directory, tmp_path / "step_0")
    expected = arrays(folder / "logits.npz")
    computed = forward(*load(directory, config_file), expected["tokens"].astype(np.int32))
    record_property("logits", worst(computed, expected[logits]))
    assert worst(computed, expected[logits]) <= 2e-5


def test_two_readers_agree_on_every_bit(folder, config_file):
    for name in ("ckpt_init_f32/step_0", "ckpt_full/step_3", "ckpt_slim_bf16/step_3"):
        expected = mesh_transformer.read_params(folder / name, N_LAYERS, N_HEADS)
        assert_same(jax.tree.map(np.asarray, load(folder / name, config_file)[1]), expected)


def test_a_full_checkpoint_rounds_to_its_slim_one(folder, config_file):
    """Both were written at step 3: what the slim one stores are the full one's leaves, cast to bfloat16."""
    full, slim = (
        mesh_transformer.read_shards(folder / name, N_LAYERS) for name in ("ckpt_full/step_3", "ckpt_slim_bf16/step_3")
    )
    for shard, half in zip(full, slim, strict=True):
        for name, leaf in shard.items():
            np.testing.assert_array_equal(leaf.astype(ml_dtypes.bfloat16).astype(np.float32), half[name])
    assert load(folder / "ckpt_full/step_3", config_file)[0].spec.max_positions == 128


def test_losses_of_every_token_are_those_of_the_original(original, folder, record_property):
    """Its "short" evaluations hide the keys after `ctx_length_short`: up to there they are the same figures."""
    losses = arrays(folder / "losses.npz")
    tokens_BT = losses["eval_tokens"].astype(np.int32)
    logits_BTV = forward(*original, tokens_BT[:, :-1])
    computed = np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits_BTV, tokens_BT[:, 1:]))
    record_property("losses", worst(computed, losses["eval_f32_full_all_loss"]))
    assert worst(computed, losses["eval_f32_full_all_loss"]) <= 2e-5
    assert worst(computed.mean(1), losses["eval_f32_full_loss"]) <= 2e-5
    assert worst(computed[:, -1], losses["eval_f32_full_last_loss"]) <= 2e-5
    for row, length in enumerate(losses["ctx_length_short"]):
        seen = slice(0, length + 1)
        assert worst(computed[row, seen], losses["eval_f32_short_all_loss"][row, seen]) <= 2e-5
    correct = np.asarray(logits_BTV).argmax(-1) == tokens_BT[:, 1:]
    np.testing.assert_array_equal(correct, losses["eval_f32_full_correct"])


def as_row(tokens_BT) -> dict[str, np.ndarray]:
    """A batch of rows of one text each, every token with loss."""
    tokens_BT = np.asarray(tokens_BT, np.int32)
    positions = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32)[None], tokens_BT.shape)
    ones = np.ones_like(tokens_BT)
    return {
        "tokens_RT": tokens_BT,
        "positions_RT": positions,
        "segment_ids_RT": ones,
        "weights_RT": ones.astype(np.float32),
    }


def per_shard(directory: Path):
    """What the original trains: our tree, but with a copy of its replicated biases for each shard.

    Each copy has the whole gradient, is counted in the norm, and has its own Adam moments.
    """
    shards = mesh_transformer.read_shards(directory, N_LAYERS)
    params = jax.tree.map(jnp.asarray, mesh_transformer.tree(mesh_transformer.join(shards), N_LAYERS, N_HEADS))
    params["embedding"] = {"table": jnp.concatenate([shard["embedding/w"] for shard in shards])}
    params["embedding"]["bias"] = jnp.stack([shard["embedding/b"] for shard in shards])
    params["blocks"]["mlp"]["out"]["bias"] = jnp.stack(
        [jnp.stack([shard[f"layer_{n}/linear_5/b"] for shard in shards]) for n in range(N_LAYERS)]
    )
    return params


def summed(params):
    """Our tree of such parameters."""
    out = params["blocks"]["mlp"]["out"]
    mlp = {**params["blocks"]["mlp"], "out": {**out, "bias": out["bias"].sum(1)}}
    table = params["embedding"]["table"] + params["embedding"]["bias"].sum(0)[None]
    return {**params, "embedding": {"embedding": table}, "blocks": {**params["blocks"], "mlp": mlp}}


@functools.partial(jax.jit, static_argnums=0)
def loss_and_gradients(model, params, batch):
    def mean_loss(params):
        total, weight = unchunked_loss_sums(model, summed(params), batch, 1e-4)
        return total / weight

    return jax.value_and_grad(mean_loss)(params)


@pytest.mark.slow
@pytest.mark.parametrize("row", [0, 1])
def test_training_loss_and_gradient_norm_are_those_of_the_original(row, original, folder, record_property):
    model, params = original
    losses = arrays(folder / "losses.npz")
    batch = as_row(losses["eval_tokens"][row : row + 1])
    loss, gradients = loss_and_gradients(model, per_shard(folder / "ckpt_init_f32/step_0"), batch)
    total, weight = unchunked_loss_sums(model, params, batch, 1e-4)
    norm = float(losses[f"train_f32_gradnorm_{row}"])
    record_property("loss", worst(total / weight, losses[f"train_f32_loss_{row}"]))
    record_property("norm", abs(float(optax.tree.norm(gradients)) / norm - 1))
    assert worst(loss, losses[f"train_f32_loss_{row}"]) <= 2e-5
    assert worst(total / weight, losses[f"train_f32_loss_{row}"]) <= 2e-5
    assert float(optax.tree.norm(gradients)) == pytest.approx(norm, rel=1e-5)


def test_the_schedule_is_that_of_the_original(meta):
    """Ours ends with the run; the original's stays at the last value."""
    listed = meta["lr_schedule_w2_a10_1e-3_1e-4_steps0..15"]
    rates = [optimizer.learning_rate(SCHEDULE, min(step, 12), 12) for step in range(16)]
    np.testing.assert_allclose(rates, listed, rtol=2e-6, atol=1e-12)


def after_three_steps(model, params, meta, folder):
    """(parameters, [(loss, gradient norm)]) of the original's second run, by our optimizer."""
    data = arrays(folder / "train_data.npz")["train_data"]
    rates = meta["lr_schedule_w2_a10_1e-3_1e-4_steps0..15"][5:8]
    chain, history = optimizer.chain(SCHEDULE), []
    decays = jax.tree_util.tree_map_with_path(lambda path, _: 0.1 * (path[-1].key not in ("bias", "scale")), params)
    state = chain.init(params)
    for tokens_BT, rate in zip(data[:, 0], rates, strict=True):
        loss, gradients = loss_and_gradients(model, params, as_row(tokens_BT))
        history.append((float(loss), float(optax.tree.norm(gradients))))
        updates, state = chain.update(gradients, state, params)
        params = jax.tree.map(lambda p, u, d, rate=rate: p - rate * (u + d * p), params, updates, decays)
    return params, history


@pytest.mark.slow
def test_three_optimizer_steps_end_where_the_original_ends(original, meta, folder, record_property):
    """Its steps 5, 6 and 7 by the schedule; weight decay on matrices alone."""
    params, history = after_three_steps(original[0], per_shard(folder / "ckpt_init_f32/step_0"), meta, folder)
    expected = [(row[0], row[2]) for row in meta["run2_hist_loss_lastloss_gradnorm_gradnormmicro"]]
    np.testing.assert_allclose(history, expected, rtol=1e-5)
    stored = arrays(folder / "run2_f32_params_after_3.npz")
    order = mesh_transformer.names(N_LAYERS)
    shards = [dict(zip(order, (leaf[k] for leaf in stored.values()), strict=True)) for k in (0, 1)]
    assert [name.split("/~/")[1].replace("_shard", "") for name in stored] == [name.split("/")[0] for name in order]
    expected_params = mesh_transformer.tree(mesh_transformer.join(shards), N_LAYERS, N_HEADS)
    figures = {
        "params": worst(summed(params), expected_params),
        "table": worst(params["embedding"]["table"], np.concatenate([shard["embedding/w"] for shard in shards])),
        "copies": worst(params["embedding"]["bias"], np.stack([shard["embedding/b"] for shard in shards])),
    }
    for name, figure in figures.items():
        record_property(name, figure)
        assert figure <= 2e-5, name


@pytest.mark.slow
def test_greedy_texts_are_those_of_the_original(original, folder, record_property):
    """Through the sampler. Prompts that fill the window (128, 140) are left out: the original slides it."""
    expected = arrays(folder / "generate.npz")
    rows = [i for i, length in enumerate(expected["lengths"]) if length + 24 <= 128]
    assert len(rows) == 6
    unused = next(i for i in range(256) if i not in expected["greedy_f32_tokens"])
    sampler = TextSampler(
        *original, IdsTokenizer(256, unused), max_new_tokens=24, slots=4, queue=8, prefill_tokens=104
    )  # fmt: skip
    bodies = [expected["padded"][i, 128 - expected["lengths"][i] :] for i in rows]
    samples = sampler([" ".join(map(str, body)) for body in bodies])
    compared = 0
    for i, sample in zip(rows, samples, strict=True):
        sure = int(np.append(expected["greedy_f32_gap"][i] > 1e-3, False).argmin())
        assert list(sample.token_ids[:sure]) == expected["greedy_f32_tokens"][i, :sure].tolist()
        compared += sure
    record_property("tokens", compared)
    assert compared == 6 * 24


@pytest.mark.slow
def test_transformers_computes_the_original_after_two_conversions(folder, config_file, tmp_path, record_property):
    """mesh_transformer -> orbax -> hf -> torch."""
    transformers = pytest.importorskip("transformers", reason="the parity oracle needs transformers (test-only)")
    step = folder / "ckpt_init_f32/step_0"
    status, output, _ = convert(step, "mesh_transformer", tmp_path / "a", "orbax", f"--source_config={config_file}")
    assert status == 0 and "gptj" in output
    assert convert(tmp_path / "a", "orbax", tmp_path / "b", "hf")[0] == 0
    theirs = transformers.GPTJForCausalLM.from_pretrained(tmp_path / "b").eval()
    expected = arrays(folder / "logits.npz")
    logits = torch_logits(theirs, expected["tokens"].astype(np.int32))
    record_property("logits", worst(logits, expected["init_f32"]))
    assert worst(logits, expected["init_f32"]) <= 2e-5


@pytest.fixture(scope="module")
def whole() -> mesh_transformer.Named:
    """A random model of twelve layers, so that layer_10 stands before layer_2; biases are bfloat16 numbers.

    Then the shares of a bias that shards hold add up without rounding.
    """
    rng, size, wide = np.random.default_rng(3), WIDE.d_model, WIDE.d_mlp
    shapes = {"embedding/w": (WIDE.vocab_size, size), "projection/w": (size, WIDE.vocab_size)}
    shapes |= {"projection/b": (WIDE.vocab_size,), "linear_4/b": (wide,), "linear_4/w": (size, wide)}
    shapes |= {f"linear{n}/w": (size, size) for n in ("", "_1", "_2", "_3")} | {"linear_5/w": (wide, size)}

    def random_leaf(name):
        shape = shapes.get(name, shapes.get(name.partition("/")[2], (size,)))
        leaf = (0.2 * rng.standard_normal(shape)).astype(np.float32)
        return leaf.astype(ml_dtypes.bfloat16).astype(np.float32) if len(shape) == 1 else leaf

    return {name: random_leaf(name) for name in mesh_transformer.names(WIDE.n_layers)}


@pytest.fixture
def wide_file(tmp_path) -> Path:
    """WIDE as the original's config."""
    sizes = {"layers": 12, "d_model": 16, "n_heads": 8, "n_vocab": 24, "seq": 8, "pe": "rotary", "pe_rotary_dims": 2}
    (tmp_path / "wide.json").write_text(json.dumps({**sizes, "norm": "layernorm", "cores_per_replica": 8}))
    return tmp_path / "wide.json"


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_any_number_of_shards_holds_the_same_model(count, whole, wide_file, tmp_path):
    """In both dtypes; full or slim, so that all pairs of count, dtype and form occur."""
    for dtype, full in (("float32", count in (1, 4)), ("bfloat16", count in (2, 8))):
        stored = {name: leaf.astype(getattr(ml_dtypes, dtype, dtype)) for name, leaf in whole.items()}
        directory = tmp_path / dtype / "step_3"
        mesh_transformer.write(directory, mesh_transformer.cut(stored, count), full=full)
        if dtype == "bfloat16":
            last = arrays(directory / "shard_0" / "15.npz")
            assert {a.dtype.str for a in last.values() if a.ndim} == {"|V2"}
        model, params = load(directory, wide_file)
        assert model.spec == families.spec_of(WIDE)
        wide = {name: leaf.astype(np.float32) for name, leaf in stored.items()}
        assert_same(jax.tree.map(np.asarray, params), mesh_transformer.tree(wide, WIDE.n_layers, WIDE.n_heads))


def test_shards_count_as_numbers(whole, tmp_path):
    """shard_10 comes after shard_9."""
    config = {"layers": 1, "d_model": 48, "n_heads": 12, "n_vocab": 24, "seq": 8, "pe_rotary_dims": 2}
    (tmp_path / "c.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    shapes = {"embedding/w": (24, 48), "projection/w": (48, 24), "projection/b": (24,), "layer_0/linear_4/b": (192,)}
    shapes |= {f"layer_0/linear{n}/w": (48, 48) for n in ("", "_1", "_2", "_3")}
    shapes |= {"layer_0/linear_4/w": (48, 192), "layer_0/linear_5/w": (192, 48)}
    model = {n: rng.integers(-8, 8, shapes.get(n, (48,))).astype(np.float32) for n in mesh_transformer.names(1)}
    mesh_transformer.write(tmp_path / "step_1", mesh_transformer.cut(model, 12))
    _, params = load(tmp_path / "step_1", tmp_path / "c.json")
    assert_same(jax.tree.map(np.asarray, params), mesh_transformer.tree(model, 1, 12))


@pytest.mark.parametrize("which", ["first", "second"])
def test_moments_have_the_layout_of_the_parameters(which, folder, config_file):
    """Of the stored shards, joined; the copies of a replicated bias have the same moments, those of their sum."""
    step = folder / "ckpt_full/step_3"
    shards = mesh_transformer.read_shards(step, N_LAYERS, which)
    for name in ("embedding/b", *(f"layer_{n}/linear_5/b" for n in range(N_LAYERS))):
        np.testing.assert_array_equal(shards[0][name], shards[1][name])
    whole = mesh_transformer.join(shards)
    for n in range(N_LAYERS):
        whole[f"layer_{n}/linear_5/b"] = shards[0][f"layer_{n}/linear_5/b"]
    whole["embedding/b"] = np.zeros_like(whole["embedding/b"])  # a table's rows have the moments of the table
    expected = mesh_transformer.tree(whole, N_LAYERS, N_HEADS)
    assert_same(jax.tree.map(np.asarray, load(step, config_file, f"{which}_moments")[1]), expected)
    assert MeshTransformerSource(step, config_file, f"{which}_moments").steps == 3
    assert which == "first" or all(np.all(leaf >= 0) for leaf in jax.tree.leaves(expected))


def test_the_command_stores_moments_with_the_model(folder, config_file, tmp_path):
    step, more = folder / "ckpt_full/step_3", (f"--source_config={config_file}", "--moments")
    assert convert(step, "mesh_transformer", tmp_path / "ours", "orbax", *more)[0] == 0
    moments = checkpoint.load_moments(tmp_path / "ours", sharding.make_mesh(MeshConfig(data=1)))
    assert_same(moments.first, load(step, config_file, "first_moments")[1])
    assert_same(moments.second, load(step, config_file, "second_moments")[1])
    assert moments.steps == 3


def test_a_slim_checkpoint_has_no_moments(folder, config_file):
    with pytest.raises(InputError, match="holds no Adam moments; give the full one"):
        MeshTransformerSource(folder / "ckpt_slim_bf16/step_3", config_file, "first_moments")
