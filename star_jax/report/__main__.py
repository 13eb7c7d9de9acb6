"""Writes a run as one self-contained HTML page; several runs are shown side by side.

python -m star_jax.report --workdir=DIR [--workdir=DIR2 ...] [--output=FILE] [--watch[=SECONDS]]
"""

import contextlib
from pathlib import Path

from star_jax import report
from star_jax.cli.parser import Parser, exit_on_bad_input
from star_jax.errors import InputError
from star_jax.report.watch import watch


def main() -> None:
    """Parses the command line, writes the page, prints its path."""
    parser = Parser("report", __doc__)
    parser.add_argument(
        "--workdir", type=Path, action="append", required=True, metavar="DIR", help="a run directory; may be repeated"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page to write (default: report.html in the first run directory, live.html with --watch)",
    )
    parser.add_argument(
        "--watch",
        type=int,
        nargs="?",
        const=10,
        metavar="SECONDS",
        help="rewrite the page at this interval (default: 10) if a run has changed, until all runs are finished",
    )
    arguments = parser.parse_args()
    if arguments.watch is None:
        print(report.write(arguments.workdir, arguments.output))
        return
    if arguments.watch < 1:
        raise InputError(f"report: --watch must be at least 1 second, got {arguments.watch}")
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the watch before the runs are finished
        watch(arguments.workdir, arguments.output, arguments.watch)


if __name__ == "__main__":
    exit_on_bad_input(main)
