"""Any changed field of a tokenizer's files: one line that names a file, or a tokenizer that keeps every text."""

import faulthandler
import json
import shutil
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from star_jax import tokenizers
from star_jax.errors import InputError
from star_jax.tokenizers import load_directory, round_trip
from tests.support.mutations import mutated
from tests.support.tokenizers import CHATML, KINDS, keeps, tokenizer_json

PROCESSED = {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}
SEQUENCE, SPECIAL = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<s>", "type_id": 0}}
NORMALIZERS = [
    None, {"type": "NFC"}, {"type": "NFD"}, {"type": "NFKC"}, {"type": "NFKD"}, {"type": "Nmt"}, {"type": "Lowercase"},
    {"type": "StripAccents"}, {"type": "Strip", "strip_left": True, "strip_right": False},
    {"type": "Strip", "strip_left": False, "strip_right": True}, {"type": "Prepend", "prepend": "▁"},
    {"type": "Prepend", "prepend": " "}, {"type": "Prepend", "prepend": "x"}, {"type": "ByteLevel"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "},
    {"type": "Replace", "pattern": {"String": " "}, "content": ""},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "b"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "b"},
    {"type": "Replace", "pattern": {"Regex": "("}, "content": "b"},
    {"type": "Precompiled", "precompiled_charsmap": ""}, {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "BertNormalizer", "clean_text": False, "handle_chinese_chars": True, "strip_accents": None,
     "lowercase": False},
    {"type": "Sequence", "normalizers": []}, {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Nmt"}]},
]  # fmt: skip
PRE_TOKENIZERS = [
    None, {"type": "Whitespace"}, {"type": "WhitespaceSplit"}, {"type": "BertPreTokenizer"}, {"type": "UnicodeScripts"},
    {"type": "Punctuation", "behavior": "Isolated"}, {"type": "Punctuation", "behavior": "Removed"},
    {"type": "Digits", "individual_digits": True}, {"type": "CharDelimiterSplit", "delimiter": " "},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
    {"type": "Metaspace", "replacement": "_", "prepend_scheme": "never", "split": True},
    {"type": "Metaspace", "replacement": " ", "add_prefix_space": True},
    {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False},
    {"type": "Split", "pattern": {"Regex": r"\s"}, "behavior": "MergedWithNext", "invert": True},
    {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"Regex": r"(a+)+$"}, "behavior": "Isolated", "invert": False},
    {"type": "Split", "pattern": {"String": ""}, "behavior": "Contiguous", "invert": False},
    {"type": "FixedLength", "length": 3}, {"type": "FixedLength", "length": 0},
    {"type": "Sequence", "pretokenizers": []},
    {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "ByteLevel", "add_prefix_space": True}]},
]  # fmt: skip
DECODERS = [
    None, {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "WordPiece", "prefix": "##", "cleanup": True}, {"type": "Metaspace", "replacement": "▁"},
    {"type": "Metaspace", "replacement": "x", "add_prefix_space": True}, {"type": "ByteFallback"}, {"type": "Fuse"},
    {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    {"type": "BPEDecoder", "suffix": "</w>"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "Replace", "pattern": {"String": " "}, "content": "b"}, {"type": "Sequence", "decoders": []},
]  # fmt: skip
POST_PROCESSORS = [
    None, PROCESSED, {**PROCESSED, "single": [SPECIAL, SEQUENCE]},
    {**PROCESSED, "single": [SPECIAL, SEQUENCE], "pair": [SEQUENCE],
     "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
    {**PROCESSED, "single": [SEQUENCE, SPECIAL],
     "special_tokens": {"<s>": {"id": "<s>", "ids": [10**9], "tokens": ["<s>"]}}},
    {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]},
    {"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1], "trim_offsets": True,
     "add_prefix_space": True},
    {"type": "Sequence", "processors": []}, {"type": "Sequence", "processors": [PROCESSED]},
]  # fmt: skip
FLAGS = [True, False]
TOKEN = {"content": "<new>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
TOKENIZER = {
    "normalizer": NORMALIZERS,
    "normalizers": [[component] for component in NORMALIZERS],
    "pre_tokenizer": PRE_TOKENIZERS,
    "pretokenizers": [[component] for component in PRE_TOKENIZERS],
    "decoder": DECODERS,
    "decoders": [[component] for component in DECODERS],
    "post_processor": POST_PROCESSORS,
    "truncation": [{"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}, {}],
    "padding": [{"strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                 "pad_type_id": 0, "pad_token": "a"}, {"strategy": "BatchLongest"}],
    "added_tokens": [
        [], [{"id": 0, "special": True, **TOKEN}], [{"id": -1, "special": True, **TOKEN}],
        [{"id": 10**9, "special": False, **TOKEN}], [{"id": 7, "special": False, **TOKEN, "content": ""}],
        [{"id": 7, "special": True, **TOKEN, "content": ""}], [{"id": 7, "special": True, **TOKEN, "content": " "}],
    ],
    "type": ["BPE", "Unigram", "WordPiece", "WordLevel", None, "Sequence"],
    "dropout": [0.0, 0.1, 1.0, 2.0, -1.0], "unk_token": ["<unk>", "a", "", "none", None],
    "continuing_subword_prefix": ["", "##"], "end_of_word_suffix": ["", "</w>"], "fuse_unk": FLAGS,
    "byte_fallback": FLAGS, "ignore_merges": FLAGS, "unk_id": [None, 0, 5, 300, 10**6, -1],
    "merges": [[], ["a b"], [["a", "b"]], [["a"]], ["a"], [["none", "such"]], ["# version", "a b"]],
    "vocab": [{}, [], {"a": 0}, [["a", 0.0]], {"a": 0, "b": 0}, {"a": 0, "b": 7}],
    "add_prefix_space": FLAGS, "prepend_scheme": ["always", "first", "never", "other", None], "split": FLAGS,
    "use_regex": FLAGS, "trim_offsets": FLAGS, "replacement": ["▁", "_", "", "ab", " ", "Ġ"],
    "behavior": ["Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"], "invert": FLAGS,
    "pattern": [{"String": " "}, {"String": ""}, {"Regex": ""}, {"Regex": "."}, {"Regex": r"(?!)"}, {"Regex": "("}],
    "content": ["", " ", "a", "<s>", "\n", "▁", "é", "<unk>", "<|extratoken_1|>", "<0x41>"],
    "prepend": ["▁", " ", "", "x"], "id": [0, 1, 7, 300, 10**9, -1, 1.5, True], "lstrip": FLAGS, "rstrip": FLAGS,
    "single_word": FLAGS, "normalized": FLAGS, "special": FLAGS, "version": ["1.0", "2.0", None],
}  # fmt: skip
IDS = [None, 0, 1, 2, 5, [1, 2], [], -1, 10**9, 1.0, True, "2", [[1]], [None]]
NAMES = ["<s>", "</s>", "<unk>", "<|endoftext|>", "<|eot_id|>", "a", "none", "", None, {"content": "</s>"}, ["</s>"]]
CONFIG = {
    "eos_token": NAMES, "bos_token": NAMES, "unk_token": NAMES, "pad_token": NAMES, "add_bos_token": [*FLAGS, None],
    "add_eos_token": [*FLAGS, None], "add_prefix_space": [*FLAGS, None], "clean_up_tokenization_spaces": FLAGS,
    "tokenizer_class": ["LlamaTokenizer", "GPT2Tokenizer", "none"], "do_lower_case": FLAGS, "legacy": FLAGS,
    "model_max_length": [1, 10**30], "chat_template": [CHATML, "{% if", "{{ 1 / 0 }}", "", None, [], [{}], {"a": "b"}],
    "added_tokens_decoder": [{}, {"0": {}}, {"0": None}, {"x": {"content": "a"}}, {"0": {"content": "<unk>"}}, []],
    "additional_special_tokens": [[], ["<s>"], [3]],
}  # fmt: skip
ENDS = {"llama3": "<|eot_id|>", "qwen2": "<|im_end|>", "gemma": "<eos>", "llama2": "</s>", "unigram": "</s>"}


def others(kind: str) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Name -> (content, valid values of its fields) of the files next to tokenizer.json."""
    end = ENDS[kind]
    end_id = next(t["id"] for t in json.loads(tokenizer_json(kind))["added_tokens"] if t["content"] == end)
    ids = {"eos_token_id": [*IDS, [end_id, 1]], "bos_token_id": IDS}
    return {
        "tokenizer_config.json": ({"eos_token": end, "tokenizer_class": "PreTrainedTokenizerFast"}, CONFIG),
        "special_tokens_map.json": ({"eos_token": {"content": end}, "unk_token": "<unk>"}, CONFIG),
        "generation_config.json": ({"eos_token_id": end_id, "temperature": 0.6}, ids),
        "config.json": ({"eos_token_id": [end_id], "vocab_size": 1500}, ids),
    }


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="▁"), max_size=20) | st.sampled_from(
    ["<s>", "</s>a", " <unk>  b", "<think>\n", "<|eot_id|> ", "a<0x41>b", "Ġa", "a\u0301", "aab aaa"]
)


@st.composite
def changed_files(draw):
    """(kind, name of the changed file, its content)."""
    kind = draw(st.sampled_from(KINDS))
    name = draw(st.sampled_from(["tokenizer.json"] * 6 + list(others(kind))))
    if name == "tokenizer.json":
        values, alternatives = json.loads(tokenizer_json(kind)), TOKENIZER
    else:
        values, alternatives = others(kind)[name]
    for _ in range(draw(st.integers(1, 2))):
        values = draw(mutated(values, alternatives))
    return kind, name, values


def check(folder, capfd, kind, name, values, texts):
    """One case: refused in one line without other output, or accepted with all texts kept; in a second."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer_json(kind), encoding="utf-8")
    for other, (content, _) in others(kind).items():
        (folder / other).write_text(json.dumps(content))
    (folder / name).write_text(json.dumps(values))
    started = time.process_time()
    faulthandler.dump_traceback_later(60, exit=True)  # a hang inside of the library
    try:
        tokenizer = load_directory(folder)
    except InputError as error:
        assert str(error).startswith(str(folder)) and name in str(error), error
    else:
        again = tokenizers.from_spec(json.loads(json.dumps(tokenizer.spec())))
        for text in (*round_trip.PROBES.values(), *texts):
            assert keeps(tokenizer, text), text
            assert again.encode(text) == tokenizer.encode(text), text
        assert all(0 <= i < tokenizer.vocab_size for i in tokenizer.end_ids)
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert time.process_time() - started < 5
    assert capfd.readouterr() == ("", "")


CASES = dict(case=changed_files(), texts=st.lists(TEXTS, min_size=3, max_size=3))
HEALTH = dict(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)


@settings(max_examples=80, **HEALTH)
@given(**CASES)
def test_a_changed_field_is_refused_or_loses_no_text(tmp_path, capfd, case, texts):
    check(tmp_path / "model", capfd, *case, texts)


@pytest.mark.slow
@settings(max_examples=5_000, **HEALTH)
@given(**CASES)
def test_many_changed_fields_are_refused_or_lose_no_text(tmp_path, capfd, case, texts):
    check(tmp_path / "model", capfd, *case, texts)
