"""Runs STaR, or continues a run: flags -> config -> one call.

    python -m star_jax.main --config=FILE[:VARIANT] [--workdir=DIR] [--allow_changes] [--limit=N] [--write_out=N]
                            [--samples_from=DIR] [--config.star.iterations=3 ...]

The command that started a run also continues it. Prints the path of the run's report.
"""

import logging
from pathlib import Path

from star_jax import config, terminal
from star_jax.cli.config_flags import read_config, run_name
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.distributed import launch, processes


def main() -> None:
    """Parses the flags, runs the loop in the run directory, prints the path of its report."""
    parser = Parser("main", __doc__)
    parser.add_path("--workdir", help="the run directory; default: runs/<config file>[_<variant>][_limit<N>]")
    parser.add_argument(
        "--allow_changes",
        action="store_true",
        help="continue a run although settings, data, prompts or versions have changed; provenance.json records them",
    )
    help_ = "use the first N problems of each split only, for a quick try: --config.limit=N"
    parser.add_number("--limit", 1, config.MAX_COUNT, metavar="N", help=help_)
    help_ = "train on what the finished run DIR sampled, with another selection: --config.star.samples_from=DIR"
    parser.add_path("--samples_from", metavar="DIR", help=help_)
    help_ = "print whole prompts of the first N train problems as they are sent, plain and hinted, and exit"
    parser.add_number("--write_out", 1, config.MAX_COUNT, metavar="N", help=help_)
    args, values = read_config(parser)
    if args.limit is not None:
        values.limit = args.limit
    if args.samples_from is not None:
        values.star.samples_from = str(args.samples_from)
    terminal.start_logging()
    logging.getLogger("star_jax").setLevel(logging.INFO)
    typed = config.from_dict(values)
    if args.write_out is not None:
        from star_jax.algorithms.write_out import write_out  # imports JAX, and starts no device

        for text in write_out(typed, args.write_out):
            terminal.say(text)
        return
    workdir = args.workdir or Path("runs") / run_name(args.config, typed.limit)
    with launch.distributed_context():
        from star_jax.algorithms import star  # imports JAX: only after distributed_context has forked
        from star_jax.distributed import compile_cache, preemption

        preemption.listen()
        compile_cache.enable(typed.compile_cache)
        if not processes.is_leader():  # messages about the run are printed once
            logging.getLogger("star_jax").setLevel(logging.WARNING)
        report = star.run(typed, workdir, args.allow_changes)
        if processes.is_leader():
            terminal.say(str(report))
    preemption.end()


if __name__ == "__main__":
    exit_on_bad_input(main)
