"""What a family of models is: its name, its spec as a function of config.json, and the table of its tensors' names."""

from collections.abc import Callable
from typing import Any, NamedTuple

from star_jax.models.families.config_json import ConfigJson
from star_jax.models.families.tensors import TensorMapping
from star_jax.models.spec import DecoderSpec


class Family(NamedTuple):
    """One `model_type` of Hugging Face."""

    name: str  # model_type
    architecture: str  # transformers' class, e.g. "LlamaForCausalLM"
    read: Callable[[ConfigJson], DecoderSpec]  # raises InputError for a value that star_jax does not compute
    write: Callable[[DecoderSpec], dict[str, Any]]  # the attributes that `read` reads
    tensors: Callable[[DecoderSpec], tuple[TensorMapping, ...]]
    gguf: str = ""  # `general.architecture` of its GGUF files; "": it has none
