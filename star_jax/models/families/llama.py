"""Llama 1, 2 and 3 (SmolLM2, TinyLlama), and Mistral, which is Llama with a window."""

from typing import Any

from star_jax.models.families.config_json import ConfigJson, rope_attributes
from star_jax.models.families.family import Family
from star_jax.models.families.tensors import TensorMapping, linear, vector
from star_jax.models.spec import DecoderSpec

_L = "model.layers.{n}."


def read_sizes(config: ConfigJson, n_kv_heads: int | None = None, head_dim: int | None = None) -> dict[str, Any]:
    """The attributes that have the same name in all families since Llama.

    `n_kv_heads`, `head_dim`: the family's defaults, if they are not `num_attention_heads` and width / heads.
    """
    width, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    config.expect("pretraining_tp", 1)
    config.expect("rope_interleaved", False)
    return {
        "n_layers": config.integer("num_hidden_layers"),
        "d_model": width,
        "n_heads": heads,
        "n_kv_heads": config.integer("num_key_value_heads", n_kv_heads or heads),
        "head_dim": config.integer("head_dim", head_dim or width // heads),
        "d_mlp": config.integer("intermediate_size"),
        "vocab_size": config.integer("vocab_size"),
        "max_positions": config.integer("max_position_embeddings"),
    }


def write_shared(spec: DecoderSpec) -> dict[str, Any]:
    """What `read_sizes` reads, and the other attributes that have the same name in all families since Llama."""
    return {
        "num_hidden_layers": spec.n_layers,
        "hidden_size": spec.d_model,
        "num_attention_heads": spec.n_heads,
        "num_key_value_heads": spec.n_kv_heads,
        "head_dim": spec.head_dim,
        "intermediate_size": spec.d_mlp,
        "vocab_size": spec.vocab_size,
        "max_position_embeddings": spec.max_positions,
        "rms_norm_eps": spec.norm_eps,
        "tie_word_embeddings": spec.tied_head,
        **rope_attributes(spec.rope),
    }


def tensors(
    spec: DecoderSpec, *, attention_norms: tuple[str, ...] = ("input_layernorm",), mlp_norms: tuple[str, ...] = ()
) -> tuple[TensorMapping, ...]:
    """The tensors that have the same name in all families since Llama, as far as the spec has them.

    `attention_norms`, `mlp_norms`: the file's names of the norms around attention and the MLP, in the order of
    computation; Llama's by default.
    """
    norm_leaves = {"before": (0,), "after": (1,), "both": (0, 1)}[spec.norm_position]
    mlp_norms = mlp_norms or ("post_attention_layernorm",)
    names = [
        *zip([("norm", "post_norm")[i] for i in norm_leaves], attention_norms, strict=True),
        *zip([("mlp_norm", "mlp_post_norm")[i] for i in norm_leaves], mlp_norms, strict=True),
    ]
    rows = [vector(f"blocks/{leaf}/scale", f"{_L}{name}.weight") for leaf, name in names]
    for leaf, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
        rows.append(linear(f"blocks/attention/{leaf}", f"{_L}self_attn.{name}"))
        if spec.qkv_bias:
            rows.append(vector(f"blocks/attention/{leaf}_bias", f"{_L}self_attn.{name}.bias"))
    rows.append(linear("blocks/attention/out", _L + "self_attn.o_proj", inputs=2))
    if spec.out_bias:
        rows.append(vector("blocks/attention/out_bias", _L + "self_attn.o_proj.bias"))
    if spec.qk_norm:
        rows.append(vector("blocks/attention/query_norm/scale", _L + "self_attn.q_norm.weight"))
        rows.append(vector("blocks/attention/key_norm/scale", _L + "self_attn.k_norm.weight"))
    for leaf, name in (("gate", "gate_proj"), ("in", "up_proj"), ("out", "down_proj")):
        rows.append(linear(f"blocks/mlp/{leaf}/kernel", f"{_L}mlp.{name}"))
        if spec.mlp_bias:
            rows.append(vector(f"blocks/mlp/{leaf}/bias", f"{_L}mlp.{name}.bias"))
    rows.append(TensorMapping("embedding/embedding", "model.embed_tokens.weight", inputs=1))
    rows.append(vector("final_norm/scale", "model.norm.weight"))
    if not spec.tied_head:
        rows.append(linear("head/kernel", "lm_head"))
    return tuple(rows)


def _read_llama(config: ConfigJson) -> DecoderSpec:
    config.expect("hidden_act", "silu")
    sizes = read_sizes(config)
    biases = config.flag("attention_bias", False)
    return DecoderSpec(
        family="llama",
        **sizes,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        qkv_bias=biases,
        out_bias=biases,
        mlp_bias=config.flag("mlp_bias", False),
        tied_head=config.flag("tie_word_embeddings", False),
        rope=config.rope(sizes["head_dim"]),
    )


def _write_llama(spec: DecoderSpec) -> dict[str, Any]:
    return {
        **write_shared(spec),
        "hidden_act": "silu",
        "attention_bias": spec.qkv_bias,
        "mlp_bias": spec.mlp_bias,
    }


def _read_mistral(config: ConfigJson) -> DecoderSpec:
    config.expect("hidden_act", "silu")
    sizes = read_sizes(config, n_kv_heads=8)
    window = config.optional_integer("sliding_window", 4096)
    return DecoderSpec(
        family="mistral",
        **sizes,
        norm_eps=config.number("rms_norm_eps", 1e-6),
        tied_head=config.flag("tie_word_embeddings", False),
        rope=config.rope(sizes["head_dim"]),
        window=window,
        local_layers=(True,) * sizes["n_layers"] if window else (),
    )


def _write_mistral(spec: DecoderSpec) -> dict[str, Any]:
    return {
        **write_shared(spec),
        "hidden_act": "silu",
        "sliding_window": spec.window or None,
    }


LLAMA = Family("llama", "LlamaForCausalLM", _read_llama, _write_llama, tensors, gguf="llama")
MISTRAL = Family("mistral", "MistralForCausalLM", _read_mistral, _write_mistral, tensors)
