"""star_jax.sharding: every mesh computes the same, and the parameters lie where the table says."""

import math

import jax
import numpy as np
import optax
import pytest
from conftest import numpy_params
from jax.sharding import PartitionSpec

from star_jax import model as gpt
from star_jax import sharding
from star_jax.config import MeshConfig, ModelConfig
from star_jax.errors import InputError

CONFIG = ModelConfig(n_layers=1, d_model=16, n_heads=4, d_mlp=32, rotary_dim=2, vocab_size=24)
MESHES = [
    MeshConfig(data=8),
    MeshConfig(fsdp=8),
    MeshConfig(fsdp=2, tensor=4),
    MeshConfig(data=2, fsdp=2, tensor=2),
]
TOKENS = np.random.default_rng(0).integers(0, 24, (8, 6)).astype(np.int32)


def name_of(config: MeshConfig) -> str:
    return f"data{config.data}-fsdp{config.fsdp}-tensor{config.tensor}"


@pytest.fixture(scope="module")
def model():
    return gpt.GPT(CONFIG)


@pytest.fixture(scope="module")
def params():
    return numpy_params(CONFIG)


def loss_and_logits(model, params, tokens_BT):
    logits_BTV = gpt.apply(model, params, tokens_BT)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits_BTV[:, :-1], tokens_BT[:, 1:])
    return losses.mean(), logits_BTV


@pytest.fixture(scope="module")
def on_one_device(model, params):
    return jax.device_get(jax.jit(loss_and_logits, static_argnums=0)(model, params, TOKENS))


@pytest.mark.parametrize("config", MESHES, ids=name_of)
def test_a_sharded_forward_pass_equals_one_device(model, params, on_one_device, config):
    mesh = sharding.make_mesh(config)
    placed = jax.device_put(params, sharding.param_shardings(model, mesh))
    with sharding.use(mesh):
        found = jax.jit(loss_and_logits, static_argnums=0)(model, placed, sharding.put_rows(mesh, TOKENS))
    loss, logits_BTV = jax.device_get(found)
    assert abs(loss - on_one_device[0]) < 1e-5
    assert np.max(np.abs(logits_BTV - on_one_device[1])) < 1e-5


def test_no_parameter_lies_twice_along_one_mesh_axis(model):
    """Two logical axes of one parameter on one mesh axis would be an error only on that mesh."""
    axes = dict(sharding.RULES)
    specs = jax.tree.leaves(
        jax.tree.map(tuple, flat_specs(model), is_leaf=is_spec), is_leaf=lambda x: isinstance(x, tuple)
    )
    assert len(specs) == 15
    for spec in specs:
        used = [axis for name in spec if name for axis in np.atleast_1d(axes[name] or [])]
        assert len(used) == len(set(used)), spec


def test_every_logical_axis_is_in_the_table_and_every_mesh_axis_is_used(model):
    named = {name for spec in jax.tree.leaves(flat_specs(model), is_leaf=is_spec) for name in spec}
    assert named <= dict(sharding.RULES).keys()
    used = {axis for _, axes in sharding.RULES if axes for axis in np.atleast_1d(axes)}
    assert used == set(sharding.MESH_AXES)


def flat_specs(model):
    """A PartitionSpec of logical names for each parameter."""
    import flax.linen as nn

    return nn.get_partition_spec(sharding.abstract_params(model))


def is_spec(x):
    return isinstance(x, PartitionSpec)


def test_parameters_lie_as_the_table_says(model):
    """Heads, mlp and vocabulary are split along tensor, the model axis along fsdp."""
    found = sharding.param_shardings(model, sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
    specs = {jax.tree_util.keystr(k, simple=True, separator="/"): s.spec for k, s in jax.tree.leaves_with_path(found)}
    assert specs["embedding/embedding"] == PartitionSpec("tensor", "fsdp")
    assert specs["head/kernel"] == PartitionSpec("fsdp", "tensor")
    for name in ("query", "key", "value"):
        assert specs[f"blocks/attention/{name}"] == PartitionSpec(None, "fsdp", "tensor", None)
    assert specs["blocks/attention/out"] == PartitionSpec(None, "tensor", None, "fsdp")
    assert specs["blocks/mlp/in/kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert specs["blocks/mlp/out/kernel"] == PartitionSpec(None, "tensor", "fsdp")


@pytest.mark.parametrize("config", MESHES, ids=name_of)
def test_no_kernel_is_replicated_where_it_could_be_split(model, params, config):
    """A device holds 1 / (fsdp x tensor) of every kernel and of the embedding."""
    mesh = sharding.make_mesh(config)
    placed = jax.device_put(params, sharding.param_shardings(model, mesh))
    ways = config.fsdp * config.tensor
    for path, leaf in jax.tree.leaves_with_path(placed):
        here = math.prod(leaf.sharding.shard_shape(leaf.shape))
        if leaf.size > CONFIG.d_mlp * CONFIG.n_layers:
            assert here * ways == leaf.size, jax.tree_util.keystr(path)


def test_fresh_parameters_are_made_where_they_will_live(model):
    """init_params gives plain arrays, placed as param_shardings says."""
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    made, places = sharding.init_params(model, mesh, seed=3), sharding.param_shardings(model, mesh)
    assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), made, places)))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(made))


def test_activation_constraints_are_in_the_program_under_use(model, params):
    """Without the mesh and the table made current, the model's logical constraints do nothing."""
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))

    def constraints():
        loss = jax.jit(lambda params, tokens_BT: loss_and_logits(model, params, tokens_BT)[0])
        text = loss.lower(params, TOKENS).as_text()
        return [line for line in text.splitlines() if "sharding_constraint" in line]

    assert constraints() == []
    with sharding.use(mesh):
        found = constraints()
    assert len(found) >= 2  # behind the embedding and behind the blocks
    assert all('[{"data", "fsdp"}, {}, {}]' in line for line in found)
    assert constraints() == []


def test_make_mesh_gives_data_the_devices_the_others_leave():
    assert dict(sharding.make_mesh(MeshConfig(fsdp=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert sharding.make_mesh(MeshConfig(data=1)).size == 1


@pytest.mark.parametrize("config", [MeshConfig(data=9), MeshConfig(fsdp=3, tensor=3), MeshConfig(data=4, fsdp=4)])
def test_make_mesh_refuses_more_devices_than_there_are(config):
    with pytest.raises(InputError, match="does not fit 8 devices"):
        sharding.make_mesh(config)


def test_put_rows_splits_rows_over_data_and_fsdp_and_refuses_what_does_not_divide():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = sharding.put_rows(mesh, TOKENS)
    assert placed.sharding.shard_shape(placed.shape) == (2, 6)
    np.testing.assert_array_equal(placed, TOKENS)
    with pytest.raises(InputError, match=r"train\.batch_rows: 6 rows do not divide over 4 devices"):
        sharding.put_rows(mesh, TOKENS[:6])
