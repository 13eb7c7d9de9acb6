"""star_jax.preflight refuses what a run would refuse at its start, with the run's message, and nothing else."""

import random
import sys
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from star_jax import config
from star_jax.algorithms import setup
from star_jax.cli.config_flags import read_config
from star_jax.cli.parser import Parser
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import families
from star_jax.models.spec import DecoderSpec
from star_jax.preflight import __main__ as command
from star_jax.preflight.topology import parse_topology
from star_jax.weights import placement
from tests.support.tables import every_row

CONFIGS = Path(__file__).parents[2] / "configs"
OPTIONS = {
    "jsonl_example.py": (
        "", "train.batch_rows=6", "train.microbatches=2", "train.microbatches=3", "mesh.data=1 mesh.fsdp=-1",
        "mesh.data=1 mesh.tensor=2", "mesh.tensor=3", "mesh.tensor=8", "mesh.data=2 mesh.fsdp=2", "mesh.fsdp=16",
        "model.n_heads=8 mesh.tensor=8 mesh.data=1", "sampling.tensor=2", "sampling.tensor=-1", "sampling.tensor=3",
        "model.vocab_size=321 mesh.tensor=2", "model.d_mlp=255 sampling.tensor=2", "train.row_tokens=600",
        "sampling.max_new_tokens=400", "model.vocab_size=200", "model.n_layers=0", "prompt.shots=9", "prompt.shots=0",
        "tokenizer=symbols", "task.held_out=10", "evaluation.report_split=test",
        "prompt.format=chat", "replication.base_moments=True", "sampling.slots=0", "model.d_model=66",
    ),
    "gsm8k.py": ("", "model.n_layers=2", "base.path=nowhere"),
    "arithmetic_gpt2.py": ("",),
}  # fmt: skip


def refusal_of_a_run(flags: list[str], devices: int, workdir: Path, monkeypatch) -> str:
    """The message with which a run on the first of the virtual devices does not start; "": it starts."""
    meshes = setup.meshes
    with monkeypatch.context() as patch:
        patch.setattr(setup, "meshes", lambda config, spec: meshes(config, spec, jax.devices()[:devices]))
        try:
            _, options = read_config(Parser("main", ""), flags)
            setup.open_run(config.from_dict(options), workdir).run_dir.close()
        except InputError as error:
            return str(error)
    return ""


def refusal_of_preflight(flags: list[str], devices: int, monkeypatch) -> str:
    monkeypatch.setattr(sys, "argv", ["preflight", *flags, f"--topology=gpu:{devices}xH100"])
    try:
        command.main()
    except InputError as error:
        return str(error)
    except SystemExit:
        raise AssertionError("these models fit") from None
    return ""


def test_preflight_refuses_exactly_what_a_run_refuses(monkeypatch, tmp_path):
    """Mesh, heads, rows, positions, tokenizer, shots and data, on one to eight devices."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")  # the command sets it
    wrong, refused, rows = [], 0, 0
    for file, options in OPTIONS.items():
        for text in options:
            flags = [f"--config={CONFIGS / file}", *(f"--config.{option}" for option in text.split())]
            for devices in (1, 2, 3, 8):
                run = refusal_of_a_run(flags, devices, tmp_path / f"run_{rows}", monkeypatch)
                preflight = refusal_of_preflight(flags, devices, monkeypatch)
                rows, refused = rows + 1, refused + bool(run)
                if run != preflight:
                    wrong.append((file, text, devices, run, preflight))
    assert not wrong
    assert rows // 3 < refused < rows


def sharded_by_jax(settings: config.Config, spec: DecoderSpec, devices: list) -> bool:
    """Whether JAX shards rows and weights over meshes of these devices; star_jax's checks are not asked."""
    mesh_options, train = settings.mesh, settings.train
    rest = len(devices) // mesh_options.tensor
    data = rest // mesh_options.fsdp if mesh_options.data == -1 else mesh_options.data
    fsdp = rest // mesh_options.data if mesh_options.fsdp == -1 else mesh_options.fsdp
    used = np.array(devices[: data * fsdp * mesh_options.tensor])
    if not used.size:
        return False
    copies = len(used) if settings.sampling.tensor == -1 else settings.sampling.tensor
    shapes = placement.abstract_params(families.build(settings.model, spec))
    try:
        meshes = [used.reshape(data, fsdp, mesh_options.tensor), used.reshape(-1, 1, copies)]
        rows = np.zeros(train.batch_rows).reshape(train.microbatches, -1)[0]
        sharding.row_sharding(sharding.auto_mesh(meshes[0])).shard_shape(rows.shape)
        for grid in meshes:
            specs = nn.get_partition_spec(shapes)
            shardings = nn.logical_to_mesh_sharding(specs, sharding.auto_mesh(grid), sharding.RULES)
            jax.tree.map(lambda leaf, by: by.shard_shape(leaf.shape), placement.unbox(shapes), shardings)
    except ValueError:
        return False
    return True


def test_what_is_refused_is_what_jax_cannot_shard():
    """A random table of meshes, rows and models with one to eight KV heads, over one to eight devices."""
    choose, wrong, refused = random.Random(0), [], 0
    sizes = dict(n_layers=1, d_model=48, rotary_dim=2, max_positions=64, architecture="gptj")
    for _ in range(400):
        values = config.default("arithmetic")
        values.base.path = "none"
        values.model.update(sizes, n_heads=choose.choice((1, 2, 3, 4, 8)), d_mlp=choose.choice((24, 64, 96)),
                            vocab_size=choose.choice((20, 24, 32)))  # fmt: skip
        axes = choose.choice(((-1, 1), (-1, 2), (1, -1), (2, -1), (1, 2), (2, 3), (3, 1), (8, 1)))
        values.mesh.update(data=axes[0], fsdp=axes[1], tensor=choose.choice((1, 1, 2, 3, 4)))
        values.train.update(
            batch_rows=choose.choice((4, 6, 8, 24)), microbatches=choose.choice((1, 1, 2, 3)), row_tokens=64
        )
        values.sampling.tensor = choose.choice((-1, 1, 2, 3, 4))
        settings = config.from_dict(values)
        spec, devices = families.spec_of(settings.model), jax.devices()[: choose.randint(1, 8)]
        try:
            setup.check_devices(settings, spec, [0] * len(devices))
            message = ""
        except InputError as error:
            message = str(error)
        refused += bool(message)
        if bool(message) == sharded_by_jax(settings, spec, devices):
            wrong.append((settings.mesh, settings.train, settings.sampling.tensor, spec, len(devices), message))
    assert not wrong and 100 < refused < 390, refused


@every_row(
    ("devices", "options", "message"),
    [
        ("gpu:2x2xT4", {}, ""),
        ("gpu:2x2xT4", {"mesh.data": 2}, "leaves processes without a device: there are 4 devices"),
        ("gpu:2x2xT4", {"mesh.data": 3, "train.batch_rows": 6}, ""),
        (
            "gpu:2x2xT4",
            {"mesh.data": 3, "train.batch_rows": 6, "sampling.tensor": 2},
            "2 does not divide the 1 devices",
        ),
        ("gpu:2x2xT4", {"sampling.tensor": 4}, "sampling.tensor: 4 does not divide the 2 devices of a process"),
        ("gpu:1x4xT4", {"sampling.tensor": 4}, ""),
        ("gpu:2x2xT4", {"mesh.data": 1, "mesh.tensor": 4, "sampling.tensor": -1}, ""),
    ],
)
def test_each_process_needs_devices_and_samples_on_its_own(devices, options, message):
    values = config.default("arithmetic")
    values.base.path = "none"
    values.model.update(n_layers=1, d_model=16, n_heads=4, d_mlp=16, rotary_dim=2, vocab_size=20, max_positions=1024)
    for name, value in options.items():
        group, option = name.split(".")
        values[group][option] = value
    settings = config.from_dict(values)
    try:
        setup.check_devices(settings, families.spec_of(settings.model), parse_topology(devices).processes)
    except InputError as error:
        assert message and message in str(error)
    else:
        assert not message
