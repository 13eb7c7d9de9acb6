"""GPT-J (Wang & Komatsuzaki, 2021)."""

from typing import Any

from star_jax.errors import InputError
from star_jax.models.families.config_json import ConfigJson
from star_jax.models.families.family import Family
from star_jax.models.families.tensors import TensorMapping, linear, vector
from star_jax.models.spec import DecoderSpec, Rope

_H = "transformer.h.{n}."
TENSORS = (
    vector("blocks/norm/scale", _H + "ln_1.weight"),
    vector("blocks/norm/bias", _H + "ln_1.bias"),
    linear("blocks/attention/query", _H + "attn.q_proj"),
    linear("blocks/attention/key", _H + "attn.k_proj"),
    linear("blocks/attention/value", _H + "attn.v_proj"),
    linear("blocks/attention/out", _H + "attn.out_proj", inputs=2),
    linear("blocks/mlp/in/kernel", _H + "mlp.fc_in"),
    vector("blocks/mlp/in/bias", _H + "mlp.fc_in.bias"),
    linear("blocks/mlp/out/kernel", _H + "mlp.fc_out"),
    vector("blocks/mlp/out/bias", _H + "mlp.fc_out.bias"),
    TensorMapping("embedding/embedding", "transformer.wte.weight", inputs=1),
    vector("final_norm/scale", "transformer.ln_f.weight"),
    vector("final_norm/bias", "transformer.ln_f.bias"),
    linear("head/kernel", "lm_head"),
    vector("head/bias", "lm_head.bias"),
)
_GELU = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # names of one function


def spec(*, rotary_dim: int, **sizes: int) -> DecoderSpec:
    """The spec of a GPT-J of these sizes; see `with_heads`. Raises InputError."""
    if rotary_dim < 2:
        raise InputError(f"model.rotary_dim is {rotary_dim}: it must be at least 2 for gptj")
    return DecoderSpec(
        family="gptj",
        **with_heads(sizes),
        norm="layer",
        parallel=True,
        mlp="gelu",
        mlp_bias=True,
        head_bias=True,
        rope=Rope(rotary_dim, layout="interleaved"),
    )


def with_heads(sizes: dict[str, int]) -> dict[str, Any]:
    """The sizes of a model whose heads divide its width and have keys of their own.

    `sizes`: n_layers, d_model, n_heads, d_mlp, vocab_size and max_positions. Raises InputError.
    """
    d_model, n_heads = sizes["d_model"], sizes["n_heads"]
    if n_heads < 1 or d_model % n_heads:
        raise InputError(f"model: d_model, {d_model}, must divide by n_heads, {n_heads}")
    return {**sizes, "n_kv_heads": n_heads, "head_dim": d_model // n_heads}


def read_sizes(config: ConfigJson) -> dict[str, int]:
    """The sizes that GPT-J's and GPT-2's config.json share. Raises InputError for what star_jax does not compute."""
    config.expect("activation_function", *_GELU)
    config.expect("layer_norm_epsilon", 1e-5)
    config.expect("scale_attn_weights", True)
    config.expect("add_cross_attention", False)
    width = config.integer("n_embd")
    return {
        "n_layers": config.integer("n_layer"),
        "d_model": width,
        "n_heads": config.integer("n_head"),
        "d_mlp": config.integer("n_inner", 4 * width),
        "vocab_size": config.integer("vocab_size"),
        "max_positions": config.integer("n_positions"),
    }


def write_sizes(spec: DecoderSpec) -> dict[str, Any]:
    """The inverse of `read_sizes`."""
    return {
        "vocab_size": spec.vocab_size,
        "n_positions": spec.max_positions,
        "n_embd": spec.d_model,
        "n_layer": spec.n_layers,
        "n_head": spec.n_heads,
        "n_inner": spec.d_mlp,
        "activation_function": _GELU[0],
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }


def _read(config: ConfigJson) -> DecoderSpec:
    config.expect("tie_word_embeddings", False)
    config.expect("rotary", True)
    return spec(**read_sizes(config), rotary_dim=config.integer("rotary_dim"))


def _write(spec: DecoderSpec) -> dict[str, Any]:
    return {**write_sizes(spec), "rotary_dim": spec.rope.dim, "tie_word_embeddings": False}


FAMILY = Family("gptj", "GPTJForCausalLM", _read, _write, lambda _: TENSORS)
