"""Malformed models: each is refused with one line that names the file and the reason, and nothing is written."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest

from star_jax.config import ModelConfig
from star_jax.models import families
from star_jax.tokenizers.simple import ByteTokenizer
from star_jax.weights import checkpoint
from star_jax.weights.sources import hf, loader
from tests.support import mesh_transformer
from tests.support.damages import (
    Trap,
    as_npy,
    content,
    dangling,
    every,
    index_with,
    json_with,
    leaves_with,
    model_json_with,
    npy_with,
    sparse,
    spoiled,
    step_file,
    tensors_with,
    torch_file,
    trapped,
    truncated,
    without,
)  # fmt: skip
from tests.support.models import numpy_params
from tests.support.weights import bpe, convert, convert_with, json_tokenizer_of

CONFIG = ModelConfig(
    n_layers=2, d_model=8, n_heads=2, d_mlp=32, rotary_dim=2, vocab_size=300, max_positions=16, architecture="gptj"
)
HF, OURS, MESH = "hf", "orbax", "mesh_transformer"
ONE, INDEX, BIN = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
SHARD = "model-00002-of-00004.safetensors"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with one good model of each kind: hf, sharded (the same in four files), orbax and mesh_transformer."""
    folder, params = tmp_path_factory.mktemp("good"), numpy_params(CONFIG)
    trained = bpe(["a few words"], size=270)
    trained.save(str(folder / "trained.json"))
    tokenizer = json_tokenizer_of(trained)
    hf.save(folder / HF, families.spec_of(CONFIG), params, tokenizer, np.dtype("float32"))
    hf.save(folder / "sharded", families.spec_of(CONFIG), params, None, np.dtype("float32"), shard_bytes=10_000)
    assert len(list((folder / "sharded").glob("*.safetensors"))) == 4
    checkpoint.save_model(
        folder / OURS, families.build(CONFIG), jax.tree.map(jax.numpy.asarray, params), ByteTokenizer()
    )
    mesh_transformer.write(folder / MESH / "step_3", mesh_transformer.cut(originals(), 2), full=True)
    mesh_transformer.write(folder / "slim" / "step_3", mesh_transformer.cut(originals(), 2))
    sizes = {"layers": 2, "d_model": 8, "n_heads": 2, "n_vocab": 300, "seq": 16, "pe": "rotary", "pe_rotary_dims": 2}
    for kind in (MESH, "slim"):
        (folder / kind / "c.json").write_text(json.dumps({**sizes, "norm": "layernorm"}))
    return folder


def originals() -> mesh_transformer.Named:
    """Random leaves of the original's names in CONFIG's sizes."""
    rng = np.random.default_rng(0)
    shapes = {"embedding/w": (300, 8), "projection/w": (8, 300), "projection/b": (300,)}
    for n in range(2):
        shapes |= {f"layer_{n}/linear{m}/w": (8, 8) for m in ("", "_1", "_2", "_3")}
        shapes |= {f"layer_{n}/linear_4/b": (32,), f"layer_{n}/linear_4/w": (8, 32), f"layer_{n}/linear_5/w": (32, 8)}
    return {n: rng.standard_normal(shapes.get(n, (8,))).astype(np.float32) for n in mesh_transformer.names(2)}


H0 = "transformer.h.0"
BAD_HF = [
    ("no config.json", without("config.json"), "config.json: cannot be read"),
    ("empty config.json", content("config.json", b""), "config.json:1: invalid JSON"),
    ("broken config.json", truncated("config.json", 40), "config.json:3: invalid JSON"),
    ("config.json of no text", content("config.json", b"\xff\xfe\x00"), "config.json: is not UTF-8 text"),
    ("nested config.json", content("config.json", b"[" * 100_000), "config.json: invalid JSON"),
    ("config.json is a list", content("config.json", b"[1]"), "config.json: holds list, not a JSON object"),
    (
        "mixture of experts",
        json_with("config.json", model_type="mixtral"),
        "model_type is 'mixtral'; star_jax supports",
    ),
    (
        "Qwen 3.5",
        json_with("config.json", model_type="qwen3_5_text"),
        "model_type is 'qwen3_5_text'; star_jax supports",
    ),
    (
        "Gemma 3n",
        json_with("config.json", model_type="gemma3n_text"),
        "model_type is 'gemma3n_text'; star_jax supports",
    ),
    ("attribute", json_with("config.json", x_scale=2.0), "config.json: x_scale is 2.0; star_jax does not know this"),
    ("a list as kind", json_with("config.json", model_type=["gptj"]), "model_type is ['gptj']"),
    ("relu", json_with("config.json", activation_function="relu"), "activation_function is 'relu'"),
    ("epsilon", json_with("config.json", layer_norm_epsilon=1e-6), "layer_norm_epsilon is 1e-06"),
    ("tied", json_with("config.json", tie_word_embeddings=True), "tie_word_embeddings is True"),
    ("no n_layer", json_with("config.json", n_layer=None), "n_layer must be a positive integer, got None"),
    ("n_embd in words", json_with("config.json", n_embd="eight"), "n_embd must be a positive integer, got 'eight'"),
    ("n_head 3", json_with("config.json", n_head=3), "config.json: model: d_model, 8, must divide by n_heads, 3"),
    ("n_head 0", json_with("config.json", n_head=0), "config.json: n_head must be a positive integer, got 0"),
    (
        "rotary_dim 3",
        json_with("config.json", rotary_dim=3),
        "config.json: model: 3 rotary features; they must be even",
    ),
    ("n_inner in words", json_with("config.json", n_inner="wide"), "n_inner must be a positive integer, got 'wide'"),
    ("vocab_size", json_with("config.json", vocab_size=301), "transformer.wte.weight has shape [300, 8], config.json"),
    ("deeper", json_with("config.json", n_layer=3), "transformer.h.2.attn.k_proj.weight [8, 8] is missing"),
    ("flatter", json_with("config.json", n_layer=1), "transformer.h.1."),
    ("missing", tensors_with(f"{H0}.ln_1.bias", lambda _: None), f"{H0}.ln_1.bias [8] is missing"),
    ("surplus", tensors_with(f"{H0}.x", lambda a: a), f"a gptj model has no tensor {H0}.x"),
    ("misshapen", tensors_with("lm_head.weight", np.transpose), "lm_head.weight has shape [8, 300], config.json"),
    ("integers", tensors_with("lm_head.bias", lambda a: a.astype(np.int8)), "lm_head.bias does not hold floating"),
    ("NaN", tensors_with(f"{H0}.attn.q_proj.weight", spoiled(np.nan)), f"{H0}.attn.q_proj.weight holds values that"),
    ("inf", tensors_with("transformer.ln_f.bias", spoiled(-np.inf)), "transformer.ln_f.bias holds values that are not"),
    ("empty weights", content(ONE, b""), f"{ONE}: not a complete safetensors file"),
    ("seven bytes", truncated(ONE, 7), f"{ONE}: not a complete safetensors file"),
    ("half a header", truncated(ONE, 300), f"{ONE}: not a complete safetensors file"),
    ("no tensors", truncated(ONE, 4000), f"{ONE}: not a complete safetensors file"),
    ("a byte short", truncated(ONE, -1), f"{ONE}: not a complete safetensors file"),
    ("garbage", content(ONE, os.urandom(5000)), f"{ONE}: not a complete safetensors file"),
    (
        "a folder as weights",
        lambda f: [without(ONE)(f), (f / ONE).mkdir()],
        "has no weights: neither model.safetensors",
    ),
    ("no weights", without(ONE), "has no weights: neither model.safetensors"),
    ("tokenizer.json", truncated("tokenizer.json", 500), "tokenizer.json: invalid JSON"),
    ("tokenizer list", content("tokenizer.json", b"[]"), "tokenizer.json: it is not a tokenizer.json of the tokeni"),
    ("weights gone", dangling(ONE), "model.safetensors: is a link to a file that is gone"),
    ("tokenizer gone", dangling("tokenizer.json"), "tokenizer.json: cannot be read (No such file"),
    ("template gone", dangling("chat_template.jinja"), "chat_template.jinja: cannot be read (No such file"),
    ("generation gone", dangling("generation_config.json"), "generation_config.json: cannot be read (No such"),
    ("config gone", dangling("config.json"), "config.json: cannot be read (No such file"),
    ("an adapter", content("adapter_config.json", b"{}"), "adapter_config.json: an adapter of peft is there"),
    (
        "an adapter alone",
        lambda f: [without("config.json", ONE)(f), content("adapter_config.json", b"{}")(f)],
        "adapter_config.json: an adapter of peft is there",
    ),
    (
        "GPTQ",
        json_with("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "config.json: quantization_config says that the weights are quantized; get the model's unquantized weights",
    ),
    ("MLX", json_with("config.json", quantization={"bits": 4}), "config.json: quantization says that the weights are"),
    (
        "float8",
        tensors_with("lm_head.weight", lambda a: a.astype(ml_dtypes.float8_e4m3fn)),
        "lm_head.weight does not hold floating-point numbers of 16, 32 or 64 bits but F8_E4M3; get the model's unq",
    ),
    ("no head", tensors_with("lm_head.weight", lambda _: None), "lm_head.weight [300, 8] is missing; download"),
    ("Latin-1", content("config.json", '{"model_type": "é"}'.encode("latin-1")), "config.json: is not UTF-8 text"),
    ("UTF-16", content("config.json", '{"model_type": "gptj"}'.encode("utf-16")), "config.json: is not UTF-8 text"),
    (
        "a BOS of another model",
        content("tokenizer_config.json", b'{"eos_token": "</s>"}'),
        "tokenizer.json: has no token '</s>', which tokenizer_config.json",
    ),
    ("a sparse terabyte", sparse("config.json"), "config.json: has 1,099,511,627,776 bytes, more than"),
    ("a terabyte of tokenizer", sparse("tokenizer.json"), "tokenizer.json: has 1,099,511,627,776 bytes, more than"),
    (
        "a terabyte of merges",
        lambda f: [without("tokenizer.json")(f), content("vocab.json", b"{}")(f), sparse("merges.txt")(f)],
        "merges.txt: has 1,099,511,627,776 bytes, more than",
    ),
    ("vocab alone", lambda f: [without("tokenizer.json")(f), content("vocab.json", b"{}")(f)], "nor merges.txt"),
]
BAD_TORCH = [
    ("a pickle", torch_file(lambda _: {"a": 1}, by="pickle"), f"{BIN}: not a file of weights"),
    ("a program", torch_file(lambda f: Trap(f / "trap"), by="pickle"), f"{BIN}: not a file of weights"),
    ("a program by torch", torch_file(lambda f: {"a": Trap(f / "trap")}), f"{BIN}: not a file of weights"),
    ("a list by torch", torch_file(lambda _: [1, 2]), f"{BIN}: holds other things than named tensors"),
    ("numbers by torch", torch_file(lambda _: {"lm_head.bias": 3}), f"{BIN}: holds other things than named tensors"),
    ("an empty dict by torch", torch_file(lambda _: {}), "is missing; download the whole model"),
    (
        "a program, legacy",
        torch_file(lambda f: {"a": Trap(f / "trap")}, by="legacy"),
        f"{BIN}: not a file of weights",
    ),
    ("torch garbage", torch_file(lambda _: b"PK\3\4" * 99, by="bytes"), f"{BIN}: not a file of weights"),
    ("torch nothing", torch_file(lambda _: b"", by="bytes"), f"{BIN}: not a file of weights"),
]
BAD_SHARDS = [
    ("shard gone", dangling(SHARD), f"{INDEX}: lists the file '{SHARD}', which is not in this"),
    ("index gone", dangling(INDEX), f"{INDEX}: is a link to a file that is gone"),
    ("file missing", without(SHARD), f"{INDEX}: lists the file '{SHARD}', which is not in this"),
    ("path", index_with("lm_head.bias", f"../{HF}/{ONE}"), f"lists the file '../{HF}/{ONE}', which is not in"),
    ("absolute path", index_with("lm_head.bias", "/etc/passwd"), "lists the file '/etc/passwd', which is not in"),
    (
        "wrong file",
        index_with("lm_head.bias", SHARD),
        f"{SHARD}: the tensor lm_head.bias is missing, which {INDEX} lists",
    ),
    ("long name", index_with("lm_head.bias", "x" * 5000), "lists the file 'xxxxx"),
    ("no name", index_with("lm_head.bias", ""), "lists the file '', which is not in"),
    ("zero byte", index_with("lm_head.bias", "a\0b"), "', which is not in this directory"),
    ("number", index_with("lm_head.bias", 3), f"{INDEX}: has no weight_map"),
    ("truncated", truncated(SHARD, -1), f"{SHARD}: not a complete safetensors file"),
    ("index broken", truncated(INDEX, 90), f"{INDEX}:6: invalid JSON"),
    ("index of nothing", content(INDEX, b"{}"), f"{INDEX}: has no weight_map"),
    ("index names none", content(INDEX, b'{"weight_map": {}}'), "is missing; download the whole model"),
]
BAD_OURS = [
    ("truncated", truncated("model.json", 60), "model.json:4: invalid JSON"),
    ("missing", without("model.json"), "no complete model is there: neither model.json"),
    ("a list", content("model.json", b"[]"), "model.json: holds list, not a JSON object"),
    ("format", json_with("model.json", format="star_jax model 9"), "model.json: its format is 'star_jax model 9'"),
    ("a tokenizer's text", json_with("model.json", tokenizer={"kind": "json"}), "model.json: tokenizer: malformed"),
    (
        "another tokenizer",
        json_with("model.json", tokenizer={"kind": "x"}),
        "model.json: tokenizer: unknown tokenizer",
    ),
    ("three heads", model_json_with(n_kv_heads=3), "model.json: model: 2 heads do not divide into 3 groups"),
    ("no tokenizer", json_with("model.json", tokenizer=None), "model.json: key 'tokenizer' is missing"),
    ("dtype", json_with("model.json", dtype="int8"), "model.json: dtype is 'int8'"),
    ("no weights", without("weights"), "weights: cannot be restored"),
    ("empty weights", lambda f: [without("weights")(f), (f / "weights").mkdir()], "weights: cannot be restored"),
    ("wider", model_json_with(d_mlp=40), "weights: cannot be restored"),
    ("deeper", model_json_with(n_layers=3), "weights: cannot be restored"),
    ("another kind", model_json_with(parallel=False), "weights: cannot be restored"),
    ("sizes in words", model_json_with(d_model="8"), "model.json.d_model must be int, got '8'"),
    ("surplus size", model_json_with(depth=8), "model.json: the spec has an unknown field 'depth'"),
]
BAD_MESH = [
    ("no config", without("c.json"), "c.json: cannot be read"),
    ("no layers", json_with("c.json", layers=None), "c.json: layers must be an integer, got None"),
    ("three layers", json_with("c.json", layers=3), "shard_0: holds 81 arrays; the config's layers make 37 (slim)"),
    ("other positions", json_with("c.json", pe="fixed"), "c.json: pe is 'fixed'"),
    ("three heads", json_with("c.json", n_heads=3), "c.json: model: d_model, 8, must divide by n_heads, 3"),
    ("wider", json_with("c.json", d_model=16), "layer_0/linear_2/w has shape [8, 4], the config requires [16, 8]"),
    ("vocabulary", json_with("c.json", n_vocab=301), "embedding/w [301, 8] does not divide over 2 shards"),
    ("a gap", lambda f: (f / "step_3/shard_1").rename(f / "step_3/shard_2"), "without a gap; there are shard_0, sh"),
    ("no shards", without("step_3/shard_0", "step_3/shard_1"), "step_3: needs the folders shard_0, shard_1"),
    ("one of two", without("step_3/shard_1"), "has shape [8, 4], the config requires [8, 8] (1 shards"),
    ("no npz", without(step_file("15.npz")), "shard_1/15.npz: not a complete npz archive"),
    ("half an npz", truncated(step_file("9.npz"), 700), "shard_1/9.npz: not a complete npz archive"),
    ("empty npz", content(step_file("0.npz"), b""), "shard_1/0.npz: not a complete npz archive"),
    ("garbage npz", content(step_file("0.npz"), b"PK\3\4" * 300), "shard_1/0.npz: not a complete npz archive"),
    ("a single array", as_npy, "shard_1/7.npz: not a complete npz archive (a single array)"),
    ("a program", content(step_file("3.npz"), pickle.dumps(Path("x"))), "shard_1/3.npz: not a complete npz archive"),
    ("objects", leaves_with(trapped, number=12), "shard_1/12.npz: cannot be read (Object arrays cannot be loaded"),
    ("objects all over", every(trapped), "15.npz: cannot be read (Object arrays cannot be loaded"),
    ("integers", leaves_with(lambda a: [x.astype(np.int32) for x in a], number=12), "12.npz: holds an array of int32"),
    ("NaN as a step", leaves_with(lambda a: [*a[:-1], np.array(np.nan)], number=15), "array 80, a counter, is nan"),
    (
        "wide",
        npy_with("<f8", (8,)),
        "12.npz: cannot be read (its header claims [8] of float64, which are not the bytes",
    ),
    (
        "eight gigabytes",
        npy_with("|V2000000000", (4,)),
        "12.npz: cannot be read (its header claims [4] of |V2000000000",
    ),
    ("no end of a header", npy_with("<f4", "(8,"), "12.npz: cannot be read ("),
    ("a byte", content(step_file("0.npz"), b"P"), "shard_1/0.npz: not a complete npz archive (not a zip archive)"),
    ("texts", leaves_with(lambda a: [np.full(x.shape, "x") for x in a], number=12), "shard_1/12.npz: holds an array"),
    ("a leaf more", leaves_with(lambda a: [*a, a[0]]), "shard_1: holds 82 arrays"),
    ("wrong shapes", leaves_with(lambda a: [x[:-1] for x in a], number=13), "shard_1: layer_1/linear_2/w has shape"),
    ("NaN", leaves_with(lambda a: [x * np.nan for x in a], number=13), "layer_1/linear_2/w holds values that are not"),
    ("another step", leaves_with(lambda a: [*a[:-1], np.array(4)], number=15), "shard_1: is of step 4 and shard_0 of"),
    ("two slim, one of three", lambda f: shutil.copytree(f / "step_3/shard_0", f / "step_3/shard_2"), "over 3 shards"),
]


def complaints(result, expected: str, target: Path) -> list[str]:
    """What is wrong with a refusal: it is one line with the expected text and status 2, and makes no target."""
    status, out, err = result
    checks = {
        f"status {status}": status == 2,
        f"output {out!r}": not out,
        f"not one line: {err!r}": len(err.splitlines()) == 1 and err.startswith("star_jax: ") and err.endswith("\n"),
        f"expected {expected!r} in {err!r}": expected in err and "Traceback" not in err,
        "there is a target": not target.exists(),
    }
    return [complaint for complaint, right in checks.items() if not right]


def damaged(good, folder, kind, damage) -> Path:
    """A copy of a good model in a new folder, damaged and without checksums, which would report any change."""
    shutil.copytree(good / kind, folder / "model")
    if kind == OURS:
        (folder / "model/checksums.json").unlink()
    damage(folder / "model")
    return folder / "model"


def wrong_rows(table, good, tmp_path, kind, convert_model) -> dict[str, list[str]]:
    """Row name -> complaints, for the rows of a table whose damage is not refused as it should be.

    `convert_model`: model folder, target -> (status, output, errors).
    """
    wrong = {}
    for number, (name, damage, expected) in enumerate(table):
        folder = tmp_path / str(number)
        model = damaged(good, folder, kind, damage)
        result = convert_model(model, folder / "out")
        trap = ["the file was run"] if (model / "trap").exists() else []
        if found := complaints(result, expected, folder / "out") + trap:
            wrong[name] = found
        shutil.rmtree(folder)
    return wrong


@pytest.mark.parametrize("target_format", [HF, OURS])
def test_the_undamaged_models_convert(good, tmp_path, target_format):
    """What the tables below damage is accepted as it is."""
    options = [f"--source_config={good / MESH / 'c.json'}"]
    sources = [(HF, HF, []), ("sharded", HF, []), (OURS, OURS, []), (f"{MESH}/step_3", MESH, options)]
    for n, (name, form, more) in enumerate(sources):
        assert convert(good / name, form, tmp_path / str(n), target_format, *more)[::2] == (0, "")


def test_bad_hugging_face_directories_are_refused(good, tmp_path):
    assert not wrong_rows(BAD_HF, good, tmp_path, HF, lambda model, out: convert(model, HF, out, OURS))


def test_what_other_tools_write_and_changes_no_weight_is_read(good, tmp_path):
    """A byte order mark, a wrong total in an index, other data of a tool, links in place of files."""
    harmless = [
        (HF, lambda f: content("config.json", b"\xef\xbb\xbf" + (f / "config.json").read_bytes())(f)),
        (HF, lambda f: content("tokenizer.json", b"\xef\xbb\xbf" + (f / "tokenizer.json").read_bytes())(f)),
        (HF, lambda f: [(f / ONE).rename(f / "blob"), (f / ONE).symlink_to("blob")]),
        ("sharded", json_with(INDEX, metadata={"total_size": 1})),
        ("sharded", lambda f: [(f / SHARD).rename(f.parent / "blob"), (f / SHARD).symlink_to("../blob")]),
    ]
    for number, (kind, change) in enumerate(harmless):
        model = damaged(good, tmp_path / str(number), kind, change)
        sources = [hf.HfSource(folder) for folder in (model, good / kind)]
        for leaf, layer, _ in loader.tensors(families.build(CONFIG)):
            stored, original = (source.read(leaf, layer) for source in sources)
            assert stored.tobytes() == original.tobytes(), (number, leaf)
        tokenizers = [source.tokenizer() for source in sources]
        assert kind != HF or tokenizers[0].pieces == tokenizers[1].pieces


def test_bad_torch_files_are_refused_and_not_run(good, tmp_path, recwarn):
    """Without warnings of torch, which a process would print next to the line."""
    pytest.importorskip("torch", reason="reading pytorch_model.bin needs torch")
    assert not wrong_rows(BAD_TORCH, good, tmp_path, HF, lambda model, out: convert(model, HF, out, OURS))
    assert not recwarn.list


def test_bad_sharded_directories_are_refused(good, tmp_path):
    assert not wrong_rows(BAD_SHARDS, good, tmp_path, "sharded", lambda model, out: convert(model, HF, out, HF))


def test_bad_directories_of_ours_are_refused(good, tmp_path):
    assert not wrong_rows(BAD_OURS, good, tmp_path, OURS, lambda model, out: convert(model, OURS, out, HF))


def test_bad_mesh_transformer_checkpoints_are_refused(good, tmp_path, monkeypatch):
    monkeypatch.setenv("STAR_TEST_TRAP", str(tmp_path / "trap"))

    def convert_model(model, out):
        return convert(model / "step_3", MESH, out, OURS, f"--source_config={model / 'c.json'}")

    assert not wrong_rows(BAD_MESH, good, tmp_path, MESH, convert_model)
    assert not (tmp_path / "trap").exists()


def test_a_full_shard_next_to_a_slim_one(good, tmp_path):
    model = damaged(good, tmp_path, MESH, lambda folder: shutil.rmtree(folder / "step_3/shard_1"))
    shutil.copytree(good / "slim/step_3/shard_1", model / "step_3/shard_1")
    result = convert(model / "step_3", MESH, tmp_path / "out", OURS, f"--source_config={model / 'c.json'}")
    assert not complaints(result, "shard_1: holds 27 arrays and shard_0 81", tmp_path / "out")


def test_a_tokenizer_larger_than_the_model(good, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    trained = bpe([chr(i) + chr(j) for i in range(97, 123) for j in range(97, 123)] * 2, size=400)
    trained.save(str(tmp_path / "tokenizer" / "tokenizer.json"))
    result = convert(good / OURS, OURS, tmp_path / "out", HF, f"--tokenizer={tmp_path / 'tokenizer'}")
    assert not complaints(result, "ids and the model's embedding 300 rows", tmp_path / "out")


def test_wrong_invocations_are_refused(tmp_path):
    table = [
        (["--source_format=hf"], "there is no such directory"),
        (["--source_format=onnx"], "--source_format: invalid choice: 'onnx'"),
        (["--source_format=mesh_transformer"], "--source_config=FILE goes with --source_format=mesh_transformer"),
        (["--source_format=hf", "--source_config=c.json"], "--source_config=FILE goes with --source_format=mesh_tra"),
        (["--source_format=hf", "--moments"], "--moments: needs --source_format=mesh_transformer"),
        (["--source_format=hf", "--dtype=int8"], "--dtype: invalid choice: 'int8'"),
        (["--source_format=hf", "--nonsense=1"], "--nonsense=1"),
        (["--source_form=hf"], "--source_format"),
        ([], "the following arguments are required: --source_format"),
    ]
    base = [f"--source={tmp_path / 'none'}", f"--target={tmp_path / 'out'}", "--target_format=orbax"]
    results = {str(more): complaints(convert_with(*base, *more), text, tmp_path / "out") for more, text in table}
    assert not {more: found for more, found in results.items() if found}


def test_a_model_in_another_format_than_the_flag_says_names_its_own(good, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    sources = {HF: good / HF, OURS: good / OURS, "gguf": tmp_path / "a.gguf"}
    for actual, source in sources.items():
        for form in {*sources} - {actual}:
            result = convert(source, form, tmp_path / "out", HF)
            expected = f"--source={source}: holds a model in another format; give --source_format={actual}"
            assert not complaints(result, expected, tmp_path / "out"), (actual, form)


def test_a_slim_checkpoint_with_moments_asked_for(good, tmp_path):
    more = (f"--source_config={good / 'slim/c.json'}", "--moments")
    result = convert(good / "slim/step_3", MESH, tmp_path / "out", OURS, *more)
    assert not complaints(result, "shard_0: a slim checkpoint, which holds no Adam moments", tmp_path / "out")


def test_a_target_that_is_taken_keeps_its_files(good, tmp_path):
    """A model of any format, a checkpoint folder, the source itself: nothing in it is replaced."""
    model = damaged(good, tmp_path, HF, lambda _: None)
    (tmp_path / "file").write_text("mine")
    for kind in (HF, OURS, MESH):
        shutil.copytree(good / kind, tmp_path / kind)
    targets = [tmp_path / name for name in (HF, OURS, MESH, "file", "file/x", "model")]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for target in targets:
        for target_format in (HF, OURS):
            status, _, errors = convert(model, HF, target, target_format)
            assert status == 2 and len(errors.splitlines()) == 1 and str(target) in errors, (target, target_format)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "damage", "expected"),
    [
        (HF, tensors_with("lm_head.bias", lambda a: a.astype(np.int8)), "lm_head.bias does not hold"),
        (HF, tensors_with("lm_head.bias", spoiled(np.nan)), "lm_head.bias holds values"),
        (HF, torch_file(lambda f: {"a": Trap(f / "trap")}), f"{BIN}: not a file of weights"),
        (HF, torch_file(lambda f: {"a": Trap(f / "trap")}, by="legacy"), f"{BIN}: not a file of weights"),
        (HF, torch_file(lambda f: Trap(f / "trap"), by="pickle"), f"{BIN}: not a file of weights"),
        (OURS, without("weights"), "weights: cannot be restored"),
        (OURS, model_json_with(n_layers=3), "weights: cannot be restored: blocks/"),
    ],
    ids=["integers", "NaN", "a program", "a program, legacy", "a pickle", "no weights", "deeper"],
)
def test_a_process_of_its_own_prints_the_line_only(good, tmp_path, kind, damage, expected):
    """Nothing native or logged comes with it."""
    model = damaged(good, tmp_path, kind, damage)
    args = [f"--source={model}", f"--source_format={kind}", f"--target={tmp_path / 'out'}", "--target_format=hf"]
    done = subprocess.run(
        [sys.executable, "-m", "star_jax.convert", *args],
        cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert not complaints((done.returncode, done.stdout, done.stderr), expected, tmp_path / "out")


def test_bfloat16_nan_is_seen(good, tmp_path):
    """In the dtype of the file, before it is widened."""

    def spoil(array):
        return spoiled(np.nan)(array).astype(ml_dtypes.bfloat16)

    model = damaged(good, tmp_path, HF, tensors_with("lm_head.weight", spoil))
    result = convert(model, HF, tmp_path / "out", HF)
    assert not complaints(result, "lm_head.weight holds values", tmp_path / "out")
