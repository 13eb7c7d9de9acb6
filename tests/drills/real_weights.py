"""Runs the loop on a pretrained model and real data from the command line, twice: undisturbed, and killed on the way.

    python tests/drills/real_weights.py --data=../shared/data                  SmolLM2, both data sets, plain and chat
    python tests/drills/real_weights.py --data=../shared/data --tasks=gsm8k --formats=chat --problems=8

Each run has two iterations: few-shot prompts, rationalization, fine-tuning without shots. The second run is killed
(SIGKILL) once in each of sampling, fine-tuning and evaluation, and continued. Then all files of both are compared byte
for byte, weights included; only times may differ. The exit status is 1 if anything else differs.
"""

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

import kill_drill

DATA = {"commonsense_qa": "commonsense_qa", "gsm8k": "gsm8k"}
KILLS = ("sample", "fine_tune", "evaluate")


def main() -> int:
    """Prints a line per run; returns 1 if a killed run differs from the undisturbed one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path, help="directory of the data sets' directories")
    parser.add_argument("--base", default="pip:smollm2", help="what base.path takes")
    parser.add_argument("--tasks", default=",".join(DATA))
    parser.add_argument("--formats", default="plain,chat")
    parser.add_argument("--problems", type=int, default=40, help="per iteration, and of each evaluation")
    parser.add_argument("--new_tokens", type=int, default=56)
    parser.add_argument("--shots", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    differing = 0
    with tempfile.TemporaryDirectory() as scratch:
        for task in args.tasks.split(","):
            for prompt_format in args.formats.split(","):
                differing += not both_runs(args, task, prompt_format, Path(scratch) / f"{task}_{prompt_format}")
    return int(differing > 0)


def both_runs(args: argparse.Namespace, task: str, prompt_format: str, folder: Path) -> bool:
    """Whether the killed run ends with the files of the undisturbed one."""
    folder.mkdir()
    started, command = time.monotonic(), flags(args, task, prompt_format)
    finish(command, folder / "undisturbed")
    seconds, killed = time.monotonic() - started, []
    for stage in KILLS:
        killed += [stage] * kill_in(command, folder / "killed", stage)
    finish(command, folder / "killed")
    expected, actual = (kill_drill.contents(folder / name) for name in ("undisturbed", "killed"))
    names = kill_drill.differences(expected, actual)
    counts = {name: expected[f"iter_002/{name}.jsonl"].count("\n") for name in ("samples", "rationalizations", "kept")}
    print(f"{task}, {prompt_format}: {seconds:.0f} s undisturbed, {counts}; killed in {', '.join(killed)}: "
          f"{names or f'no difference in {len(expected)} files'}", flush=True)  # fmt: skip
    return not names


def flags(args: argparse.Namespace, task: str, prompt_format: str) -> list[str]:
    options = {
        "base.path": args.base,
        "task.data_dir": args.data.resolve() / DATA[task],
        "task.answer_rule": "lenient",  # small models keep too little in the strict form to go on
        "prompt.format": prompt_format,
        "prompt.shots": args.shots,
        "tensorboard": False,
        "evaluation.problems": args.problems,
        "evaluation.report_split": "",
        "sampling.max_new_tokens": args.new_tokens,
        "sampling.slots": args.problems,
        "sampling.queue": args.problems,
        "sampling.temperature": 0.7,
        "star.iterations": 2,
        "star.problems_per_iteration": args.problems,
        "star.samples_per_problem": 2,
        "star.few_shot_train": False,
        "star.prompt_after_first_iteration": True,
        "star.rationalize_from": 1,
        "star.steps": args.steps,
        "star.schedule": "exponential",
        "train.batch_rows": 2,
        "train.row_tokens": 256,
        "train.checkpoint_every": 1,
        "train.log_every": 1,
        "optimizer.learning_rate": 1e-5,
        "optimizer.warmup_steps": 1,
        "model.scan_unroll": 1,
    }
    return [f"--config=configs/{task}.py", *(f"--config.{name}={value}" for name, value in options.items())]


def start(command: list[str], workdir: Path) -> kill_drill.Processes:
    program = [sys.executable, "-m", "star_jax.main", f"--workdir={workdir}", *command]
    return kill_drill.Processes(program, workdir, {}, 1)


def finish(command: list[str], workdir: Path) -> None:
    process = start(command, workdir)
    if process.processes[0].wait():
        raise SystemExit(f"{workdir}: {process.tail()}")


def kill_in(command: list[str], workdir: Path, stage: str) -> bool:
    """Kills a run a moment after it has reached the stage; False if the run was over before."""
    before, process = kill_drill.holder(workdir), start(command, workdir)
    while kill_drill.holder(workdir) == before or kill_drill.stage_of(workdir) != stage:
        if process.poll() is not None:
            return False
        time.sleep(0.05)
    time.sleep(2.0)
    process.send(signal.SIGKILL, [0])
    return process.wait() == [-signal.SIGKILL]


if __name__ == "__main__":
    sys.exit(main())
