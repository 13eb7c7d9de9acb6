"""Other projects' model formats: each is a `Source` that reads one tensor at a time; `source.load` loads any."""
