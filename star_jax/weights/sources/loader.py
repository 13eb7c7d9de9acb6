"""The protocol that every foreign format implements, and the one loop that loads any of them onto a mesh."""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax.config import ModelConfig, from_dict_of
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.tokenizers.base import Tokenizer
from star_jax.weights import placement

STACKED = "blocks/"  # leaves below it hold all layers, layer axis first


class Source(Protocol):
    """A model on disk whose names, shapes and dtypes have been checked."""

    place: Path
    config: ModelConfig
    dtype: np.dtype  # that of its weights; of the widest where they differ

    def name(self, leaf: str, layer: int | None) -> str:
        """What the tensor is called in the file, for messages."""
        ...

    def read(self, leaf: str, layer: int | None) -> np.ndarray:
        """One tensor in our layout, e.g. [D, H, K] for "blocks/attention/query". Raises InputError."""
        ...

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer that lies beside the weights, if there is one. Raises InputError where it is broken."""
        ...


def read_sizes(path: Path, values: dict[str, Any], names: dict[str, str]) -> dict[str, int]:
    """Our name -> the whole number at their name in the file `path`. Raises InputError naming it."""
    for theirs in names.values():
        if not isinstance(values.get(theirs), int) or isinstance(values[theirs], bool):
            raise InputError(f"{path}: {theirs} must be a whole number, got {values.get(theirs)!r}")
    return {ours: values[theirs] for ours, theirs in names.items()}


def model_config(path: Path, values: dict[str, Any]) -> ModelConfig:
    """The sizes that the file `path` gives, checked. Raises InputError naming the file."""
    try:
        config: ModelConfig = from_dict_of(ModelConfig, values, "model")
        config.check_complete()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return config


def leaves(model: decoder.GPT) -> dict[str, jax.ShapeDtypeStruct]:
    """ "blocks/attention/query" -> shape and dtype, for every parameter."""
    flat = jax.tree_util.tree_flatten_with_path(placement.unbox(placement.abstract_params(model)))[0]
    return {placement.leaf_name(path): leaf for path, leaf in flat}


def tensors(model: decoder.GPT) -> Iterator[tuple[str, int | None, tuple[int, ...]]]:
    """(leaf, layer or None, shape) of every tensor: the stacked leaves are cut into their layers."""
    for leaf, struct in leaves(model).items():
        if leaf.startswith(STACKED):
            yield from ((leaf, n, struct.shape[1:]) for n in range(model.config.n_layers))
        else:
            yield leaf, None, struct.shape


def load(source: Source, mesh: Mesh, dtype: np.dtype | str) -> tuple[decoder.GPT, decoder.Params]:
    """(model, parameters) on the mesh, in `dtype`: the host never holds more than one tensor of one layer.

    Raises InputError naming the tensor for what cannot be read and for weights that are not finite.
    """
    model = decoder.GPT(source.config)
    places = placement.param_shardings(model, mesh)
    flat_places = {placement.leaf_name(path): place for path, place in _flatten(places)}
    flat: dict[str, jax.Array] = {}
    for leaf, layer, _ in tensors(model):
        tensor, place = source.read(leaf, layer), flat_places[leaf]
        if layer is not None:
            place = NamedSharding(mesh, PartitionSpec(*place.spec[1:]))
        placed = sharding.put(tensor, place).astype(dtype)
        if not _finite(placed):
            raise InputError(
                f"{source.place}: {source.name(leaf, layer)} holds values that are not finite numbers "
                f"of {np.dtype(dtype).name}; get it anew, or take a wider dtype"
            )
        if layer is None:
            flat[leaf] = placed
            continue
        if layer == 0:
            shape = (source.config.n_layers, *tensor.shape)
            flat[leaf] = jnp.zeros(shape, dtype, device=flat_places[leaf])
        flat[leaf] = _put_layer(flat[leaf], layer, placed)
    return model, jax.tree_util.tree_map_with_path(lambda path, _: flat[placement.leaf_name(path)], places)


def check_finite(place: Path, params: decoder.Params) -> None:
    """Raises InputError naming the first leaf that holds something else than finite numbers of its dtype."""
    for path, leaf in _flatten(params):
        if not _finite(leaf):
            name = placement.leaf_name(path)
            raise InputError(f"{place}: {name} holds values that are not finite numbers of {leaf.dtype}")


def _flatten(tree: decoder.Params) -> list[tuple[tuple[jax.tree_util.DictKey, ...], Any]]:
    return jax.tree_util.tree_flatten_with_path(tree)[0]


@jax.jit
def _finite(tensor: jax.Array) -> jax.Array:
    return jnp.all(jnp.isfinite(tensor))


@functools.partial(jax.jit, donate_argnums=0)
def _put_layer(leaf: jax.Array, layer: int, tensor: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(leaf, tensor, layer, 0)
