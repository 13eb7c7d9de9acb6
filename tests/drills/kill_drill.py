"""Kills a run again and again, starts it again, and compares all it leaves with a run that nobody disturbed.

    python tests/drills/kill_drill.py [--kills=200] [--seed=0] [--keep=DIR]

The run is the command line's, on the addition demo with a small model, small data and two iterations. A kill is

    SIGKILL at a moment   at random within a stage: sampling, rationalizing, fine-tuning, evaluating
    SIGTERM at a moment   the same; the process must store what it has, say so in a line and exit with 0 within 30 s
    crash at a file       SIGKILL by itself in front of its n-th operation on files (os.replace, os.fsync, rename,
                          mkdir, unlink, rmtree, ...), Orbax's included, n at random

A run that has been killed --between times is left in peace and finishes. Then every file is compared, weights included,
byte for byte; only times and seconds may differ. The exit status is 1 if anything does.
"""

import argparse
import collections
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SMALL = [
    "tokenizer=symbols",
    "tensorboard=False",
    "task.max_digits=2",
    "task.train_per_length=60",
    "task.held_out_per_length=12",
    "model.n_layers=1",
    "model.d_model=32",
    "model.n_heads=4",
    "model.d_mlp=64",
    "model.rotary_dim=8",
    "model.scan_unroll=1",
    "train.batch_rows=8",
    "train.row_tokens=64",
    "train.checkpoint_every=5",
    "train.log_every=2",
    "sampling.slots=8",
    "sampling.queue=16",
    "sampling.max_new_tokens=48",
    "star.iterations=2",
    "star.steps=40",
    "star.problems_per_iteration=100",
    "optimizer.warmup_steps=5",
]
STAGES = ("sample", "rationalize", "fine_tune", "evaluate")
PATIENCE = 600  # seconds for a run that nobody disturbs
# Dies in front of an operation on files. It stands around the program, which knows nothing of it.
CRASHING = """
import atexit, os, shutil, signal, sys
left = int(os.environ["CRASH_AT"])  # negative: never, but say at the end how many there were
atexit.register(lambda: print("operations:", int(os.environ["CRASH_AT"]) - left, flush=True))

def guarded(function):
    def operate(*args, **named):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **named)
    return operate

from star_jax import main
from star_jax.errors import exit_on_bad_input
for module, names in ((os, "replace rename fsync mkdir unlink remove rmdir ftruncate".split()), (shutil, ["rmtree"])):
    for name in names:
        setattr(module, name, guarded(getattr(module, name)))
sys.argv[0] = "star_jax"
exit_on_bad_input(main.main)
"""


def main() -> int:
    """Prints the table; 1 if a run came out otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--between", type=int, default=8, help="kills of one run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default="", help="where the runs' directories are to stay")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return Drill(args, Path(args.keep or scratch)).run()


class Drill:
    """All of it: the base, the undisturbed run, the killed ones."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.random = args, folder, random.Random(args.seed)
        self.kills: collections.Counter[tuple[str, str]] = collections.Counter()
        self.missed = 0  # the run was over, or the stage, before the signal
        self.slowest_stop, self.started = 0.0, time.monotonic()
        self.base = folder / "base_run" / "base"
        folder.mkdir(parents=True, exist_ok=True)

    def run(self) -> int:
        self.finish(self.folder / "base_run", "base.stages=({'steps':150,'learning_rate':0.01,'gold':(0.7,0.1)},)",
                    "base.examples=400", "star.iterations=0")  # fmt: skip
        whole = self.folder / "whole"
        self.finish(whole)
        expected, differing, number = contents(whole), 0, 0
        counting = self.start(self.folder / "counted", CRASH_AT="-1")
        assert self.wait(counting) == 0, counting.said.read_text()[-2000:]
        operations = int(counting.said.read_text().rpartition("operations:")[2])
        assert not differences(expected, contents(self.folder / "counted")), "two undisturbed runs differ"
        print(f"undisturbed: {len(expected)} files, {operations} operations on files", flush=True)
        while sum(self.kills.values()) < self.args.kills:
            number += 1
            workdir = self.folder / f"killed_{number}"
            for _ in range(min(self.args.between, self.args.kills - sum(self.kills.values()))):
                if (workdir / "iter_002/DONE").exists():
                    break
                self.kill(workdir, operations)
            self.finish(workdir)
            wrong = differences(expected, contents(workdir))
            differing += bool(wrong)
            print(f"run {number}: {sum(self.kills.values())} kills so far: {wrong or 'no difference'}", flush=True)
        self.table(number, differing)
        return int(differing > 0)

    def kill(self, workdir: Path, operations: int) -> None:
        kind = self.random.choice(["SIGKILL"] * 3 + ["SIGTERM", "crash"])
        if kind == "crash":
            process = self.start(workdir, CRASH_AT=str(self.random.randint(1, operations)))
            if self.wait(process) == -signal.SIGKILL:
                self.kills["crash", "a file"] += 1
            else:
                self.missed += 1
            return
        stage, process = self.random.choice(STAGES), self.start(workdir)
        deadline = time.monotonic() + PATIENCE
        while stage_of(workdir) != stage and process.poll() is None:
            assert time.monotonic() < deadline, f"{workdir}: {stage} never came"
            time.sleep(0.002)
        time.sleep(self.random.random() * 0.5)
        at = stage_of(workdir)
        process.send_signal(getattr(signal, kind))
        sent = time.monotonic()
        status, said = self.wait(process), process.said.read_text(errors="replace")
        if kind == "SIGKILL" and status == -signal.SIGKILL:
            self.kills[kind, at] += 1
        elif kind == "SIGTERM" and status == -signal.SIGTERM:  # it had not begun to listen: nothing was under way
            self.kills[kind, "start"] += 1
        elif kind == "SIGTERM" and "told to stop" in "".join(said.splitlines()[-1:]) and status == 0:
            self.kills[kind, at] += 1
            self.slowest_stop = max(self.slowest_stop, time.monotonic() - sent)
        elif status == 0:
            self.missed += 1
        else:
            raise SystemExit(f"{workdir}: {kind} in {at} ended with status {status}: {said[-2000:]}")

    def start(self, workdir: Path, *overrides: str, **env: str) -> "Process":
        given = [*SMALL, *(overrides or [f"base.path={self.base}"])]
        flags = ["--config=configs/arithmetic.py", f"--workdir={workdir}", *(f"--config.{name}" for name in given)]
        program = ["-c", CRASHING] if env else ["-m", "star_jax.main"]
        return Process([sys.executable, *program, *flags], Path(f"{workdir}.log"), env)

    def wait(self, process: "Process") -> int:
        return process.wait(timeout=PATIENCE)

    def finish(self, workdir: Path, *overrides: str) -> None:
        process = self.start(workdir, *overrides)
        if status := self.wait(process):
            raise SystemExit(f"{workdir}: ended with status {status}: {process.said.read_text()[-2000:]}")

    def table(self, runs: int, differing: int) -> None:
        kinds = sorted({kind for kind, _ in self.kills})
        stages = sorted({stage for _, stage in self.kills})
        print(f"{'killed in':16}" + "".join(f"{kind:>9}" for kind in kinds))
        for stage in stages:
            print(f"{stage:16}" + "".join(f"{self.kills[kind, stage]:9}" for kind in kinds))
        print(
            f"{sum(self.kills.values())} kills of {runs} runs, {self.missed} more too late; {differing} runs differ; "
            f"slowest answer to SIGTERM {self.slowest_stop:.1f} s; {time.monotonic() - self.started:.0f} s in all"
        )


class Process(subprocess.Popen):
    """The program, what it says being written to a file."""

    def __init__(self, command: list[str], said: Path, env: dict[str, str]) -> None:
        self.said = said
        with open(said, "wb") as log:
            super().__init__(
                command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": str(ROOT), **env}
            )


def stage_of(workdir: Path) -> str:
    """Where a run stands, by its files."""
    for n in (1, 2):
        folder = workdir / f"iter_{n:03d}"
        if (folder / "DONE").exists():
            continue
        if not (workdir / "iter_000/DONE").exists():
            return "evaluate base" if (workdir / "base/model.json").exists() else "base"
        if not (folder / "samples.jsonl").exists():
            return "sample"
        if not (folder / "kept.jsonl").exists():
            return "rationalize"
        if not (folder / "params").exists():
            return "fine_tune"
        return "evaluate"
    return "over"


def contents(workdir: Path) -> dict[str, Any]:
    """Name -> what a file holds, without times. Of weights the bytes count, not how Orbax laid them out."""
    from star_jax import checkpoint

    found: dict[str, Any] = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if path.is_dir() or "/weights/" in name or name in ("LOCK", "report.html", "metrics.jsonl"):
            continue
        text = path.read_text()
        if name == "config.json":
            text = text.replace(str(workdir), "")
        if path.name in ("DONE", "finetune.json"):
            text = re.sub(r'("seconds": )?\b\d{10}\n|"seconds": [\d.]+', "", text)
        found[name] = text
        if path.name == "model.json":
            params = checkpoint.load_model(path.parent)[1]
            digest = hashlib.sha256(b"".join(bytes(leaf.tobytes()) for leaf in leaves(params))).hexdigest()
            found[f"{name}'s weights"] = digest
            assert json.loads(text)["fingerprint"] == checkpoint.fingerprint(params), f"{path}: not its weights"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    found["losses"] = {(v["iteration"], v["step"]): v["loss"] for v in lines if v["stage"] == "fine_tune"}
    return found


def leaves(params: Any) -> list[Any]:
    import jax
    import numpy as np

    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Names that are missing, new or other."""
    return sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))


if __name__ == "__main__":
    sys.exit(main())
