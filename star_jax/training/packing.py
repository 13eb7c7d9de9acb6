"""Kept examples -> seqio Task -> packed rows with segment ids, positions and loss weights -> batches.

Token id 0 is "!" in GPT-2's vocabulary and padding to seqio, whose packer drops every 0 it meets without a word, and
takes half a millisecond an example. So the feature converter packs by itself: into the same rows, with padding a mask.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from star_jax.errors import InputError
from star_jax.records import Example
from star_jax.tokenizers.base import Tokenizer


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """R rows of T tokens. PackedMask are numbered 1, 2, ... in a row, padding is segment 0."""

    tokens_RT: np.ndarray  # int32; 0 in padding, where the segment id says that it is no token
    positions_RT: np.ndarray  # int32; restart at 0 with each segment
    segment_ids_RT: np.ndarray  # int32
    weights_RT: np.ndarray  # float32; 1 where predicting this token counts, never for a segment's first
    too_long: int  # examples left out because they exceed a row
    problem_ids: tuple[tuple[str, ...], ...]  # of each row, in the order of its segments

    @property
    def rows(self) -> int:
        return self.tokens_RT.shape[0]

    def digest(self) -> str:
        """Names the rows' content."""
        return hashlib.sha256(self.tokens_RT.tobytes() + self.weights_RT.tobytes()).hexdigest()

    def take(self, index: np.ndarray) -> dict[str, np.ndarray]:
        """A batch of the given rows."""
        names = ("tokens_RT", "positions_RT", "segment_ids_RT", "weights_RT")
        return {name: getattr(self, name)[index] for name in names}


def tokenize(example: Example, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, loss weights) of prompt + completion + end-of-text; the prompt weighs 0.

    The prompt is encoded by itself, as the sampler does, so its end is known and not searched for.
    """
    prompt = tokenizer.encode(example.prompt)
    ids, weights = list(prompt), [0] * len(prompt)
    for text, weight in _spans(example):
        new = tokenizer.encode(text)
        ids += new
        weights += [weight] * len(new)
    ids, weights = [*ids, tokenizer.end_of_text], [*weights, 1]
    weights[0] = 0  # nothing precedes a segment's first token, so nothing can predict it
    return np.array(ids, np.int32), np.array(weights, np.int32)


def pack(
    examples: Sequence[Example], tokenizer: Tokenizer, row_tokens: int, seed: int, name: str = "kept"
) -> PackedRows:
    """Packs the examples through the seqio task `star_jax:<name>`. Raises InputError when none fits a row."""
    arrays = [(*tokenize(example, tokenizer), example.problem_id) for example in examples]
    fitting = [entry for entry in arrays if len(entry[0]) <= row_tokens]
    if not fitting:
        raise InputError(
            f"none of {len(arrays)} training examples fits a row of {row_tokens} tokens; raise train.row_tokens"
        )
    order = _best_fit_order([len(ids) for ids, _, _ in fitting], row_tokens, np.random.default_rng(seed))
    rows = _through_seqio([fitting[i][:2] for i in order], row_tokens, name)
    names = iter([fitting[i][2] for i in order])
    return PackedRows(
        tokens_RT=rows["ids"],
        positions_RT=rows["ids_positions"],
        segment_ids_RT=rows["ids_segment_ids"],
        weights_RT=rows["weights"].astype(np.float32),
        too_long=len(arrays) - len(fitting),
        problem_ids=tuple(tuple(itertools.islice(names, n)) for n in rows["ids_segment_ids"].max(axis=1)),
    )


def batches(rows: PackedRows, batch_rows: int, seed: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from step `start` on: every row once an epoch, in an order fixed by (seed, epoch).

    The stream of rows runs on across epochs, so no batch is short and no row is dropped, whatever their number.
    """
    for index in _orders(rows.rows, batch_rows, seed, start):
        yield rows.take(index)


def describe_batch(rows: PackedRows, batch_rows: int, seed: int, step: int) -> str:
    """What `batches` gives for a step, in words: the rows' numbers and the problems of their examples."""
    index = next(_orders(rows.rows, batch_rows, seed, step))
    ids = [name for row in index for name in rows.problem_ids[row]]
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return f"packed rows {', '.join(map(str, index))}: problems {', '.join(ids[:8])}{more}"


def _orders(count: int, batch_rows: int, seed: int, start: int) -> Iterator[np.ndarray]:
    """The numbers of the rows of each batch from step `start` on."""
    position = start * batch_rows
    order = {}
    while True:
        index = []
        for place in range(position, position + batch_rows):
            epoch, offset = divmod(place, count)
            if epoch not in order:
                order = {epoch: np.random.default_rng([seed, epoch]).permutation(count)}
            index.append(order[epoch][offset])
        yield np.array(index)
        position += batch_rows


def warm_up() -> None:
    """Imports seqio (TensorFlow comes with it, about ten seconds): called while the device works.

    In the main thread: what seqio imports takes over Python's import for a while (etils' lazy imports), and any other
    thread that imports a module meanwhile, were it for a function's own use, gets something that is none.
    """
    if "seqio" not in sys.modules:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
        with _quiet_native_stderr():
            import seqio  # noqa: F401


@contextlib.contextmanager
def _quiet_native_stderr() -> Iterator[None]:
    """Sends what native code writes to standard error nowhere: TensorFlow greets with six lines on CPUs and CUDA.

    `main` moves Python's own standard error to another descriptor first, so only native lines are lost.
    """
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _spans(example: Example) -> Iterator[tuple[str, int]]:
    """The completion cut into (text, weight) at the borders of its unweighted spans."""
    done = 0
    for start, end in example.unweighted:
        yield example.completion[done:start], 1
        yield example.completion[start:end], 0
        done = end
    yield example.completion[done:], 1


def _best_fit_order(lengths: Sequence[int], size: int, rng: np.random.Generator) -> list[int]:
    """An order in which next-fit packing fills rows as best-fit decreasing would.

    Rows are filled by next-fit in batches of `size` examples; each batch but the last may cost one row more.
    """
    shuffled = rng.permutation(len(lengths))
    with_room: dict[int, list[list[int]]] = {}  # room left -> bins
    bins: list[list[int]] = []
    for i in sorted(shuffled, key=lambda i: -lengths[i]):
        room = next((r for r in range(lengths[i], size + 1) if with_room.get(r)), None)
        if room is None:
            bins.append(chosen := [])
            room = size
        else:
            chosen = with_room[room].pop()
        chosen.append(int(i))
        with_room.setdefault(room - lengths[i], []).append(chosen)
    return [i for b in rng.permutation(len(bins)) for i in bins[b]]


def _through_seqio(arrays: Sequence[tuple[np.ndarray, np.ndarray]], row_tokens: int, name: str) -> dict[str, Any]:
    """Registers the arrays as a seqio Task and reads it back packed: name -> [R, T]."""
    warm_up()
    import seqio
    import tensorflow as tf

    lengths = [len(ids) for ids, _ in arrays]

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        features = {
            key: tf.RaggedTensor.from_row_lengths(np.concatenate([pair[i] for pair in arrays]), lengths)
            for i, key in enumerate(("ids", "weights"))
        }
        return tf.data.Dataset.from_tensor_slices(features)

    task, feature = f"star_jax:{name}", seqio.Feature(seqio.PassThroughVocabulary(2**31 - 1), add_eos=False)
    if task in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(task)
    seqio.TaskRegistry.add(
        task,
        source=seqio.FunctionDataSource(dataset, splits=["train"]),
        preprocessors=[],
        output_features={"ids": feature, "weights": feature},
    )
    packed = seqio.get_dataset(
        task,
        task_feature_lengths={"ids": row_tokens, "weights": row_tokens},
        dataset_split="train",
        shuffle=False,
        num_epochs=1,
        feature_converter=_completion_converter(seqio, tf),
    )
    parts = list(packed.batch(_READ_AT_ONCE).as_numpy_iterator())
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


_READ_AT_ONCE = 1024  # elements of a tf.data pipeline; each read costs as much as it takes to copy hundreds


def _completion_converter(seqio: Any, tf: Any) -> Any:
    """A feature converter for tokens with a loss weight each; seqio's own know only "loss on all targets"."""
    spec = seqio.FeatureConverter.FeatureSpec
    extra = [f"{key}_{what}" for key in ("ids", "weights") for what in ("segment_ids", "positions")]

    class CompletionConverter(seqio.FeatureConverter):
        TASK_FEATURES: ClassVar = {"ids": spec(dtype=tf.int32), "weights": spec(dtype=tf.int32)}
        MODEL_FEATURES: ClassVar = TASK_FEATURES
        PACKING_FEATURE_DTYPES: ClassVar = {name: tf.int32 for name in extra}

        def _convert_features(self, ds: Any, task_feature_lengths: Any) -> Any:
            parts = list(ds.ragged_batch(_READ_AT_ONCE))
            lengths = np.concatenate([part["ids"].row_lengths().numpy() for part in parts])
            flat = {
                key: np.concatenate([part[key].flat_values.numpy() for part in parts]) for key in ("ids", "weights")
            }
            return tf.data.Dataset.from_tensor_slices(_fill_rows(flat, lengths, task_feature_lengths["ids"]))

        def get_model_feature_lengths(self, task_feature_lengths: Any) -> Any:
            return {**task_feature_lengths, **{name: task_feature_lengths[name.split("_")[0]] for name in extra}}

    # Lengths were measured before; checked once more, an example at a time, they would take longer than all the rest.
    return CompletionConverter(pack=True, apply_length_check=False)


def _fill_rows(flat: dict[str, np.ndarray], lengths: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Examples, one behind the other in `flat`, in rows [R, size] as seqio's packer fills them; zeros are padding.

    Next-fit, and the open row is closed after every `size` examples. To each name belong its segment ids and positions.
    """
    row, room, segment = -1, 0, 0
    starts, segments = [], []
    for i, length in enumerate(lengths.tolist()):
        if length > room or i % size == 0:
            row, room, segment = row + 1, size, 0
        segment += 1
        starts.append((row + 1) * size - room)
        segments.append(segment)
        room -= length
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    places = np.repeat(starts, lengths) + within

    def rows(values: np.ndarray) -> np.ndarray:
        out = np.zeros((row + 1) * size, np.int32)
        out[places] = values
        return out.reshape(row + 1, size)

    about = {"segment_ids": rows(np.repeat(segments, lengths)), "positions": rows(within)}
    return {name: rows(values) for name, values in flat.items()} | {
        f"{name}_{what}": values for name in flat for what, values in about.items()
    }
