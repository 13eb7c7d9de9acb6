"""Command lines: one argument parser for all commands, `--config` and its overrides, one line for bad input."""
