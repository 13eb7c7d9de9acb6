"""star_jax.weights.sources.hf and star_jax.convert: transformers' files are read, and transformers reads ours."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from star_jax.config import MeshConfig, ModelConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder, families
from star_jax.tokenizers import load_directory
from star_jax.weights import checkpoint
from star_jax.weights.sources import hf, loader
from tests.support.models import numpy_params
from tests.support.sampling import TextSampler
from tests.support.tables import every_row
from tests.support.weights import (
    IdsTokenizer,
    bpe,
    convert,
    json_tokenizer_of,
    libraries,
    torch_config,
    torch_logits,
    torch_model,
)

_SIZES = functools.partial(ModelConfig, vocab_size=61, max_positions=32)
SHAPES = {
    "gptj, three heads of eight": _SIZES(n_layers=2, d_model=24, n_heads=3, d_mlp=96, rotary_dim=4),
    "gptj, the whole head rotates": _SIZES(n_layers=3, d_model=16, n_heads=4, d_mlp=64, rotary_dim=4),
    "gptj, narrow mlp": _SIZES(n_layers=2, d_model=32, n_heads=2, d_mlp=40, rotary_dim=8),
    "gpt2, three heads of eight": _SIZES(n_layers=2, d_model=24, n_heads=3, d_mlp=96, architecture="gpt2"),
    "gpt2, narrow mlp": _SIZES(n_layers=3, d_model=32, n_heads=4, d_mlp=40, architecture="gpt2"),
}
GPTJ, GPT2 = SHAPES["gptj, narrow mlp"], SHAPES["gpt2, narrow mlp"]
BOTH = pytest.mark.parametrize("config", [GPTJ, GPT2], ids=["gptj", "gpt2"])
DTYPES = ("float32", "bfloat16", "float16")
TOKENIZER_FILES = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
TOKENS_BT = np.random.default_rng(0).integers(0, 61, (2, 20)).astype(np.int32)
TEXTS = [
    "!",
    "!! a\n\nb\r\n\tc  d ",
    "Q: 48/2 = <<48/2=24>>24\n#### 24\n",
    "naïve café — “quotes” 日本語 🙂\u0301\x00\x7f",
    "".join(map(chr, range(256))),
    "".join(map(chr, range(0x100, 0x110000, 997))).encode("utf-8", "ignore").decode(),
]
forward = jax.jit(decoder.apply, static_argnums=0)


def worst(values, expected) -> float:
    return float(np.max(np.abs(np.asarray(values, np.float64) - np.asarray(expected, np.float64))))


def load(directory):
    """(config, parameters as NumPy arrays in the dtype of the files)."""
    source = hf.HfSource(directory)
    model, params = loader.load(source, sharding.make_mesh(MeshConfig(data=1)), source.dtype)
    return model.spec, jax.tree.map(np.asarray, params)


def assert_same_bits(params, expected) -> None:
    """Two trees with equal names, shapes, dtypes and bits."""
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def assert_same_state(state, expected) -> None:
    """Two torch state dicts with equal names and bits."""
    import torch

    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name


def half(config: ModelConfig, dtype: str, seed: int = 1):
    """The torch model of these sizes in this dtype."""
    theirs = torch_model(config, seed)
    import torch

    return theirs.to(getattr(torch, dtype))


@pytest.fixture
def written(tmp_path):
    """Writes a small model with transformers, each time into a new directory: (config, dtype) -> (directory, model)."""

    def write(config=GPTJ, dtype="float32", **options):
        theirs = half(config, dtype)
        directory = tmp_path / f"theirs{len(list(tmp_path.glob('theirs*'))) or ''}"
        theirs.save_pretrained(directory, **options)
        return directory, theirs

    return write


def rewrite(directory: Path, change) -> None:
    """Applies `change` to the dict of tensors of a directory's model.safetensors."""
    from safetensors.torch import load_file, save_file

    tensors = change(load_file(directory / "model.safetensors"))
    save_file({name: t.contiguous().clone() for name, t in tensors.items()}, directory / "model.safetensors")


def save_bin(directory: Path, theirs, files: int, **options) -> None:
    """The same weights as pytorch_model.bin, in place of the safetensors."""
    import torch

    for path in directory.glob("model*.safetensors*"):
        path.unlink()
    state = theirs.state_dict()
    if files == 1:
        torch.save(state, directory / "pytorch_model.bin", **options)
        return
    weight_map = {name: f"pytorch_model-{i % files + 1:05d}.bin" for i, name in enumerate(state)}
    for file in set(weight_map.values()):
        torch.save({name: state[name] for name, f in weight_map.items() if f == file}, directory / file)
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


SLOW_SHAPES = ("gptj, the whole head rotates", "gptj, narrow mlp", "gpt2, three heads of eight")


@pytest.mark.parametrize(
    "shape", [pytest.param(name, marks=pytest.mark.slow if name in SLOW_SHAPES else ()) for name in SHAPES]
)
def test_logits_of_a_loaded_directory_are_those_of_torch(shape, written, record_property):
    """In every dtype; in one file or several, so that all pairs of shape, dtype and number of files occur."""
    config = SHAPES[shape]
    for number, dtype in enumerate(DTYPES, start=list(SHAPES).index(shape)):
        sharded = number % 2 == 1
        directory, theirs = written(config, dtype, max_shard_size="8KB" if sharded else "5GB")
        assert (directory / "model.safetensors.index.json").exists() == sharded
        model, params = checkpoint.load_model(directory)
        expected = torch_logits(theirs, TOKENS_BT)
        logits = forward(model, params, TOKENS_BT)
        record_property(f"logits {dtype}", worst(logits, expected))
        assert model.spec == families.spec_of(config)
        assert hf.HfSource(directory).dtype == jnp.dtype(dtype)
        assert 3 < np.max(np.abs(expected)) < 50
        assert worst(logits, expected) <= 1e-4, (dtype, sharded)


@pytest.mark.parametrize("first_count", [1, 3])
@BOTH
def test_torch_files_hold_what_safetensors_hold(config, first_count, written):
    for number, dtype in enumerate(DTYPES):
        directory, theirs = written(config, dtype)
        expected = load(directory)
        save_bin(directory, theirs, (first_count, 4 - first_count)[number % 2])
        assert_same_bits(load(directory)[1], expected[1])


def test_torch_files_from_before_torch_1_6_and_parameters_in_them(written):
    """GPT-2's own file is no zip archive; a dict of parameters is as good as one of tensors."""
    directory, theirs = written(GPT2)
    expected = load(directory)
    theirs.state_dict = lambda: dict(theirs.named_parameters())
    save_bin(directory, theirs, 1, _use_new_zipfile_serialization=False)
    assert_same_bits(load(directory)[1], expected[1])


@BOTH
def test_transformers_reads_back_the_bits_that_were_saved(config, written, tmp_path):
    """In one file or several, so that all pairs of architecture, dtype and number of files occur."""
    for number, dtype in enumerate(DTYPES):
        sharded = (number + (config.architecture == "gpt2")) % 2 == 1
        directory, theirs = written(config, dtype)
        before = {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
        _, params = load(directory)
        ours = tmp_path / f"ours {dtype} {sharded}"
        hf.save(ours, families.spec_of(config), params, None, jnp.dtype(dtype), shard_bytes=5000 if sharded else 2**31)
        assert (ours / "model.safetensors.index.json").exists() == sharded
        back = type(theirs).from_pretrained(ours, dtype=theirs.dtype, attn_implementation="eager")
        assert_same_state(back.state_dict(), before)
        assert_same_bits(load(ours)[1], params)
        np.testing.assert_array_equal(torch_logits(back.eval(), TOKENS_BT), torch_logits(theirs, TOKENS_BT))


def test_an_export_holds_hugging_face_s_files_only(trained, tmp_path):
    """With and without shards and tokenizer: no checksums.json of ours. The command's exports are checked below."""
    params, tokenizer = numpy_params(GPT2), json_tokenizer_of(trained)
    hf.save(tmp_path / "one", families.spec_of(GPT2), params, tokenizer, np.dtype("float32"))
    hf.save(tmp_path / "sharded", families.spec_of(GPT2), params, None, np.dtype("float32"), shard_bytes=40_000)
    assert files(tmp_path / "one") == {"config.json", "model.safetensors", *TOKENIZER_FILES}
    shards = {f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)}
    assert files(tmp_path / "sharded") == {"config.json", "model.safetensors.index.json", *shards}


@every_row("umask", [0o022, 0o077, 0o002])
def test_files_have_the_modes_that_the_umask_allows(umask, tmp_path):
    """safetensors makes files that only their owner reads."""
    before = os.umask(umask)
    try:
        hf.save(tmp_path / "a", families.spec_of(GPT2), numpy_params(GPT2), None, np.dtype("float32"))
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "a").iterdir()}
    assert modes == dict.fromkeys(("config.json", "model.safetensors"), 0o666 & ~umask)


def test_parameters_that_the_model_or_the_format_lacks_are_refused(tmp_path, monkeypatch):
    spec, dtype = families.spec_of(GPTJ), np.dtype("float32")
    params = numpy_params(GPTJ)
    kernel = params["head"].pop("kernel")
    with pytest.raises(InputError, match=r"with the parameter head/kernel missing cannot be written"):
        hf.save(tmp_path / "a", spec, params, None, dtype)
    params["head"] |= {"kernel": kernel, "gain": np.ones(3, np.float32)}
    with pytest.raises(InputError, match=r"with the parameter head/gain \(3,\) cannot be written: its spec has none"):
        hf.save(tmp_path / "a", spec, params, None, dtype)
    del params["head"]["gain"]
    params["head"]["kernel"] = kernel.T
    with pytest.raises(InputError, match=r"with the parameter head/kernel .* cannot be written: its spec has"):
        hf.save(tmp_path / "a", spec, params, None, dtype)
    params["head"]["kernel"] = kernel
    fewer = families.FAMILIES["gptj"]._replace(tensors=lambda _: families.gptj.TENSORS[1:])
    monkeypatch.setitem(families.FAMILIES, "gptj", fewer)
    with pytest.raises(InputError, match=r"format of gptj models has no tensor for the parameter blocks/norm/scale"):
        hf.save(tmp_path / "a", spec, params, None, dtype)
    assert not (tmp_path / "a").exists()


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*")}


@BOTH
def test_old_names_and_mask_buffers_are_read(config, written):
    """No prefix "transformer.", and the causal mask of each layer as a buffer, as in the first published files."""
    torch, _ = libraries()

    def age(tensors, n_masks):
        old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        for n in range(n_masks):
            kind = torch.uint8 if n else torch.float32
            old[f"h.{n}.attn.bias"] = torch.ones(1, 1, 32, 32, dtype=kind)
            old[f"h.{n}.attn.masked_bias"] = torch.tensor(-1e4)
        return old

    for n_masks in (0, config.n_layers):
        directory, _ = written(config, "float16")
        expected = load(directory)
        rewrite(directory, functools.partial(age, n_masks=n_masks))
        assert hf.HfSource(directory).dtype == np.float16
        assert_same_bits(load(directory)[1], expected[1])


def test_a_gpt2_with_its_head_written_out_is_read_if_it_is_the_embedding(written):
    directory, _ = written(GPT2)
    expected = load(directory)
    rewrite(directory, lambda tensors: {**tensors, "lm_head.weight": tensors["transformer.wte.weight"]})
    assert_same_bits(load(directory)[1], expected[1])
    rewrite(directory, lambda tensors: {**tensors, "lm_head.weight": tensors["transformer.wte.weight"] + 1})
    with pytest.raises(InputError, match=r"lm_head\.weight differs from the embedding"):
        load(directory)


def test_weights_of_several_dtypes_keep_every_bit(written):
    """The narrowest of our dtypes that holds all; float64, which JAX does not compute in, is narrowed."""
    torch, _ = libraries()

    def mix(tensors, one, other):
        return {n: t.to(getattr(torch, one if "ln" in n else other)) for n, t in tensors.items()}

    for one, other in [("float16", "bfloat16"), ("bfloat16", "float32"), ("float64", "float64")]:
        directory, _ = written(GPTJ)
        rewrite(directory, functools.partial(mix, one=one, other=other))
        params = load(directory)[1]
        assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}, (one, other)
        assert_same_bits(params, jax.tree.map(np.asarray, checkpoint.load_model(directory)[1]))


@pytest.mark.parametrize("config", [GPTJ, pytest.param(GPT2, marks=pytest.mark.slow)], ids=["gptj", "gpt2"])
def test_greedy_continuations_are_those_of_transformers(config, tmp_path, record_property):
    """generate() on the exported model against the sampler, up to a tie; some of them reach the end of the text."""
    torch, transformers = libraries()
    end, budget = 60, 10
    params = numpy_params(config, seed=3)
    params["blocks"]["norm"]["scale"][:] = params["final_norm"]["scale"][:] = 1
    if config.architecture != "gpt2":
        params["head"]["bias"][end] += 1.6
    hf.save(tmp_path / "ours", families.spec_of(config), params, None, np.dtype("float32"))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", dtype=torch.float32).eval()
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, 60, n).tolist() for n in (1, 2, 7, 8, 15, 20, 3, 11)]
    sampler = TextSampler(
        families.build(config), jax.tree.map(jnp.asarray, params), IdsTokenizer(61, end), max_new_tokens=budget,
        slots=3, queue=8, prefill_tokens=32,
    )  # fmt: skip
    samples = sampler([" ".join(map(str, ids)) for ids in prompts])
    settings = dict(max_new_tokens=budget, do_sample=False, eos_token_id=end, pad_token_id=end)
    compared = 0
    for ids, sample in zip(prompts, samples, strict=True):
        out = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), **settings,
            output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        top = torch.stack(out.logits)[:, 0].topk(2).values.numpy()
        sure = np.append(top[:, 0] - top[:, 1] > 1e-3, False).argmin()
        expected = tuple(out.sequences[0, len(ids) :].tolist())
        assert sample.token_ids[:sure] == expected[:sure]
        assert sample.token_ids == expected or sure < len(expected)
        compared += int(sure)
    record_property("tokens", compared)
    assert compared >= 40 and len({sample.token_ids for sample in samples}) > 3
    assert (config.architecture == "gpt2") or any(not sample.truncated for sample in samples)


@pytest.mark.parametrize(
    "dtype", ["float32", *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("bfloat16", "float16"))]
)
@pytest.mark.parametrize("config", [GPTJ, pytest.param(GPT2, marks=pytest.mark.slow)], ids=["gptj", "gpt2"])
def test_there_and_back_by_the_command_line_keeps_every_bit(config, dtype, written, tmp_path):
    directory, theirs = written(config, dtype)
    before = theirs.state_dict()
    assert convert(directory, "hf", tmp_path / "ours", "orbax")[::2] == (0, "")
    status, output, errors = convert(tmp_path / "ours", "orbax", tmp_path / "back", "hf")
    assert (status, errors) == (0, "")
    assert f"{config.architecture or 'gptj'}, {sum(p.numel() for p in theirs.parameters()):,} parameters" in output
    assert "no tokenizer" in output
    assert files(tmp_path / "back") == {"config.json", "model.safetensors"}
    back = type(theirs).from_pretrained(tmp_path / "back", dtype="auto")
    assert_same_state(back.state_dict(), before)


@pytest.mark.parametrize(
    "dtype", ["bfloat16", *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float32", "float16"))]
)
def test_the_target_has_the_dtype_that_was_asked_for(dtype, written, tmp_path):
    """Rounded once, to the nearest, on the way in or on the way out."""
    directory, _ = written(GPTJ)
    kind = np.dtype(getattr(ml_dtypes, dtype, dtype))
    expected = jax.tree.map(lambda leaf: leaf.astype(kind), load(directory)[1])
    assert convert(directory, "hf", tmp_path / "a", "hf", f"--dtype={dtype}")[0] == 0
    assert convert(directory, "hf", tmp_path / "wide", "orbax")[0] == 0
    assert convert(tmp_path / "wide", "orbax", tmp_path / "b", "hf", f"--dtype={dtype}")[0] == 0
    assert_same_bits(load(tmp_path / "a")[1], expected)
    assert_same_bits(load(tmp_path / "b")[1], expected)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("form", ["hf", "orbax"])
def test_weights_beyond_float16_are_refused(form, written, tmp_path):
    """No infinity is written in their place."""
    directory, _ = written(GPTJ)
    rewrite(directory, lambda tensors: {**tensors, "lm_head.bias": tensors["lm_head.bias"] + 1e5})
    if form == "orbax":
        assert convert(directory, "hf", tmp_path / "ours", "orbax")[0] == 0
        directory = tmp_path / "ours"
    status, _, errors = convert(directory, form, tmp_path / "out", "hf", "--dtype=float16")
    assert status == 2 and "not finite numbers of float16" in errors
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trained():
    return bpe([*TEXTS, "the quick brown fox jumps over the lazy dog. " * 20], extra=5)


def test_the_tokenizer_of_a_directory_survives(trained, written, tmp_path):
    """hf -> orbax -> hf: our ids, transformers' ids and the trained tokenizer's are the same, for every byte."""
    config = dataclasses.replace(GPTJ, vocab_size=trained.get_vocab_size() + 3)
    directory, _ = written(config)
    trained.save(str(directory / "tokenizer.json"))
    assert convert(directory, "hf", tmp_path / "ours", "orbax")[0] == 0
    _, output, _ = convert(tmp_path / "ours", "orbax", tmp_path / "back", "hf")
    used = trained.get_vocab_size() - 5  # GPT-J's file names its padding rows <|extratoken_1|> ...
    assert f"a tokenizer of {used} ids" in output
    assert files(tmp_path / "back") == {"config.json", "model.safetensors", *TOKENIZER_FILES}
    for model_directory in (directory, tmp_path / "ours", tmp_path / "back"):
        ours = checkpoint.load_tokenizer(model_directory)
        assert (ours.vocab_size, ours.end_ids[0]) == (used, trained.token_to_id("<|endoftext|>"))
        assert {piece for piece in ours.pieces if len(piece) == 1} == {bytes([i]) for i in range(256)}
        assert [ours.encode(text) for text in TEXTS] == [trained.encode(text).ids for text in TEXTS]
        assert [ours.decode(ours.encode(text)) for text in TEXTS] == TEXTS
    _, transformers = libraries()
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
    assert [theirs(text)["input_ids"] for text in TEXTS] == [trained.encode(text).ids for text in TEXTS]
    assert (theirs.eos_token_id, theirs.bos_token_id) == (ours.end_ids[0], None)
    for name in ("config.json", "generation_config.json"):
        about = json.loads((tmp_path / "back" / name).read_text())
        assert about["eos_token_id"] == ours.end_ids[0], name


def test_a_tokenizer_of_two_files_is_given_by_option(trained, written, tmp_path):
    directory, _ = written(dataclasses.replace(GPT2, vocab_size=400))
    (tmp_path / "tokenizer").mkdir()
    trained.save_model(str(tmp_path / "tokenizer"))
    status, output, _ = convert(directory, "hf", tmp_path / "ours", "hf", f"--tokenizer={tmp_path / 'tokenizer'}")
    assert status == 0 and "a tokenizer of" in output
    tokenizer = load_directory(tmp_path / "ours")
    assert [tokenizer.encode(text) for text in TEXTS] == [trained.encode(text).ids for text in TEXTS]


def test_bytes_have_no_hugging_face_form(written, tmp_path):
    directory, _ = written(dataclasses.replace(GPT2, vocab_size=257))
    assert convert(directory, "hf", tmp_path / "ours", "orbax", "--tokenizer=bytes")[0] == 0
    assert checkpoint.load_tokenizer(tmp_path / "ours").encode("é") == list("é".encode())
    _, output, _ = convert(tmp_path / "ours", "orbax", tmp_path / "back", "hf")
    assert "no Hugging Face form" in output
    assert not list((tmp_path / "back").glob("tokenizer*"))


@pytest.mark.slow
def test_the_command_runs_as_a_process_of_its_own(tmp_path):
    """And prints nothing but its line."""
    hf.save(tmp_path / "a", families.spec_of(GPT2), numpy_params(GPT2), None, np.dtype("float32"))
    args = ["--source_format=hf", f"--source={tmp_path / 'a'}", f"--target={tmp_path / 'b'}", "--target_format=hf"]
    done = subprocess.run(
        [sys.executable, "-m", "star_jax.convert", *args],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1 and done.stdout.startswith(str(tmp_path / "b"))
    assert_same_bits(load(tmp_path / "b")[1], numpy_params(GPT2))
    assert torch_config(GPT2).n_embd == json.loads((tmp_path / "b" / "config.json").read_text())["n_embd"]


def test_the_file_that_transformers_would_load_wins(written, caplog):
    """A whole file wins over an index, whether its shards are old or gone."""
    directory, _ = written(GPTJ)
    expected = load(directory)[1]
    index = directory / "model.safetensors.index.json"
    for shards in ({"lm_head.bias": "model-00001-of-00001.safetensors"}, {"lm_head.bias": "gone.safetensors"}):
        shutil.copy(directory / "model.safetensors", directory / "model-00001-of-00001.safetensors")
        index.write_text(json.dumps({"weight_map": shards}))
        caplog.clear()
        assert_same_bits(load(directory)[1], expected)
        assert f"{index}: ignored" in caplog.text


def test_wrappers_buffers_and_other_heads_are_read_past(written, caplog):
    torch, _ = libraries()

    def wrap(tensors, prefix):
        more = {"v_head.summary.weight": torch.ones(2), "score.weight": torch.ones(2)}
        more["transformer.h.0.attn.embed_positions"] = torch.ones(3)
        return {prefix + name: tensor for name, tensor in {**tensors, **more}.items()}

    for prefix in ("", "_orig_mod.", "module.", "module._orig_mod."):
        directory, _ = written(GPTJ)
        expected = load(directory)[1]
        rewrite(directory, functools.partial(wrap, prefix=prefix))
        caplog.clear()
        assert_same_bits(load(directory)[1], expected)
        assert f"{prefix}score.weight, {prefix}v_head.summary.weight" in caplog.text


def test_an_unknown_tensor_is_refused_by_the_name_in_the_file(written):
    torch, _ = libraries()
    directory, _ = written(GPTJ)
    rewrite(directory, lambda tensors: {**tensors, "lora.a": torch.ones(2)})
    with pytest.raises(InputError, match=r"has no tensor lora\.a; load it with transformers"):
        hf.HfSource(directory)


def test_sizes_are_bounded_before_anything_is_made_of_them(written):
    directory, _ = written(GPTJ)
    values = json.loads((directory / "config.json").read_text())
    for name, size, limit in (("n_layer", 10**9, "10,000"), ("vocab_size", 10**30, "2,147,483,647")):
        (directory / "config.json").write_text(json.dumps({**values, name: size}))
        with pytest.raises(InputError, match=f"{name} must be at most {limit}"):
            hf.read_spec(directory)
