"""Tiny models of all families: specs for our own passes, and random transformers models with real config values."""

import copy
import dataclasses
import functools
from typing import Any

import numpy as np

from star_jax.models import families
from star_jax.models.spec import DecoderSpec
from tests.support.models import TINY
from tests.support.weights import libraries

_ROPE_LLAMA3 = dict(
    rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=8192
)
_SMALL = dict(hidden_size=48, intermediate_size=80, num_hidden_layers=3, vocab_size=97, num_attention_heads=4)
_GEMMA2 = dict(
    query_pre_attn_scalar=256, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, tie_word_embeddings=True
)
_GEMMA3 = dict(
    query_pre_attn_scalar=256, rope_theta=1e6, rope_local_base_freq=1e4, rms_norm_eps=1e-6, tie_word_embeddings=True
)
# Case -> (model_type, config.json): real values of theta, scaling, windows, caps and norms; tiny widths. Texts have 600
# tokens. Windows are longer and shorter than that, heads larger than width / heads, models tied and untied.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama 3.2": ("llama", dict(**_SMALL, num_key_value_heads=2, head_dim=16, rope_theta=5e5, rms_norm_eps=1e-5,
                                rope_scaling=_ROPE_LLAMA3, max_position_embeddings=131072, tie_word_embeddings=True)),
    "llama with biases": ("llama", dict(**_SMALL, num_key_value_heads=4, attention_bias=True, mlp_bias=True,
                                        rms_norm_eps=1e-6, rope_scaling=dict(type="linear", factor=2.0))),
    "smollm2": ("llama", dict(**{**_SMALL, "num_attention_heads": 3}, num_key_value_heads=1, rope_theta=1e5,
                              rms_norm_eps=1e-5, max_position_embeddings=8192, tie_word_embeddings=True)),
    "mistral 0.1": ("mistral", dict(**_SMALL, num_key_value_heads=2, sliding_window=4096, rms_norm_eps=1e-5)),
    "mistral, short window": ("mistral", dict(**_SMALL, num_key_value_heads=2, sliding_window=200, rope_theta=1e6)),
    "qwen2.5": ("qwen2", dict(**_SMALL, num_key_value_heads=2, rope_theta=1e6, rms_norm_eps=1e-6,
                              max_position_embeddings=32768, tie_word_embeddings=True)),
    "qwen2, window": ("qwen2", dict(**_SMALL, num_key_value_heads=1, use_sliding_window=True, sliding_window=128,
                                    max_window_layers=1, rope_theta=1e6)),
    "qwen3": ("qwen3", dict(**_SMALL, num_key_value_heads=2, head_dim=32, rope_theta=1e6, rms_norm_eps=1e-6,
                            max_position_embeddings=40960, tie_word_embeddings=True)),
    "gemma2": ("gemma2", dict(**_SMALL, **_GEMMA2, num_key_value_heads=2, head_dim=16, sliding_window=4096)),
    "gemma2, short window": ("gemma2", dict(**{**_SMALL, **_GEMMA2, "attn_logit_softcapping": 2.0},
                                            num_key_value_heads=1, head_dim=32, sliding_window=100)),
    "gemma3": ("gemma3_text", dict(**{**_SMALL, "num_hidden_layers": 7}, **_GEMMA3, num_key_value_heads=1, head_dim=24,
                                   sliding_window=512)),
    "gemma3, long context": ("gemma3_text", dict(**_SMALL, **_GEMMA3, num_key_value_heads=2, head_dim=16,
                                                 sliding_window=64,
                                                 layer_types=["full_attention", *["sliding_attention"] * 2],
                                                 rope_scaling=dict(rope_type="linear", factor=8.0))),
    "olmo2": ("olmo2", dict(**_SMALL, num_key_value_heads=2, rope_theta=5e5, rms_norm_eps=1e-6)),
}  # fmt: skip
# Of the families after GPT-J and GPT-2, for passes that are compared with each other: five tokens exceed the windows.
_TINY = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, vocab_size=20, num_attention_heads=4)
_TINY_CONFIGS: dict[str, dict[str, Any]] = {
    "llama": dict(num_key_value_heads=2, rope_scaling={**_ROPE_LLAMA3, "original_max_position_embeddings": 16}),
    "mistral": dict(num_key_value_heads=2, sliding_window=4),
    "qwen2": dict(num_key_value_heads=1),
    "qwen3": dict(num_key_value_heads=2, head_dim=16),
    "gemma2": dict(num_key_value_heads=2, head_dim=8, sliding_window=3, attn_logit_softcapping=1.5,
                   final_logit_softcapping=4.0, query_pre_attn_scalar=8),
    "gemma3_text": dict(num_hidden_layers=3, num_key_value_heads=1, head_dim=16, sliding_window=3,
                        layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    "olmo2": dict(num_key_value_heads=2),
}  # fmt: skip


LATER = tuple(_TINY_CONFIGS)


@functools.cache
def tiny_spec(family: str, tied: bool | None = None) -> DecoderSpec:
    """A spec of the sizes of TINY. `tied`: whether the head is the embedding; None: as in the family."""
    if family in ("gptj", "gpt2"):
        config = dataclasses.replace(TINY, architecture=family, rotary_dim=TINY.rotary_dim if family == "gptj" else 0)
        return families.spec_of(config)
    values = {**_TINY, "max_position_embeddings": 512, **_TINY_CONFIGS[family], "model_type": family}
    spec = families.read_spec("config.json", values)
    return spec if tied is None else dataclasses.replace(spec, tied_head=tied)


def torch_case(case: str, seed: int = 0) -> Any:
    """A transformers model with random weights that make logits of order 10."""
    torch, transformers = libraries()
    kind, values = copy.deepcopy(CASES[case])  # transformers writes into its arguments
    # A padding id would get no gradient in torch's embedding.
    config = transformers.AutoConfig.for_model(kind, **values, pad_token_id=None, attn_implementation="eager")
    theirs = transformers.AutoModelForCausalLM.from_config(config).float().eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            # Sharper attention would amplify the rounding of rotary angles, of which transformers' are the less exact.
            scale = 0.12 if name.endswith(("q_proj.weight", "k_proj.weight")) else 0.25
            values_of = scale * rng.standard_normal(tuple(parameter.shape))
            if parameter.ndim == 1 and "bias" not in name and "gemma" not in kind:  # a norm's scale, not Gemma's 1 + w
                values_of += 1
            elif name.endswith(("embed_tokens.weight", "lm_head.weight")):
                values_of *= 2
            parameter.copy_(torch.from_numpy(values_of.astype(np.float32)))
    return theirs
