"""Kernels, and the speed of GPT-J-6B and Llama-3.1-8B with random weights, on this machine's GPU: in eight minutes.

    python tests/benchmarks/gpu_models.py                                   (one GPU of 100 GB or more)
    python tests/benchmarks/gpu_models.py --layers=2 --width=64 --slots=4,8 --prefix=32 --body=16 --new_tokens=8 \\
        --rows=2 --row_tokens=64 --steps=2 --probe_mib=4 --probe_side=64 --heads=4 --slot_count=24     (any machine)

Kernels: the Triton kernels of a decode step (ring and prefix) and cuDNN's attention of packed rows, forward and
gradients, with head sizes 64, 80, 128 and 256, several queries for each KV head, with a window and without, against
the dense backend in float32. Without a GPU the Triton kernels are emulated, and cuDNN's are left out.
Models: decoding and prefill with one row per slot, as gptj.py measures them, and train steps of Adam in float32. Goals:
60 % of the bandwidth in decoding, an MFU of 50 % in training. There are no adapters: if a model's train state does not
fit, it is trained with fewer layers, and the line names how many.
A part that begins after `--limit` seconds is left out and named. gptj.py has GPT-J's whole loop, and transformers as
the peer.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import Any

import gptj
import jax
import jax.numpy as jnp
import least_work
import machine
import numpy as np
from jax.sharding import Mesh

from star_jax import config
from star_jax.algorithms import budget
from star_jax.distributed import platforms, sharding
from star_jax.models import families
from star_jax.models.attention import dense, packed, ring
from star_jax.models.attention.masks import KV, SharedPrefix
from star_jax.models.attention.packed import PackedMask
from star_jax.models.attention.ring import RingMask
from star_jax.models.attention.softmax import ScoreSpec
from star_jax.models.decoder import DecodeParams, Decoder
from star_jax.models.spec import DecoderSpec
from star_jax.preflight import model_sizes
from star_jax.sampling.sampler import Request, Sampler, SamplerSpec
from star_jax.tokenizers.simple import ByteTokenizer
from star_jax.training.fine_tune import initial_state, train_step
from star_jax.weights import placement

TOLERANCE = 0.03  # bfloat16: relative to the largest value


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    args = arguments(argv)
    started = time.perf_counter()
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}")
    check_kernels(args)
    speed = gptj.Speed(machine.matrix_rate(args.probe_side, "bfloat16"), gptj.copy_rate(args.probe_mib))
    print(f"matrix product {speed.flops / 1e12:,.2f} TFLOP/s, copy {speed.bytes / 1e12:,.3f} TB/s")
    for name in args.models:
        for part in (time_sampling, time_training):
            if (seconds := time.perf_counter() - started) > args.limit:
                print(f"{name}, {part.__name__}: left out, {seconds:.0f} s are over")
            else:
                part(args, name, speed)
    print(f"\n{time.perf_counter() - started:.0f} s in all")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=lambda text: text.split(","), default=["gpt-j-6b", "llama-3.1-8b"])
    parser.add_argument("--layers", type=int, default=0, help="fewer layers; 0: the model's")
    parser.add_argument("--width", type=int, default=0, help="a smaller width, with heads of 16; 0: the model's")
    parser.add_argument("--slots", type=lambda text: [int(n) for n in text.split(",")], default=[64, 256])
    parser.add_argument("--prefix", type=int, default=785, help="tokens of the shots")
    parser.add_argument("--body", type=int, default=55, help="tokens of a problem")
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--row_tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--head_sizes", type=lambda text: [int(n) for n in text.split(",")], default=[64, 80, 128, 256])
    parser.add_argument("--heads", type=int, default=32, help="query heads of the kernels' check")
    parser.add_argument("--slot_count", type=int, default=200, help="slots of the ring in the kernels' check")
    parser.add_argument("--probe_mib", type=int, default=2048, help="size of the array whose copy is timed")
    parser.add_argument("--probe_side", type=int, default=8192, help="side of the matrices whose product is timed")
    parser.add_argument("--limit", type=float, default=400.0, help="seconds after which no further part begins")
    return parser.parse_args(argv)


def check_kernels(args: argparse.Namespace) -> None:
    """Prints the kernels' largest differences from the dense backend. Raises AssertionError above TOLERANCE."""
    has_gpu = platforms.cuda_capability() >= (8, 0)
    print(f"{'head size':>9}{'queries per key':>17}{'window':>8}{'ring + prefix':>15}{'packed':>9}{'gradient':>10}")
    for size in args.head_sizes:
        for groups, window in ((1, 0), (4, 0), (4, 24)):
            scores = ScoreSpec(size**-0.5, window=window)
            differences = [decode_difference(args, size, groups, scores, interpret=not has_gpu)]
            if has_gpu:
                differences += packed_differences(args, size, groups, scores)
            columns = "".join(f"{value:{width}.4f}" for value, width in zip(differences, (15, 9, 10), strict=False))
            print(f"{size:9}{groups:17}{window:8}{columns}{'' if has_gpu else '   no GPU: emulated, no cuDNN'}")
            assert max(differences) < TOLERANCE, "a kernel differs from the dense backend"


def decode_difference(args: argparse.Namespace, size: int, groups: int, scores: ScoreSpec, interpret: bool) -> float:
    """Of a decode step by the Triton kernels: rows of all ages over a ring, after a prefix with padding."""
    rows, slots, kv_heads = 6, args.slot_count, args.heads // groups
    q_BHTK, k, v = normal((rows, args.heads, 1, size), *[(rows, kv_heads, slots, size)] * 2)
    prefix = SharedPrefix(KV(*normal(*[(kv_heads, 64, size)] * 2, seed=1)), jnp.asarray(50))
    mask = RingMask(jnp.asarray(slots // 3), jnp.asarray([0, 1, 5, slots // 2, slots - 1, slots + 9]))
    positions_BT = (50 + mask.filled_B)[:, None]
    ours = ring.attend_triton(q_BHTK, KV(k, v), mask, scores, positions_BT, prefix, interpret=interpret)
    exact = dense.attend(
        *to_float32((q_BHTK, KV(k, v))), mask.boolean(slots, scores.window), scores, positions_BT,
        prefix._replace(kv=to_float32(prefix.kv)),
    )  # fmt: skip
    return difference(ours, exact)


def packed_differences(args: argparse.Namespace, size: int, groups: int, scores: ScoreSpec) -> list[float]:
    """Of cuDNN's attention of packed rows, and of its gradients."""
    length, kv_heads = args.row_tokens, args.heads // groups
    q_BHTK, k, v, dy = normal(*[(2, heads, length, size) for heads in (args.heads, kv_heads, kv_heads, args.heads)])
    ids_BT = jnp.cumsum(jnp.arange(length) % 37 == 0)[None].repeat(2, axis=0)

    def value_and_gradients(backend: packed.Backend, arrays: Any) -> list[jax.Array]:
        y, backward = jax.vjp(lambda q, k, v: backend(q, KV(k, v), PackedMask(ids_BT), scores=scores), *arrays)
        return [y, *backward(dy.astype(y.dtype))]

    ours = jax.jit(functools.partial(value_and_gradients, packed.cudnn))((q_BHTK, k, v))
    exact = jax.jit(functools.partial(value_and_gradients, packed.recomputed_dense))(to_float32((q_BHTK, k, v)))
    each = [difference(x, y) for x, y in zip(ours, exact, strict=True)]
    return [each[0], max(each[1:])]


def normal(*shapes: tuple[int, ...], seed: int = 0) -> list[jax.Array]:
    """Standard normal bfloat16 arrays."""
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [jax.random.normal(key, shape, jnp.bfloat16) for key, shape in zip(keys, shapes, strict=True)]


def to_float32(tree: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def difference(ours: jax.Array, exact: jax.Array) -> float:
    """The largest difference, relative to the largest value."""
    return float(jnp.max(jnp.abs(ours.astype(jnp.float32) - exact)) / jnp.max(jnp.abs(exact)))


def spec_of(args: argparse.Namespace, name: str) -> DecoderSpec:
    """The model's spec, or a smaller one of its family."""
    spec = model_sizes.spec_of(name)
    if args.layers:
        spec = dataclasses.replace(spec, n_layers=args.layers)
    if args.width:
        heads, groups = args.width // 16, spec.n_heads // spec.n_kv_heads
        rope = dataclasses.replace(spec.rope, dim=min(16, spec.rope.dim))
        sizes = {"d_model": args.width, "n_heads": heads, "n_kv_heads": max(1, heads // groups), "head_dim": 16}
        spec = dataclasses.replace(spec, **sizes, d_mlp=4 * args.width, vocab_size=512, rope=rope)
    return spec


def time_sampling(args: argparse.Namespace, name: str, speed: gptj.Speed) -> None:
    """Prints the rates of decoding and of prefill for each number of slots."""
    model = families.build(config.ModelConfig(compute_dtype="bfloat16"), spec_of(args, name))
    mesh = sharding.sampling_mesh(sharding.make_mesh(config.MeshConfig(data=1), jax.devices()[:1]), 1)
    print(f"\n{name}: {model.spec.n_layers} layers, {budget.parameter_count(model.spec):,} parameters")
    params = random_params(model, mesh)
    weights = placement.to_decode_params(model, params, mesh)
    del params
    lengths = budget.Lengths(args.prefix, args.body, args.new_tokens)
    for slots in args.slots:
        requests = gptj.requests_of(args, slots, seed=0)
        sides = samplers(args, model, mesh, slots)
        started = time.perf_counter()
        for sampler, count in zip(sides, (args.new_tokens, 1), strict=True):
            assert {len(sample.token_ids) for sample in sampler.sample(weights, requests)} == {count}
        first = time.perf_counter() - started
        whole, prefill = (machine.best(functools.partial(run, s, weights, requests), turns=2) for s in sides)
        work = least_work.sampling(model, slots, slots, lengths)
        decode, floor, steps = whole - prefill, work.decode_bytes / speed.bytes, work.decode_steps
        print(f"  {slots} slots, {gptj.memory()}; first calls {first:.1f} s")
        print(f"    decode:  {slots * steps / decode:10,.0f} tokens/s, {1e3 * decode / steps:.2f} ms per step; floor "
              f"{1e3 * floor / steps:.2f} ms, {floor / decode:.1%} of the bandwidth (goal 60 %); "
              f"products {1e3 * work.decode_flops / steps / speed.flops:.2f} ms")  # fmt: skip
        rate = work.prefill_flops / prefill
        tokens = args.prefix + slots * args.body
        print(f"    prefill: {tokens / prefill:10,.0f} tokens/s, {rate / 1e12:,.2f} TFLOP/s, "
              f"{rate / speed.flops:.1%} of the matrix rate")  # fmt: skip
    jax.tree.map(lambda leaf: leaf.delete(), weights)


def samplers(args: argparse.Namespace, model: Decoder, mesh: Mesh, slots: int) -> list[Sampler]:
    """Two samplers that share their program: in one no token stops, in the other every token does."""
    spec = SamplerSpec(max_new_tokens=args.new_tokens, slots=slots, queue=slots, prefill_tokens=1024)
    vocabulary = model.spec.vocab_size
    sides = []
    for stops in (False, True):
        sampler = Sampler(model, ByteTokenizer(), mesh, spec)
        sampler.engine = dataclasses.replace(sampler.engine, vocab_used=vocabulary)
        sampler._automaton_SV = jnp.full((2, vocabulary), int(stops), jnp.int32)
        sides.append(sampler)
    return sides


def run(sampler: Sampler, weights: DecodeParams, requests: list[Request]) -> tuple[()]:
    """One pass, whose samples are on the host when it returns."""
    sampler.sample(weights, requests)
    return ()


def random_params(model: Decoder, mesh: Mesh, dtype: str = "bfloat16") -> Any:
    """Normal weights of standard deviation 0.02, made on the device leaf by leaf."""
    shapes, tree = jax.tree.flatten(placement.sharded_shapes(model, mesh, dtype))
    make = jax.jit(lambda key, like: 0.02 * jax.random.normal(key, like.shape, like.dtype), static_argnums=1)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    leaves = [jax.device_put(make(key, like), like.sharding) for key, like in zip(keys, shapes, strict=True)]
    return jax.tree.unflatten(tree, leaves)


def time_training(args: argparse.Namespace, name: str, speed: gptj.Speed) -> None:
    """Prints the rate of train steps on full rows, with as many layers as fit."""
    whole = spec_of(args, name)
    settings = config.Config(
        model=config.ModelConfig(compute_dtype="bfloat16", remat="full"),
        train=config.TrainConfig(batch_rows=args.rows, row_tokens=args.row_tokens),
        mesh=config.MeshConfig(data=1),
    )
    spec = next(filter(functools.partial(fits, settings), fewer_layers(whole)))
    model = families.build(settings.model, spec)
    mesh = sharding.make_mesh(settings.mesh, jax.devices()[:1])
    batch = {key: sharding.put_rows(mesh, array) for key, array in gptj.rows_of(args, model).items()}

    def step(state):
        return train_step(model, settings.optimizer, state, batch, np.float32(1e-6))

    with sharding.use(mesh):
        started = time.perf_counter()
        state = initial_state(settings.optimizer, random_params(model, mesh, settings.train.param_dtype))
        state, metrics = jax.block_until_ready(step(state))
        first, started = time.perf_counter() - started, time.perf_counter()
        for _ in range(args.steps):
            state, metrics = step(state)
        jax.block_until_ready(state)
        seconds = (time.perf_counter() - started) / args.steps
    plain = dataclasses.replace(settings, model=dataclasses.replace(settings.model, remat="none"))
    mfu, hardware = (budget.train_flops(c, spec) / seconds / speed.flops for c in (plain, settings))
    print(f"  train step, {spec.n_layers} of {whole.n_layers} layers, {args.rows} x {args.row_tokens} tokens, "
          f"float32 Adam, remat full, loss {float(metrics['loss']):.3f}, {gptj.memory()}")  # fmt: skip
    print(f"    first {first:.1f} s, then {seconds:.3f} s; {args.rows * args.row_tokens / seconds:,.0f} tokens/s; "
          f"MFU {mfu:.1%} (goal 50 %), with recomputation {hardware:.1%}")  # fmt: skip
    jax.tree.map(lambda leaf: leaf.delete(), state)


def fewer_layers(spec: DecoderSpec) -> Iterator[DecoderSpec]:
    """The spec, then with an eighth of its layers less each time, down to one layer."""
    for layers in sorted({max(1, spec.n_layers * part // 8) for part in range(9)}, reverse=True):
        yield dataclasses.replace(spec, n_layers=layers)


def fits(settings: config.Config, spec: DecoderSpec) -> bool:
    """True if the train step fits the device by the count of bytes, or if the device's memory is unknown."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    size = sum(budget.train_bytes(settings, spec, dict(data=1, fsdp=1, tensor=1)))
    return not limit or spec.n_layers == 1 or size < 0.95 * limit


if __name__ == "__main__":
    main()
