"""Every write of a run, and of the commands that write beside it, goes through the run_dir (and its lock) or Orbax."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from star_jax.algorithms import star
from tests.support.runs import small_config

ROOT = Path(__file__).parents[2]
# Python tells an audit hook of every file it opens and every name it makes, changes or removes. What Orbax has
# TensorStore write is native, and not told; nothing else here writes natively.
WATCHED = """
import json, os, sys, traceback

workdir, seen = os.path.realpath(sys.argv[2]), {}
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.utime",
          "shutil.rmtree", "shutil.copyfile", "shutil.move", "tempfile.mkstemp", "tempfile.mkdtemp"}

def writes(event, args):
    if event == "open":
        mode, flags = args[1], args[2]
        return any(c in (mode or "") for c in "wax+") or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in EVENTS

def watch(event, args):
    if (event == "open" or event in EVENTS) and writes(event, args):
        paths = [os.path.realpath(os.fsdecode(a)) for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))]
        if any(path.startswith(workdir) for path in paths):
            frames = traceback.extract_stack()
            seen.setdefault(os.path.relpath(paths[0], workdir), set()).add(
                (event, *sorted({frame.filename for frame in frames}))
            )

sys.addaudithook(watch)
%s
print(json.dumps({name: sorted(by) for name, by in seen.items()}))
"""
RUN = """
from star_jax import config, evaluate, report
from star_jax.algorithms import star
from star_jax.audit import __main__ as audit
star.run(config.from_dict(json.loads(open(sys.argv[1]).read())), workdir)
report.write(workdir)
sys.argv[1:] = [f"--workdir={workdir}", "--split=train", "--iteration=2"]
evaluate.main()
sys.argv[1:] = [f"--workdir={workdir}"]
audit.main()
"""
THROUGH = ("star_jax/runs/run_directory.py", "star_jax/runs/atomic_files.py", "star_jax/runs/lock.py", "/orbax/")
TENSORBOARD = "events.out.tfevents."  # its own library writes these


def strays(found: dict[str, list[list[str]]]) -> list[str]:
    """What was written otherwise, and by whom."""
    wrong = []
    for name, calls in found.items():
        for event, *files in calls:
            ours = [file for file in files if "star_jax/" in file]
            # Of what Orbax hands to other threads the stack shows neither it nor us.
            by_orbax = not ours and any(part in name for part in ("weights", "train_state"))
            if not (by_orbax or name.startswith(TENSORBOARD) or any(p in file for file in files for p in THROUGH)):
                wrong.append(f"{event} {name}: {ours}")
    return wrong


def watched(program: str, *arguments) -> dict[str, list[list[str]]]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "-c", WATCHED % program, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("writes")
    star.run(small_config(star__iterations=0), folder / "base_run")
    config = small_config(
        base__path=str(folder / "base_run/base"), base__stages=(), star__iterations=2, star__keep_weights=1,
        train__checkpoint_every=3, tensorboard=True,
    )  # fmt: skip
    path = folder / "config.json"
    path.write_text(json.dumps(config.to_dict()))
    return path


def test_every_write_goes_through_the_ledger_or_orbax(file, tmp_path):
    found = watched(RUN, file, tmp_path / "run")
    assert strays(found) == []
    written = "LOCK", "config.json.tmp", "metrics.jsonl", "iter_001/samples.jsonl.part", "iter_002/kept.jsonl.tmp"
    for name in (*written, "report.html.tmp", "audit.txt.tmp"):
        assert name in found, sorted(found)
    assert any("train_state" in name for name in found) and any(name.startswith(TENSORBOARD) for name in found)


def test_stray_writes_would_be_seen(tmp_path):
    strange = (
        "import pathlib; w = pathlib.Path(workdir); w.mkdir(); (w / 'x').write_text(''); os.rename(w / 'x', w / 'y')"
    )
    calls = strays(watched(strange + "; open(w / 'y', 'r+b'); os.remove(w / 'y')", "", tmp_path / "run"))
    assert [call.split(":")[0] for call in calls] == ["os.mkdir .", "open x", "os.rename x", "open y", "os.remove y"]
