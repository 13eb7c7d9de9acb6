"""The ids of a prompt's parts are those of the whole text, for prompts of every task; training gets the sampled ids."""

import functools
import itertools
import json

import pytest

from star_jax import tasks, tokenizers
from star_jax.algorithms import selection
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.records import Completion, Verdict
from star_jax.tasks import few_shot
from star_jax.training import packing
from tests.support.tables import every_row
from tests.support.tokenizers import KINDS, installed, trained

JSONL = [
    {"question": "Tom has 3 apples and buys 2. How many?", "answer": 5, "rationale": "He has 3 + 2 = 5."},
    {"question": "Where is ink absorbed?", "choices": ["an inkwell", "a blotter"], "answer": "b"},
    {"question": '"Quoted", (in brackets)\tand é — 日本語 🙂?', "answer": "<|im_end|> </s> <eos>"},
    {"question": " 12 spaces            and so on ... ", "answer": "none"},
    {"question": "\nOne line more\n", "answer": "1,000"},
]


@functools.cache
def task_problems(data_dir: str, jsonl: str, count: int) -> list:
    """[(task, its problems)] of all tasks with real data."""
    made = [
        tasks.make("arithmetic"),
        tasks.make("commonsense_qa", data_dir=f"{data_dir}/commonsense_qa"),
        tasks.make("gsm8k", data_dir=f"{data_dir}/gsm8k"),
        tasks.make("jsonl", train=jsonl),
    ]
    return [(task, task.problems("train")[:count]) for task in made]


@pytest.fixture(scope="module")
def jsonl(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("jsonl") / "train.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in JSONL))
    return str(path)


def shot_files(task) -> str:
    name = type(task).__name__.lower()
    return {"arithmetic": "arithmetic", "commonsenseqa": "commonsense_qa"}.get(name, "gsm8k")


def wrong_prompts(tokenizer, problems_of, shots: tuple[int, ...]) -> list:
    """The prompts whose parts have other ids than the whole, or that training would get otherwise."""
    wrong = []
    for (task, problems), count in itertools.product(problems_of, shots):
        encoder = PromptEncoder(task, tokenizer, few_shot.load(shot_files(task), count, direct=False))
        for hinted in (False, True):
            prefixes = set()
            for problem in problems:
                encoded = encoder(problem, hinted)
                ids = [*encoded.prefix_ids, *encoded.body_ids]
                prefixes.add(encoded.prefix_ids)
                if ids != tokenizer.encode_document(encoded.prompt.text):
                    wrong.append(("parts", type(task).__name__, count, hinted, problem.id))
            if len(prefixes) > 1 or (count and len(prefixes.pop()) < 20):
                wrong.append(("prefix", type(task).__name__, count, hinted, len(prefixes)))
        wrong += trained_otherwise(encoder, problems[:10])
    return wrong


def trained_otherwise(encoder, problems) -> list:
    """The examples whose prompt ids in training are not those that were sampled from."""
    wrong, tokenizer = [], encoder.tokenizer
    for problem, with_shots in itertools.product(problems, (False, True)):
        ids = (*tokenizer.encode_continuation("1 2 + 3" if "+" in problem.question else " So it is."),)
        completion = Completion(
            problem.id, 1, 0, False, tokenizer.decode(ids), "x", Verdict.RIGHT, None, 0.0, len(ids), "",
            problem.fingerprint, token_ids=(*ids, tokenizer.end_ids[-1]),
        )  # fmt: skip
        spec = selection.SelectionSpec(0, "", few_shot_train=with_shots)
        (example,) = selection.keep(encoder, [problem], [completion], spec)
        sampled = encoder(problem, with_shots=with_shots)
        expected = [*sampled.prefix_ids, *sampled.body_ids, *ids, tokenizer.end_ids[0]]
        got, weights = packing.tokenize(example, tokenizer)
        if got.tolist() != expected or weights.tolist() != [0] * (len(got) - len(ids) - 1) + [1] * (len(ids) + 1):
            wrong.append(("trained", problem.id, with_shots))
    return wrong


@every_row("kind", ["gpt2", "bytes", *KINDS])
def test_parts_have_the_ids_of_the_whole_and_training_gets_them(kind, shared_dir, jsonl):
    tokenizer = named_tokenizer(kind, shared_dir)
    problems_of = task_problems(str(shared_dir / "data"), jsonl, 12)
    assert not wrong_prompts(tokenizer, problems_of, (0, 3))


def test_parts_have_the_ids_of_the_whole_with_an_installed_tokenizer(shared_dir, jsonl):
    problems_of = task_problems(str(shared_dir / "data"), jsonl, 12)
    assert not wrong_prompts(installed("smollm2"), problems_of, (0, 3))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "bytes", "smollm2", "gemma3-270m", *KINDS])
def test_parts_have_the_ids_of_the_whole_for_hundreds_of_problems(kind, shared_dir, jsonl):
    tokenizer = named_tokenizer(kind, shared_dir)
    problems_of = task_problems(str(shared_dir / "data"), jsonl, 600)
    assert not wrong_prompts(tokenizer, problems_of, (0, 7))


def test_parts_of_symbols_have_the_ids_of_the_whole(shared_dir, jsonl):
    task, problems = task_problems(str(shared_dir / "data"), jsonl, 12)[0]
    assert not wrong_prompts(tokenizers.make("symbols", task.symbols), [(task, problems)], (0, 3, 10))


def named_tokenizer(kind: str, shared_dir):
    if kind == "gpt2":
        return tokenizers.load_directory(shared_dir / "data" / "gpt2")
    if kind == "bytes":
        return tokenizers.make("bytes")
    return trained(kind) if kind in KINDS else installed(kind)


def test_a_cut_is_at_a_border_of_tokens():
    """Llama-3's and Qwen's pre-tokenizers join ").\\n\\n"; GPT-2's joins nothing before the white space."""
    prefix = few_shot.load("commonsense_qa", 3, direct=False).plain
    assert prefix.endswith(").\n\n")
    cuts = {kind: prefix[trained(kind).cut(prefix) :] for kind in KINDS}
    assert cuts["llama3"] == cuts["qwen2"] == ").\n\n"
    for kind in ("llama3", "qwen2"):
        tokenizer = trained(kind)
        (joined,) = tokenizer.encode(").\n\n")  # the test's vocabulary has what makes the cut difficult
        assert tokenizer.pieces[joined] == b").\n\n"
        parts = tokenizer.encode(prefix.rstrip()) + tokenizer.encode("\n\nQ: a")
        assert parts != tokenizer.encode(prefix + "Q: a")


def test_a_prefix_that_nothing_can_be_cut_from_belongs_to_the_body():
    tokenizer = trained("llama3")
    assert tokenizer.encode_parts("", "Q: a") == ((tokenizer.bos_id,), tuple(tokenizer.encode("Q: a")))
    assert tokenizer.encode_parts("\n\n", "Q") == ((tokenizer.bos_id,), tuple(tokenizer.encode("\n\nQ")))
