"""A disk that fills up, a real one of some megabytes: one line, nothing half-written, and on it goes with more room."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from star_jax.algorithms import star
from tests.support.runs import small_config

ROOT = Path(__file__).parents[2]
ROOMY = 64  # MiB, more than a run takes
RUN = """
import json, os, sys
from pathlib import Path
from star_jax import config
from star_jax.algorithms import star
sys.stderr = os.fdopen(os.dup(2), "w", buffering=1)  # as main has it
from star_jax.cli.parser import exit_on_bad_input
exit_on_bad_input(lambda: star.run(config.from_dict(json.loads(Path(sys.argv[1]).read_text())), sys.argv[2]))
"""


@pytest.fixture
def disk(tmp_path):
    """(a mounted file system, how to give it another size in KiB)."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(*options: str) -> bool:
        command = ["mount", "-t", "tmpfs", *options, "tmpfs", str(place)]
        return bool(shutil.which("mount")) and not subprocess.run(command, capture_output=True).returncode

    if not mount("-o", f"size={ROOMY}m"):
        pytest.skip("may not mount a file system here (needs root)")
    yield place, lambda kib: mount("-o", f"remount,size={kib}k")
    subprocess.run(["umount", "-l", str(place)], check=True)


def results(workdir):
    """What a run found out, byte for byte."""
    names = ("samples.jsonl", "rationalizations.jsonl", "kept.jsonl", "filter.json", "eval_dev.json")
    return {path.relative_to(workdir): path.read_bytes() for name in names for path in workdir.rglob(name)}


def test_a_run_goes_on_once_there_is_room(disk, tmp_path):
    """The disk is a little larger each time, so that it is full at another write: weights, samples, checkpoints."""
    place, resize = disk
    star.run(small_config(star__iterations=0), tmp_path / "base_run")
    config = small_config(
        base__path=str(tmp_path / "base_run/base"), base__stages=(), star__iterations=1, train__checkpoint_every=3
    )
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}

    def run(workdir):
        return subprocess.run([sys.executable, "-c", RUN, file, workdir], env=env, capture_output=True, text=True)

    assert run(tmp_path / "roomy").returncode == 0
    workdir, refusals, kib = place / "run", 0, 32
    while True:
        assert resize(kib) and kib < 1024 * ROOMY
        done = run(workdir)
        if done.returncode == 0:
            break
        refusals += 1
        assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[:1500]
        line = done.stderr.splitlines()[-1]
        assert line.startswith("star_jax: ") and "cannot be written" in line and str(workdir) in line, line
        kib = max(kib, shutil.disk_usage(place).used // 1024) + 160
    assert refusals >= 3
    assert results(workdir) == results(tmp_path / "roomy")
    assert not list(workdir.rglob("*.tmp")) and not list(workdir.rglob("*.part"))
