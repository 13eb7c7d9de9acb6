"""Where an outer iteration of the addition demo spends its time, and what it compiles.

    python tests/benchmarks/iteration.py --base=runs/arithmetic/base
    python tests/benchmarks/iteration.py --base=runs/arithmetic/base --problems=2000 --steps=200        a minute

Runs configs/arithmetic.py through star.run in a temporary directory, from a stored base (without --base the demo's base
is pretrained first, two minutes). Seconds by phase are those of the run's metrics.jsonl. The phases sample, rationalize
and evaluate are the compiled sampler and the judging of its samples; fine_tune is the train steps. All else is
overhead: "outside" is its share of an iteration's wall time. The bar is 5 %.

"storing" is the share of the run directory and of the checkpoints, in any phase: files, their checksums and fsyncs, the
log's lines, the part of Orbax's saves that the loop waits for (in fine-tuning one every --checkpoint_every steps), and
what a restart reads. The bar is 3 % of the wall time.

Compilations are counted by jax.monitoring and assigned to iterations by time. The bar is 0 after iteration 1 (iteration
0 evaluates the base). Programs from a persistent cache count too.
"""

import argparse
import importlib.util
import json
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import jax

from star_jax import config
from star_jax.algorithms import star
from star_jax.runs import atomic_files, checksums, metrics
from star_jax.runs.run_directory import RunDirectory
from star_jax.weights import checkpoint, train_state

ROOT = Path(__file__).parents[2]
WORK = ("sample", "rationalize", "evaluate", "fine_tune")  # all other phases are overhead
BAR, STORING_BAR = 0.05, 0.03  # shares of the wall time: overhead; run directory and checkpoints


class Compilations:
    """The times at which programs were compiled since this object was created."""

    def __init__(self) -> None:
        self.times: list[float] = []
        jax.monitoring.register_event_duration_secs_listener(self._record)

    def _record(self, event: str, _: float, **__: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.times.append(time.time())

    def between(self, begin: float, end: float) -> int:
        return sum(begin < t <= end for t in self.times)

    def close(self) -> None:
        jax.monitoring.unregister_event_duration_listener(self._record)


class Storing:
    """When the run directory and the checkpoints were at work: their functions are wrapped until `close`."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float]] = []  # of the outermost calls, in the main thread
        self._inside = False
        self._real: list[tuple[Any, str, Any]] = []
        wrapped = {
            atomic_files: ("atomic_write", "append_text"),
            metrics: ("append_line",),
            checksums: ("check", "with_file"),
            checkpoint: ("save_model", "fingerprint"),
            checkpoint.AsyncModelSave: ("__init__", "finish", "wait"),
            train_state.TrainStateCheckpointer: ("save", "restore"),
            RunDirectory: ("open", "read_json", "read_records", "remove", "discard", "is_complete"),
        }
        for owner, names in wrapped.items():
            for name in names:
                self._wrap(owner, name)

    def _wrap(self, owner: Any, name: str) -> None:
        real = getattr(owner, name)
        self._real.append((owner, name, real))

        def timed(*args: Any, **named: Any) -> Any:
            if self._inside or threading.current_thread() is not threading.main_thread():
                return real(*args, **named)
            self._inside, started = True, time.time()
            try:
                return real(*args, **named)
            finally:
                self._inside = False
                self.spans.append((started, time.time()))

        setattr(owner, name, timed)

    def between(self, begin: float, end: float) -> float:
        """Seconds of the calls that ended in an interval."""
        return sum(stop - start for start, stop in self.spans if begin < stop <= end)

    def close(self) -> None:
        for owner, name, real in self._real:
            setattr(owner, name, real)


def settings(args: argparse.Namespace) -> config.Config:
    """The demo's config with the flags' sizes."""
    path = ROOT / "configs" / "arithmetic.py"
    spec = importlib.util.spec_from_file_location("arithmetic", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = module.get_config()
    values.star.update(dict(iterations=args.iterations, problems_per_iteration=args.problems, steps=args.steps))
    values.mesh.data, values.train.checkpoint_every = 1, args.checkpoint_every
    if args.digits:
        values.task.update(dict(max_digits=args.digits, train_per_length=args.problems, held_out_per_length=8))
    if args.base:
        values.base.path = str(Path(args.base).absolute())
        values.model.update({"architecture": "", **dict.fromkeys(config.SIZES, 0)})  # the base's
    return config.from_dict(values)


def measure(args: argparse.Namespace, workdir: Path) -> tuple[float, list[dict[str, Any]]]:
    """(wall seconds; for each iteration its phases, "compilations", "storing", and "total": its wall seconds)."""
    compilations, storing, started = Compilations(), Storing(), time.time()
    try:
        star.run(settings(args), workdir)
    finally:
        compilations.close()
        storing.close()
    wall, since, iterations = time.time() - started, started, []
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["stage"] == "phases":
            seconds = {k: v for k, v in line.items() if k not in ("time", "stage", "iteration", "step")}
            # This line is written at the end of its iteration.
            counts = {"compilations": compilations.between(since, line["time"])}
            iterations.append({**seconds, **counts, "storing": storing.between(since, line["time"])})
            since = line["time"]
    return wall, iterations


def table(iterations: list[dict[str, Any]]) -> str:
    """Seconds and shares by phase, one column for each iteration; then overhead, storing and compilations."""
    names = dict.fromkeys(name for phases in iterations for name in phases)
    rows = [f"{'':14}" + "".join(f"{f'iteration {n}':>18}" for n in range(len(iterations)))]
    for name in (name for name in names if name not in ("total", "compilations", "storing")):
        cells = [(phases.get(name, 0.0), phases["total"]) for phases in iterations]
        rows.append(f"{name:14}" + "".join(f"{value:10.2f} s{value / total:6.1%}" for value, total in cells))
    rows.append(f"{'total':14}" + "".join(f"{phases['total']:10.2f} s{'':6}" for phases in iterations))
    rows.append(f"{'outside':14}" + "".join(f"{outside(p) * p['total']:10.2f} s{outside(p):6.1%}" for p in iterations))
    rows.append(
        f"{'storing':14}" + "".join(f"{p['storing']:10.2f} s{p['storing'] / p['total']:6.1%}" for p in iterations)
    )
    rows.append(f"{'compilations':14}" + "".join(f"{phases['compilations']:18}" for phases in iterations))
    return "\n".join(rows)


def outside(phases: dict[str, Any]) -> float:
    """The share of an iteration's wall time that is neither sampling nor training."""
    return 1 - sum(phases.get(name, 0.0) for name in WORK) / float(phases["total"])


def main(argv: list[str] | None = None) -> None:
    """Prints the table and the bars."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", default="", help="a stored base, e.g. of a finished run of the demo")
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--problems", type=int, default=10_000, help="per iteration")
    parser.add_argument("--steps", type=int, default=1000, help="of iteration 1; a fifth more each iteration")
    parser.add_argument("--checkpoint_every", type=int, default=200, help="steps; the demo has no checkpoints")
    parser.add_argument(
        "--digits", type=int, default=0, help="digits of the longest sums, with few problems; 0: the demo's task"
    )
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        wall, iterations = measure(args, Path(folder) / "run")
    machine = f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    print(f"{machine}: {args.problems} problems, {args.steps} steps, {wall:.1f} s in total")
    print(table(iterations))
    shares = [outside(phases) for phases in iterations[1:]]
    print(f"outside of sampling and training: {max(shares):.1%} at most (bar: {BAR:.0%})")
    stored = max(phases["storing"] / phases["total"] for phases in iterations[1:])
    print(f"run_dir and checkpoints: {stored:.1%} at most (bar: {STORING_BAR:.0%})")
    print(f"compilations after iteration 1: {sum(p['compilations'] for p in iterations[2:])} (bar: 0)")


if __name__ == "__main__":
    main()
