"""A run with a chat model: what its files hold, and that another format cannot continue it."""

import dataclasses
import json
from pathlib import Path

import jax
import pytest

from star_jax import config, tokenizers
from star_jax.algorithms import star
from star_jax.config import ModelConfig
from star_jax.errors import InputError
from star_jax.evaluation.stored_run import open_iteration
from star_jax.models import families
from star_jax.records import Completion, Example
from star_jax.runs.run_directory import RunDirectory
from star_jax.tasks import few_shot
from star_jax.training import packing
from star_jax.weights import checkpoint
from tests.support.models import numpy_params
from tests.support.tokenizers import LLAMA3, trained

pytestmark = pytest.mark.slow

SHOTS = "Q: What barks?\nAnswer Choices:\n(a) cat\n(b) dog\nA: (b).\n\nQ: How many legs has it?\nA: 4\n"


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> config.Config:
    """Six problems, two shots, and a random model with Llama-3's kind of tokenizer and template."""
    folder = tmp_path_factory.mktemp("chat")
    rows = [{"question": f"{i} + {i}?", "answer": 2 * i} for i in range(3)]
    rows += [{"question": f"Is it {name}?", "choices": ["yes", "no"], "answer": "b"} for name in ("red", "big", "new")]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "jsonl_direct.txt").write_text(SHOTS)
    tokenizer = trained("llama3", LLAMA3)
    sizes = ModelConfig(2, 32, 2, 64, 8, tokenizer.vocab_size + 3, max_positions=512, scan_unroll=2)
    model, params = families.build(sizes), jax.tree.map(jax.numpy.asarray, numpy_params(sizes))
    checkpoint.save_model(folder / "base", model, params, tokenizer)
    values = config.default("jsonl")
    values.task.update(dict(data_dir=str(folder), train="train.jsonl", dev="train.jsonl"))
    values.base.path, values.mesh.data, values.tensorboard = str(folder / "base"), 1, False
    values.prompt.update(dict(shots=2, directory=str(folder), format="chat"))
    values.train.update(dict(batch_rows=2, row_tokens=256))
    values.star.update(dict(direct=True, iterations=1, steps=2, few_shot_train=True))
    values.sampling.update(dict(slots=4, queue=8, max_new_tokens=6))
    return config.from_dict(values)


@pytest.fixture(scope="module")
def workdir(settings, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("run")
    star.run(settings, path)
    return path


def test_a_run_stores_the_conversations_ids_and_the_end_of_a_turn(settings, workdir):
    run_dir = RunDirectory(workdir)
    encoder = open_iteration(str(workdir), "1").prompts
    tokenizer = encoder.tokenizer
    examples = run_dir.read_records(Example, run_dir.path(1, "kept.jsonl"))
    assert [example.completion for example in examples] == ["0", "2", "4", "(b).", "(b).", "(b)."]
    for example, problem in zip(examples, settings.make_task().problems("train"), strict=True):
        encoded = encoder(problem)
        assert (example.prompt, example.prompt_set) == (encoded.prompt.text, encoder.fingerprint)
        assert example.prompt.startswith("<|begin_of_text|><|start_header_id|>system")
        assert example.prompt_ids == (*encoded.prefix_ids, *encoded.body_ids)
        ids, _ = packing.tokenize(example, tokenizer)
        assert tokenizer.token(int(ids[-1])) == "<|eot_id|>" and int(ids[0]) == tokenizer.bos_id
    for directory in (workdir / "base", workdir / "iter_001" / "params"):
        assert checkpoint.load_tokenizer(directory).end_ids == tokenizer.end_ids
    samples = run_dir.read_records(Completion, run_dir.path(1, "eval_dev.jsonl"))
    assert len(samples) == 6 and not {*tokenizer.never_sampled} & {i for s in samples for i in s.token_ids}


def test_a_run_has_its_prompts_without_the_folder_they_came_from(settings, workdir, monkeypatch):
    expected = few_shot.load("jsonl", 2, True, settings.prompt.directory)
    monkeypatch.setattr(few_shot, "load", lambda *_: pytest.fail("the folder is read"))
    stored = open_iteration(str(workdir), "1").prompts.prompt_set
    assert stored == expected and stored.plain.startswith("Q: What barks?")


def test_another_format_does_not_continue_the_run(settings, workdir):
    plain = dataclasses.replace(settings, prompt=dataclasses.replace(settings.prompt, format="plain"))
    with pytest.raises(InputError, match="different settings"):
        star.run(plain, workdir)


def test_a_base_without_a_template_is_refused_before_the_run_begins(settings, tmp_path):
    model, params = checkpoint.load_model(settings.base.path)
    checkpoint.save_model(tmp_path / "base", model, params, tokenizers.make("bytes"))
    bare = dataclasses.replace(settings, base=dataclasses.replace(settings.base, path=str(tmp_path / "base")))
    with pytest.raises(InputError, match="the model's tokenizer has no chat template"):
        star.run(bare, tmp_path / "run")
    assert not (tmp_path / "run").exists()
