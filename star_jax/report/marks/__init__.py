"""Hand marks of kept rationales: the file a person marks, and what the marks say about everything that was kept.

`python -m star_jax.audit` writes the file; every page shows its marks.
"""
