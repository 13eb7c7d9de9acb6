"""What to change where a program does not fit: options on the same devices, or a number of devices, found by trying."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from star_jax.algorithms import budget, setup
from star_jax.algorithms.budget import Lengths
from star_jax.config import Config
from star_jax.errors import InputError
from star_jax.models.spec import DecoderSpec
from star_jax.preflight.programs import tensors
from star_jax.preflight.topology import Topology

MAX_DEVICES = 1024
_MARGIN = 0.95  # of the usable memory: advice rests on counts, which the compiler's sizes may exceed


def fits(sizes: tuple[float, float], topology: Topology) -> bool:
    """Whether counted (arguments, temporaries), in bytes, leave room on a device for what is not counted."""
    return sum(sizes) < _MARGIN * topology.usable_bytes


def training_flags(config: Config, spec: DecoderSpec, topology: Topology) -> str:
    """The flags of the first of `remedies` with which the train step fits by our count; "" if there are none."""
    return next((flags for flags, _ in _fitting_training(config, spec, topology) if flags), "")


def sampling_flags(config: Config, spec: DecoderSpec, topology: Topology, lengths: Lengths) -> str:
    """Flags with which the sampling loop fits by our count: fewer slots, or weights and caches over more devices.

    The number of slots is halved repeatedly. With more devices for each copy of the model it starts from the config's.
    "" if there are none.
    """
    return next((flags for flags, _ in _fitting_sampling(config, spec, topology, lengths) if flags), "")


def more_devices(config: Config, spec: DecoderSpec, topology: Topology, lengths: Lengths) -> str:
    """The least number of devices of this kind on which all programs fit, with flags if it takes any, as a sentence."""
    for count in _counts(topology):
        more = topology.of(count)
        for training, smaller in _fitting_training(config, spec, more):
            if ways := list(_fitting_sampling(smaller, spec, more, lengths)):
                flags = f"{training} {max(ways, key=lambda way: way[1])[0]}".strip()
                return f"{count} x {topology.device_kind} would do{f', with {flags}' if flags else ''}"
    return (
        f"no number of {topology.device_kind} up to {MAX_DEVICES} would do; lower train.batch_rows, train.row_tokens "
        "or sampling.slots, or take a smaller model"
    )


def remedies(config: Config) -> Iterator[tuple[str, Config]]:
    """Configs whose train step needs less and less memory: (flags, the config with them).

    Each adds a change to the one before it, the cheapest change first, and names the flags of all changes.
    """
    changes: list[tuple[str, dict[str, Any]]] = []
    if config.model.remat != "full":
        changes.append(("model", {"remat": "full"}))
    if config.mesh.fsdp != -1:
        changes.append(("mesh", {"data": 1, "fsdp": -1}))
    if config.optimizer.moment_dtype != "bfloat16":
        changes.append(("optimizer", {"moment_dtype": "bfloat16"}))
    changes += [("train", {"microbatches": parts}) for parts in range(2, config.train.batch_rows + 1)]
    flags: dict[str, Any] = {}
    for group, values in changes:
        flags |= {f"{group}.{name}": value for name, value in values.items()}
        config = _with(config, group, **values)
        yield " ".join(f"--config.{name}={value}" for name, value in flags.items()), config


def _fitting_training(config: Config, spec: DecoderSpec, topology: Topology) -> Iterator[tuple[str, Config]]:
    """The config itself and its `remedies`, those whose train step starts and fits: (flags, config).

    Where rows or devices do not divide, heads are sharded over the fewest devices that make them divide.
    """
    larger = [tensor for tensor in tensors(spec, topology.device_count) if tensor > config.mesh.tensor]
    for flags, smaller in [("", config), *remedies(config)]:
        for tensor in (config.mesh.tensor, *larger):
            tried = _with(smaller, "mesh", tensor=tensor)
            layout = _layout(_with(tried, "sampling", tensor=1), spec, topology)
            if layout is None:
                continue
            if fits(budget.train_bytes(tried, spec, layout[0]), topology):
                more = "" if tensor == config.mesh.tensor else f" --config.mesh.tensor={tensor}"
                yield (flags + more).strip(), tried
            break


def _fitting_sampling(
    config: Config, spec: DecoderSpec, topology: Topology, lengths: Lengths
) -> Iterator[tuple[str, int]]:
    """(flags, slots) with which the sampling loop starts and fits; no flags first, if it does as it is."""
    layout = _layout(config, spec, topology)
    now = layout[1] if layout else 0
    more = [tensor for tensor in tensors(spec, topology.devices_per_host) if tensor > now]
    for tensor in [now, *more] if now else more:
        flags = "" if tensor == now else f"--config.sampling.tensor={tensor}"
        tried = _with(config, "sampling", tensor=tensor)
        slots = config.sampling.slots if _layout(tried, spec, topology) else 0
        while slots:
            tried = _with(tried, "sampling", slots=slots)
            if fits(budget.sampling_bytes(tried, spec, tensor, lengths), topology):
                fewer = "" if slots == config.sampling.slots else f" --config.sampling.slots={slots}"
                yield (flags + fewer).strip(), slots
            slots //= 2


def _layout(config: Config, spec: DecoderSpec, topology: Topology) -> tuple[dict[str, int], int] | None:
    """setup.check_devices, or None where a run on these devices would be refused."""
    try:
        return setup.check_devices(config, spec, topology.processes)
    except InputError:
        return None


def _counts(topology: Topology) -> Iterator[int]:
    """Numbers of devices to try, ascending: of TPUs the doubles, of GPUs all small ones and whole processes."""
    small, large = range(1, 17), (*range(24, 65, 8), *(2**power for power in range(7, 11)))
    for count in (topology.device_count * 2**power for power in range(1, 11)) if topology.devices else (*small, *large):
        whole = count <= topology.devices_per_host or not count % (topology.larger_host_size or 1)
        if topology.device_count < count <= MAX_DEVICES and whole:
            yield count


def _with(config: Config, group: str, **values: Any) -> Config:
    """The config with other options in one group."""
    options: Any = dataclasses.replace(getattr(config, group), **values)
    return dataclasses.replace(config, **{group: options})
