"""Hugging Face directories of GPT-J and GPT-2, in and out: config.json, safetensors or pytorch_model.bin, a tokenizer.

The mapping is the two tables below and one rule: a tensor of ours is a matrix [inputs, outputs] whose axes may be
several (heads x head size), or a vector. torch's Linear (GPT-J) keeps the matrix transposed; GPT-2's Conv1D does not,
and holds query, key and value side by side in one. Both rotate interleaved pairs, so no features change places.
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
from star_jax.tokenizers.byte_level_bpe import END_OF_TEXT, Gpt2Tokenizer
from star_jax.weights.sources import loader
from star_jax.weights.sources.tensor_files import open_directory


@dataclasses.dataclass(frozen=True)
class Row:
    """Where one of our leaves stands in their file."""

    leaf: str
    name: str  # theirs; {n} is the layer
    inputs: int = 0  # how many leading axes of ours are the matrix's inputs; 0: a vector
    transposed: bool = False  # they keep [outputs, inputs]
    part: tuple[int, int] = (0, 1)  # (i, of): ours is the i-th of so many equal parts of their last axis

    def shape(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        """Their shape for a leaf of ours."""
        matrix = self._matrix(ours)
        whole = (*matrix[:-1], matrix[-1] * self.part[1])
        return whole[::-1] if self.transposed else whole

    def to_ours(self, theirs: np.ndarray, ours: tuple[int, ...]) -> np.ndarray:
        """Our layout of their tensor."""
        matrix = theirs.T if self.transposed else theirs
        return np.split(matrix, self.part[1], axis=-1)[self.part[0]].reshape(ours)

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """Their layout of our tensor; of its part alone where they hold several in one."""
        matrix = ours.reshape(self._matrix(ours.shape))
        return matrix.T if self.transposed else matrix

    def _matrix(self, ours: tuple[int, ...]) -> tuple[int, ...]:
        if not self.inputs:
            return (math.prod(ours),)
        return math.prod(ours[: self.inputs]), math.prod(ours[self.inputs :])


_H = "transformer.h.{n}."
_SHARED = (
    Row("blocks/norm/scale", _H + "ln_1.weight"),
    Row("blocks/norm/bias", _H + "ln_1.bias"),
    Row("final_norm/scale", "transformer.ln_f.weight"),
    Row("final_norm/bias", "transformer.ln_f.bias"),
    Row("embedding/embedding", "transformer.wte.weight", inputs=1),
)
TABLES = {
    "gptj": (
        *_SHARED,
        Row("blocks/attention/query", _H + "attn.q_proj.weight", inputs=1, transposed=True),
        Row("blocks/attention/key", _H + "attn.k_proj.weight", inputs=1, transposed=True),
        Row("blocks/attention/value", _H + "attn.v_proj.weight", inputs=1, transposed=True),
        Row("blocks/attention/out", _H + "attn.out_proj.weight", inputs=2, transposed=True),
        Row("blocks/mlp/in/kernel", _H + "mlp.fc_in.weight", inputs=1, transposed=True),
        Row("blocks/mlp/in/bias", _H + "mlp.fc_in.bias"),
        Row("blocks/mlp/out/kernel", _H + "mlp.fc_out.weight", inputs=1, transposed=True),
        Row("blocks/mlp/out/bias", _H + "mlp.fc_out.bias"),
        Row("head/kernel", "lm_head.weight", inputs=1, transposed=True),
        Row("head/bias", "lm_head.bias"),
    ),
    "gpt2": (
        *_SHARED,
        Row("positions/embedding", "transformer.wpe.weight", inputs=1),
        Row("blocks/mlp_norm/scale", _H + "ln_2.weight"),
        Row("blocks/mlp_norm/bias", _H + "ln_2.bias"),
        Row("blocks/attention/query", _H + "attn.c_attn.weight", inputs=1, part=(0, 3)),
        Row("blocks/attention/key", _H + "attn.c_attn.weight", inputs=1, part=(1, 3)),
        Row("blocks/attention/value", _H + "attn.c_attn.weight", inputs=1, part=(2, 3)),
        Row("blocks/attention/query_bias", _H + "attn.c_attn.bias", part=(0, 3)),
        Row("blocks/attention/key_bias", _H + "attn.c_attn.bias", part=(1, 3)),
        Row("blocks/attention/value_bias", _H + "attn.c_attn.bias", part=(2, 3)),
        Row("blocks/attention/out", _H + "attn.c_proj.weight", inputs=2),
        Row("blocks/attention/out_bias", _H + "attn.c_proj.bias"),
        Row("blocks/mlp/in/kernel", _H + "mlp.c_fc.weight", inputs=1),
        Row("blocks/mlp/in/bias", _H + "mlp.c_fc.bias"),
        Row("blocks/mlp/out/kernel", _H + "mlp.c_proj.weight", inputs=1),
        Row("blocks/mlp/out/bias", _H + "mlp.c_proj.bias"),
    ),
}
# Causal masks, which older files carry as buffers.
_MASK = re.compile(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)")


def is_model(directory: Path) -> bool:
    """Whether this is a Hugging Face directory."""
    return (directory / "config.json").is_file() and not (directory / "model.json").exists()


def find_tokenizer(directory: Path) -> Gpt2Tokenizer | None:
    """The tokenizer whose files lie in a directory, if there is one. Raises InputError where it is broken."""
    names = ("tokenizer.json", "vocab.json", "merges.txt")
    return Gpt2Tokenizer.load(directory) if any((directory / name).is_file() for name in names) else None


class HfSource:
    """A Hugging Face directory, opened and checked. Raises InputError, also from `read`."""

    def __init__(self, directory: Path) -> None:
        self.place = directory
        self.config = _read_config(directory / "config.json")
        self._rows = {row.leaf: row for row in TABLES[self.config.architecture]}
        # GPT-2's own files name their tensors without the "transformer." that transformers puts in front.
        self._files = {
            name if name.startswith(("transformer.", "lm_head.")) else f"transformer.{name}": tensor
            for name, tensor in open_directory(directory).items()
        }
        self._shapes = {(leaf, layer): shape for leaf, layer, shape in loader.tensors(decoder.GPT(self.config))}
        self._check()
        dtypes = {self._files[self.name(leaf, layer)].dtype for leaf, layer in self._shapes}
        only = dtypes.pop() if len(dtypes) == 1 else None
        self.dtype = only if only and only.itemsize == 2 else np.dtype(np.float32)  # which holds both halves

    def name(self, leaf: str, layer: int | None) -> str:
        return self._rows[leaf].name.format(n=layer)

    def read(self, leaf: str, layer: int | None) -> np.ndarray:
        tensor = self._files[self.name(leaf, layer)].read()
        return self._rows[leaf].to_ours(tensor, self._shapes[leaf, layer])

    def tokenizer(self) -> Gpt2Tokenizer | None:
        return find_tokenizer(self.place)

    def _check(self) -> None:
        """All tensors are there, none is left over, all have the shapes of config.json."""
        wanted = {
            self.name(leaf, layer): self._rows[leaf].shape(shape) for (leaf, layer), shape in self._shapes.items()
        }
        for name, shape in wanted.items():
            if name not in self._files:
                raise InputError(f"{self.place}: the tensor {name} {list(shape)} is missing; get the whole model")
            found = self._files[name]
            if found.shape != shape:
                raise InputError(
                    f"{self.place}: the tensor {name} has shape {list(found.shape)}, config.json asks for {list(shape)}"
                )
            if found.dtype is None:
                raise InputError(f"{self.place}: the tensor {name} does not hold floating-point numbers")
        for name in self._files.keys() - wanted.keys():
            tied = self.config.is_gpt2 and name == "lm_head.weight"
            if tied and not np.array_equal(self._files[name].read(), self._files["transformer.wte.weight"].read()):
                raise InputError(f"{self.place}: the tensor {name} differs from the embedding; a GPT-2 ties them")
            if not tied and not _MASK.fullmatch(name):
                raise InputError(f"{self.place}: the tensor {name} has no place in a {self.config.architecture} model")


def _read_config(path: Path) -> ModelConfig:
    values = read_json_object(path, "get the file again")
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in TABLES:
        raise InputError(f"{path}: model_type is {kind!r}; star_jax knows {' and '.join(TABLES)}")
    known = {
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": kind == "gpt2",
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    }
    if values.get("activation_function") in ("gelu_pytorch_tanh", "gelu_fast"):
        values["activation_function"] = "gelu_new"  # other names of the same function
    for key, value in known.items():
        if values.get(key, value) != value:
            raise InputError(f"{path}: {key} is {values[key]!r}; star_jax computes {value!r} only")
    names = {"n_layers": "n_layer", "d_model": "n_embd", "n_heads": "n_head", "vocab_size": "vocab_size"}
    names |= {"max_positions": "n_positions"} | ({"rotary_dim": "rotary_dim"} if kind == "gptj" else {})
    sizes: dict[str, Any] = loader.read_sizes(path, values, names)
    sizes["d_mlp"] = values.get("n_inner") or 4 * values["n_embd"]
    return loader.model_config(path, {**sizes, "architecture": kind})


def save(
    directory: Path,
    config: ModelConfig,
    params: decoder.Params,
    tokenizer: Any,
    dtype: np.dtype,
    shard_bytes: int = 2**31,
) -> None:
    """Writes config.json, safetensors (with an index where there are several) and the tokenizer's files.

    Args:
      tokenizer: its files are written where Hugging Face has a form for it (GPT-2's), or None.
      shard_bytes: weights a file at most; the host holds one file at a time. Raises InputError.
    """
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "config.json").exists():
        raise InputError(f"{directory}: holds a model already; delete it or give another directory")
    grouped = _grouped(decoder.GPT(config))
    plan: list[list[str]] = [[]]
    size = total = 0
    for name, (shape, _) in grouped.items():
        tensor_bytes = math.prod(shape) * dtype.itemsize
        if plan[-1] and size + tensor_bytes > shard_bytes:
            plan.append([])
            size = 0
        plan[-1].append(name)
        size, total = size + tensor_bytes, total + tensor_bytes
    weight_map = {}
    for number, names in enumerate(plan, start=1):
        file = f"model-{number:05d}-of-{len(plan):05d}.safetensors" if len(plan) > 1 else "model.safetensors"
        save_file({n: _gather(grouped[n][1], params, dtype) for n in names}, directory / file, {"format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(plan) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)
    if isinstance(tokenizer, Gpt2Tokenizer):
        _write_json(directory / "tokenizer.json", tokenizer.spec()["tokenizer"])
        special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
        about = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.max_positions, **special}
        _write_json(directory / "tokenizer_config.json", about)
    _write_json(directory / "config.json", _config_json(config, tokenizer.end_of_text if tokenizer else None, dtype))


def _write_json(path: Path, value: Any) -> None:
    """Not RunDirectory.write_json: that adds our checksums.json, and an export holds its format's files only."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _grouped(model: decoder.GPT) -> dict[str, tuple[tuple[int, ...], list[tuple[Row, int | None]]]]:
    """Their name -> (their shape, the rows that fill it, part by part)."""
    rows = {row.leaf: row for row in TABLES[model.config.architecture or "gptj"]}
    grouped: dict[str, tuple[tuple[int, ...], list[tuple[Row, int | None]]]] = {}
    for leaf, layer, shape in loader.tensors(model):
        row = rows[leaf]
        grouped.setdefault(row.name.format(n=layer), (row.shape(shape), []))[1].append((row, layer))
    return grouped


def _gather(parts: list[tuple[Row, int | None]], params: decoder.Params, dtype: np.dtype) -> np.ndarray:
    found = []
    for row, layer in sorted(parts, key=lambda item: item[0].part):
        leaf = params
        for key in row.leaf.split("/"):
            leaf = leaf[key]
        found.append(row.to_theirs(np.asarray(leaf if layer is None else leaf[layer]).astype(dtype)))
    return np.ascontiguousarray(np.concatenate(found, axis=-1))


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
    own = {"rotary_dim": config.rotary_dim, "tie_word_embeddings": False}
    return {"model_type": "gptj", "architectures": ["GPTJForCausalLM"], **shared, **own}
