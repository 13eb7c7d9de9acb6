"""Will it fit? Compiles a run's programs for devices that are not here, or counts, and reports memory per device."""
