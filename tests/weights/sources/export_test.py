"""Exports are read again: config.json, which makes them a model, appears after weights and tokenizer are right."""

import json
import os

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from star_jax.config import ModelConfig
from star_jax.errors import InputError
from star_jax.models import families
from star_jax.weights.sources import hf
from tests.support.models import numpy_params
from tests.support.tables import every_row
from tests.support.weights import bpe, convert, json_tokenizer_of

GPT2 = ModelConfig(n_layers=3, d_model=32, n_heads=4, d_mlp=40, vocab_size=300, max_positions=32, architecture="gpt2")


def flipped(arrays, path):
    """One bit of one weight."""
    array = arrays["transformer.ln_f.bias"]
    array.view(np.uint8).flat[1] ^= 4


def emptied(arrays, path):
    arrays["transformer.ln_f.bias"][:] = 0


LOSSES = [
    (flipped, "transformer.ln_f.bias differs"),
    (emptied, "transformer.ln_f.bias differs"),
    (lambda arrays, path: arrays.pop("transformer.ln_f.bias"), "transformer.ln_f.bias is missing"),
    (lambda arrays, path: arrays.update({k: v.astype(np.float16) for k, v in arrays.items()}), " differs"),
    ("cut short", "not a complete safetensors file"),
    ("lost", "has no weights"),
]
SURPLUS = (lambda arrays, path: arrays.update(x=np.ones(2, np.float32)), "x is surplus")


@every_row(
    ("damage", "reason", "shard_bytes"),
    [(*row, 2**31) for row in (*LOSSES, SURPLUS)] + [(*row, 40_000) for row in LOSSES],
)
def test_an_export_counts_after_it_has_been_read_again(damage, reason, shard_bytes, tmp_path, monkeypatch):
    """What a disk loses or changes without an error: config.json, which makes it a model, does not appear."""
    save_file = safetensors.numpy.save_file

    def save(arrays, path, metadata):
        arrays = {name: np.array(array) for name, array in arrays.items()}
        if callable(damage) and "transformer.ln_f.bias" in arrays:
            damage(arrays, path)
        save_file(arrays, path, metadata)
        if damage == "cut short":
            os.truncate(path, path.stat().st_size - 1)

    with monkeypatch.context() as patch:
        patch.setattr(safetensors.numpy, "save_file", save)
        if damage == "lost":
            patch.setattr(hf, "_save_tensors", lambda *args: None)
        model = families.spec_of(GPT2), numpy_params(GPT2), None, np.dtype("float32")
        with pytest.raises(
            InputError, match=rf"what is on disk is not what was saved \(.*{reason}.*delete the directory"
        ):
            hf.save(tmp_path / "a", *model, shard_bytes)
    assert not hf.is_model(tmp_path / "a")


def test_an_export_s_tokenizer_is_read_again(tmp_path, monkeypatch):
    write_json, tokenizer = hf._write_json, json_tokenizer_of(bpe(["a few words"], size=290))

    def write(path, value):
        if path.name == "tokenizer.json":
            value = {**value, "added_tokens": [], "model": {**value["model"], "merges": []}}
        write_json(path, value)

    monkeypatch.setattr(hf, "_write_json", write)
    with pytest.raises(InputError, match=r"what is on disk is not what was saved \(.*has no token '<\|endoftext\|>'"):
        hf.save(tmp_path / "a", families.spec_of(GPT2), numpy_params(GPT2), tokenizer, np.dtype("float32"))
    assert not hf.is_model(tmp_path / "a")


@every_row(
    ("config_json", "generation_config_json", "expected"),
    [
        ({"bos_token_id": 0, "eos_token_id": 0}, {}, {"bos_token_id": 0, "eos_token_id": 0}),
        ({"eos_token_id": [2, 0], "pad_token_id": None}, {}, {"eos_token_id": [2, 0], "pad_token_id": None}),
        ({}, {"eos_token_id": 7}, {"eos_token_id": 7}),
        ({"eos_token_id": 3}, {"eos_token_id": 7}, {"eos_token_id": 3}),
        ({}, {}, {}),
    ],
)
def test_a_converted_model_without_a_tokenizer_keeps_the_ids_of_its_special_tokens(
    config_json, generation_config_json, expected, tmp_path
):
    """Otherwise transformers takes its own defaults for them, and generation does not end."""
    model = families.spec_of(GPT2), numpy_params(GPT2), None, np.dtype("float32")
    hf.save(tmp_path / "a", *model, special_ids=config_json)
    if generation_config_json:
        (tmp_path / "a/generation_config.json").write_text(json.dumps(generation_config_json))
    assert convert(tmp_path / "a", "hf", tmp_path / "b", "hf")[::2] == (0, "")
    values = json.loads((tmp_path / "b/config.json").read_text())
    assert {key: values[key] for key in hf.SPECIAL_IDS if key in values} == expected


def test_an_id_that_is_none_is_named(tmp_path):
    hf.save(tmp_path / "a", families.spec_of(GPT2), numpy_params(GPT2), None, np.dtype("float32"))
    (tmp_path / "a/generation_config.json").write_text('{"eos_token_id": "</s>"}')
    status, _, errors = convert(tmp_path / "a", "hf", tmp_path / "b", "hf")
    assert status == 2 and errors.startswith(f"star_jax: {tmp_path}/a/generation_config.json: eos_token_id must be")
    assert not (tmp_path / "b").exists()


@every_row(("value", "dtype"), [(np.nan, "float32"), (-np.inf, "bfloat16"), (1e5, "float16")])
def test_weights_that_are_not_finite_are_not_exported(value, dtype, tmp_path):
    """Nor such as overflow the dtype of the files."""
    params = numpy_params(GPT2)
    params["final_norm"]["bias"][2] = value
    with pytest.raises(InputError, match=rf"transformer.ln_f.bias holds values that are not finite numbers of {dtype}"):
        hf.save(tmp_path / "a", families.spec_of(GPT2), params, None, np.dtype(getattr(ml_dtypes, dtype, dtype)))
    assert not hf.is_model(tmp_path / "a")
