"""star_jax.weights.sources.gguf_tokenizer: ids are those of the tokenizer that was written to the file."""

import functools
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from star_jax.errors import InputError
from star_jax.models import decoder
from star_jax.tokenizers import round_trip
from star_jax.weights import checkpoint
from star_jax.weights.sources import gguf as source
from star_jax.weights.sources import gguf_tokenizer
from star_jax.weights.sources.gguf_file import GgufFile
from tests.support import gguf as written
from tests.support.mutations import mutated
from tests.support.tables import every_row
from tests.support.tokenizers import keeps, tokenizer_json
from tests.support.weights import convert, libraries, torch_logits

gguf = pytest.importorskip("gguf", reason="GGUF needs the package gguf")
TEXTS = [
    "Q: Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n#### 24\n\nQ: I'LL we'Ve she's",
    "  a   b\n\n\n\tc\t\t\td  \r\n\r\n x ",
    "naïve café — “quotes” 日本語 🙂\u0301\x00\x7f 12345 1,234.5 v2.10",
    "cafe\u0301 (e).\n\nQ: CamelCaseWords HTTPServer/path",
    " ",
    "",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def byte_level(pre: str):
    """A byte-level BPE of the `tokenizers` library with the pre-tokenizer that models of this name have."""
    tokenizers = pytest.importorskip("tokenizers")
    pre_tokenizers = tokenizers.pre_tokenizers
    theirs = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pattern = {"llama-bpe": theirs._LLAMA3_SPLIT, "dbrx": theirs._LLAMA3_SPLIT, "tekken": theirs._TEKKEN_SPLIT,
               "qwen2": theirs._QWEN2_SPLIT}.get(pre)  # fmt: skip
    if pattern:
        split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
        parts = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    else:
        parts = [pre_tokenizers.Digits(individual_digits=True), plain] if pre == "smollm" else [plain]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    if pre == "qwen2":
        tokenizer.normalizer = tokenizers.normalizers.NFC()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator([*TEXTS * 9, *(f" {n} {n}\n\n" for n in range(900, 999))], trainer)
    tokenizer.add_tokens(["<think>"])
    return tokenizer


def byte_level_metadata(pre: str, tokenizer) -> dict:
    values = json.loads(tokenizer.to_str())
    size = tokenizer.get_vocab_size()
    tokens = [tokenizer.id_to_token(i) for i in range(size)]
    types = [CONTROL if token in SPECIAL else USER_DEFINED if token == "<think>" else NORMAL for token in tokens]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, "[PAD1]", "[PAD2]"],
        "tokenizer.ggml.token_type": [*types, UNUSED, UNUSED],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in values["model"]["merges"]],
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.eot_token_id": 0,
        "tokenizer.ggml.bos_token_id": 1,
    }


def open_tokenizer(tmp_path, metadata):
    """The tokenizer of a GGUF file without a model."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    for key, value in metadata.items():
        written.add_value(writer, key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf_tokenizer.find(GgufFile(tmp_path / "a.gguf"))


@every_row("pre", ["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken"])
def test_byte_level_ids_are_those_of_the_tokenizer_with_this_pre_tokenizer(pre, tmp_path):
    theirs = byte_level(pre)
    ours = open_tokenizer(tmp_path, byte_level_metadata(pre, theirs))
    for text in [*TEXTS, "a <think> b"]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids, text
        assert ours.decode(ours.encode(text)) == (theirs.normalizer.normalize_str(text) if pre == "qwen2" else text)
    assert (ours.end_ids, ours.vocab_size) == ((2, 0), theirs.get_vocab_size())
    assert ours.bos_id == (1 if pre in ("llama-bpe", "tekken") else None)  # llama.cpp's default
    assert not {0, 1, 2} & set(ours.encode("<|im_end|>"))


def test_pre_tokenizers_differ_on_these_texts(tmp_path):
    """So that a mistaken one cannot pass the test above; dbrx and llama-bpe split alike."""
    theirs = byte_level("gpt-2")
    ids = {}
    for pre in ("gpt-2", "smollm", "llama-bpe", "qwen2", "tekken"):
        ours = open_tokenizer(tmp_path, byte_level_metadata(pre, theirs))
        ids[pre] = str([ours.encode(text) for text in TEXTS])
    assert len(set(ids.values())) == len(ids)


@every_row(("add_space_prefix", "users"), [(True, []), (False, ["\n", "\n\n", "▁▁", "▁▁▁▁", "<b>"])])
def test_sentencepiece_ids_are_those_of_sentencepiece(add_space_prefix, users, tmp_path):
    """Merges are recovered from the scores; user-defined tokens are matched first; what has no token falls to bytes."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="the oracle of this test")
    (tmp_path / "texts.txt").write_text("\n".join(line for text in TEXTS[:4] * 20 for line in text.split("\n")))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts.txt"), model_prefix=str(tmp_path / "sp"), model_type="bpe", vocab_size=420,
        byte_fallback=True, add_dummy_prefix=add_space_prefix, normalization_rule_name="identity",
        remove_extra_whitespaces=False, user_defined_symbols=users, minloglevel=2, character_coverage=0.98,
        allow_whitespace_only_pieces=True,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "sp.model"))
    ids = range(theirs.get_piece_size())
    pieces = [theirs.id_to_piece(i) for i in ids]
    kinds = {theirs.unk_id(): UNKNOWN, theirs.bos_id(): CONTROL, theirs.eos_id(): CONTROL}
    types = [kinds.get(i, BYTE if theirs.is_byte(i) else USER_DEFINED if pieces[i] in users else NORMAL) for i in ids]
    ours = open_tokenizer(
        tmp_path,
        {
            "tokenizer.ggml.model": "llama",
            "tokenizer.ggml.pre": "default",
            "tokenizer.ggml.tokens": [
                piece.replace("▁", " ") if kind == USER_DEFINED else piece
                for piece, kind in zip(pieces, types, strict=True)
            ],
            "tokenizer.ggml.token_type": types,
            "tokenizer.ggml.scores": [float(theirs.get_score(i)) for i in ids],
            "tokenizer.ggml.bos_token_id": theirs.bos_id(),
            "tokenizer.ggml.eos_token_id": theirs.eos_id(),
            "tokenizer.ggml.unknown_token_id": theirs.unk_id(),
            "tokenizer.ggml.add_space_prefix": add_space_prefix,
        },
    )
    assert sum(kind == NORMAL for kind in types) > 100
    for text in [*TEXTS, "a <b> b", "Natalia sold 48 clips"]:
        if "\x00" not in text:  # ends SentencePiece's text
            assert ours.encode(text) == theirs.encode(text), text
    assert (ours.bos_id, ours.end_ids) == (theirs.bos_id(), (theirs.eos_id(),))


def test_end_ids_and_bos_are_what_the_file_says(tmp_path):
    metadata = byte_level_metadata("smollm", byte_level("smollm"))
    key = "tokenizer.ggml.{}_token_id".format
    rows = [
        ({}, (2, 0), None),
        ({"tokenizer.ggml.add_bos_token": True}, (2, 0), 1),
        ({key("eot"): 2}, (2,), None),
        ({key("eom"): 1}, (2, 0, 1), None),
        ({"tokenizer.ggml.add_bos_token": True, key("bos"): 0}, (2, 0), 0),
    ]
    for changes, end_ids, bos_id in rows:
        tokenizer = open_tokenizer(tmp_path, {**metadata, **changes})
        assert (tokenizer.end_ids, tokenizer.bos_id) == (end_ids, bos_id), changes
    del metadata[key("eos")], metadata[key("eot")]
    with pytest.raises(InputError, match=r"eos_token_id is missing"):
        open_tokenizer(tmp_path, metadata)
    with pytest.raises(InputError, match=r"tokenizer\.ggml\.eos_token_id is 9999, of"):
        open_tokenizer(tmp_path, {**metadata, key("eos"): 9999})
    with pytest.raises(InputError, match=r"token_type has 1 values for"):
        open_tokenizer(tmp_path, {**metadata, "tokenizer.ggml.token_type": [1]})


@pytest.mark.slow
def test_a_file_becomes_a_directory_that_transformers_loads(tmp_path):
    """Logits, ids with the BOS, special tokens and conversations are those of the file that was written."""
    torch, transformers = libraries()
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    theirs, model = byte_level("qwen2"), written.torch_model("qwen2")
    metadata = {
        **byte_level_metadata("qwen2", theirs),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": template,
    }
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**{**written.MODELS["qwen2"][2], "vocab_size": theirs.get_vocab_size() + 9})
    ).eval()
    written.write(tmp_path / "model.gguf", "qwen2", model, metadata=metadata)
    status, output, errors = convert(tmp_path / "model.gguf", "gguf", tmp_path / "hf", "hf")
    assert (status, errors) == (0, "") and f"a tokenizer of {theirs.get_vocab_size()} ids" in output
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    tokens_BT = np.arange(60).reshape(2, 30)
    np.testing.assert_array_equal(torch_logits(back, tokens_BT), torch_logits(model, tokens_BT))
    assert (back.generation_config.eos_token_id, back.generation_config.bos_token_id) == ([2, 0], 1)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ours = source.find_tokenizer(tmp_path / "model.gguf")
    for text in TEXTS:
        expected = [1, *theirs.encode(text, add_special_tokens=False).ids]
        assert loaded(text)["input_ids"] == expected == ours.encode_document(text), text
    assert (loaded.bos_token, loaded.eos_token, loaded.chat_template) == ("<|im_start|>", "<|im_end|>", template)
    conversation = [{"role": "user", "content": "12345 a"}]
    ids = theirs.encode("<|im_start|>user\n12345 a<|im_end|>\n", add_special_tokens=False).ids
    assert loaded.apply_chat_template(conversation)["input_ids"] == ids
    again = checkpoint.load_tokenizer(tmp_path / "hf")
    assert (again.end_ids, again.bos_id, again.chat_template.source) == ((2, 0), 1, template)
    logits = decoder.apply(*checkpoint.load_model(tmp_path / "hf"), tokens_BT)
    assert np.abs(logits - torch_logits(model, tokens_BT)).max() < 1e-4


IDS = [-2, -1, 0, 1, 2, 5, 1203, 10**6, 2**32 - 1, True, "2", 1.0]
FIELDS = {
    **dict.fromkeys(("eos_token_id", "bos_token_id", "eot_token_id", "unknown_token_id", "padding_token_id"), IDS),
    "model": ["gpt2", "llama", "bert", "", 3],
    "pre": ["default", "gpt-2", "llama-bpe", "qwen2", "smollm", "tekken", "dbrx", "none", 1],
    "token_type": [[], [1], [3] * 1204, [5] * 1204, [6] * 1204, [2] * 1204, [4] * 1204],
    "scores": [[], [0.0], [0.0] * 1200, [float("nan")] * 1200, [float(i) for i in range(1200)]],
    "merges": [[], ["a"], ["a b c"], ["", " "], ["none such"], [1, 2]],
    "tokens": [[], ["a"], ["a"] * 1204, [""] * 1204, [1, 2]],
    **{key: [True, False, 1, "yes"] for key in ("add_bos_token", "add_space_prefix")},
    "chat_template": ["", "{% if", 3],
}


@functools.cache
def plain_metadata(kind: str) -> dict[str, Any]:
    """The metadata of a trained tokenizer, without the prefix of their keys: of kind "qwen2" or "llama2"."""
    values = json.loads(tokenizer_json(kind))
    added = {token["id"]: token for token in values["added_tokens"]}
    names = dict(sorted({i: token for token, i in values["model"]["vocab"].items()}.items()))
    names |= {i: token["content"] for i, token in added.items()}
    kinds = [(USER_DEFINED, CONTROL)[added[i]["special"]] if i in added else NORMAL for i in names]
    common = {"tokens": list(names.values()), "token_type": kinds, "eos_token_id": 2, "bos_token_id": 1}
    if kind == "qwen2":
        return {**common, "model": "gpt2", "pre": "qwen2", "merges": [" ".join(m) for m in values["model"]["merges"]]}
    return {**common, "model": "llama", "scores": [-float(i) for i in names], "unknown_token_id": 0}


def check_changed(kind: str, metadata: dict[str, Any]) -> None:
    """Refused in one line that names the file, or accepted with all texts kept."""
    values = {}
    for key, value in metadata.items():
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            assume(len({type(item) for item in value}) == 1 and type(value[0]) in (int, float, bool))
            assume(all(abs(item) < 2**63 for item in value if type(item) is int))
            value = np.array(value)
        assume(not isinstance(value, dict | None))
        values[f"tokenizer.ggml.{key}" if key != "chat_template" else "tokenizer.chat_template"] = value
    try:
        tokenizer = gguf_tokenizer.find(types.SimpleNamespace(path=Path("a.gguf"), metadata=values))
    except InputError as error:
        assert str(error).startswith("a.gguf: "), error
        return
    assert tokenizer is None or all(keeps(tokenizer, text) for text in (*TEXTS, *round_trip.PROBES.values()))


CHANGED = st.sampled_from(["qwen2", "llama2"]).flatmap(
    lambda kind: st.tuples(st.just(kind), mutated(plain_metadata(kind), FIELDS))
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(CHANGED)
def test_a_changed_field_is_refused_or_loses_no_text(case):
    check_changed(*case)


@pytest.mark.slow
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
@given(CHANGED)
def test_many_changed_fields_are_refused_or_lose_no_text(case):
    check_changed(*case)
