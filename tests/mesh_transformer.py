"""Reads the checkpoints of the original (mesh-transformer-jax) for tests: written apart from star_jax.convert.

`step_N/shard_K/{0..15}.npz` hold a shard's flattened leaves, split over the files in order. A shard's parameters
are the leaves of a dict with sorted names, behind the optimizer state if there is one and before the step.
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


def read_params(directory: Path, n_layers: int, n_heads: int) -> Any:
    """The checkpoint `step_N` as a star_jax parameter tree of float32 arrays."""
    folders = sorted(directory.glob("shard_*"), key=lambda path: int(path.name.split("_")[1]))
    shards = [_named(_leaves(folder), n_layers) for folder in folders]

    def join(name: str, axis: int) -> np.ndarray:
        return np.concatenate([shard[name] for shard in shards], axis=axis)

    def total(name: str) -> np.ndarray:  # a bias added on every shard, ahead of the sum over shards
        return sum(shard[name] for shard in shards)

    def layer(n: int) -> Any:
        at = f"layer_{n}/"
        heads_in = (shards[0][at + "linear/w"].shape[0], n_heads, -1)
        return {
            "attention": {
                "query": join(at + "linear/w", 1).reshape(heads_in),
                "value": join(at + "linear_1/w", 1).reshape(heads_in),
                "key": join(at + "linear_2/w", 1).reshape(heads_in),
                "out": join(at + "linear_3/w", 0).reshape(n_heads, -1, heads_in[0]),
            },
            "mlp": {
                "in": {"kernel": join(at + "linear_4/w", 1), "bias": join(at + "linear_4/b", 0)},
                "out": {"kernel": join(at + "linear_5/w", 0), "bias": total(at + "linear_5/b")},
            },
            "norm": {"scale": shards[0][at + "norm/scale"], "bias": shards[0][at + "norm/offset"]},
        }

    return {
        "embedding": {"embedding": join("embedding/w", 0) + total("embedding/b")},  # the bias goes into every row
        "blocks": _stack([layer(n) for n in range(n_layers)]),
        "final_norm": {"scale": shards[0]["projection/norm/scale"], "bias": shards[0]["projection/norm/offset"]},
        "head": {"kernel": join("projection/w", 1), "bias": join("projection/b", 0)},
    }


def _leaves(folder: Path) -> list[np.ndarray]:
    leaves = []
    for number in range(16):
        with np.load(folder / f"{number}.npz", allow_pickle=False) as file:
            leaves += [_float32(file[f"arr_{i}"]) for i in range(len(file.files))]
    return leaves


def _float32(leaf: np.ndarray) -> np.ndarray:
    """bfloat16 is stored as two bytes without a type."""
    return leaf.view(ml_dtypes.bfloat16).astype(np.float32) if leaf.dtype == np.dtype("V2") else leaf


def _named(leaves: list[np.ndarray], n_layers: int) -> Named:
    names = ["embedding/b", "embedding/w"]
    names += [f"{layer}/{name}" for layer in sorted(f"layer_{n}" for n in range(n_layers)) for name in _LAYER]
    names += ["projection/b", "projection/w", "projection/norm/offset", "projection/norm/scale"]
    # full: count, mu, nu, count, params, step; slim: params, step; or the params alone
    first = {len(names): 0, len(names) + 1: 0, 3 * len(names) + 3: 2 * len(names) + 2}[len(leaves)]
    return dict(zip(names, leaves[first : first + len(names)], strict=True))


def _stack(layers: list[Any]) -> Any:
    if isinstance(layers[0], dict):
        return {key: _stack([layer[key] for layer in layers]) for key in layers[0]}
    return np.stack(layers)
