"""star_jax's sampler next to llama.cpp on the same shape: N texts of 128 prompt tokens and 128 new ones, together.

    python tests/benchmarks/llama_cpp.py --bench=llama.cpp/build/bin/llama-batched-bench --model=pip:smollm2 \
        --gguf=f32.gguf,q8_0.gguf [--rows=1,8,32,128] [--runs=3]

llama-batched-bench comes with llama.cpp's source, also in that of the package llama-cpp-python
(`cmake -B build -DLLAMA_CURL=OFF && cmake --build build --target llama-batched-bench llama-quantize`). The GGUF files
hold the model of --model: `star_jax.convert --target_format=hf`, llama.cpp's convert_hf_to_gguf.py --outtype=f32, and
llama-quantize. No text stops early, and no prompt is shared, since that is what llama-batched-bench measures.

Tokens per second are new tokens by the time of the whole pass, prompts included. Both sides take turns, the median of
the runs counts. The floor is the time of the least work in float32 at this machine's own matrix rate, as in
sampling_pass.py; a quantized model needs fewer bytes and no fewer multiplications.
"""

import argparse
import dataclasses
import json
import statistics
import subprocess
import time
from pathlib import Path

import jax.numpy as jnp
import least_work
import machine
import numpy as np
from sampler import machine_rates

from star_jax.config import MeshConfig
from star_jax.distributed import sharding
from star_jax.records import EncodedPrompt, Prompt
from star_jax.sampling import language_model
from star_jax.sampling.sampler import Request, Sampler, SamplerSpec
from star_jax.weights import placement


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, help="the program llama-batched-bench")
    parser.add_argument("--model", required=True, help="what base.path takes; in float32")
    parser.add_argument("--gguf", required=True, help="files with the same model, separated by commas")
    parser.add_argument("--rows", default="1,8,32,128")
    parser.add_argument("--prompt", type=int, default=128, help="tokens")
    parser.add_argument("--new_tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    machine.keep_freed_memory()
    ours = Ours(args)
    rate = machine_rates()[0]
    print(f"this machine: {rate / 1e9:.0f} GFLOP/s (matrix product)")
    print(f"{args.prompt} prompt tokens and {args.new_tokens} new ones for each row; new tokens/s of a whole pass")
    files = [Path(name) for name in args.gguf.split(",")]
    names = [f"llama.cpp, {file.stem}" for file in files]
    print(
        f"{'rows':>5}{'star_jax':>10}{'of the floor':>14}" + "".join(f"{name:>28}{'star_jax /':>12}" for name in names)
    )
    for rows in map(int, args.rows.split(",")):
        seconds: dict[str, list[float]] = {name: [] for name in ("star_jax", *names)}
        for turn in range(args.runs + 1):  # the first one compiles
            seconds["star_jax"] += [ours.seconds(rows)] * (turn > 0)
            for name, file in zip(names, files, strict=True):
                seconds[name] += [llama_seconds(args, file, rows)] if turn else []
        new = rows * args.new_tokens
        speed = {name: new / statistics.median(taken) for name, taken in seconds.items()}
        lengths = [args.prompt - 1] * rows, [args.new_tokens] * rows
        floor = least_work.mixed_sampling(ours.model.spec, 1, *lengths, rows)[0] / rate
        line = f"{rows:5}{speed['star_jax']:10.0f}{floor * speed['star_jax'] / new:14.0%}"
        print(line + "".join(f"{speed[n]:28.0f}{speed['star_jax'] / speed[n]:12.2f}" for n in names), flush=True)


class Ours:
    """star_jax's sampler on random prompts, greedy."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        loaded = language_model.load(args.model)
        self.model, self.words = loaded.model, loaded.tokenizer
        self.mesh = sharding.sampling_mesh(sharding.make_mesh(MeshConfig(data=1)), 1)
        self.params = placement.to_decode_params(self.model, loaded.params, self.mesh)
        self.samplers: dict[int, Sampler] = {}

    def seconds(self, rows: int) -> float:
        """Of one pass over `rows` texts, in as many slots."""
        sampler = self.samplers.setdefault(rows, self._sampler(rows))
        ids_RT = np.random.default_rng(rows).integers(0, self.words.vocab_size, (rows, self.args.prompt))
        # The first token stands for what all texts share: the sampler encodes it once.
        prompts = [EncodedPrompt(Prompt("", ""), (0,), tuple(ids[1:])) for ids in ids_RT.tolist()]
        started = time.perf_counter()
        samples = sampler.sample(self.params, [Request(prompt, str(n)) for n, prompt in enumerate(prompts)])
        seconds = time.perf_counter() - started
        assert {len(sample.token_ids) for sample in samples} == {self.args.new_tokens}
        return seconds

    def _sampler(self, rows: int) -> Sampler:
        spec = SamplerSpec(max_new_tokens=self.args.new_tokens, slots=rows, queue=rows)
        sampler = Sampler(self.model, self.words, self.mesh, spec)
        sampler.engine = dataclasses.replace(sampler.engine, vocab_used=self.model.spec.vocab_size)
        sampler._automaton_SV = jnp.zeros((2, self.words.vocab_size + 200), jnp.int32)  # no text stops
        return sampler


def llama_seconds(args: argparse.Namespace, file: Path, rows: int) -> float:
    """Of llama.cpp's pass, prompts and new tokens, without loading the model."""
    context = rows * (args.prompt + args.new_tokens)
    command = [args.bench, "-m", str(file), "-c", str(context), "-b", "2048", "-ub", "512"]
    command += ["-npp", str(args.prompt), "-ntg", str(args.new_tokens), "-npl", str(rows)]
    command += ["-t", str(args.threads), "-tb", str(args.threads), "--output-format", "jsonl"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    values = json.loads(line)
    return float(values["t_pp"]) + float(values["t_tg"])


if __name__ == "__main__":
    main()
