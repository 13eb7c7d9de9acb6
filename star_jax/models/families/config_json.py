"""A model's config.json, read attribute by attribute: what nobody has read is refused by name."""

from pathlib import Path
from typing import Any

from star_jax.errors import InputError, shown
from star_jax.json_reader import is_number
from star_jax.models.spec import MAX_LAYERS, MAX_SIZE, Rope

_LAYERS = ("num_hidden_layers", "n_layer")

# Attributes that do not change the logits of a text: provenance, dtypes, token ids (which tokenizers read), training
# and generation settings. Dropout is one of them: star_jax trains without.
_IGNORED = """
    _name_or_path architectures model_type transformers_version torch_dtype dtype use_cache initializer_range
    bos_token_id eos_token_id pad_token_id unk_token_id sep_token_id cls_token_id mask_token_id
    attention_dropout attn_pdrop embd_pdrop resid_pdrop embedding_dropout hidden_dropout gradient_checkpointing
    output_attentions output_hidden_states return_dict tokenizer_class task_specific_params id2label label2id
    cache_implementation _attn_implementation attn_implementation _attn_implementation_autoset
    is_llama_config transformers.js_config unsloth_fixed unsloth_version max_window_layers sliding_window_pattern
    _sliding_window_pattern problem_type chunk_size_feed_forward torchscript
    n_ctx summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout
    reorder_and_upcast_attn
"""
IGNORED = frozenset(_IGNORED.split())
_QUANTIZED = frozenset(("quantization_config", "compression_config", "quantization"))  # of transformers, of MLX


class ConfigJson:
    """The attributes of a config.json. A null counts as absent. All methods raise InputError naming file and attribute.

    `path`: the file, for messages.
    """

    def __init__(self, path: Path | str, values: dict[str, Any]) -> None:
        self.path = path
        self._nulls = {name for name, value in values.items() if value is None}
        self._values = {name: value for name, value in values.items() if value is not None}
        self._read: set[str] = set()

    def integer(self, name: str, default: int | None = None) -> int:
        """An integer of at least 1."""
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{self.path}: {name} must be a positive integer, got {shown(value)}")
        if value > (limit := MAX_LAYERS if name in _LAYERS else MAX_SIZE):
            raise InputError(f"{self.path}: {name} must be at most {limit:,}, got {shown(value)}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive, finite number."""
        return self._number(name, self._get(name, default))

    def optional_integer(self, name: str, default: int) -> int:
        """Like `integer`, but a null is 0 and not the default."""
        return 0 if name in self._nulls else self.integer(name, default)

    def optional_number(self, name: str, default: float) -> float:
        """Like `number`, but a null is 0 and not the default, which may be 0."""
        if name not in self._values and (name in self._nulls or default == 0):
            return 0.0
        return self.number(name, default)

    def flag(self, name: str, default: bool) -> bool:
        """A boolean."""
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise InputError(f"{self.path}: {name} must be true or false, got {shown(value)}")
        return value

    def expect(self, name: str, *supported: Any) -> None:
        """Refuses any value of the attribute that is not supported. An absent one is supported."""
        value = self._get(name, supported[0])
        if value not in supported or isinstance(value, bool) != isinstance(supported[0], bool):
            known = " or ".join(map(repr, supported))
            raise InputError(f"{self.path}: {name} is {shown(value)}; star_jax supports {known} only")

    def local_layers(self, n_layers: int, default: tuple[bool, ...]) -> tuple[bool, ...]:
        """Which layers have a window, from `layer_types`; () if none has."""
        types = self._get("layer_types", [("full_attention", "sliding_attention")[local] for local in default])
        known = ("full_attention", "sliding_attention")
        if not isinstance(types, list) or len(types) not in (0, n_layers) or any(kind not in known for kind in types):
            raise InputError(
                f"{self.path}: layer_types must be {n_layers} of {' and '.join(known)}, got {shown(types)}"
            )
        local = tuple(kind == "sliding_attention" for kind in types)
        return local if any(local) else ()

    def rope(
        self, dim: int, theta: float = 10000.0, theta_name: str = "rope_theta", kind: str = "full_attention"
    ) -> Rope:
        """Rotary positions in the half-split layout, from `rope_parameters` or from `rope_theta` and `rope_scaling`.

        Args:
          theta: default of the attribute `theta_name`.
          kind: the layers' kind, where `rope_parameters` has a set for each.
        """
        theta = self.number(theta_name, theta)
        values = self._get("rope_scaling", {}) if kind == "full_attention" else {}
        parameters = self._get("rope_parameters", {})
        for name, group in (("rope_scaling", values), ("rope_parameters", parameters)):
            if not isinstance(group, dict):
                raise InputError(f"{self.path}: {name} must be a JSON object, got {shown(group)}")
        nested = any(isinstance(value, dict) for value in parameters.values())
        values = {**values, **(parameters.get(kind, {}) if nested else parameters)}
        return self._rope(dim, theta, {name: value for name, value in values.items() if value is not None})

    def finish(self) -> None:
        """Refuses every attribute that was not read."""
        if quantized := sorted(_QUANTIZED & self._values.keys()):
            raise InputError(
                f"{self.path}: {quantized[0]} says that the weights are quantized; get the model's unquantized "
                "weights, or a GGUF file"
            )
        if unread := sorted(self._values.keys() - self._read - IGNORED):
            raise InputError(
                f"{self.path}: {unread[0]} is {shown(self._values[unread[0]])}; star_jax does not know this attribute "
                f"of a {self._values['model_type']} model; delete it from the file if it does not change the logits"
            )

    def _rope(self, dim: int, theta: float, values: dict[str, Any]) -> Rope:
        known = {"rope_type", "type", "rope_theta", "factor"}
        kind = values.get("rope_type", values.get("type", "default"))
        theta = self._number("rope_theta", values.get("rope_theta", theta))
        if kind == "llama3":
            known |= {"low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
        if kind not in ("default", "linear", "llama3"):
            raise InputError(
                f"{self.path}: rope_type is {shown(kind)}; star_jax supports 'default', 'linear' and 'llama3'"
            )
        if values.get("partial_rotary_factor", 1.0) == 1.0:
            known.add("partial_rotary_factor")
        if unknown := sorted(values.keys() - known):
            raise InputError(
                f"{self.path}: {unknown[0]} of the rotary positions is not supported with rope_type {shown(kind)}"
            )
        if kind == "default":
            return Rope(dim, theta)
        factor = self._number("factor", values.get("factor"))
        if kind == "linear":
            return Rope(dim, theta, scaling=kind, factor=factor)
        names = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        low, high, positions = (self._number(name, values.get(name)) for name in names)
        if high <= low:
            raise InputError(f"{self.path}: high_freq_factor {high} must be greater than low_freq_factor {low}")
        return Rope(
            dim,
            theta,
            scaling=kind,
            factor=factor,
            low_frequency_factor=low,
            high_frequency_factor=high,
            original_positions=int(positions),
        )

    def _get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        return self._values.get(name, default)

    def _number(self, name: str, value: Any) -> float:
        if not is_number(value) or value <= 0:
            raise InputError(f"{self.path}: {name} must be a positive number, got {shown(value)}")
        return float(value)


def rope_attributes(rope: Rope) -> dict[str, Any]:
    """The attributes of config.json from which `ConfigJson.rope` reads this value."""
    values: dict[str, Any] = {"rope_theta": rope.theta}
    if rope.scaling:
        scaling: dict[str, Any] = {"rope_type": rope.scaling, "factor": rope.factor}
        if rope.scaling == "llama3":
            scaling |= {
                "low_freq_factor": rope.low_frequency_factor,
                "high_freq_factor": rope.high_frequency_factor,
                "original_max_position_embeddings": rope.original_positions,
            }
        values["rope_scaling"] = scaling
    return values


def layer_types(local_layers: tuple[bool, ...]) -> list[str]:
    """The attribute `layer_types`."""
    return ["sliding_attention" if local else "full_attention" for local in local_layers]
