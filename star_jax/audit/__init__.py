"""Writes a sample of kept rationales for a person to mark. Right answers are not right reasoning.

`star_jax.report.marks` defines the file and evaluates its marks.
"""
