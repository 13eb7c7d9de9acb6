"""Kills a run many times, restarts it each time, and compares all its files with those of an undisturbed run.

    python tests/drills/kill_drill.py [--kills=200] [--processes=1] [--seed=0] [--keep=DIR]

The run is `python -m star_jax.main` on the addition demo with a small model, small data and two iterations. A kill is

    SIGKILL at a moment   random within a stage: sampling, rationalizing, fine-tuning, evaluating; three of ten kills
                          each in the first, the third and the fourth
    SIGTERM at a moment   the same; the process must store its results, report in one line and exit with 75
    crash at a file       SIGKILL by the process itself before its n-th file operation (os.replace, os.fsync, rename,
                          mkdir, unlink, rmtree, ...), Orbax's included; n is random

With --processes=2 two processes form the run, and a kill hits one of them or both: the other must exit by itself.

A run that has been killed --between times finishes undisturbed. Then every file is compared, weights included, byte for
byte; only times and seconds may differ. The exit status is 1 if anything else differs.
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
MOSTLY = ("sample", "fine_tune", "evaluate")  # three tenths of the kills are SIGKILLs in each of these
OF_TWO = ("the first", "the second", "both")
STOPPED = 75  # exit status after SIGTERM; 0: the run was over before
SURVIVOR = (0, 3)  # exit status of a process whose peer was killed: already finished, or "a peer died"
TIMEOUT = 600  # seconds for an undisturbed run
# Kills itself before the n-th file operation: a wrapper around the unchanged program.
CRASHING = """
import atexit, os, shutil, signal, sys
left = int(os.environ["CRASH_AT"])  # negative: never; only count
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
    """Prints the table; returns 1 if a run differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--processes", type=int, default=1, choices=(1, 2))
    parser.add_argument("--between", type=int, default=8, help="kills per run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", default="", help="folder that keeps the run directories")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        return Drill(args, Path(args.keep or scratch)).run()


class Drill:
    """The base, the undisturbed run and the killed runs."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder, self.random = args, folder, random.Random(args.seed)
        self.kills: collections.Counter[tuple[str, str]] = collections.Counter()
        self.missed = 0  # signals after the end of the run or of the stage
        self.slowest_stop, self.started = 0.0, time.monotonic()
        self.base = folder / "base_run" / "base"
        self.plan = self.plan_for_two() if args.processes == 2 else self.plan_for_one()
        folder.mkdir(parents=True, exist_ok=True)

    def plan_for_one(self) -> list[tuple[str, str]]:
        """(kind, stage or "" for any) of every kill to do."""
        each = int(0.3 * self.args.kills)
        others = [("crash", ""), ("SIGTERM", "")] * self.args.kills
        return [("SIGKILL", stage) for stage in MOSTLY] * each + others[: max(0, self.args.kills - 3 * each)]

    def plan_for_two(self) -> list[tuple[str, str]]:
        return ([(kind, "") for kind in (*OF_TWO, "SIGTERM")] * self.args.kills)[: self.args.kills]

    def run(self) -> int:
        self.finish(self.folder / "base_run", "base.stages=({'steps':400,'learning_rate':0.01,'gold':(0.4,0.1)},)",
                    "base.examples=400", "star.iterations=0")  # fmt: skip
        undisturbed = self.folder / "undisturbed"
        self.stage_seconds = self.time_stages(undisturbed)
        expected, differing, number = contents(undisturbed), 0, 0
        operations = self.count_operations(expected) if self.args.processes == 1 else 0
        seconds = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self.stage_seconds.items())
        print(f"undisturbed: {len(expected)} files, {operations} operations on files, seconds: {seconds}", flush=True)
        while self.plan:
            number += 1
            workdir = self.folder / f"killed_{number}"
            for _ in range(self.args.between):
                if not self.plan or (workdir / "iter_002/DONE").exists():
                    break
                self.kill(workdir, operations)
            self.finish(workdir)
            names = differences(expected, contents(workdir))
            differing += bool(names)
            print(f"run {number}: {self.killed()} kills so far: {names or 'no difference'}", flush=True)
        self.table(number, differing)
        return int(differing > 0)

    def killed(self) -> int:
        return sum(self.kills.values())

    def time_stages(self, workdir: Path) -> dict[str, float]:
        """Runs to the end undisturbed; returns the seconds of each stage, the larger of its two iterations."""
        longest: dict[str, float] = {}
        process, stage, since = self.start(workdir), "", time.monotonic()
        while process.poll() is None:
            if (now := stage_of(workdir)) != stage:
                longest[stage] = max(longest.get(stage, 0.0), time.monotonic() - since)
                stage, since = now, time.monotonic()
            time.sleep(0.01)
        assert process.wait() == [0] * self.args.processes, process.tail()
        return {name: longest[name] for name in STAGES}

    def count_operations(self, expected: dict[str, Any]) -> int:
        process = self.start(self.folder / "counted", CRASH_AT="-1")
        assert process.wait() == [0], process.tail()
        assert not differences(expected, contents(self.folder / "counted")), "two undisturbed runs differ"
        return int(process.logs[0].read_text().rpartition("operations:")[2])

    def kill(self, workdir: Path, operations: int) -> None:
        """Does one kill of the plan. It stays on the plan if it came too late or in another stage."""
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
        """Starts the run and sends the signal in a stage. Returns the stage it hit, or "" if the run was over."""
        before = holder(workdir)
        process = self.start(workdir)
        deadline = time.monotonic() + TIMEOUT
        # The files show a stage already while the program is loading: it is at work when it has the lock.
        while (holder(workdir) == before or stage_of(workdir) != stage) and process.poll() is None:
            assert time.monotonic() < deadline, f"{workdir}: {stage} never came: {process.tail()}"
            time.sleep(0.002)
        time.sleep(self.random.random() * (self.stage_seconds[stage] + 0.5))  # 0.5: a continued stage loads first
        at = stage_of(workdir)
        chosen = {"the first": [0], "the second": [1]}.get(kind, list(range(self.args.processes)))
        process.send(signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL, chosen)
        sent = time.monotonic()
        statuses = process.wait()
        if not any(statuses):
            return ""
        if kind == "SIGTERM":
            as_expected = set(statuses) == {STOPPED} and "stopped as requested" in process.tail()
            self.slowest_stop = max(self.slowest_stop, time.monotonic() - sent)
        else:
            # If both are killed at the end of a run, one may have exited before.
            as_expected = any(statuses[i] == -signal.SIGKILL for i in chosen) and all(
                status in (-signal.SIGKILL, 0) if i in chosen else status in SURVIVOR
                for i, status in enumerate(statuses)
            )
        if not as_expected:
            raise SystemExit(f"{workdir}: {kind} in {at} ended with {statuses}: {process.tail()}")
        return at

    def start(self, workdir: Path, *overrides: str, **env: str) -> "Processes":
        options = [*SMALL, *(overrides or [f"base.path={self.base}"])]
        flags = ["--config=configs/arithmetic.py", f"--workdir={workdir}", *(f"--config.{name}" for name in options)]
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
            f"slowest answer to SIGTERM {self.slowest_stop:.1f} s; {time.monotonic() - self.started:.0f} s in total"
        )


class Processes:
    """The program in one or several processes that form one run; the output of each is written to a file."""

    def __init__(self, command: list[str], workdir: Path, env: dict[str, str], count: int) -> None:
        self.logs = [Path(f"{workdir}.{index}.log") for index in range(count)]
        self.processes = []
        env = {**os.environ, "PYTHONPATH": str(ROOT), **env}
        if count > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                env["JAX_COORDINATOR_ADDRESS"] = f"localhost:{free.getsockname()[1]}"
            env["JAX_NUM_PROCESSES"] = str(count)
        for index, path in enumerate(self.logs):
            process_env = {**env, "JAX_PROCESS_ID": str(index)} if count > 1 else env
            with open(path, "wb") as log:
                self.processes.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=process_env))

    def poll(self) -> int | None:
        """None while all processes run."""
        return next((process.returncode for process in self.processes if process.poll() is not None), None)

    def send(self, number: int, to: list[int]) -> None:
        for index in to:
            self.processes[index].send_signal(number)

    def wait(self) -> list[int]:
        return [process.wait(timeout=TIMEOUT) for process in self.processes]

    def tail(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in self.logs)


def holder(workdir: Path) -> str:
    """The token of the process that has the run's lock or had it last; "" if there was none."""
    try:
        return str(json.loads((workdir / "LOCK").read_text())["token"])
    except (OSError, ValueError):
        return ""


def stage_of(workdir: Path) -> str:
    """The stage of a run, by its files."""
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
    """File name -> content without times. For weights: a digest of their bytes, whatever Orbax's layout."""
    from star_jax.runs import checksums
    from star_jax.weights import checkpoint, fingerprint

    by_name: dict[str, Any] = {}
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if path.is_dir() or "/weights/" in name or name in ("LOCK", "report.html", "metrics.jsonl"):
            continue
        if path.name == checksums.NAME:  # differs with the times in the files
            for checked in checksums.files(path.parent):
                checksums.check_file(checked)
            continue
        text = path.read_bytes().decode(errors="surrogateescape")  # side files are binary
        if name == "config.json":
            text = text.replace(str(workdir), "")
        if path.name in ("DONE", "finetune.json"):
            text = re.sub(r'("seconds": )?\b\d{10}\n|"seconds": [\d.]+', "", text)
        by_name[name] = text
        if path.name == "model.json":
            params = checkpoint.load_model(path.parent)[1]
            digest = hashlib.sha256(b"".join(bytes(leaf.tobytes()) for leaf in leaves(params))).hexdigest()
            by_name[f"{name}'s weights"] = digest
            assert json.loads(text)["fingerprint"] == fingerprint.fingerprint(params), f"{path}: not its weights"
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines() if line.endswith("}")]
    by_name["losses"] = {(v["iteration"], v["step"]): v["loss"] for v in lines if v["stage"] == "fine_tune"}
    return by_name


def leaves(params: Any) -> list[Any]:
    import jax
    import numpy as np

    return [np.asarray(leaf) for leaf in jax.tree.leaves(params)]


def differences(expected: dict[str, Any], actual: dict[str, Any]) -> list[str]:
    """Names that are missing, new or different."""
    return sorted(name for name in {*expected, *actual} if expected.get(name) != actual.get(name))


if __name__ == "__main__":
    sys.exit(main())
