"""Compiles a run's programs for a topology that is not at hand, and says whether they fit its memory."""
