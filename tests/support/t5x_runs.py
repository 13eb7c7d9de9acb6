"""Small run directories for the tests of star_jax.contrib.t5x, and the batches that seqio makes of them."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.models import decoder, families
from star_jax.records import Example, write_lines
from star_jax.runs import side_files
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.tokenizers.simple import SymbolTokenizer
from star_jax.weights import checkpoint
from tests.support.models import TINY, numpy_params

TOKENIZER = SymbolTokenizer(Arithmetic.symbols)
FOUR_HEADS = dataclasses.replace(TINY, n_heads=4)  # t5x shards them over all four devices
GPT2 = dataclasses.replace(FOUR_HEADS, architecture="gpt2", rotary_dim=0)
# Symbol "0" is token id 0, t5x's padding. Here it starts and ends texts, is a whole text, and repeats.
TEXTS = [
    ("0", "0 0 0"),
    ("0 0 0 0 0 0 0", "0"),
    ("Input: 3 0 + 4", "7 0"),
    ("1 2", "0 1 0"),
    ("9 8 7 6 5 4 3 2 1 0", "4 + 0 , 1"),
    ("Target: 0 0", "</scratch>"),
    ("5", "6"),
    ("0 1 0 1 0 1 0 1", "0 0 0 0 0 0 0 0 0 0"),
]


def example(prompt: str, completion: str, **fields: Any) -> Example:
    return Example("p", prompt, completion, 1, "sampled", **fields)


EXAMPLES = [example(*texts) for texts in TEXTS]


def params_of(config) -> decoder.Params:
    """Random weights whose greedy completions of TEXTS contain id 0 and end-of-text (checked by against_t5x_test)."""
    seed, scale = (2, 0.8) if config.architecture == "gpt2" else (28, 0.6)
    return jax.tree.map(jnp.asarray, numpy_params(config, seed, scale))


def make_run(workdir: Path, config=FOUR_HEADS, examples=EXAMPLES) -> Path:
    """The files of a run that t5x needs: the base with its tokenizer, and the kept examples of one iteration."""
    checkpoint.save_model(workdir / "base", families.build(config), params_of(config), TOKENIZER)
    return write_kept(workdir, 1, examples)


def write_kept(workdir: Path, iteration: int, examples) -> Path:
    """The kept examples of an iteration, with their side file."""
    path = workdir / f"iter_{iteration:03d}" / "kept.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(write_lines(examples))
    side_files.side_path(path).write_bytes(side_files.to_bytes(examples))
    return workdir


def converted(name: str, lengths: dict[str, int], pack: bool = True) -> dict[str, np.ndarray]:
    """The batch that seqio makes of a Task for a t5x DecoderOnlyModel."""
    import seqio

    dataset = seqio.get_dataset(
        name,
        lengths,
        dataset_split="train",
        shuffle=False,
        num_epochs=1,
        feature_converter=seqio.DecoderFeatureConverter(pack=pack),
    )
    rows = list(dataset.as_numpy_iterator())
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}
