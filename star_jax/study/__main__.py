"""Runs a study, or continues it: the same seeds for every arm, and whether the arms differ.

    python -m star_jax.study --config=configs/studies/FILE.py [--workdir=DIR] [--config.common.star.iterations=2 ...]
                             [--print[=all|bases|arms]] [--arm=NAME --seed=N] [--allow_changes]

Makes a base for each seed, then every arm from it, one run after the other. Runs that are finished are left as they
are, so the command that started a study also continues it. After each run it writes study.html; at the end it prints
its tables, and the page's path. A run that fails costs only its row; the exit status then is that of bad input.

With --print it prints one command for each run instead, for several machines with one file system: first the bases'
(--print=bases), then those of the arms. When they are done, the command without --print writes the page.
"""

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

from star_jax import terminal
from star_jax.cli.config_flags import read_config, run_name
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.distributed import launch
from star_jax.errors import InputError
from star_jax.study import findings, page, spec, tables

_CHOOSE_RUNS = ("--print", "--arm", "--seed")


def main() -> None:
    """Parses the flags, makes the runs, prints the tables and the path of the page."""
    parser = Parser("study", __doc__)
    parser.add_path("--workdir", help="the study's directory; default: runs/<config file>[_<variant>][_limit<N>]")
    help_ = "print a command for each run: all, those of the bases, or those of the arms, and exit"
    parser.add_argument("--print", nargs="?", const="all", choices=("all", "bases", "arms"), help=help_)
    parser.add_argument("--arm", metavar="NAME", help=f"make only the run of this arm, or '{spec.BASE}', and --seed")
    parser.add_number("--seed", 0, 2**63 - 1, metavar="N", help="make only the run of --arm and this seed")
    help_ = "continue runs although settings, data, prompts or versions have changed; see star_jax.main"
    parser.add_argument("--allow_changes", action="store_true", help=help_)
    args, values = read_config(parser, prefix="common.")
    terminal.start_logging()
    logging.getLogger("star_jax").setLevel(logging.INFO)
    study = spec.read(values)
    workdir = args.workdir or Path("runs") / run_name(args.config, values.common.limit)
    if args.arm is None and args.seed is not None:
        raise InputError("--seed=N goes with --arm=NAME; the seeds of a study are --config.seeds='(0, 1)'")
    if args.print:
        from star_jax.study import execution

        for command in execution.commands(study, _without(sys.argv[1:], _CHOOSE_RUNS), args.print):
            terminal.say(command)
        return
    with launch.distributed_context():
        _run(study, workdir, args.arm, args.seed, args.allow_changes)


def _run(study: spec.Study, workdir: Path, arm: str | None, seed: int | None, allow_changes: bool) -> None:
    from star_jax.distributed import compile_cache, preemption, processes  # JAX: after distributed_context has forked
    from star_jax.study import execution

    chosen = [execution.check_place(study, arm, seed)] if arm is not None else list(execution.places(study))
    preemption.listen()
    compile_cache.enable(study.base_config(study.seeds[0]).compile_cache)
    if not processes.is_leader():
        logging.getLogger("star_jax").setLevel(logging.WARNING)
    failures: dict[spec.Place, str] = {}
    for place in chosen:
        made = True
        try:
            made = execution.make(study, workdir, place, allow_changes)
        except InputError as error:
            if place.arm == spec.BASE or arm is not None:
                raise InputError(f"{place}: {error}") from error
            failures[place] = str(error)
            logging.getLogger("star_jax").error("%s: %s", place, error)
        if made and arm is None:
            processes.broadcast_from_leader(lambda: _report(study, workdir, failures))
    preemption.end()
    if arm is None:
        report = processes.broadcast_from_leader(lambda: _report(study, workdir, failures))
        if processes.is_leader():
            terminal.say(report)
    if failures:
        place, message = next(iter(failures.items()))
        raise InputError(f"{len(failures)} of {len(chosen)} runs failed; the first, {place}: {message}")


def _report(study: spec.Study, workdir: Path, failures: Mapping[spec.Place, str]) -> str:
    """Writes the page; returns the tables of the terminal and the page's path."""
    found = findings.read(study, workdir, failures)
    parts = [f"{table.title}\n{table.text()}\n" for table in (tables.arms(found), tables.differences(found))]
    return "\n".join([*parts, str(page.write(found))])


def _without(argv: list[str], flags: tuple[str, ...]) -> list[str]:
    """The arguments without some flags and their values, which may be arguments of their own."""
    kept, is_value = [], False
    for arg in argv:
        is_flag = arg.partition("=")[0] in flags
        if not is_flag and not (is_value and not arg.startswith("-")):
            kept.append(arg)
        is_value = is_flag and "=" not in arg
    return kept


if __name__ == "__main__":
    exit_on_bad_input(main)
