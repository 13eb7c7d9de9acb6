"""GGUF files of llama.cpp as a source of models: the metadata as a config.json, the tensors in Hugging Face's layout.

The families' rules exist once: the metadata are translated to the attributes of Hugging Face's config.json and read by
`families.read_spec`; tensor names are translated by the gguf package's own table. What llama.cpp's converter changes is
changed back: the rows of query and key (llama), 1 added to norms (gemma), and Llama 3's rotary scaling as a tensor.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.errors import InputError, shown
from star_jax.models import families
from star_jax.models.decoder import Decoder
from star_jax.models.families.tensors import TensorMapping
from star_jax.models.spec import MAX_LAYERS, DecoderSpec
from star_jax.tokenizers.base import Tokenizer
from star_jax.weights.sources import gguf_tokenizer, loader
from star_jax.weights.sources.gguf_file import GgufFile
from star_jax.weights.sources.tensor_files import DOWNLOAD_AGAIN

_ROPE_FACTORS = "rope_freqs.weight"
_INTERLEAVED = ("llama",)  # architectures whose query and key rows llama.cpp stores for interleaved rotary positions
# Key of the metadata, after the architecture -> attribute of config.json, whose value is the same.
_ATTRIBUTES = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
    "rope.freq_base_swa": "rope_local_base_freq",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "vocab_size": "vocab_size",
}
# Keys with one value that changes nothing.
_NEUTRAL = {"expert_count": 0, "expert_used_count": 0, "attention.causal": True}
_IGNORED = {"rope.scaling.finetuned", "tensor_data_layout"}  # notes on how the model was made
# llama.cpp takes the scale of attention from the number of layers: here width / heads instead of the head's size.
_SCALED_BY_WIDTH = {"gemma2": 46, "gemma3": 62}  # the 27B models
# (low_freq_factor, high_freq_factor, original_max_position_embeddings) of the Llama 3.1, 3.2 and 3.3 models.
_LLAMA3 = (1.0, 4.0, 8192)


def is_file(path: Path | str) -> bool:
    """Whether a path is a file, not a directory: GGUF is the only format of one file."""
    return Path(path).is_file()


def read_spec(path: Path) -> DecoderSpec:
    """The spec of a file's model. Raises InputError."""
    return _spec(GgufFile(path))


def find_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer in a file, or None. Raises InputError."""
    return gguf_tokenizer.find(GgufFile(path))


class GgufSource:
    """A loader.WeightSource: a GGUF file, opened and checked. Raises InputError, `read` too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = GgufFile(path)
        self.spec = _spec(self._file)
        self._mappings = {mapping.leaf: mapping for mapping in families.of(self.spec).tensors(self.spec)}
        self._shapes = {(leaf, layer): shape for leaf, layer, shape in loader.tensors(Decoder(self.spec))}
        self._names = _file_names(self._file, self.spec, self._mappings)
        self._check()
        dtypes = {self._file.tensors[self.name(leaf, layer)].dtype for leaf, layer in self._shapes}
        single = dtypes.pop() if len(dtypes) == 1 else None
        self.dtype = single or np.dtype(np.float32)

    def name(self, leaf: str, layer: int | None) -> str:
        return self._names[self._mappings[leaf].name.format(n=layer)]

    def read(self, leaf: str, layer: int | None) -> np.ndarray:
        tensor = self._file.read(self.name(leaf, layer), self.dtype)
        if leaf.endswith("/scale") and self.spec.norm == "rms_plus_one":
            tensor = tensor - np.ones((), self.dtype)
        interleaved = self._file.metadata["general.architecture"] in _INTERLEAVED
        if interleaved and leaf.removesuffix("_bias").endswith(("attention/query", "attention/key")):
            tensor = _half_split(tensor, self.spec.head_dim)
        return self._mappings[leaf].from_file(tensor, self._shapes[leaf, layer])

    def tokenizer(self) -> Tokenizer | None:
        return gguf_tokenizer.find(self._file)

    def _check(self) -> None:
        """Raises InputError if a tensor is missing, unknown, or not of the shape that the metadata imply."""
        expected = {}
        for (leaf, layer), shape in self._shapes.items():
            expected[self.name(leaf, layer)] = self._mappings[leaf].file_shape(shape)
        for name, shape in expected.items():
            if name not in self._file.tensors:
                raise InputError(f"{self.path}: the tensor {name} {list(shape)} is missing; {DOWNLOAD_AGAIN}")
            stored = self._file.tensors[name].shape
            if stored != shape:
                raise InputError(
                    f"{self.path}: the tensor {name} has shape {list(stored)}, the metadata require {list(shape)}"
                )
        if unknown := sorted(self._file.tensors.keys() - expected.keys() - {_ROPE_FACTORS}):
            raise InputError(f"{self.path}: a {self.spec.family} model has no tensor {unknown[0]}")


def _spec(file: GgufFile) -> DecoderSpec:
    """The spec of the file's metadata. Raises InputError, also for a key that star_jax does not know."""
    if (count := file.metadata.get("split.count", 0)) not in (0, 1):
        raise InputError(f"{file.path}: is one of {count} files of a model; join them with llama-gguf-split --merge")
    architecture = file.metadata.get("general.architecture")
    known = {family.gguf: family.name for family in families.FAMILIES.values() if family.gguf}
    if architecture not in known:
        raise InputError(
            f"{file.path}: general.architecture is {shown(architecture)}; star_jax reads GGUF files of "
            f"{', '.join(known)}"
        )
    prefix = f"{architecture}."
    keys = {key.removeprefix(prefix): v for key, v in file.metadata.items() if key.startswith(prefix)}
    values = {"model_type": known[architecture], **_config_json(file, architecture, keys)}
    return families.read_spec(file.path, values)


def _config_json(file: GgufFile, architecture: str, keys: dict[str, Any]) -> dict[str, Any]:
    """The attributes of config.json that the metadata `keys` of the architecture and the tensors imply."""
    keys = {key: _plain(value) for key, value in keys.items() if key not in _IGNORED}
    for key, neutral in _NEUTRAL.items():
        if (value := keys.pop(key, neutral)) != neutral:
            raise InputError(f"{file.path}: {architecture}.{key} is {shown(value)}; star_jax supports {neutral!r} only")
    embedding = file.tensors.get("token_embd.weight")
    values = {
        "rope_theta": 10000.0,  # llama.cpp's default
        "vocab_size": embedding.shape[0] if embedding else None,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        **{attribute: keys.pop(key) for key, attribute in _ATTRIBUTES.items() if key in keys},
    }
    width, heads, n_layers = (
        _integer(file, architecture, values, name)
        for name in ("hidden_size", "num_attention_heads", "num_hidden_layers")
    )
    head_dim = keys.pop("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if keys.pop(key, head_dim) != head_dim:
            raise InputError(f"{file.path}: {architecture}.{key} is not the head size, {head_dim}; not supported")
    values["head_dim"] = head_dim
    if "blk.0.attn_q.bias" in file.tensors and architecture != "qwen2":  # all of these models have them
        values["attention_bias"] = True
    if "blk.0.ffn_up.bias" in file.tensors:
        values["mlp_bias"] = True
    if architecture.startswith("gemma"):
        by_width = n_layers == _SCALED_BY_WIDTH[architecture]
        values["query_pre_attn_scalar"] = width // heads if by_width else head_dim
    if "attention.sliding_window_pattern" in keys:
        pattern = keys.pop("attention.sliding_window_pattern")
        if isinstance(pattern, int) and pattern:  # every n-th layer is global
            pattern = [bool((n + 1) % pattern) for n in range(n_layers)]
        is_list = isinstance(pattern, list)
        types = ("full_attention", "sliding_attention")
        values["layer_types"] = [types[bool(local)] for local in pattern] if is_list else pattern
    scaling = _rope_scaling(file, keys, head_dim, values["rope_theta"])
    if keys:
        key = min(keys)
        raise InputError(
            f"{file.path}: {architecture}.{key} is {shown(keys[key])}; star_jax does not know this key of the metadata"
        )
    return {**values, "rope_scaling": scaling}


def _integer(file: GgufFile, architecture: str, values: dict[str, Any], attribute: str) -> int:
    value = values.get(attribute)
    if not isinstance(value, int) or value < 1:
        key = next(key for key, name in _ATTRIBUTES.items() if name == attribute)
        raise InputError(f"{file.path}: {architecture}.{key} must be a positive integer, got {shown(value)}")
    if attribute == "num_hidden_layers" and value > MAX_LAYERS:
        raise InputError(f"{file.path}: {architecture}.block_count must be at most {MAX_LAYERS:,}, got {value:,}")
    return value


def _plain(value: Any) -> Any:
    """The value as JSON has it: a float in the fewest digits that name its float32, one number for many equal ones."""
    if isinstance(value, float):
        return float(str(np.float32(value)))
    if isinstance(value, np.ndarray):
        values = value.tolist()
        return values[0] if len(set(values)) == 1 and not isinstance(values[0], bool) else values
    return value


def _rope_scaling(file: GgufFile, keys: dict[str, Any], head_dim: int, theta: Any) -> dict[str, Any] | None:
    """The attribute `rope_scaling`, from metadata (linear) or from the tensor of factors (llama3)."""
    kind, factor = keys.pop("rope.scaling.type", "linear"), keys.pop("rope.scaling.factor", 1.0)
    if kind != "none" and (kind, factor) != ("linear", 1.0):
        return {"rope_type": kind, "factor": factor}  # which `families` checks
    if _ROPE_FACTORS not in file.tensors or not isinstance(theta, float):
        return None
    factors = file.read(_ROPE_FACTORS, np.dtype(np.float32)).reshape(-1).astype(np.float64)
    if np.all(factors == 1):
        return None
    if (
        theta > 0
        and np.all(np.isfinite(factors))
        and len(factors) == head_dim // 2
        and (parameters := _llama3_parameters(factors, theta))
    ):
        names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        return {"rope_type": "llama3", **dict(zip(names, parameters, strict=True))}
    raise InputError(f"{file.path}: the factors in {_ROPE_FACTORS} are not those of Llama 3's rotary scaling")


def _llama3_parameters(factors: np.ndarray, theta: float) -> tuple[float, float, float, int] | None:
    """(factor, low, high, original positions) from which Llama 3's rule makes these factors, or None.

    Only ratios of the last three matter, so low is 1. Between the two thresholds, 1 / factor is linear in the turns
    that a pair makes in `original` tokens: a fit finds them, and all factors are then compared.
    """
    turns = theta ** -(np.arange(len(factors)) / len(factors)) / (2 * math.pi)  # of each pair, per token
    factor = float(np.round(factors.max(), 4))
    candidates = [_LLAMA3]
    between = (factors > 1 + 1e-4) & (factors < factor * (1 - 1e-4))
    if between.sum() >= 2:
        smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
        slope, intercept = np.polyfit(turns[between], smooth, 1)
        if intercept < 0:
            high = 1 - 1 / intercept
            candidates.append((1.0, round(high, 3), round(slope * (high - 1))))
    for low, high, original in candidates:
        smooth = np.clip((original * turns - low) / (high - low), 0, 1)
        if np.allclose(1 / ((1 - smooth) / factor + smooth), factors, rtol=1e-5, atol=0):  # float32's error
            return factor, low, high, original
    return None


def _file_names(file: GgufFile, spec: DecoderSpec, mappings: dict[str, TensorMapping]) -> dict[str, str]:
    """Hugging Face's name of each tensor -> the file's."""
    import gguf

    architecture = file.metadata["general.architecture"]
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(kind, spec.n_layers)
    names = {}
    for mapping in mappings.values():
        for layer in range(spec.n_layers) if "{n}" in mapping.name else (None,):
            name = mapping.name.format(n=layer)
            # The package has no name for a tensor that llama.cpp's models of this kind lack (a head of gemma2).
            names[name] = table.get_name(name, (".weight", ".bias")) or name
    return names


def _half_split(tensor: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of query or key in Hugging Face's order: of each head first the even rows, then the odd ones."""
    pairs = tensor.reshape(-1, head_dim // 2, 2, *tensor.shape[1:])
    return pairs.swapaxes(1, 2).reshape(tensor.shape)
