"""What a train step and a sampling pass must take: FLOPs and bytes, counted from the sizes alone."""

import dataclasses
import math

import jax
import numpy as np

from star_jax.config import Config, ModelConfig
from star_jax.models import decoder
from star_jax.weights import placement

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Lengths:
    """Tokens of a sampling pass: of the shared prefix, of a problem's body (padded), and new ones."""

    prefix: int
    body: int
    new: int

    @property
    def slots(self) -> int:
        """Key slots of a row: the last new token needs none."""
        return self.body - 1 + self.new


def parameters(model: decoder.GPT) -> int:
    """How many parameters a model has."""
    leaves = jax.tree.leaves(placement.unbox(placement.abstract_params(model)))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def _products(cfg: ModelConfig) -> tuple[int, int]:
    """Weights that a token is multiplied with: (of the blocks, of the head). The embedding's are looked up."""
    head = cfg.vocab_size * cfg.d_model
    return parameters(decoder.GPT(cfg)) - (1 if cfg.is_gpt2 else 2) * head, head


def train_flops(config: Config) -> float:
    """FLOPs of one train step: 6 a weight and token (the embedding's are looked up), 12 a pair of tokens and feature
    of attention, a third more where whole blocks are recomputed."""
    cfg, rows, length = config.model, config.train.batch_rows, config.train.row_tokens
    weights = sum(_products(cfg))
    useful = 6 * weights * rows * length + 12 * cfg.n_layers * cfg.d_model * rows * length * length / 2
    return useful * (4 / 3 if cfg.remat == "full" else 1)


def least_train_flops(cfg: ModelConfig, rows: dict[str, np.ndarray]) -> float:
    """FLOPs that a train step on packed rows cannot do without.

    6 a weight of the blocks and token, 6 a weight of the head and token with loss, 12 a layer, feature and pair of
    tokens that see each other; none for padding.
    """
    real_RT = rows["segment_ids_RT"] > 0
    pairs = float(np.sum(rows["positions_RT"][real_RT] + 1))
    blocks, head = _products(cfg)
    with_loss = int(np.sum(rows["weights_RT"] > 0))
    return 6.0 * (blocks * int(real_RT.sum()) + head * with_loss) + 12 * cfg.n_layers * cfg.d_model * pairs


def decode_flops(config: Config, lengths: Lengths) -> float:
    """FLOPs of one decode step of all slots of a group, half of the new tokens being there."""
    cfg = config.model
    weights = sum(_products(cfg))
    seen = lengths.prefix + lengths.body + lengths.new / 2
    return config.sampling.slots * (2 * weights + 4 * cfg.n_layers * cfg.d_model * seen)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """What a sampling pass on one device cannot do without."""

    prefill_flops: float  # of prefix and bodies; the head's for one token a row
    decode_flops: float  # of the new tokens behind the first
    decode_bytes: float  # every weight and the prefix's keys once a step, each row's own keys
    decode_steps: int


def least_sampling(cfg: ModelConfig, problems: int, slots: int, lengths: Lengths) -> Sampling:
    """The work of `problems` rows of the same lengths, `slots` at a time, behind one prefix.

    2 FLOPs a weight of the blocks and token, 2 a weight of the head and new token, 4 a layer, feature and pair of
    tokens.
    """
    blocks, head = _products(cfg)

    def encode(rows: int, before: float, tokens: int, drawn: int) -> float:
        seen = before + tokens / 2
        return rows * (2 * blocks * tokens + 2 * head * drawn + 4 * cfg.n_layers * cfg.d_model * tokens * seen)

    steps = -(-problems // slots) * (lengths.new - 1)
    own = min(slots, problems) * (lengths.body + lengths.new / 2)
    weights = (blocks + head) * np.dtype(cfg.compute_dtype).itemsize
    return Sampling(
        encode(1, 0, lengths.prefix, 0) + encode(problems, lengths.prefix, lengths.body, 1),
        encode(problems, lengths.prefix + lengths.body, lengths.new - 1, lengths.new - 1),
        steps * (weights + key_bytes(cfg) * (lengths.prefix + own)),
        steps,
    )


def train_bytes(config: Config, ways: dict[str, int]) -> tuple[float, float]:
    """(arguments, temporaries) of a train step on one device; `ways`: devices along each mesh axis.

    Arguments: weights and both moments. Temporaries: gradients (twice with microbatches), what the blocks keep for
    the backward pass, one block's own, and the logits with their gradient. It is an upper bound: loss.py holds the
    logits of a chunk alone, and segments.py a row's block of scores.
    """
    cfg, train = config.model, config.train
    count, split = parameters(decoder.GPT(cfg)), ways["fsdp"] * ways["tensor"]
    width = np.dtype(train.param_dtype).itemsize + np.dtype(config.optimizer.moment_dtype).itemsize + 4
    tokens = train.batch_rows / train.microbatches / (ways["data"] * ways["fsdp"]) * train.row_tokens
    half, tensor = np.dtype(cfg.compute_dtype).itemsize, ways["tensor"]
    scores = tokens * train.row_tokens * cfg.n_heads / tensor * (4 + half)
    block = tokens * (6 * cfg.d_model + 3 * cfg.d_mlp / tensor) * half + scores
    products = tokens * (6 * cfg.d_model + cfg.d_mlp) / tensor * half
    kept = {"full": 0, "dots": products, "none": block}[cfg.remat] + tokens * cfg.d_model * half
    layer = 2 * 12 * cfg.d_model**2 / tensor * half  # gathered weights of this layer and the next
    logits = 2 * tokens * cfg.vocab_size / tensor * 4
    gradients = count * 4 / split * (2 if train.microbatches > 1 else 1)
    return count * width / split, gradients + kept * cfg.n_layers + 2 * block + layer + logits


def sampling_bytes(config: Config, tensor: int, lengths: Lengths) -> tuple[float, float]:
    """(arguments, temporaries) of the sampling loop on one device: weights and prefix; caches and one prefill."""
    cfg, options = config.model, config.sampling
    weights = parameters(decoder.GPT(cfg)) * np.dtype(options.weights_dtype).itemsize / tensor
    cell = key_bytes(cfg) / tensor
    tokens = max(lengths.body, min(options.prefill_tokens, options.slots // 4 * lengths.body))
    logits = options.slots * cfg.vocab_size * 4 / tensor
    scores = tokens * cfg.n_heads / tensor * (lengths.prefix + 2 * max(lengths.body, 64)) * 6
    caches = cell * (options.slots * lengths.slots + tokens)
    return weights + cell * lengths.prefix, caches + logits + scores


def key_bytes(cfg: ModelConfig) -> int:
    """KV and values of one token in all layers."""
    return 2 * cfg.n_layers * cfg.d_model * np.dtype(cfg.compute_dtype).itemsize
