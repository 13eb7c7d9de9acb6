"""The families of models: each is a spec as a function of config.json, and the names of its tensors.

                norms          block       MLP     biases        positions              more
    gptj        layer, before  parallel    gelu    MLP, head     rotary, interleaved
    gpt2        layer, before  sequential  gelu    all but head  learned                tied head
    llama       rms, before    sequential  swiglu  on request    rotary, llama3 scaling grouped queries, from here on
    mistral     rms, before    sequential  swiglu                rotary                 window in all layers or none
    qwen2       rms, before    sequential  swiglu  q, k, v       rotary                 window in last layers or none
    qwen3       rms, before    sequential  swiglu  on request    rotary                 as qwen2, and q and k normed
    gemma2      1 + rms, both  sequential  geglu   on request    rotary                 window in every other layer,
                                                                                        scaled embeddings, soft caps
    gemma3_text 1 + rms, both  sequential  geglu   on request    rotary, another theta  window in 5 of 6 layers, scaled
                                                                 in local layers        embeddings, q and k normed
    olmo2       rms, after     sequential  swiglu  on request    rotary                 q and k normed over all heads

A new family is a module here, one line in `FAMILIES`, and a case in tests/models/families_test.py.
"""

from pathlib import Path
from typing import Any

from star_jax.config import ModelConfig
from star_jax.errors import InputError, shown
from star_jax.models.decoder import Decoder
from star_jax.models.families import gemma, gpt2, gptj, llama, olmo2, qwen
from star_jax.models.families.config_json import ConfigJson
from star_jax.models.families.family import Family
from star_jax.models.spec import DecoderSpec

FAMILIES = {
    family.name: family
    for family in (
        gptj.FAMILY,
        gpt2.FAMILY,
        llama.LLAMA,
        llama.MISTRAL,
        qwen.QWEN2,
        qwen.QWEN3,
        gemma.GEMMA2,
        gemma.GEMMA3,
        olmo2.FAMILY,
    )
}


def of(spec: DecoderSpec) -> Family:
    """The family of a spec."""
    return FAMILIES[spec.family]


def read_spec(path: Path | str, values: dict[str, Any]) -> DecoderSpec:
    """The spec of a config.json with these values.

    `path`: the file, for messages. Raises InputError for another kind of model and for each attribute that star_jax
    does not compute.
    """
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise InputError(f"{path}: model_type is {shown(kind)}; star_jax supports {', '.join(FAMILIES)}")
    config = ConfigJson(path, values)
    try:
        spec = FAMILIES[kind].read(config)
    except InputError as error:
        raise error if str(error).startswith(f"{path}:") else InputError(f"{path}: {error}") from None
    config.finish()
    return spec


def spec_of(config: ModelConfig) -> DecoderSpec:
    """The spec of a model that is made from the sizes of `config.model`. Raises InputError."""
    config.check_complete()
    sizes = {
        name: getattr(config, name)
        for name in ("n_layers", "d_model", "n_heads", "d_mlp", "vocab_size", "max_positions")
    }
    if config.architecture in ("", "gptj"):
        return gptj.spec(**sizes, rotary_dim=config.rotary_dim)
    if config.architecture == "gpt2":
        if config.rotary_dim:
            raise InputError(f"model.rotary_dim is {config.rotary_dim}: it must be 0 for gpt2")
        return gpt2.spec(**sizes)
    raise InputError(
        f"model.architecture: {config.architecture} models are not made from sizes; give base.path, or gptj or gpt2"
    )


def build(config: ModelConfig, spec: DecoderSpec | None = None) -> Decoder:
    """The decoder that runs as `config.model` says. Default spec: of the config's sizes."""
    return Decoder(
        spec or spec_of(config),
        compute_dtype=config.compute_dtype,
        remat=config.remat,
        scan_unroll=config.scan_unroll,
    )
