"""Preflight's report: memory and collectives of each program and, if one does not fit, a change that would make it."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from star_jax.config import Config
from star_jax.distributed import sharding
from star_jax.models.spec import DecoderSpec
from star_jax.preflight import budget, hlo
from star_jax.preflight.budget import GIB, Lengths
from star_jax.preflight.programs import (
    SAMPLING_LOOP,
    TRAIN_STEP,
    ProgramMemory,
    measure_programs,
    sampling_tensor,
    sampling_tensors,
)
from star_jax.preflight.topology import Topology

# Loop depth in the compiled program -> what one iteration of those loops does.
_PER_DEPTH = {0: "total", 1: "per prefill", 2: "per decode step"}


def report(
    config: Config, spec: DecoderSpec, topology: Topology, lengths: Lengths, write: Callable[[str], None]
) -> bool:
    """Writes the report line by line, as programs get compiled. Returns True if all programs fit.

    Raises InputError for a mesh that does not fit the devices or the model.
    """
    count, all_fit = budget.parameter_count(spec), True
    method = "compiled" if topology.devices else "counted, not compiled"
    write(f"{count:,} parameters on {topology.device_count} x {topology.device_kind} of {topology.device_gib:g} GiB; "
          f"{method}")  # fmt: skip
    write(f"training: {config.train.batch_rows} rows of {config.train.row_tokens} tokens, "
          f"{budget.train_flops(config, spec) / 1e12:,.0f} TFLOP per step")  # fmt: skip
    write(f"sampling: {config.sampling.slots} slots of {lengths.cached} tokens after a prefix of {lengths.prefix}, "
          f"{budget.decode_flops(config, spec, lengths) / 1e12:,.2f} TFLOP per decode step")  # fmt: skip
    write(f"{'GiB per device':15}{'arguments':>11}{'temporaries':>13}{'peak':>8}{'share':>8}{'compiled in':>13}")
    for memory in measure_programs(config, spec, topology, lengths):
        for line in _program_lines(memory, topology):
            write(line)
        if memory.peak > topology.device_gib * GIB:
            all_fit = False
            training = memory.program == TRAIN_STEP
            advice = (
                training_advice(config, spec, topology)
                if training
                else sampling_advice(config, spec, topology, lengths)
            )
            write(f"    does not fit; by our count this would: {advice}")
    write("fits" if all_fit else "does not fit")
    return all_fit


def _program_lines(memory: ProgramMemory, topology: Topology) -> Iterator[str]:
    share = memory.peak / GIB / topology.device_gib
    seconds = f"{memory.compile_seconds:.0f} s" if memory.compile_seconds else "-"
    yield (f"{memory.program:15}{memory.arguments / GIB:11.2f}{memory.temporaries / GIB:13.2f}{memory.peak / GIB:8.2f}"
           f"{share:8.0%}{seconds:>13}")  # fmt: skip
    if memory.hlo_text:
        for depth, collectives in sorted(hlo.collectives(memory.hlo_text).items()):
            per = "per call" if depth == 0 and memory.program == SAMPLING_LOOP else _PER_DEPTH[depth]
            totals = hlo.totals(collectives).items()
            yield f"    {per}: " + ", ".join(f"{n} {kind} ({size / 2**20:,.2f} MiB)" for kind, (n, size) in totals)


def training_advice(config: Config, spec: DecoderSpec, topology: Topology) -> str:
    """The flags of the first of `remedies` whose train step fits by our count, else "more devices"."""
    for flags, smaller in remedies(config):
        mesh_shape = sharding.mesh_shape(smaller.mesh, topology.device_count)
        parts = smaller.train.microbatches * mesh_shape["data"] * mesh_shape["fsdp"]
        divides = smaller.train.batch_rows % parts == 0
        if divides and sum(budget.train_bytes(smaller, spec, mesh_shape)) < 0.95 * topology.device_gib * GIB:
            return flags
    return "more devices"


def sampling_advice(config: Config, spec: DecoderSpec, topology: Topology, lengths: Lengths) -> str:
    """Flags with which the sampling loop fits by our count: fewer slots, or weights and caches over more devices.

    The number of slots is halved repeatedly. With more devices for each copy of the model it starts from the config's.
    """
    now = sampling_tensor(config, topology)
    for tensor in (now, *(more for more in sampling_tensors(spec, topology) if more > now)):
        flags = "" if tensor == now else f"--config.sampling.tensor={tensor}"
        slots = config.sampling.slots
        while slots:
            fewer = dataclasses.replace(config, sampling=dataclasses.replace(config.sampling, slots=slots))
            size = sum(budget.sampling_bytes(fewer, spec, tensor, lengths))
            if (flags or slots < config.sampling.slots) and size < 0.9 * topology.device_gib * GIB:
                return f"{flags} --config.sampling.slots={slots}".strip() if slots < config.sampling.slots else flags
            slots //= 2
    return "more devices"


def remedies(config: Config) -> Iterator[tuple[str, Config]]:
    """Configs whose train step needs less and less memory: (flags, the config with them).

    Each adds a change to the one before it, the cheapest change first, and names the flags of all changes.
    """
    changes: list[tuple[str, dict[str, Any]]] = []
    if config.model.remat != "full":
        changes.append(("model", {"remat": "full"}))
    if config.mesh.fsdp != -1:
        changes.append(("mesh", {"data": 1, "fsdp": -1}))
    if config.optimizer.moment_dtype != "bfloat16":
        changes.append(("optimizer", {"moment_dtype": "bfloat16"}))
    changes += [("train", {"microbatches": parts}) for parts in range(2, config.train.batch_rows + 1)]
    flags: dict[str, Any] = {}
    for group, values in changes:
        flags |= {f"{group}.{name}": value for name, value in values.items()}
        options: Any = dataclasses.replace(getattr(config, group), **values)
        config = dataclasses.replace(config, **{group: options})
        yield " ".join(f"--config.{name}={value}" for name, value in flags.items()), config
