"""star_jax.algorithms.setup: what is checked before the first long stage, on the real files where they are at hand."""

import dataclasses
import importlib.util
import json
import re
import types
from pathlib import Path

import numpy as np
import pytest

from star_jax import config, tokenizers
from star_jax.algorithms import setup
from star_jax.algorithms.run import Run
from star_jax.errors import InputError
from star_jax.evaluation import generate
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.models import families
from star_jax.records import Problem, write_lines
from star_jax.tasks.arithmetic import Arithmetic
from star_jax.tokenizers.simple import SymbolTokenizer
from star_jax.weights import checkpoint
from star_jax.weights.sources import location
from tests.support import gguf as written
from tests.support.models import TINY, numpy_params
from tests.support.runs import small_config
from tests.support.tables import every_row

CONFIGS = Path(__file__).parents[2] / "configs"


def settings(name: str, **changes) -> config.Config:
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = module.get_config()
    values.base.path = "a/model"
    for key, value in changes.items():
        group, option = key.split("__")
        values[group][option] = value
    return config.from_dict(values)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data"), [("commonsense_qa_gptj", "commonsense_qa"), ("gsm8k_gptj", "gsm8k"),
                                            ("arithmetic_gptj", "")])  # fmt: skip
def test_every_real_prompt_fits_gpt_j_and_every_training_text_its_row(shared_dir, record_property, name, data):
    """Shots, problem and budget of every problem, in GPT-2's tokens, hinted too; only few references are longer."""
    words = tokenizers.load_directory(shared_dir / "data" / "gpt2")
    changes = {"task__data_dir": str(shared_dir / "data" / data)} if data else {"task__train_per_length": 200}
    typed = settings(name, **changes)
    task = typed.make_task()
    prompts = PromptEncoder(task, words, generate.prompts_of(typed, task, 1))
    for split in ("train", "dev", "test"):
        found = setup.prompt_lengths(typed, prompts, split, task.problems(split))
        record_property(f"{name} {split}", found)
        assert found["prompt_tokens_max"] + found["new_tokens_budget"] <= typed.model.max_positions
        assert found["references_over_budget"] <= 1
        encoded = [prompts(p) for p in task.problems(split)[:200]]
        joined = [[*e.prefix_ids, *e.body_ids] for e in encoded]
        assert joined == [words.encode(e.prompt.text) for e in encoded] and len({e.prefix_ids for e in encoded}) == 1
        shots = found["shots_tokens"] if typed.star.few_shot_train else 0
        assert shots + found["body_tokens_max"] + found["new_tokens_budget"] + 1 <= typed.train.row_tokens


def test_a_split_that_shares_problems_with_train_is_warned_of(caplog):
    train = [Problem(f"train-{i}", f"q{i}", "1") for i in range(5)]
    dev = [Problem(f"dev-{i}", f"q{i}", "1") for i in range(3, 9)]
    setup._warn_of_shared_problems("train", train, train)
    setup._warn_of_shared_problems("dev", dev[2:], train)
    assert not caplog.messages
    setup._warn_of_shared_problems("dev", dev, train)
    (message,) = caplog.messages
    assert message.startswith("dev: 2 of 6 problems are also train problems, the first is 'dev-3'")


def test_a_prompt_that_leaves_no_room_is_named_before_anything_is_done():
    typed = settings("arithmetic", task__train_per_length=3)
    typed = dataclasses.replace(typed, model=dataclasses.replace(TINY, max_positions=100))
    task = typed.make_task()
    prompts = PromptEncoder(task, tokenizers.make("symbols", task.symbols), generate.prompts_of(typed, task, 1))
    with pytest.raises(InputError, match=r"train problem 'train-\d-\d+': 0 tokens of shots.*exceed the model's 100"):
        setup.prompt_lengths(typed, prompts, "train", task.problems("train"))


def test_problems_that_share_an_id_are_refused_at_the_start():
    """Their completions could not be told apart."""
    config = small_config()
    twins = types.SimpleNamespace(problems=lambda split: 2 * config.make_task().problems(split)[:5])
    with pytest.raises(
        InputError, match=r"task\.name=arithmetic: 2 train problems have the id '.*'; give each problem"
    ):
        setup.read_problems(config, twins)


@every_row(
    ("changes", "room", "remedies"),
    [
        (dict(prompt__shots=3), 12, "lower --config.prompt.shots or set --config.sampling.max_new_tokens=12"),
        (dict(prompt__shots=0), 12, "set --config.sampling.max_new_tokens=12"),
        (dict(prompt__shots=0), 0, "leave the problem out or shorten it"),
        (dict(prompt__shots=3, base__path=""), -5, "lower --config.prompt.shots or raise --config.model.max_positions"),
    ],
)
def test_advice_on_a_prompt_that_leaves_no_room_can_be_followed(changes, room, remedies):
    assert setup._shorter_prompts(settings("arithmetic", **changes), room) == remedies


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A model of the TINY sizes with no tokenizer."""
    directory = tmp_path_factory.mktemp("base") / "model"
    checkpoint.save_model(directory, families.build(TINY), numpy_params(TINY), None)
    return directory


def opened(base: Path, workdir: Path, words: str = "symbols", **changes) -> Run:
    task = dict(task__train_per_length=5, task__held_out_per_length=5, evaluation__report_split="")
    sizes = dict.fromkeys(
        (f"model__{n}" for n in ("n_layers", "d_model", "n_heads", "d_mlp", "rotary_dim", "vocab_size")), 0
    )
    values = settings("arithmetic", **{"base__path": str(base), "mesh__data": 1, **task, **sizes, **changes})
    return setup.open_run(dataclasses.replace(values, tokenizer=words), workdir)


def test_a_base_without_a_tokenizer_asks_for_one(base, tmp_path):
    with pytest.raises(InputError, match=re.escape(f"{base}: has no tokenizer; set --config.tokenizer")):
        opened(base, tmp_path / "run", words="")
    assert not (tmp_path / "run").exists()
    assert opened(base, tmp_path / "run").tokenizer.vocab_size == 19


MISFITS = [
    ({"model__d_model": 64}, "model.d_model 64 (the base has 32)"),
    ({"model__architecture": "gpt2"}, "model.architecture gpt2 (the base has gptj)"),
    ({"train__row_tokens": 4096}, "exceeds the model's 256 positions; set --config.train.row_tokens=256"),
    ({"evaluation__report_split": "moon"}, "unknown split 'moon'"),
    ({"evaluation__report_split": "dev"}, "evaluation.report_split must differ"),
    ({"words": "bytes"}, "model.vocab_size must be at least 257"),
    ({"base__path": "no/such/model"}, "no/such/model"),
    ({"mesh__data": 8, "train__batch_rows": 12}, "12 rows do not divide over 8 devices"),
    ({"mesh__data": 1, "mesh__fsdp": 3, "train__batch_rows": 12}, "mesh.fsdp: 3 does not divide the 32 of"),
    ({"mesh__data": 1, "mesh__tensor": 8}, "mesh.tensor: 8 does not divide the model's 2 KV heads"),
    ({"mesh__data": 8, "sampling__tensor": 4}, "sampling.tensor: 4 does not divide the model's 2 KV heads"),
]


def test_what_does_not_fit_is_refused_before_the_directory_is_made(base, tmp_path):
    for changes, reason in MISFITS:
        with pytest.raises(InputError, match=re.escape(reason)):
            opened(base, tmp_path / "run", **changes)
        assert not (tmp_path / "run").exists(), changes


def test_a_token_id_beyond_the_embedding_is_refused_before_the_directory_is_made(base, tmp_path, monkeypatch):
    """A BOS is never sampled, so the tokenizer's vocabulary does not count it."""
    monkeypatch.setattr(SymbolTokenizer, "bos_id", 20)
    with pytest.raises(
        InputError, match=r"a text has the token id 20 and the model ids 0 to 19: .* give the model's own tokenizer"
    ):
        opened(base, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(SymbolTokenizer, "bos_id", 19)
    assert opened(base, tmp_path / "run").tokenizer.bos_id == 19


def test_a_stop_that_the_tokenizer_cannot_write_is_refused_before_the_directory_is_made(base, tmp_path, monkeypatch):
    monkeypatch.setattr(Arithmetic, "stop", ("\n\n", "Question:"))
    with pytest.raises(InputError, match=r"the stop string 'Question:': no symbol for"):
        opened(base, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_rotary_positions_may_be_more_or_fewer_than_the_base_had(base, tmp_path):
    run = opened(base, tmp_path / "run", model__max_positions=300)
    assert run.model.spec.max_positions == 300 and families.build(run.config.model) == run.model


def test_a_second_opening_has_the_same_config_and_writes_nothing(base, tmp_path):
    first = opened(base, tmp_path / "run")
    first.close()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("problems_*")}
    assert opened(base, tmp_path / "run").config == first.config
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("problems_*")} == before != {}


def test_problems_that_differ_from_the_run_s_are_refused(base, tmp_path, monkeypatch):
    opened(base, tmp_path / "run").close()
    before = (tmp_path / "run" / "problems_train.jsonl").read_bytes()
    monkeypatch.setattr(setup, "write_lines", lambda records: write_lines(records[1:]))
    with pytest.raises(
        InputError, match=r"different settings: dev problems was .*; train problems was .*allow_changes"
    ):
        opened(base, tmp_path / "run")
    assert (tmp_path / "run" / "problems_train.jsonl").read_bytes() == before


def test_damaged_problems_are_named_and_written_again_once_they_are_deleted(base, tmp_path):
    """They are not stored as the problems of before a change of the data."""
    opened(base, tmp_path / "run").close()
    path = tmp_path / "run" / "problems_train.jsonl"
    before = path.read_bytes()
    path.write_bytes(before[:-5])
    with pytest.raises(InputError, match=r"problems_train\.jsonl: damaged or edited.*delete the file"):
        opened(base, tmp_path / "run")
    path.unlink()
    opened(base, tmp_path / "run").close()
    assert path.read_bytes() == before and not list((tmp_path / "run").glob("earlier_*"))


def test_provenance_names_the_package_of_the_base_and_continuing_does_not_need_it(tmp_path, monkeypatch):
    """A GGUF file in a pip package. Another version of the package is another base, until the run has its own copy."""
    pytest.importorskip("gguf")
    package = tmp_path / "site" / "package_with_a_model"
    package.mkdir(parents=True)
    written.write(package / "model.gguf", "llama", written.torch_model("llama"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    model = location.PipModel("numpy", "x", (("package_with_a_model", "model.gguf"),), "model.gguf", "")
    monkeypatch.setitem(location.PACKAGES, "tiny", model)
    sizes = {"model__max_positions": 0, "model__architecture": ""}
    run = opened("pip:tiny", tmp_path / "run", **sizes)
    run.close()
    assert run.model.spec.family == "llama" and run.config.base.path == "pip:tiny"

    def base_in_provenance() -> str:
        return json.loads((tmp_path / "run" / "provenance.json").read_text())["world"]["base"]

    assert base_in_provenance() == f"numpy {np.__version__}: model.gguf"
    monkeypatch.setitem(location.PACKAGES, "tiny", model._replace(file="other.gguf"))
    with pytest.raises(InputError, match=r"different settings: base was .*model\.gguf.*other\.gguf"):
        opened("pip:tiny", tmp_path / "run", **sizes)
    checkpoint.save_model(run.weights.directory(0), run.model, setup.make_base(run), run.tokenizer)
    monkeypatch.delitem(location.PACKAGES, "tiny")
    opened("pip:tiny", tmp_path / "run", **sizes).close()
    assert base_in_provenance() == f"numpy {np.__version__}: model.gguf"
