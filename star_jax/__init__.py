"""star_jax: the Self-Taught Reasoner (Zelikman et al., 2022) in JAX."""

__version__ = "0.1.0"
