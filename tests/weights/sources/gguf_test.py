"""star_jax.weights.sources.gguf: the model in a GGUF file is the one that was written to it."""

import contextlib
import struct

import jax
import numpy as np
import pytest

from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.models.spec import Rope
from star_jax.weights import checkpoint
from star_jax.weights.sources import gguf as source
from star_jax.weights.sources.gguf_file import GgufFile
from tests.support import gguf as written
from tests.support.tables import every_row
from tests.support.weights import convert, libraries, torch_logits

gguf = pytest.importorskip("gguf", reason="GGUF needs the package gguf")
TOKENS_BT = np.random.default_rng(0).integers(0, 96, (2, 40)).astype(np.int32)
NAMED = {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"}
forward = jax.jit(decoder.apply, static_argnums=0)


QUICK = ("llama", "gemma3")


@every_row("name", QUICK)
def test_logits_are_those_of_the_model_that_was_written(name, tmp_path):
    compare_logits(name, tmp_path)


@pytest.mark.slow
@every_row("name", [name for name in written.MODELS if name not in QUICK])
def test_logits_of_the_other_families_are_those_of_the_model_that_was_written(name, tmp_path):
    compare_logits(name, tmp_path)


def compare_logits(name, tmp_path) -> None:
    model = written.torch_model(name)
    written.write(tmp_path / "model.gguf", name, model)
    ours = forward(*checkpoint.load_model(tmp_path / "model.gguf"), TOKENS_BT)
    expected = torch_logits(model, TOKENS_BT)
    assert np.abs(expected).max() > 1
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.slow
@every_row("name", ["llama", "qwen2", "qwen3", "gemma2", "gemma3"])
def test_transformers_reads_the_same_model_from_the_file(name, tmp_path):
    """An oracle that shares nothing with the writer of these tests, on quantized weights. It does not know olmo2, and
    reads neither soft caps nor some head sizes, so it is given the config.
    """
    pytest.importorskip("accelerate", reason="transformers needs it to read GGUF")
    torch, transformers = libraries()
    model = written.torch_model(name)
    kinds = {"token_embd.weight": "F16", "blk.1.ffn_down.weight": "Q8_0", "blk.0.ffn_down.weight": "Q4_1"}
    written.write(
        tmp_path / "model.gguf", name, model, kinds,
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.merges": ["a b"],
         "tokenizer.ggml.tokens": [*"abc", "ab"], "ARCH.vocab_size": 96},
    )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, config=model.config
    ).eval()
    ours = forward(*checkpoint.load_model(tmp_path / "model.gguf"), TOKENS_BT)
    expected = torch_logits(theirs, TOKENS_BT)
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(expected).max()


def dequantizable() -> list[str]:
    """The types that the package can dequantize."""
    names = []
    for kind in gguf.GGMLQuantizationType:
        block = np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8)
        with contextlib.suppress(NotImplementedError):
            gguf.quants.dequantize(block, kind)
            names.append(kind.name)
    assert set(names) >= NAMED
    return names


@every_row("kind", dequantizable())
def test_values_are_those_of_the_package_s_dequantization(kind, tmp_path, monkeypatch):
    """Bit for bit, read in slabs of rows; weights that the package cannot quantize are random blocks."""
    monkeypatch.setattr("star_jax.weights.sources.gguf_file._SLAB", 3 * 512)
    quantization = gguf.GGMLQuantizationType[kind]
    rng = np.random.default_rng(1)
    values = rng.standard_normal((10, 512)).astype(np.float32)
    try:
        stored = gguf.quants.quantize(values, quantization)
    except NotImplementedError:
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[quantization]
        stored = rng.integers(0, 256, (10, 512 // block_size * block_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("x", stored, raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = GgufFile(tmp_path / "a.gguf")
    assert file.tensors["x"].shape == (10, 512)
    with np.errstate(all="ignore"):  # random blocks have NaN and infinite scales
        expected = gguf.quants.dequantize(stored, quantization)
        result = file.read("x", np.dtype(np.float32))
    assert result.tobytes() == expected.tobytes()
    narrow = file.tensors["x"].dtype
    assert (narrow.itemsize == 2) == (kind in ("F16", "BF16"))
    assert file.read("x", narrow).astype(np.float32).tobytes() == expected.tobytes()


def test_the_package_can_dequantize_all_types_that_are_tested_here_and_more_are_refused(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("x", np.zeros((2, 292), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match=r"the tensor x has type Q8_K, which the gguf package cannot dequantize"):
        GgufFile(tmp_path / "a.gguf")


@every_row(
    ("factor", "low", "high", "original"),
    [(8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (4.0, 1.0, 3.5, 4096), (8.0, 2.0, 8.0, 16384)],
)
def test_llama_3_scaling_is_recovered_from_its_factors(factor, low, high, original, tmp_path):
    """As the published parameters, or as others that make the same factors."""
    _, transformers = libraries()
    rope = dict(
        rope_type="llama3", rope_theta=5e5, factor=factor, low_freq_factor=low, high_freq_factor=high,
        original_max_position_embeddings=original,
    )  # fmt: skip
    config = transformers.LlamaConfig(head_dim=64, rope_parameters=rope)
    found = source._llama3_parameters(written.rope_factors(config).astype(np.float64), 5e5)
    assert found == (factor, 1.0, high / low, original / low)


def test_other_factors_are_refused_and_factors_of_one_change_nothing(tmp_path):
    model = written.torch_model("llama")
    factors = written.rope_factors(model.config)
    path = tmp_path / "model.gguf"
    written.write(path, "llama", model, tensors={"rope_freqs.weight": factors * np.float32(1.001)})
    with pytest.raises(InputError, match=r"the factors in rope_freqs\.weight are not those of Llama 3's"):
        source.read_spec(path)
    written.write(path, "llama", model, tensors={"rope_freqs.weight": np.ones_like(factors)})
    assert source.read_spec(path).rope == Rope(8, 5e5)


def test_attention_of_the_27b_models_is_scaled_by_width_over_heads(tmp_path):
    model = written.torch_model("gemma2")
    written.write(tmp_path / "a.gguf", "gemma2", model)
    assert source.read_spec(tmp_path / "a.gguf").score_scale == 16**-0.5
    written.write(tmp_path / "b.gguf", "gemma2", model, metadata={"ARCH.block_count": 46})
    assert source.read_spec(tmp_path / "b.gguf").score_scale == 8**-0.5


def test_the_window_pattern_is_the_file_s_if_it_has_one(tmp_path):
    model = written.torch_model("gemma3")
    key = "ARCH.attention.sliding_window_pattern"
    for name, pattern, expected in (
        ("default", None, (True,) * 5 + (False, True)),
        ("every third", 3, (True, True, False) * 2 + (True,)),
        ("listed", [True, False, False, True, True, True, False], (True, False, False, True, True, True, False)),
    ):
        written.write(tmp_path / "a.gguf", "gemma3", model, metadata={key: pattern})
        assert source.read_spec(tmp_path / "a.gguf").local_layers == expected, name


@every_row("dtype", ["F16", "BF16"])
def test_a_model_of_one_half_precision_stays_in_it(dtype, tmp_path):
    model = written.torch_model("qwen2").half().float()  # llama.cpp keeps vectors in float32; here all are narrow
    every = dict.fromkeys(written._tensors(gguf, "qwen2", model), dtype)
    written.write(tmp_path / "model.gguf", "qwen2", model, every)
    opened = source.GgufSource(tmp_path / "model.gguf")
    assert opened.dtype.itemsize == 2
    assert opened.read("blocks/norm/scale", 0).dtype == opened.dtype
    written.write(tmp_path / "model.gguf", "qwen2", model, {**every, "output_norm.weight": "F32"})
    assert source.GgufSource(tmp_path / "model.gguf").dtype == np.float32


def llama(tmp_path, **changes):
    path = tmp_path / "model.gguf"
    written.write(path, "llama", written.torch_model("llama"), **changes)
    return path


BAD = [
    ("experts", dict(metadata={"ARCH.expert_count": 8}), "llama.expert_count is 8; star_jax supports 0 only"),
    ("unknown key", dict(metadata={"ARCH.residual_scale": 2.0}), "llama.residual_scale is 2.0; star_jax does not know"),
    ("yarn", dict(metadata={"ARCH.rope.scaling.type": "yarn"}), "rope_type is 'yarn'; star_jax supports"),
    ("partial rotary", dict(metadata={"ARCH.rope.dimension_count": 4}), "llama.rope.dimension_count is not the head"),
    ("no layers", dict(metadata={"ARCH.block_count": None}), "llama.block_count must be a positive integer, got None"),
    ("words", dict(metadata={"ARCH.embedding_length": "48"}), "llama.embedding_length must be a positive integer"),
    ("epsilon", dict(metadata={"ARCH.attention.layer_norm_rms_epsilon": -1.0}), "rms_norm_eps must be a positive"),
    ("split", dict(metadata={"split.count": 3}), "is one of 3 files of a model; join them"),
    ("other family", dict(metadata={"general.architecture": "mamba"}), "general.architecture is 'mamba'; star_jax"),
    ("deeper", dict(metadata={"ARCH.block_count": 4}), "the tensor blk.3."),
    ("missing", dict(tensors={"blk.1.ffn_up.weight": None}), "the tensor blk.1.ffn_up.weight [64, 48] is missing"),
    ("surplus", dict(tensors={"blk.1.ffn_x.weight": np.ones((2, 2), np.float32)}), "model has no tensor blk.1."),
    ("shape", dict(tensors={"blk.1.ffn_up.weight": np.ones((48, 64), np.float32)}), "ffn_up.weight has shape [48,"),
    ("NaN", dict(tensors={"output_norm.weight": np.full(48, np.nan, np.float32)}), "output_norm.weight holds values"),
    ("tokenizer kind", dict(metadata={"tokenizer.ggml.model": "t5"}), "tokenizer.ggml.model is 't5'; star_jax reads"),
    (
        "pre-tokenizer",
        dict(metadata={"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "x", "tokenizer.ggml.tokens": ["a"]}),
        "tokenizer.ggml.pre is 'x'; star_jax knows gpt-2, smollm",
    ),
    ("no tokens", dict(metadata={"tokenizer.ggml.model": "gpt2"}), "tokenizer.ggml.tokens must be list, got None"),
]  # fmt: skip


def refusal(path, tmp_path) -> str:
    """What the command says of a file."""
    status, out, errors = convert(path, "gguf", tmp_path / "out", "orbax")
    assert (status, out) == (2, ""), (status, out, errors)
    assert len(errors.splitlines()) == 1 and not (tmp_path / "out").exists()
    return errors


@every_row(("name", "changes", "expected"), BAD)
def test_what_is_not_supported_is_refused_by_name(name, changes, expected, tmp_path):
    assert expected in refusal(llama(tmp_path, **changes), tmp_path)


def test_files_that_are_cut_short_or_of_another_kind_are_refused(tmp_path):
    content = llama(tmp_path).read_bytes()
    table_end = content.index(b"output_norm.weight") + 60
    offset = content.index(b"blk.1.attn_q.weight") + len(b"blk.1.attn_q.weight") + 4 + 2 * 8 + 4  # axes, sizes, type
    rows = {
        "nothing": (b"", "cannot be read"),
        "text": (b"GGML" + content[4:], "is not a GGUF file"),
        "three bytes": (content[:3], "is not a GGUF file"),
        "version 1": (content[:4] + struct.pack("<I", 1) + content[8:], "is a GGUF file of version 1"),
        "big-endian": (content[:4] + struct.pack(">I", 3) + content[8:], "is a GGUF file of big-endian"),
        "counts": (content[:8] + struct.pack("<Q", 2**60) + content[16:], "cut short: the header"),
        "a long key": (content[:24] + struct.pack("<Q", 2**40) + content[32:], "cut short: the header"),
        "in the header": (content[:200], "cut short: the header"),
        "before the data": (content[:table_end], "cut short"),
        "a byte short": (content[: len(content) // 2], "cut short: the tensor"),
        "longer": (content + bytes(4096), f"and the file at {len(content) + 4096:,}"),
        "a tensor twice": (
            content.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight", 1),
            "the tensor blk.0.attn_q.weight is twice",
        ),
        "another tensor's data": (
            content[:offset] + bytes(8) + content[offset + 8 :],
            "the tensor blk.1.attn_q.weight begins at byte 0 of the data, not ",
        ),
        "a value twice": (
            content.replace(b"llama.rope.freq_base", b"llama.context_length", 1),
            "has the metadata 'llama.context_length' twice",
        ),
    }
    wrong = {}
    for name, (damaged, expected) in rows.items():
        (tmp_path / "bad.gguf").write_bytes(damaged)
        if expected not in (message := refusal(tmp_path / "bad.gguf", tmp_path)):
            wrong[name] = message
    assert not wrong


def test_no_damage_of_a_header_ends_in_another_exception(tmp_path):
    """Random bytes in the header: the file is refused with an InputError, or it is still a model."""
    content = bytearray(llama(tmp_path).read_bytes())
    header = GgufFile(tmp_path / "model.gguf")
    start = min(tensor.offset for tensor in header.tensors.values())
    rng = np.random.default_rng(4)
    refused = 0
    for _ in range(400):
        damaged = bytearray(content)
        for position in rng.integers(0, start, rng.integers(1, 4)):
            damaged[position] = rng.integers(0, 256)
        (tmp_path / "bad.gguf").write_bytes(damaged)
        try:
            source.GgufSource(tmp_path / "bad.gguf")
        except InputError:
            refused += 1
    assert 200 < refused < 400
