"""star_jax.preflight.topology: what --topology accepts, and how much of a device's memory is usable."""

import pytest

from star_jax.errors import InputError
from star_jax.preflight.topology import GPUS, parse_topology
from tests.support.tables import every_row


def test_a_gpu_topology_has_no_devices():
    topology = parse_topology("gpu:4xL4")
    assert (topology.device_kind, topology.device_count, topology.device_gib, topology.devices) == ("L4", 4, 22.5, ())
    assert topology.devices_per_host == 4 and topology.processes == (0, 0, 0, 0)


@every_row(("kind", "gib"), [(f"{name}-{gb}GB", gib) for name, sizes in GPUS.items() for gb, gib in sizes.items()])
@every_row("count", [1, 2, 3, 16])
def test_every_kind_is_known_in_every_number(kind, gib, count):
    """By name and memory, in any case; the driver has most of the vendor's memory."""
    for text in (f"gpu:{count}x{kind}", f"gpu:{count}x{kind}".lower()):
        topology = parse_topology(text)
        assert (topology.device_count, topology.device_gib) == (count, gib)
        assert parse_topology(f"gpu:{count}x{topology.device_kind}") == topology
    assert 0.9 <= gib / int(kind.rpartition("-")[2].removesuffix("GB")) <= 1


def test_a_kind_without_its_memory_is_the_smallest_of_its_versions():
    assert parse_topology("gpu:1xA100") == parse_topology("gpu:1xA100-40GB")
    assert parse_topology("gpu:1xV100").device_kind == "V100-16GB"


def test_several_processes_have_their_own_devices():
    topology = parse_topology("gpu:2x4xH100")
    assert topology.device_count == 8 and topology.processes == (0,) * 4 + (1,) * 4
    assert topology.of(12).processes == (0,) * 4 + (1,) * 4 + (2,) * 4


def test_a_reserve_of_what_jax_allocates_is_not_usable(monkeypatch):
    usable = {}
    for value in ("", "0.5", "1"):
        monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", value)
        usable[value] = parse_topology("gpu:1xA100-80GB").usable_bytes / 2**30
    assert usable == pytest.approx({"": 80 * 0.75 * 0.95, "0.5": 38, "1": 76})
    for wrong in ("0", "1.5", "much"):
        monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", wrong)
        with pytest.raises(InputError, match=f"XLA_PYTHON_CLIENT_MEM_FRACTION={wrong}: must be a share"):
            parse_topology("gpu:1xA100-80GB")


def test_a_wrong_topology_is_one_line():
    wrong = []
    gpus = (
        "gpu:8xH900",
        "gpu:0xH100",
        "gpu:H100",
        "gpu:4xA100-60GB",
        "gpu:99999xT4",
        "gpu:999999999xT4",
        "gpu:",
        "gpu:2",
    )
    for text in (*gpus, "v9:2x2", "v3", "v3:2-2", "", "v5e:2x4; rm"):
        try:
            wrong.append((text, parse_topology(text)))
        except InputError as error:
            if not str(error).startswith(f"--topology={text}: ") or "\n" in str(error):
                wrong.append((text, error))
    assert not wrong


def test_an_unknown_kind_or_memory_lists_all_that_are_known():
    for text in ("gpu:8xH900", "gpu:4xA100-60GB", "gpu:8", "gpu:RTX4090"):
        with pytest.raises(InputError) as error:
            parse_topology(text)
        names = [f"{n}-{gb}GB" if len(sizes) > 1 else n for n, sizes in GPUS.items() for gb in sizes]
        assert [name for name in names if f" {name}, " not in str(error.value)] == []
