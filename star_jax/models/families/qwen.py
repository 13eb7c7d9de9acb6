"""Qwen2 (and 2.5): Llama with biases of query, key and value. Qwen3: norms of each head's queries and keys instead."""

from typing import Any

from star_jax.models.families.config_json import ConfigJson, layer_types
from star_jax.models.families.family import Family
from star_jax.models.families.llama import read_sizes, tensors, write_shared
from star_jax.models.spec import DecoderSpec


def _read_shared(config: ConfigJson, sizes: dict[str, Any]) -> dict[str, Any]:
    config.expect("hidden_act", "silu")
    n_layers = sizes["n_layers"]
    window = config.optional_integer("sliding_window", 4096)
    if not config.flag("use_sliding_window", False):
        window = 0
    config.expect("use_mrope", False)
    default = tuple(n >= config.integer("max_window_layers", 28) for n in range(n_layers)) if window else ()
    local_layers = config.local_layers(n_layers, default)
    return {
        **sizes,
        "norm_eps": config.number("rms_norm_eps", 1e-6),
        "tied_head": config.flag("tie_word_embeddings", False),
        "rope": config.rope(sizes["head_dim"]),
        "window": window if local_layers else 0,
        "local_layers": local_layers,
    }


def _write_shared(spec: DecoderSpec) -> dict[str, Any]:
    return {
        **write_shared(spec),
        "hidden_act": "silu",
        "use_sliding_window": bool(spec.local_layers),
        "sliding_window": spec.window or None,
        "layer_types": layer_types(spec.local_layers or (False,) * spec.n_layers),
    }


def _read_qwen2(config: ConfigJson) -> DecoderSpec:
    sizes = read_sizes(config, n_kv_heads=32)
    return DecoderSpec(family="qwen2", **_read_shared(config, sizes), qkv_bias=True)


def _write_qwen2(spec: DecoderSpec) -> dict[str, Any]:
    values = _write_shared(spec)
    del values["head_dim"]  # transformers takes width / heads and has no such attribute here
    return values


def _read_qwen3(config: ConfigJson) -> DecoderSpec:
    sizes = read_sizes(config, n_kv_heads=32, head_dim=128)
    biases = config.flag("attention_bias", False)
    return DecoderSpec(family="qwen3", **_read_shared(config, sizes), qkv_bias=biases, out_bias=biases, qk_norm="head")


def _write_qwen3(spec: DecoderSpec) -> dict[str, Any]:
    return {**_write_shared(spec), "attention_bias": spec.qkv_bias}


QWEN2 = Family("qwen2", "Qwen2ForCausalLM", _read_qwen2, _write_qwen2, tensors, gguf="qwen2")
QWEN3 = Family("qwen3", "Qwen3ForCausalLM", _read_qwen3, _write_qwen3, tensors, gguf="qwen3")
