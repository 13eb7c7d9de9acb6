"""mesh-transformer-jax checkpoints (the original's and GPT-J's own), in: `step_N/shard_K/{0..15}.npz`.

A shard's leaves are those of a dict with sorted names; a full checkpoint holds Adam's count, first and second moments
and the schedule's count before the parameters, and every checkpoint the step behind them:

    full   count, first moments, second moments, count, parameters, step
    slim   parameters, step

The leaves are split over the 16 files in order, the first `len % 16` files holding one more. Layers sort as
strings: layer_1, layer_10, layer_11, layer_2. bfloat16 is stored as two bytes without a type ("V2").
"""

import dataclasses
import functools
import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from star_jax.config import ModelConfig
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.runs.json_files import read_json_object
from star_jax.weights.sources import loader

FILES = 16  # a shard
# What NumPy and the zip reader raise for an archive that is damaged, or holds something else.
_UNREADABLE = (
    *(ValueError, KeyError, OSError, EOFError, RuntimeError, MemoryError, OverflowError),
    *(zipfile.BadZipFile, zlib.error),
)
# What a checkpoint holds that the loop can use. The moments are of full checkpoints only.
PARTS = ("params", "first_moments", "second_moments")


@dataclasses.dataclass(frozen=True)
class Row:
    """Where one of our leaves stands in their tree, and how its shards are joined."""

    leaf: str
    name: str  # theirs; {n} is the layer
    join: int | None  # the axis the shards are concatenated on; None: all shards hold the same
    summed: bool = False  # a bias added on every shard, ahead of the sum over shards: its shards add up


_L = "layer_{n}/"
TABLE = {
    row.leaf: row
    for row in (
        Row("embedding/embedding", "embedding/w", 0),
        Row("blocks/attention/query", _L + "linear/w", 1),
        Row("blocks/attention/value", _L + "linear_1/w", 1),
        Row("blocks/attention/key", _L + "linear_2/w", 1),
        Row("blocks/attention/out", _L + "linear_3/w", 0),
        Row("blocks/mlp/in/bias", _L + "linear_4/b", 0),
        Row("blocks/mlp/in/kernel", _L + "linear_4/w", 1),
        Row("blocks/mlp/out/bias", _L + "linear_5/b", None, summed=True),
        Row("blocks/mlp/out/kernel", _L + "linear_5/w", 0),
        Row("blocks/norm/bias", _L + "norm/offset", None),
        Row("blocks/norm/scale", _L + "norm/scale", None),
        Row("head/bias", "projection/b", 0),
        Row("head/kernel", "projection/w", 1),
        Row("final_norm/bias", "projection/norm/offset", None),
        Row("final_norm/scale", "projection/norm/scale", None),
    )
}
# Added to every embedded token on every shard. Hugging Face has no place for it, nor have we: it goes into each row.
_EMBEDDING_BIAS = "embedding/b"


class MeshTransformerSource:
    """A checkpoint `step_N` with the original's JSON config, opened and checked. Raises InputError, also from `read`.

    `part`: "params", or Adam's "first_moments" or "second_moments", which have the parameters' layout.
    """

    def __init__(self, directory: Path, config_file: Path, part: str = "params") -> None:
        self.place, self._part = directory, part
        self.config = _read_config(config_file)
        folders = sorted(directory.glob("shard_*"), key=lambda path: (len(path.name), path.name))
        if not folders or [f.name for f in folders] != [f"shard_{k}" for k in range(len(folders))]:
            there = ", ".join(f.name for f in folders) or "none"
            raise InputError(f"{directory}: needs the folders shard_0, shard_1, ... without a gap; there are {there}")
        names = _sorted_names(self.config.n_layers)
        self._places = {name: i for i, name in enumerate(names)}
        self._shards = [_Shard(folder, len(names), part) for folder in folders]
        self._check_agreement()
        self._shapes = {(leaf, layer): shape for leaf, layer, shape in loader.tensors(decoder.GPT(self.config))}
        # Biases that add up over shards, and rows with a bias folded in, are no bfloat16 numbers any more.
        self.dtype = np.dtype(np.float32)

    @property
    def steps(self) -> int:
        """Optimizer steps behind the moments (Adam's count)."""
        return int(self._shards[0].leaf(0))

    def name(self, leaf: str, layer: int | None) -> str:
        return TABLE[leaf].name.format(n=layer)

    def read(self, leaf: str, layer: int | None) -> np.ndarray:
        row, shape = TABLE[leaf], self._shapes[leaf, layer]
        name = self.name(leaf, layer)
        pieces = [self._leaf(shard, name) for shard in self._shards]
        out = leaf.endswith("attention/out")
        self._check_shapes(name, row.join, pieces, _matrix(shape, inputs=2 if out else 1))
        if row.summed:
            joined = self._sum(pieces)
        elif row.join is None:
            joined = pieces[0]
        else:
            joined = np.concatenate(pieces, axis=row.join)
        if leaf == "embedding/embedding" and self._part == "params":
            pieces = [self._leaf(shard, _EMBEDDING_BIAS) for shard in self._shards]
            self._check_shapes(_EMBEDDING_BIAS, None, pieces, shape[1:])
            joined = joined.astype(np.float32) + self._sum(pieces)
        return joined.reshape(shape)

    def tokenizer(self) -> None:
        """These checkpoints have none beside them."""

    def _sum(self, pieces: list[np.ndarray]) -> np.ndarray:
        # Every shard's copy has the same gradient, so moments are not summed: each is that of the sum.
        if self._part != "params":
            return pieces[0]
        return np.sum([piece.astype(np.float32) for piece in pieces], axis=0)

    def _leaf(self, shard: "_Shard", name: str) -> np.ndarray:
        return shard.leaf(shard.first + self._places[name])

    def _check_agreement(self) -> None:
        """All shards are of one checkpoint."""
        first = self._shards[0]
        for shard in self._shards[1:]:
            if shard.total != first.total:
                raise InputError(f"{shard.folder}: holds {shard.total} arrays and {first.folder.name} {first.total}")
            if shard.step != first.step:
                raise InputError(f"{shard.folder}: is of step {shard.step} and {first.folder.name} of {first.step}")

    def _check_shapes(self, name: str, join: int | None, pieces: list[np.ndarray], whole: tuple[int, ...]) -> None:
        wanted = list(whole)
        if join is not None:
            wanted[join], rest = divmod(whole[join], len(pieces))
            if rest:
                raise InputError(f"{self.place}: {name} {list(whole)} does not divide over {len(pieces)} shards")
        for shard, piece in zip(self._shards, pieces, strict=True):
            if list(piece.shape) != wanted:
                raise InputError(
                    f"{shard.folder}: {name} has shape {list(piece.shape)}, the config asks for {wanted} "
                    f"({len(pieces)} shards of {list(whole)})"
                )


class _Shard:
    """The leaves of one shard, found and read one at a time."""

    def __init__(self, folder: Path, n_params: int, part: str) -> None:
        self.folder = folder
        counts = [len(self._open(number).files) for number in range(FILES)]
        self._starts = np.cumsum([0, *counts])
        self.total = total = int(self._starts[-1])
        first = {n_params: 0, n_params + 1: 0, 3 * n_params + 3: 2 * n_params + 2}.get(total)
        if first is None:
            raise InputError(
                f"{folder}: holds {total} arrays; the config's layers make {n_params + 1} (slim) "
                f"or {3 * n_params + 3} (full): is it the config of this checkpoint, is the download whole?"
            )
        if part != "params" and not first:
            raise InputError(f"{folder}: a slim checkpoint, which holds no Adam moments; take the full one")
        self.first = {"params": first, "first_moments": 1, "second_moments": 1 + n_params}[part]
        self.step = self.leaf(total - 1).tolist() if total > n_params else None

    def leaf(self, place: int) -> np.ndarray:
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        try:
            array: np.ndarray = self._open(number)[f"arr_{place - int(self._starts[number])}"]
        except _UNREADABLE as error:
            raise InputError(f"{self.folder}/{number}.npz: cannot be read ({error}); get it anew") from error
        if array.dtype == np.dtype("V2"):
            return array.view(ml_dtypes.bfloat16)
        if array.dtype.kind not in "fi":
            raise InputError(f"{self.folder}/{number}.npz: holds an array of {array.dtype} and not of numbers")
        return array.astype(array.dtype.newbyteorder("="), copy=False)

    def _open(self, number: int) -> Any:
        return _open_npz(self.folder / f"{number}.npz")


@functools.lru_cache(maxsize=256)
def _open_npz(path: Path) -> Any:
    """The archive's directory; arrays are read when they are asked for, and nothing is ever unpickled."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array")
        return archive
    except _UNREADABLE as error:
        raise InputError(f"{path}: not a whole npz archive ({error}); get it anew") from error


def _matrix(shape: tuple[int, ...], inputs: int) -> tuple[int, ...]:
    """Theirs are matrices [inputs, outputs] or vectors; the heads are one axis."""
    return shape if len(shape) < 3 else (math.prod(shape[:inputs]), math.prod(shape[inputs:]))


def _sorted_names(n_layers: int) -> list[str]:
    """Their names of one parameter tree, in the order of its leaves."""
    of_layer = [
        *(f"linear{n}/w" for n in ("", "_1", "_2", "_3")),
        *("linear_4/b", "linear_4/w", "linear_5/b", "linear_5/w", "norm/offset", "norm/scale"),
    ]
    layers = [f"{layer}/{name}" for layer in sorted(f"layer_{n}" for n in range(n_layers)) for name in of_layer]
    head = [f"projection/{name}" for name in ("b", "w", "norm/offset", "norm/scale")]
    return [_EMBEDDING_BIAS, "embedding/w", *layers, *head]


def _read_config(path: Path) -> ModelConfig:
    values = read_json_object(path, "get the file again")
    for key, only in (("pe", "rotary"), ("norm", "layernorm")):
        if values.get(key, only) != only:
            raise InputError(f"{path}: {key} is {values[key]!r}; star_jax reads checkpoints with {only!r}")
    names = {"n_layers": "layers", "d_model": "d_model", "n_heads": "n_heads", "vocab_size": "n_vocab"}
    names |= {"rotary_dim": "pe_rotary_dims", "max_positions": "seq"}
    sizes: dict[str, Any] = loader.read_sizes(path, values, names)
    return loader.model_config(path, {**sizes, "d_mlp": 4 * sizes["d_model"], "architecture": "gptj"})
