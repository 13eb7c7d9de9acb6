"""The decoder and its attention. Parameters are plain trees of arrays; nothing here knows tasks, files or runs."""
