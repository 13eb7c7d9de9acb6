"""What travels between the stages: frozen dataclasses, one JSON object per line on disk. No JAX here.

Token ids and per-token log-probabilities are too many for JSON: fields marked `_side` are left out of the line and
stored by `runs.run_directory` in a binary file next to it.
"""

import base64
import dataclasses
import enum
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

import numpy as np

from star_jax import json_reader
from star_jax.errors import InputError


class Verdict(enum.StrEnum):
    """How a completion was judged."""

    RIGHT = "right"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"  # it stopped by itself and holds no answer, or its bytes are not valid UTF-8
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


ProblemKey = tuple[str, str]  # id and fingerprint: the same problem with the same content


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem x with its answer y (paper, section 3)."""

    id: str  # unique within a task, the same in every run
    question: str
    answer: str  # the reference answer in the form the task's `parse` returns
    category: str = ""  # the class accuracy is broken down by, e.g. "3 digits"
    choices: tuple[str, ...] = ()  # multiple choice only, in the order of the labels a, b, c ...
    rationale: str | None = None  # the reference solution where the data set has one

    @property
    def fingerprint(self) -> str:
        """Twelve hex digits of the SHA-256 of question, choices and answer: the content that a sample belongs to."""
        content = json.dumps([self.question, self.choices, self.answer])
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def key(self) -> ProblemKey:
        return self.id, self.fingerprint


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The text that a completion continues: few-shot prefix (shared by all problems of a pass) + this problem."""

    prefix: str
    body: str

    @property
    def text(self) -> str:
        return self.prefix + self.body

    @property
    def shots(self) -> list[str]:
        """The shots of a plain prefix, which blank lines separate."""
        return [shot for shot in self.prefix.split("\n\n") if shot]


@dataclasses.dataclass(frozen=True)
class EncodedPrompt:
    """A prompt with its token ids, encoded once for sampling. Together they are the prompt's ids."""

    prompt: Prompt
    prefix_ids: tuple[int, ...]  # BOS and what all problems share; encoded once
    body_ids: tuple[int, ...]  # of the prefix's last characters (Tokenizer.cut) and the body


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
    problem_fingerprint: str = ""  # Problem.fingerprint; "": not recorded, which matches no problem
    right_leniently: bool | None = None  # right by Task.lenient's reader; None: the task has one reader
    token_ids: tuple[int, ...] = _side("i4")  # as sampled, the stop's included
    token_log_probs: tuple[float, ...] = _side("f4")  # of each of them, nats, at temperature 1

    @property
    def problem_key(self) -> ProblemKey:
        return self.problem_id, self.problem_fingerprint


@dataclasses.dataclass(frozen=True)
class Example:
    """One training example: loss on `completion` and the end id after it, none on `prompt`."""

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
    anchoring: float | None = None  # nats by which the hint raises log p of a rationalization; None: not scored
    prompt_set: str = ""  # fingerprint of the few-shot text before the prompt
    weights: str = ""  # fingerprint of the weights it was sampled from
    loss_weight: float = 1.0  # of each of its loss tokens; star_jax itself only writes 1
    prefix_length: int = 0  # characters of `prompt` that are its few-shot prefix; the two are encoded as when sampling
    problem_fingerprint: str = ""  # as in Completion
    # Spans [start, end) of `completion` in characters that carry no loss; only the embedded base uses them.
    unweighted: tuple[tuple[int, int], ...] = ()
    retokenized: int = 0  # tokens at the end of `token_ids` that were encoded: the stop began inside a sampled token
    # The sampled ids of `completion`; training uses them. Empty (references, pretraining): `completion` is encoded.
    token_ids: tuple[int, ...] = _side("i4")
    # The ids of a conversation: its text does not show which special tokens are the template's and which are names in a
    # problem. Empty for a plain prompt, which training encodes again.
    prompt_ids: tuple[int, ...] = _side("i4")

    @property
    def problem_key(self) -> ProblemKey:
        return self.problem_id, self.problem_fingerprint


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
    values = json_reader.parse_object(line)
    fields, required = _fields(cast(Any, kind))  # to mypy a class of dataclasses has no hash
    if not required <= values.keys():
        raise ValueError(f"key '{min(required - values.keys())}' is missing")
    for name, value in values.items():
        if (field := fields.get(name)) is None:
            raise ValueError(f"unknown key '{name}'")
        if type(value) not in field.types:
            raise ValueError(f"'{name}' should be {field.description}, is {json_reader.short(value)}")
        if field.convert is not None and value is not None:
            try:
                values[name] = field.convert(value)
            except ValueError as error:
                raise ValueError(f"'{name}' should be {field.description}, is {json_reader.short(value)}") from error
    return kind(**values)


@functools.cache
def side_fields(kind: type) -> dict[str, str]:
    """Name -> dtype of the fields that the JSON line leaves out."""
    return {f.name: f.metadata["side"] for f in dataclasses.fields(kind) if "side" in f.metadata}


class _Field(NamedTuple):
    """How JSON holds the values of one type."""

    types: frozenset[type]  # of the parsed JSON
    description: str  # for messages
    convert: Callable[[Any], Any] | None = None  # to the record's value, except null; ValueError for a bad value


@functools.cache
def _fields(kind: type) -> tuple[dict[str, _Field], frozenset[str]]:
    """The keys of a line with their types, and those that must be there."""
    annotations, fields = get_type_hints(kind), dataclasses.fields(kind)
    by_name = {
        f.name: _side_field(f.metadata["side"]) if "side" in f.metadata else _field(annotations[f.name]) for f in fields
    }
    return by_name, frozenset(f.name for f in fields if f.default is dataclasses.MISSING)


def _field(annotation: Any) -> _Field:
    """The JSON of a type that records use."""
    arguments = get_args(annotation)
    if type(None) in arguments:  # X | None
        types, description, convert = _field(next(a for a in arguments if a is not type(None)))
        return _Field(types | {type(None)}, f"{description} or null", convert)
    if get_origin(annotation) is tuple:
        return _tuple_field(arguments)
    if issubclass(annotation, enum.StrEnum):
        return _Field(frozenset({str}), f"one of {', '.join(annotation)}", annotation)
    return {
        str: _Field(frozenset({str}), "text"),
        bool: _Field(frozenset({bool}), "true or false"),
        int: _Field(frozenset({int}), "an integer", _bounded),
        float: _Field(frozenset({int, float}), "a number", _bounded),
    }[annotation]


def _tuple_field(arguments: tuple[Any, ...]) -> _Field:
    """A list of `arguments`: of one type and any length if the second is an ellipsis."""
    any_length = arguments[-1] is Ellipsis
    items = [_field(argument) for argument in arguments if argument is not Ellipsis]

    def convert(values: list[Any]) -> tuple[Any, ...]:
        if not any_length and len(values) != len(items):
            raise ValueError
        pairs = [(items[0 if any_length else index], value) for index, value in enumerate(values)]
        if any(type(value) not in item.types for item, value in pairs):
            raise ValueError
        return tuple(item.convert(value) if item.convert and value is not None else value for item, value in pairs)

    of = items[0].description if any_length else ", ".join(item.description for item in items)
    return _Field(frozenset({list}), f"a list of {of}", convert)


def _side_field(dtype: str) -> _Field:
    def convert(value: str) -> tuple[Any, ...]:
        return tuple(np.frombuffer(base64.b64decode(value, validate=True), f"<{dtype}").tolist())

    return _Field(frozenset({str}), f"base64 text of {dtype} values", convert)


def _bounded(value: float) -> float:
    """A number that later sums and products stay finite with. NaN and infinities: a broken model gives them."""
    if isinstance(value, int) and abs(value) > json_reader.MAX_INTEGER:
        raise ValueError
    return value


def read_jsonl(kind: type[Record], path: Path) -> Iterator[Record]:
    """Yields the records of a file; raises InputError naming file and line at the first one that is broken."""
    for number, line in json_reader.read_lines(path, "delete it to regenerate it"):
        try:
            yield from_json(kind, line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}:{number}: not UTF-8 text. Delete the file to regenerate it") from error
        except ValueError as error:
            raise InputError(
                f"{path}:{number}: not a {kind.__name__} record ({error}). Delete the file to regenerate it"
            ) from error


def natural_order(label: str) -> list[tuple[int, str]]:
    """Sort key for category names: "2 digits" comes before "10 digits"."""
    return [(int(part or 0), text) for part, text in re.findall(r"([0-9]{0,18})([^0-9]*)", label)]


def write_lines(records: Iterable[Any]) -> str:
    """The text of a JSON-lines file."""
    return "".join(to_json(record) + "\n" for record in records)
