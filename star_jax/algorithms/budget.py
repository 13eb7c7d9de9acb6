"""FLOPs and bytes of a train step and of the sampling loop, counted from the sizes alone.

"On one device" is after sharding. The counts of memory are estimates, for advice and for GPUs.
"""

import dataclasses
import math

import jax
import numpy as np

from star_jax.config import Config
from star_jax.models.decoder import Decoder
from star_jax.models.spec import DecoderSpec
from star_jax.sampling import kv_cache
from star_jax.training.loss import CHUNK, use_chunked_loss
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


def parameter_count(spec: DecoderSpec) -> int:
    """Number of parameters of a model."""
    leaves = jax.tree.leaves(placement.unbox(placement.abstract_params(Decoder(spec))))
    return sum(math.prod(leaf.shape) for leaf in leaves)


def matmul_weights(spec: DecoderSpec) -> tuple[int, int]:
    """Weights that every token is multiplied with: (those of the blocks, those of the head). No embedding lookups."""
    head = spec.vocab_size * spec.d_model
    positions = 0 if spec.rope.dim else spec.max_positions * spec.d_model
    return parameter_count(spec) - (1 if spec.tied_head else 2) * head - positions, head


def attended_keys(spec: DecoderSpec, keys: float) -> float:
    """Keys that a query attends to, summed over the layers, where `keys` tokens lie before it; windows bound them."""
    local = sum(spec.local_layers)
    return (spec.n_layers - local) * keys + local * min(keys, spec.window)


def attended_pairs(spec: DecoderSpec, length: int) -> float:
    """Pairs of a query and a key that it attends to in a causal row, summed over the layers."""
    local, window = sum(spec.local_layers), min(spec.window, length)
    return (spec.n_layers - local) * length**2 / 2 + local * (window * length - window**2 / 2)


def train_flops(config: Config, spec: DecoderSpec) -> float:
    """FLOPs of one train step.

    6 per weight and token, and attention's 12 per feature and pair of tokens; with full recomputation a third more.
    """
    rows, length = config.train.batch_rows, config.train.row_tokens
    weights = sum(matmul_weights(spec))
    pairs = rows * attended_pairs(spec, length)
    useful = 6 * weights * rows * length + 12 * spec.n_heads * spec.head_dim * pairs
    return useful * (4 / 3 if config.model.remat == "full" else 1)


def decode_flops(config: Config, spec: DecoderSpec, lengths: Lengths) -> float:
    """FLOPs of one decode step of one group of slots, when half of the new tokens are in the cache."""
    weights = sum(matmul_weights(spec))
    keys = attended_keys(spec, lengths.prefix + lengths.body + lengths.new / 2)
    return config.sampling.slots * (2 * weights + 4 * spec.n_heads * spec.head_dim * keys)


def train_bytes(config: Config, spec: DecoderSpec, mesh_shape: dict[str, int]) -> tuple[float, float]:
    """(arguments, temporaries) of a train step on one device, in bytes; `mesh_shape`: devices along each mesh axis.

    Arguments: weights and both moments. Temporaries: gradients (twice with microbatches), activations kept for the
    backward pass, activations of one block, and the logits with their gradient: of all tokens, or of a chunk of them
    and with the gradient of the head, if that is less. The temporaries are an upper bound: attention/packed.py holds
    one block of scores only.
    """
    train = config.train
    count, shards = parameter_count(spec), mesh_shape["fsdp"] * mesh_shape["tensor"]
    parameter_bytes = np.dtype(train.param_dtype).itemsize + np.dtype(config.optimizer.moment_dtype).itemsize + 4
    tokens = train.batch_rows / train.microbatches / (mesh_shape["data"] * mesh_shape["fsdp"]) * train.row_tokens
    item, tensor = np.dtype(config.model.compute_dtype).itemsize, mesh_shape["tensor"]
    scores = tokens * train.row_tokens * spec.n_heads / tensor * (4 + item)
    block = tokens * _block_features(spec, tensor) * item + scores
    saved_features = {"full": 0.0, "dots": _product_features(spec, tensor), "none": block / tokens / item}
    saved = tokens * (saved_features[config.model.remat] + spec.d_model) * item
    gathered = 2 * layer_weights(spec) / tensor * item  # all-gathered weights of this layer and the next
    logits = 2 * tokens * spec.vocab_size * 4
    if use_chunked_loss(spec):
        logits = min(logits, (2 * CHUNK + spec.d_model) * spec.vocab_size * 4)
    gradients = count * 4 / shards * (2 if train.microbatches > 1 else 1)
    return count * parameter_bytes / shards, gradients + saved * spec.n_layers + 2 * block + gathered + logits / tensor


def _block_features(spec: DecoderSpec, tensor: int) -> float:
    """Values of a token in one block's activations, on one of `tensor` devices.

    Norms and the output; queries, keys, values and attention's output; the MLP's products, what it makes of them, and
    one gradient.
    """
    norms = (1 if spec.parallel else 2) * (2 if spec.norm_position == "both" else 1)
    mlp = 3 if spec.mlp == "gelu" else 5
    return (norms + 1) * spec.d_model + (_head_features(spec) + mlp * spec.d_mlp) / tensor


def _product_features(spec: DecoderSpec, tensor: int) -> float:
    """Values of a token in what remat="dots" saves of one block: the outputs of its products and of attention."""
    mlp = 1 if spec.mlp == "gelu" else 2
    return 2 * spec.d_model + (_head_features(spec) + mlp * spec.d_mlp) / tensor


def _head_features(spec: DecoderSpec) -> int:
    """Values of a token in queries, attention's output, keys and values."""
    return 2 * (spec.n_heads + spec.n_kv_heads) * spec.head_dim


def layer_weights(spec: DecoderSpec) -> int:
    """Weights of the matrices of one layer: 12 d_model^2 for GPT-J."""
    mlp = 2 if spec.mlp == "gelu" else 3
    return spec.d_model * (_head_features(spec) + mlp * spec.d_mlp)


def sampling_bytes(config: Config, spec: DecoderSpec, tensor: int, lengths: Lengths) -> tuple[float, float]:
    """(arguments, temporaries) of the sampling loop on one of `tensor` devices, in bytes.

    Arguments: weights and prefix cache. Temporaries: ring cache, one prefill, logits and scores.
    """
    options = config.sampling
    weights = parameter_count(spec) * np.dtype(options.weights_dtype).itemsize / tensor
    layer_token = 2 * spec.n_kv_heads * spec.head_dim * np.dtype(config.model.compute_dtype).itemsize / tensor
    prefix = sum(kv_cache.prefix_size(spec, n, lengths.prefix) for n in range(spec.n_layers))
    prefill_tokens = max(lengths.body, min(options.prefill_tokens, options.slots // 4 * lengths.body))
    logits = options.slots * spec.vocab_size * 4 / tensor
    scores = prefill_tokens * spec.n_heads / tensor * (lengths.prefix + 2 * max(lengths.body, 64)) * 6
    caches = layer_token * spec.n_layers * (options.slots * lengths.cached + prefill_tokens)
    return weights + layer_token * prefix, caches + logits + scores


def kv_token_bytes(spec: DecoderSpec, dtype: str) -> int:
    """Bytes of one token's keys and values in all layers."""
    return 2 * spec.n_layers * spec.n_kv_heads * spec.head_dim * np.dtype(dtype).itemsize
