"""GPT-J (Wang & Komatsuzaki, 2021) and GPT-2 (Radford et al., 2019) in flax.linen: one family, four differences.

              block                              positions                  attention biases  output head
    gptj      x + attn(norm(x)) + mlp(norm(x))   rotary, `rotary_dim` of K  none              its own, with a bias
    gpt2      x += attn(norm(x)); then           learned, one vector each   q, k, v, out      the embedding, no bias
              x += mlp(mlp_norm(x))

Rotary positions turn interleaved pairs (2i, 2i + 1) of the first `rotary_dim` features of each head.

The letters in array names, here and everywhere in the package:
    B rows or slots   T query tokens   S key slots   P prefix tokens   M new tokens   Q queued problems
    N layers   D model   H heads   K head dim   F mlp   V vocabulary   R packed rows, or rows of a refill

Parameters are a plain tree; the blocks' leaves carry a leading layer axis N. Training scans over it
(compile time does not grow with depth); the cached passes unroll it, so that each layer's cache is an
array of its own that the decode loop updates in place.
"""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.config import ModelConfig

Params = Any  # nested dict of arrays

# Normal with standard deviation 1 / sqrt(inputs): 0.0156 at GPT-J-6B's width, and tiny models learn too.
_INIT = nn.initializers.lecun_normal()
_INIT_HEADS_IN = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
_INIT_HEADS_OUT = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
_ZEROS = nn.initializers.zeros_init()
_INIT_EMBED = nn.initializers.normal(stddev=0.02)


class Keys(NamedTuple):
    """Keys and values of one layer: [B, H, S, K] for rows, [H, P, K] for a prefix that all rows share."""

    k: jax.Array
    v: jax.Array


class Prefix(NamedTuple):
    """A shared prefix, encoded once.

    `layers`: N x Keys of [H, P, K]; P may be 0. `length`: how many of the P tokens are real, the rest is padding.
    """

    layers: tuple[Keys, ...]
    length: jax.Array


class RingCache(NamedTuple):
    """Keys and values of B rows in a ring of S slots that all rows write at the same place.

    `layers`: N x Keys of [B, H, S, K]. `time`: the next write goes to slot `time % S`, so a decode step is one
    contiguous update, whatever the rows' lengths. `filled_B`: how many of the latest slots belong to a row.
    """

    layers: tuple[Keys, ...]
    time: jax.Array
    filled_B: jax.Array


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, positions_BT, mask_BTS, cached=None, slot=None, prefix=None, prefix_length=None):
        """Attends over own tokens, or over `cached` after writing the one own token at `slot`; and over `prefix`.

        Args:
          x_BTD: inputs. positions_BT: absolute positions, int32.
          mask_BTS: True where query t may see key s; S = T without a cache.
          cached: Keys [B, H, S, K] or None. slot: where the token goes (T = 1).
          prefix: Keys [H, P, K] or None; its first `prefix_length` keys are seen by every query.

        Returns:
          (output [B, T, D], Keys: the updated cache, or the own keys [B, H, T, K]).
        """
        cfg = self.config

        x_BTD = x_BTD.astype(cfg.compute_dtype)

        def project(name):
            kernel_DHK = self._weight(
                name, _INIT_HEADS_IN, (cfg.d_model, cfg.n_heads, cfg.head_dim), ("embed", "heads", "kv")
            )
            projected_BHTK = jnp.einsum("BTD,DHK->BHTK", x_BTD, kernel_DHK)
            if not cfg.is_gpt2:
                return projected_BHTK
            bias_HK = self._weight(f"{name}_bias", _ZEROS, (cfg.n_heads, cfg.head_dim), ("heads", "kv"))
            return projected_BHTK + bias_HK[None, :, None]

        q_BHTK, k_BHTK = project("query"), project("key")
        if not cfg.is_gpt2:
            q_BHTK = _rotate(q_BHTK, positions_BT, cfg.rotary_dim)
            k_BHTK = _rotate(k_BHTK, positions_BT, cfg.rotary_dim)
        keys = Keys(k_BHTK, project("value"))
        if cached is not None:
            write = jax.lax.dynamic_update_slice_in_dim
            keys = Keys(write(cached.k, keys.k, slot, axis=2), write(cached.v, keys.v, slot, axis=2))
        y_BHTK = _attend(q_BHTK, keys, mask_BTS, prefix, prefix_length)
        out_HKD = self._weight(
            "out", _INIT_HEADS_OUT, (cfg.n_heads, cfg.head_dim, cfg.d_model), ("heads", "kv", "embed")
        )
        y_BTD = jnp.einsum("BHTK,HKD->BTD", y_BHTK, out_HKD)
        if cfg.is_gpt2:
            y_BTD += self._weight("out_bias", _ZEROS, (cfg.d_model,), ("embed",))[None, None]
        return y_BTD, keys

    def _weight(self, name, init, shape, axes):
        weight = self.param(name, nn.with_logical_partitioning(init, axes), shape)
        return jnp.asarray(weight, self.config.compute_dtype)


class Mlp(nn.Module):
    """Two layers with biases and the tanh form of gelu."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD):
        cfg = self.config
        wide = nn.Dense(
            cfg.d_mlp,
            dtype=cfg.compute_dtype,
            kernel_init=nn.with_logical_partitioning(_INIT, ("embed", "mlp")),
            bias_init=nn.with_logical_partitioning(_ZEROS, ("mlp",)),
            name="in",
        )
        narrow = nn.Dense(
            cfg.d_model,
            dtype=cfg.compute_dtype,
            kernel_init=nn.with_logical_partitioning(_INIT, ("mlp", "embed")),
            bias_init=nn.with_logical_partitioning(_ZEROS, ("embed",)),
            name="out",
        )
        return narrow(nn.gelu(wide(x_BTD), approximate=True))


class Block(nn.Module):
    """One layer, as the table at the head says. Returns (x, Keys); see Attention for the arguments."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, positions_BT, mask_BTS, cached=None, slot=None, prefix=None, prefix_length=None):
        normed_BTD = _norm(self.config, "norm")(x_BTD)
        attended_BTD, keys = Attention(self.config, name="attention")(
            normed_BTD, positions_BT, mask_BTS, cached, slot, prefix, prefix_length
        )
        x_BTD = x_BTD + attended_BTD
        if self.config.is_gpt2:
            normed_BTD = _norm(self.config, "mlp_norm")(x_BTD)
        x_BTD = x_BTD + Mlp(self.config, name="mlp")(normed_BTD)
        return nn.with_logical_constraint(x_BTD, ("batch", "length", "embed")), keys


class GPT(nn.Module):
    """The whole model; `__call__` is the uncached pass that training uses."""

    config: ModelConfig

    def setup(self):
        cfg = self.config
        self.embedding = nn.Embed(
            cfg.vocab_size,
            cfg.d_model,
            dtype=cfg.compute_dtype,
            embedding_init=nn.with_logical_partitioning(_INIT_EMBED, ("vocab", "embed")),
        )
        if cfg.is_gpt2:
            self.positions = nn.Embed(
                cfg.max_positions,
                cfg.d_model,
                dtype=cfg.compute_dtype,
                embedding_init=nn.with_logical_partitioning(_INIT_EMBED, ("length", "embed")),
            )
        block = nn.remat(Block, prevent_cse=False) if cfg.remat else Block
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=cfg.n_layers,
            unroll=min(cfg.scan_unroll, cfg.n_layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg)
        self.final_norm = _norm(cfg, None)
        if not cfg.is_gpt2:
            self.head = nn.Dense(
                cfg.vocab_size,
                dtype=cfg.compute_dtype,
                kernel_init=nn.with_logical_partitioning(_INIT, ("embed", "vocab")),
                bias_init=nn.with_logical_partitioning(_ZEROS, ("vocab",)),
            )

    def __call__(self, tokens_BT, positions_BT=None, segment_ids_BT=None):
        """Logits [B, T, V] in float32.

        Args:
          tokens_BT: int32 ids.
          positions_BT: int32; 0, 1, 2, ... where not given. Packed rows restart at each segment.
          segment_ids_BT: a token sees only tokens of its own segment; one segment where not given.
        """
        batch, length = tokens_BT.shape
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(length), (batch, length))
        mask_BTS = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
        if segment_ids_BT is not None:
            mask_BTS &= segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
        x_BTD = nn.with_logical_constraint(self.embed(tokens_BT, positions_BT), ("batch", "length", "embed"))
        x_BTD, _ = self.blocks(x_BTD, positions_BT, mask_BTS)
        return self.logits(x_BTD)

    def embed(self, tokens_BT, positions_BT):
        """[B, T, D]."""
        x_BTD = self.embedding(tokens_BT)
        if not self.config.is_gpt2:
            return x_BTD
        # Padding and idle rows may count on; a lookup out of range would be NaN, which no mask takes out again.
        return x_BTD + self.positions(jnp.minimum(positions_BT, self.config.max_positions - 1))

    def logits(self, x_BTD):
        """Output head: [..., V] in float32."""
        head = self.embedding.attend if self.config.is_gpt2 else self.head
        return head(self.final_norm(x_BTD)).astype(jnp.float32)


def apply(
    model: GPT,
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
) -> jax.Array:
    """One full forward pass: logits [B, T, V] in float32 for int32 tokens [B, T]; see GPT.__call__."""
    return _call(model, params, jnp.asarray(tokens_BT), positions_BT, segment_ids_BT)


def init(model: GPT, key: jax.Array) -> Params:
    """Freshly drawn float32 parameters, boxed with their logical axes: see sharding.unbox."""
    return model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]


def encode_prefix(model: GPT, params: Params, tokens_P: jax.Array, length: jax.Array) -> Prefix:
    """Keys and values of a prefix that all rows share; `tokens_P` is right-padded, `length` of it are real."""
    size = tokens_P.shape[0]
    if size == 0:
        cfg = model.config
        empty = jnp.zeros((cfg.n_heads, 0, cfg.head_dim), cfg.compute_dtype)
        return Prefix((Keys(empty, empty),) * cfg.n_layers, jnp.asarray(0))
    mask_BTS = jnp.tril(jnp.ones((1, size, size), bool))
    _, layers = _cached_pass(model, params, tokens_P[None], jnp.arange(size)[None], mask_BTS)
    return Prefix(tuple(Keys(keys.k[0], keys.v[0]) for keys in layers), jnp.asarray(length))


def prefill(
    model: GPT, params: Params, tokens_RT: jax.Array, lengths_R: jax.Array, prefix: Prefix
) -> tuple[jax.Array, tuple[Keys, ...]]:
    """Runs prompt bodies through the model, behind the prefix.

    Args:
      tokens_RT: bodies, LEFT-padded, so that all rows end at the same place.
      lengths_R: how many of a row's T tokens are real, at least 1.

    Returns:
      (logits [R, V] behind each row's last token, N x Keys [R, H, T, K]; keys of padding are garbage).
    """
    _, size = tokens_RT.shape
    index_T = jnp.arange(size)
    first_R = size - lengths_R
    positions_RT = prefix.length + jnp.maximum(index_T[None] - first_R[:, None], 0)
    mask_RTS = (index_T[:, None] >= index_T[None])[None] & (index_T[None, None] >= first_R[:, None, None])
    x_RTD, layers = _cached_pass(model, params, tokens_RT, positions_RT, mask_RTS, prefix=prefix)
    return _call(model, params, x_RTD[:, -1], method="logits"), layers


def decode_step(
    model: GPT, params: Params, tokens_B: jax.Array, cache: RingCache, prefix: Prefix
) -> tuple[jax.Array, RingCache]:
    """One token a row: writes it to the cache and returns (logits [B, V], the cache one step on)."""
    slots = cache.layers[0].k.shape[2]
    slot = cache.time % slots
    age_S = (slot - jnp.arange(slots)) % slots  # 0 for the slot that is written now
    mask_BTS = (age_S[None] <= cache.filled_B[:, None])[:, None, :]
    positions_BT = (prefix.length + cache.filled_B)[:, None]
    x_BTD, layers = _cached_pass(model, params, tokens_B[:, None], positions_BT, mask_BTS, cache.layers, slot, prefix)
    logits_BV = _call(model, params, x_BTD[:, 0], method="logits")
    return logits_BV, RingCache(layers, cache.time + 1, cache.filled_B + 1)


def empty_cache(config: ModelConfig, rows: int, slots: int) -> RingCache:
    """A cache of `rows` rows and `slots` slots that holds nothing."""
    shape = (rows, config.n_heads, slots, config.head_dim)
    layers = tuple(
        Keys(jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype))
        for _ in range(config.n_layers)
    )
    return RingCache(layers, jnp.asarray(0), jnp.zeros((rows,), jnp.int32))


def insert_rows(cache: RingCache, rows_R: jax.Array, new: tuple[Keys, ...], lengths_R: jax.Array) -> RingCache:
    """Puts prefilled keys [R, H, T, K] (left-padded bodies) into rows `rows_R`, so that they end at the cache's `time`.

    A row index out of range is dropped. T must not exceed the number of slots.
    """
    slots = cache.layers[0].k.shape[2]

    def place(old_BHSK, new_RHTK):
        padded_RHSK = jnp.pad(new_RHTK, ((0, 0), (0, 0), (slots - new_RHTK.shape[2], 0), (0, 0)))
        # The body's last key now sits at slot S - 1; turn the ring until that is slot (time - 1) % S.
        return old_BHSK.at[rows_R].set(jnp.roll(padded_RHSK, cache.time % slots, axis=2), mode="drop")

    layers = tuple(Keys(place(o.k, n.k), place(o.v, n.v)) for o, n in zip(cache.layers, new, strict=True))
    return RingCache(layers, cache.time, cache.filled_B.at[rows_R].set(lengths_R, mode="drop"))


def _call(model: GPT, params: Params, *args: Any, method: str | None = None) -> jax.Array:
    """`apply` without mutable collections, so what comes back is the result alone."""
    return cast(jax.Array, model.apply({"params": params}, *args, method=method))


def _cached_pass(model, params, tokens_BT, positions_BT, mask_BTS, caches=None, slot=None, prefix=None):
    """The blocks, unrolled. Returns (activations [B, T, D], N x Keys)."""
    x_BTD = _call(model, params, tokens_BT, positions_BT, method="embed")
    block, layers = Block(model.config), []
    for n in range(model.config.n_layers):
        of_layer = jax.tree.map(lambda leaf, n=n: leaf[n], params["blocks"])
        shared, shared_length = (prefix.layers[n], prefix.length) if prefix is not None else (None, None)
        x_BTD, keys = block.apply(
            {"params": of_layer}, x_BTD, positions_BT, mask_BTS, caches and caches[n], slot, shared, shared_length
        )
        layers.append(keys)
    return x_BTD, tuple(layers)


def _attend(q_BHTK, keys, mask_BTS, prefix, prefix_length):
    """softmax(q k / sqrt(K)) v over own or cached keys and the shared prefix, scores in float32."""
    scale = q_BHTK.shape[-1] ** -0.5
    low = jnp.finfo(jnp.float32).min
    scores = jnp.einsum("BHTK,BHSK->BHTS", q_BHTK, keys.k, preferred_element_type=jnp.float32) * scale
    scores = jnp.where(mask_BTS[:, None], scores, low)
    size = prefix.k.shape[1] if prefix is not None else 0
    if size:
        shared = jnp.einsum("BHTK,HPK->BHTP", q_BHTK, prefix.k, preferred_element_type=jnp.float32) * scale
        shared = jnp.where((jnp.arange(size) < prefix_length)[None, None, None], shared, low)
        scores = jnp.concatenate([shared, scores], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1).astype(q_BHTK.dtype)
    y_BHTK = jnp.einsum("BHTS,BHSK->BHTK", weights[..., size:], keys.v)
    if size:
        y_BHTK += jnp.einsum("BHTP,HPK->BHTK", weights[..., :size], prefix.v)
    return y_BHTK


def _rotate(x_BHTK, positions_BT, rotary_dim):
    """Rotary position embedding on interleaved pairs (2i, 2i+1) of the first `rotary_dim` features, base 10000."""
    frequency = 10000.0 ** (-jnp.arange(0, rotary_dim, 2) / rotary_dim)
    angle_BT = positions_BT[..., None].astype(jnp.float32) * frequency[None, None]
    sin, cos = jnp.sin(angle_BT)[:, None], jnp.cos(angle_BT)[:, None]
    turning = x_BHTK[..., :rotary_dim].astype(jnp.float32)
    even, odd = turning[..., 0::2], turning[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(turning.shape)
    return jnp.concatenate([turned.astype(x_BHTK.dtype), x_BHTK[..., rotary_dim:]], axis=-1)


def _norm(cfg, name):
    return nn.LayerNorm(
        epsilon=1e-5,
        dtype=cfg.compute_dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("embed",)),
        name=name,
    )
