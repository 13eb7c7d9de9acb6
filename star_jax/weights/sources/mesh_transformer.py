"""Reads checkpoints of mesh-transformer-jax (the paper's code, and GPT-J's): `step_N/shard_K/{0..15}.npz`.

A shard is a list of arrays: the leaves of parameter dicts in the order of their sorted names, and counters.

    full   Adam's count, first moments, second moments, the schedule's count, parameters, step
    slim   parameters, step

The list is split over the 16 files in order; the first `len % 16` files hold one array more. Layers sort as
strings: layer_1, layer_10, layer_11, layer_2. bfloat16 is stored as two bytes without a type ("V2").
"""

import dataclasses
import functools
import math
import tokenize
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from star_jax.errors import InputError, first_line, shown
from star_jax.json_reader import open_regular, read_json_object
from star_jax.models.decoder import Decoder
from star_jax.models.families import gptj
from star_jax.models.spec import DecoderSpec
from star_jax.weights.sources import loader
from star_jax.weights.sources.tensor_files import DOWNLOAD_AGAIN

FILES = 16  # in each shard
_MAX_DEFLATE_RATIO = 1032  # no deflated file unpacks to more
# Raised by NumPy and the zip reader for damaged archives and other files.
_UNREADABLE = (
    *(ValueError, KeyError, OSError, EOFError, RuntimeError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)


@dataclasses.dataclass(frozen=True)
class ShardedTensor:
    """One of our leaves, the checkpoint's array that holds it, and how its shards combine."""

    leaf: str
    name: str  # in the checkpoint; {n} is the layer
    axis: int | None  # the shards' concatenation axis; None: all shards hold the same values
    summed: bool = False  # a bias that each shard adds before the all-reduce: the model's bias is the shards' sum


_L = "layer_{n}/"
TABLE = {
    tensor.leaf: tensor
    for tensor in (
        ShardedTensor("embedding/embedding", "embedding/w", 0),
        ShardedTensor("blocks/attention/query", _L + "linear/w", 1),
        ShardedTensor("blocks/attention/value", _L + "linear_1/w", 1),
        ShardedTensor("blocks/attention/key", _L + "linear_2/w", 1),
        ShardedTensor("blocks/attention/out", _L + "linear_3/w", 0),
        ShardedTensor("blocks/mlp/in/bias", _L + "linear_4/b", 0),
        ShardedTensor("blocks/mlp/in/kernel", _L + "linear_4/w", 1),
        ShardedTensor("blocks/mlp/out/bias", _L + "linear_5/b", None, summed=True),
        ShardedTensor("blocks/mlp/out/kernel", _L + "linear_5/w", 0),
        ShardedTensor("blocks/norm/bias", _L + "norm/offset", None),
        ShardedTensor("blocks/norm/scale", _L + "norm/scale", None),
        ShardedTensor("head/bias", "projection/b", 0),
        ShardedTensor("head/kernel", "projection/w", 1),
        ShardedTensor("final_norm/bias", "projection/norm/offset", None),
        ShardedTensor("final_norm/scale", "projection/norm/scale", None),
    )
}
# Added to every embedded token on every shard. Our model has no such bias: it is added to each row of the embedding.
_EMBEDDING_BIAS = "embedding/b"


class MeshTransformerSource:
    """A loader.WeightSource: a checkpoint `step_N` with its JSON config, opened and checked.

    Raises InputError, `read` too.

    Args:
      part: "params", "first_moments" or "second_moments". Moments have the layout of the parameters; only full
        checkpoints hold them.
    """

    def __init__(self, directory: Path, config_file: Path, part: str = "params") -> None:
        self.path, self._part = directory, part
        self.spec = _read_spec(config_file)
        folders = sorted(directory.glob("shard_*"), key=lambda path: (len(path.name), path.name))
        if not folders or [f.name for f in folders] != [f"shard_{k}" for k in range(len(folders))]:
            names = ", ".join(f.name for f in folders) or "none"
            raise InputError(f"{directory}: needs the folders shard_0, shard_1, ... without a gap; there are {names}")
        order = _sorted_names(self.spec.n_layers)
        self._index_of = {name: i for i, name in enumerate(order)}
        self._shards = [_Shard(folder, len(order), part) for folder in folders]
        self._check_agreement()
        self._shapes = {(leaf, layer): shape for leaf, layer, shape in loader.tensors(Decoder(self.spec))}
        # Sums of bfloat16 biases, and embedding rows plus a bias, are not bfloat16 numbers.
        self.dtype = np.dtype(np.float32)

    @property
    def steps(self) -> int:
        """Optimizer steps that the moments have accumulated (Adam's count)."""
        return self._shards[0].scalar(0)

    def name(self, leaf: str, layer: int | None) -> str:
        return TABLE[leaf].name.format(n=layer)

    def read(self, leaf: str, layer: int | None) -> np.ndarray:
        tensor, shape = TABLE[leaf], self._shapes[leaf, layer]
        name = self.name(leaf, layer)
        inputs = 2 if leaf.endswith("attention/out") else 1
        self._check_shapes(name, tensor.axis, _matrix_shape(shape, inputs))
        pieces = [self._piece(shard, name) for shard in self._shards]
        if tensor.summed:
            array = self._sum(pieces)
        elif tensor.axis is None:
            array = pieces[0]
        else:
            array = np.concatenate(pieces, axis=tensor.axis)
        if leaf == "embedding/embedding" and self._part == "params":
            self._check_shapes(_EMBEDDING_BIAS, None, shape[1:])
            pieces = [self._piece(shard, _EMBEDDING_BIAS) for shard in self._shards]
            array = array.astype(np.float32) + self._sum(pieces)
        return array.reshape(shape)

    def tokenizer(self) -> None:
        """None: these checkpoints hold no tokenizer."""

    def _sum(self, pieces: list[np.ndarray]) -> np.ndarray:
        # Every shard's bias has the same gradient, hence the same moments: those of the sum.
        if self._part != "params":
            return pieces[0]
        return np.sum([piece.astype(np.float32) for piece in pieces], axis=0)

    def _piece(self, shard: "_Shard", name: str) -> np.ndarray:
        return shard.array(shard.first + self._index_of[name])

    def _check_agreement(self) -> None:
        """Raises InputError unless all shards are of one checkpoint."""
        first = self._shards[0]
        for shard in self._shards[1:]:
            if shard.total != first.total:
                raise InputError(f"{shard.folder}: holds {shard.total} arrays and {first.folder.name} {first.total}")
            if shard.step != first.step:
                raise InputError(f"{shard.folder}: is of step {shard.step} and {first.folder.name} of {first.step}")

    def _check_shapes(self, name: str, axis: int | None, shape: tuple[int, ...]) -> None:
        """Raises InputError unless each shard's piece is its share of this shape, before one is unpacked."""
        expected = list(shape)
        if axis is not None:
            expected[axis], remainder = divmod(shape[axis], len(self._shards))
            if remainder:
                raise InputError(f"{self.path}: {name} {list(shape)} does not divide over {len(self._shards)} shards")
        for shard in self._shards:
            stored = list(shard.shape(shard.first + self._index_of[name]))
            if stored != expected:
                raise InputError(
                    f"{shard.folder}: {name} has shape {stored}, the config requires {expected} "
                    f"({len(self._shards)} shards of {list(shape)})"
                )


class _Shard:
    """The arrays of one shard, read one at a time.

    Attributes:
      total: number of arrays.
      first: index of the part's first array.
      step: the checkpoint's step, or None if it holds none.
    """

    def __init__(self, folder: Path, n_params: int, part: str) -> None:
        self.folder = folder
        counts = [len(self._open(number).files) for number in range(FILES)]
        self._starts = np.cumsum([0, *counts])  # index of each file's first array
        self.total = total = int(self._starts[-1])
        first = {n_params: 0, n_params + 1: 0, 3 * n_params + 3: 2 * n_params + 2}.get(total)
        if first is None:
            raise InputError(
                f"{folder}: holds {total} arrays; the config's layers make {n_params + 1} (slim) or "
                f"{3 * n_params + 3} (full): check that the config belongs to this checkpoint and the download is whole"
            )
        if part != "params" and not first:
            raise InputError(f"{folder}: a slim checkpoint, which holds no Adam moments; give the full one")
        self.first = {"params": first, "first_moments": 1, "second_moments": 1 + n_params}[part]
        self.step = self.scalar(total - 1) if total > n_params else None

    def scalar(self, index: int) -> int:
        """The counter with this index. Raises InputError."""
        if self.shape(index):
            raise InputError(f"{self.folder}: array {index} must be one number, its shape is {list(self.shape(index))}")
        number = self.array(index)
        if not np.isfinite(number):
            raise InputError(f"{self.folder}: array {index}, a counter, is {number}; {DOWNLOAD_AGAIN}")
        return int(number)

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of an array, from its header: a small archive may unpack to more than the memory.

        Raises InputError where the archive has not the bytes that the header claims: NumPy makes the array first.
        """
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        path = self.folder / f"{number}.npz"
        try:
            member = self._open(number).zip.getinfo(f"arr_{index - int(self._starts[number])}.npy")
            if member.file_size > _MAX_DEFLATE_RATIO * path.stat().st_size:
                raise ValueError(f"its directory claims {member.file_size:,} bytes in {member.compress_size:,}")
            with self._open(number).zip.open(member) as file:
                version = np.lib.format.read_magic(file)
                formats = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                if version not in formats:
                    raise ValueError(f"its header has the version {version}")
                shape: tuple[int, ...]
                shape, _, dtype = formats[version](file)
                if dtype.hasobject:
                    raise ValueError("Object arrays cannot be loaded")
                if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
                    raise ValueError(f"its header claims {list(shape)} of {dtype}, which are not the bytes that follow")
                return shape
        except _UNREADABLE as error:
            raise InputError(f"{path}: cannot be read ({first_line(error)}); {DOWNLOAD_AGAIN}") from error

    def array(self, index: int) -> np.ndarray:
        """The array with this index in the shard's list. Raises InputError."""
        number = int(np.searchsorted(self._starts, index, side="right")) - 1
        path = self.folder / f"{number}.npz"
        try:
            array: np.ndarray = self._open(number)[f"arr_{index - int(self._starts[number])}"]
        except _UNREADABLE as error:
            raise InputError(f"{path}: cannot be read ({first_line(error)}); {DOWNLOAD_AGAIN}") from error
        if array.dtype == np.dtype("V2"):
            return array.view(ml_dtypes.bfloat16)
        # Counters may be integers, parameters are not. No parameter has more than 64 bits.
        if array.dtype.kind not in ("f" if array.shape else "fi") or array.dtype.itemsize > 8:
            raise InputError(f"{path}: holds an array of {array.dtype}, not of numbers; {DOWNLOAD_AGAIN}")
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _open(self, number: int) -> Any:
        return _open_npz(self.folder / f"{number}.npz")


@functools.lru_cache(maxsize=256)
def _open_npz(path: Path) -> Any:
    """An archive, opened: arrays are read when they are used, and nothing is unpickled."""
    try:
        with open_regular(path) as file:  # np.load reads a single array, of the size that its header claims
            if (start := file.read(6)) == np.lib.format.MAGIC_PREFIX:
                raise ValueError("a single array")
            if start[:4] != b"PK\3\4":  # np.load would take it for a pickle
                raise ValueError("not a zip archive")
        return np.load(path, allow_pickle=False)
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a complete npz archive ({first_line(error)}); {DOWNLOAD_AGAIN}") from error


def _matrix_shape(shape: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    """The checkpoint's shape: a vector, or [inputs, outputs] with all heads in one axis."""
    return shape if len(shape) < 3 else (math.prod(shape[:inputs]), math.prod(shape[inputs:]))


def _sorted_names(n_layers: int) -> list[str]:
    """The checkpoint's names of one parameter tree, in the order of its arrays."""
    in_layer = [
        *(f"linear{n}/w" for n in ("", "_1", "_2", "_3")),
        *("linear_4/b", "linear_4/w", "linear_5/b", "linear_5/w", "norm/offset", "norm/scale"),
    ]
    layers = [f"{layer}/{name}" for layer in sorted(f"layer_{n}" for n in range(n_layers)) for name in in_layer]
    head = [f"projection/{name}" for name in ("b", "w", "norm/offset", "norm/scale")]
    return [_EMBEDDING_BIAS, "embedding/w", *layers, *head]


def _read_spec(path: Path) -> DecoderSpec:
    values = read_json_object(path, DOWNLOAD_AGAIN)
    for key, supported in (("pe", "rotary"), ("norm", "layernorm")):
        if values.get(key, supported) != supported:
            raise InputError(f"{path}: {key} is {shown(values[key])}; star_jax supports {supported!r} only")
    names = {"n_layers": "layers", "d_model": "d_model", "n_heads": "n_heads", "vocab_size": "n_vocab"}
    names |= {"rotary_dim": "pe_rotary_dims", "max_positions": "seq"}
    sizes: dict[str, Any] = loader.read_sizes(path, values, names)
    try:
        return gptj.spec(**sizes, d_mlp=4 * sizes["d_model"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
