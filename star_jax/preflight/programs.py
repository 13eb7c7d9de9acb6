"""A run's programs, lowered from shapes without any array, and the memory that each needs when compiled."""

import contextlib
import dataclasses
import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax.algorithms import budget, setup
from star_jax.algorithms.budget import GIB, Lengths
from star_jax.config import Config
from star_jax.distributed import sharding
from star_jax.models import decoder, families
from star_jax.models.attention import masks
from star_jax.models.spec import DecoderSpec
from star_jax.preflight.topology import Topology
from star_jax.sampling import engine, kv_cache, sampler
from star_jax.sampling.token_sampling import Decoding
from star_jax.training import fine_tune
from star_jax.weights import placement

TRAIN_STEP, PREFIX, SAMPLING_LOOP = "train step", "prefix", "sampling loop"


@dataclasses.dataclass(frozen=True)
class ProgramMemory:
    """Memory of one program on each device, in bytes: reported by the compiler, or counted."""

    program: str
    arguments: float
    temporaries: float
    peak: float
    compile_seconds: float = 0.0  # 0: counted
    hlo_text: str = ""  # of the compiled program; "" if it was counted or does not fit


def measure_programs(
    config: Config, spec: DecoderSpec, topology: Topology, lengths: Lengths
) -> Iterator[ProgramMemory]:
    """Compiles a run's programs one by one; counts those of a topology that has no compiler.

    Raises InputError for what a run on these devices would refuse (setup.check_devices).
    """
    mesh_shape, tensor = setup.check_devices(config, spec, topology.processes)
    if not topology.devices:
        yield _counted(TRAIN_STEP, budget.train_bytes(config, spec, mesh_shape))
        yield _counted(SAMPLING_LOOP, budget.sampling_bytes(config, spec, tensor, lengths))
        return
    mesh, sampling_mesh = setup.meshes(config, spec, topology.devices)
    grid = np.array(topology.host_devices[: sampling_mesh.size]).reshape(sampling_mesh.devices.shape)
    sampling_mesh = Mesh(grid, sampling_mesh.axis_names, axis_types=sampling_mesh.axis_types)
    yield measure(TRAIN_STEP, lambda: lower_train_step(config, spec, mesh))
    yield measure(PREFIX, lambda: lower_prefix(config, spec, sampling_mesh, lengths))
    yield measure(SAMPLING_LOOP, lambda: lower_sampling_loop(config, spec, sampling_mesh, lengths))


def tensors(spec: DecoderSpec, devices: int) -> list[int]:
    """The values of `sampling.tensor` or `mesh.tensor` that divide the devices and the model's axes, ascending."""
    common = math.gcd(devices, spec.n_kv_heads, spec.d_mlp, spec.vocab_size)
    return [tensor for tensor in range(1, common + 1) if common % tensor == 0]


def measure(program: str, lower: Callable[[], jax.stages.Lowered]) -> ProgramMemory:
    """Lowers and compiles a program.

    If it needs more memory than a device has, only the peak is known, from the compiler's error; infinity if that does
    not state it.
    """
    started = time.monotonic()
    try:
        with _not_cached():
            compiled = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return ProgramMemory(program, np.nan, np.nan, stated_bytes(str(error)), time.monotonic() - started)
    memory: Any = compiled.memory_analysis()
    return ProgramMemory(
        program,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes,
        time.monotonic() - started,
        compiled.as_text() or "",
    )


@contextlib.contextmanager
def _not_cached() -> Iterator[None]:
    """Keeps what is compiled out of the persistent cache: it never runs, and XLA:CPU once crashed in storing it."""
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, float("inf"))
    try:
        yield
    finally:
        jax.config.update(option, before)


def stated_bytes(error: str) -> float:
    """Bytes that a program needs, from the compiler's out-of-memory error: all of them, or its temporaries alone."""
    for pattern in (r"[Uu]sed ([\d.]+)([KMG]) of [\d.]+[KMG]", r"required for [\w ]+ \(([\d.]+)([KMG])\) exceeds"):
        if match := re.search(pattern, error):
            return float(match[1]) * {"K": 2**10, "M": 2**20, "G": GIB}[match[2]]
    return math.inf


def lower_train_step(config: Config, spec: DecoderSpec, mesh: Mesh) -> jax.stages.Lowered:
    """The train step of a config on a training mesh."""
    shape = (config.train.batch_rows, config.train.row_tokens)
    by_rows = sharding.row_sharding(mesh)
    dtypes = {"tokens_RT": jnp.int32, "positions_RT": jnp.int32, "segment_ids_RT": jnp.int32, "weights_RT": jnp.float32}
    batch: Any = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=by_rows) for name, dtype in dtypes.items()}
    learning_rate: Any = jax.ShapeDtypeStruct((), jnp.float32)
    state = abstract_train_state(
        config, spec, mesh
    )  # outside sharding.use: it would compute on the mesh's absent devices
    with sharding.use(mesh):
        return fine_tune.train_step.lower(
            families.build(config.model, spec), config.optimizer, state, batch, learning_rate,
            config.replication.z_loss, config.train.microbatches,
        )  # fmt: skip


def lower_prefix(config: Config, spec: DecoderSpec, mesh: Mesh, lengths: Lengths) -> jax.stages.Lowered:
    """The pass that encodes the shared prefix, on a sampling mesh."""
    with sharding.use(mesh, local_rows=True):
        tokens_P = jax.ShapeDtypeStruct((lengths.prefix,), jnp.int32, sharding=sharding.replicated(mesh))
        return sampler._encode_prefix.lower(
            families.build(config.model, spec), abstract_decode_params(config, spec, mesh), tokens_P, lengths.prefix
        )


def lower_sampling_loop(config: Config, spec: DecoderSpec, mesh: Mesh, lengths: Lengths) -> jax.stages.Lowered:
    """The continuous batching engine (prefill, decode steps, refill) on a sampling mesh."""
    options = config.sampling

    def array(shape: Sequence[int], dtype: Any, *axes: str | None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    groups = mesh.shape["data"]
    engine_spec = engine.EngineSpec(options.slots, options.prefill_tokens, lengths.new, spec.vocab_size)

    def keys(n: int) -> Any:
        size = kv_cache.prefix_size(spec, n, lengths.prefix)
        return array((spec.n_kv_heads, size, spec.head_dim), config.model.compute_dtype, "tensor")

    layers = tuple(masks.KV(keys(n), keys(n)) for n in range(spec.n_layers))
    rows = groups * options.queue
    queue = engine.Queue(
        tokens_QT=array((rows, lengths.body), jnp.int32, "data"),
        lengths_Q=array((rows,), jnp.int32, "data"),
        keys_Q2=array((rows, 2), jnp.uint32, "data"),
        real_G=array((groups,), jnp.int32, "data"),
    )
    with sharding.use(mesh, local_rows=True):
        return engine.sample_queues.lower(
            families.build(config.model, spec), Decoding(options.temperature_of(1), options.top_k, options.top_p),
            engine_spec, mesh, abstract_decode_params(config, spec, mesh),
            kv_cache.PrefixCache(layers, *[array((), jnp.int32)] * 2),
            queue, array((4, spec.vocab_size), jnp.int32),
        )  # fmt: skip


def abstract_train_state(config: Config, spec: DecoderSpec, mesh: Mesh) -> fine_tune.TrainState:
    """Shapes, dtypes and shardings of the train state."""
    params = placement.sharded_shapes(families.build(config.model, spec), mesh, config.train.param_dtype)
    return fine_tune.abstract_state(config.optimizer, params)


def abstract_decode_params(config: Config, spec: DecoderSpec, mesh: Mesh) -> decoder.DecodeParams:
    """Shapes, dtypes and shardings of the weights for decoding."""

    def of_one_layer(leaf: Any) -> Any:
        in_layer = NamedSharding(mesh, PartitionSpec(*leaf.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=in_layer)

    params = placement.sharded_shapes(families.build(config.model, spec), mesh, config.sampling.weights_dtype)
    layers = (jax.tree.map(of_one_layer, params.pop("blocks")),) * spec.n_layers
    return decoder.DecodeParams(layers, params)


def _counted(program: str, sizes: tuple[float, float]) -> ProgramMemory:
    arguments, temporaries = sizes
    return ProgramMemory(program, arguments, temporaries, arguments + temporaries)
