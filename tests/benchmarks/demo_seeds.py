"""Runs the addition demo on many seeds, in both arms, and prints how far each run climbs.

    python tests/benchmarks/demo_seeds.py --runs=DIR --seeds=10                     ten seeds, an hour and a half
    python tests/benchmarks/demo_seeds.py --runs=DIR --seeds=3 --order=avx2      other sums: half the vector width
    python tests/benchmarks/demo_seeds.py --runs=DIR --seeds=3 --order=thread    one thread: the same bytes
    PYTHON=.venv312/bin/python ... --order=python                                another Python, with its own jax
    python tests/benchmarks/demo_seeds.py --runs=DIR --summary                   what DIR holds, for configs/README.md
    python tests/benchmarks/demo_seeds.py --runs=DIR --order=thread --picture=launch/addition_demo.png

The arms are those of configs/arithmetic.py: "" (with rationalization), no_rationalization, and with --arms direct and
weak. All arms of a seed but weak's have the same base, so the others take it from the first one's run. Runs that are
finished are not made again. The exit status is 1 if a run of the first two arms misses its bound.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
ORDERS = {
    "default": {},
    "avx2": {"XLA_FLAGS": "--xla_cpu_max_isa=AVX2"},
    "thread": {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"},
    "python": {},
}
WITH = "rationalization"  # the name of the variant ""
TITLES = {WITH: "with rationalization", "no_rationalization": "without"}
COLOURS = ("#1f6bc4", "#d1610a", "#1a8a64", "#b83a8b", "#a07800", "#222222")  # of 1 to 5 digits, and of their mean
BOUNDS = {WITH: (0.95, 1.0), "no_rationalization": (0.0, 0.45)}


def main() -> int:
    """Makes the missing runs and prints the table; 1 if a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--seeds", type=int, default=10, help="seeds 0 to SEEDS-1")
    parser.add_argument("--order", choices=ORDERS, default="default", help="order of summation")
    parser.add_argument("--arms", default=f"{WITH},no_rationalization", help="arms, separated by commas")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--summary", action="store_true", help="only print what the folder holds")
    parser.add_argument("--picture", metavar="FILE", help="only draw the first two arms of an order, as a PNG")
    args = parser.parse_args()
    if args.picture:
        picture(finished(args.runs / args.order), args.picture)
        return 0
    if not args.summary:
        arms = args.arms.split(",")
        for group in ([arm for arm in arms if arm == WITH], [arm for arm in arms if arm != WITH]):
            with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
                jobs = [pool.submit(run, args.runs / args.order, arm, n) for n in range(args.seeds) for arm in group]
                for job in concurrent.futures.as_completed(jobs):
                    print(job.result(), flush=True)
    return summary(args.runs)


def run(folder: Path, arm: str, seed: int) -> str:
    """Runs one arm, unless it is finished, and describes it. `folder`: of its order of summation."""
    workdir, base = folder / f"{arm}_{seed}", folder / f"{WITH}_{seed}" / "base"
    variant = "" if arm == WITH else f":{arm}"
    command = [os.environ.get("PYTHON", sys.executable), "-m", "star_jax.main", f"--workdir={workdir}"]
    command += [f"--config=configs/arithmetic.py{variant}", f"--config.seed={seed}", "--config.tensorboard=False"]
    if arm not in (WITH, "weak") and base.is_dir():
        command.append(f"--config.base.path={base.resolve()}")
    workdir.mkdir(parents=True, exist_ok=True)
    with open(f"{workdir}.log", "a") as log:
        env = {**os.environ, **ORDERS[folder.name]}
        status = subprocess.run(command, cwd=ROOT, env=env, stdout=log, stderr=log).returncode
    return f"{folder.name} {arm} {seed}: " + (line(accuracies(workdir)) if not status else f"exit status {status}")


def accuracies(workdir: Path) -> list[dict[str, float]]:
    """For each evaluated iteration, accuracy by number of digits."""
    files = sorted(workdir.glob("iter_*/eval_dev.json"))
    return [{n: c["accuracy"] for n, c in json.loads(f.read_text())["by_category"].items()} for f in files]


def line(iterations: list[dict[str, float]]) -> str:
    """Mean over the lengths of each iteration, then the last one by length."""
    return (
        " -> ".join(f"{mean(i):.2f}" for i in iterations)
        + " | "
        + " ".join(f"{a:.2f}" for a in iterations[-1].values())
    )


def mean(by_digits: dict[str, float]) -> float:
    return float(np.mean(list(by_digits.values())))


def finished(folder: Path) -> dict[str, dict[int, list[dict[str, float]]]]:
    """Arm -> seed -> `accuracies`, of the finished runs in the folder of an order."""
    found: dict[str, dict[int, list[dict[str, float]]]] = {}
    for path in folder.glob("*/report.html"):
        arm, _, seed = path.parent.name.rpartition("_")
        found.setdefault(arm, {})[int(seed)] = accuracies(path.parent)
    return found


def ranges(runs: list[list[dict[str, float]]]) -> str:
    """`line` of several runs of one length: the lowest and the highest of each figure."""
    means_RI = np.array([[mean(iteration) for iteration in iterations] for iterations in runs])
    last_RD = np.array([list(iterations[-1].values()) for iterations in runs])
    means, last = ([_range(values_R) for values_R in values_RN.T] for values_RN in (means_RI, last_RD))
    return " -> ".join(means) + " | " + " ".join(last)


def _range(values_R: np.ndarray) -> str:
    low, high = f"{values_R.min():.2f}", f"{values_R.max():.2f}"
    return low if low == high else f"{low}–{high}"


def summary(runs: Path) -> int:
    """Prints each finished run, then each arm's range; 1 if a bound is missed."""
    missed = False
    for folder in sorted(runs.iterdir()):
        for arm, by_seed in sorted(finished(folder).items()):
            for seed, iterations in sorted(by_seed.items()):
                print(f"| {folder.name} | {arm} | {seed} | {line(iterations)} |")
            ends = {seed: mean(iterations[-1]) for seed, iterations in sorted(by_seed.items())}
            low, high = BOUNDS.get(arm, (0.0, 1.0))
            outside = [seed for seed, end in ends.items() if not low <= end <= high]
            missed = missed or bool(outside)
            print(f"| {folder.name} | {arm} | {len(ends)} seeds | {ranges(list(by_seed.values()))} |")
            print(f"  outside {low} to {high}: seeds {outside}")
    return int(missed)


def picture(arms: dict[str, dict[int, list[dict[str, float]]]], path: str) -> None:
    """Draws each length's accuracy by iteration, and their mean: the mean of the runs, and a band of all of them."""
    figure = Figure(figsize=(11.2, 3.8), layout="constrained")
    for axes, (arm, title) in zip(figure.subplots(1, 2), TITLES.items(), strict=True):
        runs = list(arms[arm].values())
        names = list(runs[0][0])
        by_length_RIL = 100 * np.array([[list(iteration.values()) for iteration in run] for run in runs])
        curves = {name: by_length_RIL[:, :, n] for n, name in enumerate(names)} | {"mean": by_length_RIL.mean(2)}
        for n, (name, curve_RI) in enumerate(curves.items()):
            style = {"color": COLOURS[n], "marker": "os^Dv."[n], "markersize": 4, "linestyle": "-" if n < 5 else "--"}
            iterations = range(curve_RI.shape[1])
            axes.fill_between(iterations, curve_RI.min(0), curve_RI.max(0), color=COLOURS[n], alpha=0.25, linewidth=0)
            axes.plot(iterations, curve_RI.mean(0), label=name, **style)
        axes.set_title(f"{title}: {len(runs)} seeds")
        axes.set_xticks(range(len(runs[0])), ["base", *map(str, range(1, len(runs[0])))])
        axes.set_yticks(range(0, 101, 20), [f"{value} %" for value in range(0, 101, 20)])
        axes.set_xlabel("iteration")
        axes.grid(axis="y", linewidth=0.4)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("accuracy")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.savefig(path, dpi=160)


if __name__ == "__main__":
    sys.exit(main())
