"""Training examples -> a seqio task -> packed rows with segment ids, positions and loss weights -> batches.

Token id 0 is "!" in GPT-2's vocabulary and padding for seqio, whose own packer drops every 0 without a word and takes
half a millisecond per example. So our feature converter packs: the same rows, with padding as a mask.
"""

import dataclasses
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np

from star_jax.errors import InputError
from star_jax.records import Example
from star_jax.tasks import seqio_task
from star_jax.tokenizers.base import Tokenizer
from star_jax.tokenizers.round_trip import check_text


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """R rows of T tokens. A segment is one example. They are numbered 1, 2, ... in a row; padding is segment 0."""

    tokens_RT: np.ndarray  # int32; 0 in padding, which the segment id marks
    positions_RT: np.ndarray  # int32; restart at 0 with each segment
    segment_ids_RT: np.ndarray  # int32
    weights_RT: np.ndarray  # float32 loss weight of predicting this token; 0 for prompts, first tokens and padding
    too_long: int  # examples left out because they exceed a row
    problem_ids: tuple[tuple[str, ...], ...]  # of each row, in the order of its segments

    @property
    def rows(self) -> int:
        return self.tokens_RT.shape[0]

    def digest(self) -> str:
        """SHA-256 of tokens and weights."""
        return hashlib.sha256(self.tokens_RT.tobytes() + self.weights_RT.tobytes()).hexdigest()

    def take(self, index_B: np.ndarray) -> dict[str, np.ndarray]:
        """The batch of these rows."""
        names = ("tokens_RT", "positions_RT", "segment_ids_RT", "weights_RT")
        return {name: getattr(self, name)[index_B] for name in names}


def tokenize(example: Example, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(token ids, float32 loss weights) of prompt + completion + end id; prompt tokens weigh 0.

    The prompt is encoded separately, so where it ends is known. The completion's tokens are the sampled ones if the
    example carries them, else its text is encoded. The end is the tokenizer's first end id, whatever stopped the
    completion.

    Raises InputError for a text that the tokenizer does not keep.
    """
    prompt_ids = prompt_tokens(example, tokenizer)
    ids, weights = list(prompt_ids), [0.0] * len(prompt_ids)
    for part_ids, weight in _completion_parts(example, tokenizer):
        ids += part_ids
        weights += [weight] * len(part_ids)
    ids, weights = [*ids, tokenizer.end_ids[0]], [*weights, example.loss_weight]
    weights[0] = 0.0  # nothing precedes a segment's first token, so nothing can predict it
    return np.array(ids, np.int32), np.array(weights, np.float32)


def prompt_tokens(example: Example, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids: those that were sampled from, made in the same way."""
    if example.prompt_ids:
        return list(example.prompt_ids)
    prefix, body = example.prompt[: example.prefix_length], example.prompt[example.prefix_length :]
    prefix_ids, body_ids = tokenizer.encode_parts(prefix, body)
    return [*prefix_ids, *body_ids]


def pack(
    examples: Sequence[Example], tokenizer: Tokenizer, row_tokens: int, seed: int, name: str = "kept"
) -> PackedRows:
    """Packs the examples through the seqio task `star_jax:<name>`. Raises InputError if none fits a row."""
    arrays = [(*tokenize(example, tokenizer), example.problem_id) for example in examples]
    fitting = [entry for entry in arrays if len(entry[0]) <= row_tokens]
    if not fitting:
        raise InputError(
            f"none of {len(arrays)} training examples fits a row of {row_tokens} tokens; raise train.row_tokens"
        )
    order = best_fit_order([len(ids) for ids, _, _ in fitting], row_tokens, np.random.default_rng(seed))
    rows = _through_seqio([fitting[i][:2] for i in order], row_tokens, name)
    problem_ids = iter([fitting[i][2] for i in order])
    return PackedRows(
        tokens_RT=rows["ids"],
        positions_RT=rows["ids_positions"],
        segment_ids_RT=rows["ids_segment_ids"],
        weights_RT=rows["weights"],
        too_long=len(arrays) - len(fitting),
        problem_ids=tuple(tuple(itertools.islice(problem_ids, n)) for n in rows["ids_segment_ids"].max(axis=1)),
    )


def batches(rows: PackedRows, batch_rows: int, seed: int, start: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from step `start` on: every row once per epoch, in an order fixed by (seed, epoch).

    Batches continue across epochs, so none is short and no row is dropped, whatever their number.
    """
    for index_B in _batch_indices(rows.rows, batch_rows, seed, start):
        yield rows.take(index_B)


def describe_batch(rows: PackedRows, batch_rows: int, seed: int, step: int) -> str:
    """The rows that `batches` gives for a step, and the problems of their examples, as text."""
    index_B = next(_batch_indices(rows.rows, batch_rows, seed, step))
    ids = [problem_id for row in index_B for problem_id in rows.problem_ids[row]]
    more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
    return f"packed rows {', '.join(map(str, index_B))}: problems {', '.join(ids[:8])}{more}"


def best_fit_order(lengths: Sequence[int], size: int, rng: np.random.Generator) -> list[int]:
    """An order in which next-fit packing fills rows as best-fit decreasing would.

    Rows are filled by next-fit in batches of `size` examples; each batch but the last may cost one row more.
    """
    shuffled = rng.permutation(len(lengths))
    bins_by_room: dict[int, list[list[int]]] = {}
    bins: list[list[int]] = []
    for i in sorted(shuffled, key=lambda i: -lengths[i]):
        room = next((r for r in range(lengths[i], size + 1) if bins_by_room.get(r)), None)
        if room is None:
            bins.append(chosen := [])
            room = size
        else:
            chosen = bins_by_room[room].pop()
        chosen.append(int(i))
        bins_by_room.setdefault(room - lengths[i], []).append(chosen)
    return [i for b in rng.permutation(len(bins)) for i in bins[b]]


def fill_rows(flat: dict[str, np.ndarray], lengths: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Examples, concatenated in `flat`, in rows [R, size] as seqio's packer fills them; zeros are padding.

    Next-fit, and the open row is closed after every `size` examples. Adds `<name>_segment_ids` and `<name>_positions`.
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
    positions = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    offsets = np.repeat(starts, lengths) + positions

    def rows(values: np.ndarray, dtype: Any = np.int32) -> np.ndarray:
        out = np.zeros((row + 1) * size, dtype)
        out[offsets] = values
        return out.reshape(row + 1, size)

    layout = {"segment_ids": rows(np.repeat(segments, lengths)), "positions": rows(positions)}
    return {name: rows(values, values.dtype) for name, values in flat.items()} | {
        f"{name}_{what}": values for name in flat for what, values in layout.items()
    }


def _completion_parts(example: Example, tokenizer: Tokenizer) -> Iterator[tuple[list[int], float]]:
    """(token ids, loss weight of each of them) of the parts of a completion that `unweighted` divides.

    Sampled ids are one part: no sampled example has `unweighted` spans. Raises InputError for a text that the tokenizer
    does not keep.
    """
    weight = float(example.loss_weight)
    if example.token_ids:
        yield list(example.token_ids), weight
        return
    spans, offset = [], 0
    for start, end in example.unweighted:
        spans += [(offset, start, weight), (start, end, 0.0)]
        offset = end
    spans.append((offset, len(example.completion), weight))
    encoded: list[int] = []
    for start, end, span_weight in spans:
        ids = tokenizer.encode_continuation(example.completion[start:end])
        encoded += ids
        yield ids, span_weight
    try:
        check_text(tokenizer, encoded, example.completion, starts_document=False)
    except InputError as error:
        raise InputError(f"problem {example.problem_id!r}, completion: {error}") from error


def _batch_indices(count: int, batch_rows: int, seed: int, start: int) -> Iterator[np.ndarray]:
    """The row indices of each batch from step `start` on."""
    position = start * batch_rows
    order = {}
    while True:
        index = []
        for n in range(position, position + batch_rows):
            epoch, offset = divmod(n, count)
            if epoch not in order:
                order = {epoch: np.random.default_rng([seed, epoch]).permutation(count)}
            index.append(order[epoch][offset])
        yield np.array(index)
        position += batch_rows


def _through_seqio(arrays: Sequence[tuple[np.ndarray, np.ndarray]], row_tokens: int, name: str) -> dict[str, Any]:
    """Registers the arrays as a seqio task and reads it back packed: name -> [R, T]."""
    seqio = seqio_task.import_seqio()
    import tensorflow as tf

    lengths = [len(ids) for ids, _ in arrays]

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> tf.data.Dataset:
        features = {
            key: tf.RaggedTensor.from_row_lengths(np.concatenate([pair[i] for pair in arrays]), lengths)
            for i, key in enumerate(("ids", "weights"))
        }
        return tf.data.Dataset.from_tensor_slices(features)

    task, vocabulary = f"star_jax:{name}", seqio.PassThroughVocabulary(2**31 - 1)
    if task in seqio.TaskRegistry.names():
        seqio.TaskRegistry.remove(task)
    seqio.TaskRegistry.add(
        task,
        source=seqio.FunctionDataSource(dataset, splits=["train"]),
        preprocessors=[],
        output_features={
            "ids": seqio.Feature(vocabulary, add_eos=False),
            "weights": seqio.Feature(vocabulary, add_eos=False, dtype=tf.float32),
        },
    )
    packed = seqio.get_dataset(
        task,
        task_feature_lengths={"ids": row_tokens, "weights": row_tokens},
        dataset_split="train",
        shuffle=False,
        num_epochs=1,
        feature_converter=_completion_converter(seqio, tf),
    )
    parts = list(packed.batch(_READ_BATCH).as_numpy_iterator())
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


_READ_BATCH = 1024  # elements read from a tf.data pipeline at a time: one read costs as much as copying hundreds


def _completion_converter(seqio: Any, tf: Any) -> Any:
    """A feature converter for tokens with one loss weight each; seqio's own know only "loss on all targets"."""
    spec = seqio.FeatureConverter.FeatureSpec
    layout = [f"{key}_{what}" for key in ("ids", "weights") for what in ("segment_ids", "positions")]

    class CompletionConverter(seqio.FeatureConverter):
        TASK_FEATURES: ClassVar = {"ids": spec(dtype=tf.int32), "weights": spec(dtype=tf.float32)}
        MODEL_FEATURES: ClassVar = TASK_FEATURES
        PACKING_FEATURE_DTYPES: ClassVar = {name: tf.int32 for name in layout}

        def _convert_features(self, ds: Any, task_feature_lengths: Any) -> Any:
            parts = list(ds.ragged_batch(_READ_BATCH))
            lengths = np.concatenate([part["ids"].row_lengths().numpy() for part in parts])
            flat = {
                key: np.concatenate([part[key].flat_values.numpy() for part in parts]) for key in ("ids", "weights")
            }
            return tf.data.Dataset.from_tensor_slices(fill_rows(flat, lengths, task_feature_lengths["ids"]))

        def get_model_feature_lengths(self, task_feature_lengths: Any) -> Any:
            return {**task_feature_lengths, **{name: task_feature_lengths[name.split("_")[0]] for name in layout}}

    # Lengths were checked before; seqio's check, one example at a time, would take longer than everything else.
    return CompletionConverter(pack=True, apply_length_check=False)
