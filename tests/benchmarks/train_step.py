"""Our train step next to transformers with torch's AdamW: the same weights and tokens, in one run.

    python tests/benchmarks/train_step.py [--remat=dots] [--microbatches=1] [--model=pip:smollm2]

The model: a GPT-J of 8 layers, d_model 512, vocabulary 50,400, weights of standard deviation 0.1, float32, or the one
that --model names (the flags of sizes do not count then). A step:
8 packed rows of 512 tokens, four texts in each row, loss on the last 40 % of each text; AdamW without clipping. Each
side is a process of its own. They step in turn, so other load on the machine affects both, and one waits while the
other computes. The first step, which compiles, is not timed. Both must have the same losses at every step.

Torch uses as many threads as there are cores, its fused AdamW (Trainer's default), and keeps freed memory
(MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_=32 GiB); otherwise each step faults its pages in again. This script restarts
itself with these set. XLA allocates its temporaries in a thread whose malloc arena returns nothing above 64 MiB, so our
side has a single arena (MALLOC_ARENA_MAX=1), with which torch is slower. Peak memory is the high-water mark of resident
memory less what was resident after the imports; it includes weights, moments, loading and compiling.

The least work of a step: 6 FLOPs per weight and token (the head's weights only at tokens with loss, the embedding's
never) and 12 per feature and pair of tokens of which one attends to the other. The least bytes are Adam's: weights,
gradients and both moments read, weights and moments written. "of the least" is the share of this machine's matrix
rate, measured in the same run.

README.md and LOG.md of this folder have its figures on two machines.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import machine
import numpy as np

RATE, WEIGHT_DECAY, TEXTS = 1e-4, 0.01, 4
MIB = 2**20
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}


def main() -> None:
    """Prints the table; with --side, serves that side's steps."""
    args = parse_flags(sys.argv[1:])
    machine.keep_freed_memory()
    if args.side:
        serve({"ours": ours, "transformers": transformers}[args.side](args))
        return
    from star_jax.weights import checkpoint

    with tempfile.TemporaryDirectory() as folder:
        write_weights(args, Path(folder) / "model")
        sides = {name: Side(name, Path(folder) / "model") for name in ("ours", "transformers")}
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(args.steps + 1):
            losses, taken = {}, {}
            for name, side in sides.items():
                answer = side.ask("step")
                losses[name], taken[name] = answer["loss"], answer["seconds"]
                seconds[name] += [answer["seconds"]] * (turn > 0)
            results = (f"{name} {taken[name]:.2f} s, loss {losses[name]:.6f}" for name in sides)
            print(f"step {turn}: {'; '.join(results)}", flush=True)
            tolerance = (
                1e-5 if turn == 0 else 1e-4
            )  # Adam's first steps are the gradients' signs, and rounding flips a few
            assert abs(losses["ours"] - losses["transformers"]) < tolerance * losses["transformers"], losses
        facts = {name: side.close() for name, side in sides.items()}
        spec = checkpoint.load_spec(Path(folder) / "model")
    table(args, spec, {name: statistics.median(values) for name, values in seconds.items()}, facts)


def parse_flags(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="", help="what base.path takes, in the place of the random GPT-J")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--d_model", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--vocabulary", type=int, default=50400)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--row_tokens", type=int, default=512, help="a multiple of 20")
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--remat", default="dots", help="model.remat of our side")
    parser.add_argument("--microbatches", type=int, default=1, help="train.microbatches of our side")
    parser.add_argument("--side", default="", help="ours or transformers: serve that side (used by the script itself)")
    parser.add_argument("--weights", default="", help="model directory of that side")
    return parser.parse_args(argv)


class Side:
    """A process that takes a train step on request."""

    def __init__(self, name: str, weights: Path) -> None:
        command = [sys.executable, __file__, *sys.argv[1:], f"--side={name}", f"--weights={weights}"]
        self.name = name
        env = os.environ | (ONE_ARENA if name == "ours" else {})
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def ask(self, request: str) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            print(request, file=self.process.stdin, flush=True)
            answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            raise SystemExit(f"the side {self.name} ended with status {self.process.wait()}") from error
        return answer

    def close(self) -> dict[str, Any]:
        """Ends the process and returns its facts."""
        facts = self.ask("facts")
        self.process.communicate()
        return facts


def serve(side: Iterator[dict[str, Any]]) -> None:
    """Answers each line of standard input: "step" with the loss and seconds of a step, "facts" with memory figures."""
    facts = next(side)
    for line in sys.stdin:
        answer = facts
        if line.strip() == "step":
            started = time.perf_counter()
            answer = {"loss": next(side)["loss"]}
            answer["seconds"] = time.perf_counter() - started
            facts["peak"] = resident("VmHWM") - facts["imported"]
        print(json.dumps(answer), flush=True)


def ours(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields facts, then the loss of each step."""

    import jax

    from star_jax.config import MeshConfig, OptimizerConfig
    from star_jax.distributed import sharding
    from star_jax.training import fine_tune
    from star_jax.weights import checkpoint

    jax.devices()
    facts: dict[str, Any] = {"imported": resident()}
    mesh = sharding.make_mesh(MeshConfig(data=1))
    model, params = checkpoint.load_model(args.weights, mesh)
    model = model.clone(remat=args.remat)
    adam = OptimizerConfig(weight_decay=WEIGHT_DECAY, clip_norm=0.0)
    state = fine_tune.initial_state(adam, params)
    batch = {name: sharding.put_rows(mesh, array) for name, array in rows(args, model.spec.vocab_size).items()}
    rest = (np.float32(RATE), 0.0, args.microbatches)
    with sharding.use(mesh):
        memory = fine_tune.train_step.lower(model, adam, state, batch, *rest).compile().memory_analysis()
    facts["program"] = {
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "peak": memory.peak_memory_in_bytes,
    }
    yield facts
    while True:
        with sharding.use(mesh):
            state, metrics = fine_tune.train_step(model, adam, state, batch, *rest)
            yield {"loss": float(metrics["loss"])}  # waits for the whole program on a CPU


def transformers(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yields facts, then the loss of each step."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    facts = {"imported": resident()}
    model = AutoModelForCausalLM.from_pretrained(args.weights, dtype=torch.float32).train()
    adam = torch.optim.AdamW(
        model.parameters(), lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=WEIGHT_DECAY, fused=True
    )
    batch = {name: torch.from_numpy(array) for name, array in rows(args, model.config.vocab_size).items()}
    tokens, segments = batch["tokens_RT"].long(), batch["segment_ids_RT"]
    causal = torch.ones((args.row_tokens, args.row_tokens), dtype=torch.bool).tril()
    inputs = {
        "input_ids": tokens,
        "position_ids": batch["positions_RT"].long(),
        "attention_mask": (causal & (segments[:, :, None] == segments[:, None, :]))[:, None],
        "labels": torch.where(batch["weights_RT"] > 0, tokens, -100),
    }
    yield facts
    while True:
        adam.zero_grad()
        loss = model(**inputs, use_cache=False).loss
        loss.backward()
        adam.step()
        yield {"loss": loss.item()}


def resident(which: str = "VmRSS") -> int:
    """Resident bytes of this process now; VmHWM: their maximum. (getrusage's maximum includes the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:"))


def write_weights(args: argparse.Namespace, directory: Path) -> None:
    """Writes the model's weights, or random ones, as a Hugging Face directory, which both sides read."""
    import jax

    from star_jax.config import ModelConfig
    from star_jax.models import families
    from star_jax.sampling import language_model
    from star_jax.weights import placement
    from star_jax.weights.sources import hf

    if args.model:
        loaded = language_model.load(args.model)
        spec, params = loaded.model.spec, loaded.params
    else:
        size, rng = args.d_model, np.random.default_rng(0)
        rotary = size // args.heads // 2
        sizes = ModelConfig(args.layers, size, args.heads, 4 * size, rotary, args.vocabulary, 2048, "gptj")
        spec, shapes = families.spec_of(sizes), placement.unbox(placement.abstract_params(families.build(sizes)))
        params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32), shapes)
    hf.save(directory, spec, params, None, np.dtype(np.float32))


def rows(args: argparse.Namespace, vocabulary: int) -> dict[str, np.ndarray]:
    """Packed rows of TEXTS texts each, with loss on the last 40 % of each text."""
    rng, shape = np.random.default_rng(1), (args.rows, args.row_tokens)
    text_T = np.arange(args.row_tokens) * TEXTS / args.row_tokens
    segments_T, within_T = 1 + text_T.astype(np.int32), text_T % 1
    starts_T = np.searchsorted(segments_T, segments_T)
    columns = {
        "positions_RT": np.arange(args.row_tokens) - starts_T,
        "segment_ids_RT": segments_T,
        "weights_RT": (within_T >= 0.6).astype(np.float32),
    }
    tokens_RT = rng.integers(0, vocabulary, shape).astype(np.int32)
    return {"tokens_RT": tokens_RT} | {
        name: np.broadcast_to(column.astype(np.float32 if "weights" in name else np.int32), shape).copy()
        for name, column in columns.items()
    }


def table(args: argparse.Namespace, spec: Any, seconds: dict[str, float], facts: dict[str, dict[str, Any]]) -> None:
    import least_work

    from star_jax.algorithms import budget

    packed = rows(args, spec.vocab_size)
    tokens, with_loss = packed["tokens_RT"].size, int(packed["weights_RT"].sum())
    count, rate = budget.parameter_count(spec), machine.matrix_rate(2048)
    flops = least_work.train_flops(spec, packed)
    print(f"{count:,} parameters, {args.rows} rows of {args.row_tokens} tokens, {with_loss:,} of {tokens:,} with loss")
    print(f"least work of a step: {flops / 1e9:,.0f} GFLOP, Adam {7 * 4 * count / 1e9:.1f} GB; this machine: "
          f"{rate / 1e9:.0f} GFLOP/s (matrix product): {flops / rate:.2f} s")  # fmt: skip
    program = facts["ours"]["program"]
    print("our program, MiB: " + ", ".join(f"{name} {size / MIB:,.0f}" for name, size in program.items()))
    print(f"{'side':14}{'s per step':>10}{'tokens/s':>10}{'of the least':>14}{'peak, MiB':>11}")
    for name, taken in seconds.items():
        print(f"{name:14}{taken:10.2f}{tokens / taken:10,.0f}{flops / rate / taken:14.0%}"
              f"{facts[name]['peak'] / MIB:11,.0f}")  # fmt: skip
    memory = facts["ours"]["peak"] / facts["transformers"]["peak"]
    faster = seconds["transformers"] / seconds["ours"]
    print(f"ours / transformers: {faster:.2f} x the tokens/s, {memory:.2f} x the memory")


if __name__ == "__main__":
    main()
