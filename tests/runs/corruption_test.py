"""Every kind of file a run leaves, damaged in every way: the same result, or one line that says how to go on."""

import re
import shutil
from pathlib import Path

import pytest

from star_jax.algorithms import star
from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.training import fine_tune, step
from tests.support.runs import assert_same_result, small_config

CHANGES = dict(train__checkpoint_every=2, star__steps=6, star__problems_per_iteration=40, sampling__queue=16)
FILES = {
    "drawing": (
        "config.json",
        "provenance.json",
        "problems_train.jsonl",
        "checksums.json",
        "base/model.json",
        "base/checksums.json",
        "base/weights",
        "iter_001/samples.jsonl",
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
        "iter_002/kept.jsonl",
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


def delete(path: Path) -> None:
    """The file, or the whole directory."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def duplicate(path: Path) -> None:
    """Its middle line comes twice."""
    lines = largest(path).read_bytes().split(b"\n")
    lines.insert(len(lines) // 2, lines[(len(lines) - 1) // 2])
    largest(path).write_bytes(b"\n".join(lines))


CASES = [(stop, name, damage) for stop, names in FILES.items() for name in names for damage in (flip, truncate, delete)]
CASES += [(stop, name, duplicate) for stop, names in FILES.items() for name in names if ".jsonl" in name]


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("corruption_base")
    star.run(small_config(star__iterations=0), workdir)
    return small_config(base__path=str(workdir / "base"), base__stages=(), **CHANGES)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """The run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("corruption_whole")
    star.run(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def stopped(config, tmp_path_factory) -> dict[str, Path]:
    """The same, stopped in its second iteration: behind a chunk of samples; behind three checkpoints of training."""
    found = {}
    for name in FILES:
        found[name] = tmp_path_factory.mktemp(f"corruption_{name}")
        with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
            (stop_drawing if name == "drawing" else stop_training)(patch, found[name])
            star.run(config, found[name])
    assert (found["drawing"] / "iter_002/samples.jsonl.part").stat().st_size
    assert {p.name for p in (found["training"] / "iter_002/train_state").iterdir()} == {"4", "6"}
    return found


def stop_drawing(patch, workdir: Path) -> None:
    def check() -> None:
        if (workdir / "iter_002/samples.jsonl.part").exists():
            raise KeyboardInterrupt

    patch.setattr(processes, "check_stop", check)


def stop_training(patch, workdir: Path) -> None:
    train_step = step.train_step

    def interrupted_step(model, optimizer, state, *rest):
        if int(state.step) == 6 and (workdir / "iter_002").exists():
            raise KeyboardInterrupt
        return train_step(model, optimizer, state, *rest)

    patch.setattr(fine_tune, "train_step", interrupted_step)


def take_advice(workdir: Path, line: str) -> bool:
    """Does what the line says; returns whether that is to allow changes."""
    if "--allow_changes" in line:
        return True
    named = re.search(r"delete (/\S+)", line) or re.match(r"(/\S+?)(:\d+)?: ", line)
    assert named and "delete" in line, line
    path = Path(named[1])
    assert path.exists() and workdir in path.parents, line
    delete(path)
    return False


@pytest.mark.parametrize(("stop", "name", "damage"), CASES, ids=[f"{n} {d.__name__}" for _, n, d in CASES])
def test_damage_is_mended_or_named(stop, name, damage, config, whole, stopped, tmp_path, monkeypatch):
    monkeypatch.setattr(star, "_report", lambda _: tmp_path)  # drawing figures would take half of the time
    workdir = tmp_path / "run"
    shutil.copytree(stopped[stop], workdir)
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
            allow = take_advice(workdir, line)
    else:
        pytest.fail(f"three times advised, and not mended: {line}")
    assert_same_result(whole, workdir)
