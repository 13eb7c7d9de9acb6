"""Layers of the decoder without attention, and parameters that are sharded by logical axis (sharding.RULES)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from star_jax.models.spec import DecoderSpec, Rope

# Normal with standard deviation 1 / sqrt(inputs): 0.0156 at GPT-J-6B's width. Tiny models learn with it, too.
_INIT = nn.initializers.lecun_normal()
_ZEROS = nn.initializers.zeros_init()
_ONES = nn.initializers.ones_init()


class Mlp(nn.Module):
    """Two linear layers with the tanh form of GELU between them, or three: the first gates the second."""

    spec: DecoderSpec
    dtype: str

    @nn.compact
    def __call__(self, x_BTD, addend_BTD=None):
        """[B, T, D]; see Linear for `addend_BTD`."""
        spec = self.spec
        linear = functools.partial(Linear, dtype=self.dtype, use_bias=spec.mlp_bias)
        hidden_BTF = linear(spec.d_mlp, ("embed", "mlp"), name="in")(x_BTD)
        hidden_BTF = constrain(hidden_BTF, ("batch", "length", "mlp"))
        if spec.mlp == "gelu":
            hidden_BTF = nn.gelu(hidden_BTF, approximate=True)
        else:
            gate_BTF = linear(spec.d_mlp, ("embed", "mlp"), name="gate")(x_BTD)
            gate_BTF = constrain(gate_BTF, ("batch", "length", "mlp"))
            hidden_BTF *= nn.silu(gate_BTF) if spec.mlp == "swiglu" else nn.gelu(gate_BTF, approximate=True)
        return linear(spec.d_model, ("mlp", "embed"), name="out")(hidden_BTF, addend_BTD)


class Linear(nn.Module):
    """x @ kernel + bias. `axes`: logical axes of the inputs and of the outputs."""

    features: int
    axes: tuple[str, str]
    dtype: str
    use_bias: bool = True

    @nn.compact
    def __call__(self, x, addend=None):
        """[..., features]. `addend`, of the output's shape, is added to the product before the bias."""
        kernel = weight(self, "kernel", _INIT, (x.shape[-1], self.features), self.axes)
        y = (flatten_tokens(x.astype(kernel.dtype)) @ kernel).reshape(*x.shape[:-1], -1)
        if addend is not None:
            y = addend + y
        if self.use_bias:
            bias = weight(self, "bias", _ZEROS, (self.features,), self.axes[1:])
            y = y + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        return y


class RmsNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale (Zhang & Sennrich, 2019) over the last axes of x, computed in float32.

    Attributes:
      axes: logical axes of the scale, one for each axis that is normed.
      plus_one: multiply by 1 + scale (Gemma).
    """

    axes: tuple[str, ...]
    epsilon: float
    dtype: str
    plus_one: bool = False

    @nn.compact
    def __call__(self, x):
        """An array of x's shape in the compute dtype."""
        normed = tuple(range(x.ndim - len(self.axes), x.ndim))
        init = nn.with_logical_partitioning(_ZEROS if self.plus_one else _ONES, self.axes)
        scale = jnp.asarray(self.param("scale", init, tuple(x.shape[axis] for axis in normed)), jnp.float32)
        wide = x.astype(jnp.float32)
        wide *= jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=normed, keepdims=True) + self.epsilon)
        scale = scale + 1 if self.plus_one else scale
        return (wide * scale.reshape((1,) * (x.ndim - len(normed)) + scale.shape)).astype(self.dtype)


def norm(spec: DecoderSpec, dtype: str, name: str | None = None) -> nn.Module:
    """The family's norm over D."""
    if spec.norm == "layer":
        return nn.LayerNorm(
            epsilon=spec.norm_eps,
            dtype=dtype,
            scale_init=nn.with_logical_partitioning(_ONES, ("embed",)),
            bias_init=nn.with_logical_partitioning(_ZEROS, ("embed",)),
            name=name,
        )
    return RmsNorm(("embed",), spec.norm_eps, dtype, plus_one=spec.norm == "rms_plus_one", name=name)


def rotate(x_BHTK: jax.Array, positions_BT: jax.Array, frequency_K: jax.Array, layout: str) -> jax.Array:
    """Rotary positions on the first features of each head, two for each frequency; see Rope for the layout."""
    angle_BT = positions_BT[..., None].astype(jnp.float32) * frequency_K[None, None]
    sin, cos = jnp.sin(angle_BT)[:, None], jnp.cos(angle_BT)[:, None]
    rotary_dim = 2 * frequency_K.shape[0]
    rotary = x_BHTK[..., :rotary_dim].astype(jnp.float32)
    if layout == "interleaved":
        even, odd = rotary[..., 0::2], rotary[..., 1::2]
        rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(rotary.shape)
    else:
        low, high = jnp.split(rotary, 2, axis=-1)
        rotated = jnp.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
    return jnp.concatenate([rotated.astype(x_BHTK.dtype), x_BHTK[..., rotary_dim:]], axis=-1)


def frequencies(rope: Rope) -> jax.Array:
    """Radians per position of each rotated pair, float32.

    llama3 (Llama 3.1): a pair that turns less than `low_frequency_factor` times in `original_positions` tokens is
    slowed down by `factor`, one that turns more than `high_frequency_factor` times is left alone, and those between are
    interpolated.
    """
    frequency = rope.theta ** (-jnp.arange(0, rope.dim, 2) / rope.dim)
    if rope.scaling == "linear":
        return frequency / rope.factor
    if rope.scaling == "llama3":
        turns = rope.original_positions * frequency / (2 * np.pi)
        span = rope.high_frequency_factor - rope.low_frequency_factor
        unscaled = jnp.clip((turns - rope.low_frequency_factor) / span, 0.0, 1.0)
        return frequency * (unscaled + (1 - unscaled) / rope.factor)
    return frequency


def flatten_tokens(x: jax.Array) -> jax.Array:
    """[N, D] from [..., D]. A weight's gradient over rows and tokens as two axes makes XLA transpose both operands."""
    return x.reshape(-1, x.shape[-1])


def softcap(x: jax.Array, cap: float) -> jax.Array:
    """cap * tanh(x / cap), which bounds x; x if `cap` is 0."""
    return cap * jnp.tanh(x / cap) if cap else x


def weight(module: Any, name: str, init: Any, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
    """A parameter of the module in its `dtype`, gathered over FSDP. `axes`: its logical axes."""
    stored = module.param(name, nn.with_logical_partitioning(init, axes), shape)
    return _all_gather_fsdp(jnp.asarray(stored, module.dtype), axes)


def constrain(x: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
    """Applies a sharding constraint while tracing; no-op on concrete arrays. `axes`: logical axes of x."""
    return nn.with_logical_constraint(x, axes) if isinstance(x, jax.core.Tracer) else x


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _all_gather_fsdp(stored, axes):
    """All-gathers a weight's FSDP axis ("embed") before use, so that weights move between devices, not activations.

    The custom VJP re-shards the gradient, so XLA emits reduce-scatter instead of all-reduce.
    """
    return constrain(stored, tuple(None if axis == "embed" else axis for axis in axes))


def _all_gather_fsdp_forward(stored, axes):
    return _all_gather_fsdp(stored, axes), None


def _all_gather_fsdp_backward(axes, _, gradient):
    return (constrain(gradient, axes),)


_all_gather_fsdp.defvjp(_all_gather_fsdp_forward, _all_gather_fsdp_backward)
