"""star_jax.preflight.topology: what --topology accepts."""

import pytest

from star_jax.errors import InputError
from star_jax.preflight.topology import parse_topology


def test_a_gpu_topology_has_no_devices():
    topology = parse_topology("gpu:4xL4")
    assert (topology.device_kind, topology.device_count, topology.device_gib, topology.devices) == ("L4", 4, 24, ())
    assert topology.devices_per_host == 4


def test_a_wrong_topology_is_one_line():
    wrong = []
    for text in ("v9:2x2", "v3", "v3:2-2", "gpu:8xH900", "gpu:0xH100", "gpu:H100", "", "v5e:2x4; rm"):
        try:
            wrong.append((text, parse_topology(text)))
        except InputError as error:
            if not str(error).startswith(f"--topology={text}: ") or "\n" in str(error):
                wrong.append((text, error))
    assert not wrong
    with pytest.raises(InputError, match="unknown GPUs; give one of A100"):
        parse_topology("gpu:8xH900")
