"""star_jax.tokenizers.JsonTokenizer and load_directory, against the tokenizers library and transformers."""

import json
import re

import pytest

from star_jax import tokenizers
from star_jax.errors import InputError
from star_jax.tokenizers import JsonTokenizer, json_tokenizer, load_directory
from star_jax.tokenizers.chat_template import Part
from tests.support.tables import every_row
from tests.support.tokenizers import (
    CHATML,
    CHATML_SPECIAL,
    GEMMA_SPECIAL,
    KINDS,
    LLAMA3_SPECIAL,
    tokenizer_json,
    trained,
)

TEXTS = [
    "Q: How many?\nA: 48/2 = <<48/2=24>>24\n#### 24",
    " two  spaces,   three\tand\r\nline ends \n\n\nend.",
    "naïve café — “quotes” … 日本語 🙂👩‍👩‍👧",
    "(a) bucket\n(b) sponge (CORRECT)",
    "a" * 40 + " " * 17 + "1234567890",
]
SPECIAL = {
    "llama3": LLAMA3_SPECIAL, "qwen2": CHATML_SPECIAL, "gemma": GEMMA_SPECIAL, "llama2": ("<unk>", "<s>", "</s>"),
    "unigram": ("<unk>", "<s>", "</s>"),
}  # fmt: skip


def library_of(kind: str):
    library = pytest.importorskip("tokenizers")
    return library.Tokenizer.from_str(tokenizer_json(kind))


@every_row("kind", KINDS)
def test_ids_are_those_of_the_library(kind):
    theirs, ours = library_of(kind), trained(kind)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False).ids


@every_row("kind", KINDS)
def test_pieces_of_a_continuation_are_its_bytes(kind):
    """For unigram the signs that it has not seen are bytes, too; a dummy space is before a document only."""
    ours = trained(kind)
    for text in TEXTS:
        ids = ours.encode_continuation(text)
        assert b"".join(ours.pieces[i] for i in ids) == text.encode(), text
        assert ours.decode([*ids, ours.end_ids[0]]) == text
    dummy = {"llama2": " ", "unigram": " "}.get(kind, "")
    assert ours.decode(ours.encode("Yes")) == f"{dummy}Yes"


@every_row("kind", KINDS)
def test_decoded_texts_are_those_of_the_library(kind):
    """Of texts cut between tokens, after a first token: theirs drops the dummy space.

    Not inside of a character, of which theirs loses those before it, too.
    """
    theirs, ours = library_of(kind), trained(kind)
    first = ours.encode_continuation("x")
    for text in TEXTS:
        ids = ours.encode_continuation(text)
        for end in range(len(ids) + 1):
            decoded = ours.decode([*first, *ids[:end]])
            assert "\ufffd" in decoded or decoded == theirs.decode([*first, *ids[:end]])


@every_row("kind", KINDS)
def test_a_text_never_becomes_a_special_token(kind):
    ours = trained(kind)
    special = {library_of(kind).token_to_id(name) for name in SPECIAL[kind]}
    for name in SPECIAL[kind]:
        for text in (name, f"a{name}b {name}", f"\n{name}{name}\n"):
            ids = ours.encode_continuation(text)
            assert not special & set(ids) and not special & set(ours.encode(text)), name
            assert ours.decode(ids) == text


@every_row("kind", KINDS)
@every_row("ignore_merges", [False, True])
def test_a_text_with_the_name_of_a_byte_stays_this_text(kind, ignore_merges):
    """Unigram finds "<0x41>" in its vocabulary, and so does a BPE that ignores merges; the token writes an "A"."""
    values = json.loads(tokenizer_json(kind))
    values["model"]["ignore_merges"] = ignore_merges
    ours = JsonTokenizer(values, end_ids=trained(kind).end_ids)
    for text in ("<0x41>", "a <0x0A>b<0x41><0xE2>", "\n<0xFF>\n"):
        assert ours.decode(ours.encode_continuation(text)) == text
        assert ours.decode(ours.encode(text)).removeprefix(" ") == text


@every_row("kind", KINDS)
@every_row("ignore_merges", [False, True])
def test_a_text_with_the_name_of_an_end_token_stays_this_text(kind, ignore_merges):
    """Even where the file does not say that the token is special, as where an entry of added_tokens is lost."""
    for name, token_id in [(trained(kind).token(i), i) for i in trained(kind).end_ids]:
        values = json.loads(tokenizer_json(kind))
        values["model"]["ignore_merges"] = ignore_merges
        values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != name]
        if name not in dict(json_tokenizer._vocabulary(values["model"])):
            continue
        ours = JsonTokenizer(values, end_ids=[token_id])
        for text in (name, f"a {name}b{name}"):
            assert token_id not in (ids := ours.encode_continuation(text)) and ours.decode(ids) == text
            assert ours.decode(ours.encode(text)).removeprefix(" ") == text


@every_row("kind", KINDS)
def test_a_token_that_writes_nothing_is_none_that_texts_are_made_of(kind):
    """Else each "a" would end a text, or be lost: a check of round trips leaves out what a vocabulary lacks."""
    ids = json_tokenizer.token_ids(json_tokenizer.parse(tokenizer_json(kind)))
    with pytest.raises(InputError, match="its token 'a' ends a text, and the text 'a' becomes this token"):
        JsonTokenizer(tokenizer_json(kind), end_ids=[ids["a"]])
    values = json.loads(tokenizer_json(kind))
    values["model"] |= {"unk_id": ids["a"]} if kind == "unigram" else {"unk_token": "a"}
    with pytest.raises(InputError, match="its token 'a' stands for unknown characters, and the text 'a' becomes"):
        JsonTokenizer(values, end_ids=trained(kind).end_ids)


def test_tokens_that_share_an_id_are_refused():
    values = json.loads(tokenizer_json("qwen2"))
    first, second, *_ = values["model"]["vocab"]
    values["model"]["vocab"][second] = values["model"]["vocab"][first]
    with pytest.raises(InputError, match=f"its token '{second}' has no id of its own: "):
        JsonTokenizer(values, end_ids=trained("qwen2").end_ids)


@every_row("kind", ["llama3", "qwen2", "gemma", "llama2"])
def test_a_vocabulary_whose_merges_are_lost_is_refused(kind, tmp_path):
    """Its texts would come back, one character for each token."""
    values = json.loads(tokenizer_json(kind))
    for kept in (0, len(values["model"]["merges"]) // 3):
        model = {**values["model"], "merges": values["model"]["merges"][:kept]}
        with pytest.raises(
            InputError, match=rf"tokens of several characters and {kept} merges, each of which makes one"
        ):
            JsonTokenizer({**values, "model": model}, end_ids=trained(kind).end_ids)


@every_row(
    ("kind", "model"),
    [
        ("gemma", {"unk_token": "none", "byte_fallback": False}),
        ("llama2", {"unk_token": "", "byte_fallback": False, "fuse_unk": False}),
        ("unigram", {"unk_id": None, "byte_fallback": False}),
    ],
)
def test_a_token_for_unknown_characters_that_is_missing_is_refused(kind, model):
    """The library fails on the first character that needs it."""
    values = json.loads(tokenizer_json(kind))
    values["model"] |= model
    with pytest.raises(InputError, match=r"(?i)the tokenizers library cannot encode '.* \(.*unk.*\); download"):
        JsonTokenizer(values, end_ids=trained(kind).end_ids)


def test_a_panic_of_the_library_is_bad_input():
    """It prints its own lines, so that what is known to make it panic is refused before."""
    values = json.loads(tokenizer_json("qwen2"))
    values["pre_tokenizer"] = {"type": "FixedLength", "length": 0}
    with pytest.raises(InputError, match="its pre-tokenizer makes pieces of no length"):
        JsonTokenizer(values, end_ids=trained("qwen2").end_ids)
    precompiled = {**values, "pre_tokenizer": None, "normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}
    with pytest.raises(InputError, match="its normalizer is Precompiled"):
        JsonTokenizer(precompiled, end_ids=trained("qwen2").end_ids)
    with pytest.raises(InputError, match="the tokenizers library does not read it"):
        json_tokenizer._library(precompiled, special_in_text=False)
    library = type(library_of("qwen2")).from_str(json.dumps(values))
    with pytest.raises(InputError, match=r"cannot encode 'a' \(chunk size must be non-zero\)"):
        json_tokenizer._ids(library, "a")


def test_added_tokens_that_are_not_special_are_ordinary_ones():
    ours, theirs = trained("qwen2"), library_of("qwen2")
    think = theirs.token_to_id("<think>")
    assert ours.encode("a<think>b") == theirs.encode("a<think>b").ids and think in ours.encode("a<think>b")
    assert ours.pieces[think] == b"<think>" and think not in ours.never_sampled
    gemma = trained("gemma")
    (spaces,) = {i for i, piece in enumerate(gemma.pieces) if piece == b"   "} & set(gemma.encode("a   b"))
    assert gemma.decode([spaces]) == "   "


@every_row("kind", KINDS)
def test_special_tokens_are_sampled_only_where_they_end_a_completion(kind):
    ours = trained(kind)
    special = {library_of(kind).token_to_id(name) for name in SPECIAL[kind]}
    unused = {i for i in special if i < ours.vocab_size} - set(ours.end_ids)
    assert unused <= set(ours.never_sampled) and not set(ours.never_sampled) & set(ours.end_ids)
    assert all(ours.pieces[i] == b"" for i in special if i < ours.vocab_size)
    assert ours.vocab_size > max(ours.end_ids)
    assert not [i for i in range(ours.vocab_size) if ours.pieces[i] and i in ours.never_sampled]


@every_row("kind", KINDS)
def test_a_spec_gives_an_equal_tokenizer(kind):
    ours = trained(kind, CHATML)
    again = tokenizers.from_spec(json.loads(json.dumps(ours.spec())))
    assert (again.spec(), again.pieces, again.end_ids, again.bos_id) == (
        ours.spec(), ours.pieces, ours.end_ids, ours.bos_id
    )  # fmt: skip
    assert again.chat_template.source == CHATML
    assert [again.encode(text) for text in TEXTS] == [ours.encode(text) for text in TEXTS]
    assert [again.encode_continuation(text) for text in TEXTS] == [ours.encode_continuation(text) for text in TEXTS]


@every_row(
    ("change", "text"),
    [
        ({"pre_tokenizer": {"prepend_scheme": "always"}}, "<s>a b</s>c <s> d"),
        ({"pre_tokenizer": {"prepend_scheme": "first"}}, "<s>a b</s>c <s> d"),
        ({"pre_tokenizer": {"prepend_scheme": "never"}}, "<s>a b</s>c <s> d"),
        ({"pre_tokenizer": {"prepend_scheme": "always"}}, "a <s>"),
        ({"added_tokens": {"rstrip": True}}, "<s>  a b </s> \n c"),
        ({"added_tokens": {"lstrip": True}}, "<s>  a b \n</s> \n c"),
    ],
)
def test_a_template_s_special_tokens_are_those_of_the_library_with_the_spaces_next_to_them(change, text):  # fmt: skip
    library = pytest.importorskip("tokenizers")
    values = json.loads(tokenizer_json("unigram"))
    values["pre_tokenizer"] |= change.get("pre_tokenizer", {})
    values["added_tokens"] = [token | change.get("added_tokens", {}) for token in values["added_tokens"]]
    ours = JsonTokenizer(json.dumps(values), end_ids=[2])
    expected = library.Tokenizer.from_str(json.dumps(values)).encode(text, add_special_tokens=False).ids
    assert ours.encode_conversation([Part(text, None)]) == expected
    head, border, body = ours.cut_conversation([Part(text, None), Part("e", 0)], before_turn=0)
    whole = ours.encode_conversation([Part(text, None), Part("e", 0)])
    assert ours.encode_conversation(head) + ours.encode_conversation(body, after=border) == whole


def write(folder, kind="llama3", **files):
    """A directory with the tokenizer.json of a kind and other files, whose names have "_json" for ".json"."""
    (folder / "tokenizer.json").write_text(tokenizer_json(kind), encoding="utf-8")
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name.replace("_json", ".json").replace("_jinja", ".jinja")).write_text(text)
    return folder


EOS = "<|end_of_text|>"
ENDS = [  # the files, and the names of the end ids
    ({}, [EOS]),
    (dict(config_json={"eos_token_id": "EOT"}), ["<|eot_id|>"]),
    (dict(config_json={"eos_token_id": ["EOT", EOS]}), ["<|eot_id|>", EOS]),
    (dict(generation_config_json={"eos_token_id": [EOS, "EOT"]}, config_json={"eos_token_id": "EOT"}),
     [EOS, "<|eot_id|>"]),
    (dict(tokenizer_config_json={"eos_token": "<|eot_id|>"}, generation_config_json={"eos_token_id": [EOS, "EOT"]}),
     ["<|eot_id|>", EOS]),
    (dict(tokenizer_config_json={"eos_token": {"content": EOS}}, config_json={"eos_token_id": None}), [EOS]),
    (dict(special_tokens_map_json={"eos_token": {"content": "<|eot_id|>"}}), ["<|eot_id|>"]),
    (dict(special_tokens_map_json={"eos_token": "<|eot_id|>"}, tokenizer_config_json={"eos_token": EOS}), [EOS]),
    (dict(config_json={"eos_token_id": 50256}), [EOS]),  # an id that the tokenizer does not have
]  # fmt: skip


@every_row(("files", "names"), ENDS)
def test_end_ids_come_from_all_files(files, names, tmp_path):
    ids = library_of("llama3").token_to_id

    def numbers(value):
        if isinstance(value, list):
            return [numbers(item) for item in value]
        return ids({"EOT": "<|eot_id|>"}.get(value, value)) if isinstance(value, str) else value

    files = {
        file: {key: numbers(value) if key.endswith("_id") else value for key, value in content.items()}
        for file, content in files.items()
    }
    assert load_directory(write(tmp_path, **files)).end_ids == tuple(ids(name) for name in names)


@every_row(
    ("kind", "about", "bos"),
    [
        ("llama3", {}, "<|begin_of_text|>"),  # its post-processor puts one
        ("llama3", {"add_bos_token": False}, None),
        ("llama3", {"add_bos_token": True, "bos_token": "<|eot_id|>"}, "<|eot_id|>"),
        ("qwen2", {}, None),
        ("qwen2", {"add_bos_token": True, "bos_token": {"content": "<|endoftext|>"}}, "<|endoftext|>"),
        ("qwen2", {"bos_token": "<|endoftext|>"}, None),
        ("gemma", {"add_bos_token": True, "bos_token": "<bos>"}, "<bos>"),
    ],
)
def test_bos_is_put_where_the_files_say_so(kind, about, bos, tmp_path):
    ours = load_directory(write(tmp_path, kind, tokenizer_config_json=about))
    assert ours.bos_id == (bos and library_of(kind).token_to_id(bos))
    assert ours.encode_document("a") == [*([ours.bos_id] if bos else []), *ours.encode("a")]


@every_row("kind", ["llama3", "qwen2"])
def test_documents_have_the_ids_that_transformers_gives_them(kind, tmp_path):
    transformers = pytest.importorskip("transformers", reason="a second opinion that only tests need")
    write(tmp_path, kind, tokenizer_config_json={"tokenizer_class": "PreTrainedTokenizerFast"})
    theirs, ours = transformers.AutoTokenizer.from_pretrained(tmp_path), load_directory(tmp_path)
    assert [ours.encode_document(text) for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]


@every_row(
    ("files", "template"),
    [
        (dict(chat_template_jinja="jinja"), "jinja"),
        (dict(chat_template_jinja="jinja", tokenizer_config_json={"chat_template": "config"}), "jinja"),
        (dict(tokenizer_config_json={"chat_template": "config"}), "config"),
        (
            dict(
                tokenizer_config_json={
                    "chat_template": [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
                }
            ),
            "d",
        ),
    ],
)
def test_the_chat_template_comes_from_its_file_or_the_config(files, template, tmp_path):
    ours = load_directory(write(tmp_path, **files))
    assert ours.chat_template.source == template
    assert ours.chat_template.tokens["bos_token"] == "<|begin_of_text|>"


def test_a_tokenizer_without_a_template_has_none(tmp_path):
    assert load_directory(write(tmp_path)).chat_template is None


@every_row(
    ("files", "reason"),
    [
        (dict(config_json="{"), r"config.json:1: invalid JSON"),
        (dict(generation_config_json="[1]"), r"generation_config.json: holds list, not a JSON object"),
        (dict(tokenizer_config_json={"chat_template": [{"name": "rag", "template": "t"}]}), "is named 'default'"),
        (dict(tokenizer_config_json={"add_bos_token": True, "bos_token": "<none>"}), "has no token '<none>'"),
        (dict(tokenizer_config_json={"chat_template": ["t"]}), "tokenizer_config.json: malformed"),
        (dict(tokenizer_config_json={"chat_template": 3}), "tokenizer_config.json: chat_template must be a text, is 3"),
        (dict(tokenizer_config_json={"add_bos_token": "no"}), 'tokenizer_config.json: add_bos_token must .* is "no"'),
        (
            dict(tokenizer_config_json={"eos_token": ["</s>"]}),
            "tokenizer_config.json: eos_token must be a token's text",
        ),
        (dict(special_tokens_map_json={"eos_token": "</s>"}), "tokenizer.json: has no token '</s>', which"),
        (dict(config_json={"eos_token_id": "2"}), '/config.json: eos_token_id must be an id or .* is "2"'),
        (dict(generation_config_json={"eos_token_id": [True]}), r"generation_config.json: eos_token_id .* is \[true\]"),
        (dict(tokenizer_json="{}"), "no vocabulary"),
    ],
)
def test_malformed_files_are_refused_in_one_line(files, reason, tmp_path):
    with pytest.raises(InputError, match=reason) as raised:
        load_directory(write(tmp_path, **files))
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


@every_row(
    ("kind", "about", "reason"),
    [
        ("qwen2", {"add_prefix_space": True}, "says add_prefix_space=true"),
        ("llama2", {"add_prefix_space": False}, "says add_prefix_space=false"),
        ("qwen2", {"added_tokens_decoder": {"3": {"content": "<new>"}}}, "'<new>' with the id 3, tokenizer.json has"),
        ("qwen2", {"added_tokens_decoder": {"END": {"content": "<new>", "special": True}}}, "another content"),
        ("qwen2", {"added_tokens_decoder": {"END": {"content": "<|endoftext|>"}}}, "another special"),
        ("qwen2", {"added_tokens_decoder": {"END": {"content": "<|endoftext|>", "special": True}}}, None),
        ("qwen2", {"added_tokens_decoder": {"END": {"content": "<|endoftext|>", "special": True, "rstrip": True}}},
         "another rstrip"),
        ("qwen2", {"added_tokens_decoder": {"x": {"content": "<new>"}}}, "malformed"),
        ("qwen2", {"add_prefix_space": False, "do_lower_case": True}, None),
        ("qwen2", {"add_prefix_space": None}, None),
        ("llama2", {"add_prefix_space": True}, None),
        ("unigram", {"add_prefix_space": True}, None),
    ],
)  # fmt: skip
def test_a_config_that_describes_another_tokenizer_is_refused(kind, about, reason, tmp_path):
    end = str(library_of(kind).token_to_id("<|endoftext|>"))
    folder = write(tmp_path, kind, tokenizer_config_json=json.dumps(about).replace("END", end))
    if reason is None:
        assert load_directory(folder).encode("a b")
        return
    with pytest.raises(InputError, match=re.escape(reason)) as raised:
        load_directory(folder)
    assert str(tmp_path) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.slow
def test_the_space_before_a_text_of_a_vocabulary_with_merges_is_that_of_transformers(shared_dir, tmp_path):
    transformers = pytest.importorskip("transformers", reason="a second opinion that only tests need")
    gpt2 = shared_dir / "data" / "gpt2"
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).symlink_to(gpt2 / name)
    for stated in (True, False):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": stated}))
        theirs = transformers.GPT2TokenizerFast(
            vocab=str(gpt2 / "vocab.json"), merges=str(gpt2 / "merges.txt"), add_prefix_space=stated
        )
        ours = load_directory(tmp_path)
        assert [ours.encode(text) for text in TEXTS] == [theirs.encode(text) for text in TEXTS], stated
        assert ours.decode(ours.encode_continuation("a")) == "a"


@every_row("kind", KINDS)
def test_a_text_has_the_same_ids_in_every_call(kind):
    """Also where a run stored the file with its dropout."""
    values = json.loads(tokenizer_json(kind))
    values["model"]["dropout"] = 0.5
    end = trained(kind).end_ids
    spec = trained(kind).spec() | {"tokenizer": values}
    for ours in (JsonTokenizer(json.dumps(values), end_ids=end), tokenizers.from_spec(spec)):
        expected = [trained(kind).encode(text) for text in TEXTS]
        assert all([ours.encode(text) for text in TEXTS] == expected for _ in range(20))
        assert ours.spec()["tokenizer"]["model"].get("dropout") is None


@every_row("kind", KINDS)
def test_special_tokens_may_have_any_text(kind):
    """With blanks and other scripts, in the vocabulary or next to it; they come from templates alone."""
    for name in ("<end of turn>", "<конец>", "<|结束|>", "<Ġé>"):
        for in_vocabulary in (False, True):
            values = json.loads(tokenizer_json(kind))
            vocabulary = values["model"]["vocab"]
            end = len(vocabulary) if in_vocabulary else max(library_of(kind).get_vocab().values()) + 1
            for token in values["added_tokens"]:
                token["id"] += in_vocabulary and token["id"] >= end
            flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
            values["added_tokens"].append({"id": end, "content": name, "special": True, **flags})
            if in_vocabulary and isinstance(vocabulary, list):
                vocabulary.append([name, -5.0])
            elif in_vocabulary:
                vocabulary[name] = end
            ours = JsonTokenizer(json.dumps(values), end_ids=[end])
            text = f"a {name} b"
            assert ours.decode(ours.encode_continuation(text)) == text and end not in ours.encode(text)
            assert ours.encode_conversation([Part(f"a{name}b", None)]).count(end) == 1
            assert ours.pieces[end] == b"" and ours.special_id(name) == end


def test_added_tokens_that_the_library_numbers_in_another_way_are_refused():
    """It ignores the ids of a file and counts from the vocabulary's size."""
    values = json.loads(tokenizer_json("llama3"))
    for token in values["added_tokens"][2:]:
        token["id"] += 7
    with pytest.raises(InputError, match=r"'<\|start_header_id\|>' has the id \d+, and the tokenizers library gives"):
        JsonTokenizer(json.dumps(values), end_ids=[values["added_tokens"][0]["id"]])


def test_an_id_far_beyond_the_number_of_tokens_is_refused_before_it_costs_memory():
    values = json.loads(tokenizer_json("llama2"))
    last = list(values["model"]["vocab"])[-1]
    for huge in (10**6, 4 * 10**9):
        values["model"]["vocab"][last] = huge
        with pytest.raises(InputError, match=f"has the id {huge} and 1[0-9]+ tokens"):
            JsonTokenizer(json.dumps(values), end_ids=trained("llama2").end_ids)


def test_ids_that_the_file_does_not_have_are_refused():
    with pytest.raises(InputError, match="no token with the id 99999"):
        JsonTokenizer(tokenizer_json("qwen2"), end_ids=[99999])
    with pytest.raises(InputError, match="no token with the id 99999"):
        JsonTokenizer(tokenizer_json("qwen2"), end_ids=[0], bos_id=99999)
    with pytest.raises(InputError, match="no end-of-text token"):
        JsonTokenizer(tokenizer_json("qwen2"), end_ids=[])
