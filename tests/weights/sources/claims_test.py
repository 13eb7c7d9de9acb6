"""Sizes that a header claims are compared with its file before memory is taken for them."""

import contextlib
import json
import resource
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from star_jax.config import MeshConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import families
from star_jax.models.decoder import Decoder
from star_jax.tokenizers.simple import ByteTokenizer
from star_jax.weights import checkpoint
from star_jax.weights.sources import hf, loader
from star_jax.weights.sources.mesh_transformer import MeshTransformerSource
from tests.support import mesh_transformer
from tests.support.damages import json_with, model_json_with, npy_with, step_file
from tests.support.models import TINY, numpy_params
from tests.support.tables import every_row

ROOM = 2**30  # bytes that a case may take; all claims are larger
SPEC = families.spec_of(TINY)
HUGE = 2**31 - 1


@contextlib.contextmanager
def limited_memory():
    """Lets this process take ROOM bytes more than it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_the_limit_is_one():
    with limited_memory(), pytest.raises(MemoryError):
        np.empty(2 * ROOM, np.uint8)
    assert np.empty(2 * ROOM, np.uint8).size == 2 * ROOM


def safetensors(size: int, **entries):
    """A file whose header has this length, as it says, and these tensors of [shape, end of the data]."""
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, end]} for name, (shape, end) in entries.items()
    }
    text = json.dumps(header).encode()
    return lambda folder: (folder / "model.safetensors").write_bytes(
        struct.pack("<Q", size or len(text)) + text + b"\0" * 99
    )


def npz_directory(folder: Path) -> None:
    """The list of an archive's files says that one unpacks to 4 GB, and so does the header of the array in it."""
    npy_with("<f4", (10**9 - 32,))(folder)
    path = folder / step_file("12.npz")
    content = bytearray(path.read_bytes())
    for at, offset in ((content.index(b"PK\1\2"), 24), (content.index(b"PK\3\4"), 22)):
        content[at + offset : at + offset + 4] = struct.pack("<I", 4 * 10**9)
    path.write_bytes(content)


def npy(folder: Path) -> None:
    """A single array of eight gigabytes in place of an archive."""
    with open(folder / step_file("7.npz"), "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (10**9,)})


def text(content: str) -> bytes:
    return struct.pack("<Q", len(content)) + content.encode()


def gguf_of(n_tensors: int = 0, values: bytes = b"", n_values: int = 0, tensors: bytes = b""):
    content = b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_values) + values + tensors + b"\0" * 99
    return lambda folder: (folder / "model.gguf").write_bytes(content)


def array(kind: int, count: int) -> bytes:
    return text("key") + struct.pack("<IIQ", 9, kind, count)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    hf.save(folder / "hf", SPEC, numpy_params(TINY), None, np.dtype(np.float32))
    checkpoint.save_model(folder / "ours", Decoder(SPEC), numpy_params(TINY), ByteTokenizer())
    (folder / "ours/checksums.json").unlink()
    (folder / "gguf").mkdir()
    shapes = {"embedding/w": (16, 8), "projection/w": (8, 16), "projection/b": (16,), "layer_0/linear_4/b": (32,)}
    shapes |= {"layer_0/linear_4/w": (8, 32), "layer_0/linear_5/w": (32, 8)}
    shapes |= {f"layer_0/linear{n}/w": (8, 8) for n in ("", "_1", "_2", "_3")}
    arrays = {n: np.ones(shapes.get(n, (8,)), np.float32) for n in mesh_transformer.names(1)}
    mesh_transformer.write(folder / "mesh/step_3", mesh_transformer.cut(arrays, 2), full=True)
    sizes = {"layers": 1, "d_model": 8, "n_heads": 2, "n_vocab": 16, "seq": 16, "pe": "rotary", "pe_rotary_dims": 2}
    (folder / "mesh/c.json").write_text(json.dumps({**sizes, "norm": "layernorm"}))
    return folder


CLAIMS = [
    ("hf", safetensors(2**62), "model.safetensors: not a complete safetensors file"),
    ("hf", safetensors(10**8), "model.safetensors: not a complete safetensors file"),
    ("hf", safetensors(0, x=([2**31], 2**33)), "model.safetensors: not a complete safetensors file"),
    ("hf", safetensors(0, x=([2**62, 4], 2**64 - 1)), "model.safetensors: not a complete safetensors file"),
    ("hf", json_with("config.json", n_layer=10_000, vocab_size=HUGE, n_positions=HUGE), "is missing"),
    ("hf", json_with("config.json", n_inner=HUGE), "has shape [64], config.json requires [2147483647]"),
    ("ours", model_json_with(vocab_size=HUGE), "the model's sizes require [2147483647, 32]"),
    ("ours", model_json_with(n_layers=10_000, d_mlp=HUGE), "the model's sizes require [10000, 32, 2, 16]"),
    ("mesh", npz_directory, "12.npz: cannot be read (its directory claims 4,000,000,000 bytes"),
    ("mesh", npy, "7.npz: not a complete npz archive (a single array)"),
    ("mesh", npy_with("|V2000000000", (4,)), "12.npz: cannot be read (its header claims [4] of |V2000000000"),
    ("mesh", npy_with("<f8", (10**9,)), "12.npz: cannot be read (its header claims [1000000000] of float64"),
    ("gguf", gguf_of(n_tensors=2**62), "model.gguf: cut short"),
    ("gguf", gguf_of(n_values=2**40), "model.gguf: cut short"),
    ("gguf", gguf_of(n_values=1, values=struct.pack("<Q", 2**62)), "model.gguf: cut short"),
    ("gguf", gguf_of(n_values=1, values=array(0, 2**33)), "model.gguf: cut short"),
    ("gguf", gguf_of(n_values=1, values=array(8, 2**33)), "model.gguf: cut short"),
    (
        "gguf",
        gguf_of(n_tensors=1, tensors=text("x") + struct.pack("<IQQIQ", 2, 2**31, 2**31, 0, 0)),
        "model.gguf: cut short: the tensor x ends at byte 18,446,744,073",
    ),
]


@every_row(("kind", "damage", "expected"), CLAIMS)
def test_a_claim_is_refused_without_memory_for_it(good, kind, damage, expected, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(good / kind, folder)
    damage(folder)
    mesh = sharding.make_mesh(MeshConfig(data=1))
    with limited_memory(), pytest.raises(InputError) as raised:
        if kind == "mesh":
            loader.load(MeshTransformerSource(folder / "step_3", folder / "c.json"), mesh, "float32")
        else:
            checkpoint.load_model(folder / "model.gguf" if kind == "gguf" else folder, mesh)
    assert expected in str(raised.value) and str(raised.value).startswith(str(folder)), raised.value
