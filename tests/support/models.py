"""Tiny models, and random arrays and weights that cost no compilation."""

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.config import ModelConfig
from star_jax.models import decoder, families
from star_jax.models.spec import DecoderSpec
from star_jax.weights import placement

TINY = ModelConfig(
    n_layers=2, d_model=32, n_heads=2, d_mlp=64, rotary_dim=8, vocab_size=20, max_positions=512, scan_unroll=2
)


def numpy_params(config: ModelConfig | DecoderSpec, seed: int = 0, scale: float = 0.2) -> decoder.Params:
    """Stacked parameters, normal with standard deviation `scale`. Made with NumPy: jit(init) compiles for seconds."""
    rng = np.random.default_rng(seed)
    spec = config if isinstance(config, DecoderSpec) else families.spec_of(config)
    shapes = placement.unbox(placement.abstract_params(decoder.Decoder(spec)))
    return jax.tree.map(lambda s: (scale * rng.standard_normal(s.shape)).astype(np.float32), shapes)


def normal_arrays(*shapes: tuple[int, ...], dtype: str = "float32", seed: int = 0) -> tuple[jax.Array, ...]:
    """An array of standard normal numbers for each of the shapes."""
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes)
