"""A run with star.keep_weights whose old iterations have lost their weights, and now lose another file too."""

import json
import shutil
from pathlib import Path

import pytest

from star_jax import report
from star_jax.algorithms import star
from star_jax.config import Config
from star_jax.errors import InputError
from star_jax.weights import checkpoint
from tests.support.advice import follow_advice
from tests.support.runs import small_config

OLD = 2  # its weights and those of the iteration before are gone


def run_of_three(base: Path, workdir: Path, restart_from: str) -> Config:
    changes = dict(iterations=3, keep_weights=1, steps=3, restart_from=restart_from)
    config = small_config(base__path=str(base), **{f"star__{name}": value for name, value in changes.items()})
    star.run(config, workdir)
    for n in (1, 2):  # one of them may be the best, whose weights stay
        shutil.rmtree(workdir / f"iter_00{n}/params", ignore_errors=True)
    return config


def results(workdir: Path) -> dict[str, bytes | str]:
    """The records and figures of all iterations byte for byte, and the fingerprints of the weights."""
    values: dict[str, bytes | str] = {
        str(path.relative_to(workdir)): path.read_bytes()
        for path in workdir.glob("iter_*/*")
        if path.suffix in (".json", ".jsonl", ".safetensors") and path.stem not in ("checksums", "finetune")
    }
    for path in workdir.glob("iter_*/finetune.json"):
        values[str(path.relative_to(workdir))] = json.loads(path.read_text())["weights"]
    return values


def lose(config: Config, workdir: Path, name: str) -> None:
    """Damages a file of the old iteration, and runs and follows the advice until the run ends."""
    path = workdir / f"iter_00{OLD}" / name
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError) as caught:
        star.run(config, workdir)
    assert str(caught.value).startswith(str(path)) and not follow_advice(workdir, str(caught.value))
    assert not path.exists()
    star.run(config, workdir)


@pytest.mark.parametrize(
    ("restart_from", "names"),
    [
        ("base", ("filter.json", "samples.jsonl")),
        *(
            pytest.param(restart_from, None, marks=pytest.mark.slow, id=f"{restart_from} every file")
            for restart_from in ("base", "previous")
        ),
    ],
)
def test_what_a_message_advises_works_although_old_weights_are_gone(base, tmp_path, monkeypatch, restart_from, names):
    monkeypatch.setattr(report, "write", lambda _: tmp_path)  # plotting would take half of the time
    workdir = tmp_path / "run"
    config = run_of_three(base, workdir, restart_from)
    undisturbed = results(workdir)
    files = sorted(path.name for path in (workdir / f"iter_00{OLD}").glob("*.*") if path.name != "checksums.json")
    assert len(files) == 11 and {f"iter_00{OLD}/{name}" for name in files} <= undisturbed.keys()
    for name in names or files:
        lose(config, workdir, name)
        assert results(workdir) == undisturbed, name
        kept = {n for n in (1, 2, 3) if checkpoint.exists(workdir / f"iter_00{n}/params")}
        assert kept - {best(workdir)} == {3}, name
        assert all((workdir / f"iter_00{n}/DONE").exists() for n in range(4))
    model = workdir / "iter_003/params"
    (model / "model.json").write_bytes((model / "model.json").read_bytes()[:-9])
    with pytest.raises(InputError) as caught:
        checkpoint.load_model(model)
    assert not follow_advice(workdir, str(caught.value)) and not model.exists() and not (model / "../DONE").exists()
    star.run(config, workdir)
    assert results(workdir) == undisturbed and checkpoint.load_model(model)


def best(workdir: Path) -> int:
    accuracies = [json.loads((workdir / f"iter_00{n}/eval_dev.json").read_text())["accuracy"] for n in range(4)]
    return accuracies.index(max(accuracies))


def test_an_iteration_that_was_drawn_from_other_weights_is_refused(base, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "write", lambda _: tmp_path)
    workdir = tmp_path / "run"
    options = dict(base__path=str(base), star__steps=3)
    star.run(small_config(**options, star__iterations=1), workdir)
    shutil.copytree(workdir / "iter_001", workdir / "iter_002")
    with pytest.raises(InputError, match="were drawn from the weights") as caught:
        star.run(small_config(**options, star__iterations=2), workdir)
    assert str(caught.value).startswith(str(workdir / "iter_002/filter.json"))
    assert not follow_advice(workdir, str(caught.value))
    star.run(small_config(**options, star__iterations=2), workdir)
    drawn_from = json.loads((workdir / "iter_002/filter.json").read_text())["sampled_from"]
    assert drawn_from == json.loads((workdir / "iter_001/finetune.json").read_text())["weights"]
