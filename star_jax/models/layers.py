"""Layers of the decoder without attention, and parameters that are sharded by logical axis (sharding.RULES)."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.config import ModelConfig

# Normal with standard deviation 1 / sqrt(inputs): 0.0156 at GPT-J-6B's width. Tiny models learn with it, too.
_INIT = nn.initializers.lecun_normal()
_ZEROS = nn.initializers.zeros_init()
_ROTARY_BASE = 10000.0


class Mlp(nn.Module):
    """Two linear layers with the tanh form of GELU between them."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x_BTD, addend_BTD=None):
        """[B, T, D]; see Linear for `addend_BTD`."""
        cfg = self.config
        hidden_BTF = Linear(cfg, cfg.d_mlp, ("embed", "mlp"), name="in")(x_BTD)
        hidden_BTF = constrain(hidden_BTF, ("batch", "length", "mlp"))
        return Linear(cfg, cfg.d_model, ("mlp", "embed"), name="out")(nn.gelu(hidden_BTF, approximate=True), addend_BTD)


class Linear(nn.Module):
    """x @ kernel + bias. `axes`: logical axes of the inputs and of the outputs."""

    config: ModelConfig
    features: int
    axes: tuple[str, str]

    @nn.compact
    def __call__(self, x, addend=None):
        """[..., features]. `addend`, of the output's shape, is added to the product before the bias."""
        kernel = weight(self, "kernel", _INIT, (x.shape[-1], self.features), self.axes)
        bias = weight(self, "bias", _ZEROS, (self.features,), self.axes[1:])
        y = (flatten_tokens(x.astype(kernel.dtype)) @ kernel).reshape(*x.shape[:-1], -1)
        return (y if addend is None else addend + y) + bias.reshape((1,) * (x.ndim - 1) + (-1,))


def norm(config: ModelConfig, name: str | None = None) -> nn.LayerNorm:
    """Layer norm over D with scale and bias: every norm of both architectures."""
    return nn.LayerNorm(
        epsilon=1e-5,
        dtype=config.compute_dtype,
        scale_init=nn.with_logical_partitioning(nn.initializers.ones_init(), ("embed",)),
        bias_init=nn.with_logical_partitioning(nn.initializers.zeros_init(), ("embed",)),
        name=name,
    )


def rotate(x_BHTK: jax.Array, positions_BT: jax.Array, rotary_dim: int) -> jax.Array:
    """Rotary positions (Su et al., 2021) on interleaved pairs (2i, 2i + 1) of the first `rotary_dim` features."""
    frequency = _ROTARY_BASE ** (-jnp.arange(0, rotary_dim, 2) / rotary_dim)
    angle_BT = positions_BT[..., None].astype(jnp.float32) * frequency[None, None]
    sin, cos = jnp.sin(angle_BT)[:, None], jnp.cos(angle_BT)[:, None]
    rotary = x_BHTK[..., :rotary_dim].astype(jnp.float32)
    even, odd = rotary[..., 0::2], rotary[..., 1::2]
    rotated = jnp.stack([even * cos - odd * sin, odd * cos + even * sin], axis=-1).reshape(rotary.shape)
    return jnp.concatenate([rotated.astype(x_BHTK.dtype), x_BHTK[..., rotary_dim:]], axis=-1)


def flatten_tokens(x: jax.Array) -> jax.Array:
    """[N, D] from [..., D]. A weight's gradient over rows and tokens as two axes makes XLA transpose both operands."""
    return x.reshape(-1, x.shape[-1])


def weight(module: nn.Module, name: str, init: Any, shape: tuple[int, ...], axes: tuple[str, ...]) -> jax.Array:
    """A parameter of the module in the compute dtype, gathered over FSDP. `axes`: its logical axes."""
    stored = module.param(name, nn.with_logical_partitioning(init, axes), shape)
    return _all_gather_fsdp(jnp.asarray(stored, module.config.compute_dtype), axes)


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
