"""GPT-J-6B on the accelerator at hand: one CommonsenseQA-sized sampling pass and ten train steps, random weights.

    python tests/benchmarks/gptj.py --bandwidth=4.8 --matrix_rate=989        (an H200: TB/s, bfloat16 TFLOP/s)
    python tests/benchmarks/gptj.py --layers=2 --d_model=64 --problems=32 --new_tokens=8 --rows=2 --row_tokens=128

The sampling pass: 1,024 problems behind one prefix of 785 tokens (the seven shots of CommonsenseQA), bodies of 55
tokens, 96 new tokens each. The train steps: 8 rows x 1,024 tokens, Adam, recomputed activations. Weights, moments
and activations are bfloat16. Needs neither data files nor a tokenizer: prompts of those lengths are made of bytes.

The least work of a pass: 2 FLOPs a weight and token (the head's for drawn tokens only, the embedding's never), and
4 a feature of each pair of tokens; each decode step reads every weight once, the prefix's keys and values once, and
each row's own. A train step: 6 FLOPs a weight and token, 8 with recomputation. Shares are of --bandwidth and
--matrix_rate, where these are given.

Not measured yet on an accelerator: no large GPU was at hand.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from star_jax import config, data, sampler, sharding, train
from star_jax import model as gpt
from star_jax.records import Prompt
from star_jax.tokenizer import ByteTokenizer

PREFIX, BODY = 785, 55  # tokens


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=config.GPTJ_6B["n_layers"])
    parser.add_argument("--d_model", type=int, default=config.GPTJ_6B["d_model"])
    parser.add_argument("--problems", type=int, default=1024)
    parser.add_argument("--new_tokens", type=int, default=96)
    parser.add_argument("--slots", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--row_tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--bandwidth", type=float, default=0.0, help="of the chip's memory, TB/s")
    parser.add_argument("--matrix_rate", type=float, default=0.0, help="of the chip in bfloat16, TFLOP/s")
    args = parser.parse_args()
    heads = max(1, args.d_model // 256)
    sizes = {**config.GPTJ_6B, "n_layers": args.layers, "d_model": args.d_model, "n_heads": heads}
    sizes |= {"d_mlp": 4 * args.d_model, "rotary_dim": min(64, args.d_model // heads)}
    cfg = config.ModelConfig(**sizes, compute_dtype="bfloat16", remat="full")
    model, mesh = gpt.GPT(cfg), sharding.make_mesh(config.MeshConfig(data=1))
    with sharding.use(mesh):
        params = random_params(model, mesh)
        count = sum(leaf.size for leaf in jax.tree.leaves(params))
        print(f"{jax.devices()[0].device_kind}; {cfg.n_layers} layers, d_model {cfg.d_model}, {count:,} parameters")
        sampling_pass(args, model, params, count)
        train_steps(args, model, params, mesh, count)


def random_params(model: gpt.GPT, mesh: Mesh) -> gpt.Params:
    """Normal weights of standard deviation 0.02 in bfloat16, made on the device leaf by leaf."""
    shapes = sharding.unbox(sharding.abstract_params(model))
    leaves, tree = jax.tree.flatten(shapes)
    place = NamedSharding(mesh, PartitionSpec())
    make = jax.jit(
        lambda key, shape: 0.02 * jax.random.normal(key, shape, jnp.bfloat16), static_argnums=1, out_shardings=place
    )
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return jax.tree.unflatten(tree, [make(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


def sampling_pass(args: argparse.Namespace, model: gpt.GPT, params: gpt.Params, count: int) -> None:
    cfg, rng = model.config, np.random.default_rng(0)

    def text(size: int) -> str:
        return "".join(chr(c) for c in rng.integers(97, 123, size))

    shots = text(PREFIX)
    prompts = [Prompt(shots, text(BODY)) for _ in range(args.problems)]
    words = ByteTokenizer()
    params = {**params, "head": {**params["head"], "bias": params["head"]["bias"].at[words.end_of_text].set(-1e4)}}
    ours = sampler.Sampler(
        model, params, words, max_new_tokens=args.new_tokens, slots=args.slots, queue=args.problems, length_bucket=64
    )
    rows = []
    for turn in ("compiling and running", "running"):
        started = time.perf_counter()
        fresh = ours.with_params(params)
        jax.block_until_ready(fresh._prefix(shots))
        prefix_seconds = time.perf_counter() - started
        drawn = fresh(prompts)
        rows.append((turn, prefix_seconds, time.perf_counter() - started))
    new = sum(len(draw.token_ids) for draw in drawn)
    steps = -(-args.problems // args.slots) * (args.new_tokens - 1)
    # Keys and values of a token in all layers, bytes; half of the new tokens are there in the mean.
    cell = 2 * cfg.n_layers * cfg.d_model * 2
    own = cell * (BODY + args.new_tokens / 2)
    table = cfg.vocab_size * cfg.d_model  # the embedding, of which few rows are read; the head is as large
    moved = steps * (2 * (count - table) + cell * PREFIX + min(args.slots, args.problems) * own)
    tokens = PREFIX + args.problems * (BODY + args.new_tokens)
    attended = args.problems * (BODY + args.new_tokens) * (PREFIX + (BODY + args.new_tokens) / 2)
    flops = 2 * (count - 2 * table) * tokens + 2 * table * new + 4 * cfg.n_layers * cfg.d_model * attended
    print(f"\nsampling: {args.problems} problems, {args.slots} slots, {new:,} new tokens, {memory()}")
    for turn, prefix_seconds, seconds in rows:
        print(f"{turn:22} {seconds:8.2f} s, {prefix_seconds:.2f} of it the prefix; {new / seconds:10,.0f} new tokens/s")
    shares(args, rows[-1][2], flops, moved)


def train_steps(args: argparse.Namespace, model: gpt.GPT, params: gpt.Params, mesh: Mesh, count: int) -> None:
    shape = (args.rows, args.row_tokens)
    ids = np.random.default_rng(1).integers(0, model.config.vocab_size, shape).astype(np.int32)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    packed = data.PackedRows(ids, positions, np.ones(shape, np.int32), np.ones(shape, np.float32), too_long=0)
    batch = {name: sharding.put_rows(mesh, array) for name, array in packed.take(np.arange(args.rows)).items()}
    adam = config.OptimizerConfig()
    state, seconds = train.initial_state(adam, params), []
    for _ in range(args.steps + 1):
        started = time.perf_counter()
        state, metrics = train.train_step(model, adam, state, batch, np.float32(1e-6))
        jax.block_until_ready(state)
        seconds.append(time.perf_counter() - started)
    step = float(np.median(seconds[1:]))
    tokens = args.rows * args.row_tokens
    attended = tokens * args.row_tokens / 2
    useful = (
        6 * (count - model.config.vocab_size * model.config.d_model) * tokens
        + 12 * model.config.n_layers * model.config.d_model * attended
    )
    print(f"\ntraining: {args.rows} x {args.row_tokens} tokens, loss {float(metrics['loss']):.3f}, {memory()}")
    print(f"first step {seconds[0]:.2f} s, then {step:.3f} s a step; {tokens / step:10,.0f} tokens/s")
    shares(args, step, useful, 0.0)
    if args.matrix_rate:
        share = useful * 4 / 3 / step / args.matrix_rate / 1e12
        print(f"with the recomputed forward pass: {share:.1%} of the matrix rate")


def shares(args: argparse.Namespace, seconds: float, flops: float, moved: float) -> None:
    print(f"least work: {flops / 1e12:,.2f} TFLOP ({flops / seconds / 1e12:,.2f} TFLOP/s)", end="")
    print(f", {moved / 1e9:,.1f} GB ({moved / seconds / 1e12:,.3f} TB/s)" if moved else "")
    if args.matrix_rate:
        print(f"share of the matrix rate: {flops / seconds / args.matrix_rate / 1e12:.1%}")
    if args.bandwidth and moved:
        print(f"share of the bandwidth: {moved / seconds / args.bandwidth / 1e12:.1%}")


def memory() -> str:
    stats = jax.devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    return "memory not told by this device" if peak is None else f"peak memory {peak / 2**30:.1f} GiB"


if __name__ == "__main__":
    main()
