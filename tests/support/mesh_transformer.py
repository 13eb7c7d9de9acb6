"""Reads and writes the original's checkpoints (mesh-transformer-jax) for tests, independently of star_jax.weights.

`step_N/shard_K/{0..15}.npz` hold a shard's flattened leaves, split over the files in order: the optimizer state if
there is one, the leaves of the parameter dict in the order of its names, and the step.
"""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

Named = dict[str, np.ndarray]
_LAYER = (
    *("linear/w", "linear_1/w", "linear_2/w", "linear_3/w", "linear_4/b", "linear_4/w", "linear_5/b", "linear_5/w"),
    *("norm/offset", "norm/scale"),
)
# The axis that is split over shards; leaves that are not listed are the same on every shard.
_CUT = {"embedding/w": 0, "linear_3/w": 0, "linear_4/b": 0, "linear_5/w": 0, "projection/b": 0, "projection/w": 1}
_CUT |= {name: 1 for name in ("linear/w", "linear_1/w", "linear_2/w", "linear_4/w")}
_SUMMED = ("embedding/b", "linear_5/b")  # biases that each shard adds before the sum over shards


def names(n_layers: int) -> list[str]:
    """The original's names in the order of the leaves; layers sort as strings."""
    layers = sorted(f"layer_{n}" for n in range(n_layers))
    blocks = [f"{layer}/{name}" for layer in layers for name in _LAYER]
    head = ["projection/b", "projection/w", "projection/norm/offset", "projection/norm/scale"]
    return ["embedding/b", "embedding/w", *blocks, *head]


def read_shards(directory: Path, n_layers: int, part: str = "params") -> list[Named]:
    """The leaves of every shard, float32. `part`: "params", or "first" or "second" for Adam's moments."""
    folders = sorted(directory.glob("shard_*"), key=lambda path: int(path.name.split("_")[1]))
    return [_named(_leaves(folder), n_layers, part) for folder in folders]


def read_params(directory: Path, n_layers: int, n_heads: int) -> Any:
    """The checkpoint `step_N` as a star_jax parameter tree of float32 arrays."""
    return tree(join(read_shards(directory, n_layers)), n_layers, n_heads)


def join(shards: list[Named]) -> Named:
    """The whole model's arrays."""
    joined = {}
    for name in shards[0]:
        pieces, key = [shard[name] for shard in shards], _key(name)
        if key in _SUMMED:
            joined[name] = sum(pieces)
        else:
            joined[name] = np.concatenate(pieces, axis=_CUT[key]) if key in _CUT else pieces[0]
    return joined


def cut(whole: Named, count: int) -> list[Named]:
    """The inverse of `join`. Shards get 1/2, 1/4, ... of a summed bias; the last two get the same share."""
    shares = [0.5 ** min(k + 1, count - 1) for k in range(count)] if count > 1 else [1.0]

    def piece(name: str, array: np.ndarray, k: int) -> np.ndarray:
        key = _key(name)
        if key in _SUMMED:
            return array * array.dtype.type(shares[k])
        return np.split(array, count, axis=_CUT[key])[k] if key in _CUT else array

    return [{name: piece(name, array, k) for name, array in whole.items()} for k in range(count)]


def tree(whole: Named, n_layers: int, n_heads: int) -> Any:
    """A star_jax parameter tree of the whole model's arrays."""
    d_model = whole["projection/norm/scale"].shape[0]

    def layer(n: int) -> Any:
        at = f"layer_{n}/"
        heads_in = (d_model, n_heads, -1)
        return {
            "attention": {
                "query": whole[at + "linear/w"].reshape(heads_in),
                "value": whole[at + "linear_1/w"].reshape(heads_in),
                "key": whole[at + "linear_2/w"].reshape(heads_in),
                "out": whole[at + "linear_3/w"].reshape(n_heads, -1, d_model),
            },
            "mlp": {
                "in": {"kernel": whole[at + "linear_4/w"], "bias": whole[at + "linear_4/b"]},
                "out": {"kernel": whole[at + "linear_5/w"], "bias": whole[at + "linear_5/b"]},
            },
            "norm": {"scale": whole[at + "norm/scale"], "bias": whole[at + "norm/offset"]},
        }

    return {
        "embedding": {"embedding": whole["embedding/w"] + whole["embedding/b"]},  # the bias is added to every row
        "blocks": _stack([layer(n) for n in range(n_layers)]),
        "final_norm": {"scale": whole["projection/norm/scale"], "bias": whole["projection/norm/offset"]},
        "head": {"kernel": whole["projection/w"], "bias": whole["projection/b"]},
    }


def write(directory: Path, shards: list[Named], full: bool = False, step: int = 3) -> None:
    """A checkpoint `step_N`: slim, or full with moments (the parameters plus one and plus two)."""
    for k, shard in enumerate(shards):
        leaves = [shard[name] for name in _ordered(shard)]
        if full:
            moments = [[leaf.astype(np.float32) + n for leaf in leaves] for n in (1, 2)]
            leaves = [np.array(step), *moments[0], *moments[1], np.array(step), *leaves]
        write_leaves(directory / f"shard_{k}", [*leaves, np.array(step)])


def write_leaves(folder: Path, leaves: list[np.ndarray]) -> None:
    """Writes a shard's leaves into 16 files in order; the first files hold one more where they do not divide."""
    folder.mkdir(parents=True)
    each, more = divmod(len(leaves), 16)
    for number in range(16):
        size = each + (number < more)
        np.savez(folder / f"{number}.npz", *map(_untyped, leaves[:size]))
        del leaves[:size]


def _stack(layers: list[Any]) -> Any:
    """One tree whose leaves have the layer axis first."""
    if isinstance(layers[0], dict):
        return {key: _stack([layer[key] for layer in layers]) for key in layers[0]}
    return np.stack(layers)


def _ordered(shard: Named) -> list[str]:
    return names(len({name.split("/")[0] for name in shard if name.startswith("layer_")}))


def _key(name: str) -> str:
    return name.partition("/")[2] if name.startswith("layer_") else name


def _leaves(folder: Path) -> list[np.ndarray]:
    leaves = []
    for number in range(16):
        with np.load(folder / f"{number}.npz", allow_pickle=False) as file:
            leaves += [_float32(file[f"arr_{i}"]) for i in range(len(file.files))]
    return leaves


def _float32(leaf: np.ndarray) -> np.ndarray:
    """bfloat16 is stored as two bytes without a type."""
    return leaf.view(ml_dtypes.bfloat16).astype(np.float32) if leaf.dtype == np.dtype("V2") else leaf


def _untyped(leaf: np.ndarray) -> np.ndarray:
    return leaf.view("V2") if leaf.dtype == ml_dtypes.bfloat16 else leaf


def _named(leaves: list[np.ndarray], n_layers: int, part: str) -> Named:
    order = names(n_layers)
    # full: count, mu, nu, count, params, step; slim: params, step; or the params alone
    first = {len(order): 0, len(order) + 1: 0, 3 * len(order) + 3: 2 * len(order) + 2}[len(leaves)]
    first = {"params": first, "first": 1, "second": 1 + len(order)}[part]
    return dict(zip(order, leaves[first : first + len(order)], strict=True))
