"""How a token is drawn from logits."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How a token is drawn from logits. Temperature 0 is greedy and ignores the other two.

    top_k: only the k likeliest tokens (0: all). top_p: only the smallest set of likeliest tokens that holds
    this much probability (1: all), after the temperature and top_k have been applied.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def draw(self, logits_BV: jax.Array, keys_B: jax.Array) -> jax.Array:
        """Token ids [B], one key a row (Gumbel-max for a positive temperature)."""
        if self.temperature == 0:
            return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
        kept_BV = self._truncate(logits_BV / self.temperature)
        gumbel_BV = jax.vmap(lambda key: jax.random.gumbel(key, kept_BV.shape[1:]))(keys_B)
        return jnp.argmax(kept_BV + gumbel_BV, axis=-1).astype(jnp.int32)

    def _truncate(self, logits_BV: jax.Array) -> jax.Array:
        size = logits_BV.shape[-1]
        if 0 < self.top_k < size:
            least = jax.lax.top_k(logits_BV, self.top_k)[0][:, -1:]
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        if self.top_p < 1:
            order_BV = jnp.argsort(-logits_BV, axis=-1)
            sorted_BV = jax.nn.softmax(jnp.take_along_axis(logits_BV, order_BV, axis=-1), axis=-1)
            # A token stays while the mass before it is short of top_p, so the likeliest always stays.
            stays_BV = jnp.cumsum(sorted_BV, axis=-1) - sorted_BV < self.top_p
            back_BV = jnp.argsort(order_BV, axis=-1)
            logits_BV = jnp.where(jnp.take_along_axis(stays_BV, back_BV, axis=-1), logits_BV, -jnp.inf)
        return logits_BV
