"""What travels between the stages: frozen dataclasses, one JSON object per line on disk. No JAX here.

Token ids and per-token log-probabilities are too many for JSON: fields marked `_side` are left out of the line and
stored by `runs.run_directory` in a binary file next to it.
"""

import base64
import dataclasses
import enum
import functools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from star_jax.errors import InputError


class Verdict(enum.StrEnum):
    """How a completion was judged."""

    RIGHT = "right"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"  # it stopped by itself and holds no answer
    TRUNCATED = "truncated"  # the token budget ran out before a stop: even an answer in it may be half of one


class Source(enum.StrEnum):
    """Where the completion of a training example comes from."""

    SAMPLED = "sampled"
    RATIONALIZED = "rationalized"  # sampled with the answer as a hint
    REFERENCE = "reference"  # the data set's own (star.direct)
    PRETRAINING = "pretraining"


# How tables and the report name them; the one place.
LABELS: dict[Verdict | Source, str] = {
    Verdict.RIGHT: "right",
    Verdict.WRONG: "wrong",
    Verdict.UNPARSABLE: "unparsable",
    Verdict.TRUNCATED: "truncated",
    Source.SAMPLED: "sampled",
    Source.RATIONALIZED: "rationalized",
    Source.REFERENCE: "reference",
    Source.PRETRAINING: "pretraining",
}
RIGHT_WRONG_STEPS = "right_wrong_steps"  # count next to the verdicts: right answers whose steps fail the task's check


def _side(dtype: str) -> Any:
    """A field stored as a little-endian `dtype` ("i4", "f4") array in the binary side file; empty if unknown."""
    return dataclasses.field(default=(), metadata={"side": dtype})


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem x with its answer y (paper, section 3)."""

    id: str  # unique within a task, the same in every run
    question: str
    answer: str  # the reference answer in the form the task's `parse` returns
    category: str = ""  # the class accuracy is broken down by, e.g. "3 digits"
    choices: tuple[str, ...] = ()  # multiple choice only, in the order of the labels a, b, c ...
    rationale: str | None = None  # the reference solution where the data set has one


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The text that a completion continues: few-shot prefix (shared by all problems of a pass) + this problem."""

    prefix: str
    body: str

    @property
    def text(self) -> str:
        return self.prefix + self.body


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt with its token ids, encoded once for sampling."""

    prompt: Prompt
    prefix_ids: tuple[int, ...]  # encoded once for all problems that share the prefix
    body_ids: tuple[int, ...]  # of the white space after the prefix, and the body


@dataclasses.dataclass(frozen=True)
class Completion:
    """One sample from the model, judged. A run stores all of them in samples.jsonl and rationalizations.jsonl."""

    problem_id: str
    iteration: int  # the iteration that sampled it, from the weights of the iteration before
    sample_index: int  # 0, 1, ... of the samples of this problem
    hinted: bool  # the prompt held the answer
    text: str  # cut at the stop; the stop itself is not part of it
    answer: str | None  # as parsed; None: there is none
    verdict: Verdict
    consistent: bool | None  # the steps check out; None: this task cannot tell, or there is no answer
    log_probability: float  # sum of log p of the sampled tokens (stop included), nats, at temperature 1
    tokens: int  # number of sampled tokens, the stop's included
    seed: str  # the text its random key was derived from
    token_ids: tuple[int, ...] = _side("i4")  # as sampled, the stop's included
    token_log_probs: tuple[float, ...] = _side("f4")  # of each of them, nats, at temperature 1


@dataclasses.dataclass(frozen=True)
class Example:
    """One training example: loss on `completion` and the end-of-text after it, none on `prompt`."""

    problem_id: str
    prompt: str  # hint-free unless `hint_kept`
    completion: str
    iteration: int
    source: Source
    hint_kept: bool = False
    sample_index: int = 0
    seed: str = ""
    verdict: Verdict | None = None
    log_probability: float | None = None
    prompt_set: str = ""  # fingerprint of the few-shot text before the prompt
    weights: str = ""  # fingerprint of the weights it was sampled from
    loss_weight: float = 1.0  # of each of its loss tokens; star_jax itself only writes 1
    # Spans [start, end) of `completion` in characters that carry no loss; only the embedded base uses them.
    unweighted: tuple[tuple[int, int], ...] = ()
    # The sampled ids of `completion` if it was cut on a token border; training uses them. Empty: it is encoded again.
    token_ids: tuple[int, ...] = _side("i4")


Record = TypeVar("Record", Problem, Completion, Example)


def to_json(record: Any, with_side: bool = False) -> str:
    """One line of JSON (no newline at its end), keys in the order of the dataclass.

    `with_side`: include the side fields, as base64 of their little-endian bytes.
    """
    values = record.__dict__  # dataclasses.asdict copies every value, ten times as slow
    if side := side_fields(cast(Any, type(record))):
        values = {name: value for name, value in values.items() if name not in side}
        if with_side:
            values |= {
                name: base64.b64encode(np.asarray(getattr(record, name), f"<{dtype}").tobytes()).decode()
                for name, dtype in side.items()
            }
    return json.dumps(values, ensure_ascii=False)


def from_json(kind: type[Record], line: str) -> Record:
    """The inverse of `to_json`. Raises ValueError with the reason when the line is not such a record."""
    values = json.loads(line)
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    names, required = _keys(cast(Any, kind))  # to mypy a class of dataclasses has no hash
    for name, dtype in side_fields(cast(Any, kind)).items():
        if name in values:
            if not isinstance(values[name], str):
                raise ValueError(f"'{name}' must be base64 text")
            values[name] = tuple(np.frombuffer(base64.b64decode(values[name]), f"<{dtype}").tolist())
    if unknown := sorted(values.keys() - names):
        raise ValueError(f"unknown key '{unknown[0]}'")
    if missing := sorted(required - values.keys()):
        raise ValueError(f"key '{missing[0]}' is missing")
    for key, value in values.items():
        if isinstance(value, list):
            values[key] = _freeze(value)
    for key, enumeration in (("verdict", Verdict), ("source", Source)):
        if isinstance(values.get(key), str):
            values[key] = enumeration(values[key])
    return kind(**values)


@functools.cache
def side_fields(kind: type) -> dict[str, str]:
    """Name -> dtype of the fields that the JSON line leaves out."""
    return {f.name: f.metadata["side"] for f in dataclasses.fields(kind) if "side" in f.metadata}


@functools.cache
def _keys(kind: type) -> tuple[frozenset[str], frozenset[str]]:
    """The names of a line's keys, and of those that must be there."""
    fields = dataclasses.fields(kind)
    return frozenset(f.name for f in fields), frozenset(f.name for f in fields if f.default is dataclasses.MISSING)


def read_jsonl(kind: type[Record], path: Path) -> Iterator[Record]:
    """Yields the records of a file; raises InputError naming file and line at the first one that is broken."""
    try:
        with open(path, "rb") as file:  # lines are decoded one by one, so that a broken one can be named
            for number, line in enumerate(file, start=1):
                try:
                    yield from_json(kind, line.decode("utf-8"))
                except UnicodeDecodeError as error:
                    raise InputError(f"{path}:{number}: not UTF-8 text. Delete the file to regenerate it") from error
                except ValueError as error:
                    raise InputError(
                        f"{path}:{number}: not a {kind.__name__} record ({error}). Delete the file to regenerate it"
                    ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def natural_order(label: str) -> list[tuple[int, str]]:
    """Sort key for category names: "2 digits" comes before "10 digits"."""
    return [(int(part or 0), text) for part, text in re.findall(r"([0-9]{0,18})([^0-9]*)", label)]


def write_lines(records: Iterable[Any]) -> str:
    """The text of a JSON-lines file."""
    return "".join(to_json(record) + "\n" for record in records)


def _freeze(value: Any) -> Any:
    return tuple(_freeze(item) for item in value) if isinstance(value, list) else value
