"""Texts of models, files and paths as a person sees them: on the terminal, in logs and in the report.

Such a text is hostile until it has passed `visible` or `one_line`: control characters drive a terminal, direction marks
reorder a line, invisible characters hide in it. Everything that a command prints goes through this module.
"""

import contextlib
import json
import logging
import os
import re
import sys
import tempfile
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console


# Lines of absl's logging below "fatal", and the one that comes before the first of them.
_ABSL_LOG = re.compile(rb"[IWE]\d{4} \d\d:\d\d:|WARNING: All log messages before absl::InitializeLog")


class OutputError(Exception):
    """Standard output takes no more text.

    Attributes:
      reader_left: the program at the other end of the pipe has ended, as `head` does when it has its lines.
    """

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output: cannot be written ({error.strerror}); redirect it elsewhere and rerun")
        self.reader_left = isinstance(error, BrokenPipeError)


def visible(text: str) -> str:
    """The text with everything that is not seen made visible. Tabs and newlines stay.

    C0 controls become Unicode's pictures of them, everything else ⟨U+XXXX⟩: C1 controls, direction marks, lone
    surrogates, and Unicode's default-ignorable characters (joiners, variation selectors, fillers, tags).
    """
    return text.translate(_NAMES)


def one_line(text: str) -> str:
    """`visible` text on one line: every run of white space becomes one space."""
    return " ".join(visible(text).split())


def json_line(value: Any) -> str:
    """A value as one line of JSON, in which everything that `visible` replaces is escaped: readers get it unchanged."""
    return json.dumps(value, ensure_ascii=False).translate(_JSON_ESCAPES)


def say_json(value: Any) -> None:
    """Prints `json_line` on standard output; with escapes for all of Unicode if the stream's encoding is not UTF-8."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    say(json_line(value) if encoding.lower().replace("-", "") == "utf8" else json.dumps(value))


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints visible text, by default on standard output. What the stream's encoding lacks becomes an escape.

    Raises OutputError if standard output cannot be written. A message that standard error does not take is lost.
    """
    _write(visible(text) + "\n", stream or sys.stdout)


def console(stderr: bool = False) -> "Console":
    """A console for tables. It takes no markup: "[red]" in a text of a run is text. Pass texts through `one_line`."""
    from rich.console import Console

    file: Any = _RichFile(sys.stderr if stderr else sys.stdout)
    made = Console(file=file, stderr=stderr, highlight=False, markup=False, emoji=False)
    if made.width < 20:  # COLUMNS=0
        made.width = 80
    return made


@contextlib.contextmanager
def without_tensorflow_logs() -> Iterator[None]:
    """Holds back what the block writes on file descriptor 2, and writes it when the block ends, less TensorFlow's logs.

    TensorFlow logs in C++ while it is imported, for instance that there is no GPU, whatever TF_CPP_MIN_LOG_LEVEL says.
    star_jax uses it to pack texts, on the CPU.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # for what it logs later
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(standard_error, 2)
            os.close(standard_error)
            held.seek(0)
            for line in held:
                if not _ABSL_LOG.match(line):
                    os.write(2, line)


def start_logging() -> None:
    """Sends warnings of all loggers to standard error, each on one visible line after its time."""
    root = logging.getLogger()
    for other in [handler for handler in root.handlers if type(handler) is logging.StreamHandler]:
        root.removeHandler(other)  # Orbax adds one at its import, whose lines are not made visible
    handler = logging.StreamHandler()
    handler.setFormatter(_LineFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root.addHandler(handler)
    root.setLevel(logging.WARNING)


def drop_unwritten(stream: TextIO) -> None:
    """Drops what a stream holds and cannot write. Python would try again while it exits, and end with status 120."""
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


def note(text: str) -> None:
    """Prints a line on standard error, also from a signal's handler, which may have interrupted another write."""
    with contextlib.suppress(OSError):
        os.write(2, f"{visible(text)}\n".encode(errors="replace"))


def _write(text: str, stream: TextIO) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), end="", file=stream, flush=True)
    except OSError as error:
        if stream is sys.stdout:
            drop_unwritten(stream)
            raise OutputError(error) from error


class _RichFile:
    """A stream as rich's Console uses it, written as `say` writes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        _write(text, self._stream)

    def flush(self) -> None:
        """Nothing is left to write."""


class _LineFormatter(logging.Formatter):
    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return visible(super().formatException(ei))


# Default-ignorable characters outside of the categories in `_is_hidden` (Unicode 15, DerivedCoreProperties.txt), the
# code points reserved for more of them, and the blank Braille pattern.
_IGNORABLE = frozenset(
    [0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x2800, 0x3164, 0xFFA0]
    + [*range(0x180B, 0x1810), *range(0xFE00, 0xFE10), *range(0xFFF0, 0xFFF9), *range(0xE0000, 0xE1000)]
)


def _is_hidden(code: int) -> bool:
    is_noncharacter = code & 0xFFFE == 0xFFFE or 0xFDD0 <= code < 0xFDF0
    # Controls, format characters (direction marks, joiners), surrogates, line and paragraph separators.
    return unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") or code in _IGNORABLE or is_noncharacter


class _Names(dict[int, int | str]):
    """Code point -> what is shown; filled as characters are met."""

    def __missing__(self, code: int) -> int | str:
        self[code] = f"⟨U+{code:04X}⟩" if _is_hidden(code) else code
        return self[code]


class _JsonEscapes(dict[int, int | str]):
    """Code point -> what stands in JSON: itself, or its escape (two for a character outside of the first plane)."""

    def __missing__(self, code: int) -> int | str:
        self[code] = json.dumps(chr(code))[1:-1] if _is_hidden(code) else code
        return self[code]


_NAMES = _Names({**{code: 0x2400 + code for code in range(32)}, 9: 9, 10: 10})
_JSON_ESCAPES = _JsonEscapes()
