"""star_jax's sampler (continuous batching, shared prefix) against the plain way, on the same work in the same run.

    python tests/benchmarks/sampler.py [--problems=512] [--slots=128] [--shots=10]

The plain way: the whole few-shot prompt in every row, a batch of rows, one compiled loop that waits for the
batch's longest row. It uses the same model code, cache and random keys, so both sides must sample identical tokens.

The work: sums of 1 to 5 digits with a model of the demo's size. Random weights do not stop by themselves, so the
head's bias for end-of-text is set to a value with which texts have the mean length of the task's reference completions
(lengths are then geometric, truncated at the task's budget).

The floor of a side is the time of its least work at the rates of this machine's matrix products and copies, measured
in the same run: all multiplications and all bytes of weights, keys and values of a pass without idle rows and without
padding, with the prefix once (ours) or once for each row (plain).

Measured on two CPU cores (AMD EPYC) that other work kept busy, so seconds are rough and ratios less so; jax 0.10.2:
ten shots, a prefix of 665 tokens: ours 1.9 s (14,100 new tokens/s), plain 20.1 s (1,350), plain / ours = 10.4;
no shots: ours 1.1 s (24,100), plain 1.5 s (18,400), plain / ours = 1.3. Useful decode steps: 69 % and 45 %.
"""

import argparse
import functools
import random
import statistics
import time

import jax
import jax.numpy as jnp
import least_work
import machine
import numpy as np

from star_jax.config import MeshConfig, ModelConfig
from star_jax.distributed import sharding
from star_jax.models import decoder, families
from star_jax.models.decoder import DecodeParams
from star_jax.records import EncodedPrompt, Prompt
from star_jax.sampling import kv_cache
from star_jax.sampling import sampler as sampling
from star_jax.sampling.sampler import Request, Sampler, SamplerSpec
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import few_shot
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.tokenizers.base import Tokenizer
from star_jax.tokenizers.simple import SymbolTokenizer
from star_jax.weights import placement

TASK, DECODING = Arithmetic(), Decoding(temperature=1.0)
TOKENIZER = SymbolTokenizer(TASK.symbols)
CONFIG = ModelConfig(3, 64, 2, 256, 16, vocab_size=20, max_positions=2048)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", type=int, default=512)
    parser.add_argument("--slots", type=int, default=128, help="rows that decode together, on both sides")
    parser.add_argument("--shots", type=int, default=10)
    args = parser.parse_args()

    problems = random.Random(0).sample(TASK.problems("train"), args.problems)
    prompts = [few_shot.load("arithmetic", args.shots, direct=False).prompt(TASK, p) for p in problems]
    mean = statistics.mean(len(TOKENIZER.encode(TASK.reference(p))) + 1 for p in problems)
    model, params = families.build(CONFIG), weights_with_mean_length(mean)
    spec = SamplerSpec(TASK.stop, TASK.max_new_tokens, DECODING, slots=args.slots, queue=args.problems)
    mesh = sharding.sampling_mesh(sharding.make_mesh(MeshConfig(data=1)), 1)
    ours, weights = Sampler(model, TOKENIZER, mesh, spec), placement.to_decode_params(model, params, mesh)
    sides = {
        "ours": lambda: sample_ours(ours, weights, prompts),
        "plain": lambda: sample_plain(ours, weights, prompts),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    tokens, steps = {}, {}
    for turn in range(4):  # the first one compiles
        for name, sample in sides.items():
            started = time.perf_counter()
            tokens[name], steps[name] = sample()
            seconds[name] += [time.perf_counter() - started] * (turn > 0)
    assert tokens["ours"] == tokens["plain"], "the two sides sampled different tokens"

    prefix = len(TOKENIZER.encode(prompts[0].prefix))
    bodies = [len(TOKENIZER.encode(p.body)) for p in prompts]
    news = [len(ids) for ids in tokens["ours"]]
    print(f"{args.problems} problems, {args.slots} slots, a prefix of {prefix} tokens, bodies of {max(bodies)} at most")
    print(f"new tokens per row: {np.mean(news):.1f} on average (references: {mean:.1f}), {max(news)} at most")
    flops_per_second, bytes_per_second = machine_rates()
    print(
        f"this machine: {flops_per_second / 1e9:.0f} GFLOP/s (matrix product), {bytes_per_second / 1e9:.1f} GB/s (copy)"
    )
    print(f"{'side':6}{'seconds':>9}{'tokens/s':>11}{'useful':>8}{'GFLOP':>8}{'GB':>7}{'floor, s':>10}{'away':>7}")
    median = {name: statistics.median(values) for name, values in seconds.items()}
    for name in sides:
        flops, moved = least_work.mixed_sampling(
            families.spec_of(CONFIG), prefix, bodies, news, args.slots, shared=name == "ours"
        )
        floor = max(flops / flops_per_second, moved / bytes_per_second)
        useful = sum(news) / (steps[name] * args.slots)
        print(f"{name:6}{median[name]:9.3f}{sum(news) / median[name]:11,.0f}{useful:8.0%}{flops / 1e9:8.1f}"
              f"{moved / 1e9:7.1f}{floor:10.3f}{median[name] / floor:6.1f}x")  # fmt: skip
    print(f"plain / ours: {median['plain'] / median['ours']:.2f}")


def requests_of(prompts: list[Prompt], tokenizer: Tokenizer) -> list[Request]:
    """One request for each prompt, with its index as the seed. The prompts' shared prefix is encoded once."""
    return [
        Request(EncodedPrompt(prompt, *tokenizer.encode_parts(prompt.prefix, prompt.body)), str(i))
        for i, prompt in enumerate(prompts)
    ]


def sample_ours(sampler: Sampler, params: DecodeParams, prompts: list[Prompt]) -> tuple[list[tuple[int, ...]], int]:
    """(token ids of each prompt, decode steps). Does what `Sampler.stream` does, and counts its steps."""
    requests, tokens, steps = requests_of(prompts, TOKENIZER), {}, 0
    for prefix_ids, indices, padded_length in sampler._chunks(requests):
        prefix = sampler._encode_prefix(params, prefix_ids)
        out = sampler._start(params, prefix, [requests[i] for i in indices], padded_length)
        tokens.update((index, sample.token_ids) for index, sample in sampler._read(indices, out))
        steps += int(out.steps_G.sum())
    return [tokens[i] for i in range(len(prompts))], steps


def sample_plain(sampler: Sampler, params: DecodeParams, prompts: list[Prompt]) -> tuple[list[tuple[int, ...]], int]:
    """The same in batches of whole prompts."""
    slots, tokens, steps = sampler.engine.slots, [], 0
    rows = [TOKENIZER.encode(p.text) for p in prompts]
    longest = max(map(len, rows))
    for start in range(0, len(rows), slots):
        batch = rows[start : start + slots]
        tokens_BT, lengths_B = np.zeros((slots, longest), np.int32), np.ones((slots,), np.int32)
        keys_B2 = np.zeros((slots, 2), np.uint32)
        for i, row in enumerate(batch):
            tokens_BT[i, longest - len(row) :], lengths_B[i] = row, len(row)
            keys_B2[i] = sampling.key_data(str(start + i))
        tokens_BM, count_B, log_p_B, taken = jax.device_get(
            plain_batch(sampler.model, sampler.engine, params, tokens_BT, lengths_B, keys_B2, len(batch),
                        sampler._automaton_SV)
        )  # fmt: skip
        assert np.isfinite(log_p_B).all()
        tokens += [tuple(tokens_BM[i, : count_B[i]].tolist()) for i in range(len(batch))]
        steps += int(taken)
    return tokens, steps


@functools.partial(jax.jit, static_argnums=(0, 1))
def plain_batch(model, shape, params, tokens_BT, lengths_B, keys_B2, count, automaton_SV):
    """(tokens [B, M], their count [B], log p [B], decode steps) for the first `count` rows of a batch."""
    rows, length = tokens_BT.shape
    no_prefix = kv_cache.encode_prefix(model, params, jnp.zeros((0,), jnp.int32), 0)
    keys_B = jax.random.wrap_key_data(keys_B2, impl="threefry2x32")

    def sample_and_record(state, logits_BV):
        step, _, stop_state_B, active_B, tokens_BM, count_B, log_p_B = state
        logits_BV = jnp.where(jnp.arange(logits_BV.shape[1]) < shape.vocab_used, logits_BV, -jnp.inf)
        token_B = DECODING.sample(logits_BV, jax.vmap(jax.random.fold_in, (0, None))(keys_B, step))
        logp_B = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), token_B[:, None], axis=1)[:, 0]
        tokens_BM = jax.lax.dynamic_update_slice(tokens_BM, token_B[:, None], (0, step))
        stop_state_B = automaton_SV[stop_state_B, token_B]
        still_B = active_B & (stop_state_B < automaton_SV.shape[0] - 1)
        log_p_B = log_p_B + jnp.where(active_B, logp_B, 0)
        return step + 1, token_B, stop_state_B, still_B, tokens_BM, count_B + active_B, log_p_B

    def decode(carry):
        cache, state = carry
        logits_BV, cache = kv_cache.decode_step(model, params, state[1], cache, no_prefix)
        return cache, sample_and_record(state, logits_BV)

    def unfinished(carry):
        return jnp.any(carry[1][3]) & (carry[1][0] < shape.max_new_tokens)

    layers = kv_cache.encode_rows(model, params, tokens_BT[:, :-1], lengths_B - 1)  # a decode step takes the last token
    room = ((0, 0), (0, 0), (0, shape.max_new_tokens), (0, 0))
    layers = jax.tree.map(lambda leaf: jnp.pad(leaf, room), layers)
    cache = kv_cache.RingCache(layers, jnp.asarray(length - 1), lengths_B - 1)
    zeros_B, active_B = jnp.zeros((rows,), jnp.int32), jnp.arange(rows) < count
    tokens_BM = jnp.zeros((rows, shape.max_new_tokens), jnp.int32)
    state = jnp.asarray(0), tokens_BT[:, -1], zeros_B, active_B, tokens_BM, zeros_B, jnp.zeros((rows,))
    _, (steps, _, _, _, tokens_BM, count_B, log_p_B) = jax.lax.while_loop(unfinished, decode, (cache, state))
    return tokens_BM, count_B, log_p_B, steps


def weights_with_mean_length(mean: float) -> decoder.Params:
    """Random weights that sample the symbols nearly uniformly, and end-of-text after `mean` tokens on average."""
    params = placement.unbox(jax.jit(functools.partial(decoder.init, families.build(CONFIG)))(jax.random.key(0)))
    budget, low, high = TASK.max_new_tokens, 1e-6, 1.0
    for _ in range(60):  # the mean of a geometric length, truncated at the budget, decreases with p
        p = (low + high) / 2
        low, high = (p, high) if (1 - (1 - p) ** budget) / p > mean else (low, p)
    end, line = TOKENIZER.end_ids[0], TOKENIZER.encode("\n")[0]
    head = params["head"]
    head["kernel"] = 0.05 * head["kernel"].at[:, end].set(0)
    head["bias"] = head["bias"].at[end].set(np.log(p / (1 - p) * (end - 1))).at[line].set(-30.0)  # no "\n\n"
    return params


def machine_rates() -> tuple[float, float]:
    """(FLOP/s of a 1024 x 1024 float32 product, bytes/s, read and written, of a copy of 128 MB), the best of seven."""
    source, target = np.ones((2, 1 << 25), np.float32)
    return machine.matrix_rate(1024), 2 * source.nbytes / machine.best(lambda: np.copyto(target, source))


if __name__ == "__main__":
    main()
