"""t5x train states that start from a model directory's weights."""

from typing import Any

import flax.core
import jax
from jax.sharding import AxisType, Mesh

from star_jax.contrib.t5x.importing import import_t5x
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.weights import checkpoint, placement


def from_base(*, init_fn: Any, partitioner: Any, **options: Any) -> Any:
    """A t5x TrainStateInitializer whose "from scratch" is the weights of the directory that the model was made from.

    For `train.train_state_initializer_cls`; `init_fn` is `get_initial_variables` of a `decoder_only` model. A t5x
    checkpoint, in model_dir or named to be restored, takes precedence as usual.

    Raises InputError if the parameters do not divide over the partitioner's mesh.
    """
    t5x: Any = import_t5x()
    model = init_fn.__self__
    try:  # here and not in `from_scratch`, when t5x runs threads that an exception leaves hanging
        placement.param_shardings(model.module, _our_mesh(partitioner.mesh))
    except InputError as error:
        reason = str(error).split(": ", 1)[1]
        raise InputError(f"num_partitions (on CPUs t5x takes all devices, whatever it is): {reason}") from error

    class FromBase(t5x.utils.TrainStateInitializer):
        def from_scratch(self, init_rng: Any) -> Any:
            state = super().from_scratch(init_rng)
            return state.replace_params(base_params(model.base, state.params))

    return FromBase(init_fn=init_fn, partitioner=partitioner, **options)


def base_params(base: str, like: Any) -> Any:
    """A directory's weights with the shardings and the dtype of `like`, parameters on a t5x mesh. Frees `like`."""
    first = jax.tree.leaves(like)[0]
    shardings = jax.tree.map(lambda leaf: leaf.sharding, like)
    jax.tree.map(lambda leaf: leaf.delete(), like)
    _, params = checkpoint.load_model(base, _our_mesh(first.sharding.mesh), first.dtype)
    return jax.tree.map(jax.device_put, flax.core.freeze(params), shardings)


def _our_mesh(mesh: Mesh) -> Mesh:
    """The devices of a t5x mesh in the same order with our axis names: its "model" is "tensor", the rest is "data"."""
    grid = mesh.devices.reshape(-1, 1, mesh.shape["model"])
    return Mesh(grid, sharding.MESH_AXES, axis_types=(AxisType.Auto,) * grid.ndim)
