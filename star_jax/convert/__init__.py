"""`python -m star_jax.convert`: models between Hugging Face, mesh-transformer and Orbax directories."""
