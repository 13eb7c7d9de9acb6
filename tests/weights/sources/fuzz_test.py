"""Any changed field or size of a model's files: one line that names a file, or the weights of the unharmed model."""

import ast
import faulthandler
import itertools
import json
import shutil
import struct
import time
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from star_jax.config import MeshConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models.decoder import Decoder
from star_jax.tokenizers.simple import ByteTokenizer
from star_jax.weights import checkpoint
from star_jax.weights.sources import gguf, hf, loader
from star_jax.weights.sources.gguf_file import GgufFile
from star_jax.weights.sources.mesh_transformer import MeshTransformerSource
from tests.support import gguf as gguf_writer
from tests.support import mesh_transformer
from tests.support.families import tiny_spec
from tests.support.models import numpy_params
from tests.support.mutations import mutated

NUMBER = [0, 1, 2, 3, 4, 5, 8, 16, 31, 32, 33, 64, 300, 9999, 10**6, 2**31 - 1, 2**31, 10**30, -1, 1.5, "8", None, True]
CONFIG = {
    **dict.fromkeys(
        ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
         "intermediate_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "layers", "d_model", "n_heads",
         "n_vocab", "seq", "pe_rotary_dims"), NUMBER,
    ),
    "model_type": ["llama", "mistral", "qwen2", "qwen3", "olmo2", "gptj", "gpt2", "", None, ["llama"]],
    "tie_word_embeddings": [True, False, None], "attention_bias": [True, False], "mlp_bias": [True, False],
    "hidden_act": ["silu", "gelu", None], "layer_types": [[], ["full_attention"] * 2, ["sliding_attention"]],
    "rope_scaling": [None, {}, {"type": "linear", "factor": 2.0}, {"rope_type": "yarn"}, {"rope_type": "llama3"}],
    "rope_parameters": [{}, {"full_attention": {"rope_theta": 1e4}}, {"full_attention": []}, []],
    "quantization_config": [{"quant_method": "fp8"}], "auto_map": [{}], "pretraining_tp": [2], "pe": ["fixed"],
}  # fmt: skip
HEADER = {
    "dtype": ["F32", "F16", "BF16", "F64", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "", "f32"],
    "shape": [[], [0], [1], [32], [20, 32], [32, 20], [2**62, 4], [2**40, 2**40], [-1, 4], [1.0], [0, 2**63]],
    "data_offsets": [[0, 0], [0, 4], [0, 2560], [8, 0], [2**62, 2**63], [0, 2**64], [-8, 0], [0], [0, 1, 2],
                     [0.0, 4.0]],
    "__metadata__": [{}, {"format": "tf"}, {"format": 3}, [], None],
}  # fmt: skip
FILES = ["../hf/model.safetensors", "/etc/passwd", "", ".", "..", "x" * 5000, "a\0b", "model.safetensors.index.json",
         "model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "config.json", "\ud800"]  # fmt: skip
INDEX = {
    "metadata": [{}, {"total_size": 1}, {"total_size": "many"}, None],
    "weight_map": [{}, [], None, {"model.norm.weight": FILES[8]}],
    "lm_head.weight": FILES, "model.norm.weight": FILES, "model.layers.0.mlp.up_proj.weight": FILES,
}  # fmt: skip
NPY = {
    "descr": ["<f2", "<f8", "<i4", "<u4", "|V2", "|V4", "|V2000000000", "<U1000000000", "|O", "|S4", "<c8", "<m8[s]",
              [("a", "<f4")], "", "<f16", "x"],
    "shape": [(), (1,), (8,), (8, 8), (2**40,), (2**62, 2**62), (-1,), (0,), (8, 10**9), 8, [8], ("8",)],
    "fortran_order": [None, 1, "no"],
}  # fmt: skip
STORED = {
    "dtype": ["float32", "bfloat16", "float16", "int8", ["float32"], None], "format": ["star_jax model 1"],
    "fingerprint": ["0" * 12, None, 3, ""], "tokenizer": [None, {}, {"kind": "bytes"}, {"kind": "symbols"},
    {"kind": "symbols", "symbols": "ab"}, {"kind": "symbols", "symbols": [1]}, {"kind": "json"}, {"kind": []}],
    "spec": [{}, [], None],
    **dict.fromkeys(
        ("n_layers", "d_model", "n_heads", "n_kv_heads", "head_dim", "d_mlp", "vocab_size", "window"), NUMBER
    ),
    "family": ["llama", "gpt2", "none"], "local_layers": [[True, False], [True], True], "rope": [{}, {"dim": 3}, None],
}  # fmt: skip
WORDS = [0, 1, 2, 3, 8, 31, 32, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
MESH_CONFIG = {"layers": 1, "d_model": 8, "n_heads": 2, "n_vocab": 16, "seq": 16, "pe": "rotary", "pe_rotary_dims": 2,
               "norm": "layernorm"}  # fmt: skip
KINDS = ("hf", "sharded", "gguf", "mesh", "ours")


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A folder with one unharmed model of each kind."""
    folder, spec, rng = tmp_path_factory.mktemp("good"), tiny_spec("llama"), np.random.default_rng(0)
    params = numpy_params(spec)
    hf.save(folder / "hf", spec, params, None, np.dtype(np.float32))
    hf.save(folder / "sharded", spec, params, None, np.dtype(np.float32), shard_bytes=34_000)
    assert len(list((folder / "sharded").glob("*.safetensors"))) == 3
    checkpoint.save_model(folder / "ours", Decoder(spec), jax.tree.map(jax.numpy.asarray, params), ByteTokenizer())
    (folder / "ours/checksums.json").unlink()  # which would report any change
    (folder / "gguf").mkdir()
    write_gguf(folder / "gguf/model.gguf", folder / "qwen3")
    shapes = {"embedding/w": (16, 8), "projection/w": (8, 16), "projection/b": (16,), "layer_0/linear_4/b": (32,)}
    shapes |= {"layer_0/linear_4/w": (8, 32), "layer_0/linear_5/w": (32, 8)}
    shapes |= {f"layer_0/linear{n}/w": (8, 8) for n in ("", "_1", "_2", "_3")}
    arrays = {n: rng.standard_normal(shapes.get(n, (8,))).astype(np.float32) for n in mesh_transformer.names(1)}
    mesh_transformer.write(folder / "mesh/step_3", mesh_transformer.cut(arrays, 1), full=True)
    (folder / "mesh/c.json").write_text(json.dumps(MESH_CONFIG))
    return folder


def write_gguf(path: Path, hf_directory: Path) -> None:
    """A Qwen3, of which llama.cpp's converter changes no weight, by way of a Hugging Face directory."""
    library = pytest.importorskip("gguf", reason="GGUF needs the package gguf")
    spec = tiny_spec("qwen3")
    hf.save(hf_directory, spec, numpy_params(spec), None, np.dtype(np.float32))
    writer = library.GGUFWriter(path, "qwen3")
    sizes = {"block_count": spec.n_layers, "context_length": spec.max_positions, "embedding_length": spec.d_model}
    sizes |= {
        "feed_forward_length": spec.d_mlp,
        "attention.head_count": spec.n_heads,
        "rope.freq_base": spec.rope.theta,
    }
    sizes |= {"attention.head_count_kv": spec.n_kv_heads, "attention.layer_norm_rms_epsilon": spec.norm_eps}
    sizes |= {"attention.key_length": spec.head_dim, "attention.value_length": spec.head_dim}
    for key, value in sizes.items():
        gguf_writer.add_value(writer, f"qwen3.{key}", value)
    names = library.get_tensor_name_map(library.MODEL_ARCH.QWEN3, spec.n_layers)
    for name, array in load_file(hf_directory / "model.safetensors").items():
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def weights(folder: Path, kind: str) -> dict[str, bytes]:
    """Leaf -> bytes, float32. How many heads share an axis changes none of them."""
    mesh = sharding.make_mesh(MeshConfig(data=1))
    if kind == "ours":
        checkpoint.find_tokenizer(folder)
        _, params = checkpoint.load_model(folder, mesh)
    else:
        source: loader.WeightSource
        if kind == "gguf":
            source = gguf.GgufSource(folder / "model.gguf")
        elif kind == "mesh":
            source = MeshTransformerSource(folder / "step_3", folder / "c.json")
        else:
            source = hf.HfSource(folder)
        _, params = loader.load(source, mesh, "float32")
    return {leaf: np.asarray(array).tobytes() for leaf, array in loader.flatten(params).items()}


def damaged(draw, content: bytes, header: int) -> bytes:
    """The content cut short or longer, or with a number over some bytes before `header`."""
    kind = draw(st.sampled_from(["number", "number", "number", "byte", "cut", "longer"]))
    if kind == "cut":
        return content[: draw(st.integers(0, header) | st.integers(0, len(content) - 1))]
    if kind == "longer":
        return content + bytes(draw(st.sampled_from([1, 31, 4096])))
    at = draw(st.integers(0, header - 1))
    new = struct.pack("<Q", draw(st.sampled_from(WORDS)))[: draw(st.sampled_from([4, 8]))]
    if kind == "byte":
        new = bytes([content[at] ^ 1 << draw(st.integers(0, 7))])
    new = new[: header - at]
    return content[:at] + new + content[at + len(new) :]


def changed_json(draw, content: bytes, alternatives) -> bytes:
    return json.dumps(draw(mutated(json.loads(content), alternatives))).encode("utf-8", "surrogatepass")


def changed_safetensors(draw, content: bytes) -> bytes:
    size = struct.unpack("<Q", content[:8])[0]
    text, data = content[8 : 8 + size], content[8 + size :]
    kind = draw(st.sampled_from(["field", "field", "bytes", "twice"]))
    if kind == "bytes":
        return damaged(draw, content, 8 + size)
    if kind == "field":
        text = changed_json(draw, text, HEADER)
    else:
        name, other = (draw(st.sampled_from(sorted(json.loads(text)))) for _ in range(2))
        text = text.rstrip()[:-1] + b"," + json.dumps({name: json.loads(text)[other]})[1:].encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def changed_npz(draw, content_of: Path) -> bytes:
    """An archive with one array's header changed, or a damaged archive."""
    content = content_of.read_bytes()
    if draw(st.booleans()):
        return damaged(draw, content, len(content))  # any byte: the archive has checksums
    with zipfile.ZipFile(content_of) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = draw(st.sampled_from(sorted(members)))
    size = struct.unpack("<H", members[name][8:10])[0]
    values = draw(mutated(ast.literal_eval(members[name][10 : 10 + size].decode()), NPY))
    header = draw(st.sampled_from([repr(values).encode("utf-8", "replace"), b"(" * 500, b"{" + b" " * 20000 + b"}"]))
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    version = draw(st.sampled_from([b"\x01\x00", b"\x01\x00", b"\x03\x00", b"\x09\x00"]))
    changed = b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + members[name][10 + size :]
    path = content_of.with_name("changed.npz")
    with zipfile.ZipFile(path, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for member, data in members.items():
            archive.writestr(member, changed if member == name else data)
    return path.read_bytes()


def change(draw, folder: Path, kind: str) -> Path:
    """Changes one file of a model; returns it."""
    if kind == "ours":
        path = folder / "model.json"
        path.write_bytes(changed_json(draw, path.read_bytes(), STORED))
    elif kind == "gguf":
        path = folder / "model.gguf"
        content = path.read_bytes()
        end = path.stat().st_size - sum(-(-t.n_bytes // 32) * 32 for t in GgufFile(path).tensors.values())
        path.write_bytes(damaged(draw, content, end))
    elif kind == "mesh" and draw(st.integers(0, 3)):
        path = folder / f"step_3/shard_0/{draw(st.integers(0, 15))}.npz"
        path.write_bytes(changed_npz(draw, path))
    elif kind == "sharded":
        path = folder / "model.safetensors.index.json"
        path.write_bytes(changed_json(draw, path.read_bytes(), INDEX))
    elif kind == "hf" and draw(st.booleans()):
        path = folder / "model.safetensors"
        path.write_bytes(changed_safetensors(draw, path.read_bytes()))
    else:
        path = folder / {"hf": "config.json", "mesh": "c.json"}[kind]
        path.write_bytes(changed_json(draw, path.read_bytes(), CONFIG))
    return path


NUMBERS = itertools.count()  # archives are cached by their path


def check(good, folder, capfd, draw):
    kind = draw(st.sampled_from(KINDS))
    expected = UNHARMED.setdefault(good, {})
    if kind not in expected:
        expected[kind] = weights(good / kind, kind)
    folder /= str(next(NUMBERS))
    shutil.copytree(good / kind, folder)
    path = change(draw, folder, kind)
    capfd.readouterr()
    started = time.process_time()
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        found = weights(folder, kind)
    except InputError as error:
        assert str(error).startswith(str(folder)) and len(str(error)) < 8000, error
    else:
        assert found == expected[kind], path.name
    finally:
        faulthandler.cancel_dump_traceback_later()
        shutil.rmtree(folder)
    assert time.process_time() - started < 20
    assert capfd.readouterr() == ("", "")


UNHARMED: dict[Path, dict[str, dict[str, bytes]]] = {}
HEALTH = dict(suppress_health_check=list(HealthCheck), deadline=None)


@settings(max_examples=40, **HEALTH)
@given(data=st.data())
def test_a_changed_file_is_refused_or_gives_the_same_weights(good, tmp_path, capfd, data):
    check(good, tmp_path, capfd, data.draw)


@pytest.mark.slow
@settings(max_examples=5_000, **HEALTH)
@given(data=st.data())
def test_many_changed_files_are_refused_or_give_the_same_weights(good, tmp_path, capfd, data):
    check(good, tmp_path, capfd, data.draw)
