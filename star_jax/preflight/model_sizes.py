"""Sizes of published models by name, as their public config.json gives them: nothing is downloaded for a preflight.

`families.read_spec` makes the spec, so a family's rules and defaults are those of a model directory.
"""

import difflib
from typing import Any

from star_jax.config import GPTJ_6B
from star_jax.errors import InputError
from star_jax.models import families
from star_jax.models.spec import DecoderSpec


def spec_of(name: str) -> DecoderSpec:
    """The spec of a published model: "Qwen3-4B", "qwen3-4b" or "Qwen/Qwen3-4B".

    Raises InputError with the known names, the nearest first, for another name.
    """
    by_folded = {known.casefold(): known for known in MODELS}
    folded = name.rpartition("/")[2].casefold()
    if folded not in by_folded:
        near = difflib.get_close_matches(folded, by_folded, n=3, cutoff=0.3)
        names = [by_folded[match] for match in (*near, *(other for other in by_folded if other not in near))]
        raise InputError(f"--model={name}: no sizes under this name; there are {', '.join(names)}")
    known = by_folded[folded]
    return families.read_spec(known, MODELS[known])


def _sizes(layers: int, width: int, mlp: int, heads: int, kv_heads: int, head_dim: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "intermediate_size": mlp,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
    }


def _qwen3(*sizes: int, tied: bool) -> dict[str, Any]:
    shared = {"vocab_size": 151936, "max_position_embeddings": 40960, "rope_theta": 1e6, "rms_norm_eps": 1e-6}
    return {"model_type": "qwen3", **_sizes(*sizes), **shared, "tie_word_embeddings": tied}


def _llama3(*sizes: int, factor: float, tied: bool) -> dict[str, Any]:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    shared = {"vocab_size": 128256, "max_position_embeddings": 131072, "rope_theta": 5e5, "rms_norm_eps": 1e-5}
    return {"model_type": "llama", **_sizes(*sizes), **shared, "rope_scaling": scaling, "tie_word_embeddings": tied}


def _smollm2(*sizes: int, theta: float) -> dict[str, Any]:
    shared = {"vocab_size": 49152, "max_position_embeddings": 8192, "rope_theta": theta, "rms_norm_eps": 1e-5}
    return {"model_type": "llama", **_sizes(*sizes), **shared, "tie_word_embeddings": True}


def _gemma3(*sizes: int) -> dict[str, Any]:
    """Five layers with a window of 512 tokens, then one without, and so on."""
    return {
        "model_type": "gemma3_text",
        **_sizes(*sizes),
        "vocab_size": 262144,
        "max_position_embeddings": 32768,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
    }


def _gpt(kind: str, layers: int, width: int, heads: int, vocabulary: int, positions: int) -> dict[str, Any]:
    sizes = {"n_layer": layers, "n_embd": width, "n_head": heads}
    return {"model_type": kind, **sizes, "vocab_size": vocabulary, "n_positions": positions}


_GPTJ: dict[str, Any] = GPTJ_6B
_GPTJ_6B = _gpt("gptj", *(_GPTJ[n] for n in ("n_layers", "d_model", "n_heads", "vocab_size", "max_positions")))

# Name -> the values of config.json that fix the function. Layers, width, MLP, heads, KV heads and head size come first.
MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": _qwen3(28, 1024, 3072, 16, 8, 128, tied=True),
    "Qwen3-1.7B": _qwen3(28, 2048, 6144, 16, 8, 128, tied=True),
    "Qwen3-4B": _qwen3(36, 2560, 9728, 32, 8, 128, tied=True),
    "Qwen3-8B": _qwen3(36, 4096, 12288, 32, 8, 128, tied=False),
    "Llama-3.1-8B": _llama3(32, 4096, 14336, 32, 8, 128, factor=8.0, tied=False),
    "Llama-3.2-1B": _llama3(16, 2048, 8192, 32, 8, 64, factor=32.0, tied=True),
    "Llama-3.2-3B": _llama3(28, 3072, 8192, 24, 8, 128, factor=32.0, tied=True),
    "SmolLM2-135M": _smollm2(30, 576, 1536, 9, 3, 64, theta=1e5),
    "SmolLM2-360M": _smollm2(32, 960, 2560, 15, 5, 64, theta=1e5),
    "SmolLM2-1.7B": _smollm2(24, 2048, 8192, 32, 32, 64, theta=1.3e5),
    "Gemma-3-270M": _gemma3(18, 640, 2048, 4, 1, 256),
    "Gemma-3-1B": _gemma3(26, 1152, 6912, 4, 1, 256),
    "GPT-J-6B": {**_GPTJ_6B, "rotary_dim": _GPTJ["rotary_dim"], "tie_word_embeddings": False},
    "GPT-2": _gpt("gpt2", 12, 768, 12, 50257, 1024),
}
