"""Weights on disk and on devices: model directories, checkpoints inside a fine-tuning, fingerprints, placement.

`sources` reads and writes other projects' formats. README.md in this folder describes the directories and commands.
"""
