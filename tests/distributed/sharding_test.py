"""star_jax.distributed.sharding: every mesh computes the same, and the parameters lie where the table says."""

import math

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from star_jax.config import MeshConfig, ModelConfig, OptimizerConfig
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.training import step
from star_jax.weights import placement
from tests.support.models import numpy_params

CONFIG = ModelConfig(n_layers=1, d_model=16, n_heads=8, d_mlp=32, rotary_dim=2, vocab_size=24)
MESHES = [
    MeshConfig(data=8),
    MeshConfig(fsdp=8),
    MeshConfig(tensor=8),
    MeshConfig(fsdp=2, tensor=4),
    MeshConfig(data=2, fsdp=2, tensor=2),
]
TOKENS = np.random.default_rng(0).integers(0, 24, (8, 6)).astype(np.int32)


def name_of(config: MeshConfig) -> str:
    return f"data{config.data}-fsdp{config.fsdp}-tensor{config.tensor}"


@pytest.fixture(scope="module")
def model():
    return decoder.GPT(CONFIG)


@pytest.fixture(scope="module")
def params():
    return numpy_params(CONFIG)


def loss_and_logits(model, params, tokens_BT):
    logits_BTV = decoder.apply(model, params, tokens_BT)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits_BTV[:, :-1], tokens_BT[:, 1:])
    return losses.mean(), logits_BTV


@pytest.fixture(scope="module")
def on_one_device(model, params):
    return jax.device_get(jax.jit(loss_and_logits, static_argnums=0)(model, params, TOKENS))


@pytest.mark.parametrize("config", MESHES, ids=name_of)
def test_a_sharded_forward_pass_equals_one_device(model, params, on_one_device, config):
    mesh = sharding.make_mesh(config)
    placed = jax.device_put(params, placement.param_shardings(model, mesh))
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

    return nn.get_partition_spec(placement.abstract_params(model))


def is_spec(x):
    return isinstance(x, PartitionSpec)


def test_parameters_lie_as_the_table_says(model):
    """Heads, mlp and vocabulary are split along tensor, the model axis along fsdp."""
    found = placement.param_shardings(model, sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)))
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
    placed = jax.device_put(params, placement.param_shardings(model, mesh))
    ways = config.fsdp * config.tensor
    for path, leaf in jax.tree.leaves_with_path(placed):
        here = math.prod(leaf.sharding.shard_shape(leaf.shape))
        if leaf.size > CONFIG.d_mlp * CONFIG.n_layers:
            assert here * ways == leaf.size, jax.tree_util.keystr(path)


def test_fresh_parameters_are_made_where_they_will_live(model):
    """init_params gives plain arrays, placed as param_shardings says."""
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    made, places = placement.init_params(model, mesh, seed=3), placement.param_shardings(model, mesh)
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
    wanted = {
        "behind the embedding and the blocks": ('[{"data", "fsdp"}, {}, {}]', 2),
        "queries, keys and values": ('[{"data", "fsdp"}, {"tensor"}, {}, {}]', 3),
        "between the MLP's products, and logits": ('[{"data", "fsdp"}, {}, {"tensor"}]', 2),
    }
    for what, (place, count) in wanted.items():
        assert sum(place in line for line in found) >= count, what
    with sharding.use(mesh, local_rows=True):
        assert not any('"data"' in line for line in constraints())
    assert constraints() == []


@pytest.mark.parametrize("local_rows", [False, True])
@pytest.mark.parametrize("config", [MeshConfig(data=1), MeshConfig(data=2, fsdp=2, tensor=2)], ids=name_of)
def test_outside_of_a_program_a_current_mesh_changes_nothing(model, params, on_one_device, config, local_rows):
    """Weights that are not on the mesh, as in a notebook: constraints on them were a TypeError of jax's."""
    with sharding.use(sharding.make_mesh(config), local_rows):
        logits_BTV = decoder.apply(model, jax.tree.map(jax.numpy.asarray, params), TOKENS)
    assert np.max(np.abs(logits_BTV - on_one_device[1])) < 1e-5


STEPS = 5
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=1)


def losses_on(model, config, rows_RT, microbatches=1):
    """The losses of five steps from the same weights, on one mesh."""
    mesh = sharding.make_mesh(config)
    places = placement.param_shardings(model, mesh)
    state = step.initial_state(OPTIMIZER, jax.tree.map(sharding.put, numpy_params(CONFIG), places))
    batch = {name: sharding.put_rows(mesh, array) for name, array in rows_RT.items()}
    found = []
    with sharding.use(mesh):
        for _ in range(STEPS):
            state, metrics = step.train_step(model, OPTIMIZER, state, batch, np.float32(0.01), 1e-4, microbatches)
            found.append(float(metrics["loss"]))
    lie_so = jax.tree.map(lambda leaf, place: leaf.sharding.is_equivalent_to(place, leaf.ndim), state.params, places)
    assert jax.tree.all(lie_so)
    return found


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


@pytest.mark.parametrize("config", MESHES, ids=name_of)
def test_five_train_steps_have_one_device_s_losses(model, rows, one_device_s_losses, config):
    assert losses_on(model, config, rows) == pytest.approx(one_device_s_losses, rel=1e-5)
    assert one_device_s_losses[-1] < one_device_s_losses[0]


@pytest.mark.parametrize("config", [MeshConfig(data=1), MeshConfig(data=2, fsdp=2, tensor=2)], ids=name_of)
@pytest.mark.parametrize("microbatches", [2, 4])
def test_microbatches_change_no_loss(model, rows, one_device_s_losses, config, microbatches):
    assert losses_on(model, config, rows, microbatches) == pytest.approx(one_device_s_losses, rel=1e-5)


def test_microbatches_that_do_not_divide_are_refused():
    mesh = sharding.make_mesh(MeshConfig(data=4, fsdp=1, tensor=2))
    sharding.check_rows(mesh, 8, 2)
    with pytest.raises(InputError, match=r"8 rows do not divide over 4 devices in 4 microbatches"):
        sharding.check_rows(mesh, 8, 4)


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_weights_for_sampling_are_split_by_tensor_alone_and_cast(model, params, tensor):
    """From a training mesh that splits them three ways; every group of `tensor` devices has them all."""
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    drawing = sharding.sampling_mesh(mesh, tensor)
    assert dict(drawing.shape) == {"data": 8 // tensor, "fsdp": 1, "tensor": tensor}
    placed = jax.tree.map(sharding.put, params, placement.param_shardings(model, mesh))
    moved = placement.to_sampling(model, placed, drawing, "bfloat16")
    for (path, leaf), old in zip(jax.tree.leaves_with_path(moved), jax.tree.leaves(params), strict=True):
        assert leaf.dtype == jax.numpy.bfloat16
        np.testing.assert_array_equal(leaf, old.astype(jax.numpy.bfloat16))
        kept = math.prod(leaf.sharding.shard_shape(leaf.shape))
        whole = not any(axis == "tensor" for axis in leaf.sharding.spec)
        assert kept * (1 if whole else tensor) == leaf.size, jax.tree_util.keystr(path)


def test_a_sampling_mesh_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match=r"sampling\.tensor: 3 does not divide the 8 devices"):
        sharding.sampling_mesh(sharding.make_mesh(MeshConfig()), 3)


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


@pytest.mark.parametrize("config", [MeshConfig(data=1), MeshConfig(data=2, fsdp=2, tensor=2)], ids=["one", "eight"])
def test_weights_come_back_from_the_host_s_memory_bit_for_bit_and_stay_there(config):
    """Fine-tuning gives its weights' buffers up: neither copy may share them with the other."""
    mesh, model = sharding.make_mesh(config), decoder.GPT(CONFIG)
    first = jax.device_put(numpy_params(CONFIG), placement.param_shardings(model, mesh))
    kept = placement.to_host(first)
    give_up = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    for params in (first, placement.from_host(kept), placement.from_host(kept)):
        places = placement.param_shardings(model, mesh)
        assert jax.tree.all(jax.tree.map(lambda x, place: x.sharding == place, params, places))
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), numpy_params(CONFIG))
        give_up(params)
        assert jax.tree.leaves(params)[0].is_deleted()
    assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(kept)} == {"pinned_host"}


def test_the_host_s_bytes_count_every_copy():
    """A mesh of copies keeps one for each of them."""
    model, size = decoder.GPT(CONFIG), sum(leaf.nbytes for leaf in jax.tree.leaves(numpy_params(CONFIG)))
    for config, copies in ((MeshConfig(data=1), 1), (MeshConfig(data=4, tensor=2), 4)):
        places = placement.param_shardings(model, sharding.make_mesh(config))
        taken = placement.host_bytes(jax.device_put(numpy_params(CONFIG), places))
        assert size * copies <= taken <= 1.2 * size * copies + 8192  # what is not split lies twice
