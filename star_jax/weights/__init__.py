"""Weights on disk and on devices: checkpoints, fingerprints, placement, and other projects' formats."""
