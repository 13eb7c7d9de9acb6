"""Seconds from a command to its first sampled token, of a first start and of one that finds its programs compiled.

    python tests/benchmarks/startup.py                                      (SmolLM2-135M's sizes, random weights)
    python tests/benchmarks/startup.py --base=MODEL --dtype=bfloat16        (a model directory)
    python tests/benchmarks/startup.py --model=gpt-2 --layers=2 --prefix=32 --slots=4 --new_tokens=8         (seconds)

Each start is a process of its own. They share a cache of compiled programs (config.compile_cache) that is empty at
first. A start imports star_jax, puts the weights on the device, encodes the shared prefix and runs the engine until
every row has its first token: every token stops, in the very program that otherwise decodes `--new_tokens`.
Columns: seconds, seconds of CPU time (of all cores, and less sensitive to other load), what of the seconds JAX spends
on tracing, on lowering to MLIR, and on compiling or, in a second start, on reading the compiled program; and the number
of programs that were read.
"""

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# JAX's events -> columns. They are nested: a program's tracing contains that of the functions in it.
EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}
HIT = "/jax/compilation_cache/cache_hits"
PHASES = ("import", "weights", "prefix", "engine")


def main(argv: list[str] | None = None) -> None:
    """Starts two processes in turn and prints their tables."""
    args = arguments(argv)
    if args.started:
        print(json.dumps(start(args)))
        return
    with tempfile.TemporaryDirectory() as cache:
        for name in ("first start", "second start"):
            flags = [f"--{key}={value}" for key, value in vars(args).items() if key not in ("started", "cache")]
            command = [sys.executable, str(Path(__file__).resolve()), *flags, f"--cache={cache}"]
            command.append(f"--started={time.time()}")
            env = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=True)
            report(name, json.loads(done.stdout.splitlines()[-1]))


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="sizes by name, see star_jax/preflight/model_sizes.py")
    parser.add_argument("--base", default="", help="a model directory instead")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the model's; 0: all")
    parser.add_argument("--dtype", default="float32", help="of weights and activations")
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--prefix", type=int, default=768, help="tokens of the shared prefix")
    parser.add_argument("--body", type=int, default=64, help="tokens of a problem")
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--started", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--cache", default="", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


class Stopwatch:
    """Seconds of each phase, and of JAX's events in it."""

    def __init__(self) -> None:
        import jax

        self.seconds: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        self.events: dict[str, dict[str, float]] = {}
        self._current: dict[str, float] = collections.defaultdict(float)
        jax.monitoring.register_event_duration_secs_listener(self._add)
        jax.monitoring.register_event_listener(self._count)

    def _add(self, event: str, seconds: float, **_: Any) -> None:
        if event in EVENTS:
            self._current[EVENTS[event]] += seconds

    def _count(self, event: str, **_: Any) -> None:
        if event == HIT:
            self._current["read"] += 1

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        self._current.clear()
        started, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name], self.cpu[name] = time.perf_counter() - started, time.process_time() - cpu
        self.events[name] = dict(self._current)


def start(args: argparse.Namespace) -> dict[str, Any]:
    """One start: {"layers", "parameters", "seconds" and "cpu": phase -> seconds, "events": phase -> column -> ...}."""
    import dataclasses

    import jax
    import jax.numpy as jnp
    import numpy as np

    from star_jax.algorithms import budget
    from star_jax.config import MeshConfig, ModelConfig
    from star_jax.distributed import compile_cache, sharding
    from star_jax.models import families
    from star_jax.preflight import model_sizes
    from star_jax.records import EncodedPrompt, Prompt
    from star_jax.sampling.sampler import Request, Sampler, SamplerSpec
    from star_jax.tokenizers.simple import ByteTokenizer
    from star_jax.weights import checkpoint, placement

    watch = Stopwatch()
    compile_cache.enable(args.cache)
    mesh = sharding.sampling_mesh(sharding.make_mesh(MeshConfig(data=1), jax.devices()[:1]), 1)
    watch.seconds["import"], watch.cpu["import"] = time.time() - args.started, time.process_time()
    watch.events["import"] = {}
    spec = checkpoint.load_spec(Path(args.base)) if args.base else model_sizes.spec_of(args.model)
    if args.layers:
        spec = dataclasses.replace(spec, n_layers=args.layers, local_layers=spec.local_layers[: args.layers])
    model = families.build(ModelConfig(compute_dtype=args.dtype), spec)
    with watch.phase("weights"):
        if args.base:
            params = checkpoint.load_model(args.base, mesh, args.dtype)[1]
        else:
            rng = np.random.default_rng(0)
            params = jax.tree.map(
                lambda leaf: jax.device_put(
                    (0.02 * rng.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype), leaf.sharding
                ),
                placement.sharded_shapes(model, mesh, args.dtype),
            )
        weights = jax.block_until_ready(placement.to_decode_params(model, params, mesh))
    sampler = Sampler(model, ByteTokenizer(), mesh, SamplerSpec(max_new_tokens=args.new_tokens, slots=args.slots))
    sampler.engine = dataclasses.replace(sampler.engine, vocab_used=spec.vocab_size)
    sampler._automaton_SV = jnp.ones((2, spec.vocab_size), jnp.int32)  # every token stops
    ids = tuple(range(1, 1 + args.prefix))
    prompt = Prompt("shots", "problem")
    requests = [Request(EncodedPrompt(prompt, ids, ids[: args.body]), str(n)) for n in range(args.slots)]
    with watch.phase("prefix"):
        jax.block_until_ready(sampler._encode_prefix(weights, ids))
    with watch.phase("engine"):
        samples = sampler.sample(weights, requests)
    assert {len(sample.token_ids) for sample in samples} == {1}
    sizes = {"layers": spec.n_layers, "parameters": budget.parameter_count(spec)}
    return {**sizes, "seconds": watch.seconds, "cpu": watch.cpu, "events": watch.events}


def report(name: str, figures: dict[str, Any]) -> None:
    """Prints the table of one start."""
    print(f"{name}, {figures['layers']} layers, {figures['parameters']:,} parameters")
    print(f"  {'phase':10}{'seconds':>9}{'cpu':>9}{'trace':>9}{'lower':>9}{'compile':>9}{'read':>6}")
    for phase in PHASES:
        columns = "".join(f"{figures['events'][phase].get(column, 0.0):9.2f}" for column in EVENTS.values())
        print(f"  {phase:10}{figures['seconds'][phase]:9.2f}{figures['cpu'][phase]:9.2f}{columns}"
              f"{figures['events'][phase].get('read', 0):6.0f}")  # fmt: skip
    total, cpu = (sum(figures[name].values()) for name in ("seconds", "cpu"))
    print(f"  {'total':10}{total:9.2f}{cpu:9.2f}", flush=True)


if __name__ == "__main__":
    main()
