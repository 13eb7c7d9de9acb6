"""Hugging Face directories of GPT-J and GPT-2, read and written: config.json, safetensors (or torch's .bin), tokenizer.

TABLES map our leaves to their tensors. Our leaf is a vector, or a matrix [inputs, outputs] whose inputs or outputs may
be several axes (heads x head size). GPT-J's Linear stores the matrix transposed; GPT-2's Conv1D does not, and stores
query, key and value as one tensor. All rotate interleaved pairs, so no features are permuted.
"""

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.config import ModelConfig
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.runs.atomic_files import atomic_write
from star_jax.runs.json_files import read_json_object
from star_jax.tokenizers.base import Tokenizer
from star_jax.tokenizers.byte_level_bpe import END_OF_TEXT, Gpt2Tokenizer
from star_jax.weights.sources import loader
from star_jax.weights.sources.tensor_files import DOWNLOAD_AGAIN, open_directory


@dataclasses.dataclass(frozen=True)
class TensorMapping:
    """One of our leaves and the tensor of the Hugging Face file that holds it."""

    leaf: str
    name: str  # in the file; {n} is the layer
    inputs: int = 0  # number of leading axes of our leaf that are the matrix's inputs; 0 for a vector
    transposed: bool = False  # the file stores [outputs, inputs]
    part: tuple[int, int] = (0, 1)  # (i, count): our leaf is part i of `count` equal parts of the file's last axis

    def file_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the file's tensor for a leaf of ours with this shape."""
        matrix = self._matrix_shape(shape)
        all_parts = (*matrix[:-1], matrix[-1] * self.part[1])
        return all_parts[::-1] if self.transposed else all_parts

    def from_file(self, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """Our leaf, of this shape, from the file's tensor."""
        matrix = tensor.T if self.transposed else tensor
        return np.split(matrix, self.part[1], axis=-1)[self.part[0]].reshape(shape)

    def to_file(self, leaf: np.ndarray) -> np.ndarray:
        """The file's layout of our leaf: of one part, where the file's tensor has several."""
        matrix = leaf.reshape(self._matrix_shape(leaf.shape))
        return matrix.T if self.transposed else matrix

    def _matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if not self.inputs:
            return (math.prod(shape),)
        return math.prod(shape[: self.inputs]), math.prod(shape[self.inputs :])


_H = "transformer.h.{n}."
_SHARED = (
    TensorMapping("blocks/norm/scale", _H + "ln_1.weight"),
    TensorMapping("blocks/norm/bias", _H + "ln_1.bias"),
    TensorMapping("final_norm/scale", "transformer.ln_f.weight"),
    TensorMapping("final_norm/bias", "transformer.ln_f.bias"),
    TensorMapping("embedding/embedding", "transformer.wte.weight", inputs=1),
)
TABLES = {
    "gptj": (
        *_SHARED,
        TensorMapping("blocks/attention/query", _H + "attn.q_proj.weight", inputs=1, transposed=True),
        TensorMapping("blocks/attention/key", _H + "attn.k_proj.weight", inputs=1, transposed=True),
        TensorMapping("blocks/attention/value", _H + "attn.v_proj.weight", inputs=1, transposed=True),
        TensorMapping("blocks/attention/out", _H + "attn.out_proj.weight", inputs=2, transposed=True),
        TensorMapping("blocks/mlp/in/kernel", _H + "mlp.fc_in.weight", inputs=1, transposed=True),
        TensorMapping("blocks/mlp/in/bias", _H + "mlp.fc_in.bias"),
        TensorMapping("blocks/mlp/out/kernel", _H + "mlp.fc_out.weight", inputs=1, transposed=True),
        TensorMapping("blocks/mlp/out/bias", _H + "mlp.fc_out.bias"),
        TensorMapping("head/kernel", "lm_head.weight", inputs=1, transposed=True),
        TensorMapping("head/bias", "lm_head.bias"),
    ),
    "gpt2": (
        *_SHARED,
        TensorMapping("positions/embedding", "transformer.wpe.weight", inputs=1),
        TensorMapping("blocks/mlp_norm/scale", _H + "ln_2.weight"),
        TensorMapping("blocks/mlp_norm/bias", _H + "ln_2.bias"),
        TensorMapping("blocks/attention/query", _H + "attn.c_attn.weight", inputs=1, part=(0, 3)),
        TensorMapping("blocks/attention/key", _H + "attn.c_attn.weight", inputs=1, part=(1, 3)),
        TensorMapping("blocks/attention/value", _H + "attn.c_attn.weight", inputs=1, part=(2, 3)),
        TensorMapping("blocks/attention/query_bias", _H + "attn.c_attn.bias", part=(0, 3)),
        TensorMapping("blocks/attention/key_bias", _H + "attn.c_attn.bias", part=(1, 3)),
        TensorMapping("blocks/attention/value_bias", _H + "attn.c_attn.bias", part=(2, 3)),
        TensorMapping("blocks/attention/out", _H + "attn.c_proj.weight", inputs=2),
        TensorMapping("blocks/attention/out_bias", _H + "attn.c_proj.bias"),
        TensorMapping("blocks/mlp/in/kernel", _H + "mlp.c_fc.weight", inputs=1),
        TensorMapping("blocks/mlp/in/bias", _H + "mlp.c_fc.bias"),
        TensorMapping("blocks/mlp/out/kernel", _H + "mlp.c_proj.weight", inputs=1),
        TensorMapping("blocks/mlp/out/bias", _H + "mlp.c_proj.bias"),
    ),
}
# Causal masks, which older files hold as buffers.
_MASK = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")


def is_model(directory: Path) -> bool:
    """Whether a directory holds a Hugging Face model (and not one of ours)."""
    return (directory / "config.json").is_file() and not (directory / "model.json").exists()


def find_tokenizer(directory: Path) -> Gpt2Tokenizer | None:
    """The tokenizer whose files a directory holds, or None. Raises InputError if they are malformed."""
    names = ("tokenizer.json", "vocab.json", "merges.txt")
    return Gpt2Tokenizer.load(directory) if any((directory / name).is_file() for name in names) else None


class HfSource:
    """A loader.WeightSource: a Hugging Face directory, opened and checked. Raises InputError, `read` too."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.config = _read_config(directory / "config.json")
        self._mappings = {mapping.leaf: mapping for mapping in TABLES[self.config.architecture]}
        # GPT-2's own files lack the prefix "transformer." that the transformers library adds.
        self._tensors = {
            name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
            for name, tensor in open_directory(directory).items()
        }
        self._shapes = {(leaf, layer): shape for leaf, layer, shape in loader.tensors(decoder.GPT(self.config))}
        self._check()
        dtypes = {self._tensors[self.name(leaf, layer)].dtype for leaf, layer in self._shapes}
        single = dtypes.pop() if len(dtypes) == 1 else None
        # float32 holds mixed bfloat16 and float16 exactly.
        self.dtype = single if single and single.itemsize == 2 else np.dtype(np.float32)

    def name(self, leaf: str, layer: int | None) -> str:
        return self._mappings[leaf].name.format(n=layer)

    def read(self, leaf: str, layer: int | None) -> np.ndarray:
        tensor = self._tensors[self.name(leaf, layer)].read()
        return self._mappings[leaf].from_file(tensor, self._shapes[leaf, layer])

    def tokenizer(self) -> Gpt2Tokenizer | None:
        return find_tokenizer(self.path)

    def _check(self) -> None:
        """Raises InputError if a tensor is missing, unknown, or not of the shape that config.json implies."""
        expected = {
            self.name(leaf, layer): self._mappings[leaf].file_shape(shape)
            for (leaf, layer), shape in self._shapes.items()
        }
        for name, shape in expected.items():
            if name not in self._tensors:
                raise InputError(f"{self.path}: the tensor {name} {list(shape)} is missing; download the whole model")
            tensor = self._tensors[name]
            if tensor.shape != shape:
                raise InputError(
                    f"{self.path}: the tensor {name} has shape {list(tensor.shape)}, config.json requires {list(shape)}"
                )
            if tensor.dtype is None:
                raise InputError(f"{self.path}: the tensor {name} does not hold floating-point numbers")
        for name in self._tensors.keys() - expected.keys():
            tied = self.config.is_gpt2 and name == "lm_head.weight"
            if tied and not np.array_equal(self._tensors[name].read(), self._tensors["transformer.wte.weight"].read()):
                raise InputError(f"{self.path}: the tensor {name} differs from the embedding; GPT-2 ties the two")
            if not tied and not _MASK.fullmatch(name):
                raise InputError(f"{self.path}: a {self.config.architecture} model has no tensor {name}")


def save(
    directory: Path,
    config: ModelConfig,
    params: decoder.Params,
    tokenizer: Tokenizer | None,
    dtype: np.dtype,
    shard_bytes: int = 2**31,
) -> None:
    """Writes a Hugging Face directory: safetensors (with an index if there are several), tokenizer, config.json last.

    Args:
      tokenizer: written if Hugging Face has a format for it (GPT-2's byte-level BPE).
      shard_bytes: largest file of weights, in bytes. The host holds one file's tensors at a time.

    Raises InputError if the directory holds a model already, and for errors of the disk.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "config.json").exists():
        raise InputError(f"{directory}: holds a model already; delete it or give another directory")
    _save_tensors(directory, config, params, dtype, shard_bytes)
    if isinstance(tokenizer, Gpt2Tokenizer):
        _write_json(directory / "tokenizer.json", tokenizer.spec()["tokenizer"])
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        about = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.max_positions, **special}
        _write_json(directory / "tokenizer_config.json", about)
    _write_json(directory / "config.json", _config_json(config, tokenizer.end_of_text if tokenizer else None, dtype))


def _read_config(path: Path) -> ModelConfig:
    values = read_json_object(path, DOWNLOAD_AGAIN)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in TABLES:
        raise InputError(f"{path}: model_type is {kind!r}; star_jax supports {' and '.join(TABLES)}")
    supported = {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": kind == "gpt2",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    if values.get("activation_function") in ("gelu_pytorch_tanh", "gelu_fast"):
        values["activation_function"] = "gelu_new"  # names of the same function
    for key, value in supported.items():
        if values.get(key, value) != value:
            raise InputError(f"{path}: {key} is {values[key]!r}; star_jax supports {value!r} only")
    names = {"n_layers": "n_layer", "d_model": "n_embd", "n_heads": "n_head", "vocab_size": "vocab_size"}
    names |= {"max_positions": "n_positions"} | ({"rotary_dim": "rotary_dim"} if kind == "gptj" else {})
    sizes: dict[str, Any] = loader.read_sizes(path, values, names)
    sizes["d_mlp"] = values.get("n_inner") or 4 * values["n_embd"]
    return loader.model_config(path, {**sizes, "architecture": kind})


def _save_tensors(
    directory: Path, config: ModelConfig, params: decoder.Params, dtype: np.dtype, shard_bytes: int
) -> None:
    from safetensors.numpy import save_file

    tensors = _file_tensors(decoder.GPT(config))
    plan: list[list[str]] = [[]]  # the tensors' names, file by file
    file_bytes = total_bytes = 0
    for name, (shape, _) in tensors.items():
        tensor_bytes = math.prod(shape) * dtype.itemsize
        if plan[-1] and file_bytes + tensor_bytes > shard_bytes:
            plan.append([])
            file_bytes = 0
        plan[-1].append(name)
        file_bytes, total_bytes = file_bytes + tensor_bytes, total_bytes + tensor_bytes
    weight_map = {}
    for number, names in enumerate(plan, start=1):
        file = f"model-{number:05d}-of-{len(plan):05d}.safetensors" if len(plan) > 1 else "model.safetensors"
        save_file({n: _gather(tensors[n][1], params, dtype) for n in names}, directory / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(plan) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)


def _write_json(path: Path, value: Any) -> None:
    """Not RunDirectory.write_json: that adds our checksums.json, and an export holds its format's files only."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


_Part = tuple[TensorMapping, int | None]  # and the layer


def _file_tensors(model: decoder.GPT) -> dict[str, tuple[tuple[int, ...], list[_Part]]]:
    """Tensor name in the file -> its shape, and the mappings of its parts."""
    mappings = {mapping.leaf: mapping for mapping in TABLES[model.config.architecture or "gptj"]}
    tensors: dict[str, tuple[tuple[int, ...], list[_Part]]] = {}
    for leaf, layer, shape in loader.tensors(model):
        mapping = mappings[leaf]
        name = mapping.name.format(n=layer)
        tensors.setdefault(name, (mapping.file_shape(shape), []))[1].append((mapping, layer))
    return tensors


def _gather(parts: list[_Part], params: decoder.Params, dtype: np.dtype) -> np.ndarray:
    """One tensor of the file, from its parts."""
    arrays = []
    for mapping, layer in sorted(parts, key=lambda part: part[0].part):
        leaf = params
        for key in mapping.leaf.split("/"):
            leaf = leaf[key]
        arrays.append(mapping.to_file(np.asarray(leaf if layer is None else leaf[layer]).astype(dtype)))
    return np.ascontiguousarray(np.concatenate(arrays, axis=-1))


def _config_json(config: ModelConfig, end_of_text: int | None, dtype: np.dtype) -> dict[str, Any]:
    shared = {
        "vocab_size": config.vocab_size,
        "n_positions": config.max_positions,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_mlp,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "dtype": dtype.name,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    }
    if config.is_gpt2:
        return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], **shared, "tie_word_embeddings": True}
    of_gptj = {"rotary_dim": config.rotary_dim, "tie_word_embeddings": False}
    return {"model_type": "gptj", "architectures": ["GPTJForCausalLM"], **shared, **of_gptj}
