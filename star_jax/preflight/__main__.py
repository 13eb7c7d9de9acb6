"""Will it fit? Compiles a config's programs for a TPU topology without the TPU; counts memory for GPUs.

    python -m star_jax.preflight --config=FILE --topology=v3:2x2 [--prefix_tokens=1024] [--body_tokens=128]

TPU topologies (v3:2x2, v4:2x2x1, v5e:2x4, v5p:2x2x1, v6e:2x4, ...: chips along each axis of the torus) need libtpu,
which the extra `preflight` installs. Its compiler is the one that a TPU run uses, so the memory is what the run takes.
FLOPs are counted from the sizes: the compiler counts a loop's body once. GPU memory (gpu:8xH100) is only counted.
Exit status 1: it does not fit.
"""

import dataclasses
import os
import sys
from pathlib import Path

from star_jax.cli.config_flags import read_config
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.config import from_dict
from star_jax.errors import InputError


def main() -> None:
    """Parses the flags and prints the report."""
    parser = Parser("preflight", __doc__)
    parser.add_argument("--topology", help="devices, e.g. v3:2x2, v5e:4x4, gpu:8xH100")
    parser.add_argument("--prefix_tokens", type=int, default=1024, help="tokens of the shared few-shot prefix (1024)")
    parser.add_argument("--body_tokens", type=int, default=128, help="tokens of the longest problem (128)")
    args, values = read_config(parser)
    if args.prefix_tokens < 0 or args.body_tokens < 1:
        raise InputError("--prefix_tokens must be at least 0 and --body_tokens at least 1")
    if not args.topology:
        raise InputError("give --topology, e.g. --topology=v3:2x2 or --topology=gpu:8xH100")
    # JAX reads it at import, so nothing above may import JAX: a local accelerator is neither used nor initialized.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from star_jax.algorithms import setup
    from star_jax.preflight.budget import Lengths
    from star_jax.preflight.report import report
    from star_jax.preflight.topology import parse_topology
    from star_jax.sampling import sampler

    base = values.base.path
    if not base and not values.base.stages:
        values.base.path = "none"  # from_dict asks for a base; only the model's sizes are used here
    config = from_dict(values)
    if base:
        config = dataclasses.replace(config, model=setup.model_config(config, Path(base)))
    config.model.check_complete()
    new_tokens = config.sampling.max_new_tokens or config.make_task().max_new_tokens
    lengths = Lengths(args.prefix_tokens, sampler.round_up(args.body_tokens, 8), new_tokens)
    if not report(config, parse_topology(args.topology), lengths, lambda line: print(line, flush=True)):
        sys.exit(1)


if __name__ == "__main__":
    exit_on_bad_input(main)
