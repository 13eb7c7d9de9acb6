"""star_jax.tokenizers: three kinds, each exact in both directions; parts of a prompt have the ids of the whole."""

import json
import random

import numpy as np
import pytest

from star_jax import tokenizers
from star_jax.errors import InputError
from star_jax.tasks import few_shot
from star_jax.tasks.arithmetic import Arithmetic, make_problem, scratchpad
from star_jax.tokenizers import simple
from tests.support.tokenizers import trained

SYMBOLS = Arithmetic.symbols
TEXTS = [
    "",
    "!",
    "!! ! !!!",
    "Q: 48/2 = <<48/2=24>>24\n#### 24\n",
    "  two  spaces\tand\r\nline ends \n\n",
    "naïve café — “quotes” … 日本語 🙂👩‍👩‍👧 \u0301",
    "\x00\x01\x7f\x80\xff\ufffd",
    "<|endoftext", "endoftext|>",
]  # fmt: skip


def unicode_texts(count: int) -> list[str]:
    """Random texts over all of Unicode but the surrogates."""
    rng = random.Random(0)
    ranges = [range(0x80), range(0x80, 0x800), range(0x800, 0xD800), range(0xE000, 0x10000), range(0x10000, 0x110000)]
    return ["".join(chr(rng.choice(rng.choice(ranges))) for _ in range(rng.randrange(1, 30))) for _ in range(count)]


@pytest.fixture(scope="module")
def gpt2_dir(shared_dir):
    return shared_dir / "data" / "gpt2"


@pytest.fixture(scope="module")
def gpt2(gpt2_dir):
    return tokenizers.make(str(gpt2_dir))


def check_pieces(tok, text: str) -> None:
    """The sampler's stop automaton relies on it: the concatenated pieces of the ids are the text's bytes."""
    assert b"".join(tok.pieces[i] for i in tok.encode(text)) == text.encode()


def test_bytes_are_their_own_ids():
    tok = simple.ByteTokenizer()
    for text in TEXTS:
        assert tok.encode(text) == list(text.encode())
        assert tok.decode(tok.encode(text)) == text
        check_pieces(tok, text)


def test_bytes_cover_every_byte_and_end_of_text():
    tok = tokenizers.make("bytes")
    assert (tok.vocab_size, tok.end_ids[0], len(tok.pieces)) == (257, 256, 257)
    assert tok.pieces == [bytes([i]) for i in range(256)] + [b""]
    assert tok.decode([104, 105, 256, 300]) == "hi"  # end-of-text and padding rows decode to nothing
    assert tok.decode([0xE6, 0x97]) == "\ufffd"
    assert tok.stop_bytes("\n\n") == b"\n\n"
    assert tok.stop_bytes("é") == "é".encode()


def test_symbols_round_trip_every_text_of_the_arithmetic_task():
    """Prompts with and without hint, and scratchpads, of one to five digits."""
    task, tok = Arithmetic(), tokenizers.make("symbols", SYMBOLS)
    for pair in [(3, 4), (9, 9), (56, 78), (999, 1), (12345, 67890), (99999, 99999)]:
        first, second = (number * 10 ** (len(str(max(pair))) - len(str(number))) for number in pair)
        problem = make_problem("p", first, second, digits=len(str(first)))
        for text in (task.render(problem), task.render(problem, hint=True), scratchpad(first, second)):
            ids = tok.encode(text)
            assert max(ids) < tok.end_ids[0]
            assert tok.decode(ids) == text
            assert tok.decode([*ids, tok.end_ids[0]]) == text


def test_symbols_read_bytes_in_pieces_with_implied_spaces():
    tok = simple.SymbolTokenizer(SYMBOLS)
    assert tok.vocab_size == len(tok.pieces) == len(SYMBOLS) + 1
    assert b"".join(tok.pieces[i] for i in tok.encode("1 2\n\n3")) == b" 1 2\n\n 3"
    assert tok.stop_bytes("\n\n") == b"\n\n"
    assert tok.stop_bytes("Input:") == b" Input:"


def test_symbols_refuse_words_they_do_not_have():
    tok = simple.SymbolTokenizer(SYMBOLS)
    for text in ("1 + x", "12", "Input :"):
        with pytest.raises(InputError, match=r"no symbol for '.+': the model knows only the words .* a new run with "):
            tok.encode(text)


def test_symbols_must_be_distinct_words_with_a_line_end():
    for symbols in (("a", "b"), ("\n", "a", "a"), ("\n", "a b"), ("\n", "")):
        with pytest.raises(InputError, match="distinct words"):
            simple.SymbolTokenizer(symbols)


def test_gpt2_has_the_ids_of_gpt2(gpt2):
    """Id 0 is a real token, "!"; end-of-text is the last."""
    assert (gpt2.vocab_size, gpt2.end_ids[0], len(gpt2.pieces)) == (50257, 50256, 50257)
    assert gpt2.encode("!") == [0]
    assert gpt2.pieces[0] == b"!"
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.pieces[gpt2.end_ids[0]] == b""
    assert gpt2.decode([15496, 50256, 995, 50300]) == "Hello world"
    assert gpt2.stop_bytes("\n\n") == b"\n\n"


def test_gpt2_round_trips_any_unicode(gpt2):
    for text in TEXTS + unicode_texts(200):
        ids = gpt2.encode(text)
        assert gpt2.decode(ids) == text
        check_pieces(gpt2, text)


def test_gpt2_pieces_reach_every_byte(gpt2):
    """The first 256 ids are the single bytes, in GPT-2's order; a broken sequence decodes to U+FFFD."""
    assert sorted(gpt2.pieces[:256]) == [bytes([i]) for i in range(256)]
    assert len(set(gpt2.pieces)) == 50257
    half = gpt2.pieces.index(b"\xe6")
    assert gpt2.decode([half]) == "\ufffd"


def test_gpt2_agrees_with_the_tokenizers_library(gpt2, gpt2_dir):
    """decode is ours (from pieces): against the library's on random ids, whose bytes are rarely whole characters."""
    library = pytest.importorskip("tokenizers")
    theirs = library.ByteLevelBPETokenizer(str(gpt2_dir / "vocab.json"), str(gpt2_dir / "merges.txt"))
    rng = np.random.default_rng(0)
    for ids in rng.integers(0, 50256, (50, 20)).tolist():
        assert gpt2.decode(ids) == theirs.decode(ids)


def test_gpt2_agrees_with_transformers(gpt2, gpt2_dir):
    transformers = pytest.importorskip("transformers", reason="a second opinion that only tests need")
    theirs = transformers.GPT2TokenizerFast(
        vocab=str(gpt2_dir / "vocab.json"), merges=str(gpt2_dir / "merges.txt"), add_prefix_space=False
    )
    for text in TEXTS + unicode_texts(50):
        assert gpt2.encode(text) == theirs.encode(text)


def test_spec_gives_the_same_tokenizer_again():
    for name in ("bytes", "symbols"):
        tok = tokenizers.make(name, SYMBOLS)
        again = tokenizers.from_spec(tok.spec())
        assert type(again) is type(tok)
        assert (again.spec(), again.vocab_size, again.pieces) == (tok.spec(), tok.vocab_size, tok.pieces)


def test_spec_gives_the_same_gpt2_tokenizer_again(gpt2, gpt2_dir, tmp_path):
    """Through its spec, and through a directory with the tokenizer.json that the spec holds."""
    spec = json.loads(json.dumps(gpt2.spec()))
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec["tokenizer"]), encoding="utf-8")
    for again in (tokenizers.from_spec(spec), tokenizers.make(str(tmp_path))):
        assert again.pieces == gpt2.pieces
        assert [again.encode(text) for text in TEXTS] == [gpt2.encode(text) for text in TEXTS]


def test_what_cannot_be_made_is_refused_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="no closed set of words"):
        tokenizers.make("symbols")
    with pytest.raises(InputError, match="'bytes', 'symbols' or a directory"):
        tokenizers.make("gpt3")
    with pytest.raises(InputError, match=r"neither tokenizer\.json nor vocab\.json"):
        tokenizers.make(str(tmp_path))
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(InputError, match=r"nor merges\.txt"):
        tokenizers.make(str(tmp_path))
    with pytest.raises(InputError, match="unknown tokenizer kind 'words'"):
        tokenizers.from_spec({"kind": "words"})


def test_a_spec_with_values_of_other_types_is_refused():
    """Each key of each kind's spec, missing and of another type."""
    for good in (trained("llama3").spec(), tokenizers.make("symbols", SYMBOLS).spec()):
        for key in good:
            for value in (None, 5, -1, True, "x", [], [None], {"a": 1}, {"a": "b"}, {}, 1e300):
                changed = {**good, key: value}
                if value is None:
                    del changed[key]
                try:
                    tokenizers.from_spec(changed)
                except InputError as error:
                    assert "\n" not in str(error)
                else:
                    assert (key, value) in (
                        ("bos_id", 5),
                        ("template_tokens", {"a": "b"}),
                        ("template_tokens", {}),
                        ("chat_template", "x"),
                    )


PARTS = [("Q: a\nA: b\n\n", "Q: c"), ("", "Q: c"), ("x", " y"), ("\n\n", "y"), ("a \t\n", "\nb"), ("a", ""), ("", "")]


def test_parts_have_the_ids_of_the_whole_and_the_prefix_does_not_depend_on_the_body(gpt2):
    """With GPT-2's tokenizer, for problems of every task after the packaged shots; and for awkward texts."""
    pairs = [*PARTS, *((prefix, body) for prefix, _ in PARTS for _, body in PARTS if prefix != prefix.rstrip())]
    for path in sorted(few_shot.PACKAGED.glob("*.txt")):
        shots = few_shot.read_shots(path)
        bodies = [shot.rpartition("A:")[0] + "A:" if "A:" in shot else shot.split("<scratch>")[0] for shot in shots]
        pairs += [("\n\n".join(shots[:count]) + "\n\n", body) for count in (1, len(shots)) for body in bodies]
    assert len(pairs) > 100
    wrong = []
    for tok in (gpt2, simple.ByteTokenizer()):
        prefix_ids_of: dict[str, list[int]] = {}
        for prefix, body in pairs:
            prefix_ids, body_ids = map(list, tok.encode_parts(prefix, body))
            if (
                prefix_ids + body_ids != tok.encode(prefix + body)
                or prefix_ids_of.setdefault(prefix, prefix_ids) != prefix_ids
            ):
                wrong.append((tok.spec()["kind"], prefix[-40:], body[:40]))
    assert not wrong


def test_parts_of_symbols_have_the_ids_of_the_whole():
    task, tok = Arithmetic(), tokenizers.make("symbols", SYMBOLS)
    prefix = few_shot.load("arithmetic", 10, direct=False).plain
    for problem in task.problems("dev")[:20]:
        prefix_ids, body_ids = tok.encode_parts(prefix, task.render(problem))
        assert [*prefix_ids, *body_ids] == tok.encode(prefix + task.render(problem))


def test_files_that_are_no_tokenizer_are_refused(tmp_path):
    """Broken JSON, another library's file, an unsupported model, and a tokenizer without end-of-text."""
    library = pytest.importorskip("tokenizers")
    path = tmp_path / "tokenizer.json"
    bare = json.loads(library.Tokenizer(library.models.BPE({"a": 0}, [])).to_str())
    for content, reason in [
        (json.dumps(bare), "no end-of-text token: give eos_token_id"),
        ("{ broken", "invalid JSON"),
        ("[]", "no vocabulary"),
        ('{"model": {"type": "WordPiece", "vocab": {}}}', "its model is WordPiece; star_jax reads BPE and Unigram"),
        (json.dumps({**bare, "model": {**bare["model"], "end_of_word_suffix": "</w>"}}), "marks parts of words"),
        (json.dumps({**bare, "model": {"type": "BPE", "vocab": {"</s>": 0}, "merges": 3}}), "does not read it"),
        (json.dumps({**bare, "added_tokens": [{"id": 1}]}), 'added token {"id": 1} lacks a content'),
    ]:
        path.write_text(content)
        with pytest.raises(InputError, match=rf"tokenizer\.json: .*{reason}") as raised:
            tokenizers.make(str(tmp_path))
        assert "\n" not in str(raised.value)
    path.unlink()
    (tmp_path / "vocab.json").write_text("{ broken")
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(InputError, match=r"vocab\.json"):
        tokenizers.make(str(tmp_path))
