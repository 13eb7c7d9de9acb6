"""Each kind of file of a run, damaged in each way: the result is the same, or one line gives the remedy."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from star_jax import report
from star_jax.algorithms import star
from star_jax.config import Config
from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.training import fine_tune
from tests.support.advice import delete, follow_advice
from tests.support.runs import assert_same_result, small_config

CHANGES = dict(train__checkpoint_every=2, star__steps=6, star__problems_per_iteration=40, sampling__queue=16)
FILES = {
    "sampling": (
        "config.json",
        "provenance.json",
        "problems_train.jsonl",
        "checksums.json",
        "base/model.json",
        "base/checksums.json",
        "base/weights",
        "iter_001/samples.jsonl",
        "iter_001/samples.safetensors",
        "iter_001/kept.jsonl",
        "iter_001/finetune.json",
        "iter_001/eval_dev.json",
        "iter_001/params/model.json",
        "iter_001/params/weights",
        "iter_002/samples.jsonl.part",
    ),
    "training": (
        "metrics.jsonl",
        "iter_001/DONE",
        "iter_002/checksums.json",
        "iter_002/samples.jsonl",
        "iter_002/rationalizations.jsonl",
        "iter_002/rationalizations.safetensors",
        "iter_002/kept.jsonl",
        "iter_002/kept.safetensors",
        "iter_002/filter.json",
        "iter_002/train_state/6",
        "iter_002/train_state/6/state/_METADATA",
        "iter_002/train_state/6/about",
    ),
}


def largest(path: Path) -> Path:
    """The file itself, or the largest in a directory."""
    return path if path.is_file() else max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: Path) -> None:
    """One bit in the middle."""
    file = largest(path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def truncate(path: Path) -> None:
    """The second half is gone."""
    file = largest(path)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def duplicate(path: Path) -> None:
    """Its middle line comes twice."""
    lines = largest(path).read_bytes().split(b"\n")
    lines.insert(len(lines) // 2, lines[(len(lines) - 1) // 2])
    largest(path).write_bytes(b"\n".join(lines))


CASES = [(stop, name, damage) for stop, names in FILES.items() for name in names for damage in (flip, truncate, delete)]
CASES += [(stop, name, duplicate) for stop, names in FILES.items() for name in names if ".jsonl" in name]
QUICK = ("iter_002/samples.jsonl.part", truncate)


@pytest.fixture(scope="module")
def config(base) -> Config:
    return small_config(base__path=str(base), **CHANGES)


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("corruption_undisturbed")
    star.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory) -> Callable[[str], Path]:
    """The same run stopped in its second iteration: after a chunk of samples, or three checkpoints of training."""

    @functools.cache
    def make(stop: str) -> Path:
        workdir = tmp_path_factory.mktemp(f"corruption_{stop}")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            (stop_sampling if stop == "sampling" else stop_training)(patch, workdir)
            star.run(config, workdir)
        if stop == "sampling":
            assert (workdir / "iter_002/samples.jsonl.part").stat().st_size
        else:
            assert {path.name for path in (workdir / "iter_002/train_state").iterdir()} == {"4", "6"}
        return workdir

    return make


def stop_sampling(patch, workdir: Path) -> None:
    def check() -> None:
        if (workdir / "iter_002/samples.jsonl.part").exists():
            raise KeyboardInterrupt

    patch.setattr(processes, "check_stop", check)


def stop_training(patch, workdir: Path) -> None:
    train_step = fine_tune.train_step

    def interrupted_step(model, optimizer, state, *rest):
        if int(state.step) == 6 and (workdir / "iter_002").exists():
            raise KeyboardInterrupt
        return train_step(model, optimizer, state, *rest)

    patch.setattr(fine_tune, "train_step", interrupted_step)


@pytest.mark.parametrize(
    ("stop", "name", "damage"),
    [
        pytest.param(*case, id=f"{case[1]} {case[2].__name__}", marks=[] if case[1:] == QUICK else pytest.mark.slow)
        for case in CASES
    ],
)
def test_damage_is_repaired_or_named(stop, name, damage, config, undisturbed, stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", lambda _: tmp_path)  # plotting would take half of the time
    workdir = tmp_path / "run"
    shutil.copytree(stopped(stop), workdir)
    damage(workdir / name)
    allow = False
    for _ in range(3):
        try:
            star.run(config, workdir, allow_changes=allow)
            break
        except InputError as error:
            line = str(error)
            assert "\n" not in line and str(workdir) in line, line
            print(line)
            allow = follow_advice(workdir, line)
    else:
        pytest.fail(f"not repaired after three times of following the advice: {line}")
    assert_same_result(undisturbed, workdir)
