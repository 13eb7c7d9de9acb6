"""Sampling a token from logits: greedy, temperature, top-k and top-p."""

import dataclasses

import jax
import jax.numpy as jnp

from star_jax.distributed import platforms

# The smallest temperature and top_p that are computed with: logits / temperature stays finite in float32, and every
# likeliest token has this probability. Below them sampling is greedy already, so smaller values change nothing.
_SMALLEST = 1e-30


@dataclasses.dataclass(frozen=True)
class Decoding:
    """Sampling options. Temperature and top_k apply before top_p. Tied logits are kept or dropped together."""

    temperature: float = 0.0  # 0: greedy, which ignores the other two
    top_k: int = 0  # keep the k likeliest tokens; 0: all
    top_p: float = 1.0  # keep the smallest set of likeliest tokens with at least this probability; 1: all

    def sample(self, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
        """Token ids [B], int32, by Gumbel-max. `keys_B`: one random key per row; unused at temperature 0."""
        if self.temperature == 0:
            return greedy_token_and_logprob(logits_BV)[0]
        logits_BV = self._truncate(logits_BV / max(self.temperature, _SMALLEST))
        gumbel_BV = jax.vmap(lambda key: jax.random.gumbel(key, logits_BV.shape[1:]))(keys_B)
        return jnp.argmax(logits_BV + gumbel_BV, axis=-1).astype(jnp.int32)

    def _truncate(self, logits_BV: jax.Array) -> jax.Array:
        if 0 < self.top_k < logits_BV.shape[-1]:
            logits_BV = _keep_likeliest(logits_BV, jnp.ones_like(logits_BV), self.top_k)
        if self.top_p < 1:
            logits_BV = _keep_likeliest(logits_BV, jax.nn.softmax(logits_BV, axis=-1), max(self.top_p, _SMALLEST))
        return logits_BV


def greedy_token_and_logprob(logits_BV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(likeliest id [B], int32, the first of tied ones; its log p [B], nats).

    On CPUs the search goes by parts of the vocabulary; see platforms.vocabulary_parts.
    """
    size = logits_BV.shape[-1]
    parts = platforms.vocabulary_parts(size)
    if parts == 1:
        max_B = jnp.max(logits_BV, axis=-1)
        log_p_B = -jnp.log(jnp.sum(jnp.exp(logits_BV - max_B[:, None]), axis=-1))
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), log_p_B
    logits_BNV = logits_BV.reshape(-1, parts, size // parts)
    part_B = jnp.argmax(jnp.max(logits_BNV, axis=-1), axis=-1)
    part_logits_BV = jnp.take_along_axis(logits_BNV, part_B[:, None, None], axis=1)[:, 0]
    index_B = jnp.argmax(part_logits_BV, axis=-1)
    max_B = jnp.take_along_axis(part_logits_BV, index_B[:, None], axis=1)[:, 0]
    sum_BN = jnp.exp(logits_BNV - max_B[:, None, None]) @ jnp.ones((size // parts,))  # a product: XLA:CPU's sum is slow
    return (part_B * (size // parts) + index_B).astype(jnp.int32), -jnp.log(jnp.sum(sum_BN, axis=-1))


def _keep_likeliest(logits_BV: jax.Array, weights_BV: jax.Array, min_weight: float) -> jax.Array:
    """Logits of the smallest set of likeliest tokens whose weights sum to `min_weight` or more; -inf elsewhere.

    The smallest logit of the set is searched for bit by bit, by 32 sums over the vocabulary. This needs no sort, and no
    gather if the vocabulary is sharded over devices.
    """
    bits_BV = jax.lax.bitcast_convert_type(logits_BV.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    order_BV = jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)  # unsigned integers in the order of the logits

    def set_bit(n: jax.Array, bound_B: jax.Array) -> jax.Array:
        higher_B = bound_B | (sign >> n.astype(jnp.uint32))
        weight_B = jnp.sum(jnp.where(order_BV >= higher_B[:, None], weights_BV, 0), axis=-1)
        return jnp.where(weight_B >= min_weight, higher_B, bound_B)

    bound_B = jax.lax.fori_loop(0, 32, set_bit, jnp.zeros(logits_BV.shape[:1], jnp.uint32))
    return jnp.where(order_BV >= bound_B[:, None], logits_BV, -jnp.inf)
