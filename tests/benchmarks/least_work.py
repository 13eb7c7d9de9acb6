"""Least FLOPs and bytes of a train step and of a sampling pass: the benchmarks' floors. No padding, no idle row."""

import dataclasses

import numpy as np

from star_jax.config import ModelConfig
from star_jax.preflight.budget import Lengths, kv_token_bytes, matmul_weights


def train_flops(cfg: ModelConfig, rows: dict[str, np.ndarray]) -> float:
    """Least FLOPs of a train step on packed rows.

    6 per weight of the blocks and token, 6 per weight of the head and token with loss, 12 per layer, feature and pair
    of tokens of which one attends to the other.
    """
    real_RT = rows["segment_ids_RT"] > 0
    pairs = float(np.sum(rows["positions_RT"][real_RT] + 1))
    blocks, head = matmul_weights(cfg)
    with_loss = int(np.sum(rows["weights_RT"] > 0))
    return 6.0 * (blocks * int(real_RT.sum()) + head * with_loss) + 12 * cfg.n_layers * cfg.d_model * pairs


@dataclasses.dataclass(frozen=True)
class SamplingWork:
    """Least work of a sampling pass on one device."""

    prefill_flops: float  # prefix and bodies; the head for one token of each row
    decode_flops: float  # new tokens after the first
    decode_bytes: float  # per step all weights and the prefix's keys and values once, and those of each row
    decode_steps: int


def sampling(cfg: ModelConfig, problems: int, slots: int, lengths: Lengths) -> SamplingWork:
    """Least work for `problems` rows of equal lengths after one prefix, `slots` at a time.

    2 FLOPs per weight of the blocks and token, 2 per weight of the head and new token, 4 per layer, feature and pair of
    tokens of which one attends to the other.
    """
    blocks, head = matmul_weights(cfg)

    def encode_flops(rows: int, before: float, tokens: int, sampled: int) -> float:
        keys = before + tokens / 2
        return rows * (2 * blocks * tokens + 2 * head * sampled + 4 * cfg.n_layers * cfg.d_model * tokens * keys)

    steps = -(-problems // slots) * (lengths.new - 1)
    row_tokens = min(slots, problems) * (lengths.body + lengths.new / 2)
    weights = (blocks + head) * np.dtype(cfg.compute_dtype).itemsize
    return SamplingWork(
        prefill_flops=encode_flops(1, 0, lengths.prefix, 0) + encode_flops(problems, lengths.prefix, lengths.body, 1),
        decode_flops=encode_flops(problems, lengths.prefix + lengths.body, lengths.new - 1, lengths.new - 1),
        decode_bytes=steps * (weights + kv_token_bytes(cfg) * (lengths.prefix + row_tokens)),
        decode_steps=steps,
    )


def mixed_sampling(
    cfg: ModelConfig, prefix: int, bodies: list[int], news: list[int], slots: int, shared: bool = True
) -> tuple[float, float]:
    """(FLOPs, bytes) of a float32 pass over rows of different lengths.

    The prefix is encoded and read once (`shared`), or once for each row. Biases and norms are not counted.
    """
    weights = cfg.n_layers * (4 * cfg.d_model**2 + 2 * cfg.d_model * cfg.d_mlp)

    def encode_flops(start: int, end: int) -> float:  # tokens at positions [start, end) attend to all before them
        pairs = (start + 1 + end) * (end - start) / 2
        return 2 * weights * (end - start) + 4 * cfg.n_layers * cfg.d_model * pairs

    flops = encode_flops(0, prefix) * (1 if shared else len(bodies))
    flops += sum(encode_flops(prefix, prefix + body + new - 1) for body, new in zip(bodies, news, strict=True))
    flops += 2 * cfg.d_model * cfg.vocab_size * sum(news)
    steps = sum(new - 1 for new in news) / slots
    row_reads = sum((new - 1) * (body + new / 2) for body, new in zip(bodies, news, strict=True))
    prefix_reads = steps if shared else steps * slots
    key_bytes = 2 * cfg.n_layers * cfg.d_model * 4
    return flops, steps * 4 * (weights + cfg.d_model * cfg.vocab_size) + key_bytes * (row_reads + prefix * prefix_reads)
