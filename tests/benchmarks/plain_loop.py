"""A plain JAX sampling loop: the shared prefix is encoded once, then each batch waits for its longest row.

GPT-J in jax.numpy over star_jax's parameter tree, a cache [B, H, S, K] for each layer, one compiled scan of greedy
steps. No slots, no refilling, no tuning: the baseline of star_jax's sampler.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np


def sample(params, prefix, bodies, new_tokens, batch, rotary_dim):
    """Greedy tokens [len(bodies), new_tokens] after the ids `prefix` and each of the `bodies`; no stops."""
    body_tokens = max(map(len, bodies))
    shared = _encode(params, jnp.asarray(prefix)[None], rotary_dim)
    tokens = []
    for start in range(0, len(bodies), batch):
        rows = bodies[start : start + batch]
        tokens_BT, lengths_B = np.zeros((batch, body_tokens), np.int32), np.ones((batch,), np.int32)
        for i, row in enumerate(rows):
            tokens_BT[i, body_tokens - len(row) :], lengths_B[i] = row, len(row)
        out = _sample_batch(params, shared, tokens_BT, lengths_B, new_tokens, rotary_dim, len(prefix))
        tokens.append(np.asarray(out)[: len(rows)])
    return np.concatenate(tokens)


@functools.partial(jax.jit, static_argnums=2)
def _encode(params, tokens_BT, rotary_dim):
    length = tokens_BT.shape[1]
    positions_BT = jnp.arange(length)[None]
    mask_BTS = jnp.tril(jnp.ones((1, length, length), bool))
    return _blocks(params, tokens_BT, positions_BT, mask_BTS, rotary_dim)[1]


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _sample_batch(params, shared, tokens_BT, lengths_B, new_tokens, rotary_dim, prefix):
    own = tokens_BT.shape[1]
    index_T = jnp.arange(own)
    real_BT = index_T[None] >= own - lengths_B[:, None]
    positions_BT = prefix + jnp.maximum(index_T[None] - (own - lengths_B)[:, None], 0)
    mask_BTS = jnp.tril(jnp.ones((own, own), bool))[None] & real_BT[:, None]
    logits_BV, keys = _blocks(params, tokens_BT, positions_BT, mask_BTS, rotary_dim, shared)
    cache = [[jnp.pad(x, ((0, 0), (0, 0), (0, new_tokens), (0, 0))) for x in of_layer] for of_layer in keys]
    slots_S = jnp.arange(own + new_tokens)

    def step(carry, taken):
        token_B, cache = carry
        mask_BTS = ((slots_S[None] >= own - lengths_B[:, None]) & (slots_S[None] <= own + taken))[:, None]
        positions_BT = (prefix + lengths_B + taken)[:, None]
        logits_BV, cache = _blocks(
            params, token_B[:, None], positions_BT, mask_BTS, rotary_dim, shared, cache, own + taken
        )
        return (jnp.argmax(logits_BV, axis=-1), cache), token_B

    first_B = jnp.argmax(logits_BV, axis=-1)
    return jax.lax.scan(step, (first_B, cache), jnp.arange(new_tokens))[1].T


def _blocks(params, tokens_BT, positions_BT, mask_BTS, rotary_dim, shared=None, cache=None, slot=0):
    """(logits [B, V] of the last token, [keys, values] of [B, H, S, K] for each layer)."""
    x_BTD, layers = params["embedding"]["embedding"][tokens_BT], []
    for n in range(params["blocks"]["norm"]["scale"].shape[0]):
        layer = jax.tree.map(lambda leaf, n=n: leaf[n], params["blocks"])
        normed = _norm(x_BTD, layer["norm"])
        q, k, v = (jnp.einsum("BTD,DHK->BHTK", normed, layer["attention"][name]) for name in ("query", "key", "value"))
        q, k = (_rotate(x, positions_BT, rotary_dim) for x in (q, k))
        if cache is not None:
            write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=2)
            k, v = (write(old, new) for old, new in zip(cache[n], (k, v), strict=True))
        layers.append([k, v])
        scores = jnp.where(mask_BTS[:, None], jnp.einsum("BHTK,BHSK->BHTS", q, k), -1e30)
        size = 0
        if shared is not None:
            size = shared[n][0].shape[2]
            scores = jnp.concatenate([jnp.einsum("BHTK,HPK->BHTP", q, shared[n][0][0]), scores], axis=-1)
        weights = jax.nn.softmax(scores / q.shape[-1] ** 0.5, axis=-1)
        y = jnp.einsum("BHTS,BHSK->BHTK", weights[..., size:], v)
        if size:
            y += jnp.einsum("BHTP,HPK->BHTK", weights[..., :size], shared[n][1][0])
        into, out = layer["mlp"]["in"], layer["mlp"]["out"]
        wide = jax.nn.gelu(normed @ into["kernel"] + into["bias"])
        x_BTD += jnp.einsum("BHTK,HKD->BTD", y, layer["attention"]["out"]) + wide @ out["kernel"] + out["bias"]
    return _norm(x_BTD[:, -1], params["final_norm"]) @ params["head"]["kernel"] + params["head"]["bias"], layers


def _norm(x, leaf):
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5) * leaf["scale"] + leaf["bias"]


def _rotate(x_BHTK, positions_BT, rotary_dim):
    angle = positions_BT[:, None, :, None] * 10000.0 ** (-jnp.arange(0, rotary_dim, 2) / rotary_dim)
    even, odd = x_BHTK[..., 0:rotary_dim:2], x_BHTK[..., 1:rotary_dim:2]
    turned = jnp.stack([even * jnp.cos(angle) - odd * jnp.sin(angle), odd * jnp.cos(angle) + even * jnp.sin(angle)], -1)
    return jnp.concatenate([turned.reshape(x_BHTK[..., :rotary_dim].shape), x_BHTK[..., rotary_dim:]], axis=-1)
