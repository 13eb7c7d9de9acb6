"""Will it fit? Compiles a config's programs for a TPU that is not there, and counts for a GPU.

    python -m star_jax.preflight --config=FILE --topology=v3:2x2 [--prefix_tokens=1024] [--body_tokens=128]

--topology: v3:2x2, v4:2x2x1, v5e:2x4, v5p:2x2x1, v6e:2x4, ... (chips along each axis of the torus; needs libtpu, the
extra `preflight`, and no TPU), or gpu:8xH100, where memory is counted and nothing compiled. --prefix_tokens: of the
shots; --body_tokens: of the longest problem. Exit status 1: it does not fit.

The compiler is the real one, so its memory is what the program will take. Its FLOP counts are not used: it counts a
loop's body once; budget.py counts by the sizes.
"""

import dataclasses
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax.algorithms import setup
from star_jax.cli.config_flags import read_config
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.config import Config, from_dict
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.preflight import budget, hlo
from star_jax.preflight.budget import GIB, Lengths
from star_jax.sampling import engine, kv_cache, sampler
from star_jax.sampling.token_sampling import Decoding
from star_jax.training import step
from star_jax.weights import placement

# GiB of memory of a chip, the accelerator type that libtpu wants to hear of.
TPUS = {
    "v2": (16, "v2-8"),
    "v3": (32, "v3-8"),
    "v4": (32, "v4-8"),
    "v5e": (16, "v5litepod-8"),
    "v5p": (95, "v5p-8"),
    "v6e": (32, "v6e-8"),
    "tpu7x": (192, "tpu7x-8"),
}
GPUS = {"A100": 80, "H100": 80, "H200": 141, "B200": 180, "L4": 24, "L40S": 48, "RTX4090": 24, "V100": 32, "T4": 16}


@dataclasses.dataclass(frozen=True)
class Topology:
    """The devices to measure to; `devices` is empty where nothing is compiled, `host` has those of one process."""

    name: str
    count: int
    gib: float  # of memory of one device
    devices: tuple[Any, ...] = ()
    host: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class ProgramMemory:
    """One program's memory on a device, in bytes; what it says to the others; seconds to compile (0: counted)."""

    what: str
    arguments: float
    temporaries: float
    peak: float
    seconds: float = 0.0
    text: str = ""


def topology(topology: str) -> Topology:
    """The devices of a topology. Raises InputError."""
    if match := re.fullmatch(r"gpu:(\d+)x(\w+)", topology):
        count, name = int(match.group(1)), match.group(2)
        if name not in GPUS or count < 1:
            raise InputError(f"--topology={topology}: the GPUs known here are {', '.join(GPUS)}, e.g. gpu:8xH100")
        return Topology(name, count, GPUS[name])
    kind, _, shape = topology.partition(":")
    if kind not in TPUS or not re.fullmatch(r"\d+(x\d+)+", shape):
        raise InputError(f"--topology={topology}: give {', '.join(TPUS)} and its chips, e.g. v5e:2x4, or gpu:8xH100")
    gib, accelerator = TPUS[kind]
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", accelerator)
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server is asked
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing is run: another process may have the TPU
    devices = _described(topology, kind)
    per_chip = len(devices) // len({tuple(device.coords) for device in devices})
    own = [device for device in devices if device.process_index == 0]
    host = devices
    if len(own) < len(devices):  # what a process runs alone is compiled for its own host: its devices count from 0
        bounds = (max(at) + 1 for at in zip(*(device.coords for device in own), strict=True))
        host = _described(f"{kind}:{'x'.join(str(n) for n, _ in zip(bounds, shape.split('x'), strict=False))}", kind)
    return Topology(devices[0].device_kind, len(devices), gib / per_chip, devices, host)


def _described(topology: str, kind: str) -> tuple[Any, ...]:
    """The devices of a TPU topology, in the order of their ids. Raises InputError."""
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if kind in ("v4", "v5p"):  # the two cores of a chip work as one device, unless libtpu is asked for something else
        options["chip_config_name"] = "megacore"
    if topology in ("v5e:2x4", "v6e:2x4"):  # the only sizes whose eight chips have one host
        options["chips_per_host_bounds"] = (2, 4, 1)
    try:
        found: Sequence[Any] = topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except Exception as error:  # whatever libtpu or its absence answers
        raise InputError(
            f"--topology={topology}: no compiler for it ({' '.join(str(error).split())[:200]}); "
            "install the extra `preflight`: pip install -e '.[preflight]'"
        ) from error
    return tuple(sorted(found, key=lambda device: device.id))


def abstract_state(config: Config, mesh: Mesh) -> step.TrainState:
    """Shapes and places of a train state."""
    params = placement.placed_shapes(decoder.GPT(config.model), mesh, config.train.param_dtype)
    return step.abstract_state(config.optimizer, params)


def lower_train_step(config: Config, mesh: Mesh) -> Any:
    """The train step of a config, traced from shapes and lowered."""
    rows = (config.train.batch_rows, config.train.row_tokens)
    place = sharding.along_rows(mesh)
    dtypes = {"tokens_RT": jnp.int32, "positions_RT": jnp.int32, "segment_ids_RT": jnp.int32, "weights_RT": jnp.float32}
    batch = {name: jax.ShapeDtypeStruct(rows, dtype, sharding=place) for name, dtype in dtypes.items()}
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    state = abstract_state(config, mesh)  # with the mesh current it would compute on devices that are not there
    with sharding.use(mesh):
        return step.train_step.lower(
            decoder.GPT(config.model), config.optimizer, state, batch, rate, config.replication.z_loss,
            config.train.microbatches,
        )  # fmt: skip


def lower_prefix(config: Config, mesh: Mesh, lengths: Lengths) -> Any:
    """The shared prefix's pass."""
    with sharding.use(mesh, rows_apart=True):
        tokens_P = jax.ShapeDtypeStruct((lengths.prefix,), jnp.int32, sharding=sharding.replicated(mesh))
        return sampler._encode_prefix.lower(
            decoder.GPT(config.model), _drawn_from(config, mesh), tokens_P, lengths.prefix
        )


def _drawn_from(config: Config, mesh: Mesh) -> Any:
    """Shapes and places of the weights as the sampler has them: the layers apart."""

    def layer(leaf: Any) -> Any:
        place = NamedSharding(mesh, PartitionSpec(*leaf.sharding.spec[1:]))
        return jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype, sharding=place)

    params = placement.placed_shapes(decoder.GPT(config.model), mesh, config.sampling.weights_dtype)
    layers = (jax.tree.map(layer, params.pop("blocks")),) * config.model.n_layers
    return decoder.DecodeParams(layers, params)


def lower_sampler(config: Config, mesh: Mesh, lengths: Lengths) -> Any:
    """The sampling loop: prefill, decode steps, refill."""
    cfg, options = config.model, config.sampling

    def shaped(shape: Sequence[int], dtype: Any, *axes: str | None) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, PartitionSpec(*axes)))

    groups = mesh.shape["data"]
    shape = engine.EngineSpec(options.slots, options.prefill_tokens, lengths.new, cfg.vocab_size)
    keys = shaped((cfg.n_heads, lengths.prefix, cfg.head_dim), cfg.compute_dtype, "tensor")
    rows = groups * options.queue
    queue = engine.Queue(
        shaped((rows, lengths.body), jnp.int32, "data"),
        shaped((rows,), jnp.int32, "data"),
        shaped((rows, 2), jnp.uint32, "data"),
        shaped((groups,), jnp.int32, "data"),
    )
    with sharding.use(mesh, rows_apart=True):
        return engine.sample_queues.lower(
            decoder.GPT(cfg), Decoding(options.temperature, options.top_k, options.top_p), shape, mesh,
            _drawn_from(config, mesh), kv_cache.Prefix((decoder.KV(keys, keys),) * cfg.n_layers, shaped((), jnp.int32)),
            queue, shaped((4, cfg.vocab_size), jnp.int32),
        )  # fmt: skip


def measure(what: str, lower: Callable[[], Any]) -> ProgramMemory:
    """Compiles a program. One that needs more than the chip has comes back with what the compiler says it needs."""
    started = time.monotonic()
    try:
        program = lower().compile()
    except jax.errors.JaxRuntimeError as error:
        if not (used := re.search(r"[Uu]sed ([\d.]+)([GM]) of ([\d.]+)([GM])", str(error))):
            raise
        peak = float(used.group(1)) * (GIB if used.group(2) == "G" else 2**20)
        return ProgramMemory(what, np.nan, np.nan, peak, time.monotonic() - started)
    memory = program.memory_analysis()
    return ProgramMemory(
        what,
        memory.argument_size_in_bytes,
        memory.temp_size_in_bytes,
        memory.peak_memory_in_bytes,
        time.monotonic() - started,
        program.as_text(),
    )


def flights(config: Config, on: Topology, lengths: Lengths) -> Iterator[ProgramMemory]:
    """The programs of a run, compiled, or counted where there is no compiler. Raises InputError for a wrong mesh."""
    if on.devices:
        mesh, drawing = setup.meshes(config, on.devices)
        own = np.array(on.host[: drawing.size]).reshape(drawing.devices.shape)
        drawing = Mesh(own, drawing.axis_names, axis_types=drawing.axis_types)
        yield measure("train step", lambda: lower_train_step(config, mesh))
        yield measure("prefix", lambda: lower_prefix(config, drawing, lengths))
        yield measure("sampling loop", lambda: lower_sampler(config, drawing, lengths))
        return
    ways = sharding.mesh_shape(config.mesh, on.count)
    for what, (arguments, temporaries) in (
        ("train step", budget.train_bytes(config, ways)),
        ("sampling loop", budget.sampling_bytes(config, _tensor(config, on), lengths)),
    ):
        yield ProgramMemory(what, arguments, temporaries, arguments + temporaries)


def remedies(config: Config) -> Iterator[tuple[str, Config]]:
    """Smaller ways to run a train step, the least change first, each on top of the others: flags, and their config."""
    changes: list[tuple[str, dict[str, Any]]] = []
    if config.model.remat != "full":
        changes.append(("model", {"remat": "full"}))
    if config.mesh.fsdp != -1:
        changes.append(("mesh", {"data": 1, "fsdp": -1}))
    if config.optimizer.moment_dtype != "bfloat16":
        changes.append(("optimizer", {"moment_dtype": "bfloat16"}))
    changes += [("train", {"microbatches": parts}) for parts in range(2, config.train.batch_rows + 1)]
    said: dict[str, Any] = {}
    for group, values in changes:
        said |= {f"{group}.{name}": value for name, value in values.items()}
        options: Any = dataclasses.replace(getattr(config, group), **values)
        config = dataclasses.replace(config, **{group: options})
        yield " ".join(f"--config.{name}={value}" for name, value in said.items()), config


def _advise_training(config: Config, on: Topology) -> str:
    for said, smaller in remedies(config):
        ways = sharding.mesh_shape(smaller.mesh, on.count)
        divides = smaller.train.batch_rows % (smaller.train.microbatches * ways["data"] * ways["fsdp"]) == 0
        if divides and sum(budget.train_bytes(smaller, ways)) < 0.95 * on.gib * GIB:
            return said
    return "more devices"


def _advise_sampling(config: Config, on: Topology, lengths: Lengths) -> str:
    slots = config.sampling.slots // 2
    while slots:
        fewer = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, slots=slots))
        if sum(budget.sampling_bytes(fewer, _tensor(fewer, on), lengths)) < 0.9 * on.gib * GIB:
            return f"--config.sampling.slots={slots}"
        slots //= 2
    return "more devices, or --config.sampling.tensor=-1"


def _tensor(config: Config, on: Topology) -> int:
    return (len(on.host) or on.count) if config.sampling.tensor == -1 else config.sampling.tensor


def report(config: Config, on: Topology, lengths: Lengths, say: Callable[[str], None]) -> bool:
    """Says what each program takes, as it is known; whether all of them fit."""
    count, fits = budget.parameters(decoder.GPT(config.model)), True
    how = "compiled" if on.devices else "counted, not compiled"
    say(f"{count:,} parameters on {on.count} x {on.name} of {on.gib:g} GiB; {how}")
    say(f"training: {config.train.batch_rows} rows of {config.train.row_tokens} tokens, "
        f"{budget.train_flops(config) / 1e12:,.0f} TFLOP a step")  # fmt: skip
    say(f"sampling: {config.sampling.slots} slots of {lengths.slots} tokens behind {lengths.prefix}, "
        f"{budget.decode_flops(config, lengths) / 1e12:,.2f} TFLOP a decode step")  # fmt: skip
    say(f"{'GiB a device':15}{'arguments':>11}{'temporaries':>13}{'peak':>8}{'share':>8}{'compiled in':>13}")
    for flight in flights(config, on, lengths):
        share = flight.peak / GIB / on.gib
        took = f"{flight.seconds:.0f} s" if flight.seconds else "-"
        say(f"{flight.what:15}{flight.arguments / GIB:11.2f}{flight.temporaries / GIB:13.2f}{flight.peak / GIB:8.2f}"
            f"{share:8.0%}{took:>13}")  # fmt: skip
        for depth, found in sorted(hlo.collectives(flight.text).items()) if flight.text else ():
            turn = {0: "a call" if flight.what == "sampling loop" else "in all", 1: "a prefill", 2: "a decode step"}[
                depth
            ]
            kinds = (f"{n} {kind} ({size / 2**20:,.2f} MiB)" for kind, (n, size) in hlo.summary(found).items())
            say(f"    {turn}: {', '.join(kinds)}")
        if share > 1:
            fits = False
            training = flight.what == "train step"
            advice = _advise_training(config, on) if training else _advise_sampling(config, on, lengths)
            say(f"    does not fit; by our count this would: {advice}")
    say("fits" if fits else "does not fit")
    return fits


def _main() -> None:
    parser = Parser("preflight", __doc__)
    parser.add_argument("--topology", help="e.g. v3:2x2, v5e:4x4, gpu:8xH100")
    parser.add_argument("--prefix_tokens", type=int, default=1024, help="tokens of the shared few-shot prefix (1024)")
    parser.add_argument("--body_tokens", type=int, default=128, help="tokens of the longest problem (128)")
    args, values = read_config(parser)
    if args.prefix_tokens < 0 or args.body_tokens < 1:
        raise InputError("--prefix_tokens must be at least 0 and --body_tokens at least 1")
    if not args.topology:
        raise InputError("give --topology, e.g. --topology=v3:2x2 or --topology=gpu:8xH100")
    given = values.base.path
    if not given and not values.base.stages:
        values.base.path = "none"  # sizes are all that is asked for
    config = from_dict(values)
    if given:
        config = dataclasses.replace(config, model=setup.model_config(config, Path(given)))
    config.model.check_complete()
    new = config.sampling.max_new_tokens or config.make_task().max_new_tokens
    lengths = Lengths(args.prefix_tokens, sampler.round_up(args.body_tokens, 8), new)
    if not report(config, topology(args.topology), lengths, lambda line: print(line, flush=True)):
        sys.exit(1)


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # a TPU that is here is left alone
    exit_on_bad_input(_main)
