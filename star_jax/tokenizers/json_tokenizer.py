"""Any tokenizer.json, through Hugging Face `tokenizers`: byte-level BPE, SentencePiece-style BPE, and unigram.

The library encodes. Pieces, and so decoding and stop strings, are ours: bytes for each id, derived from the file.
"""

import copy
import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from star_jax import json_reader
from star_jax.errors import InputError, first_line, shown
from star_jax.tokenizers import round_trip
from star_jax.tokenizers.base import Tokenizer
from star_jax.tokenizers.chat_template import ChatTemplate, Part

# GPT-J's file pads its vocabulary with these, as ordinary added tokens. No text has ever held one.
PADDING = re.compile(r"<\|extratoken_\d+\|>")
REMEDY = "download the file again"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# What values of another type than a tokenizer.json's raise here and in the tokenizers library.
MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)
_MAX_ID_FACTOR = 10  # ids of real files have small gaps; memory grows with the largest id
_MAX_WITHOUT_MERGES = 200  # names of special tokens that stand in the vocabulary too
_LONGEST_CUT = 512  # characters; a longer body would cost more than the part of the prefix that it spares
# What a problem may begin with. A cut must give the whole text's ids for each.
_PROBES = ("Q: How", "Input:\n", "1 + 1", " a", "(a)", '"A', "\nb", "é", "<", "- ", "How")


class JsonTokenizer(Tokenizer):
    """The tokenizer of a tokenizer.json.

    Special tokens of the file are never made from a text that is to be encoded, and add nothing to a text that is
    decoded. Added tokens that are not special are ordinary ones. SentencePiece writes a space as "▁", so a text's own
    "▁" comes back as a space.
    """

    def __init__(
        self,
        json_text: str | Mapping[str, Any],
        *,
        end_ids: Sequence[int],
        bos_id: int | None = None,
        chat_template: str = "",
        template_tokens: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
          json_text: content of a tokenizer.json, as text or parsed.
          end_ids: see Tokenizer.
          bos_id: see Tokenizer.
          chat_template: jinja2 source; "": none.
          template_tokens: texts that the template names, such as bos_token, besides those of bos_id and end_ids.

        Raises InputError if it is not such a file, has no token of an id, or does not keep texts (round_trip.check).
        """
        values = parse(json_text)
        for component in _components(values):  # the library panics at pieces of no length and at damaged maps
            if component["type"] == "FixedLength" and not component.get("length"):
                raise InputError(f"its pre-tokenizer makes pieces of no length; {REMEDY}")
            if component["type"] == "Precompiled":
                raise InputError("its normalizer is Precompiled, a map of characters that changes texts; not supported")
        self._values = values
        self._added = {int(token["id"]): token for token in values["added_tokens"]}
        self._library = _library(values, special_in_text=False)
        continued = _without_dummy_space(values)
        self._check_added_ids()
        same = continued == _for_encoding(values)
        self._continuing = self._library if same else _library(continued, special_in_text=False)
        pieces = _pieces(values, self._added)
        for token_id in [*end_ids, *([] if bos_id is None else [bos_id])]:
            self.token(token_id)
        if not end_ids:
            raise InputError("the tokenizer has no end-of-text token: give eos_token_id in config.json")
        self.end_ids, self.bos_id = tuple(dict.fromkeys(end_ids)), bos_id
        self.vocab_size = 1 + max([*self.end_ids, *(i for i, piece in pieces.items() if piece)])
        if self.vocab_size > _MAX_ID_FACTOR * (len(pieces) + 1000):
            raise InputError(f"it has the id {self.vocab_size - 1} and {len(pieces)} tokens; download the file again")
        self.pieces = [pieces.get(i, b"") if i not in self.end_ids else b"" for i in range(self.vocab_size)]
        self._cuts: dict[str, int] = {}
        self._template_tokens = {**self._default_template_tokens(), **(template_tokens or {})}
        if chat_template:
            self.chat_template = ChatTemplate(chat_template, self._template_tokens)
        self._check_silent_tokens()
        ordinary = [token["content"] for token in self._added.values() if not token["special"]]
        round_trip.check(self, ordinary, because=_changing(values))

    def encode(self, text: str) -> list[int]:
        return self._encode(self._library, text)

    def encode_continuation(self, text: str) -> list[int]:
        return self._encode(self._continuing, text)

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return b"".join(self.pieces[i] for i in ids if i < self.vocab_size)

    def stop_bytes(self, stop: str) -> bytes:
        return stop.encode("utf-8")

    def spec(self) -> dict[str, Any]:
        return {
            "kind": "json",
            "tokenizer": self._values,
            "end_ids": list(self.end_ids),
            "bos_id": self.bos_id,
            "chat_template": self.chat_template.source if self.chat_template else "",
            "template_tokens": self._template_tokens,
        }

    def token(self, token_id: int) -> str:
        """The name of an id in the file. Raises InputError if it has none."""
        name = self._library.id_to_token(token_id)
        if name is None:
            raise InputError(f"the tokenizer has no token with the id {token_id}")
        return str(name)

    def with_end_ids(self, end_ids: Sequence[int]) -> "JsonTokenizer":
        """The same tokenizer with other `end_ids`."""
        return from_spec({**self.spec(), "end_ids": end_ids})

    def cut(self, prefix: str) -> int:
        """The last border of tokens that stays one, and keeps the ids before it, whatever follows the prefix.

        Pre-tokenizers differ in what they join: GPT-2's joins white space at the end of a text, Llama-3's and Qwen's
        punctuation with the line ends after it. So the cut is found by trial, with beginnings of problems.
        """
        if prefix not in self._cuts:
            self._cuts[prefix] = self._find_cut(prefix)
        return self._cuts[prefix]

    def encode_conversation(self, parts: Sequence[Part], after: int | None = None) -> list[int]:
        """Ids of a conversation's parts: special tokens in the template's text are such, those in contents are text.

        `after`: the special token before them; None: they begin the conversation. Raises InputError if the ids do not
        give the text.
        """
        ids: list[int] = []
        for text, special in self._segments(parts, after):
            if special is not None:
                ids.append(special)
            elif text:
                as_document = (after is None and not ids) or self._dummy_space_everywhere
                text_ids = self.encode(text) if as_document else self.encode_continuation(text)
                round_trip.check_text(self, text_ids, text, as_document)
                ids += text_ids
        return ids

    def cut_conversation(
        self, parts: Sequence[Part], before_turn: int
    ) -> tuple[tuple[Part, ...], int | None, tuple[Part, ...]]:
        """(parts up to the last special token before a turn's content, that token, the other parts)."""
        index = next(i for i, part in enumerate(parts) if part.turn == before_turn)
        for i in reversed(range(index)):
            matches = list(self._special_tokens.finditer(parts[i].text)) if parts[i].turn is None else []
            if matches:
                text, end = parts[i].text, matches[-1].end()
                border = int(self._special_by_text[matches[-1].group()]["id"])
                return (*parts[:i], Part(text[:end], None)), border, (Part(text[end:], None), *parts[i + 1 :])
        return (), None, tuple(parts)

    def special_id(self, text: str) -> int | None:
        """The id of the first special token in a text of the template; None if it holds none."""
        return next((special for _, special in self._segments([Part(text, None)]) if special is not None), None)

    def _check_added_ids(self) -> None:
        """Raises InputError where the library numbers the added tokens in another way than the file."""
        for token_id, token in self._added.items():
            if self._library.token_to_id(token["content"]) != token_id:
                theirs = self._library.token_to_id(token["content"])
                raise InputError(
                    f"its added token {shown(token['content'])} has the id {token_id}, and the tokenizers library "
                    f"gives it {theirs}: ids of added tokens must follow the vocabulary's; save the tokenizer again"
                )

    def _check_silent_tokens(self) -> None:
        """Raises InputError where a text's characters become a token that writes nothing: an end, or the unknown one.

        A longer name of the unknown token may give it where the vocabulary lacks the name's characters.
        """
        for token_id in (*self.end_ids, _unknown(self._values["model"])):
            name = self._library.id_to_token(token_id) if token_id >= 0 else None
            is_end = token_id in self.end_ids
            if name and (is_end or len(name) == 1) and token_id in self.encode_continuation(name):
                role = "ends a text" if is_end else "stands for unknown characters"
                raise InputError(
                    f"its token {shown(name)} {role}, and the text {shown(name)} becomes this token; give the model's "
                    "own eos_token, eos_token_id and unk_token (in tokenizer_config.json, special_tokens_map.json, "
                    "generation_config.json, config.json and tokenizer.json, or the GGUF file)"
                )

    def _encode(self, library: Any, text: str) -> list[int]:
        ids = _ids(library, text)
        if not (matches := list(self._names.finditer(text))):
            return ids
        # Unigram finds "</s>" and "<0x41>" in its vocabulary even where the library is told to leave special tokens
        # alone, and so does a BPE that ignores merges. A name that is cut after its first character is none.
        decoded = self.decode(ids)
        lost = {name for name in {match.group() for match in matches} if decoded.count(name) != text.count(name)}
        borders = [match.start() + 1 for match in matches if match.group() in lost]
        if not borders:
            return ids
        parts = [text[a:b] for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
        ids = _ids(library, parts[0])
        for part in parts[1:]:
            ids += _ids(self._continuing, part)
        return ids

    def _segments(self, parts: Sequence[Part], after: int | None = None) -> Iterator[tuple[str, int | None]]:
        """Runs of text, and special tokens between them as ("", id). White space that a token takes in is dropped."""
        text, strip_next = "", after is not None and bool(self._added[after].get("rstrip"))
        for part in parts:
            offset = 0
            for match in self._special_tokens.finditer(part.text) if part.turn is None else ():
                token = self._special_by_text[match.group()]
                text += part.text[offset : match.start()]
                text = text.lstrip() if strip_next else text
                yield text.rstrip() if token.get("lstrip") else text, None
                yield "", int(token["id"])
                text, offset, strip_next = "", match.end(), bool(token.get("rstrip"))
            text += part.text[offset:]
        yield text.lstrip() if strip_next else text, None

    @functools.cached_property
    def _special_by_text(self) -> dict[str, dict[str, Any]]:
        return {token["content"]: token for token in self._added.values() if token["special"]}

    @functools.cached_property
    def _special_tokens(self) -> re.Pattern[str]:
        """Matches a special token, the longest where several begin at one place."""
        return _any_of(self._special_by_text)

    @functools.cached_property
    def _names(self) -> re.Pattern[str]:
        """Matches the name of a token that writes nothing or something else: special ones, ends, unknown, bytes."""
        model, ids = self._values["model"], token_ids(self._values)
        names = {*self._special_by_text, *(token for token, i in ids.items() if not any(self.pieces[i : i + 1]))}
        if model.get("byte_fallback"):
            names |= {token for token, _ in _vocabulary(model) if _BYTE.fullmatch(token)}
        return _any_of(name for name in names if len(name) > 1)

    @functools.cached_property
    def _dummy_space_everywhere(self) -> bool:
        """Whether a text after a special token gets the space that a document's beginning gets."""
        if self._continuing is self._library or not self._special_by_text:
            return False
        with_special = _library(_for_encoding(self._values), special_in_text=True)
        special = next(iter(self._special_by_text))
        after = _ids(with_special, f"{special}a")[1:]
        return after == self.encode("a") != self.encode_continuation("a")

    def _find_cut(self, prefix: str) -> int:
        whole = [(probe, self.encode(prefix + probe)) for probe in _PROBES]
        for cut in range(len(prefix.rstrip()), max(0, len(prefix) - _LONGEST_CUT), -1):
            head_ids = self.encode(prefix[:cut])
            if all(whole_ids[: len(head_ids)] == head_ids for _, whole_ids in whole) and all(
                head_ids + self.encode_continuation(prefix[cut:] + probe) == whole_ids for probe, whole_ids in whole
            ):
                return cut
        return 0

    def _default_template_tokens(self) -> dict[str, str]:
        tokens = {"eos_token": self.token(self.end_ids[0])}
        return tokens if self.bos_id is None else {**tokens, "bos_token": self.token(self.bos_id)}


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches one of the texts, the longest where several begin at one place."""
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, ordered)) or r"(?!)")


def from_spec(spec: Mapping[str, Any]) -> JsonTokenizer:
    """The tokenizer whose `spec()` this is. Raises InputError with the reason if it is none's."""
    try:
        template, tokens = spec["chat_template"], spec["template_tokens"]
        end_ids, bos_id = spec["end_ids"], spec["bos_id"]
        if not all(isinstance(text, str) for text in (template, *tokens.values())):
            raise TypeError("chat_template and template_tokens should be texts")
        if not all(map(json_reader.is_integer, (*end_ids, bos_id or 0))) or isinstance(bos_id, bool):
            raise TypeError("end_ids and bos_id should be integers")
        return JsonTokenizer(
            spec["tokenizer"],
            end_ids=end_ids,
            bos_id=bos_id,
            chat_template=template,
            template_tokens=tokens,
        )
    except MALFORMED as error:
        raise InputError(f"malformed: {error!r:.200}") from error


def parse(json_text: str | Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer.json's values, without what makes the ids of a text depend on more than the text.

    Raises InputError unless star_jax reads this kind of tokenizer.
    """
    try:
        values = json_reader.parse(json_text) if isinstance(json_text, str) else json_text
    except ValueError as error:
        raise InputError(f"invalid JSON ({error})") from error
    model = values.get("model") if isinstance(values, Mapping) else None
    if not isinstance(model, dict) or "vocab" not in model:
        raise InputError("it is not a tokenizer.json of the tokenizers library: it has no vocabulary")
    kind = model.get("type") or ("BPE" if "merges" in model else "Unigram" if "unk_id" in model else "unknown")
    if kind not in ("BPE", "Unigram"):
        raise InputError(f"its model is {kind}; star_jax reads BPE and Unigram")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise InputError("its BPE marks parts of words (continuing_subword_prefix, end_of_word_suffix), not spaces")
    _check_vocabulary(model)
    added = [token for token in _added_tokens(values) if not PADDING.fullmatch(token["content"])]
    if "dropout" in model:
        model = {**model, "dropout": None}  # a regularizer of training: it skips merges at random, in every call
    # Padding and truncation would change the ids of a text.
    return {**values, "model": model, "added_tokens": added, "padding": None, "truncation": None}


def _check_vocabulary(model: dict[str, Any]) -> None:
    """Raises InputError unless each token is a text with an id of its own, and BPE's tokens come from merges."""
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        _check_merges(vocab, model.get("merges"))
        wrong = next((token for token, i in vocab.items() if not json_reader.is_integer(i) or i < 0), None)
        if wrong is None and len(set(vocab.values())) < len(vocab):
            first: dict[int, str] = {}
            wrong = next(token for token, i in vocab.items() if first.setdefault(i, token) != token)
        if wrong is not None:
            raise InputError(
                f"its token {shown(wrong)} has no id of its own: {json_reader.short(vocab[wrong])}; {REMEDY}"
            )
        return
    if not isinstance(vocab, list):
        raise InputError(f"its vocabulary is {json_reader.short(vocab)}; {REMEDY}")
    for i, entry in enumerate(vocab):
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str):
            raise InputError(f"its token {i} is {json_reader.short(entry)}, not [text, score]; {REMEDY}")


def _check_merges(vocab: Mapping[str, Any], merges: Any) -> None:
    """Raises InputError where most merges are missing: texts would come back, from tokens that a model rarely saw."""
    joined = sum(len(token) > 1 and not _BYTE.fullmatch(token) for token in vocab)
    if isinstance(merges, list) and len(merges) < joined / 2 and joined > _MAX_WITHOUT_MERGES:
        raise InputError(
            f"it has {joined:,} tokens of several characters and {len(merges):,} merges, each of which makes one; "
            f"{REMEDY}"
        )


def _added_tokens(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The added tokens. Raises InputError unless each has a text, an id and whether it is special."""
    added = values.get("added_tokens") or []
    kinds = (("content", str), ("id", int), ("special", bool))
    if not isinstance(added, list):
        raise InputError(f"its added_tokens are {json_reader.short(added)}, not a list; {REMEDY}")
    for token in added:
        if not isinstance(token, dict) or any(type(token.get(key)) is not kind for key, kind in kinds):
            raise InputError(f"its added token {json_reader.short(token)} lacks a content, id or special; {REMEDY}")
    return added


def puts_space_first(values: dict[str, Any]) -> bool | None:
    """Whether a space is put before a text; None: the tokenizer has no component that could put one."""
    stated = [_puts_space(component) for component in _components({**values, "decoder": None})]
    known = [value for value in stated if value is not None]
    return any(known) if known else None


def token_ids(values: Mapping[str, Any]) -> dict[str, int]:
    """Token -> id, of a parsed tokenizer.json: the vocabulary and the added tokens."""
    added = {token["content"]: int(token["id"]) for token in values["added_tokens"]}
    return dict(_vocabulary(values["model"])) | added


def _for_encoding(values: dict[str, Any]) -> dict[str, Any]:
    """Without post-processor: it adds special tokens, which is up to `bos_id`."""
    return {**values, "post_processor": None}


def _library(values: dict[str, Any], special_in_text: bool) -> Any:
    from tokenizers import Tokenizer as HfTokenizer

    try:
        library = HfTokenizer.from_str(json.dumps(_for_encoding(values)))
    except BaseException as error:
        _reraise_unless_the_library_s(error)
        raise InputError(f"the tokenizers library does not read it ({first_line(error)}); {REMEDY}") from error
    library.encode_special_tokens = not special_in_text
    return library


def _reraise_unless_the_library_s(error: BaseException) -> None:
    """The library raises a bare Exception. A panic of its Rust code is a BaseException of a type without a module."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def _ids(library: Any, text: str) -> list[int]:
    try:
        ids: list[int] = library.encode(text, add_special_tokens=False).ids
    except BaseException as error:
        _reraise_unless_the_library_s(error)  # e.g. where no token stands for unknown characters
        raise InputError(
            f"the tokenizers library cannot encode {shown(text)} ({first_line(error)}); {REMEDY}"
        ) from error
    return ids


def _without_dummy_space(values: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer without the space that it puts before a text."""
    values = _for_encoding(values)
    for key in ("normalizer", "pre_tokenizer"):
        if values.get(key):
            values[key] = _component_without_space(copy.deepcopy(values[key]))
    return values


def _puts_space(component: dict[str, Any]) -> bool | None:
    if component["type"] in ("Metaspace", "ByteLevel"):
        scheme = component.get("prepend_scheme")  # files before 2024 have add_prefix_space
        return bool(component.get("add_prefix_space", True)) if scheme is None else scheme != "never"
    return True if component["type"] == "Prepend" else None


def _component_without_space(component: dict[str, Any]) -> dict[str, Any] | None:
    if component["type"] == "Prepend":
        return None
    if component["type"] == "Metaspace":
        component.pop("add_prefix_space", None)  # files before 2024
        return {**component, "prepend_scheme": "never"}
    if component["type"] == "ByteLevel":
        return {**component, "add_prefix_space": False}
    for name in ("normalizers", "pretokenizers"):
        if name in component:
            changed = [_component_without_space(part) for part in component[name]]
            component[name] = [part for part in changed if part is not None]
    return component


def _vocabulary(model: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """(token, id) of BPE's table or unigram's list."""
    if isinstance(model["vocab"], dict):
        yield from model["vocab"].items()
    else:
        yield from ((entry[0], i) for i, entry in enumerate(model["vocab"]))


def _pieces(values: dict[str, Any], added: dict[int, dict[str, Any]]) -> dict[int, bytes]:
    """The bytes that each id adds to a text."""
    components = list(_components(values))
    byte_level = any(component["type"] == "ByteLevel" for component in components)
    space = next((text for component in components if (text := _written_for_space(component))), "")
    byte_fallback = bool(values["model"].get("byte_fallback"))
    pieces = {}
    for token, i in _vocabulary(values["model"]):
        if byte_level:
            pieces[i] = _from_byte_alphabet(token)
        elif byte_fallback and (match := _BYTE.fullmatch(token)):
            pieces[i] = bytes([int(match.group(1), 16)])
        else:
            pieces[i] = (token.replace(space, " ") if space else token).encode("utf-8", errors="replace")
    for i, entry in added.items():
        text = "" if entry["special"] else entry["content"]
        pieces[i] = (text.replace(space, " ") if space and not byte_level else text).encode()
    pieces[_unknown(values["model"])] = b""
    return pieces


def _unknown(model: dict[str, Any]) -> int:
    """The id of the unknown token; -1: there is none."""
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    return next((i for token, i in _vocabulary(model) if token == model.get("unk_token")), -1)


def _components(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Normalizers, pre-tokenizers and decoders, those inside of sequences too."""
    waiting = [values.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")]
    while waiting:
        component = waiting.pop(0)
        if component:
            yield component
            for name in ("normalizers", "pretokenizers", "decoders"):
                waiting += component.get(name) or []


def _changing(values: dict[str, Any]) -> str:
    """The parts of a file that may change a text, for a message."""
    components = [c["type"] for c in _components({**values, "decoder": None})]
    flags = {flag for token in values["added_tokens"] for flag in ("lstrip", "rstrip") if token.get(flag)}
    return ", ".join(dict.fromkeys([*components, *sorted(flags)]))


def _written_for_space(component: dict[str, Any]) -> str:
    """What a component writes in place of a space; "" if it is none that does."""
    if component["type"] == "Metaspace":
        return str(component.get("replacement") or "▁")
    if component["type"] == "Replace" and (component.get("pattern") or {}).get("String") == " ":
        return str(component["content"])
    return ""


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: printable bytes keep their code point, the others get 256, 257, ..."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    others = [b for b in range(256) if b not in printable]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


_BYTE_OF = _byte_alphabet()


def _from_byte_alphabet(token: str) -> bytes:
    if all(sign in _BYTE_OF for sign in token):
        return bytes(_BYTE_OF[sign] for sign in token)
    return token.encode()  # a token that was put into the vocabulary as it is, as BPE never makes it
