"""star_jax.weights: a saved model or train state is restored bit for bit, on any mesh, or refused in one line."""

import gc
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.config import MeshConfig, ModelConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import families
from star_jax.tokenizers.simple import ByteTokenizer, SymbolTokenizer
from star_jax.training import fine_tune
from star_jax.weights import checkpoint, fingerprint, orbax_tree, placement, train_state
from tests.support.models import numpy_params

CONFIG = ModelConfig(n_layers=2, d_model=8, n_heads=2, d_mlp=16, rotary_dim=2, vocab_size=12, max_positions=32,
                     architecture="gptj", compute_dtype="bfloat16")  # fmt: skip
MODEL = families.build(CONFIG)
MESHES = [MeshConfig(data=1), MeshConfig(fsdp=4, tensor=2), MeshConfig(data=2, fsdp=2, tensor=2)]
# After a failed read Orbax's coroutines warn when they are collected.
FAILED_READ = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
TOKENIZER = SymbolTokenizer(("a", "b", "\n"))


def on_mesh(config: MeshConfig, seed: int = 0):
    mesh = sharding.make_mesh(config)
    return jax.device_put(numpy_params(CONFIG, seed), placement.param_shardings(MODEL, mesh))


def same_bits(a, b) -> bool:
    return jax.tree.all(jax.tree.map(lambda x, y: np.asarray(x).tobytes() == np.asarray(y).tobytes(), a, b))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model saved from one device. Read only."""
    directory = tmp_path_factory.mktemp("models") / "model"
    checkpoint.save_model(directory, MODEL, on_mesh(MESHES[0]), TOKENIZER)
    return directory


def copy_of(saved, tmp_path):
    """A copy without checksums, so that tests may change its files."""
    copy = shutil.copytree(saved, tmp_path / "copy")
    (copy / "checksums.json").unlink()
    return copy


@pytest.mark.parametrize("config", MESHES, ids=["one device", "fsdp x tensor", "all three"])
def test_a_saved_model_loads_bit_for_bit_on_any_mesh(saved, config):
    mesh = sharding.make_mesh(config)
    model, params = checkpoint.load_model(saved, mesh)
    assert model.spec == MODEL.spec
    assert same_bits(params, numpy_params(CONFIG))
    shardings = placement.param_shardings(MODEL, mesh)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), params, shardings))


def test_a_model_saved_from_a_mesh_loads_on_one_device(tmp_path):
    """By a string path too, and with no mesh given."""
    checkpoint.save_model(tmp_path / "deep" / "model", MODEL, on_mesh(MESHES[2], seed=4), ByteTokenizer())
    model, params = checkpoint.load_model(str(tmp_path / "deep" / "model"))
    assert model.spec == MODEL.spec
    assert same_bits(params, numpy_params(CONFIG, seed=4))
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)} == {1}


def test_the_tokenizer_and_the_fingerprint_come_with_the_model(saved):
    assert checkpoint.exists(saved)
    assert checkpoint.load_tokenizer(saved).spec() == TOKENIZER.spec()
    described = json.loads((saved / "model.json").read_text())
    assert described["fingerprint"] == fingerprint.fingerprint(on_mesh(MESHES[1]))


def test_a_model_is_not_written_over_another(saved):
    with pytest.raises(InputError, match="holds a model already"):
        checkpoint.save_model(saved, MODEL, on_mesh(MESHES[0]), TOKENIZER)


def test_an_unfinished_save_is_refused_and_then_replaced(saved, tmp_path):
    """A save that was killed has no model.json; what it left must not be in the way."""
    directory = copy_of(saved, tmp_path)
    (directory / "model.json").unlink()
    (directory / "weights.orbax-checkpoint-tmp").mkdir()
    assert not checkpoint.exists(directory)
    for load in (checkpoint.load_model, checkpoint.load_tokenizer):
        with pytest.raises(InputError, match=r"no complete model is there: neither model.json"):
            load(directory)
    checkpoint.save_model(directory, MODEL, on_mesh(MESHES[0], seed=1), TOKENIZER)
    assert same_bits(checkpoint.load_model(directory)[1], numpy_params(CONFIG, seed=1))
    assert not (directory / "weights.orbax-checkpoint-tmp").exists()


def test_a_broken_description_is_refused_by_name(saved, tmp_path):
    directory = copy_of(saved, tmp_path)
    rows = [
        ("", "model.json:1: invalid JSON"),
        ("{ broken", "model.json:1: invalid JSON"),
        ("[]", "model.json: holds list, not a JSON object"),
        ("{}", "model.json: its format is None; star_jax reads 'star_jax model 2'"),
        (
            '{"format": "star_jax model 1", "config": {}}',
            "model.json: its format is 'star_jax model 1'; star_jax reads",
        ),
        ('{"format": "star_jax model 2"}', "model.json: key 'spec' is missing"),
        (
            '{"format": "star_jax model 2", "spec": 1, "tokenizer": null, "fingerprint": ""}',
            "'spec' should be an object, is 1",
        ),
        (
            '{"format": "star_jax model 2", "spec": {}, "tokenizer": {}, "fingerprint": 1}',
            "'fingerprint' should be text",
        ),
        (
            '{"format": "star_jax model 2", "spec": {}, "tokenizer": [], "fingerprint": ""}',
            "'tokenizer' should be an object",
        ),
    ]
    wrong = []
    for text, expected in rows:
        (directory / "model.json").write_text(text)
        for load in (checkpoint.load_model, checkpoint.load_tokenizer):
            with pytest.raises(InputError) as caught:
                load(directory)
            wrong += [] if expected in str(caught.value) else [(text, str(caught.value))]
    assert not wrong


def test_a_tokenizer_or_moments_of_other_types_are_refused_with_their_file(saved, tmp_path):
    directory = copy_of(saved, tmp_path)
    path = directory / "model.json"
    described = json.loads(path.read_text())
    for spec in ({}, {"kind": "symbols", "symbols": "ab\n"}, {"kind": "json"}, {"kind": ["bytes"]}):
        path.write_text(json.dumps({**described, "tokenizer": spec}))
        with pytest.raises(InputError, match=re.escape(f"{path}: tokenizer: ")):
            checkpoint.load_tokenizer(directory)
    path.write_text(json.dumps(described))
    params = on_mesh(MESHES[0])
    for which in ("first", "second"):
        checkpoint.save_moments(directory, which, params, 3)
    assert checkpoint.load_moments(directory, sharding.make_mesh(MESHES[0])).steps == 3
    (directory / "moments/checksums.json").unlink()
    for value in (None, True, "3", -1, 2**31, [3]):
        (directory / "moments/first.json").write_text(json.dumps({"steps": value}))
        with pytest.raises(InputError, match=r"moments/first\.json: .*steps'.*convert the model again"):
            checkpoint.load_moments(directory, sharding.make_mesh(MESHES[0]))


def edit_sizes(directory, **changes) -> None:
    path = directory / "model.json"
    described = json.loads(path.read_text())
    described["spec"].update(changes)
    path.write_text(json.dumps(described))


@FAILED_READ
def test_sizes_that_are_not_those_of_the_weights_are_refused(saved, tmp_path):
    """Neither cut nor padded to fit."""
    directory = copy_of(saved, tmp_path)
    for changes in ({"vocab_size": 16}, {"vocab_size": 12, "n_layers": 1}, {"n_layers": 2, "d_mlp": 8}):
        edit_sizes(directory, **changes)
        with pytest.raises(InputError, match="weights: cannot be restored"):
            checkpoint.load_model(directory)
    gc.collect()
    edit_sizes(directory, d_mlp=16, n_heads=3)
    with pytest.raises(InputError, match="3 heads do not divide into 2 groups"):
        checkpoint.load_model(directory)


def test_a_spec_without_a_size_is_refused_by_name(saved, tmp_path):
    directory = copy_of(saved, tmp_path)
    described = json.loads((directory / "model.json").read_text())
    del described["spec"]["d_mlp"]
    (directory / "model.json").write_text(json.dumps(described))
    with pytest.raises(InputError, match=r"model\.json: the spec has no field 'd_mlp'; make or convert"):
        checkpoint.load_model(directory)


@FAILED_READ
def test_missing_weights_are_refused_in_one_line(saved, tmp_path):
    directory = copy_of(saved, tmp_path)
    shutil.rmtree(directory / "weights")
    with pytest.raises(InputError, match="weights: cannot be restored") as caught:
        checkpoint.load_model(directory)
    assert "\n" not in str(caught.value)
    gc.collect()


def test_a_fingerprint_names_the_weights_and_not_their_mesh():
    prints = {fingerprint.fingerprint(on_mesh(config)) for config in MESHES}
    assert len(prints) == 1
    assert len(prints.pop()) == 12
    assert fingerprint.fingerprint(on_mesh(MESHES[0], seed=1)) != fingerprint.fingerprint(on_mesh(MESHES[0]))


def test_a_fingerprint_changes_with_one_bit():
    """Any bit of a float32, the sign of a zero too; and the name and shape of a leaf count."""
    values = np.arange(6, dtype=np.float32)

    def flip(index, bit):
        bits = values.view(np.uint32).copy()
        bits[index] ^= np.uint32(1 << bit)
        return fingerprint.fingerprint({"w": jnp.asarray(bits.view(np.float32))})

    prints = [flip(index, bit) for index in (0, 5) for bit in range(32)]
    prints += [fingerprint.fingerprint({name: jnp.asarray(values)}) for name in ("w", "v")]
    prints += [fingerprint.fingerprint({"w": jnp.asarray(values.reshape(2, 3))})]
    assert len(set(prints)) == len(prints)


def test_a_fingerprint_changes_when_two_values_swap_places():
    """Weights that come from bfloat16 have sixteen zero bits: a product with the index would miss some far swaps."""
    two_sums, rng = jax.jit(fingerprint._two_sums), np.random.default_rng(0)
    values = rng.standard_normal(2**18).astype(jnp.bfloat16).astype(np.float32)
    for distance in (1, 3, 65536, 2**17):
        sums = [tuple(np.asarray(two_sums(values)).tolist())]
        for index in rng.choice(2**18 - distance, 16, replace=False).tolist() + [759]:
            swapped = values.copy()
            swapped[[index, index + distance]] = values[[index + distance, index]]
            if swapped[index] != values[index]:
                sums.append(tuple(np.asarray(two_sums(swapped)).tolist()))
        assert len(sums) > 10, distance
        assert len(set(sums)) == len(sums), distance


def test_fingerprints_of_earlier_versions_have_not_changed():
    """Stored provenance holds them."""
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 7
    rows = [
        ("9ceea404283c", {"w": values}),
        ("2e2f8be6c0e1", {"blocks": {"k": values.astype(jnp.bfloat16)}, "bias": values[0, 0].astype(np.float16)}),
        ("f66e1065c4c3", numpy_params(CONFIG)),
    ]
    prints = [fingerprint.fingerprint(jax.tree.map(jnp.asarray, tree)) for _, tree in rows]
    assert prints == [expected for expected, _ in rows]


@pytest.fixture
def state():
    """A train state on a mesh, without its step."""
    from star_jax.config import OptimizerConfig

    return fine_tune.initial_state(OptimizerConfig(), on_mesh(MESHES[2]))


def save_steps(directory, state, *steps) -> None:
    checkpointer = train_state.TrainStateCheckpointer(directory)
    for step in steps:
        checkpointer.save(at_step(state, step), {"tokens": 10 * step})
    checkpointer.close()


def at_step(state, step):
    return state._replace(step=jax.device_put(np.int32(step), state.step.sharding))


def test_a_train_state_is_restored_onto_its_shardings(state, tmp_path):
    """TrainStateCheckpointer keeps the latest two steps, and their totals."""
    assert train_state.TrainStateCheckpointer(tmp_path / "state").restore(state) is None and not list(
        tmp_path.iterdir()
    )
    save_steps(tmp_path / "state", state, 2, 4, 6)
    checkpointer = train_state.TrainStateCheckpointer(tmp_path / "state")
    with pytest.raises(RuntimeError, match="did not save step 6"):  # Orbax itself only returns False
        checkpointer.save(at_step(state, 6), {})
    restored, totals = checkpointer.restore(state)
    assert (int(restored.step), totals) == (6, {"tokens": 60})
    assert same_bits(restored._replace(step=0), state._replace(step=0))
    assert jax.tree.all(jax.tree.map(lambda a, b: a.sharding == b.sharding, restored.params, state.params))
    assert {path.name for path in (tmp_path / "state").iterdir()} == {"4", "6"}
    checkpointer.close()


@FAILED_READ
def test_a_damaged_train_state_is_skipped(state, tmp_path, caplog):
    """One bit flipped in each of its files in turn: what is restored is a state that was saved."""
    directory = tmp_path / "undamaged"
    save_steps(directory, state, 2, 4)
    skipped = 0
    for file in sorted(p for p in (directory / "4").rglob("*") if p.is_file()):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(directory, copy)
        damaged = copy / file.relative_to(directory)
        content = bytearray(damaged.read_bytes())
        content[len(content) // 2] ^= 8
        damaged.write_bytes(content)
        caplog.clear()
        checkpointer = train_state.TrainStateCheckpointer(copy)
        restored, totals = checkpointer.restore(state)
        checkpointer.close()
        assert totals == {"tokens": 10 * int(restored.step)} and int(restored.step) in (2, 4)
        assert same_bits(restored._replace(step=0), state._replace(step=0))
        if int(restored.step) == 2:
            skipped += 1
            assert f"{copy}/4: damaged" in caplog.text and not (copy / "4").exists()
    assert skipped >= 3


@FAILED_READ
def test_if_all_train_states_are_damaged_none_is_restored(state, tmp_path):
    save_steps(tmp_path / "state", state, 2, 4)
    for step in "24":
        shutil.rmtree(tmp_path / "state" / step / "state" / "d")
    checkpointer = train_state.TrainStateCheckpointer(tmp_path / "state")
    assert checkpointer.restore(state) is None and not list((tmp_path / "state").iterdir())
    checkpointer.close()


def test_a_save_in_the_background_is_a_model_after_finish(tmp_path):
    """And not before. The devices' memory is free at once: Orbax used to keep the arrays alive."""

    def on_devices() -> int:
        gc.collect()
        return sum(leaf.nbytes for leaf in jax.live_arrays() if leaf.sharding.memory_kind == "device")

    before, params = on_devices(), on_mesh(MESHES[2], seed=3)
    name = fingerprint.fingerprint(params)
    saving = checkpoint.AsyncModelSave(tmp_path / "model", MODEL, params, TOKENIZER)
    del params
    assert on_devices() <= before
    saving.wait()
    assert not checkpoint.exists(tmp_path / "model")
    saving.finish()
    assert checkpoint.stored_fingerprint(tmp_path / "model") == name
    assert checkpoint.load_tokenizer(tmp_path / "model").spec() == TOKENIZER.spec()
    assert same_bits(checkpoint.load_model(tmp_path / "model")[1], numpy_params(CONFIG, seed=3))
    with pytest.raises(InputError, match="holds a model already"):
        checkpoint.AsyncModelSave(tmp_path / "model", MODEL, on_mesh(MESHES[0]), TOKENIZER)


def test_paths_that_read_as_patterns_hold_whole_models_and_train_states(state, tmp_path):
    """Orbax merges the files that a glob pattern finds, and its pattern begins with the directory's own path."""
    for name in ("run[1]", "[!x]*", "a*b?", "{a,b}"):
        directory = tmp_path / name / "model"
        checkpoint.save_model(directory, MODEL, on_mesh(MESHES[0]), TOKENIZER)
        assert same_bits(checkpoint.load_model(directory)[1], numpy_params(CONFIG)), name
    save_steps(tmp_path / "run[1]" / "state", state, 2)
    checkpointer = train_state.TrainStateCheckpointer(tmp_path / "run[1]" / "state")
    assert checkpointer.restore(state) is not None
    checkpointer.close()


def test_a_save_that_is_incomplete_on_disk_is_no_model(tmp_path, monkeypatch):
    """Each save looks for itself: without the merge of Orbax's files, no marker appears."""

    async def skip(*args, **kwargs):
        pass

    monkeypatch.setattr("orbax.checkpoint._src.serialization.ocdbt_utils.merge_ocdbt_per_process_files", skip)
    with pytest.raises(InputError, match="what is on disk is not what was saved"):
        checkpoint.save_model(tmp_path / "a", MODEL, on_mesh(MESHES[0]), TOKENIZER)
    saving = checkpoint.AsyncModelSave(tmp_path / "b", MODEL, on_mesh(MESHES[0]), TOKENIZER)
    with pytest.raises(InputError, match="what is on disk is not what was saved"):
        saving.finish()
    assert not checkpoint.exists(tmp_path / "a") and not checkpoint.exists(tmp_path / "b")


def test_what_is_stored_is_compared_with_names_dtypes_and_bits(saved):
    params = on_mesh(MESHES[0])
    name = fingerprint.fingerprint(params)
    orbax_tree.check_stored(saved / "weights", params, name)
    other = on_mesh(MESHES[0], seed=1)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    rows = [
        (other, fingerprint.fingerprint(other), "its fingerprint is"),
        (half, fingerprint.fingerprint(half), "float32, not"),
        ({**params, "more": params["embedding"]}, name, "more.embedding is missing"),
        ({"embedding": params["embedding"]}, name, "is surplus"),
    ]
    wrong = []
    for like, expected, reason in rows:
        with pytest.raises(InputError) as caught:
            orbax_tree.check_stored(saved / "weights", like, expected)
        wrong += [] if reason in str(caught.value) else [(reason, str(caught.value))]
    assert not wrong


def test_weights_and_states_that_are_not_finite_are_not_saved(state, tmp_path):
    params = on_mesh(MESHES[0])
    params["embedding"]["embedding"] = params["embedding"]["embedding"].at[3, 1].set(jnp.nan)
    for save in (checkpoint.save_model, checkpoint.AsyncModelSave):
        with pytest.raises(InputError, match="embedding/embedding holds values that are not finite"):
            save(tmp_path / "model", MODEL, params, TOKENIZER)
    assert not checkpoint.exists(tmp_path / "model")
    bad = at_step(state._replace(params=jax.tree.map(lambda leaf: leaf * jnp.inf, state.params)), 2)
    checkpointer = train_state.TrainStateCheckpointer(tmp_path / "state")
    with pytest.raises(InputError, match=r"step 2: params/.* holds values that are not finite"):
        checkpointer.save(bad, {})
    assert not (tmp_path / "state").exists()


def test_damaged_weights_are_seen_in_every_dtype_that_is_asked_for(tmp_path):
    """The comparison is made in the stored dtype, before the cast; a damaged value may survive it."""
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), on_mesh(MESHES[0]))
    checkpoint.save_model(tmp_path / "model", MODEL, params, TOKENIZER)
    _, wide = checkpoint.load_model(tmp_path / "model", dtype="float32")
    assert same_bits(wide, jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params))
    (tmp_path / "model" / "checksums.json").unlink()
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    (tmp_path / "model" / "model.json").write_text(json.dumps({**described, "fingerprint": "0" * 12}))
    for dtype in ("bfloat16", "float32", "float16"):
        with pytest.raises(InputError, match=r"weights: damaged, their fingerprint is not the one in model\.json"):
            checkpoint.load_model(tmp_path / "model", dtype=dtype)
