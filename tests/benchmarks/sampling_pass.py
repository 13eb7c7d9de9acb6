"""One CommonsenseQA pass: star_jax's sampler next to transformers and to a plain JAX loop, in one run.

    python tests/benchmarks/sampling_pass.py --data=DIR/commonsense_qa --tokenizer=DIR/gpt2 [--peers=plain,generate]
    python tests/benchmarks/sampling_pass.py --data=DIR/commonsense_qa --model=pip:smollm2 [--peers=generate,static]

W: GPT-J of 8 layers, d_model 512, vocabulary 50,400, random weights of std 0.1, float32; seven shots as the prefix,
the first 128 dev problems, 64 new tokens each, greedy, no early stop. All sides must sample the same tokens. The
slowest sample the first problems of W only (--slow_problems), since tokens per second are compared. --model takes a
real model in the place of that GPT-J; the plain loop knows GPT-J only. Where two logits nearly tie, rounding decides,
and after another token the rest of a text differs.

W with stops: 256 train problems of 20 to 96 new tokens. From the 20th on each token ends a text with a chance of 1 in
20 (a stop automaton that counts to 20 and then stops at a twentieth of the vocabulary, a different one at each
position). They go through the sampler as it is, and through the same sampler with queues as long as it has slots: no
refilling.

The floor is the time of the least work at this machine's own rates, measured in the same run: all multiplications and
bytes of a pass without idle rows and padding, with the prefix encoded once. Torch loses up to half its speed to page
faults without MALLOC_MMAP_MAX_ and MALLOC_TRIM_THRESHOLD_, so the script sets them for all sides; --plain_malloc leaves
the allocator at its defaults.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import least_work
import machine
import numpy as np
import plain_loop
from sampler import machine_rates, requests_of

from star_jax import config, tasks, tokenizers
from star_jax.distributed import sharding
from star_jax.models import decoder, families
from star_jax.sampling import language_model
from star_jax.sampling.sampler import Sampler, SamplerSpec
from star_jax.tasks import few_shot
from star_jax.weights import placement

SIZES = config.ModelConfig(8, 512, 8, 2048, 32, vocab_size=50400, max_positions=2048)
SHORTEST, LONGEST, ODDS = 20, 96, 20  # of W with stops, in tokens; 1 token in ODDS ends a text


def main() -> None:
    """Prints the two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of CommonsenseQA's files")
    parser.add_argument("--tokenizer", help="folder of GPT-2's vocab.json and merges.txt")
    parser.add_argument("--model", help="what base.path takes; its weights and tokenizer, in float32")
    parser.add_argument("--layers", type=int, default=SIZES.n_layers)
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--slow_problems", type=int, default=32)
    parser.add_argument("--stopping_problems", type=int, default=256)
    parser.add_argument("--new_tokens", type=int, default=64)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--runs", type=int, default=3, help="timed runs, of which the median counts")
    parser.add_argument(
        "--peers", default="plain,static,compiled,generate", help="the other sides, with commas between; empty: none"
    )
    parser.add_argument("--plain_malloc", action="store_true", help="default allocator settings for all sides")
    args = parser.parse_args()
    if bool(args.model) == bool(args.tokenizer):
        parser.error("give either --tokenizer or --model")
    if not args.plain_malloc:
        machine.keep_freed_memory()
    work = Work(args)
    rates = machine_rates()
    print(f"this machine: {rates[0] / 1e9:.0f} GFLOP/s (matrix product), {rates[1] / 1e9:.1f} GB/s (copy)")
    whole_pass(args, work, rates)
    if args.stopping_problems:
        with_stops(args, work)


class Work:
    """The model, its weights, the tokenizer and the prompts."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.mesh = sharding.sampling_mesh(sharding.make_mesh(config.MeshConfig(data=1)), 1)
        if args.model:
            loaded = language_model.load(args.model)
            self.model, self.params, self.words = loaded.model, loaded.params, loaded.tokenizer
        else:
            self.model = families.build(dataclasses.replace(SIZES, n_layers=args.layers))
            self.params, self.words = random_params(self.model), tokenizers.load_directory(Path(args.tokenizer))
        self.spec = self.model.spec
        task = tasks.make("commonsense_qa", data_dir=args.data)
        shots = few_shot.load("commonsense_qa", 7, direct=False)
        self.dev = [shots.prompt(task, problem) for problem in task.problems("dev")[: args.problems]]
        self.train = [shots.prompt(task, problem) for problem in task.problems("train")[: args.stopping_problems]]
        encoded = [self.words.encode_parts(p.prefix, p.body) for p in self.dev]
        self.prefix, self.bodies = list(encoded[0][0]), [list(body_ids) for _, body_ids in encoded]
        self.decode_params = placement.to_decode_params(self.model, self.params, self.mesh)

    def sampler(self, **options) -> Sampler:
        """A greedy sampler over all rows of the vocabulary, like the other sides."""
        sampler = Sampler(self.model, self.words, self.mesh, SamplerSpec(**options))
        sampler.engine = dataclasses.replace(sampler.engine, vocab_used=self.spec.vocab_size)
        return sampler


def random_params(model: decoder.Decoder) -> decoder.Params:
    """Normal weights of standard deviation 0.1, so that tokens differ; norms at their initial values."""
    rng = np.random.default_rng(0)
    shapes = placement.unbox(placement.abstract_params(model))

    def leaf_values(path, leaf):
        if "norm" in placement.leaf_name(path):
            return jnp.full(leaf.shape, float(path[-1].key == "scale"))
        return jnp.asarray(0.1 * rng.standard_normal(leaf.shape, dtype=np.float32))

    return jax.tree_util.tree_map_with_path(leaf_values, shapes)


def whole_pass(args: argparse.Namespace, work: Work, rates: tuple[float, float]) -> None:
    """Times W on all sides in turn, and prints the table."""
    new, few = args.new_tokens, args.slow_problems
    ours = work.sampler(max_new_tokens=new, slots=args.slots, queue=512)
    ours._automaton_SV = jnp.zeros((2, work.words.vocab_size + 200), jnp.int32)  # no text stops
    sides: dict[str, Callable[[], np.ndarray]] = {"star_jax": lambda: sample_ours(ours, work)}
    for name in filter(None, args.peers.split(",")):
        sides |= peer(name, work, new, few)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens = {}
    for turn in range(args.runs + 1):  # the first one compiles
        for name, sample in sides.items():
            started = time.perf_counter()
            tokens[name] = sample()
            seconds[name] += [time.perf_counter() - started] * (turn > 0)
    bodies = [len(body) for body in work.bodies]
    flops, moved = least_work.mixed_sampling(work.spec, len(work.prefix), bodies, [new] * len(bodies), args.slots)
    floor = flops / rates[0]
    print(f"{args.problems} problems after {len(work.prefix)} tokens, {new} new ones each; bodies of "
          f"{min(map(len, work.bodies))} to {max(map(len, work.bodies))}")  # fmt: skip
    print(
        f"least work: {flops / 1e9:,.0f} GFLOP, {moved / 1e9:,.0f} GB: {floor:.1f} s and {moved / rates[1]:.1f} s here"
    )
    print(f"{'side':30}{'tokens/s':>9}{'star_jax /':>11}{'of the floor':>13}{'equal tokens':>13}")
    speed = {name: tokens[name].size / statistics.median(taken) for name, taken in seconds.items()}
    for name in sides:
        equal = np.mean(tokens[name] == tokens["star_jax"][: len(tokens[name])])
        share = floor * speed[name] / (args.problems * new)
        print(f"{name:30}{speed[name]:9.0f}{speed['star_jax'] / speed[name]:11.2f}{share:13.0%}{equal:13.2%}")


def peer(name: str, work: Work, new: int, few: int) -> dict[str, Callable[[], np.ndarray]]:
    """Label -> function that samples W on that side."""
    prefix, bodies = work.prefix, work.bodies
    if name == "plain":
        sample = functools.partial(plain_loop.sample, work.params, prefix, bodies, new, rotary_dim=SIZES.rotary_dim)
        return {
            f"plain JAX loop, batch {n}": functools.partial(sample, batch=n)
            for n in sorted({min(n, len(bodies)) for n in (32, 64, 128)})
        }
    import torch_peers

    model = torch_peers.load(work.spec, work.params)
    if name == "generate":
        few_bodies = bodies[:few]
        return {"transformers, generate, 8": lambda: torch_peers.generate(model, prefix, few_bodies, new, 8)}
    length = len(prefix) + max(map(len, bodies)) + new
    batch = min(64, len(bodies))
    static = torch_peers.StaticPrefix(model, batch, length, compiled=name == "compiled")
    return {f"transformers, {name}, {batch}": lambda: static.sample(prefix, bodies, new)}


def sample_ours(sampler: Sampler, work: Work) -> np.ndarray:
    """Tokens [problems, new]."""
    samples = sampler.sample(work.decode_params, requests_of(work.dev, work.words))
    return np.array([sample.token_ids for sample in samples])


def with_stops(args: argparse.Namespace, work: Work) -> None:
    """The sampler next to itself without refilling: each queue ends before the next one starts."""
    automaton_SV = stop_automaton(work.spec.vocab_size)
    sides = {}
    for name, queue in (("refilling", 512), ("a queue for each set of slots", args.slots)):
        sides[name] = work.sampler(max_new_tokens=LONGEST, slots=args.slots, queue=queue)
        sides[name]._automaton_SV = automaton_SV
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    samples = {}
    for turn in range(args.runs + 1):
        for name, sampler in sides.items():
            started = time.perf_counter()
            samples[name] = sampler.sample(work.decode_params, requests_of(work.train, work.words))
            seconds[name] += [time.perf_counter() - started] * (turn > 0)
    first, second = ([sample.token_ids for sample in side] for side in samples.values())
    assert first == second, "refilling changed tokens"
    lengths = [len(ids) for ids in first]
    print(
        f"{len(lengths)} problems that stop after {min(lengths)} to {max(lengths)} tokens (mean {np.mean(lengths):.0f})"
    )
    medians = [statistics.median(taken) for taken in seconds.values()]
    for name, median in zip(sides, medians, strict=True):
        print(f"{name:30}{sum(lengths) / median:9.0f}{medians[1] / median:11.2f}")


def stop_automaton(vocab_size: int) -> jax.Array:
    """The stop automaton [states, V] of W with stops. Its state is the number of tokens; the last state: stop."""
    count_S1 = np.arange(LONGEST, dtype=np.uint64)[:, None]
    ids_V = np.arange(vocab_size, dtype=np.uint64)
    mixed_SV = (ids_V[None] * np.uint64(2654435761) + count_S1 * np.uint64(40503)) >> np.uint64(7)
    stops_SV = (count_S1 + 1 == LONGEST) | ((count_S1 + 1 >= SHORTEST) & (mixed_SV % np.uint64(ODDS) == 0))
    table_SV = np.where(stops_SV, LONGEST, count_S1 + 1)
    return jnp.asarray(np.concatenate([table_SV, np.full((1, vocab_size), LONGEST)]), jnp.int32)


if __name__ == "__main__":
    main()
