"""Sampling of one token from logits: temperature, top-k, top-p, and greedy."""

import dataclasses

import jax
import jax.numpy as jnp

from star_jax.distributed import platforms


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a token is sampled from logits. Temperature 0 is greedy and ignores the other two.

    top_k: only the k likeliest tokens (0: all). top_p: only the smallest set of likeliest tokens with at least this
    probability (1: all), after temperature and top_k.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def sample(self, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
        """Token ids [B] from one key for each row, by the Gumbel-max trick."""
        if self.temperature == 0:
            return greedy_token_and_logprob(logits_BV)[0]
        kept_BV = self._truncate(logits_BV / self.temperature)
        gumbel_BV = jax.vmap(lambda key: jax.random.gumbel(key, kept_BV.shape[1:]))(keys_B)
        return jnp.argmax(kept_BV + gumbel_BV, axis=-1).astype(jnp.int32)

    def _truncate(self, logits_BV: jax.Array) -> jax.Array:
        if 0 < self.top_k < logits_BV.shape[-1]:
            logits_BV = _truncated(logits_BV, jnp.ones_like(logits_BV), self.top_k)
        if self.top_p < 1:
            logits_BV = _truncated(logits_BV, jax.nn.softmax(logits_BV, axis=-1), self.top_p)
        return logits_BV


def greedy_token_and_logprob(logits_BV: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(the likeliest id [B], the lowest of equals; its log p [B], nats)."""
    size = logits_BV.shape[-1]
    parts = platforms.vocabulary_parts(size)
    if parts == 1:
        top_B = jnp.max(logits_BV, axis=-1)
        log_p_B = -jnp.log(jnp.sum(jnp.exp(logits_BV - top_B[:, None]), axis=-1))
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32), log_p_B
    logits_BNV = logits_BV.reshape(-1, parts, size // parts)
    part_B = jnp.argmax(jnp.max(logits_BNV, axis=-1), axis=-1)
    found_BV = jnp.take_along_axis(logits_BNV, part_B[:, None, None], axis=1)[:, 0]
    at_B = jnp.argmax(found_BV, axis=-1)
    top_B = jnp.take_along_axis(found_BV, at_B[:, None], axis=1)[:, 0]
    total_BN = jnp.exp(logits_BNV - top_B[:, None, None]) @ jnp.ones((size // parts,))
    return (part_B * (size // parts) + at_B).astype(jnp.int32), -jnp.log(jnp.sum(total_BN, axis=-1))


def _truncated(logits_BV: jax.Array, weights_BV: jax.Array, least: float) -> jax.Array:
    """Keeps the smallest set of likeliest tokens whose weights sum to `least`, ties included; -inf elsewhere.

    Bisects the lowest logit to keep, bit by bit, in 32 sums over the vocabulary: no sort, and no gather where the
    vocabulary is sharded.
    """
    bits_BV = jax.lax.bitcast_convert_type(logits_BV.astype(jnp.float32), jnp.uint32)
    sign = jnp.uint32(1 << 31)
    order_BV = jnp.where(bits_BV >= sign, ~bits_BV, bits_BV | sign)  # ascends as the logits do

    def bit(n: jax.Array, bound_B: jax.Array) -> jax.Array:
        higher_B = bound_B | (sign >> n.astype(jnp.uint32))
        mass_B = jnp.sum(jnp.where(order_BV >= higher_B[:, None], weights_BV, 0), axis=-1)
        return jnp.where(mass_B >= least, higher_B, bound_B)

    bound_B = jax.lax.fori_loop(0, 32, bit, jnp.zeros(logits_BV.shape[:1], jnp.uint32))
    return jnp.where(order_BV >= bound_B[:, None], logits_BV, -jnp.inf)
