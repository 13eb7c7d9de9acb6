"""python -m star_jax.report --workdir=DIR [--workdir=DIR2 ...] [--output=FILE]"""

import argparse
from pathlib import Path
from typing import NoReturn

from star_jax import report
from star_jax.errors import InputError, exit_on_bad_input


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"report: {message}; see python -m star_jax.report --help")


def main() -> None:
    """Parses the command line, writes the page, prints its path."""
    parser = _Parser(
        prog="python -m star_jax.report",
        description="Writes a run as one self-contained HTML page; several runs are put side by side.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--workdir", type=Path, action="append", required=True, metavar="DIR", help="a run's directory; may be repeated"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the page to write (default: report.html in the first run's directory)",
    )
    arguments = parser.parse_args()
    print(report.write(arguments.workdir, arguments.output))


if __name__ == "__main__":
    exit_on_bad_input(main)
