"""GPT-J (Wang & Komatsuzaki, 2021) and GPT-2 (Radford et al., 2019) in flax.linen.

              block                              positions                    attention biases  output head
    gptj      x + attn(norm(x)) + mlp(norm(x))   rotary, `rotary_dim` of K    none              its own, with a bias
    gpt2      x += attn(norm(x)); then           learned, one vector each     q, k, v, out      the embedding, no bias
              x += mlp(mlp_norm(x))

The letters in array names, here and everywhere in the package:
    B rows or slots   T query tokens   S key slots   P prefix tokens   M new tokens   Q queued problems
    N layers   D model   H heads   K head dim   F mlp   V vocabulary   R packed rows, or rows of a refill
    C tokens of a refill, all bodies in one row
"""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.config import ModelConfig
from star_jax.models.attention import packed, ring
from star_jax.models.attention.dense import DenseMask
from star_jax.models.attention.masks import KV
from star_jax.models.attention.packed import PackedMask
from star_jax.models.layers import Linear, Mlp, constrain, flatten_tokens, norm, rotate, weight

_INIT_TO_HEADS = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
_INIT_FROM_HEADS = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
_ZEROS = nn.initializers.zeros_init()

# Nested dict of arrays. Leaves under "blocks" have a leading layer axis N: training scans over it, so that compile time
# does not grow with depth.
Params = Any


class DecodeParams(NamedTuple):
    """Parameters for decoding, one tree per layer: from a stack, XLA may copy each layer's weights at every step."""

    layers: tuple[Params, ...]  # of one Block each, N of them
    rest: Params  # everything outside the blocks: embedding, final norm, head


class GPT(nn.Module):
    """The decoder. `__call__` is the reference pass; training uses `packed_logits` or `packed_hidden`."""

    config: ModelConfig

    def setup(self):
        cfg = self.config
        self.embedding = _embedding(cfg, cfg.vocab_size, "vocab")
        if cfg.is_gpt2:
            self.positions = _embedding(cfg, cfg.max_positions, "length")
        self.blocks = nn.scan(
            _rematerialized_block(cfg.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=cfg.n_layers,
            unroll=min(cfg.scan_unroll, cfg.n_layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg)
        self.final_norm = norm(cfg)
        if not cfg.is_gpt2:
            self.head = Linear(cfg, cfg.vocab_size, ("embed", "vocab"))

    def __call__(self, tokens_BT, positions_BT=None, segment_ids_BT=None):
        """Logits [B, T, V], float32, by dense attention.

        Args:
          tokens_BT: int32 ids.
          positions_BT: int32; default 0, 1, 2, ... Packed rows restart them at each segment.
          segment_ids_BT: a token attends only to tokens of its own segment; default: one segment.
        """
        batch, length = tokens_BT.shape
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(length), (batch, length))
        mask_BTS = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
        if segment_ids_BT is not None:
            mask_BTS &= segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
        return self.logits(self.run_blocks(tokens_BT, positions_BT, DenseMask(mask_BTS)))

    def packed_logits(self, tokens_BT, positions_BT, segment_ids_BT):
        """Logits [B, T, V] of packed rows, float32."""
        return self.logits(self.run_blocks(tokens_BT, positions_BT, PackedMask(segment_ids_BT)))

    def packed_hidden(self, tokens_BT, positions_BT, segment_ids_BT):
        """Inputs of the output head [B, T, D] for packed rows: activations after the final norm."""
        return self.final_norm(self.run_blocks(tokens_BT, positions_BT, PackedMask(segment_ids_BT)))

    def run_blocks(self, tokens_BT, positions_BT, mask):
        """Activations [B, T, D] after the last block; see Attention for the arguments."""
        x_BTD = constrain(self.embed(tokens_BT, positions_BT), ("batch", "length", None))
        return self.blocks(x_BTD, positions_BT, mask)[0]

    def embed(self, tokens_BT, positions_BT):
        """Inputs of the first block [B, T, D]."""
        x_BTD = self.embedding(tokens_BT)
        if not self.config.is_gpt2:
            return x_BTD
        # Positions of padding and idle rows may exceed the table. Out-of-range lookups are NaN, which no mask undoes.
        return x_BTD + self.positions(jnp.minimum(positions_BT, self.config.max_positions - 1))

    def logits(self, x_BTD):
        """Logits [..., V], float32, from activations [..., D] after the last block."""
        head = self.embedding.attend if self.config.is_gpt2 else self.head
        logits = head(self.final_norm(x_BTD)).astype(jnp.float32)
        return constrain(logits, ("batch", *("length",) * (logits.ndim - 2), "vocab"))


class Block(nn.Module):
    """One layer. Returns (x [B, T, D], KV); see Attention for the arguments and the KV."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, positions_BT, mask, cache=None, prefix=None):
        cfg = self.config
        normed_BTD = norm(cfg, "norm")(x_BTD)
        attended_BTD, kv = Attention(cfg, name="attention")(normed_BTD, positions_BT, mask, cache, prefix)
        if cfg.is_gpt2:
            x_BTD = x_BTD + attended_BTD
            attended_BTD = None
            normed_BTD = norm(cfg, "mlp_norm")(x_BTD)
        # Attention and MLP are summed before bias and x: if both are sharded over "tensor", one all-reduce serves both.
        x_BTD = x_BTD + Mlp(cfg, name="mlp")(normed_BTD, attended_BTD)
        return constrain(x_BTD, ("batch", "length", None)), kv


class Attention(nn.Module):
    """Multi-head self-attention."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, positions_BT, mask, cache=None, prefix=None):
        """Attends over the row's tokens and the prefix.

        Args:
          x_BTD: inputs.
          positions_BT: absolute positions, int32.
          mask: AttentionMask; S = T without a cache.
          cache: with a RingMask, the ring cache of this layer: a tuple of KV, see RingMask.attend.
          prefix: SharedPrefix or None.

        Returns:
          (output [B, T, D], KV [B, H, T, K] of the inputs; with a cache, the updated cache instead).
        """
        cfg = self.config
        x_BTD = x_BTD.astype(cfg.compute_dtype)
        q_BHTK, k_BHTK = self._project("query", x_BTD), self._project("key", x_BTD)
        if not cfg.is_gpt2:
            q_BHTK = rotate(q_BHTK, positions_BT, cfg.rotary_dim)
            k_BHTK = rotate(k_BHTK, positions_BT, cfg.rotary_dim)
        new = KV(k_BHTK, self._project("value", x_BTD))
        kv = new if cache is None else ring.write(cache, new, mask.slot)
        y_BHTK = mask.attend(q_BHTK, kv, prefix)
        kernel_HKD = weight(
            self, "out", _INIT_FROM_HEADS, (cfg.n_heads, cfg.head_dim, cfg.d_model), ("heads", "kv", "embed")
        )
        y_ND = y_BHTK.swapaxes(1, 2).reshape(-1, cfg.n_heads * cfg.head_dim) @ kernel_HKD.reshape(-1, cfg.d_model)
        y_BTD = y_ND.reshape(x_BTD.shape)
        if cfg.is_gpt2:
            y_BTD += weight(self, "out_bias", _ZEROS, (cfg.d_model,), ("embed",))[None, None]
        return y_BTD, kv

    def _project(self, name, x_BTD):
        """[B, H, T, K]. Projects to [N, H*K], then transposes: emitting heads first makes XLA transpose the weights."""
        cfg = self.config
        kernel_DHK = weight(
            self, name, _INIT_TO_HEADS, (cfg.d_model, cfg.n_heads, cfg.head_dim), ("embed", "heads", "kv")
        )
        y_ND = flatten_tokens(x_BTD) @ kernel_DHK.reshape(cfg.d_model, -1)
        y_BHTK = y_ND.reshape(*x_BTD.shape[:2], cfg.n_heads, cfg.head_dim).swapaxes(1, 2)
        if cfg.is_gpt2:
            bias_HK = weight(self, f"{name}_bias", _ZEROS, (cfg.n_heads, cfg.head_dim), ("heads", "kv"))
            y_BHTK += bias_HK[None, :, None]
        return constrain(y_BHTK, ("batch", "heads", "length", "kv"))


def _embedding(config, rows, rows_axis):
    init = nn.with_logical_partitioning(nn.initializers.normal(stddev=0.02), (rows_axis, "embed"))
    return nn.Embed(rows, config.d_model, dtype=config.compute_dtype, embedding_init=init)


def _rematerialized_block(remat):
    """Block, with the rematerialization that ModelConfig.remat names."""
    if remat == "none":
        return Block
    policies = {
        "dots": jax.checkpoint_policies.save_from_both_policies(
            jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
            jax.checkpoint_policies.save_only_these_names(packed.SAVED),
        ),
        "full": None,
    }
    return nn.remat(Block, prevent_cse=False, policy=policies[remat])


def apply(
    model: GPT,
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
) -> jax.Array:
    """Logits [B, T, V] of the reference pass; see GPT.__call__."""
    return call(model, params, jnp.asarray(tokens_BT), positions_BT, segment_ids_BT)


def call(model: GPT, params: Params, *args: Any, method: str | None = None) -> jax.Array:
    """Runs one of the model's methods, `__call__` by default, and returns its result alone."""
    return cast(jax.Array, model.apply({"params": params}, *args, method=method))


def init(model: GPT, key: jax.Array) -> Params:
    """Random float32 parameters, boxed with their logical axes; see placement.unbox."""
    return model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]


def head_weights(config: ModelConfig, params: Params) -> tuple[jax.Array, jax.Array | None]:
    """(kernel [D, V], bias [V] or None) of the output head, in the stored dtype."""
    if config.is_gpt2:
        return params["embedding"]["embedding"].T, None
    return params["head"]["kernel"], params["head"]["bias"]


def split_layers(params: Params) -> DecodeParams:
    """Splits stacked parameters into one tree per layer. Can be traced."""
    return DecodeParams(unstack(params["blocks"]), outside_blocks(params))


def unstack(blocks: Params) -> tuple[Params, ...]:
    """One tree per layer from leaves with a leading layer axis."""
    n_layers = jax.tree.leaves(blocks)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, n=n: leaf[n], blocks) for n in range(n_layers))


def outside_blocks(params: Params) -> Params:
    """The parameters that belong to no layer."""
    return {name: tree for name, tree in params.items() if name != "blocks"}


def log_probability(logits_BTV: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """log p [...] of the ids [...] under logits [..., V], nats.

    The logit is selected by comparison: indexing would gather a vocabulary that is sharded over devices.
    """
    is_id = jnp.arange(logits_BTV.shape[-1]).reshape((1,) * ids_BT.ndim + (-1,)) == ids_BT[..., None]
    return jnp.sum(jnp.where(is_id, logits_BTV, 0.0), axis=-1) - jax.nn.logsumexp(logits_BTV, axis=-1)
