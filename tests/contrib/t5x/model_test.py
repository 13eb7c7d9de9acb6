"""star_jax.contrib.t5x without t5x: errors, and the gin file's references."""

import importlib
import re
import sys
from pathlib import Path

import pytest

from star_jax.contrib.t5x import model
from star_jax.errors import InputError
from star_jax.models import families
from star_jax.tokenizers.simple import ByteTokenizer
from star_jax.weights import checkpoint
from tests.support.models import TINY
from tests.support.t5x_runs import make_run, params_of

ROOT = Path(__file__).parents[3]


def test_a_tokenizer_of_more_tokens_than_rows_is_refused(tmp_path):
    checkpoint.save_model(tmp_path / "base", families.build(TINY), params_of(TINY), ByteTokenizer())
    with pytest.raises(InputError, match="has 20 rows of vocabulary for 257 tokens"):
        model.decoder_only(str(tmp_path / "base"), optimizer_def=None)


def test_without_t5x_one_line_names_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "t5x", None)
    monkeypatch.setitem(sys.modules, "airio", sys.modules.get("airio"))
    monkeypatch.setitem(sys.modules, "airio.core", sys.modules.get("airio.core"))
    with pytest.raises(InputError, match=r"pip install 'star_jax\[t5x\]'"):
        model.decoder_only(str(make_run(tmp_path / "run") / "base"), optimizer_def=None)


def test_the_gin_file_names_functions_that_exist():
    """Of star_jax; the names of t5x are checked by the tests that run it."""
    text = (ROOT / "configs" / "t5x_finetune.gin").read_text()
    modules = dict(re.findall(r"^from (star_jax\.[\w.]+) import (\w+)$", text, re.MULTILINE))
    ours = {name for package, name in re.findall(r"^from (star_jax\.[\w.]+) import (\w+)$", text, re.MULTILINE)}
    assert modules and ours == {"initializer", "model", "task"}
    for name in ours:
        module = importlib.import_module(f"star_jax.contrib.t5x.{name}")
        used = set(re.findall(rf"^{name}\.(\w+)|@{name}\.(\w+)", text, re.MULTILINE))
        functions = {function for pair in used for function in pair if function}
        assert functions and all(callable(getattr(module, function, None)) for function in functions), name
    assert "python -m star_jax.contrib.t5x " in text
