"""star_jax.weights.store: where the weights of a run are, and which buffers may be given away."""

import gc
import weakref

import jax
import numpy as np
import pytest

from star_jax.config import MeshConfig
from star_jax.distributed import processes, sharding
from star_jax.models import decoder, families
from star_jax.runs.metrics import Phases
from star_jax.weights import checkpoint, placement
from star_jax.weights.store import StoreSpec, WeightStore
from tests.support.models import TINY, numpy_params

MODEL = families.build(TINY)


def make_store(workdir, sampling_dtype="float32") -> WeightStore:
    mesh = sharding.make_mesh(MeshConfig(data=1))
    spec = StoreSpec(
        workdir, MODEL, None, mesh, sharding.sampling_mesh(mesh, 1), "float32", sampling_dtype, lambda n: n < 9
    )
    return WeightStore(spec, Phases())


def on_mesh(store: WeightStore, seed: int) -> decoder.Params:
    return jax.device_put(numpy_params(TINY, seed), placement.param_shardings(MODEL, store.spec.training_mesh))


def assert_equal(tree, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(tree), jax.device_get(other))


def decode_params(store: WeightStore, seed: int):
    return placement.to_decode_params(MODEL, on_mesh(store, seed), store.spec.sampling_mesh)


@pytest.fixture
def store(tmp_path) -> WeightStore:
    """A store with the base, whose parameters are those of seed 0."""
    store = make_store(tmp_path)
    store.ensure_base(lambda: on_mesh(store, 0))
    return store


def test_the_base_is_made_once(store):
    store.ensure_base(lambda: pytest.fail("the base exists"))
    assert store.exists(0) and not store.exists(1)
    assert store.fingerprint(0) == checkpoint.stored_fingerprint(store.directory(0))


@pytest.mark.parametrize("host_memory", [True, False])
def test_training_may_donate_what_it_gets(store, monkeypatch, host_memory):
    """Twice: the copy in host memory, the stored weights and the sampling weights stay intact."""
    monkeypatch.setattr(processes, "host_memory_available", lambda size: host_memory)
    for _ in range(2):
        params = store.to_training(0)
        assert_equal(params, numpy_params(TINY, 0))
        donated = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(params)
        jax.block_until_ready(donated)
        jax.tree.map(lambda leaf: leaf.is_deleted() or leaf.delete(), params)
        assert_equal(store.for_sampling(0), decode_params(store, 0))
    assert_equal(make_store(store.spec.workdir).to_training(0), numpy_params(TINY, 0))


def test_sampling_weights_of_one_iteration_are_alive(store):
    store.publish(1, on_mesh(store, 1))
    store.wait()
    references = {}
    for n in (0, 1, 0):
        params = store.for_sampling(n)
        assert store.for_sampling(n) is params
        assert_equal(params, decode_params(store, n))
        references[n] = weakref.ref(jax.tree.leaves(params)[0])
        del params
        gc.collect()
        assert [key for key, reference in references.items() if reference() is not None] == [n]
    store.to_training(1)
    gc.collect()
    assert all(reference() is None for reference in references.values()), "training needs the room"


def test_published_weights_are_sampled_at_once_and_complete_after_the_wait(store):
    fingerprint = store.publish(1, on_mesh(store, 1))
    assert_equal(store.for_sampling(1), decode_params(store, 1))
    store.wait()
    assert store.exists(1) and store.fingerprint(1) == fingerprint
    assert_equal(make_store(store.spec.workdir).to_training(1), numpy_params(TINY, 1))


def test_weights_that_are_saved_already_are_not_saved_again_and_others_replace_them(store, monkeypatch):
    """A run that was killed after the save trains again: to the same weights, unless it runs with other settings."""
    first = store.publish(1, on_mesh(store, 1))
    store.wait()
    written = (store.directory(1) / "model.json").stat().st_mtime_ns
    again = make_store(store.spec.workdir)
    assert again.publish(1, on_mesh(store, 1)) == first
    again.wait()
    assert (store.directory(1) / "model.json").stat().st_mtime_ns == written
    assert_equal(again.for_sampling(1), decode_params(store, 1))
    for seed, host_memory in ((2, True), (3, False)):
        monkeypatch.setattr(processes, "host_memory_available", lambda size, room=host_memory: room)
        other = make_store(store.spec.workdir)
        assert other.publish(1, on_mesh(store, seed)) != first
        other.wait()
        assert_equal(make_store(store.spec.workdir).to_training(1), numpy_params(TINY, seed))


def test_sampling_weights_are_cast(tmp_path):
    store = make_store(tmp_path, "bfloat16")
    store.ensure_base(lambda: on_mesh(store, 0))
    assert {leaf.dtype for leaf in jax.tree.leaves(store.for_sampling(0))} == {jax.numpy.dtype(jax.numpy.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(store.to_training(0))} == {np.dtype(np.float32)}
