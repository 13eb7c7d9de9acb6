"""Will it fit? Compiles a config's programs for a TPU topology without the TPU; counts memory for GPUs.

    python -m star_jax.preflight --model=qwen3-4b --topology=v5e:2x4
    python -m star_jax.preflight --config=FILE --topology=v3:2x2
    python -m star_jax.preflight --config=FILE --topology=gpu:4xA100-40GB

TPU topologies (v3:2x2, v4:2x2x1, v5e:2x4, v5p:2x2x1, v6e:2x4, ...: chips along each axis of the torus) need libtpu,
which the extra `preflight` installs. Its compiler is the one that a TPU run uses, so the memory is what the run takes.
FLOPs are counted from the sizes: the compiler counts a loop's body once. GPU memory (gpu:8xH100) is only counted.
What a run on these devices would refuse at its start is refused here with its message. The lengths of prompts are the
config's: its shots, its problems and its tokenizer, or an estimate where one of them is not on this machine.
--model takes the sizes of a published model by its name, instead of those of the config or its base, and downloads
nothing. Without --config the options are the defaults for your own data, in bfloat16, sharded over all devices.
Exit status 1: it does not fit.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from star_jax import terminal
from star_jax.cli.config_flags import read_config
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.config import MAX_SIZE, SIZES, Config, from_dict
from star_jax.errors import InputError

if TYPE_CHECKING:
    from star_jax.models.spec import DecoderSpec

_NO_BASE = "(none)"  # base.path of a config that has sizes and no base


def main() -> None:
    """Parses the flags and prints the report."""
    # JAX reads it at import, so nothing above may import JAX: a local accelerator is neither used nor initialized.
    os.environ["JAX_PLATFORMS"] = "cpu"
    parser = Parser("preflight", __doc__)
    help_ = "devices, e.g. v3:2x2, v5e:4x4, gpu:8xH100, gpu:1xA100-40GB; a wrong name lists all"
    parser.add_argument("--topology", help=help_)
    parser.add_argument("--model", default="", help="a published model, e.g. qwen3-4b; a wrong name lists all")
    help_ = "tokens of the few-shot prefix, instead of the config's"
    parser.add_number("--prefix_tokens", 0, MAX_SIZE, metavar="N", help=help_)
    help_ = "tokens of the longest problem, instead of the data's"
    parser.add_number("--body_tokens", 1, MAX_SIZE, metavar="N", help=help_)
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
    from star_jax.preflight import defaults, lengths, model_sizes
    from star_jax.preflight.report import report
    from star_jax.preflight.topology import parse_topology

    named = model_sizes.spec_of(args.model) if args.model else None
    topology = parse_topology(args.topology)
    given = args.prefix_tokens, args.body_tokens
    has_task = bool(args.config or options.task.train)  # the default task, jsonl, has no problems of its own
    sized = named or all(options.model[name] for name in SIZES if name != "rotary_dim")
    if sized and not options.base.path and not options.base.stages:
        options.base.path = _NO_BASE  # from_dict asks for one, as a run does; where there are no sizes, rightly
    if named and not args.config:
        flags = defaults.complete(
            options, named, topology, lambda config: lengths.assumed(_sized(config, named), *given)[0]
        )
        terminal.say(f"{args.model} with {flags}")
    config, spec, base = _model(from_dict(options), named)
    setup.check_devices(config, spec, topology.processes)
    sizes, origin = lengths.of_run(config, base, *given) if has_task else lengths.assumed(config, *given)
    terminal.say(f"tokens of a prompt: {origin}")
    return report(config, spec, topology, sizes, terminal.say)


def _model(config: Config, named: "DecoderSpec | None") -> "tuple[Config, DecoderSpec, Path | None]":
    """The config with the model's sizes, the model's spec, and the base's directory as lengths.of_run takes it.

    `named`: of --model. Raises InputError.
    """
    from star_jax.algorithms import setup
    from star_jax.weights.sources import location

    without_base = config.base.path == _NO_BASE
    if without_base:
        config = dataclasses.replace(config, base=dataclasses.replace(config.base, path=""))
    if named:
        return _sized(config, named), named, Path() if config.tokenizer else None
    base = location.resolve(config.base.path, weights=False).path
    model, spec = setup.resolve_model(config, base)
    known_tokenizer = config.tokenizer or not without_base
    return dataclasses.replace(config, model=model), spec, base if known_tokenizer else None


def _sized(config: Config, spec: "DecoderSpec") -> Config:
    """The config with the sizes of a spec."""
    from star_jax.algorithms import setup

    return dataclasses.replace(config, model=dataclasses.replace(config.model, **setup.sizes_of(spec)))


if __name__ == "__main__":
    exit_on_bad_input(main)
