"""GPT-J-6B with random weights on this machine's accelerator: decoding, prefill, train step, one loop of the paper.

    python tests/benchmarks/gptj.py                                       (bandwidth and matrix rate are measured first)
    python tests/benchmarks/gptj.py --slots=256 --bandwidth=4.8 --matrix_rate=989        (an H200's data sheet instead)
    python tests/benchmarks/gptj.py --layers=2 --d_model=64 --problems=24 --slots=8 --new_tokens=8 --prefix=32 \\
        --steps=2 --rows=2 --row_tokens=128 --probe_mib=16 --probe_side=256              (any machine, half a minute)

Decoding: one row per slot after a prefix of 785 tokens (CommonsenseQA's seven shots), bodies of 55 tokens, 96 new
tokens. Its time is that of the whole program less that of the same program when every row's first token ends it. Its
floor: each step reads all bfloat16 weights (12.1 GB less the embedding), the prefix's keys and values once and those of
each row, at the speed of a copy. The time of the matrix products is printed next to it: from some 200 rows on it is
longer.
Prefill: prefix and bodies up to the first token, against the speed of a matrix product.
Train step: 8 x 1,024 tokens, Adam; dtypes and activation checkpoints as large as memory allows. MFU: 6 FLOPs per weight
and token plus attention's, without recomputation, over the matrix rate.
The loop: the paper's first on CommonsenseQA, 9,741 problems sampled, all rationalized (the worst case), weights
restored from host memory, 40 steps. Bar: three minutes on an H200. Compilation is timed separately: a run pays it once.

Needs jax, flax, optax and orbax; no data, tokenizer files, seqio, TensorFlow or ml_collections. If torch sees a GPU,
transformers' generate samples the same lengths. README.md and LOG.md of this folder have an H200's figures.
"""

import argparse
import dataclasses
import importlib.util
import os
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")  # default: 0.75; read when JAX starts

import jax
import jax.numpy as jnp
import least_work
import machine
import numpy as np
from jax.sharding import Mesh

from star_jax import config
from star_jax.algorithms import budget
from star_jax.distributed import sharding
from star_jax.models import decoder, families
from star_jax.models.decoder import DecodeParams
from star_jax.records import EncodedPrompt, Prompt
from star_jax.sampling.sampler import Request, Sampler, SamplerSpec
from star_jax.tokenizers.simple import ByteTokenizer
from star_jax.training import packing
from star_jax.training.fine_tune import initial_state, train_step
from star_jax.weights import placement

BAR = 180.0  # seconds of the loop on an H200
# (weights, Adam's first moment, model.remat), the most memory first. The second moment is always float32.
TRAINING = (
    ("float32", "float32", "dots"),
    ("float32", "float32", "full"),
    ("float32", "bfloat16", "full"),
    ("bfloat16", "bfloat16", "full"),
)


def main(argv: list[str] | None = None) -> None:
    """Prints the tables."""
    args = arguments(argv)
    peer = transformers_line(args)  # first: JAX then reserves the device's memory
    settings = sizes(args)
    cfg = settings.model
    model, mesh = families.build(cfg), sharding.make_mesh(config.MeshConfig(data=1))
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}: {cfg.n_layers} layers, d_model {cfg.d_model}, "
          f"{budget.parameter_count(model.spec):,} parameters")  # fmt: skip
    speed = Speed(
        args.matrix_rate * 1e12 or machine.matrix_rate(args.probe_side, "bfloat16"),
        args.bandwidth * 1e12 or copy_rate(args.probe_mib),
    )
    print(f"matrix product {speed.flops / 1e12:,.2f} TFLOP/s, copy {speed.bytes / 1e12:,.3f} TB/s"
          f"{' (given)' if args.matrix_rate and args.bandwidth else ''}")  # fmt: skip
    params = random_params(model, mesh)
    for slots in args.slots:
        time_decoding(args, model, params, slots, speed)
    print(peer)
    phases = {name: time_sampling_pass(args, model, params, name) for name in ("sample", "rationalize")}
    jax.tree.map(lambda leaf: leaf.delete(), params)  # training needs the memory
    phases |= time_training(args, settings, model, mesh, speed)
    total = sum(phases.values())
    parts = ", ".join(f"{name} {seconds:.2f}" for name, seconds in phases.items())
    print(f"\none loop, {args.problems} problems, {args.steps} steps: {total:.1f} s: {parts}"
          f"  (bar: {BAR:.0f} s on an H200 at the sizes of GPT-J-6B)")  # fmt: skip


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=config.GPTJ_6B["n_layers"])
    parser.add_argument("--d_model", type=int, default=config.GPTJ_6B["d_model"])
    parser.add_argument("--slots", type=lambda text: [int(n) for n in text.split(",")], default=[64, 256, 512])
    parser.add_argument("--loop_slots", type=int, default=0, help="slots in the loop; 0: the last of --slots")
    parser.add_argument("--prefix", type=int, default=785, help="tokens of the shots")
    parser.add_argument("--body", type=int, default=55, help="tokens of a problem")
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--prefill_tokens", type=int, default=1024, help="body tokens of one prefill")
    parser.add_argument("--problems", type=int, default=9741, help="problems of the loop")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--row_tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--bandwidth", type=float, default=0.0, help="memory bandwidth, TB/s; 0: measured")
    parser.add_argument("--matrix_rate", type=float, default=0.0, help="bfloat16 matrix rate, TFLOP/s; 0: measured")
    parser.add_argument("--probe_mib", type=int, default=2048, help="size of the array whose copy is timed")
    parser.add_argument(
        "--probe_side", type=int, default=8192, help="side of the square matrices whose product is timed"
    )
    parser.add_argument("--torch_device", default="cuda", help="device of transformers' generate; none: skip it")
    return parser.parse_args(argv)


def sizes(args: argparse.Namespace) -> config.Config:
    """GPT-J of the flags' sizes, bfloat16 activations, full recomputation."""
    heads = max(1, args.d_model // 256)
    model_sizes = {**config.GPTJ_6B, "n_layers": args.layers, "d_model": args.d_model, "n_heads": heads}
    model_sizes |= {"d_mlp": 4 * args.d_model, "rotary_dim": min(64, args.d_model // heads)}
    cfg = config.ModelConfig(**model_sizes, compute_dtype="bfloat16", remat="full")
    rows = config.TrainConfig(batch_rows=args.rows, row_tokens=args.row_tokens)
    return config.Config(model=cfg, train=rows, mesh=config.MeshConfig(data=1))


@dataclasses.dataclass(frozen=True)
class Speed:
    """Rates of this device, per second."""

    flops: float  # bfloat16 products
    bytes: float  # read and written


def copy_rate(mib: int) -> float:
    """Bytes per second, read and written, of an array's copy or of a fused addition, whichever is faster."""
    source = jax.random.normal(jax.random.key(0), (mib * 2**19,), jnp.bfloat16)
    functions = jnp.copy, jax.jit(lambda x: x + 1)
    return 2.0 * source.nbytes / min(machine.best(lambda f=f: f(source), turns=3, calls=10) for f in functions)


def random_params(model: decoder.Decoder, mesh: Mesh, dtype: str = "bfloat16") -> decoder.Params:
    """Normal weights of standard deviation 0.02, made on the device leaf by leaf; end-of-text is never sampled."""
    shapes, tree = jax.tree.flatten(placement.sharded_shapes(model, mesh, dtype))
    make = jax.jit(lambda key, like: 0.02 * jax.random.normal(key, like.shape, like.dtype), static_argnums=1)
    keys = jax.random.split(jax.random.key(0), len(shapes))
    leaves = [jax.device_put(make(key, like), like.sharding) for key, like in zip(keys, shapes, strict=True)]
    params = jax.tree.unflatten(tree, leaves)
    head = params["head"]
    return {**params, "head": {**head, "bias": head["bias"].at[ByteTokenizer().end_ids[0]].set(-1e4)}}


def requests_of(args: argparse.Namespace, count: int, seed: int) -> list[Request]:
    """Prompts of random letters, one token each, of the lengths of the flags."""
    rng = np.random.default_rng(seed)

    def text(size: int) -> str:
        return "".join(chr(c) for c in rng.integers(97, 123, size))

    shots, encode = text(args.prefix), ByteTokenizer().encode
    prompts = [Prompt(shots, text(args.body)) for _ in range(count)]
    prefix_ids = tuple(encode(shots))
    return [Request(EncodedPrompt(p, prefix_ids, tuple(encode(p.body))), str(i)) for i, p in enumerate(prompts)]


def make_sampler(
    args: argparse.Namespace, model: decoder.Decoder, params: decoder.Params, slots: int
) -> tuple[Sampler, DecodeParams]:
    """A sampler and its weights, on the devices of `params`."""
    spec = SamplerSpec(
        max_new_tokens=args.new_tokens, slots=slots, queue=min(args.problems, 2048), prefill_tokens=args.prefill_tokens
    )
    mesh = sharding.sampling_mesh(sharding.mesh_of(params), 1)
    return Sampler(model, ByteTokenizer(), mesh, spec), placement.to_decode_params(model, params, mesh)


def ending_at_once(params: DecodeParams) -> DecodeParams:
    """Weights with which every row ends with its first token: the same program runs the prefill and one step."""
    head = params.rest["head"]
    bias = head["bias"].at[ByteTokenizer().end_ids[0]].set(1e4)
    return params._replace(rest={**params.rest, "head": {**head, "bias": bias}})


def time_decoding(
    args: argparse.Namespace, model: decoder.Decoder, params: decoder.Params, slots: int, speed: Speed
) -> None:
    """Prints the rates of decoding and of prefill; one row per slot."""
    requests, (ours, weights) = requests_of(args, slots, seed=0), make_sampler(args, model, params, slots)
    started = time.perf_counter()
    assert {len(sample.token_ids) for sample in ours.sample(weights, requests)} == {args.new_tokens}
    first, ending = time.perf_counter() - started, ending_at_once(weights)
    assert {len(sample.token_ids) for sample in ours.sample(ending, requests)} == {1}
    whole, prefill = (machine.best(lambda w=w: ours.sample(w, requests) and (), turns=2) for w in (weights, ending))
    lengths = budget.Lengths(args.prefix, args.body, args.new_tokens)
    work = least_work.sampling(model, slots, slots, lengths)
    decode, floor, steps = whole - prefill, work.decode_bytes / speed.bytes, work.decode_steps
    print(f"\n{slots} slots, {memory()}; first call {first:.1f} s")
    print(f"  decode:  {slots * steps / decode:10,.0f} tokens/s, {1e3 * decode / steps:.2f} ms per step; "
          f"floor {1e3 * floor / steps:.2f} ms ({work.decode_bytes / steps / 1e9:.2f} GB), {floor / decode:.1%} of it; "
          f"products {1e3 * work.decode_flops / steps / speed.flops:.2f} ms")  # fmt: skip
    rate = work.prefill_flops / prefill  # the shared prefix is encoded in every call
    print(f"  prefill: {(args.prefix + slots * args.body) / prefill:10,.0f} tokens/s, {rate / 1e12:,.2f} TFLOP/s, "
          f"{rate / speed.flops:.1%} of the matrix rate")  # fmt: skip


def time_sampling_pass(args: argparse.Namespace, model: decoder.Decoder, params: decoder.Params, name: str) -> float:
    """Seconds of one pass over all problems, prefix included, after compilation."""
    slots = args.loop_slots or args.slots[-1]
    ours, weights = make_sampler(args, model, params, slots)
    requests = requests_of(args, args.problems, seed=len(name))
    ours.sample(weights, requests[:1])
    started = time.perf_counter()
    samples = ours.sample(weights, requests)
    seconds = time.perf_counter() - started
    lengths = budget.Lengths(args.prefix, args.body, args.new_tokens)
    steps = least_work.sampling(model, args.problems, slots, lengths).decode_steps
    tokens = sum(len(sample.token_ids) for sample in samples)
    print(f"\n{name}: {args.problems} problems, {slots} slots: {seconds:.2f} s, {tokens / seconds:,.0f} tokens/s; "
          f"{steps} decode steps at least")  # fmt: skip
    return seconds


def time_training(
    args: argparse.Namespace, settings: config.Config, model: decoder.Decoder, mesh: Mesh, speed: Speed
) -> dict[str, float]:
    """Seconds of the loop's restart from base ("load") and of its steps ("fine_tune")."""
    settings = choose_training(settings)
    model, weights, adam = families.build(settings.model), settings.train.param_dtype, settings.optimizer
    params = random_params(model, mesh, weights)
    base = placement.to_host(params)
    jax.tree.map(lambda leaf: leaf.delete(), params)
    batch = {name: sharding.put_rows(mesh, array) for name, array in rows_of(args, model).items()}

    def step(state):
        return train_step(model, adam, state, batch, np.float32(1e-6))

    with sharding.use(mesh):
        started = time.perf_counter()
        jax.block_until_ready(step(initial_state(adam, placement.from_host(base))))
        first = time.perf_counter() - started
        started = time.perf_counter()
        state = jax.block_until_ready(initial_state(adam, placement.from_host(base)))
        load, started = time.perf_counter() - started, time.perf_counter()
        for _ in range(args.steps):
            state, metrics = step(state)
        jax.block_until_ready(state)
        fine_tune = time.perf_counter() - started
    step_seconds, tokens = fine_tune / args.steps, args.rows * args.row_tokens
    plain = dataclasses.replace(settings, model=dataclasses.replace(settings.model, remat="none"))
    mfu, hardware = (budget.train_flops(c, model.spec) / step_seconds / speed.flops for c in (plain, settings))
    print(f"\ntrain step: {args.rows} x {args.row_tokens} tokens, {weights} weights, {adam.moment_dtype} first moment, "
          f"remat {settings.model.remat}, loss {float(metrics['loss']):.3f}, {memory()}")  # fmt: skip
    print(f"  first {first:.1f} s, then {step_seconds:.3f} s; {tokens / step_seconds:,.0f} tokens/s; MFU {mfu:.1%}, "
          f"with recomputation {hardware:.1%}")  # fmt: skip
    return {"load": load, "fine_tune": fine_tune}


def choose_training(settings: config.Config) -> config.Config:
    """The first of TRAINING that fits the device by the count of bytes; prints what each takes."""
    limit = (jax.devices()[0].memory_stats() or {}).get("bytes_limit")
    chosen = None
    print(f"\ntraining on this device ({f'{limit / 2**30:.1f} GiB' if limit else 'its memory is unknown'}):")
    for weights, first, remat in TRAINING:
        option = dataclasses.replace(
            settings,
            model=dataclasses.replace(settings.model, remat=remat),
            train=dataclasses.replace(settings.train, param_dtype=weights),
            optimizer=dataclasses.replace(settings.optimizer, moment_dtype=first),
        )
        arguments, temporaries = budget.train_bytes(
            option, families.spec_of(option.model), dict(data=1, fsdp=1, tensor=1)
        )
        fits = not limit or arguments + temporaries < limit
        print(f"  {weights} weights, {first} first moment, remat {remat}: {arguments / 2**30:.2f} + "
              f"{temporaries / 2**30:.2f} GiB, {'fits' if fits else 'does not fit'}")  # fmt: skip
        chosen = chosen or (option if fits else None)
    return chosen or option


def rows_of(args: argparse.Namespace, model: decoder.Decoder) -> dict[str, np.ndarray]:
    """A batch of rows of one segment each, with loss on all tokens."""
    shape = (args.rows, args.row_tokens)
    ids = np.random.default_rng(1).integers(0, model.spec.vocab_size, shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    ones = np.ones(shape, np.int32)
    packed = packing.PackedRows(ids, positions, ones, ones.astype(np.float32), too_long=0, problem_ids=())
    return packed.take(np.arange(args.rows))


def transformers_line(args: argparse.Namespace) -> str:
    """The result of transformers' generate with the same lengths and random bfloat16 weights, or why there is none."""
    name = "transformers' generate"
    if args.torch_device == "none":
        return f"\n{name}: not requested"
    if not all(importlib.util.find_spec(module) for module in ("torch", "transformers")):
        return f"\n{name}: torch or transformers is absent"
    import torch
    import transformers

    if args.torch_device == "cuda" and not torch.cuda.is_available():
        return f"\n{name}: torch sees no GPU"
    cfg = sizes(args).model
    theirs = transformers.GPTJConfig(
        vocab_size=cfg.vocab_size, n_positions=cfg.max_positions, n_embd=cfg.d_model, n_layer=cfg.n_layers,
        n_head=cfg.n_heads, rotary_dim=cfg.rotary_dim,
    )  # fmt: skip
    with torch.device(args.torch_device), torch.inference_mode():
        torch.set_default_dtype(torch.bfloat16)
        model = transformers.GPTJForCausalLM(theirs).eval()
        torch.set_default_dtype(torch.float32)
        rows = min(args.slots)
        ids = torch.randint(0, cfg.vocab_size, (rows, args.prefix + args.body))
        options = dict(max_new_tokens=args.new_tokens, min_new_tokens=args.new_tokens, do_sample=False, pad_token_id=0)
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **options).cpu()
            seconds.append(time.perf_counter() - started)
    new = rows * (out.shape[1] - ids.shape[1])
    del model
    if args.torch_device == "cuda":
        torch.cuda.empty_cache()
    return f"\n{name}: {rows} rows, the whole prompt in each: {seconds[1]:.2f} s, {new / seconds[1]:,.0f} new tokens/s"


def memory() -> str:
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return "peak memory unknown" if peak is None else f"peak memory {peak / 2**30:.1f} GiB"


if __name__ == "__main__":
    main()
