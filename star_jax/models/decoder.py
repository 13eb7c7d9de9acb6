"""GPT-J (Wang & Komatsuzaki, 2021) and GPT-2 (Radford et al., 2019) in flax.linen: one family, four differences.

              block                              positions                  attention biases  output head
    gptj      x + attn(norm(x)) + mlp(norm(x))   rotary, `rotary_dim` of K  none              its own, with a bias
    gpt2      x += attn(norm(x)); then           learned, one vector each   q, k, v, out      the embedding, no bias
              x += mlp(mlp_norm(x))

Rotary positions turn interleaved pairs (2i, 2i + 1) of the first `rotary_dim` features of each head.

The letters in array names, here and everywhere in the package:
    B rows or slots   T query tokens   S key slots   P prefix tokens   M new tokens   Q queued problems
    N layers   D model   H heads   K head dim   F mlp   V vocabulary   R packed rows, or rows of a refill
    C tokens of a refill, all bodies in one row

Parameters are a plain tree; the blocks' leaves carry a leading layer axis N. Training scans over it, so that
compile time does not grow with depth; decoding (cached.py) does not.
"""

import functools
from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.config import ModelConfig
from star_jax.models.attention import dense, packed, prefill, ring

Params = Any  # nested dict of arrays; every leaf under "blocks" has a leading layer axis N


class DecodeParams(NamedTuple):
    """Parameters for decoding, one tree per layer: from a stack, a compiler may copy each layer at every step."""

    layers: tuple[Params, ...]  # one Block's parameters for each of the N layers
    rest: Params  # everything outside the blocks: embedding, final norm, head


# Normal with standard deviation 1 / sqrt(inputs): 0.0156 at GPT-J-6B's width, and tiny models learn too.
_INIT = nn.initializers.lecun_normal()
_INIT_HEADS_IN = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
_INIT_HEADS_OUT = nn.initializers.lecun_normal(in_axis=(0, 1), out_axis=2)
_ZEROS = nn.initializers.zeros_init()
_INIT_EMBED = nn.initializers.normal(stddev=0.02)


class KV(NamedTuple):
    """KV and values of one layer: [B, H, S, K] for rows, [H, P, K] for a prefix that all rows share."""

    k: jax.Array
    v: jax.Array


class PackedMask(NamedTuple):
    """In a mask's place, without cache and prefix: a token sees those of its own segment up to itself."""

    ids_BT: jax.Array


class PrefillMask(NamedTuple):
    """In a mask's place, without cache, for one row: a token sees those of its own text up to itself.

    `longest`: no text has more tokens; it is static.
    """

    texts_T: jax.Array
    longest: int


class RingMask(NamedTuple):
    """In a mask's place, with a cache that is a ring: a row sees its newest token and the `filled_B` before it."""

    filled_B: jax.Array


class Attention(nn.Module):
    """Causal self-attention with rotary positions."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, positions_BT, mask_BTS, cached=None, slot=None, prefix=None, prefix_length=None):
        """Attends over own tokens, or over `cached` after writing the own tokens at `slot`; and over `prefix`.

        Args:
          x_BTD: inputs. positions_BT: absolute positions, int32.
          mask_BTS: True where query t may see key s; S = T without a cache. Or PackedMask, PrefillMask, RingMask.
          cached: with RingMask and T = 1, the ring before: G x KV [B / G, H, S, K], the rows in G groups; or None.
          slot: where the own token goes.
          prefix: KV [H, P, K] or None; its first `prefix_length` keys are seen by every query.

        Returns:
          (output [B, T, D], the updated cache, or KV: the own ones [B, H, T, K]).
        """
        cfg = self.config

        x_BTD = x_BTD.astype(cfg.compute_dtype)

        def project(name):
            kernel_DHK = _weight(
                self, name, _INIT_HEADS_IN, (cfg.d_model, cfg.n_heads, cfg.head_dim), ("embed", "heads", "kv")
            )
            # As the product leaves it, then turned: asked for heads first, XLA would turn the weights, at every step.
            projected_ND = _flat(x_BTD) @ kernel_DHK.reshape(cfg.d_model, -1)
            projected_BHTK = projected_ND.reshape(*x_BTD.shape[:2], cfg.n_heads, cfg.head_dim).swapaxes(1, 2)
            if cfg.is_gpt2:
                bias_HK = _weight(self, f"{name}_bias", _ZEROS, (cfg.n_heads, cfg.head_dim), ("heads", "kv"))
                projected_BHTK += bias_HK[None, :, None]
            return _constrain(projected_BHTK, ("batch", "heads", "length", "kv"))

        q_BHTK, k_BHTK = project("query"), project("key")
        if not cfg.is_gpt2:
            q_BHTK = _rotate(q_BHTK, positions_BT, cfg.rotary_dim)
            k_BHTK = _rotate(k_BHTK, positions_BT, cfg.rotary_dim)
        keys = KV(k_BHTK, project("value"))
        if cached is not None:
            keys = ring.written(cached, keys, slot)
        if isinstance(mask_BTS, PackedMask):
            y_BHTK = packed.attend(q_BHTK, keys.k, keys.v, mask_BTS.ids_BT)
        elif isinstance(mask_BTS, PrefillMask):
            y_BHTK = prefill.packed(q_BHTK, *keys, *mask_BTS, prefix, prefix_length)
        elif isinstance(mask_BTS, RingMask):
            y_BHTK = ring.over_ring(q_BHTK, keys, slot, mask_BTS.filled_B, prefix, prefix_length)
        else:
            y_BHTK = dense.masked(q_BHTK, *keys, mask_BTS, prefix, prefix_length)
        out_HKD = _weight(
            self, "out", _INIT_HEADS_OUT, (cfg.n_heads, cfg.head_dim, cfg.d_model), ("heads", "kv", "embed")
        )
        y_ND = y_BHTK.swapaxes(1, 2).reshape(-1, cfg.n_heads * cfg.head_dim) @ out_HKD.reshape(-1, cfg.d_model)
        y_BTD = y_ND.reshape(x_BTD.shape)
        if cfg.is_gpt2:
            y_BTD += _weight(self, "out_bias", _ZEROS, (cfg.d_model,), ("embed",))[None, None]
        return y_BTD, keys


class Linear(nn.Module):
    """x @ kernel + bias, for logical axes (of the inputs, of the outputs)."""

    config: ModelConfig
    features: int
    axes: tuple[str, str]

    @nn.compact
    def __call__(self, x, plus=None):
        """The same with `plus` [..., features] added before the bias, where it is given."""
        kernel = _weight(self, "kernel", _INIT, (x.shape[-1], self.features), self.axes)
        bias = _weight(self, "bias", _ZEROS, (self.features,), self.axes[1:])
        y = (_flat(x.astype(kernel.dtype)) @ kernel).reshape(*x.shape[:-1], -1)
        return (y if plus is None else plus + y) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


class Mlp(nn.Module):
    """Two layers with biases and the tanh form of gelu; `plus` [B, T, D] is added to the result."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, plus=None):
        cfg = self.config
        wide_BTF = Linear(cfg, cfg.d_mlp, ("embed", "mlp"), name="in")(x_BTD)
        wide_BTF = _constrain(wide_BTF, ("batch", "length", "mlp"))
        return Linear(cfg, cfg.d_model, ("mlp", "embed"), name="out")(nn.gelu(wide_BTF, approximate=True), plus)


class Block(nn.Module):
    """One layer, as the table at the head says. Returns (x, KV); see Attention for the arguments."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, positions_BT, mask_BTS, cached=None, slot=None, prefix=None, prefix_length=None):
        normed_BTD = _norm(self.config, "norm")(x_BTD)
        attended_BTD, keys = Attention(self.config, name="attention")(
            normed_BTD, positions_BT, mask_BTS, cached, slot, prefix, prefix_length
        )
        if self.config.is_gpt2:
            x_BTD = x_BTD + attended_BTD
            attended_BTD = None
            normed_BTD = _norm(self.config, "mlp_norm")(x_BTD)
        # Attention and MLP are summed before bias and x: where heads and mlp are split, one all-reduce does for both.
        x_BTD = x_BTD + Mlp(self.config, name="mlp")(normed_BTD, attended_BTD)
        return _constrain(x_BTD, ("batch", "length", None)), keys


class GPT(nn.Module):
    """The whole model; `__call__` is the uncached pass, `segmented` and `normed` are training's."""

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
        policies = {
            "dots": jax.checkpoint_policies.save_from_both_policies(
                jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
                jax.checkpoint_policies.save_only_these_names(packed.KEPT),
            ),
            "full": None,
        }
        block = Block if cfg.remat == "none" else nn.remat(Block, prevent_cse=False, policy=policies[cfg.remat])
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast),
            length=cfg.n_layers,
            unroll=min(cfg.scan_unroll, cfg.n_layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(cfg)
        self.final_norm = _norm(cfg, None)
        if not cfg.is_gpt2:
            self.head = Linear(cfg, cfg.vocab_size, ("embed", "vocab"))

    def __call__(self, tokens_BT, positions_BT=None, segment_ids_BT=None):
        """Logits [B, T, V] in float32.

        Args:
          tokens_BT: int32 ids.
          positions_BT: int32; 0, 1, 2, ... where not given. PrefillMask rows restart at each segment.
          segment_ids_BT: a token sees only tokens of its own segment; one segment where not given.
        """
        batch, length = tokens_BT.shape
        if positions_BT is None:
            positions_BT = jnp.broadcast_to(jnp.arange(length), (batch, length))
        mask_BTS = jnp.broadcast_to(jnp.tril(jnp.ones((length, length), bool)), (batch, length, length))
        if segment_ids_BT is not None:
            mask_BTS &= segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
        return self.logits(self.hidden(tokens_BT, positions_BT, mask_BTS))

    def segmented(self, tokens_BT, positions_BT, segment_ids_BT):
        """The same logits, of packed rows, through the attention of training."""
        return self.logits(self.hidden(tokens_BT, positions_BT, PackedMask(segment_ids_BT)))

    def normed(self, tokens_BT, positions_BT, segment_ids_BT):
        """[B, T, D] behind the final norm, of packed rows: what the output head is applied to."""
        return self.final_norm(self.hidden(tokens_BT, positions_BT, PackedMask(segment_ids_BT)))

    def hidden(self, tokens_BT, positions_BT, mask_BTS):
        """Activations [B, T, D] behind the blocks; see Attention for the arguments."""
        x_BTD = _constrain(self.embed(tokens_BT, positions_BT), ("batch", "length", None))
        return self.blocks(x_BTD, positions_BT, mask_BTS)[0]

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
        logits = head(self.final_norm(x_BTD)).astype(jnp.float32)
        return _constrain(logits, ("batch", *("length",) * (logits.ndim - 2), "vocab"))


def apply(
    model: GPT,
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
) -> jax.Array:
    """One full forward pass: logits [B, T, V] in float32 for int32 tokens [B, T]; see GPT.__call__."""
    return call(model, params, jnp.asarray(tokens_BT), positions_BT, segment_ids_BT)


def log_probability(logits_BTV: jax.Array, ids_BT: jax.Array) -> jax.Array:
    """log p [...] of the ids [...] under logits [..., V], nats.

    The logit is picked by comparing and not by indexing, which would gather a vocabulary that is split over devices.
    """
    at_id = jnp.arange(logits_BTV.shape[-1]).reshape((1,) * ids_BT.ndim + (-1,)) == ids_BT[..., None]
    return jnp.sum(jnp.where(at_id, logits_BTV, 0.0), axis=-1) - jax.nn.logsumexp(logits_BTV, axis=-1)


def head_weights(config: ModelConfig, params: Params) -> tuple[jax.Array, jax.Array | None]:
    """(kernel [D, V], bias [V] or None) of the output head, as they are stored."""
    if config.is_gpt2:
        return params["embedding"]["embedding"].T, None
    return params["head"]["kernel"], params["head"]["bias"]


def call(model: GPT, params: Params, *args: Any, method: str | None = None) -> jax.Array:
    """`model.apply` (of one of its methods) without mutable collections, so what comes back is the result alone."""
    return cast(jax.Array, model.apply({"params": params}, *args, method=method))


def init(model: GPT, key: jax.Array) -> Params:
    """Freshly drawn float32 parameters, boxed with their logical axes: see sharding.unbox."""
    return model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]


def split_layers(params: Params) -> DecodeParams:
    """Splits stacked parameters into one tree per layer. Traceable."""
    return DecodeParams(unstack(params["blocks"]), {name: tree for name, tree in params.items() if name != "blocks"})


def unstack(blocks: Params) -> tuple[Params, ...]:
    """One tree for each index of the leading layer axis."""
    n_layers = jax.tree.leaves(blocks)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, n=n: leaf[n], blocks) for n in range(n_layers))


def _rotate(x_BHTK, positions_BT, rotary_dim):
    """Rotary position embedding on interleaved pairs (2i, 2i+1) of the first `rotary_dim` features, base 10000."""
    frequency = 10000.0 ** (-jnp.arange(0, rotary_dim, 2) / rotary_dim)
    angle_BT = positions_BT[..., None].astype(jnp.float32) * frequency[None, None]
    sin, cos = jnp.sin(angle_BT)[:, None], jnp.cos(angle_BT)[:, None]
    turning = x_BHTK[..., :rotary_dim].astype(jnp.float32)
    even, odd = turning[..., 0::2], turning[..., 1::2]
    turned = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(turning.shape)
    return jnp.concatenate([turned.astype(x_BHTK.dtype), x_BHTK[..., rotary_dim:]], axis=-1)


def _weight(module, name, init, shape, axes):
    """A parameter in the compute dtype, gathered over the mesh axis that only stores it."""
    weight = module.param(name, nn.with_logical_partitioning(init, axes), shape)
    return _gather(jnp.asarray(weight, module.config.compute_dtype), axes)


def _constrain(x, axes):
    """Says to the compiler where x lies. An array outside of a program lies where it lies: nobody is there to tell."""
    return nn.with_logical_constraint(x, axes) if isinstance(x, jax.core.Tracer) else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather(weight, axes):
    """Whole along "embed", which is split for storage alone (fsdp); so the weights move and not the activations.

    Said of the gradient too it would be summed whole on every device; this way each gets the sum of its own share.
    """
    return _constrain(weight, tuple(None if axis == "embed" else axis for axis in axes))


def _gather_forward(weight, axes):
    return _gather(weight, axes), None


def _gather_backward(axes, _, gradient):
    return (_constrain(gradient, axes),)


_gather.defvjp(_gather_forward, _gather_backward)


def _flat(x):
    """[N, D] of [..., D]. The gradient of a weight is a sum over N then; over rows and tokens XLA turns both arrays."""
    return x.reshape(-1, x.shape[-1])


def _norm(cfg, name):
    return nn.LayerNorm(
        epsilon=1e-5,
        dtype=cfg.compute_dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("embed",)),
        name=name,
    )
