"""Runs STaR, or continues a run: flags -> config -> one call.

    python -m star_jax.main --config=configs/arithmetic.py [--workdir=DIR] [--config.star.iterations=3 ...]

The command that started a run also continues it. Prints the path of the run's report.
"""

import logging
import os
from pathlib import Path

from star_jax import config
from star_jax.cli.config_flags import read_config
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.distributed import launch, processes


def main() -> None:
    """Parses the flags, runs the loop in the run directory, prints the path of its report."""
    parser = Parser("main", __doc__)
    parser.add_argument(
        "--workdir", type=Path, metavar="DIR", help="the run directory; default: runs/<config file>[_<variant>]"
    )
    parser.add_argument(
        "--allow_changes",
        action="store_true",
        help="continue a run although settings, data, prompts or versions have changed; provenance.json records them",
    )
    args, values = read_config(parser)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("star_jax").setLevel(logging.INFO)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    typed = config.from_dict(values)
    file, _, variant = args.config.partition(":")
    workdir = args.workdir or Path("runs") / "_".join(filter(None, [Path(file).stem, variant]))
    with launch.distributed_context():
        from star_jax.algorithms import star  # imports JAX: only after distributed_context has forked
        from star_jax.distributed import compile_cache, preemption

        preemption.listen()
        compile_cache.enable(typed.compile_cache)
        if not processes.is_leader():  # messages about the run are printed once
            logging.getLogger("star_jax").setLevel(logging.WARNING)
        report = star.run(typed, workdir, args.allow_changes)
        if processes.is_leader():
            print(report, flush=True)
    preemption.end()


if __name__ == "__main__":
    exit_on_bad_input(main)
