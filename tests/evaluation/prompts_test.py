"""Prompts in chat format against transformers' `apply_chat_template`: ids in sampling and in training; refusals."""

import dataclasses
import functools
import itertools
import json

import numpy as np
import pytest

from star_jax import config, tasks, tokenizers
from star_jax.algorithms import selection
from star_jax.errors import InputError
from star_jax.evaluation import generate
from star_jax.evaluation.prompts import PromptEncoder, tokenizer_for
from star_jax.records import Completion, Problem, Verdict
from star_jax.sampling import stop_strings
from star_jax.sampling.token_sampling import Decoding
from star_jax.tasks import few_shot
from star_jax.tasks.arithmetic import make_problem
from star_jax.tasks.few_shot import PromptSet
from star_jax.tokenizers.chat_template import ChatTemplate, Turn
from star_jax.training import packing
from tests.support.tables import every_row
from tests.support.tokenizers import CHATML, GEMMA, LLAMA2, LLAMA3, QWEN3, installed, tokenizer_json, trained

# kind of tokenizer, template, how it ends a turn
MODELS = {
    "chatml": ("qwen2", CHATML, "<|im_end|>"),
    "qwen3": ("qwen2", QWEN3, "<|im_end|>"),
    "llama3": ("llama3", LLAMA3, "<|eot_id|>"),
    "gemma": ("gemma", GEMMA, "<end_of_turn>"),
    "llama2": ("llama2", LLAMA2, "</s>"),
}
GSM8K, CHOICES, SUM = tasks.make("gsm8k"), tasks.make("commonsense_qa"), tasks.make("arithmetic")
TASKS = {
    "gsm8k": (GSM8K, [
        Problem("g1", "Ann has 3 pens and buys 2. How many?", "5", rationale="3 + 2 = <<3+2=5>>5\n#### 5"),
        Problem("g2", '"Quoted" (in\nlines), 1,000 é 日本 <|im_end|> </s> <eos> <|eot_id|>', "7", rationale="#### 7"),
    ]),
    "commonsense_qa": (CHOICES, [
        Problem("c1", "Where is ink kept?", "b", choices=("desk", "bottle", "park", "zoo", "home")),
        Problem("c2", "What barks?", "e", choices=("cat", "cow", "car", "cup", "dog")),
    ]),
    "arithmetic": (SUM, [make_problem("a1", 34, 56, digits=2), make_problem("a2", 1, 9, digits=1)]),
}  # fmt: skip


@functools.cache
def tokenizer_of(model: str):
    kind, template, _ = MODELS[model]
    return tokenizer_for("chat", trained(kind, template))


@functools.cache
def oracle(model: str):
    """transformers' tokenizer of the same file."""
    transformers = pytest.importorskip("transformers", reason="the oracle of chat formats is test-only")
    import tokenizers as library

    kind, template, _ = MODELS[model]
    ours = trained(kind, template)
    names = {
        "bos_token": None if ours.bos_id is None else ours.token(ours.bos_id),
        "eos_token": ours.token(ours.end_ids[0]),
    }
    made = library.Tokenizer.from_str(tokenizer_json(kind))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def oracle_ids(model: str, messages: list[dict[str, str]], **options) -> list[int]:
    return oracle(model).apply_chat_template(
        messages, chat_template=MODELS[model][1], tokenize=True, return_dict=False, enable_thinking=False,
        date_string="26 Jul 2024", **options,
    )  # fmt: skip


def messages_of(name: str, problem: Problem, hint: bool, shots: int) -> list[dict[str, str]]:
    """The conversation, from the texts of the shot files and of `render`."""
    task, _ = TASKS[name]
    prompts = few_shot.load(name, shots, direct=False)
    border = "\nA:" if name != "arithmetic" else "\n<scratch>"
    messages = []
    for shot in (prompts.hinted if hint else prompts.plain).split("\n\n")[:-1]:
        question, answer = shot.split(border)
        answer = answer if name != "arithmetic" else f"<scratch>{answer}"
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer.strip()}]
    text = task.render(problem, hint)
    return [*messages, {"role": "user", "content": text.removesuffix("A:").rstrip("\n")}]


def holds_a_special_token(problem: Problem) -> bool:
    return "<eos>" in problem.question


def encoder_of(model: str, name: str, shots: int) -> PromptEncoder:
    task, _ = TASKS[name]
    return PromptEncoder(task, tokenizer_of(model), few_shot.load(name, shots, direct=False), "chat")


CASES = list(itertools.product(MODELS, TASKS))


@every_row(("model", "name"), CASES)
def test_a_prompt_has_the_ids_of_the_conversation(model, name):
    """And all problems share the ids of the template's head and of the shots."""
    for shots, hint in itertools.product((0, 2), (False, True)):
        encoder, prefixes = encoder_of(model, name, shots), set()
        for problem in TASKS[name][1]:
            encoded = encoder(problem, hint)
            prefixes.add(encoded.prefix_ids)
            if not holds_a_special_token(problem):
                messages = messages_of(name, problem, hint, shots)
                expected = oracle_ids(model, messages, add_generation_prompt=True)
                assert [*encoded.prefix_ids, *encoded.body_ids] == expected
                assert encoded.prompt.text == oracle(model).decode(expected) or model == "llama2"
        (prefix_ids,) = prefixes
        assert len(prefix_ids) > 30 * shots


@every_row(("model", "name"), CASES)
def test_a_training_text_is_the_conversation_with_loss_on_the_completion_and_the_end_of_its_turn(model, name):
    """References as completions. What the template puts after the end of the turn has no loss and is left out."""
    for shots, with_shots in ((0, False), (2, True), (2, False)):
        encoder = encoder_of(model, name, shots)
        tokenizer, (problem, *_) = encoder.tokenizer, TASKS[name][1]
        (example,) = selection.references(encoder, [problem], few_shot_train=with_shots, iteration=1)
        ids, weights = packing.tokenize(example, tokenizer)
        answer = TASKS[name][0].reference(problem).strip()
        messages = messages_of(name, problem, False, shots if with_shots else 0)
        whole = oracle_ids(model, [*messages, {"role": "assistant", "content": answer}])
        space = model == "llama2"  # its template has a space there; a sampled completion begins with it
        if space:
            answer_ids = tokenizer.encode_continuation(answer)
            assert ids.tolist()[-len(answer_ids) - 1 :] == [*answer_ids, tokenizer.end_ids[0]]
            continue
        assert ids.tolist() == whole[: len(ids)]
        assert tokenizer.decode(whole[len(ids) :]).strip() == ""
        prompt = oracle_ids(model, messages, add_generation_prompt=True)
        assert weights.tolist() == [0.0] * len(prompt) + [1.0] * (len(ids) - len(prompt))
        assert tokenizer.decode(ids[weights > 0].tolist()) == answer
        assert tokenizer.token(int(ids[-1])) == MODELS[model][2]


def test_smollm2_s_own_template_has_the_ids_that_transformers_gives_it():
    """The installed model's tokenizer and template, after three shots."""
    transformers = pytest.importorskip("transformers", reason="the oracle of chat formats is test-only")
    import tokenizers as library

    ours = tokenizer_for("chat", installed("smollm2"))
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_object=library.Tokenizer.from_str(json.dumps(ours.spec()["tokenizer"])), eos_token="<|im_end|>"
    )
    assert ours.token(ours.end_ids[0]) == "<|im_end|>"
    for name, hint in itertools.product(TASKS, (False, True)):
        encoder = PromptEncoder(TASKS[name][0], ours, few_shot.load(name, 3, direct=False), "chat")
        for problem in TASKS[name][1]:
            if not holds_a_special_token(problem):
                encoded = encoder(problem, hint)
                expected = theirs.apply_chat_template(
                    messages_of(name, problem, hint, 3), chat_template=ours.chat_template.source,
                    add_generation_prompt=True, return_dict=False,
                )  # fmt: skip
                assert [*encoded.prefix_ids, *encoded.body_ids] == expected


@every_row("model", MODELS)
def test_training_gets_the_sampled_ids(model):
    encoder = encoder_of(model, "gsm8k", 2)
    tokenizer, (problem, *_) = encoder.tokenizer, TASKS["gsm8k"][1]
    odd = [i for c in "So 5." for i in tokenizer.encode_continuation(c)]  # not the ids of the text as a whole
    for end_id, with_shots in itertools.product(tokenizer.end_ids, (False, True)):
        completion = Completion(
            "g1",
            1,
            0,
            False,
            "So 5.",
            "5",
            Verdict.RIGHT,
            None,
            0.0,
            len(odd) + 1,
            "",
            problem.fingerprint,
            token_ids=(*odd, end_id),
        )
        spec = selection.SelectionSpec(0, "", few_shot_train=with_shots)
        (example,) = selection.keep(encoder, [problem], [completion], spec)
        sampled = encoder(problem, with_shots=with_shots)
        ids, weights = packing.tokenize(example, tokenizer)
        assert ids.tolist() == [*sampled.prefix_ids, *sampled.body_ids, *odd, tokenizer.end_ids[0]]
        assert weights.sum() == len(odd) + 1 and (weights[-len(odd) - 1 :] == 1).all()
        assert example.prompt == sampled.prompt.text


@every_row("model", MODELS)
def test_a_users_text_never_becomes_a_special_token(model):
    """The special tokens of the conversation are those of the same conversation without such texts."""
    encoder = encoder_of(model, "gsm8k", 2)
    tokenizer = encoder.tokenizer
    special = {i for i in range(oracle(model).vocab_size + 10) if i in oracle(model).all_special_ids}
    special |= {*tokenizer.end_ids, *tokenizer.never_sampled}

    def special_ids(problem):
        encoded = encoder(problem)
        return [i for i in (*encoded.prefix_ids, *encoded.body_ids) if i in special]

    plain, evil = TASKS["gsm8k"][1]
    assert holds_a_special_token(evil) and special_ids(evil) == special_ids(plain)
    body = tokenizer.decode(encoder(evil).body_ids)
    assert "<|im_end|> </s> <eos> <|eot_id|>" in body


@every_row("model", MODELS)
def test_the_end_of_a_turn_stops_a_completion(model):
    tokenizer = tokenizer_of(model)
    assert tokenizer.token(tokenizer.end_ids[0]) == MODELS[model][2]
    assert {*trained(MODELS[model][0]).end_ids} <= {*tokenizer.end_ids}
    table_SV = stop_strings.automaton(tokenizer, [])
    assert table_SV.shape == (2, tokenizer.vocab_size)
    assert np.flatnonzero(table_SV[0]).tolist() == sorted(tokenizer.end_ids)
    assert tokenizer_for("chat", tokenizer).end_ids == tokenizer.end_ids  # what a run stores with its models


def test_stop_strings_apply_to_plain_prompts_only():
    values = config.default("gsm8k")
    values.base.path = "somewhere"
    for prompt_format, stop in (("plain", GSM8K.stop), ("chat", ())):
        values.prompt.format = prompt_format
        assert generate.sampler_spec(config.from_dict(values), GSM8K, Decoding()).stop == stop
    values.prompt.format = "xml"
    with pytest.raises(InputError, match=r"prompt\.format must be one of plain, chat"):
        config.from_dict(values)


def test_a_plain_prompt_of_a_chat_model_is_as_without_its_template():
    chat, bare = trained("qwen2", CHATML), trained("qwen2")
    assert tokenizer_for("plain", chat) is chat
    prompts = few_shot.load("gsm8k", 2, direct=False)
    for problem in TASKS["gsm8k"][1]:
        assert PromptEncoder(GSM8K, chat, prompts)(problem) == PromptEncoder(GSM8K, bare, prompts)(problem)


def test_the_fingerprint_covers_format_and_template():
    prompts = few_shot.load("gsm8k", 2, direct=False)
    encoders = [
        PromptEncoder(GSM8K, trained("qwen2", CHATML), prompts, "plain"),
        PromptEncoder(GSM8K, trained("qwen2", CHATML), prompts, "chat"),
        PromptEncoder(GSM8K, trained("qwen2", QWEN3), prompts, "chat"),
        PromptEncoder(GSM8K, trained("qwen2", QWEN3), prompts.without_shots(), "chat"),
    ]
    assert encoders[0].fingerprint == prompts.fingerprint
    assert len({encoder.fingerprint for encoder in encoders}) == 4


BAD = [
    ("{{ raise_exception('only\\ntwo turns') }}", r"chat template fails \(only two turns\)"),
    ("{{ messages[5].content }}", "chat template fails"),
    ("{% for m in %}", "chat template fails"),
    ("{{ ''.__class__.__mro__ }}", "chat template fails"),
    ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "changes the texts of the turns"),
    ("{{ messages[0].content }}", "changes the texts of the turns"),
    ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "changes the texts of the turns"),
]


@every_row(("source", "reason"), BAD)
def test_templates_that_fail_or_refuse_are_one_line_of_advice(source, reason):
    with pytest.raises(InputError, match=reason) as raised:
        ChatTemplate(source, {}).render([Turn("user", "a"), Turn("assistant", "b")], generation_prompt=True)
    assert "\n" not in str(raised.value) and "--config.prompt.format=plain" in str(raised.value)


def test_a_template_sees_the_same_day_always():
    template = ChatTemplate("{{ strftime_now('%d %B %Y') }}{% for m in messages %}{{ m.content }}{% endfor %}", {})
    assert template.render([Turn("user", "a")], False)[0].text == "26 July 2024"


def test_chat_needs_a_template_and_shots_with_answers():
    for tokenizer in (tokenizers.make("bytes"), trained("qwen2")):
        with pytest.raises(InputError, match=r"prompt\.format=chat: the model's tokenizer has no chat template"):
            tokenizer_for("chat", tokenizer)
    encoder = PromptEncoder(GSM8K, tokenizer_of("chatml"), PromptSet("Q: a\nB: c\n\n"), "chat")
    with pytest.raises(InputError, match="a shot has no answer after its problem"):
        encoder(TASKS["gsm8k"][1][0])


@every_row("direct", [False, True])
@every_row("name", ["arithmetic", "commonsense_qa", "gsm8k"])
def test_a_shot_divides_into_what_render_returns_and_a_completion(name, direct):
    task = dataclasses.replace(TASKS[name][0], direct=direct)
    prompts = few_shot.load(name, 8, direct)
    for shot in (prompts.plain + prompts.hinted).split("\n\n")[:-1]:
        question, completion = task.split_turns(shot)
        assert task.parse(completion.strip()) is not None
        assert "A:" not in question and shot.startswith(question) and shot.endswith(completion)
    for problem, hint in itertools.product(TASKS[name][1], (False, True)):
        question, completion = task.split_turns(task.render(problem, hint))
        assert completion == "" and task.render(problem, hint).startswith(question)
