"""Accuracy of one iteration's model on a split of the run's data.

    python -m star_jax.evaluate --workdir=DIR [--iteration=N|base|best] [--split=S] [--samples=K [--temperature=T]]

Prints the accuracy with its 95 % interval, by category and in total, and the counts of verdicts. Writes the completions
to iter_NNN/eval_SPLIT.jsonl and the figures to iter_NNN/eval_SPLIT.json of the run directory.
"""

import argparse
from typing import Any

from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.distributed import compile_cache, launch, processes
from star_jax.errors import InputError
from star_jax.evaluation.accuracy import score, vote
from star_jax.evaluation.generate import generate, split_problems
from star_jax.evaluation.judging import SamplingPass
from star_jax.evaluation.stored_run import open_iteration
from star_jax.records import RIGHT_WRONG_STEPS, Verdict
from star_jax.sampling.token_sampling import Decoding
from star_jax.weights import checkpoint


def main() -> None:
    """Parses the command line and evaluates."""
    parser = Parser("evaluate", __doc__)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="the run directory")
    parser.add_argument("--iteration", default="best", metavar="N|base|best", help="which model (default: best)")
    parser.add_argument("--split", default="dev", help="the split to evaluate on, e.g. test (default: dev)")
    parser.add_argument(
        "--samples", type=int, default=0, metavar="K", help="samples per problem: majority vote and pass@k (0: greedy)"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="of the K samples (default: the run's, or 0.7)"
    )
    args = parser.parse_args()
    if args.samples < 0 or args.temperature < 0:
        raise InputError("--samples and --temperature must not be negative; --samples=0 is greedy")
    if args.temperature and not args.samples:
        raise InputError("--temperature goes with --samples=K; without it decoding is greedy")
    with launch.distributed_context():
        _evaluate(args)


def _evaluate(args: argparse.Namespace) -> None:
    stored = open_iteration(args.workdir, args.iteration)
    compile_cache.enable(stored.config.compile_cache)
    config, run_dir, number = stored.config, stored.run_dir, stored.number
    problems, name = split_problems(config, stored.task, args.split), f"eval_{args.split}"
    decoding = Decoding()
    if args.samples:
        decoding = Decoding(
            args.temperature or config.sampling.temperature or 0.7, config.sampling.top_k, config.sampling.top_p
        )
        name += f"_{args.samples}_samples_t{decoding.temperature:g}"
    sampling_pass = SamplingPass("evaluate", config.seed, number, max(1, args.samples))
    path = run_dir.path(number, name + ".jsonl")
    completions, _ = generate(run_dir, path, stored.stream(decoding), stored.prompts, problems, sampling_pass)
    weights = processes.broadcast_from_leader(lambda: checkpoint.stored_fingerprint(stored.directory))
    result = {"iteration": number, "split": args.split, "weights": weights}
    result |= {"temperature": decoding.temperature}
    result |= vote(stored.task, problems, completions) if args.samples else score(problems, completions)
    run_dir.write_json(run_dir.path(number, name + ".json"), result)
    if processes.is_leader():
        _print(result)
        print(f"written to {run_dir.path(number, name + '.json')}")


def _print(result: dict[str, Any]) -> None:
    """Prints a line for each accuracy, by category if there are several, and the counts of verdicts."""
    lines = {key: value for key, value in result.items() if isinstance(value, dict) and "ci95" in value}
    categories = result.get("by_category") or result["majority_by_category"]
    if "accuracy" in result:
        lines = {"accuracy": result}
    if len(categories) > 1:
        lines |= {f"  {name}": value for name, value in categories.items()}
    for key, line in lines.items():
        low, high = line["ci95"]
        print(f"{key:10} {line['accuracy']:.4f}  [{low:.4f}, {high:.4f}]  n = {line['n']}")
    print(", ".join(f"{result[verdict]} {verdict.replace('_', ' ')}" for verdict in (*Verdict, RIGHT_WRONG_STEPS)))


if __name__ == "__main__":
    exit_on_bad_input(main)
