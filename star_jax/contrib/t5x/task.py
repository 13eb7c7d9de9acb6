"""A run's kept examples as a seqio Task."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from star_jax.contrib.t5x.vocabulary import vocabulary
from star_jax.distributed import processes
from star_jax.errors import InputError
from star_jax.json_reader import is_present
from star_jax.records import Example
from star_jax.runs.run_directory import RunDirectory
from star_jax.tasks import seqio_task
from star_jax.tokenizers.base import Tokenizer
from star_jax.training import packing


def register(workdir: str, iteration: int | None = None) -> str:
    """Registers the kept examples of a run as a seqio Task with the split "train".

    Inputs (no loss) are an example's prompt, targets (loss) its completion and end-of-text. Examples longer than the
    feature lengths are left out, and a warning counts them: seqio would cut their ends off.

    Args:
      workdir: the run directory.
      iteration: whose examples; default: the last iteration that has some.

    Returns: the Task's name, "star:<workdir>", and "star:<workdir>:<iteration>" if an iteration is given. An earlier
    Task of that name is replaced.

    Raises InputError if the run has no such examples, or if they do not weigh all of a completion equally.
    """
    seqio = seqio_task.import_seqio()
    import tensorflow as tf

    words = vocabulary(str(Path(workdir) / "base"))
    arrays = [_feature_ids(example, words.tokenizer) for example in _kept_examples(Path(workdir), iteration)]
    features = ("inputs", "targets")

    def dataset(split: str, shuffle_files: bool = False, seed: int | None = None) -> Any:
        columns = {
            name: tf.RaggedTensor.from_row_lengths(np.concatenate(column), [len(ids) for ids in column])
            for name, column in zip(features, zip(*arrays, strict=True), strict=True)
        }
        return tf.data.Dataset.from_tensor_slices(columns)

    def drop_long(rows: Any, sequence_length: Mapping[str, int] | None) -> Any:
        limits = {name: (sequence_length or {}).get(name) or 2**31 - 1 for name in features}
        fits = [len(inputs) <= limits["inputs"] and len(targets) <= limits["targets"] for inputs, targets in arrays]
        if not any(fits):
            raise InputError(
                f"{workdir}: none of {len(fits)} kept examples fits {sequence_length}; raise these lengths"
            )
        if not all(fits):
            logging.warning("%s: %d of %d kept examples exceed %s", workdir, fits.count(False), len(fits), limits)
        return rows.filter(lambda row: tf.reduce_all([tf.size(row[name]) <= limits[name] for name in features]))

    name = f"star:{workdir}" if iteration is None else f"star:{workdir}:{iteration}"
    task = seqio.Task(
        # seqio makes file names of a Task's own name, so it has no slashes; the registry takes any key.
        re.sub(r"[^\w.:]", "_", name),
        source=seqio.FunctionDataSource(dataset, splits=["train"]),
        preprocessors=[drop_long],
        output_features={feature: seqio.Feature(words, add_eos=False) for feature in features},
    )
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add_provider(name, task)
    return name


def _kept_examples(workdir: Path, iteration: int | None) -> list[Example]:
    pattern = "iter_*" if iteration is None else f"iter_{iteration:03d}"
    files = [path for folder in sorted(workdir.glob(pattern)) if is_present(path := folder / "kept.jsonl")]
    if not files:
        raise InputError(f"{workdir}/{pattern}/kept.jsonl: no such file; give a run directory and a finished iteration")
    # With its side file: the sampled ids, and those of a conversation's prompt.
    examples = RunDirectory(workdir, processes).read_records(Example, files[-1])
    if not examples:
        raise InputError(f"{files[-1]}: has no examples; give another iteration")
    if any(example.unweighted for example in examples):
        raise InputError(f"{files[-1]}: has examples with `unweighted` spans; t5x has loss on all of a completion")
    if any(example.loss_weight != 1 for example in examples):
        raise InputError(f"{files[-1]}: has examples with a `loss_weight` other than 1; t5x weighs all tokens equally")
    return examples


def _feature_ids(example: Example, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(inputs, targets): the ids of packing.tokenize plus one, split where the prompt ends."""
    ids, _ = packing.tokenize(example, tokenizer)
    prompt_tokens = len(packing.prompt_tokens(example, tokenizer))
    return ids[:prompt_tokens] + 1, ids[prompt_tokens:] + 1
