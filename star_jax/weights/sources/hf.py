"""Hugging Face directories, read and written: config.json, safetensors (or torch's .bin), tokenizer.

models/families/ has what differs between families: their attributes and the names of their tensors.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from star_jax.errors import InputError, disk_errors_as_input_errors
from star_jax.json_reader import is_integer, is_present, read_json_object, short
from star_jax.models import decoder, families
from star_jax.models.decoder import Decoder
from star_jax.models.families.tensors import TensorMapping
from star_jax.models.spec import DecoderSpec
from star_jax.runs.atomic_files import atomic_write
from star_jax.tokenizers import JsonTokenizer, Tokenizer, load_directory
from star_jax.tokenizers.json_tokenizer import token_ids
from star_jax.weights.sources import loader
from star_jax.weights.sources.tensor_files import DOWNLOAD_AGAIN, StoredTensor, open_directory

# Causal masks, positions and rotary frequencies, which older files hold as buffers.
_BUFFER = re.compile(r"(.+\.)?(attn\.(bias|masked_bias|embed_positions)|rotary_emb\.inv_freq|position_ids)")
# Heads that a trainer or a classifier put next to the model's own: no logits come from them.
_OTHER_HEAD = re.compile(r"(v_head|value_head|score|multiple_choice_head)\..+")
# Wrappers of torch.compile and of data-parallel training, whose names state_dict keeps.
_WRAPPER = re.compile(r"(^|(?<=\.))_orig_mod\.|^module\.")
_SAVE_AGAIN = (
    "load it with transformers' AutoModelForCausalLM and save_pretrained it, or take the tensor out of the file"
)

LOG = logging.getLogger("star_jax")
EMBEDDING = "embedding/embedding"
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
ADAPTER = "adapter_config.json"  # of peft: transformers loads the adapter along with the model


def read_spec(directory: Path) -> DecoderSpec:
    """The spec of a directory's config.json. Raises InputError, also where an adapter would change the weights."""
    if is_present(adapter := directory / ADAPTER):
        raise InputError(
            f"{adapter}: an adapter of peft is there, which star_jax does not apply; save the merged model "
            "(merge_and_unload, then save_pretrained), or delete the file to use the weights without it"
        )
    path = directory / "config.json"
    return families.read_spec(path, read_json_object(path, DOWNLOAD_AGAIN))


def is_model(directory: Path) -> bool:
    """Whether a directory holds a Hugging Face model, or an adapter of one (and no model of ours)."""
    files = (directory / "config.json", directory / ADAPTER)
    return any(path.is_file() for path in files) and not (directory / "model.json").exists()


def find_tokenizer(directory: Path) -> JsonTokenizer | None:
    """The tokenizer whose files a directory holds, or None. Raises InputError if they are malformed."""
    names = ("tokenizer.json", "vocab.json", "merges.txt")
    return load_directory(directory) if any(is_present(directory / name) for name in names) else None


def special_ids(directory: Path) -> dict[str, Any]:
    """The ids of BOS, EOS and padding that a directory states, in config.json or else in generation_config.json.

    Raises InputError for a value that is neither null, nor an id, nor (several ends) a list of ids.
    """
    ids: dict[str, Any] = {}
    for path in (directory / "generation_config.json", directory / "config.json"):
        values = read_json_object(path, DOWNLOAD_AGAIN) if is_present(path) else {}
        for key in (key for key in SPECIAL_IDS if key in values):
            value = values[key]
            if not all(item is None or is_integer(item) for item in (value if isinstance(value, list) else [value])):
                raise InputError(f"{path}: {key} must be an id or a list of ids, is {short(value)}; {DOWNLOAD_AGAIN}")
            ids[key] = value
    return ids


class HfSource:
    """A loader.WeightSource: a Hugging Face directory, opened and checked. Raises InputError, `read` too."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.spec = read_spec(directory)
        self._mappings = {mapping.leaf: mapping for mapping in families.of(self.spec).tensors(self.spec)}
        self._shapes = {(leaf, layer): shape for leaf, layer, shape in loader.tensors(Decoder(self.spec))}
        self._tensors = self._open()
        dtypes = {self._tensors[self.name(leaf, layer)].dtype for leaf, layer in self._shapes}
        single = dtypes.pop() if len(dtypes) == 1 else None
        # float32 holds mixed bfloat16 and float16 exactly.
        self.dtype = single if single and single.itemsize == 2 else np.dtype(np.float32)

    def name(self, leaf: str, layer: int | None) -> str:
        return self._mappings[leaf].name.format(n=layer)

    def mapping(self, leaf: str) -> TensorMapping:
        """How the file stores one of our leaves."""
        return self._mappings[leaf]

    def read(self, leaf: str, layer: int | None) -> np.ndarray:
        tensor = self._tensors[self.name(leaf, layer)].read()
        return self._mappings[leaf].from_file(tensor, self._shapes[leaf, layer])

    def tokenizer(self) -> JsonTokenizer | None:
        return find_tokenizer(self.path)

    def _open(self) -> dict[str, StoredTensor]:
        """Name without wrappers -> tensor of each parameter. Names the tensors that no parameter is read from.

        Raises InputError if a tensor is missing, unknown, or not of the shape that config.json implies.
        """
        expected = {
            self.name(leaf, layer): self._mappings[leaf].file_shape(shape)
            for (leaf, layer), shape in self._shapes.items()
        }
        prefix = f"{self.name(EMBEDDING, None).partition('.')[0]}."
        tensors: dict[str, StoredTensor] = {}
        in_file: dict[str, str] = {}
        extra: dict[str, str] = {}  # name in the file -> without wrappers
        head = "lm_head.weight"
        for stored, tensor in open_directory(self.path).items():
            plain = previous = stored
            while (plain := _WRAPPER.sub("", previous)) != previous:
                previous = plain
            # GPT-2's own files lack the prefix "transformer." that the transformers library adds.
            name = plain if plain in expected or prefix + plain not in expected else prefix + plain
            if name not in expected and not (self.spec.tied_head and name == head):
                extra[stored] = plain
            elif name in in_file:
                raise InputError(f"{self.path}: the tensors {in_file[name]} and {stored} are one parameter; delete one")
            else:
                in_file[name], tensors[name] = stored, tensor
        ignored = {s for s, plain in extra.items() if _BUFFER.fullmatch(plain) or _OTHER_HEAD.fullmatch(plain)}
        unknown = next(iter(sorted(extra.keys() - ignored)), "")
        for name, shape in expected.items():
            if name not in tensors:
                instead = f" (there is {unknown}, which is none of this model's)" if unknown else ""
                raise InputError(
                    f"{self.path}: the tensor {name} {list(shape)} is missing{instead}; download the whole model"
                )
            if tensors[name].shape != shape:
                raise InputError(
                    f"{self.path}: the tensor {in_file[name]} has shape {list(tensors[name].shape)}, config.json "
                    f"requires {list(shape)}"
                )
            if tensors[name].dtype is None:
                raise InputError(
                    f"{self.path}: the tensor {in_file[name]} does not hold floating-point numbers of 16, 32 or 64 "
                    f"bits but {tensors[name].type_name}; get the model's unquantized weights"
                )
        if unknown:
            raise InputError(f"{self.path}: a {self.spec.family} model has no tensor {unknown}; {_SAVE_AGAIN}")
        embedding = tensors[self.name(EMBEDDING, None)]
        if head in tensors and head not in expected and not np.array_equal(tensors[head].read(), embedding.read()):
            raise InputError(
                f"{self.path}: the tensor {in_file[head]} differs from the embedding; the model ties the two"
            )
        if heads := sorted(s for s in ignored if not _BUFFER.fullmatch(extra[s])):
            LOG.warning(
                "%s: ignored, as transformers does for a causal language model: %s", self.path, ", ".join(heads)
            )
        return tensors


def save(
    directory: Path,
    spec: DecoderSpec,
    params: decoder.Params,
    tokenizer: Tokenizer | None,
    dtype: np.dtype,
    shard_bytes: int = 2**31,
    special_ids: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes a Hugging Face directory: safetensors (with an index if there are several), tokenizer, config.json last.

    config.json appears after weights and tokenizer have been read again and are those that were given.

    Args:
      tokenizer: written if Hugging Face has a format for it (JsonTokenizer).
      shard_bytes: largest file of weights, in bytes. The host holds one file's tensors at a time.
      special_ids: those of the model, for one without a tokenizer; transformers would put its own defaults there.

    Raises InputError if the directory holds a model already, if the parameters are not those of the spec or of its
    family's format, if one is not finite in `dtype`, for errors of the disk, and if other content is on disk than in
    memory.
    """
    _check_params(spec, params)
    directory.mkdir(parents=True, exist_ok=True)
    if (directory / "config.json").exists():
        raise InputError(f"{directory}: holds a model already; delete it or give another directory")
    _save_tensors(directory, spec, params, dtype, shard_bytes)
    _check_tensors(directory, spec, params, dtype)
    special = dict(special_ids)
    if isinstance(tokenizer, JsonTokenizer):
        _save_tokenizer(directory, tokenizer, spec.max_positions)
        special = _special_ids(tokenizer)
        _write_json(directory / "generation_config.json", special)
        _check_tokenizer(directory, tokenizer)
    elif tokenizer is not None:
        special = {"eos_token_id": tokenizer.end_ids[0]}
    family = families.of(spec)
    about = {"model_type": family.name, "architectures": [family.architecture], "dtype": dtype.name}
    config = {**about, **family.write(spec), **special}
    if families.read_spec(directory / "config.json", config) != spec:
        raise InputError(
            f"{directory}: Hugging Face's format of {spec.family} models cannot hold this one's sizes: {spec}"
        )
    _write_json(directory / "config.json", config)


def _check_params(spec: DecoderSpec, params: decoder.Params) -> None:
    """Raises InputError for a parameter that the model, the family's table or the tree lacks."""
    model = {leaf: struct.shape for leaf, struct in loader.leaves(Decoder(spec)).items()}
    given = {leaf: tuple(array.shape) for leaf, array in loader.flatten(params).items()}
    table = {mapping.leaf for mapping in families.of(spec).tensors(spec)}
    for leaf in sorted(model.keys() | given.keys() | table):
        if leaf not in given or leaf not in model or given[leaf] != model[leaf]:
            raise InputError(
                f"a {spec.family} model with the parameter {leaf} {given.get(leaf, 'missing')} cannot be written: "
                f"its spec has {model.get(leaf, 'none')}"
            )
        if leaf not in table:
            raise InputError(f"Hugging Face's format of {spec.family} models has no tensor for the parameter {leaf}")


def _special_ids(tokenizer: JsonTokenizer) -> dict[str, Any]:
    """The ids of special tokens in config.json and generation_config.json."""
    ends, spec = list(tokenizer.end_ids), tokenizer.spec()
    bos = tokenizer.bos_id
    if bos is None:  # named in the files and not put before a text
        bos = token_ids(spec["tokenizer"]).get(spec["template_tokens"].get("bos_token", ""))
    return {"bos_token_id": bos, "eos_token_id": ends if len(ends) > 1 else ends[0]}


def _save_tokenizer(directory: Path, tokenizer: JsonTokenizer, max_positions: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json. The class is the one that takes tokenizer.json as it is."""
    spec = tokenizer.spec()
    _write_json(directory / "tokenizer.json", spec["tokenizer"])
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_positions,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": tokenizer.bos_id is not None,
        **spec["template_tokens"],
        "eos_token": tokenizer.token(tokenizer.end_ids[0]),
    }
    if tokenizer.bos_id is not None:
        about["bos_token"] = tokenizer.token(tokenizer.bos_id)
    if spec["chat_template"]:
        about["chat_template"] = spec["chat_template"]
    _write_json(directory / "tokenizer_config.json", about)


def _save_tensors(
    directory: Path, spec: DecoderSpec, params: decoder.Params, dtype: np.dtype, shard_bytes: int
) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    tensors = _file_tensors(spec)
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
        path = directory / file
        with disk_errors_as_input_errors(path, SafetensorError):
            path.touch()
            mode = path.stat().st_mode  # which the umask allows; safetensors makes files that only their owner reads
            arrays = {name: _gather(tensors[name][1], params, dtype) for name in names}
            if wrong := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
                raise InputError(f"{path}: {wrong[0]} holds values that are not finite numbers of {dtype.name}")
            save_file(arrays, path, {"format": "pt"})
            path.chmod(mode)
        weight_map.update(dict.fromkeys(names, file))
    if len(plan) > 1:
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        _write_json(directory / "model.safetensors.index.json", index)


def _check_tensors(directory: Path, spec: DecoderSpec, params: decoder.Params, dtype: np.dtype) -> None:
    """Raises InputError unless a directory's weight files hold these parameters, bit for bit, and nothing else.

    Costs a second copy of the parameters from the device, one tensor at a time, and a read of the files: 1.5 seconds of
    one CPU core for the 135 million float32 weights of SmolLM2.
    """
    expected = _file_tensors(spec)
    try:
        stored = open_directory(directory)
        if differing := sorted(stored.keys() ^ expected.keys()):
            raise ValueError(f"{differing[0]} is {'surplus' if differing[0] in stored else 'missing'}")
        for name, (_, parts) in expected.items():
            array, on_disk = _gather(parts, params, dtype), stored[name].read()
            bits = f"u{dtype.itemsize}"
            if on_disk.dtype != dtype or not np.array_equal(on_disk.view(bits), array.view(bits)):
                raise ValueError(f"{name} differs")
    except (ValueError, OSError, InputError) as error:
        raise _not_what_was_saved(directory, error) from error


def _check_tokenizer(directory: Path, tokenizer: JsonTokenizer) -> None:
    """Raises InputError unless a directory's files give an equal tokenizer."""
    try:
        stored = load_directory(directory)
        for name in ("pieces", "end_ids", "bos_id"):
            if getattr(stored, name) != getattr(tokenizer, name):
                raise ValueError(f"the tokenizer's {name} differ")
    except (ValueError, InputError) as error:
        raise _not_what_was_saved(directory, error) from error


def _not_what_was_saved(directory: Path, error: Exception) -> InputError:
    return InputError(
        f"{directory}: what is on disk is not what was saved ({error}); check the disk and its free space, delete the "
        "directory and rerun"
    )


def _write_json(path: Path, value: Any) -> None:
    """Not RunDirectory.write_json: that adds our checksums.json, and an export holds its format's files only."""
    atomic_write(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


_Part = tuple[TensorMapping, int | None]  # and the layer


def _file_tensors(spec: DecoderSpec) -> dict[str, tuple[tuple[int, ...], list[_Part]]]:
    """Tensor name in the file -> its shape, and the mappings of its parts."""
    mappings = {mapping.leaf: mapping for mapping in families.of(spec).tensors(spec)}
    tensors: dict[str, tuple[tuple[int, ...], list[_Part]]] = {}
    for leaf, layer, shape in loader.tensors(Decoder(spec)):
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
        array = np.asarray(leaf if layer is None else leaf[layer])
        with np.errstate(over="ignore"):  # no warnings: infinities are refused
            arrays.append(mapping.to_file(array.astype(dtype)))
    return np.ascontiguousarray(np.concatenate(arrays, axis=-1))
