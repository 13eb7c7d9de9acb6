"""FLOPs and bytes of a train step and of the sampling loop, counted from the sizes alone.

"On one device" is after sharding. The counts of memory are estimates, for advice and for GPUs.
"""

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
    """Tokens of a prompt and its completion: shared prefix, longest body (padded), new tokens."""

    prefix: int
    body: int
    new: int

    @property
    def cached(self) -> int:
        """Tokens of a row in the ring KV cache: the last new token is never written."""
        return self.body - 1 + self.new


def parameter_count(model: decoder.GPT) -> int:
    """Number of parameters of a model."""
    leaves = jax.tree.leaves(placement.unbox(placement.abstract_params(model)))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def matmul_weights(cfg: ModelConfig) -> tuple[int, int]:
    """Weights that every token is multiplied with: (those of the blocks, those of the head). No embedding lookups."""
    head = cfg.vocab_size * cfg.d_model
    return parameter_count(decoder.GPT(cfg)) - (1 if cfg.is_gpt2 else 2) * head, head


def train_flops(config: Config) -> float:
    """FLOPs of one train step.

    6 per weight and token, and attention's 12 per feature and pair of tokens; with full recomputation a third more.
    """
    cfg, rows, length = config.model, config.train.batch_rows, config.train.row_tokens
    weights = sum(matmul_weights(cfg))
    useful = 6 * weights * rows * length + 12 * cfg.n_layers * cfg.d_model * rows * length * length / 2
    return useful * (4 / 3 if cfg.remat == "full" else 1)


def decode_flops(config: Config, lengths: Lengths) -> float:
    """FLOPs of one decode step of one group of slots, when half of the new tokens are in the cache."""
    cfg = config.model
    weights = sum(matmul_weights(cfg))
    keys = lengths.prefix + lengths.body + lengths.new / 2
    return config.sampling.slots * (2 * weights + 4 * cfg.n_layers * cfg.d_model * keys)


def train_bytes(config: Config, mesh_shape: dict[str, int]) -> tuple[float, float]:
    """(arguments, temporaries) of a train step on one device, in bytes; `mesh_shape`: devices along each mesh axis.

    Arguments: weights and both moments. Temporaries: gradients (twice with microbatches), activations kept for the
    backward pass, activations of one block, and the logits with their gradient. The temporaries are an upper bound:
    training/loss.py holds the logits of one chunk only, and attention/packed.py one block of scores.
    """
    cfg, train = config.model, config.train
    count, shards = parameter_count(decoder.GPT(cfg)), mesh_shape["fsdp"] * mesh_shape["tensor"]
    parameter_bytes = np.dtype(train.param_dtype).itemsize + np.dtype(config.optimizer.moment_dtype).itemsize + 4
    tokens = train.batch_rows / train.microbatches / (mesh_shape["data"] * mesh_shape["fsdp"]) * train.row_tokens
    item, tensor = np.dtype(cfg.compute_dtype).itemsize, mesh_shape["tensor"]
    scores = tokens * train.row_tokens * cfg.n_heads / tensor * (4 + item)
    block = tokens * (6 * cfg.d_model + 3 * cfg.d_mlp / tensor) * item + scores
    products = tokens * (6 * cfg.d_model + cfg.d_mlp) / tensor * item
    saved = {"full": 0, "dots": products, "none": block}[cfg.remat] + tokens * cfg.d_model * item
    gathered = 2 * 12 * cfg.d_model**2 / tensor * item  # all-gathered weights of this layer and the next
    logits = 2 * tokens * cfg.vocab_size / tensor * 4
    gradients = count * 4 / shards * (2 if train.microbatches > 1 else 1)
    return count * parameter_bytes / shards, gradients + saved * cfg.n_layers + 2 * block + gathered + logits


def sampling_bytes(config: Config, tensor: int, lengths: Lengths) -> tuple[float, float]:
    """(arguments, temporaries) of the sampling loop on one of `tensor` devices, in bytes.

    Arguments: weights and prefix cache. Temporaries: ring cache, one prefill, logits and scores.
    """
    cfg, options = config.model, config.sampling
    weights = parameter_count(decoder.GPT(cfg)) * np.dtype(options.weights_dtype).itemsize / tensor
    token = kv_token_bytes(cfg) / tensor
    prefill_tokens = max(lengths.body, min(options.prefill_tokens, options.slots // 4 * lengths.body))
    logits = options.slots * cfg.vocab_size * 4 / tensor
    scores = prefill_tokens * cfg.n_heads / tensor * (lengths.prefix + 2 * max(lengths.body, 64)) * 6
    caches = token * (options.slots * lengths.cached + prefill_tokens)
    return weights + token * lengths.prefix, caches + logits + scores


def kv_token_bytes(cfg: ModelConfig) -> int:
    """Bytes of one token's keys and values in all layers."""
    return 2 * cfg.n_layers * cfg.d_model * np.dtype(cfg.compute_dtype).itemsize
