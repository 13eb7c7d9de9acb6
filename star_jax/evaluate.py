"""Accuracy of one iteration's model on a split of the run's data.

    python -m star_jax.evaluate --workdir=DIR [--iteration=N|base|best|last] [--split=S] [--samples=K [--temperature=T]]
                                [--interpolate=A] [--output=DIR]

Prints the accuracy with its 95 % interval, by category and in total, and the counts of verdicts; with --samples that of
the majority vote, and pass@k, the probability that one of k samples is right. Writes the completions
to iter_NNN/eval_SPLIT.jsonl and the figures to iter_NNN/eval_SPLIT.json of the run directory or, for a run that must
not change or cannot be written, of --output. Completions that are there already are not sampled again. Model, problems
and prompts are the run's: it may be evaluated from any folder.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from star_jax import terminal
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.config import MAX_COUNT, MAX_TEMPERATURE, check_temperature
from star_jax.distributed import compile_cache, launch, processes
from star_jax.errors import InputError
from star_jax.evaluation.accuracy import score, vote
from star_jax.evaluation.generate import generate
from star_jax.evaluation.judging import SamplingPass
from star_jax.evaluation.results import EvaluationPass, digits
from star_jax.evaluation.stored_run import open_iteration
from star_jax.records import RIGHT_WRONG_STEPS, Verdict
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling.token_sampling import Decoding


def main() -> None:
    """Parses the command line and evaluates."""
    parser = Parser("evaluate", __doc__)
    parser.add_path("--workdir", required=True, help="the run directory")
    parser.add_argument("--iteration", default="best", metavar="N|base|best|last", help="which model (default: best)")
    parser.add_argument("--split", default="dev", help="the split to evaluate on, e.g. test (default: dev)")
    help_ = "samples per problem: majority vote and pass@k (0: greedy)"
    parser.add_number("--samples", 0, MAX_COUNT, default=0, metavar="K", help=help_)
    help_ = "of the K samples (default: that of the run's train samples or, if they are greedy, 0.7)"
    parser.add_number("--temperature", 0.0, MAX_TEMPERATURE, metavar="T", help=help_)
    help_ = "the model is A of the iteration's weights and 1 - A of the base's (arXiv 2504.10478); default: 1"
    parser.add_number("--interpolate", 0.01, 1.0, default=1.0, metavar="A", help=help_)
    parser.add_path("--output", help="the directory that gets the results (default: the run directory)")
    parser.add_allow_import()
    args = parser.parse_args()
    check_temperature(args.temperature or 0.0, "--temperature")
    if args.temperature and not args.samples:
        raise InputError("--temperature goes with --samples=K; without it decoding is greedy")
    with launch.distributed_context():
        _evaluate(args)


def _evaluate(args: argparse.Namespace) -> None:
    stored = open_iteration(args.workdir, args.iteration, args.allow_import, args.interpolate)
    compile_cache.enable(stored.config.compile_cache)
    config, number = stored.config, stored.number
    run_dir = RunDirectory(args.output, processes) if args.output else stored.run_dir
    problems = stored.problems(args.split)
    decoding = stored.random_decoding(args.temperature) if args.samples else Decoding()
    name = EvaluationPass(args.split, args.samples, decoding.temperature).stem
    if stored.share < 1:
        name += f"_interpolated_{digits(stored.share)}"
    sampling_pass = SamplingPass("evaluate", config.seed, number, max(1, args.samples))
    path, figures = run_dir.path(number, name + ".jsonl"), run_dir.path(number, name + ".json")
    if not args.output and not run_dir.exists(path):
        run_dir.broadcast(lambda: _check_writable(args.workdir))
    if processes.is_leader():
        each = f"{args.samples:,} samples each, temperature {decoding.temperature:g}" if args.samples else "greedy"
        terminal.say(f"{stored.label}: {len(problems):,} {args.split} problems, {each}", sys.stderr)
    completions, throughput = generate(run_dir, path, stored.stream(decoding), stored.prompts, problems, sampling_pass)
    weights = processes.broadcast_from_leader(stored.fingerprint)
    result = {"iteration": number, "split": args.split, "weights": weights}
    result |= {"temperature": decoding.temperature}
    result |= vote(stored.task, problems, completions) if args.samples else score(problems, completions)
    is_stored = run_dir.exists(figures) and run_dir.read_json(figures) == json.loads(json.dumps(result))
    if not is_stored:
        run_dir.write_json(figures, result)
    if processes.is_leader():
        _print(result)
        if throughput is None:
            terminal.say(f"of completions that were stored already; delete {path} to sample again", sys.stderr)
        terminal.say(f"{'stored in' if is_stored else 'written to'} {figures}")


def _check_writable(workdir: Path) -> None:
    """Raises InputError for a run directory that refuses files."""
    if not os.access(workdir, os.W_OK):
        raise InputError(f"{workdir}: cannot be written; give --output=DIR for the results")


def _print(result: dict[str, Any]) -> None:
    """Prints a line for each accuracy, by category if there are several, and the counts of verdicts."""
    lines = {key: value for key, value in result.items() if isinstance(value, dict) and "ci95" in value}
    if "accuracy" in result:
        lines = {"accuracy": result, **lines}
        measure, noun, categories = "accuracy", "problems", result["by_category"]
    else:
        measure, noun, categories = "majority vote", "samples", result["majority_by_category"]
    for name, rate in lines.items():
        _print_rate(name, rate)
    if len(categories) > 1:
        terminal.say(f"{measure} by category:")
        for name, rate in categories.items():
            _print_rate(f"  {terminal.one_line(name)}", rate)
    counts = {verdict: f"{result[verdict]:,} {verdict.replace('_', ' ')}" for verdict in Verdict}
    if wrong_steps := result[RIGHT_WRONG_STEPS]:
        counts[Verdict.RIGHT] += f" ({wrong_steps:,} of them with wrong steps)"
    terminal.say(f"of {sum(result[verdict] for verdict in Verdict):,} {noun}: {', '.join(counts.values())}")


def _print_rate(name: str, rate: dict[str, Any]) -> None:
    low, high = rate["ci95"]
    terminal.say(f"{name:10} {rate['accuracy']:.4f}  [{low:.4f}, {high:.4f}]  n = {rate['n']}")


if __name__ == "__main__":
    exit_on_bad_input(main)
