"""A run on disk: its directory, atomic and checksummed files, the lock, metrics and their trackers. No JAX here."""
