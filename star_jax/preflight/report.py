"""Preflight's report: memory and collectives of each program and, if one does not fit, a change that would make it."""

from collections.abc import Callable, Iterator

from star_jax.algorithms import budget
from star_jax.algorithms.budget import GIB, Lengths
from star_jax.config import Config
from star_jax.models.spec import DecoderSpec
from star_jax.preflight import advice, hlo
from star_jax.preflight.programs import SAMPLING_LOOP, TRAIN_STEP, ProgramMemory, measure_programs
from star_jax.preflight.topology import GPU_POOL_VARIABLE, LARGE_POOL, RESERVE, Topology

# Loop depth in the compiled program -> what one iteration of those loops does.
_PER_DEPTH = {0: "total", 1: "per prefill", 2: "per decode step"}


def report(
    config: Config, spec: DecoderSpec, topology: Topology, lengths: Lengths, write: Callable[[str], None]
) -> bool:
    """Writes the report line by line, as programs get compiled. Returns True if all programs fit.

    Raises InputError for what a run on these devices would refuse.
    """
    count = budget.parameter_count(spec)
    method = "compiled" if topology.devices else "counted, not compiled"
    write(f"{count:,} parameters on {topology.device_count} x {topology.device_kind} of {topology.device_gib:g} GiB; "
          f"{method}")  # fmt: skip
    write(f"usable: {topology.usable_bytes / GIB:.1f} GiB of each; {_reserve(topology)}")
    write(f"training: {config.train.batch_rows} rows of {config.train.row_tokens} tokens, "
          f"{budget.train_flops(config, spec) / 1e12:,.0f} TFLOP per step")  # fmt: skip
    write(f"sampling: {config.sampling.slots} slots of {lengths.cached} tokens after a prefix of {lengths.prefix}, "
          f"{budget.decode_flops(config, spec, lengths) / 1e12:,.2f} TFLOP per decode step")  # fmt: skip
    write(f"{'GiB per device':15}{'arguments':>11}{'temporaries':>13}{'peak':>8}{'share':>8}{'compiled in':>13}")
    largest, helpless = 0.0, False
    for memory in measure_programs(config, spec, topology, lengths):
        largest = max(largest, memory.peak)
        for line in _program_lines(memory, topology):
            write(line)
        if memory.peak > topology.usable_bytes:
            flags = (
                advice.training_flags(config, spec, topology)
                if memory.program == TRAIN_STEP
                else advice.sampling_flags(config, spec, topology, lengths)
            )
            helpless |= not flags
            write(f"    does not fit; by our count {f'this would: {flags}' if flags else 'no option helps here'}")
    fits = largest <= topology.usable_bytes
    if helpless:
        write(f"by our count {advice.more_devices(config, spec, topology, lengths)}")
    if not fits and largest <= (pool := topology.with_pool(LARGE_POOL)).usable_bytes:
        write(f"it would fit with {GPU_POOL_VARIABLE}={LARGE_POOL} in the run's environment: {_reserve(pool)}")
    write("fits" if fits else "does not fit")
    return fits


def _reserve(topology: Topology) -> str:
    """What the rest of the memory is for."""
    if topology.pool == 1:
        return f"{RESERVE:.0%} is kept for fragmentation and the runtime"
    return f"JAX allocates {topology.pool:.0%} of a GPU's memory, of which {RESERVE:.0%} is kept for fragmentation"


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
