"""Other projects' model formats.

Each format is a `loader.WeightSource`, which reads one tensor at a time; `loader.load` puts any of them on a mesh.
"""
