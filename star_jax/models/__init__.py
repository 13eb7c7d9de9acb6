"""The decoder and its attention. Parameters are plain trees of arrays; no module depends on tasks, files or runs."""
