"""Devices and processes: meshes and the sharding table, several processes as one program, preemption."""
