"""Least FLOPs and bytes of a train step and of a sampling pass: the benchmarks' floors. No padding, no idle row."""

import dataclasses

import numpy as np

from star_jax.algorithms.budget import Lengths, attended_keys, kv_token_bytes, layer_weights, matmul_weights
from star_jax.models.decoder import Decoder
from star_jax.models.spec import DecoderSpec


def train_flops(spec: DecoderSpec, rows: dict[str, np.ndarray]) -> float:
    """Least FLOPs of a train step on packed rows.

    6 per weight of the blocks and token, 6 per weight of the head and token with loss, 12 per feature of a head and
    pair of tokens of which one attends to the other, in each layer.
    """
    real_RT = rows["segment_ids_RT"] > 0
    pairs = sum(attended_keys(spec, position + 1) for position in rows["positions_RT"][real_RT].tolist())
    blocks, head = matmul_weights(spec)
    with_loss = int(np.sum(rows["weights_RT"] > 0))
    return 6.0 * (blocks * int(real_RT.sum()) + head * with_loss) + 12 * spec.n_heads * spec.head_dim * pairs


@dataclasses.dataclass(frozen=True)
class SamplingWork:
    """Least work of a sampling pass on one device."""

    prefill_flops: float
    decode_flops: float
    decode_bytes: float
    decode_steps: int


def sampling(model: Decoder, problems: int, slots: int, lengths: Lengths) -> SamplingWork:
    """Least work for `problems` rows of equal lengths after one prefix, `slots` at a time.

    2 FLOPs per weight of the blocks and token, 2 per weight of the head and new token, 4 per feature of a head and pair
    of tokens of which one attends to the other, in each layer. Local layers read as much as their window.
    """
    spec = model.spec
    blocks, head = matmul_weights(spec)
    features = spec.n_heads * spec.head_dim

    def encode_flops(rows: int, before: int, tokens: int, sampled: int) -> float:
        pairs = sum(attended_keys(spec, before + n + 0.5) for n in range(tokens))
        return rows * (2 * blocks * tokens + 2 * head * sampled + 4 * features * pairs)

    steps = -(-problems // slots) * (lengths.new - 1)
    row_keys = float(np.mean([attended_keys(spec, lengths.body + n) for n in range(lengths.new + 1)]))
    keys = attended_keys(spec, lengths.prefix) + min(slots, problems) * row_keys
    key_bytes = kv_token_bytes(spec, model.compute_dtype) / spec.n_layers
    weights = (blocks + head) * np.dtype(model.compute_dtype).itemsize
    return SamplingWork(
        prefill_flops=encode_flops(1, 0, lengths.prefix, 0) + encode_flops(problems, lengths.prefix, lengths.body, 1),
        decode_flops=encode_flops(problems, lengths.prefix + lengths.body, lengths.new - 1, lengths.new - 1),
        decode_bytes=steps * (weights + key_bytes * keys),
        decode_steps=steps,
    )


def mixed_sampling(
    spec: DecoderSpec, prefix: int, bodies: list[int], news: list[int], slots: int, shared: bool = True
) -> tuple[float, float]:
    """(FLOPs, bytes) of a float32 pass over rows of different lengths.

    The prefix is encoded and read once (`shared`), or once for each row. Biases and norms are not counted. For a model
    without windows.
    """
    weights = spec.n_layers * layer_weights(spec)

    def encode_flops(start: int, end: int) -> float:
        pairs = (start + 1 + end) * (end - start) / 2
        return 2 * weights * (end - start) + 4 * spec.n_layers * spec.n_heads * spec.head_dim * pairs

    flops = encode_flops(0, prefix) * (1 if shared else len(bodies))
    flops += sum(encode_flops(prefix, prefix + body + new - 1) for body, new in zip(bodies, news, strict=True))
    flops += 2 * spec.d_model * spec.vocab_size * sum(news)
    steps = sum(new - 1 for new in news) / slots
    row_reads = sum((new - 1) * (body + new / 2) for body, new in zip(bodies, news, strict=True))
    prefix_reads = steps if shared else steps * slots
    key_bytes = kv_token_bytes(spec, "float32")
    return flops, steps * 4 * (weights + spec.d_model * spec.vocab_size) + key_bytes * (
        row_reads + prefix * prefix_reads
    )
