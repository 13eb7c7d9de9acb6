"""Kills a run again and again, starts it again, and compares all it leaves with a run that nobody disturbed.

    python tests/drills/kill_drill.py [--kills=200] [--processes=1] [--seed=0] [--keep=DIR]

The run is the command line's, on the addition demo with a small model, small data and two iterations. A kill is

    SIGKILL at a moment   at random within a stage's work: sampling, rationalizing, fine-tuning, evaluating; three of
                          ten kills each in the first, the third and the fourth
    SIGTERM at a moment   the same; the process must store what it has, say so in a line and exit with 0 within 30 s
    crash at a file       SIGKILL by itself in front of its n-th operation on files (os.replace, os.fsync, rename,
                          mkdir, unlink, rmtree, ...), Orbax's included, n at random

With --processes=2 two processes are the run, and a kill takes one of them, or both: the other must end by itself.

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
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from star_jax.weights import fingerprint

ROOT = Path(__file__).parents[2]
SMALL = [
    "tokenizer=symbols",
    "tensorboard=False",
    "task.max_digits=2",
    "task.train_per_length=60",
    "task.held_out_per_length=60",
    "model.n_layers=1",
    "model.d_model=32",
    "model.n_heads=4",
    "model.d_mlp=64",
    "model.rotary_dim=8",
    "model.scan_unroll=1",
    "train.batch_rows=8",
    "train.row_tokens=64",
    "train.checkpoint_every=8",
    "train.log_every=2",
    "sampling.slots=8",
    "sampling.queue=16",
    "sampling.max_new_tokens=48",
    "star.iterations=2",
    "star.steps=24",
    "star.problems_per_iteration=100",
    "optimizer.warmup_steps=5",
]
STAGES = ("sample", "rationalize", "fine_tune", "evaluate")
MOSTLY = ("sample", "fine_tune", "evaluate")  # where three tenths of the kills each are SIGKILL
OF_TWO = ("the first", "the second", "both")
ALL_DIED = (0, 3)  # what is left of two ends with: it was over already, or says that the other died
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
from star_jax.cli.parser import exit_on_bad_input
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
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
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
        self.plan = self.of_two() if args.processes == 2 else self.of_one()
        folder.mkdir(parents=True, exist_ok=True)

    def of_one(self) -> list[tuple[str, str]]:
        """(kind, stage or "" for any) of all kills that are to come."""
        each = int(0.3 * self.args.kills)
        others = [("crash", ""), ("SIGTERM", "")] * self.args.kills
        return [("SIGKILL", stage) for stage in MOSTLY] * each + others[: max(0, self.args.kills - 3 * each)]

    def of_two(self) -> list[tuple[str, str]]:
        return ([(kind, "") for kind in (*OF_TWO, "SIGTERM")] * self.args.kills)[: self.args.kills]

    def run(self) -> int:
        self.finish(self.folder / "base_run", "base.stages=({'steps':150,'learning_rate':0.01,'gold':(0.7,0.1)},)",
                    "base.examples=400", "star.iterations=0")  # fmt: skip
        whole = self.folder / "whole"
        self.lengths = self.timed(whole)
        expected, differing, number = contents(whole), 0, 0
        operations = self.count_operations(expected) if self.args.processes == 1 else 0
        lengths = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.lengths.items())
        print(f"undisturbed: {len(expected)} files, {operations} operations on files, seconds: {lengths}", flush=True)
        while self.plan:
            number += 1
            workdir = self.folder / f"killed_{number}"
            for _ in range(self.args.between):
                if not self.plan or (workdir / "iter_002/DONE").exists():
                    break
                self.kill(workdir, operations)
            self.finish(workdir)
            wrong = differences(expected, contents(workdir))
            differing += bool(wrong)
            print(f"run {number}: {self.killed()} kills so far: {wrong or 'no difference'}", flush=True)
        self.table(number, differing)
        return int(differing > 0)

    def killed(self) -> int:
        return sum(self.kills.values())

    def timed(self, workdir: Path) -> dict[str, float]:
        """Lets a run finish in peace; the seconds of its stages in the longer of its iterations."""
        lengths: dict[str, float] = {}
        process, stage, since = self.start(workdir), "", time.monotonic()
        while process.poll() is None:
            if (now := stage_of(workdir)) != stage:
                lengths[stage] = max(lengths.get(stage, 0.0), time.monotonic() - since)
                stage, since = now, time.monotonic()
            time.sleep(0.01)
        assert process.wait() == [0] * self.args.processes, process.tail()
        return {name: lengths[name] for name in STAGES}

    def count_operations(self, expected: dict[str, Any]) -> int:
        process = self.start(self.folder / "counted", CRASH_AT="-1")
        assert process.wait() == [0], process.tail()
        assert not differences(expected, contents(self.folder / "counted")), "two undisturbed runs differ"
        return int(process.said[0].read_text().rpartition("operations:")[2])

    def kill(self, workdir: Path, operations: int) -> None:
        """One of the kills that are to come; it stays on the plan if it came too late, or in another stage."""
        kind, stage = self.random.choice(self.plan)
        if kind == "crash":
            process = self.start(workdir, CRASH_AT=str(self.random.randint(1, operations)))
            at = "a file" if process.wait() == [-signal.SIGKILL] else ""
        else:
            at = self.signal(workdir, stage or self.random.choice(STAGES), kind)
        if at:
            self.kills[kind, at] += 1
        else:
            self.missed += 1
        if at and stage in ("", at):
            self.plan.remove((kind, stage))

    def signal(self, workdir: Path, stage: str, kind: str) -> str:
        """Starts the run and sends the signal at a moment of a stage's work; where it was then, "" if it was over."""
        before = holder(workdir)
        process = self.start(workdir)
        deadline = time.monotonic() + PATIENCE
        # By its files alone a run is in its stage while it is still being loaded: it is at work when it has the lock.
        while (holder(workdir) == before or stage_of(workdir) != stage) and process.poll() is None:
            assert time.monotonic() < deadline, f"{workdir}: {stage} never came: {process.tail()}"
            time.sleep(0.002)
        time.sleep(self.random.random() * (self.lengths[stage] + 0.5))  # a stage that is gone on with begins by loading
        at = stage_of(workdir)
        chosen = {"the first": [0], "the second": [1]}.get(kind, list(range(self.args.processes)))
        process.send(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL, chosen)
        sent = time.monotonic()
        statuses = process.wait()
        if not any(statuses) and "stopped as requested" not in process.tail():
            return ""
        if kind == "SIGTERM":
            right = not any(statuses)
            self.slowest_stop = max(self.slowest_stop, time.monotonic() - sent)
        else:
            # Of two that are killed at a run's end one may have ended by itself before.
            right = any(statuses[i] == -signal.SIGKILL for i in chosen) and all(
                status in (-signal.SIGKILL, 0) if i in chosen else status in ALL_DIED
                for i, status in enumerate(statuses)
            )
        if not right:
            raise SystemExit(f"{workdir}: {kind} in {at} ended with {statuses}: {process.tail()}")
        return at

    def start(self, workdir: Path, *overrides: str, **env: str) -> "Processes":
        given = [*SMALL, *(overrides or [f"base.path={self.base}"])]
        flags = ["--config=configs/arithmetic.py", f"--workdir={workdir}", *(f"--config.{name}" for name in given)]
        program = ["-c", CRASHING] if env else ["-m", "star_jax.main"]
        return Processes([sys.executable, *program, *flags], workdir, env, self.args.processes)

    def finish(self, workdir: Path, *overrides: str) -> None:
        process = self.start(workdir, *overrides)
        if any(statuses := process.wait()):
            raise SystemExit(f"{workdir}: ended with {statuses}: {process.tail()}")

    def table(self, runs: int, differing: int) -> None:
        kinds = sorted({kind for kind, _ in self.kills})
        stages = sorted({stage for _, stage in self.kills})
        print(f"{'killed in':16}" + "".join(f"{kind:>12}" for kind in kinds))
        for stage in stages:
            print(f"{stage:16}" + "".join(f"{self.kills[kind, stage]:12}" for kind in kinds))
        print(
            f"{self.killed()} kills of {runs} runs, {self.missed} more too late; {differing} runs differ; "
            f"slowest answer to SIGTERM {self.slowest_stop:.1f} s; {time.monotonic() - self.started:.0f} s in all"
        )


class Processes:
    """The program, in one process or in several that are one run; what each says is written to a file."""

    def __init__(self, command: list[str], workdir: Path, env: dict[str, str], count: int) -> None:
        self.said = [Path(f"{workdir}.{index}.log") for index in range(count)]
        self.processes = []
        whole = {**os.environ, "PYTHONPATH": str(ROOT), **env}
        if count > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                whole["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free.getsockname()[1]}"
            whole["JAX_NUM_PROCESSES"] = str(count)
        for index, said in enumerate(self.said):
            own = {**whole, "JAX_PROCESS_ID": str(index)} if count > 1 else whole
            with open(said, "wb") as log:
                self.processes.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=own))

    def poll(self) -> int | None:
        """None while all are at work."""
        return next((process.returncode for process in self.processes if process.poll() is not None), None)

    def send(self, number: int, to: list[int]) -> None:
        for index in to:
            self.processes[index].send_signal(number)

    def wait(self) -> list[int]:
        return [process.wait(timeout=PATIENCE) for process in self.processes]

    def tail(self) -> str:
        return "\n".join(said.read_text(errors="replace")[-1500:] for said in self.said)


def holder(workdir: Path) -> str:
    """What tells the process apart that has the run's lock, or had it last; "" where there was none yet."""
    try:
        return str(json.loads((workdir / "LOCK").read_text())["token"])
    except (OSError, ValueError):
        return ""


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
    from star_jax.runs import checksums
    from star_jax.weights import checkpoint

    found: dict[str, Any] = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if path.is_dir() or "/weights/" in name or name in ("LOCK", "report.html", "metrics.jsonl"):
            continue
        if path.name == checksums.NAME:  # of times, too
            for beside in checksums.files(path.parent):
                checksums.check(beside, beside.read_bytes())
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
            assert json.loads(text)["fingerprint"] == fingerprint.fingerprint(params), f"{path}: not its weights"
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
