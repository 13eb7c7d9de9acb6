"""Writes a run as one self-contained HTML page; several runs are shown side by side, or listed in an index.

python -m star_jax.report --workdir=DIR [--workdir=DIR2 ...] [--output=FILE] [--watch[=SECONDS]]
python -m star_jax.report --index=DIR [--output=FILE]
"""

import contextlib

from star_jax import report, terminal
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.errors import InputError
from star_jax.report.watch import watch


def main() -> None:
    """Parses the command line, writes the page, prints its path."""
    parser = Parser("report", __doc__)
    parser.add_path("--workdir", action="append", help="a run directory; may be repeated")
    parser.add_path("--index", help="a folder of runs: write a page that lists them, with a link to each report")
    parser.add_path(
        "--output",
        metavar="FILE",
        help="the page to write (default: report.html in the run directory, comparison.html in the first of several; "
        "with --watch live.html, live_comparison.html; with --index index.html in the folder)",
    )
    parser.add_number(
        "--watch",
        1,
        10**6,
        nargs="?",
        const=10,
        metavar="SECONDS",
        help="rewrite the page at this interval (default: 10) if a run has changed, until all runs are finished",
    )
    arguments = parser.parse_args()
    if (arguments.workdir is None) == (arguments.index is None):
        raise InputError("report: give either --workdir=DIR, once or more, or --index=DIR")
    if arguments.index is not None:
        if arguments.watch is not None:
            raise InputError("report: --watch follows runs, give it with --workdir; --index writes its page once")
        terminal.say(str(report.write_index(arguments.index, arguments.output)))
        return
    if arguments.watch is None:
        terminal.say(str(report.write(arguments.workdir, arguments.output)))
        return
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the watch before the runs are finished
        watch(arguments.workdir, arguments.output, arguments.watch)


if __name__ == "__main__":
    exit_on_bad_input(main)
