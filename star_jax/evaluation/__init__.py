"""Sampling and judging completions for a list of problems, accuracy, and its statistics."""
