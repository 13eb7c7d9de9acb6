"""star_jax.distributed.sharding: every mesh computes the same, and parameters are sharded as the table says."""

import math

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from star_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder, families
from star_jax.training import fine_tune
from star_jax.weights import placement
from tests.support.models import numpy_params

CONFIG = ModelConfig(n_layers=1, d_model=16, n_heads=8, d_mlp=32, rotary_dim=2, vocab_size=24, max_positions=64)
ALL_AXES = MeshConfig(data=2, fsdp=2, tensor=2)
MESHES = [MeshConfig(data=8), MeshConfig(fsdp=8), MeshConfig(tensor=8), MeshConfig(fsdp=2, tensor=4), ALL_AXES]
# The mesh with all axes is enough for the quick suite.
SOME_SLOW = [config if config == ALL_AXES else pytest.param(config, marks=pytest.mark.slow) for config in MESHES]
TOKENS = np.random.default_rng(0).integers(0, 24, (8, 6)).astype(np.int32)


def name_of(config: MeshConfig) -> str:
    return f"data{config.data}-fsdp{config.fsdp}-tensor{config.tensor}"


@pytest.fixture(scope="module")
def model():
    return families.build(CONFIG)


@pytest.fixture(scope="module")
def params():
    return numpy_params(CONFIG)


def loss_and_logits(model, params, tokens_BT):
    logits_BTV = decoder.apply(model, params, tokens_BT)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits_BTV[:, :-1], tokens_BT[:, 1:])
    return losses.mean(), logits_BTV


@pytest.fixture(scope="module")
def one_device(model, params):
    """(loss, logits)."""
    return jax.device_get(jax.jit(loss_and_logits, static_argnums=0)(model, params, TOKENS))


@pytest.mark.parametrize("config", SOME_SLOW, ids=name_of)
def test_a_sharded_forward_pass_equals_one_device(model, params, one_device, config):
    mesh = sharding.make_mesh(config)
    placed = jax.device_put(params, placement.param_shardings(model, mesh))
    with sharding.use(mesh):
        results = jax.jit(loss_and_logits, static_argnums=0)(model, placed, sharding.put_rows(mesh, TOKENS))
    loss, logits_BTV = jax.device_get(results)
    assert abs(loss - one_device[0]) < 1e-5
    assert np.max(np.abs(logits_BTV - one_device[1])) < 1e-5


def test_64_bits_are_refused():
    """JAX_ENABLE_X64=1 would change every random number, so every result."""
    with jax.enable_x64(True), pytest.raises(InputError, match=r"JAX_ENABLE_X64 is on, .*; unset the variable"):
        sharding.make_mesh(MeshConfig())


def test_no_parameter_uses_a_mesh_axis_twice(model):
    """Two logical axes of one parameter on one mesh axis are an error, but only on a mesh that has that axis."""
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

    return nn.get_partition_spec(placement.abstract_params(model))


def is_spec(x):
    return isinstance(x, PartitionSpec)


def test_parameters_are_sharded_as_the_table_says(model):
    """Heads, mlp and vocabulary over tensor, the model axis over fsdp."""
    shardings = placement.param_shardings(model, sharding.make_mesh(ALL_AXES))
    specs = {
        jax.tree_util.keystr(k, simple=True, separator="/"): s.spec for k, s in jax.tree.leaves_with_path(shardings)
    }
    assert specs["embedding/embedding"] == PartitionSpec("tensor", "fsdp")
    assert specs["head/kernel"] == PartitionSpec("fsdp", "tensor")
    for name in ("query", "key", "value"):
        assert specs[f"blocks/attention/{name}"] == PartitionSpec(None, "fsdp", "tensor", None)
    assert specs["blocks/attention/out"] == PartitionSpec(None, "tensor", None, "fsdp")
    assert specs["blocks/mlp/in/kernel"] == PartitionSpec(None, "fsdp", "tensor")
    assert specs["blocks/mlp/out/kernel"] == PartitionSpec(None, "tensor", "fsdp")


def test_no_kernel_is_replicated_that_can_be_sharded(model, params):
    """A device holds 1 / (fsdp x tensor) of every kernel and of the embedding."""
    wrong = []
    for config in MESHES:
        placed = jax.device_put(params, placement.param_shardings(model, sharding.make_mesh(config)))
        for path, leaf in jax.tree.leaves_with_path(placed):
            shard = math.prod(leaf.sharding.shard_shape(leaf.shape))
            if leaf.size > CONFIG.d_mlp * CONFIG.n_layers and shard * config.fsdp * config.tensor != leaf.size:
                wrong.append((name_of(config), jax.tree_util.keystr(path)))
    assert not wrong


def test_fresh_parameters_are_initialized_sharded(model):
    """init_params returns plain arrays with the shardings of param_shardings."""
    mesh = sharding.make_mesh(ALL_AXES)
    params, shardings = placement.init_params(model, mesh, seed=3), placement.param_shardings(model, mesh)
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), params, shardings))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(params))


def test_activation_constraints_have_an_effect_only_inside_use(model, params):
    mesh = sharding.make_mesh(ALL_AXES)

    def constraints():
        loss = jax.jit(lambda params, tokens_BT: loss_and_logits(model, params, tokens_BT)[0])
        text = loss.lower(params, TOKENS).as_text()
        return [line for line in text.splitlines() if "sharding_constraint" in line]

    assert constraints() == []
    with sharding.use(mesh):
        lines = constraints()
    expected = {
        "after the embedding and the blocks": ('[{"data", "fsdp"}, {}, {}]', 2),
        "queries, keys and values": ('[{"data", "fsdp"}, {"tensor"}, {}, {}]', 3),
        "between the MLP's products, and logits": ('[{"data", "fsdp"}, {}, {"tensor"}]', 2),
    }
    for name, (spec, count) in expected.items():
        assert sum(spec in line for line in lines) >= count, name
    with sharding.use(mesh, local_rows=True):
        assert not any('"data"' in line for line in constraints())
    assert constraints() == []


def test_outside_jit_a_current_mesh_changes_nothing(model, params, one_device):
    """Weights that are not on the mesh, as in a notebook: constraints on them were a TypeError of JAX."""
    for config, local_rows in ((ALL_AXES, False), (ALL_AXES, True), (MeshConfig(data=1), False)):
        with sharding.use(sharding.make_mesh(config), local_rows):
            logits_BTV = decoder.apply(model, jax.tree.map(jax.numpy.asarray, params), TOKENS)
        assert np.max(np.abs(logits_BTV - one_device[1])) < 1e-5, (config, local_rows)


STEPS = 5
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=1)


def losses_on(model, config, rows_RT, microbatches=1):
    """The losses of five steps from the same weights, on one mesh."""
    mesh = sharding.make_mesh(config)
    shardings = placement.param_shardings(model, mesh)
    state = fine_tune.initial_state(OPTIMIZER, jax.tree.map(sharding.put, numpy_params(CONFIG), shardings))
    batch = {name: sharding.put_rows(mesh, array) for name, array in rows_RT.items()}
    losses = []
    with sharding.use(mesh):
        for _ in range(STEPS):
            state, metrics = fine_tune.train_step(model, OPTIMIZER, state, batch, np.float32(0.01), 1e-4, microbatches)
            losses.append(float(metrics["loss"]))
    assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state.params, shardings))
    return losses


@pytest.fixture(scope="module")
def rows():
    shape = (16, 6)
    rng = np.random.default_rng(1)
    return {
        "tokens_RT": rng.integers(0, 24, shape).astype(np.int32),
        "positions_RT": np.broadcast_to(np.arange(6, dtype=np.int32), shape).copy(),
        "segment_ids_RT": np.ones(shape, np.int32),
        "weights_RT": rng.integers(0, 2, shape).astype(np.float32),
    }


@pytest.fixture(scope="module")
def one_device_s_losses(model, rows):
    return losses_on(model, MeshConfig(data=1), rows)


@pytest.mark.parametrize("config", SOME_SLOW, ids=name_of)
def test_five_train_steps_have_one_device_s_losses(model, rows, one_device_s_losses, config):
    assert losses_on(model, config, rows) == pytest.approx(one_device_s_losses, rel=1e-5)
    assert one_device_s_losses[-1] < one_device_s_losses[0]


@pytest.mark.parametrize(
    "config, microbatches", [pytest.param(MeshConfig(data=1), 2, marks=pytest.mark.slow), (ALL_AXES, 4)]
)
def test_microbatches_change_no_loss(model, rows, one_device_s_losses, config, microbatches):
    assert losses_on(model, config, rows, microbatches) == pytest.approx(one_device_s_losses, rel=1e-5)


def test_microbatches_that_do_not_divide_are_refused():
    mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=1, tensor=2))
    sharding.check_rows(mesh, 8, 2)
    with pytest.raises(InputError, match=r"8 rows do not divide over 4 devices in 4 microbatches"):
        sharding.check_rows(mesh, 8, 4)


def test_weights_for_sampling_are_cast_and_sharded_over_tensor_only(model, params):
    """From a training mesh with all axes; every group of `tensor` devices holds a whole copy."""
    mesh = sharding.make_mesh(ALL_AXES)
    placed = jax.tree.map(sharding.put, params, placement.param_shardings(model, mesh))
    for tensor in (1, 2, 4):
        sampling_mesh = sharding.sampling_mesh(mesh, tensor)
        assert dict(sampling_mesh.shape) == {"data": 8 // tensor, "fsdp": 1, "tensor": tensor}
        moved = placement.to_sampling(model, placed, sampling_mesh, "bfloat16")
        for (path, leaf), old in zip(jax.tree.leaves_with_path(moved), jax.tree.leaves(params), strict=True):
            assert leaf.dtype == jax.numpy.bfloat16
            np.testing.assert_array_equal(leaf, old.astype(jax.numpy.bfloat16))
            shards = tensor if "tensor" in leaf.sharding.spec else 1
            shard = math.prod(leaf.sharding.shard_shape(leaf.shape))
            assert shard * shards == leaf.size, (tensor, jax.tree_util.keystr(path))


def test_a_sampling_mesh_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match=r"sampling\.tensor: 3 does not divide the 8 devices"):
        sharding.sampling_mesh(sharding.make_mesh(MeshConfig()), 3)


def test_make_mesh_gives_data_the_devices_the_others_leave():
    assert dict(sharding.make_mesh(MeshConfig(fsdp=2, tensor=2)).shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert sharding.make_mesh(MeshConfig(data=1)).size == 1


def test_make_mesh_refuses_more_devices_than_there_are():
    for config in (MeshConfig(data=9), MeshConfig(fsdp=3, tensor=3), MeshConfig(data=4, fsdp=4)):
        with pytest.raises(InputError, match="does not fit 8 devices"):
            sharding.make_mesh(config)


def test_put_rows_shards_rows_over_data_and_fsdp_and_refuses_a_remainder():
    mesh = sharding.make_mesh(ALL_AXES)
    placed = sharding.put_rows(mesh, TOKENS)
    assert placed.sharding.shard_shape(placed.shape) == (2, 6)
    np.testing.assert_array_equal(placed, TOKENS)
    with pytest.raises(InputError, match=r"train\.batch_rows: 6 rows do not divide over 4 devices"):
        sharding.put_rows(mesh, TOKENS[:6])


def test_weights_come_back_from_host_memory_unchanged_and_the_copy_stays():
    """Fine-tuning donates its weights' buffers: neither copy may share them with the other."""
    donate = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    for config in (MeshConfig(data=1), ALL_AXES):
        mesh, model = sharding.make_mesh(config), families.build(CONFIG)
        shardings = placement.param_shardings(model, mesh)
        first = jax.device_put(numpy_params(CONFIG), shardings)
        host = placement.to_host(first)
        for params in (first, placement.from_host(host), placement.from_host(host)):
            assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, params, shardings))
            jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), numpy_params(CONFIG))
            donate(params)
            assert jax.tree.leaves(params)[0].is_deleted()
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(host)} == {"pinned_host"}


def test_host_bytes_count_every_copy():
    """A host copy is made of each model copy of the mesh."""
    model, size = families.build(CONFIG), sum(leaf.nbytes for leaf in jax.tree.leaves(numpy_params(CONFIG)))
    for config, copies in ((MeshConfig(data=1), 1), (MeshConfig(data=4, tensor=2), 4)):
        shardings = placement.param_shardings(model, sharding.make_mesh(config))
        host_bytes = placement.host_bytes(jax.device_put(numpy_params(CONFIG), shardings))
        assert size * copies <= host_bytes <= 1.2 * size * copies + 8192  # norms are replicated
