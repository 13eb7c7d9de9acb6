"""OLMo 2: norms after attention and MLP instead of before, and norms of queries and keys over all heads together."""

from typing import Any

from star_jax.models.families.config_json import ConfigJson
from star_jax.models.families.family import Family
from star_jax.models.families.llama import read_sizes, tensors, write_shared
from star_jax.models.families.tensors import TensorMapping
from star_jax.models.spec import DecoderSpec


def _read(config: ConfigJson) -> DecoderSpec:
    config.expect("hidden_act", "silu")
    sizes = read_sizes(config)
    biases = config.flag("attention_bias", False)
    return DecoderSpec(
        family="olmo2",
        **sizes,
        norm_eps=config.number("rms_norm_eps", 1e-5),
        norm_position="after",
        qkv_bias=biases,
        out_bias=biases,
        tied_head=config.flag("tie_word_embeddings", False),
        qk_norm="all",
        rope=config.rope(sizes["head_dim"]),
    )


def _write(spec: DecoderSpec) -> dict[str, Any]:
    return {
        **write_shared(spec),
        "hidden_act": "silu",
        "attention_bias": spec.qkv_bias,
    }


def _tensors(spec: DecoderSpec) -> tuple[TensorMapping, ...]:
    names = ("post_attention_layernorm",), ("post_feedforward_layernorm",)
    return tensors(spec, attention_norms=names[0], mlp_norms=names[1])


FAMILY = Family("olmo2", "Olmo2ForCausalLM", _read, _write, _tensors, gguf="olmo2")
