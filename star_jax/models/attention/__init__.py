"""Attention for training rows, prefill and decode steps: a dense reference and narrow, fast backends."""
