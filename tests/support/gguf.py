"""Writes GGUF files as llama.cpp's converter does, from tiny random models of transformers.

The converter's changes are written down here once more, in the other direction than star_jax undoes them.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.weights import libraries

_SIZES = dict(
    vocab_size=96, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=6,
    num_key_value_heads=2, max_position_embeddings=16384,
)  # fmt: skip
_LLAMA3 = dict(
    rope_type="llama3", rope_theta=500000.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)  # fmt: skip
# Name -> (architecture in the file, transformers' class, attributes).
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", {**_SIZES, "rms_norm_eps": 1e-5, "rope_parameters": _LLAMA3}),
    "llama, biases": ("llama", "Llama", {**_SIZES, "attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama, tied, linear": (
        "llama",
        "Llama",
        {
            **_SIZES,
            "tie_word_embeddings": True,
            "rope_parameters": dict(rope_type="linear", factor=4.0, rope_theta=1e4),
        },
    ),
    "qwen2": ("qwen2", "Qwen2", {**_SIZES, "rope_parameters": dict(rope_type="default", rope_theta=1e6)}),
    "qwen3": ("qwen3", "Qwen3", {**_SIZES, "head_dim": 16, "tie_word_embeddings": True}),
    "gemma2": (
        "gemma2",
        "Gemma2",
        {
            **_SIZES,
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "gemma3",
        "Gemma3",
        {**_SIZES, "num_hidden_layers": 7, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8},
    ),
    "olmo2": ("olmo2", "Olmo2", {**_SIZES, "rope_parameters": dict(rope_type="default", rope_theta=5e5)}),
}


def torch_model(name: str, seed: int = 0):
    """A random model of MODELS, float32."""
    torch, transformers = libraries()
    _, kind, attributes = MODELS[name]
    config_class = getattr(transformers, f"{kind}TextConfig" if kind == "Gemma3" else f"{kind}Config")
    model = (
        getattr(transformers, f"{kind}ForCausalLM")(config_class(**attributes, attn_implementation="eager"))
        .float()
        .eval()
    )
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in parameter_name and "Gemma" not in kind else 0.0
            values = centre + 0.3 * rng.standard_normal(tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))
    return model


def write(
    path: Path,
    name: str,
    model,
    kinds: dict[str, str] | None = None,
    metadata: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray | None] | None = None,
) -> None:
    """Writes a torch model of MODELS as GGUF.

    Args:
      kinds: name of a tensor in the file -> its type, "F32" by default.
      metadata: more values, or others; None leaves one out.
      tensors: more tensors, or others; None leaves one out.
    """
    gguf = pytest.importorskip("gguf")
    architecture = MODELS[name][0]
    arrays = {**_tensors(gguf, architecture, model), **(tensors or {})}
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**_metadata(architecture, model.config), **(metadata or {})}.items():
        if value is not None:
            add_value(writer, key.replace("ARCH", architecture), value)
    for tensor_name, array in arrays.items():
        if array is None:
            continue
        kind = gguf.GGMLQuantizationType[(kinds or {}).get(tensor_name, "F32")]
        writer.add_tensor(tensor_name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_value(writer, key: str, value: Any) -> None:
    """Adds one value of the metadata, with the type that llama.cpp's converter would give it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def _metadata(architecture: str, config) -> dict[str, Any]:
    rope = dict(config.rope_parameters)
    if "full_attention" in rope:
        rope = dict(rope["full_attention"])
    values = {
        "ARCH.block_count": config.num_hidden_layers,
        "ARCH.context_length": config.max_position_embeddings,
        "ARCH.embedding_length": config.hidden_size,
        "ARCH.feed_forward_length": config.intermediate_size,
        "ARCH.attention.head_count": config.num_attention_heads,
        "ARCH.attention.head_count_kv": config.num_key_value_heads,
        "ARCH.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "ARCH.rope.freq_base": float(rope["rope_theta"]),
    }
    head_dim = getattr(config, "head_dim", None)
    if architecture != "qwen2" and head_dim:
        values |= {"ARCH.attention.key_length": head_dim, "ARCH.attention.value_length": head_dim}
    if architecture == "llama":
        values |= {"ARCH.vocab_size": config.vocab_size, "ARCH.rope.dimension_count": head_dim}
    if rope.get("rope_type") == "linear":
        values |= {"ARCH.rope.scaling.type": "linear", "ARCH.rope.scaling.factor": float(rope["factor"])}
    if architecture.startswith("gemma"):
        values["ARCH.attention.sliding_window"] = config.sliding_window
    if architecture == "gemma2":
        values["ARCH.attn_logit_softcapping"] = config.attn_logit_softcapping
        values["ARCH.final_logit_softcapping"] = config.final_logit_softcapping
    return values


def _tensors(gguf, architecture: str, model) -> dict[str, np.ndarray]:
    config = model.config
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    arrays = {}
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture == "llama" and ".q_proj." in name:
            array = _interleaved(array, config.num_attention_heads)
        if architecture == "llama" and ".k_proj." in name:
            array = _interleaved(array, config.num_key_value_heads)
        if architecture.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        arrays[names.get_name(name, (".weight", ".bias"))] = array
    if config.rope_parameters.get("rope_type") == "llama3":
        arrays["rope_freqs.weight"] = rope_factors(config)
    return arrays


def rope_factors(config) -> np.ndarray:
    """What each rotary frequency of a model with Llama 3's scaling is divided by, float32."""
    rope = config.rope_parameters
    old = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    factors = []
    for i in range(0, config.head_dim, 2):
        wavelength = 2 * math.pi * rope["rope_theta"] ** (i / config.head_dim)
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(factor)
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def _interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)
