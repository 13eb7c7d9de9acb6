"""The protocol that every foreign format implements, and the one function that loads any of them onto a mesh."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax.distributed import sharding
from star_jax.errors import InputError, shown
from star_jax.models import decoder
from star_jax.models.decoder import Decoder
from star_jax.models.spec import DecoderSpec
from star_jax.tokenizers.base import Tokenizer
from star_jax.weights import placement
from star_jax.weights.finite import all_finite

STACKED = "blocks/"  # prefix of the leaves that hold all layers, layer axis first


class WeightSource(Protocol):
    """A model on disk. Its constructor has checked the names, shapes and dtypes of all tensors."""

    path: Path
    spec: DecoderSpec
    dtype: np.dtype  # the narrowest float type that holds every weight exactly (float64 excepted)

    def name(self, leaf: str, layer: int | None) -> str:
        """The tensor's name in the file, for messages."""
        ...

    def read(self, leaf: str, layer: int | None) -> np.ndarray:
        """One tensor in our layout, e.g. [D, H, K] for "blocks/attention/query". Raises InputError."""
        ...

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer stored next to the weights, or None. Raises InputError if it is malformed."""
        ...


def load(source: WeightSource, mesh: Mesh, dtype: np.dtype | str) -> tuple[Decoder, decoder.Params]:
    """(model, parameters) on the mesh, in `dtype`. The host holds one tensor of one layer at a time.

    Raises InputError naming the tensor if one cannot be read or holds values that are not finite in `dtype`.
    """
    model = Decoder(source.spec)
    shardings = placement.param_shardings(model, mesh)
    sharding_of = {placement.leaf_name(path): of_leaf for path, of_leaf in _flatten(shardings)}
    params: dict[str, jax.Array] = {}
    for leaf, layer, _ in tensors(model):
        array = source.read(leaf, layer)
        of_tensor = sharding_of[leaf]
        if layer is not None:
            of_tensor = NamedSharding(mesh, PartitionSpec(*of_tensor.spec[1:]))
        tensor = sharding.put(array, of_tensor).astype(dtype)
        if not all_finite(tensor):
            raise InputError(
                f"{source.path}: {source.name(leaf, layer)} holds values that are not finite numbers "
                f"of {np.dtype(dtype).name}; download the file again, or use a wider dtype"
            )
        if layer is None:
            params[leaf] = tensor
            continue
        if layer == 0:
            params[leaf] = jnp.zeros((source.spec.n_layers, *array.shape), dtype, device=sharding_of[leaf])
        params[leaf] = _set_layer(params[leaf], layer, tensor)
    return model, jax.tree_util.tree_map_with_path(lambda path, _: params[placement.leaf_name(path)], shardings)


def tensors(model: Decoder) -> Iterator[tuple[str, int | None, tuple[int, ...]]]:
    """(leaf, layer, shape) of every tensor to read: one for each layer of a stacked leaf, else one with layer None."""
    for leaf, struct in leaves(model).items():
        if leaf.startswith(STACKED):
            yield from ((leaf, n, struct.shape[1:]) for n in range(model.spec.n_layers))
        else:
            yield leaf, None, struct.shape


def leaves(model: Decoder) -> dict[str, jax.ShapeDtypeStruct]:
    """Name, such as "blocks/attention/query", -> shape and dtype of every parameter."""
    return flatten(placement.unbox(placement.abstract_params(model)))


def flatten(tree: decoder.Params) -> dict[str, Any]:
    """Name -> leaf of a tree of parameters."""
    return {placement.leaf_name(path): leaf for path, leaf in _flatten(tree)}


def read_sizes(path: Path, values: dict[str, Any], names: dict[str, str]) -> dict[str, int]:
    """Our name -> the integer under the file's name for it.

    Args:
      path: the file that `values` was read from, for messages.
      names: our name -> the file's name.

    Raises InputError for a value that is missing or not an integer.
    """
    for theirs in names.values():
        if not isinstance(values.get(theirs), int) or isinstance(values[theirs], bool):
            raise InputError(f"{path}: {theirs} must be an integer, got {shown(values.get(theirs))}")
    return {ours: values[theirs] for ours, theirs in names.items()}


def _flatten(tree: decoder.Params) -> list[tuple[tuple[jax.tree_util.DictKey, ...], Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


@functools.partial(jax.jit, donate_argnums=0)
def _set_layer(leaf: jax.Array, layer: int, tensor: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(leaf, tensor, layer, 0)
