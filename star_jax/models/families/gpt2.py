"""GPT-2 (Radford et al., 2019). Matrices are stored as [inputs, outputs]; query, key and value are one tensor."""

from typing import Any

from star_jax.models.families.config_json import ConfigJson
from star_jax.models.families.family import Family
from star_jax.models.families.gptj import read_sizes, with_heads, write_sizes
from star_jax.models.families.tensors import TensorMapping, vector
from star_jax.models.spec import DecoderSpec

_H = "transformer.h.{n}."
TENSORS = (
    vector("blocks/norm/scale", _H + "ln_1.weight"),
    vector("blocks/norm/bias", _H + "ln_1.bias"),
    vector("blocks/mlp_norm/scale", _H + "ln_2.weight"),
    vector("blocks/mlp_norm/bias", _H + "ln_2.bias"),
    TensorMapping("blocks/attention/query", _H + "attn.c_attn.weight", inputs=1, part=(0, 3)),
    TensorMapping("blocks/attention/key", _H + "attn.c_attn.weight", inputs=1, part=(1, 3)),
    TensorMapping("blocks/attention/value", _H + "attn.c_attn.weight", inputs=1, part=(2, 3)),
    TensorMapping("blocks/attention/query_bias", _H + "attn.c_attn.bias", part=(0, 3)),
    TensorMapping("blocks/attention/key_bias", _H + "attn.c_attn.bias", part=(1, 3)),
    TensorMapping("blocks/attention/value_bias", _H + "attn.c_attn.bias", part=(2, 3)),
    TensorMapping("blocks/attention/out", _H + "attn.c_proj.weight", inputs=2),
    vector("blocks/attention/out_bias", _H + "attn.c_proj.bias"),
    TensorMapping("blocks/mlp/in/kernel", _H + "mlp.c_fc.weight", inputs=1),
    vector("blocks/mlp/in/bias", _H + "mlp.c_fc.bias"),
    TensorMapping("blocks/mlp/out/kernel", _H + "mlp.c_proj.weight", inputs=1),
    vector("blocks/mlp/out/bias", _H + "mlp.c_proj.bias"),
    TensorMapping("embedding/embedding", "transformer.wte.weight", inputs=1),
    TensorMapping("positions/embedding", "transformer.wpe.weight", inputs=1),
    vector("final_norm/scale", "transformer.ln_f.weight"),
    vector("final_norm/bias", "transformer.ln_f.bias"),
)


def spec(**sizes: int) -> DecoderSpec:
    """The spec of a GPT-2 of these sizes; see gptj.with_heads. Raises InputError."""
    return DecoderSpec(
        family="gpt2",
        **with_heads(sizes),
        norm="layer",
        mlp="gelu",
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        tied_head=True,
    )


def _read(config: ConfigJson) -> DecoderSpec:
    config.expect("tie_word_embeddings", True)
    config.expect("scale_attn_by_inverse_layer_idx", False)
    return spec(**read_sizes(config))


def _write(spec: DecoderSpec) -> dict[str, Any]:
    return {**write_sizes(spec), "tie_word_embeddings": True}


FAMILY = Family("gpt2", "GPT2LMHeadModel", _read, _write, lambda _: TENSORS)
