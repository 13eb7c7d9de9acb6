"""star_jax.preflight and budget: what is counted is what is there; what does not fit is said, with a remedy."""

import dataclasses
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from star_jax import config
from star_jax.algorithms import setup
from star_jax.config import GPTJ_6B
from star_jax.distributed import sharding
from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.preflight import __main__ as preflight
from star_jax.preflight import budget
from tests.support.models import TINY, numpy_params

ROOT = Path(__file__).parents[2]


def gptj(**changes) -> config.Config:
    values = config.at_gptj_6b(config.default("arithmetic"))
    values.base.path = "none"
    for key, value in changes.items():
        group, _, name = key.partition("__")
        values[group][name] = value
    return config.from_dict(values)


def counted(settings: config.Config, topology: str) -> tuple[bool, str]:
    out = io.StringIO()
    fits = preflight.report(
        settings, preflight.topology(topology), budget.Lengths(1024, 128, 96), lambda line: print(line, file=out)
    )
    return fits, out.getvalue()


def test_parameters_are_counted():
    assert budget.parameters(decoder.GPT(TINY)) == sum(leaf.size for leaf in jax.tree.leaves(numpy_params(TINY)))
    values = {**dataclasses.asdict(TINY), **GPTJ_6B}
    assert budget.parameters(decoder.GPT(config.ModelConfig(**values))) == 6_050_882_784


def test_arguments_are_counted_as_the_compiler_does():
    """Weights and both moments of a train step, weights and prefix of the sampler, on one of eight devices."""
    values = config.default("arithmetic")
    values.model.update(dataclasses.asdict(dataclasses.replace(TINY, n_heads=8, rotary_dim=4, vocab_size=24)))
    values.base.path = "none"
    values.mesh.update(dict(data=1, fsdp=4, tensor=2))
    values.sampling.update(dict(slots=8, queue=8, tensor=8))
    settings = config.from_dict(values)
    mesh, drawing = setup.meshes(settings)
    state = preflight.abstract_state(settings, mesh)
    there = sum(np.prod(s.sharding.shard_shape(s.shape)) * s.dtype.itemsize for s in jax.tree.leaves(state))
    assert budget.train_bytes(settings, dict(mesh.shape))[0] == pytest.approx(there, rel=0.1)  # norms are not split
    lengths = budget.Lengths(64, 16, 8)
    flight = preflight.measure("sampling loop", lambda: preflight.lower_sampler(settings, drawing, lengths))
    assert flight.peak > 0 and flight.text
    assert budget.sampling_bytes(settings, 8, lengths)[0] == pytest.approx(flight.arguments, rel=0.3)


def test_a_gpu_is_counted_and_fits_or_not():
    fits, text = counted(gptj(), "gpu:8xH100")
    assert fits and "6,050,882,784 parameters on 8 x H100 of 80 GiB; counted, not compiled" in text
    fits, text = counted(gptj(mesh__fsdp=1), "gpu:8xA100")
    assert not fits and "this would: --config.mesh.data=1 --config.mesh.fsdp=-1" in text
    fits, text = counted(gptj(sampling__slots=4096, sampling__tensor=1), "gpu:8xH100")
    assert not fits and "--config.sampling.slots=" in text


def test_the_remedies_take_less_and_less():
    settings = gptj(model__remat="none", mesh__fsdp=1, mesh__data=8)
    from star_jax.distributed import sharding

    sizes = [sum(budget.train_bytes(settings, sharding.mesh_shape(settings.mesh, 8)))]
    for _, smaller in preflight.remedies(settings):
        sizes.append(sum(budget.train_bytes(smaller, sharding.mesh_shape(smaller.mesh, 8))))
    assert sizes[:4] == sorted(sizes[:4], reverse=True) and len(set(sizes[:4])) == 4


def test_a_remedy_names_every_flag_that_it_takes():
    """Later remedies stand on earlier ones: the last flag alone would not fit."""
    start = dict(model__remat="none", mesh__fsdp=1, mesh__data=8)
    found = list(preflight.remedies(gptj(**start)))
    assert len(found) == 3 + 7  # recomputing, splitting, moments, and eight rows in two to eight parts
    for said, smaller in found:
        given = dict(flag.removeprefix("--config.").replace(".", "__").split("=") for flag in said.split())
        given = {name: int(value) if value.lstrip("-").isdecimal() else value for name, value in given.items()}
        assert gptj(**{**start, **given}) == smaller


def test_advice_is_only_what_the_run_would_take():
    """Eight rows over eight devices cannot be taken in parts; sixty-four over four can, in up to sixteen."""
    eight = gptj(train__row_tokens=2048, mesh__data=1, mesh__fsdp=8)
    assert preflight._advise_training(eight, preflight.Topology("small", 8, 12.0)) == "more devices"
    many = gptj(train__row_tokens=2048, train__batch_rows=64, mesh__data=1, mesh__fsdp=4)
    said = preflight._advise_training(many, preflight.Topology("large", 4, 48.0))
    assert said.rpartition("=")[0].endswith("--config.train.microbatches") and int(said.rpartition("=")[2]) in (
        2,
        4,
        8,
        16,
    )


@pytest.mark.parametrize(
    "topology", ["v9:2x2", "v3", "v3:2-2", "gpu:8xH900", "gpu:0xH100", "gpu:H100", "", "v5e:2x4; rm"]
)
def test_a_wrong_topology_is_one_line(topology):
    with pytest.raises(InputError, match=rf"--topology={topology}: "):
        preflight.topology(topology)


def run(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "star_jax.preflight", *args]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, timeout=300, check=False)


def test_the_command():
    done = run("--config=configs/commonsense_qa_gptj.py", "--topology=gpu:1xT4")
    assert done.returncode == 1 and done.stdout.splitlines()[-1] == "does not fit", done.stderr
    done = run("--config=configs/commonsense_qa_gptj.py")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1) and "give --topology" in done.stderr


def test_a_tpu_that_is_not_there():
    """The real compiler, where libtpu is installed: a small model for two topologies of different chips."""
    pytest.importorskip("libtpu", reason="the TPU compiler needs libtpu (the extra `preflight`)")
    small = [
        f"--config.model.{name}={n}"
        for name, n in dict(n_layers=2, d_model=256, n_heads=8, d_mlp=512, rotary_dim=32).items()
    ]
    small += ["--config.model.vocab_size=50304", "--config.sampling.slots=16", "--prefix_tokens=128"]
    done = run("--config=configs/commonsense_qa_gptj.py", "--topology=v3:2x2", *small)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "8 x TPU v3 of 16 GiB; compiled" in done.stdout and "a decode step: " in done.stdout


def test_a_train_step_has_splash_attention_where_the_chip_takes_it():
    pytest.importorskip("libtpu", reason="the TPU compiler needs libtpu (the extra `preflight`)")
    sizes = dict(n_layers=2, d_model=256, n_heads=2, d_mlp=512, rotary_dim=32)
    settings = gptj(**{f"model__{name}": n for name, n in sizes.items()}, train__row_tokens=256, mesh__data=1)
    for topology, kernel in (("v5e:2x4", True), ("v3:2x2", False)):
        mesh = sharding.make_mesh(settings.mesh, preflight.topology(topology).devices)
        program = preflight.lower_train_step(settings, mesh)
        assert ("splash" in program.as_text()) == kernel
        assert program.compile().memory_analysis().temp_size_in_bytes > 0
