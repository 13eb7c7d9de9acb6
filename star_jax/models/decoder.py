"""The decoder in flax.linen: one class for all families (models/families/), which are values of its DecoderSpec.

The letters in array names, here and everywhere in the package:
    B rows or slots   T query tokens   S key slots   P prefix tokens   M new tokens   Q queued problems
    N layers   D model   H heads   K head dim   F mlp   V vocabulary   R packed rows, or rows of a refill
    C tokens of a refill, all bodies in one row
Where keys and values have heads of their own (grouped-query attention), H is those of the array at hand.
"""

from typing import Any, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.models.attention import packed, ring
from star_jax.models.attention.dense import DenseMask
from star_jax.models.attention.masks import KV
from star_jax.models.attention.packed import PackedMask
from star_jax.models.attention.softmax import ScoreSpec
from star_jax.models.layers import (
    Linear,
    Mlp,
    RmsNorm,
    constrain,
    flatten_tokens,
    frequencies,
    norm,
    rotate,
    softcap,
    weight,
)
from star_jax.models.spec import DecoderSpec

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


class Decoder(nn.Module):
    """The decoder. `__call__` is the reference pass; training uses `packed_logits` or `packed_hidden`.

    Attributes:
      spec: the architecture.
      compute_dtype, remat, scan_unroll: see ModelConfig. They change no parameters.
    """

    spec: DecoderSpec
    compute_dtype: str = "float32"
    remat: str = "none"
    scan_unroll: int = 1

    def setup(self):
        spec = self.spec
        self.embedding = self._embedding(spec.vocab_size, "vocab")
        if not spec.rope.dim:
            self.positions = self._embedding(spec.max_positions, "length")
        self.blocks = nn.scan(
            _rematerialized_block(self.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, 0),
            length=spec.n_layers,
            unroll=min(self.scan_unroll, spec.n_layers),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(spec, self.compute_dtype)
        self.final_norm = norm(spec, self.compute_dtype)
        if not spec.tied_head:
            self.head = Linear(spec.vocab_size, ("embed", "vocab"), self.compute_dtype, spec.head_bias)

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
        local_layers = self.spec.local_layers
        if all(local_layers) or not any(local_layers):  # all layers are of one kind, which the compiler knows
            return self.blocks(x_BTD, positions_BT, mask, None)[0]
        return self.blocks(x_BTD, positions_BT, mask, jnp.array(local_layers))[0]

    def embed(self, tokens_BT, positions_BT):
        """Inputs of the first block [B, T, D]."""
        x_BTD = self.embedding(tokens_BT)
        if self.spec.embedding_scale != 1:
            x_BTD *= jnp.asarray(self.spec.embedding_scale, x_BTD.dtype)
        if self.spec.rope.dim:
            return x_BTD
        # Positions of padding and idle rows may exceed the table. Out-of-range lookups are NaN, which no mask undoes.
        return x_BTD + self.positions(jnp.minimum(positions_BT, self.spec.max_positions - 1))

    def logits(self, x_BTD):
        """Logits [..., V], float32, from activations [..., D] after the last block."""
        head = self.embedding.attend if self.spec.tied_head else self.head
        logits = softcap(head(self.final_norm(x_BTD)).astype(jnp.float32), self.spec.logit_softcap)
        return constrain(logits, ("batch", *("length",) * (logits.ndim - 2), "vocab"))

    def _embedding(self, rows, rows_axis):
        init = nn.with_logical_partitioning(nn.initializers.normal(stddev=0.02), (rows_axis, "embed"))
        return nn.Embed(rows, self.spec.d_model, dtype=self.compute_dtype, embedding_init=init)


class Block(nn.Module):
    """One layer. Returns (x [B, T, D], KV); see Attention for the arguments and the KV."""

    spec: DecoderSpec
    dtype: str

    @nn.compact
    def __call__(self, x_BTD, positions_BT, mask, is_local=None, cache=None, prefix=None):
        spec = self.spec
        attend = Attention(spec, self.dtype, name="attention")
        mlp = Mlp(spec, self.dtype, name="mlp")
        normed_BTD = self._norm("norm", "before", x_BTD)
        attended_BTD, kv = attend(normed_BTD, positions_BT, mask, is_local, cache, prefix)
        if spec.parallel:
            # Attention and MLP are summed before bias and x: if both are sharded over "tensor", one all-reduce serves
            # both.
            x_BTD = x_BTD + mlp(normed_BTD, attended_BTD)
        else:
            x_BTD = x_BTD + self._norm("post_norm", "after", attended_BTD)
            x_BTD = x_BTD + self._norm("mlp_post_norm", "after", mlp(self._norm("mlp_norm", "before", x_BTD)))
        return constrain(x_BTD, ("batch", "length", None)), kv

    def _norm(self, name, position, x_BTD):
        """x, normed if the family has norms at this position."""
        if self.spec.norm_position not in (position, "both"):
            return x_BTD
        return norm(self.spec, self.dtype, name)(x_BTD)


class Attention(nn.Module):
    """Self-attention with grouped queries: each KV head serves n_heads / n_kv_heads query heads."""

    spec: DecoderSpec
    dtype: str

    @nn.compact
    def __call__(self, x_BTD, positions_BT, mask, is_local=None, cache=None, prefix=None):
        """Attends over the row's tokens and the prefix.

        Args:
          x_BTD: inputs.
          positions_BT: absolute positions, int32.
          mask: AttentionMask; S = T without a cache.
          is_local: whether this layer has the window: a bool, a traced one where layers of both kinds share a program,
            or None if all layers are of one kind.
          cache: with a RingMask, the ring cache of this layer: a tuple of KV, see attention/ring.py.
          prefix: SharedPrefix or None.

        Returns:
          (output [B, T, D], KV [B, H, T, K] of the inputs; with a cache, the updated cache instead).
        """
        spec = self.spec
        if is_local is None:
            is_local = spec.is_local(0)
        x_BTD = x_BTD.astype(self.dtype)
        q_BHTK = self._project("query", x_BTD, spec.n_heads)
        k_BHTK = self._project("key", x_BTD, spec.n_kv_heads)
        if spec.rope.dim:
            frequency_K = self._frequencies(is_local)
            q_BHTK = rotate(q_BHTK, positions_BT, frequency_K, spec.rope.layout)
            k_BHTK = rotate(k_BHTK, positions_BT, frequency_K, spec.rope.layout)
        new = KV(k_BHTK, self._project("value", x_BTD, spec.n_kv_heads))
        kv = new if cache is None else ring.write(cache, new, mask.slot)

        def attend(window):
            scores = ScoreSpec(spec.score_scale, spec.attention_softcap, window)
            return mask.attend(q_BHTK, kv, scores, positions_BT, prefix)

        if isinstance(is_local, jax.Array):
            y_BHTK = jax.lax.cond(is_local, lambda: attend(spec.window), lambda: attend(0))
        else:
            y_BHTK = attend(spec.window if is_local else 0)
        kernel_HKD = weight(
            self, "out", _INIT_FROM_HEADS, (spec.n_heads, spec.head_dim, spec.d_model), ("heads", "kv", "embed")
        )
        y_ND = y_BHTK.swapaxes(1, 2).reshape(-1, spec.n_heads * spec.head_dim) @ kernel_HKD.reshape(-1, spec.d_model)
        y_BTD = y_ND.reshape(x_BTD.shape)
        if spec.out_bias:
            y_BTD += weight(self, "out_bias", _ZEROS, (spec.d_model,), ("embed",))[None, None]
        return y_BTD, kv

    def _project(self, name, x_BTD, heads):
        """[B, H, T, K]. Projects to [N, H*K], then transposes: emitting heads first makes XLA transpose the weights."""
        spec = self.spec
        kernel_DHK = weight(self, name, _INIT_TO_HEADS, (spec.d_model, heads, spec.head_dim), ("embed", "heads", "kv"))
        y_ND = flatten_tokens(x_BTD) @ kernel_DHK.reshape(spec.d_model, -1)
        y_BTHK = y_ND.reshape(*x_BTD.shape[:2], heads, spec.head_dim)
        if spec.qkv_bias:
            y_BTHK += weight(self, f"{name}_bias", _ZEROS, (heads, spec.head_dim), ("heads", "kv"))[None, None]
        if spec.qk_norm and name != "value":
            axes = ("kv",) if spec.qk_norm == "head" else ("heads", "kv")
            plus_one = spec.norm == "rms_plus_one"
            y_BTHK = RmsNorm(axes, spec.norm_eps, self.dtype, plus_one, name=f"{name}_norm")(y_BTHK)
        return constrain(y_BTHK.swapaxes(1, 2), ("batch", "heads", "length", "kv"))

    def _frequencies(self, is_local):
        """Radians per position of each rotated pair, by the layer's kind."""
        everywhere = frequencies(self.spec.rope)
        if not self.spec.local_rope.dim:
            return everywhere
        local = frequencies(self.spec.local_rope)
        return (
            jnp.where(is_local, local, everywhere) if isinstance(is_local, jax.Array) else (everywhere, local)[is_local]
        )


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
    model: Decoder,
    params: Params,
    tokens_BT: jax.Array,
    positions_BT: jax.Array | None = None,
    segment_ids_BT: jax.Array | None = None,
) -> jax.Array:
    """Logits [B, T, V] of the reference pass; see Decoder.__call__."""
    return call(model, params, jnp.asarray(tokens_BT), positions_BT, segment_ids_BT)


def call(model: Decoder, params: Params, *args: Any, method: str | None = None) -> jax.Array:
    """Runs one of the model's methods, `__call__` by default, and returns its result alone."""
    return cast(jax.Array, model.apply({"params": params}, *args, method=method))


def init(model: Decoder, key: jax.Array) -> Params:
    """Random float32 parameters, boxed with their logical axes; see placement.unbox."""
    return model.init(key, jnp.zeros((1, 2), jnp.int32))["params"]


def head_weights(spec: DecoderSpec, params: Params) -> tuple[jax.Array, jax.Array | None]:
    """(kernel [D, V], bias [V] or None) of the output head, in the stored dtype."""
    if spec.tied_head:
        return params["embedding"]["embedding"].T, None
    return params["head"]["kernel"], params["head"].get("bias")


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
