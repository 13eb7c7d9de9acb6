"""star_jax.tokenizers.round_trip: what changes texts is refused on loading, what loses a character in the text."""

import json
import logging
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax import tasks
from star_jax.errors import InputError
from star_jax.evaluation.prompts import PromptEncoder
from star_jax.records import Example, Problem, Source
from star_jax.tasks.few_shot import PromptSet
from star_jax.tokenizers import JsonTokenizer, load_directory, round_trip
from star_jax.tokenizers.chat_template import Part
from star_jax.tokenizers.simple import ByteTokenizer, SymbolTokenizer
from star_jax.training import packing
from tests.support.tables import every_row
from tests.support.tokenizers import KINDS, tokenizer_json, trained

NEWLINES = {"type": "Replace", "pattern": {"Regex": "\n+"}, "content": "\n"}
SPACES = {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}
CRLF = {"type": "Replace", "pattern": {"String": "\r\n"}, "content": "\n"}
ACCENTS = {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "StripAccents"}]}
BERT = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": False, "strip_accents": False,
        "lowercase": False}  # fmt: skip
FLAGS = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)


def changed(kind: str, normalizer=None, pre_tokenizer=None, token=None) -> JsonTokenizer:
    """The tokenizer of a kind with another component in front of its own, or with one more token."""
    values, end = json.loads(tokenizer_json(kind)), trained(kind).end_ids
    if normalizer:
        before = [values["normalizer"]] if values["normalizer"] else []
        values["normalizer"] = {"type": "Sequence", "normalizers": [normalizer, *before]}
    if pre_tokenizer:
        before = [values["pre_tokenizer"]] if values["pre_tokenizer"] else []
        values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [pre_tokenizer, *before]}
    if token:
        last = max(trained(kind)._library.get_vocab().values())
        values["added_tokens"].append({"id": last + 1, "content": "<new>", **FLAGS, **token})
    return JsonTokenizer(json.dumps(values), end_ids=end)


@every_row(
    ("change", "what"),
    [
        (dict(normalizer={"type": "Lowercase"}), "words"),
        (dict(normalizer={"type": "NFKC"}), "other white space"),
        (dict(normalizer={"type": "NFKD"}), "other white space"),
        (dict(normalizer={"type": "Nmt"}), "line ends"),
        (dict(normalizer=ACCENTS), "composed letters"),
        (dict(normalizer={"type": "Strip", "strip_left": True, "strip_right": False}), "a space at the start"),
        (dict(normalizer={"type": "Strip", "strip_left": False, "strip_right": True}), "a space at the end"),
        (dict(normalizer=SPACES), "spaces at the start"),
        (dict(normalizer=NEWLINES), "line ends"),
        (dict(normalizer=CRLF), "line ends of Windows"),
        (dict(normalizer=BERT), "line ends"),
        (dict(pre_tokenizer={"type": "WhitespaceSplit"}), "words"),
        (dict(pre_tokenizer={"type": "Split", "pattern": {"String": ","}, "behavior": "Removed", "invert": False}),
         "words"),
        (dict(token={"lstrip": True}), "added tokens"),
        (dict(token={"rstrip": True}), "added tokens"),
    ],
)  # fmt: skip
def test_a_tokenizer_that_changes_texts_is_refused_with_the_first_text(change, what):
    for kind, text in (("qwen2", what), ("gemma", ".*")):  # for gemma "▁" are no spaces that a component strips
        with pytest.raises(InputError, match=f"does not keep {text}: .* comes back as ") as raised:
            changed(kind, **change)
        assert "\n" not in str(raised.value) and "use the tokenizer of another model" in str(raised.value)


def test_byte_level_spaces_before_every_word_are_refused():
    values = json.loads(tokenizer_json("llama3"))
    values["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = True
    with pytest.raises(InputError, match="does not keep words"):
        JsonTokenizer(json.dumps(values), end_ids=trained("llama3").end_ids)


def test_the_check_takes_milliseconds(shared_dir):
    """2 ms here for GPT-2's vocabulary, 15 ms for Gemma-3's with its 6,414 added tokens."""
    for tokenizer in (load_directory(shared_dir / "data" / "gpt2"), *map(trained, KINDS), ByteTokenizer()):
        started = time.process_time()
        round_trip.check(tokenizer)
        assert time.process_time() - started < 0.1


def test_the_probes_hold_every_byte_of_utf8():
    present = set("".join(round_trip.PROBES.values()).encode())
    assert present == set(range(256)) - {0xC0, 0xC1, *range(0xF5, 0x100)}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁")) | st.sampled_from(
    [*round_trip.PROBES.values(), "<s>", "</s>", "<think>", "<|im_end|>", "<|eot_id|>", "<eos>", "\n\n", " "]
), max_size=3).map("".join))  # fmt: skip
def test_accepted_tokenizers_keep_any_text(text):
    wrong = []
    for tokenizer in (*map(trained, KINDS), ByteTokenizer()):
        decoded = tokenizer.decode(tokenizer.encode_continuation(text))
        if decoded != text:
            wrong.append((tokenizer.spec()["kind"], text, decoded))
        prefix_ids, body_ids = tokenizer.encode_parts("Q: a\nA: b.\n\n", text)
        if tokenizer.decode([*prefix_ids, *body_ids]).removeprefix(" ") != "Q: a\nA: b.\n\n" + text:
            wrong.append((tokenizer.spec()["kind"], "parts", text))
        if tokenizer.encode(text) != tokenizer.encode(text):
            wrong.append((tokenizer.spec()["kind"], "another time", text))
    assert not wrong


def test_composed_characters_for_decomposed_ones_are_accepted_and_logged(caplog):
    """Qwen's tokenizers do this. Other differences next to them are found."""
    tokenizer, text = changed("qwen2", normalizer={"type": "NFC"}), "Q: cafe\u0301?\nA:"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text) != text
    round_trip._log_normalization.cache_clear()
    with caplog.at_level(logging.WARNING, "star_jax"):
        for _ in range(3):
            round_trip.check_text(tokenizer, ids, text, starts_document=True)
    assert caplog.text.count("canonically equivalent") == 1
    with pytest.raises(InputError, match=r"'\?' \(U\+003F\)"):
        round_trip.check_text(tokenizer, tokenizer.encode("Q: cafe\u0301!\nA:"), text, starts_document=True)


def small_vocabulary(unknown: str | None) -> JsonTokenizer:
    """BPE over the signs of ASCII without "z" and "~", with a token for unknown signs or none."""
    signs = [chr(i) for i in range(32, 126) if chr(i) != "z"] + ["\n"]
    vocab = {sign: i for i, sign in enumerate(["<end>", *([unknown] if unknown else []), *signs])}
    model = {"type": "BPE", "vocab": vocab, "merges": [], "unk_token": unknown}
    return JsonTokenizer(json.dumps({"version": "1.0", "added_tokens": [], "model": model}), end_ids=[0])


@every_row("unknown", ["<unk>", None])
def test_a_character_that_a_small_vocabulary_lacks_is_refused_in_the_text_that_needs_it(unknown):
    tokenizer, task = small_vocabulary(unknown), tasks.make("arithmetic")
    encoder = PromptEncoder(task, tokenizer, PromptSet("plain\n\n", "hinted\n\n"))
    assert encoder(Problem("t-1", "1 2 + 3 4", "4 6"))
    with pytest.raises(InputError, match=r"problem 't-2', prompt: .*'z' \(U\+007A\) in .*comes back as"):
        encoder(Problem("t-2", "1 2 + z", "4 6"))
    direct = PromptEncoder(tasks.make("arithmetic", direct=True), tokenizer, PromptSet("", ""))
    assert tokenizer.decode(direct.reference_ids(Problem("t-3", "1 2 + 3 4", "4 6"))) == "4 6"
    with pytest.raises(InputError, match=r"problem 't-4', reference: .*'é' \(U\+00E9\)"):
        direct.reference_ids(Problem("t-4", "1 2 + 3 4", "é"))


def test_symbols_that_lose_spaces_or_words_are_refused_with_the_problem():
    task = tasks.make("arithmetic", direct=True)
    encoder = PromptEncoder(task, SymbolTokenizer(task.symbols), PromptSet("", ""))
    for answer, reason in [("4  6", r"does not keep its text: ' '"), ("4 six", "no symbol for 'six'")]:
        with pytest.raises(InputError, match=f"problem 't-5', reference: .*{reason}"):
            encoder.reference_ids(Problem("t-5", "1 2 + 3 4", answer))


def test_sentencepiece_s_own_sign_for_a_space_is_refused_in_prompts_references_conversations_and_training():
    tokenizer, task = trained("gemma"), tasks.make("arithmetic", direct=True)
    encoder = PromptEncoder(task, tokenizer, PromptSet("", ""))
    with pytest.raises(InputError, match=r"problem 't-6', prompt: .*'▁' \(U\+2581\)"):
        encoder(Problem("t-6", "1▁2", "3"))
    with pytest.raises(InputError, match="'▁'"):
        encoder.reference_ids(Problem("t-7", "1 2", "3▁4"))
    with pytest.raises(InputError, match="'▁'"):
        tokenizer.encode_conversation([Part("<bos>", None), Part("a▁b", 0)])
    with pytest.raises(InputError, match=r"problem 't-8', completion: .*'▁'"):
        packing.tokenize(Example("t-8", "Q: a", " b▁c", 1, Source.REFERENCE), tokenizer)
