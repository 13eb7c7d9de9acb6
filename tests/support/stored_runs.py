"""Finished runs whose models say one thing: no training, and every figure of them is known."""

import itertools
from pathlib import Path

import jax
import numpy as np

from star_jax import config, tokenizers
from star_jax.config import ModelConfig
from star_jax.models import decoder, families
from star_jax.runs.layout import model_directory
from star_jax.runs.run_directory import RunDirectory
from star_jax.weights import checkpoint
from tests.support.models import numpy_params

SIZES = dict(
    architecture="gptj", n_layers=1, d_model=260, n_heads=2, d_mlp=8, rotary_dim=8, vocab_size=260, max_positions=512
)


def make_run(workdir: Path, task: str, texts: list[str], **task_options) -> Path:
    """A run directory without evaluations; the model of iteration i completes every prompt with texts[i].

    A text begins with the last byte of a prompt, ":", and no byte has two different ones after it: " 5\n\n" is one.
    """
    values = config.default(task)
    values.task.update(task_options)
    values.base.path, values.tokenizer, values.mesh.data = "somewhere", "bytes", 1
    values.model.update(SIZES)
    values.prompt.shots = 0
    values.sampling.update(dict(slots=4, queue=4, max_new_tokens=8))
    values.star.iterations = len(texts) - 1
    run_dir = RunDirectory(workdir)
    run_dir.open(config.from_dict(values).to_dict())
    run_dir.close()
    model = families.build(ModelConfig(**SIZES))
    for iteration, text in enumerate(texts):
        params = jax.tree.map(jax.numpy.asarray, _chain(":" + text))
        checkpoint.save_model(model_directory(workdir, iteration), model, params, tokenizers.make("bytes"))
    return workdir


def _chain(text: str) -> decoder.Params:
    """Weights with which each byte of the text is followed by the next one.

    The residual stream holds the last token's row of an identity matrix, and the head maps it to the next token's.
    """
    params = numpy_params(ModelConfig(**SIZES), scale=0.0)
    embedding, head = params["embedding"]["embedding"], params["head"]["kernel"]
    np.fill_diagonal(embedding, 1.0)
    params["final_norm"]["scale"][:] = 1.0
    codes = text.encode()
    following = dict(itertools.pairwise(codes))
    assert [following[code] for code in codes[:-1]] == [*codes[1:]], "a byte is followed by two different ones"
    for code, after in following.items():
        head[code, after] = 1.0
    return params
