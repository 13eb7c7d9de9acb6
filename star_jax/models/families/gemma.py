"""Gemma 2 and 3 (text): norms around attention and MLP, scaled embeddings, local layers between global ones."""

from typing import Any

from star_jax.models.families.config_json import ConfigJson, layer_types
from star_jax.models.families.family import Family
from star_jax.models.families.llama import read_sizes, tensors, write_shared
from star_jax.models.families.tensors import TensorMapping
from star_jax.models.spec import DecoderSpec


def _read_shared(config: ConfigJson, global_every: int) -> dict[str, Any]:
    for name in ("hidden_activation", "hidden_act"):  # older files have both
        config.expect(name, "gelu_pytorch_tanh")
    config.expect("use_bidirectional_attention", False)
    sizes = read_sizes(config, n_kv_heads=4, head_dim=256)
    biases = config.flag("attention_bias", False)
    default = tuple(bool((n + 1) % global_every) for n in range(sizes["n_layers"]))
    local_layers = config.local_layers(sizes["n_layers"], default)
    window = config.integer("sliding_window", 4096)
    return {
        **sizes,
        "norm": "rms_plus_one",
        "norm_eps": config.number("rms_norm_eps", 1e-6),
        "norm_position": "both",
        "mlp": "geglu",
        "qkv_bias": biases,
        "out_bias": biases,
        "tied_head": config.flag("tie_word_embeddings", True),
        "window": window if local_layers else 0,
        "local_layers": local_layers,
        "embedding_scale": sizes["d_model"] ** 0.5,
        "attention_scale": config.number("query_pre_attn_scalar", 256) ** -0.5,
    }


def _write_shared(spec: DecoderSpec) -> dict[str, Any]:
    return {
        **write_shared(spec),
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": spec.qkv_bias,
        "query_pre_attn_scalar": round(spec.score_scale**-2),
        "sliding_window": spec.window or 4096,
        "layer_types": layer_types(spec.local_layers or (False,) * spec.n_layers),
        "attn_logit_softcapping": spec.attention_softcap or None,
        "final_logit_softcapping": spec.logit_softcap or None,
    }


def _read_gemma2(config: ConfigJson) -> DecoderSpec:
    values = _read_shared(config, global_every=2)
    return DecoderSpec(
        family="gemma2",
        **values,
        rope=config.rope(values["head_dim"]),
        attention_softcap=config.optional_number("attn_logit_softcapping", 50.0),
        logit_softcap=config.optional_number("final_logit_softcapping", 30.0),
    )


def _read_gemma3(config: ConfigJson) -> DecoderSpec:
    values = _read_shared(config, global_every=config.integer("sliding_window_pattern", 6))
    head_dim = values["head_dim"]
    local = config.rope(head_dim, 10_000.0, theta_name="rope_local_base_freq", kind="sliding_attention")
    return DecoderSpec(
        family="gemma3_text",
        **values,
        qk_norm="head",
        rope=config.rope(head_dim, 1_000_000.0),
        local_rope=local,
        attention_softcap=config.optional_number("attn_logit_softcapping", 0.0),
        logit_softcap=config.optional_number("final_logit_softcapping", 0.0),
    )


def _write_gemma3(spec: DecoderSpec) -> dict[str, Any]:
    return {**_write_shared(spec), "rope_local_base_freq": spec.local_rope.theta}


def _tensors(spec: DecoderSpec) -> tuple[TensorMapping, ...]:
    return tensors(
        spec,
        attention_norms=("input_layernorm", "post_attention_layernorm"),
        mlp_norms=("pre_feedforward_layernorm", "post_feedforward_layernorm"),
    )


GEMMA2 = Family("gemma2", "Gemma2ForCausalLM", _read_gemma2, _write_shared, _tensors, gguf="gemma2")
GEMMA3 = Family("gemma3_text", "Gemma3ForCausalLM", _read_gemma3, _write_gemma3, _tensors, gguf="gemma3")
