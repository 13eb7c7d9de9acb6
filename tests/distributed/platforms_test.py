"""star_jax.distributed.platforms: what is split for CPUs, and that only the mesh decides what a program is for."""

import types

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from star_jax.config import MeshConfig
from star_jax.distributed import platforms, sharding
from star_jax.models.attention.masks import KV
from star_jax.models.attention.packed import PackedMask
from star_jax.models.attention.ring import RingMask
from tests.support.attention import PLAIN

ROW_BYTES = 8 * 151 * 64 * 4  # keys of a row of the benchmark's model, in one layer
H200 = types.SimpleNamespace(
    platform="gpu",
    device_kind="NVIDIA H200",
    compute_capability="9.0",
    client=types.SimpleNamespace(platform_version="PJRT C API\ncuda 12090"),
)

needs_a_cpu = pytest.mark.skipif(jax.local_devices()[0].platform != "cpu", reason="this process's device is no CPU")


def mesh_of_kind(kind: str, platform: str) -> AbstractMesh:
    device = AbstractDevice(device_kind=kind, num_cores=1, platform=platform)
    return AbstractMesh((1, 1, 1), sharding.MESH_AXES, axis_types=(AxisType.Auto,) * 3, abstract_device=device)


@needs_a_cpu
def test_rows_are_grouped_where_groups_are_large_enough():
    groups = [platforms.kv_row_groups(rows, ROW_BYTES) for rows in (128, 64, 60, 32, 8)]
    assert groups == [8, 8, 1, 1, 1]
    assert platforms.kv_row_groups(128, 2 * 96 * 32 * 4) == 1  # the demo's
    assert platforms.kv_row_groups(64, 3 * 192 * 64 * 4) == 8  # SmolLM2-135M's


@needs_a_cpu
def test_a_large_vocabulary_is_split_into_equal_parts():
    parts = {20: 1, 4095: 1, 4096: 256, 50257: 29, 50400: 252, 50411: 1}
    assert {size: platforms.vocabulary_parts(size) for size in parts} == parts
    assert all(size % count == 0 for size, count in parts.items())


@needs_a_cpu
def test_a_vocabulary_that_is_sharded_is_not_split():
    for config, parts in ((MeshConfig(data=8), 252), (MeshConfig(data=2, tensor=4), 1)):
        traced = []
        with sharding.use(sharding.make_mesh(config)):
            jax.jit(lambda x, traced=traced: (traced.append(platforms.vocabulary_parts(50400)), x)[1])(1.0)
        assert traced == [parts], config


def test_the_capability_is_that_of_the_program_s_gpu(monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: [H200])
    assert platforms.cuda_capability() == (9, 0)
    wrong = []
    for kind, platform, capability in (
        ("NVIDIA H200", "gpu", (9, 0)),
        ("NVIDIA L4", "gpu", (0, 0)),  # no such device is here to ask
        ("TPU v4", "tpu", (0, 0)),
        ("cpu", "cpu", (0, 0)),
    ):
        with jax.sharding.use_abstract_mesh(mesh_of_kind(kind, platform)):
            if (actual := platforms.cuda_capability()) != capability or platforms.is_cpu() != (kind == "cpu"):
                wrong.append((kind, actual, platforms.is_cpu()))
    assert not wrong
    client = types.SimpleNamespace(platform_version="PJRT C API\nrocm 60000")
    rocm = types.SimpleNamespace(platform="gpu", device_kind="gfx942", client=client)
    monkeypatch.setattr(jax, "local_devices", lambda: [rocm])
    assert platforms.cuda_capability() == (0, 0)


def test_a_tpu_program_is_the_same_where_the_local_device_is_a_cuda_gpu(monkeypatch):
    """preflight compiles for TPUs on any machine: no CUDA path and no CPU path may get into such a program."""

    def attend_both(q_BHTK, segment_ids_BT):
        kv, positions_BT = KV(q_BHTK, q_BHTK), jnp.zeros_like(segment_ids_BT)
        trained_BHTK = PackedMask(segment_ids_BT).attend(q_BHTK, kv, PLAIN, positions_BT)
        mask = RingMask(0, positions_BT[:, 0])
        return trained_BHTK, mask.attend(q_BHTK[:, :, :1], (kv,), PLAIN, positions_BT[:, :1])

    def lowered(local_device) -> str:
        arrays = jax.ShapeDtypeStruct((8, 2, 128, 128), jnp.bfloat16), jax.ShapeDtypeStruct((8, 128), jnp.int32)
        with monkeypatch.context() as patch, jax.sharding.use_abstract_mesh(mesh_of_kind("TPU v4", "tpu")):
            patch.setattr(jax, "local_devices", lambda: [local_device])
            assert platforms.kv_row_groups(128, ROW_BYTES) == platforms.vocabulary_parts(50400) == 1
            program = jax.jit(lambda *arrays: attend_both(*arrays)).trace(*arrays)
            return program.lower(lowering_platforms=("tpu",)).as_text()

    text = lowered(H200)
    assert text == lowered(jax.local_devices()[0])
    assert "tpu_custom_call" in text  # splash attention
    assert not any(word in text for word in ("cudnn", "triton", "cuda"))
