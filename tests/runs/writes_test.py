"""Every write of a run, and of the commands next to it, goes through the run directory (and its lock) or Orbax."""

import json
import os
import subprocess
import sys

import pytest

from tests.support.commands import ROOT
from tests.support.runs import small_config

# Python reports to an audit hook each file that it opens and each name that it creates, changes or removes. Writes of
# TensorStore, for Orbax, are native and not reported; nothing else here writes natively. Callers are known by the names
# of their modules: the folder of the clone, or of the environment, may be called anything.
WATCHED = """
import json, os, sys

workdir, seen = os.path.realpath(sys.argv[2]), {}
EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.utime",
          "shutil.rmtree", "shutil.copyfile", "shutil.move", "tempfile.mkstemp", "tempfile.mkdtemp"}

def writes(event, args):
    if event == "open":
        mode, flags = args[1], args[2]
        return any(c in (mode or "") for c in "wax+") or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event in EVENTS

def callers():
    frame, names = sys._getframe(2), set()
    while frame:
        names.add(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
    return sorted(names)

def watch(event, args):
    if (event == "open" or event in EVENTS) and writes(event, args):
        paths = [os.path.realpath(os.fsdecode(a)) for a in args[:2] if isinstance(a, (str, bytes, os.PathLike))]
        if any(path.startswith(workdir) for path in paths):
            seen.setdefault(os.path.relpath(paths[0], workdir), set()).add((event, *callers()))

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
WRITERS = {"star_jax.runs.run_directory", "star_jax.runs.atomic_files", "star_jax.runs.lock"}
TENSORBOARD = "events.out.tfevents."  # tensorboardX writes these


def strays(calls_of: dict[str, list[list[str]]]) -> list[str]:
    """The events by other writers: event, file, and our modules among the callers."""
    wrong = []
    for name, calls in calls_of.items():
        for event, *modules in calls:
            ours = [module for module in modules if module.split(".")[0] == "star_jax"]
            # The stack of a thread that Orbax starts shows neither Orbax nor us.
            orbax_thread = not ours and any(part in name for part in ("weights", "train_state"))
            orbax = orbax_thread or any(module.split(".")[0] == "orbax" for module in modules)
            if not (orbax or name.startswith(TENSORBOARD) or WRITERS & set(modules)):
                wrong.append(f"{event} {name}: {ours}")
    return wrong


def watched(program: str, *arguments: str) -> dict[str, list[list[str]]]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
    command = [sys.executable, "-c", WATCHED % program, *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_write_goes_through_the_run_directory_or_orbax(base, tmp_path):
    config = small_config(base__path=str(base), star__keep_weights=1, train__checkpoint_every=3, tensorboard=True)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    calls = watched(RUN, str(tmp_path / "config.json"), str(tmp_path / "run"))
    assert strays(calls) == []
    written = "LOCK", "config.json.tmp", "metrics.jsonl", "iter_001/samples.jsonl.part", "iter_002/kept.jsonl.tmp"
    for name in (*written, "iter_001/samples.safetensors.tmp", "report.html.tmp", "audit.txt.tmp"):
        assert name in calls, sorted(calls)
    assert any("train_state" in name for name in calls) and any(name.startswith(TENSORBOARD) for name in calls)


def test_stray_writes_would_be_seen(tmp_path):
    strange = (
        "import pathlib; w = pathlib.Path(workdir); w.mkdir(); (w / 'x').write_text(''); os.rename(w / 'x', w / 'y')"
    )
    calls = strays(watched(strange + "; open(w / 'y', 'r+b'); os.remove(w / 'y')", "", str(tmp_path / "run")))
    assert [call.split(":")[0] for call in calls] == ["os.mkdir .", "open x", "os.rename x", "open y", "os.remove y"]
