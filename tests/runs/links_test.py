"""Writes into a run directory never change a file outside of it: a received run may hold links of any kind."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from star_jax.errors import InputError
from star_jax.records import Completion, Verdict
from star_jax.report.browser import blocks
from star_jax.report.marks import audit_file
from star_jax.runs import atomic_files
from star_jax.runs.lock import Lock
from star_jax.runs.metrics import MetricsLog
from star_jax.runs.run_directory import RunDirectory
from star_jax.tasks import few_shot
from star_jax.weights import orbax_tree, train_state

CONTENT = "not the run's\n"


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder that is not the run's, with a file that no write may change."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "file").write_text(CONTENT)
    return folder


def untouched(outside: Path) -> bool:
    return (outside / "file").read_text() == CONTENT and [path.name for path in outside.iterdir()] == ["file"]


def opened(workdir: Path) -> None:
    run_dir = RunDirectory(workdir)
    run_dir.open({"seed": 0})
    run_dir.close()


def sampled(workdir: Path) -> None:
    stage = RunDirectory(workdir).unfinished_stage(workdir / "iter_001" / "samples.jsonl")
    stage.load()
    stage.append([Completion("1", 1, 0, False, "x", "x", Verdict.RIGHT, None, -1.0, 1, "s")])


WRITES = {
    "config.json.tmp": opened,
    "provenance.json.tmp": opened,
    "LOCK": lambda workdir: Lock(workdir).release(),
    "metrics.jsonl": lambda workdir: MetricsLog(workdir).log("x", 1, 1, {"loss": 1.0}),
    "iter_001/samples.jsonl.part": sampled,
    "iter_001/filter.json.tmp": lambda w: RunDirectory(w).write_json(w / "iter_001" / "filter.json", {}),
    "iter_001/filter.json": lambda w: RunDirectory(w).write_json(w / "iter_001" / "filter.json", {}),
    "iter_001/checksums.json.tmp": lambda w: RunDirectory(w).write_json(w / "iter_001" / "filter.json", {}),
    "report.html.tmp": lambda w: atomic_files.atomic_write(w / "report.html", "page", shared=True),
    "wandb_id.tmp": lambda w: atomic_files.atomic_write(w / "wandb_id", "id"),
}


@pytest.mark.parametrize("kind", ["symbolic", "hard", "dangling"])
@pytest.mark.parametrize("name", WRITES)
def test_no_write_goes_through_a_link(name, kind, outside, tmp_path):
    workdir = tmp_path / "run"
    link = workdir / name
    link.parent.mkdir(parents=True)
    if kind == "hard":
        os.link(outside / "file", link)
    else:
        link.symlink_to(outside / ("file" if kind == "symbolic" else "new"))
    try:
        WRITES[name](workdir)
    except InputError as error:
        assert "\n" not in str(error) and any(word in str(error) for word in ("link", "checksums"))
    assert untouched(outside)


PAGE = blocks.PageBlocks((), frozenset(), (blocks.Block("a", "b"),))
FOLDERS = {
    "iter_001": sampled,
    "iter_001/": lambda w: RunDirectory(w).write_json(w / "iter_001" / "filter.json", {}),
    "iter_001/x": lambda w: RunDirectory(w).discard(1, "*.json"),
    "base": lambda w: atomic_files.refuse_links(w, w / "base" / "weights"),
    "train_state": lambda w: train_state.TrainStateCheckpointer(w / "train_state").save(np.zeros(1), {}),
    "report_texts": lambda w: blocks.write_folder(PAGE, w / "report_texts"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_no_write_goes_through_a_folder_that_is_a_link(name, outside, tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / name.split("/")[0]).symlink_to(outside)
    with pytest.raises(InputError, match=r"is a symbolic link; a run writes only into its own directory"):
        FOLDERS[name](workdir)
    assert untouched(outside)


def test_nothing_behind_a_link_is_deleted(outside, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/iter_001").symlink_to(outside)
    (outside / "params").mkdir()
    (outside / "samples.jsonl.part").touch()
    run_dir = RunDirectory(tmp_path / "run")
    for delete in (
        lambda: run_dir.remove(run_dir.path(1, "params")),
        lambda: run_dir.unfinished_stage(run_dir.path(1, "samples.jsonl")).delete(),
        lambda: run_dir.discard(1, "*"),
    ):
        with pytest.raises(InputError, match="iter_001: is a symbolic link"):
            delete()
    assert {path.name for path in outside.iterdir()} == {"file", "params", "samples.jsonl.part"}


def test_a_link_inside_a_folder_that_orbax_writes_is_refused(outside, tmp_path):
    (tmp_path / "run/base/weights").mkdir(parents=True)
    (tmp_path / "run/base/weights/d").symlink_to(outside)
    with pytest.raises(InputError, match="weights/d: is a symbolic link"):
        atomic_files.refuse_links(tmp_path / "run", tmp_path / "run/base", below=True)


def test_a_workdir_that_is_a_link_is_the_users_choice(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    opened(tmp_path / "run")
    RunDirectory(tmp_path / "run").write_json(tmp_path / "run/iter_001/filter.json", {})
    assert json.loads((tmp_path / "disk/iter_001/filter.json").read_text()) == {}


def test_a_pipe_in_place_of_a_file_that_is_written_is_refused_and_not_waited_for(tmp_path):
    for name in ("LOCK", "metrics.jsonl", "report.html"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(InputError, match=f"{name}: is not a plain file"):
            WRITES[name.replace("html", "html.tmp")](tmp_path)
        assert not (tmp_path / name).is_file(), "it was replaced: as root that is what becomes of /dev/null"


def test_an_output_that_is_no_plain_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for name, kind in {"pipe": "not a plain file", "link": "a symbolic link", "": "a directory"}.items():
        with pytest.raises(InputError, match=rf"^--output={tmp_path / name}: is {kind}; give the name of a file$"):
            atomic_files.check_output(tmp_path / name)
    (tmp_path / "old").touch()
    for name in ("old", "new", "new/new"):
        atomic_files.check_output(tmp_path / name)


READS = {
    "audit.txt": lambda path: audit_file.read_file(path, path.name),
    "iter_001/samples.jsonl.part": lambda path: (
        RunDirectory(path.parents[1]).unfinished_stage(path.with_name("samples.jsonl")).load()
    ),
    "gsm8k.txt": lambda path: few_shot.load("gsm8k", 1, False, str(path.parent)),
    "weights/manifest.ocdbt": lambda path: orbax_tree.load_tree(path.parent, {}),
    "train_state/2/about": lambda path: train_state.TrainStateCheckpointer(path.parents[1]).restore({}),
}


@pytest.mark.parametrize("name", READS)
def test_a_pipe_in_place_of_a_file_that_is_read_is_refused_and_not_waited_for(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)
    with pytest.raises(InputError, match=rf"{path.name}:.*(a pipe, not a file|is not a plain file)") as error:
        READS[name](path)
    assert "\n" not in str(error.value)
