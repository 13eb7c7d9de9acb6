"""Will it fit? Compiles a config's programs for a TPU topology without the TPU; counts memory for GPUs.

    python -m star_jax.preflight --model=qwen3-4b --topology=v5e:2x4
    python -m star_jax.preflight --config=FILE --topology=v3:2x2 [--prefix_tokens=1024] [--body_tokens=128]

TPU topologies (v3:2x2, v4:2x2x1, v5e:2x4, v5p:2x2x1, v6e:2x4, ...: chips along each axis of the torus) need libtpu,
which the extra `preflight` installs. Its compiler is the one that a TPU run uses, so the memory is what the run takes.
FLOPs are counted from the sizes: the compiler counts a loop's body once. GPU memory (gpu:8xH100) is only counted.
--model takes the sizes of a published model by its name, instead of those of the config or its base, and downloads
nothing. Without --config the options are the defaults for your own data, in bfloat16, sharded over all devices.
Exit status 1: it does not fit.
"""

import argparse
import dataclasses
import os
import sys
from typing import Any

from star_jax import terminal
from star_jax.cli.config_flags import read_config
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.config import MAX_SIZE, Config, from_dict
from star_jax.errors import InputError


def main() -> None:
    """Parses the flags and prints the report."""
    # JAX reads it at import, so nothing above may import JAX: a local accelerator is neither used nor initialized.
    os.environ["JAX_PLATFORMS"] = "cpu"
    parser = Parser("preflight", __doc__)
    parser.add_argument("--topology", help="devices, e.g. v3:2x2, v5e:4x4, gpu:8xH100")
    parser.add_argument("--model", default="", help="a published model, e.g. qwen3-4b; a wrong name lists all")
    help_ = "tokens of the shared few-shot prefix (1024)"
    parser.add_number("--prefix_tokens", 0, MAX_SIZE, default=1024, metavar="N", help=help_)
    help_ = "tokens of the longest problem (128)"
    parser.add_number("--body_tokens", 1, MAX_SIZE, default=128, metavar="N", help=help_)
    args, options = read_config(parser, default=_default_options)
    if not args.topology:
        raise InputError("give --topology, e.g. --topology=v3:2x2 or --topology=gpu:8xH100")
    if not _fits(args, options):
        sys.exit(1)


def _default_options(args: argparse.Namespace) -> Any:
    """The options of a command line without --config."""
    if not args.model:
        raise InputError("give --model=NAME, e.g. --model=qwen3-4b, or --config=FILE, e.g. configs/arithmetic.py")
    from star_jax.preflight import defaults

    return defaults.values()


def _fits(args: argparse.Namespace, options: Any) -> bool:
    """Prints the report. Returns True if all programs fit."""
    from star_jax.algorithms import setup
    from star_jax.models import families
    from star_jax.preflight import defaults, model_sizes
    from star_jax.preflight.budget import Lengths
    from star_jax.preflight.report import report
    from star_jax.preflight.topology import parse_topology
    from star_jax.sampling import sampler
    from star_jax.weights.sources import location

    def lengths_of(config: Config) -> Lengths:
        new_tokens = config.sampling.max_new_tokens or config.make_task().max_new_tokens
        return Lengths(args.prefix_tokens, sampler.round_up(args.body_tokens, 8), new_tokens)

    spec = model_sizes.spec_of(args.model) if args.model else None
    topology = parse_topology(args.topology)
    base = options.base.path
    if not base and not options.base.stages:
        options.base.path = "none"  # from_dict asks for a base; only the model's sizes are used here
    if spec and not args.config:
        terminal.say(f"{args.model} with {defaults.complete(options, spec, topology, lengths_of)}")
    config = from_dict(options)
    if not spec and base:
        model_config, spec = setup.resolve_model(config, location.resolve(base, weights=False).path)
        config = dataclasses.replace(config, model=model_config)
    spec, lengths = spec or families.spec_of(config.model), lengths_of(config)
    if (longest := lengths.prefix + lengths.body + lengths.new) > spec.max_positions:
        raise InputError(
            f"--prefix_tokens, --body_tokens and {lengths.new} new tokens are {longest} together; the model has "
            f"{spec.max_positions} positions"
        )
    return report(config, spec, topology, lengths, terminal.say)


if __name__ == "__main__":
    exit_on_bad_input(main)
