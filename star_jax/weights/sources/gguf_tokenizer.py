"""The tokenizer in a GGUF file: its vocabulary as the tokenizer.json of Hugging Face.

GGUF holds the vocabulary and merges (kind "gpt2") or scores (kind "llama", SentencePiece's BPE), and a name for the
regular expression that splits a text before merging. transformers builds tokenizers from these data as well, but with
GPT-2's expression for names that it does not know, such as smollm's, whose digits are then merged, and without Qwen's
normalization. Here an unknown name is refused.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from star_jax.errors import InputError, shown
from star_jax.tokenizers import JsonTokenizer
from star_jax.weights.sources.gguf_file import GgufFile
from star_jax.weights.sources.tensor_files import DOWNLOAD_AGAIN

# Token types of llama.cpp. Control tokens are special, user-defined ones are matched whole in any text.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_SPACE = "▁"  # SentencePiece's character for a space

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def _byte_level(use_regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


_GPT2 = {"pre_tokenizers": [_byte_level(True)]}
_LLAMA3 = {
    "pre_tokenizers": [_split(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}"), _byte_level(False)],
    "ignore_merges": True,
    "add_bos": True,
}
# `tokenizer.ggml.pre` -> what the tokenizer.json of such models has. add_bos: llama.cpp's default.
PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": _GPT2,
    "smollm": {"pre_tokenizers": [{"type": "Digits", "individual_digits": True}, _byte_level(True)]},
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "dbrx": {"pre_tokenizers": _LLAMA3["pre_tokenizers"]},  # OLMo 2
    "qwen2": {
        "pre_tokenizers": [_split(rf"{_CONTRACTIONS}|{_LETTERS}|\p{{N}}|{_REST}"), _byte_level(False)],
        "normalizer": {"type": "NFC"},
    },
    "tekken": {  # Mistral
        "pre_tokenizers": [
            _split(
                rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            ),
            _byte_level(False),
        ],
        "ignore_merges": True,
        "add_bos": True,
    },
}


def find(file: GgufFile) -> JsonTokenizer | None:
    """The file's tokenizer, or None if it has none. Raises InputError for a kind that star_jax cannot build."""
    if "tokenizer.ggml.model" not in file.metadata:
        return None
    vocabulary = _Vocabulary(file)
    values, end_ids, bos_id = vocabulary.tokenizer_json(), vocabulary.end_ids(), vocabulary.bos_id()
    template, names = vocabulary.chat_template(), vocabulary.named_tokens()
    try:
        return JsonTokenizer(values, end_ids=end_ids, bos_id=bos_id, chat_template=template, template_tokens=names)
    except InputError as error:
        raise InputError(f"{file.path}: {error}") from error


class _Vocabulary:
    """The metadata of a file's tokenizer. All methods raise InputError."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._kind = self._get("model", str)
        if self._kind not in ("gpt2", "llama"):
            raise InputError(
                f"{file.path}: tokenizer.ggml.model is {shown(self._kind)}; star_jax reads 'gpt2' and 'llama'"
            )
        self._texts: list[str] = self._get("tokens", list)
        self._types = self._get("token_type", np.ndarray, np.ones(len(self._texts), np.int32))
        if len(self._types) != len(self._texts):
            raise InputError(
                f"{file.path}: tokenizer.ggml.token_type has {len(self._types)} values for {len(self._texts)} tokens"
            )
        self._pre: dict[str, Any] = {}
        if self._kind == "gpt2":
            name = self._get("pre", str, "default")
            if name not in PRE_TOKENIZERS:
                raise InputError(
                    f"{file.path}: tokenizer.ggml.pre is {name!r}; star_jax knows {', '.join(PRE_TOKENIZERS)}; "
                    "give the model's tokenizer.json with --config.tokenizer or --tokenizer"
                )
            self._pre = PRE_TOKENIZERS[name]

    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text, the one that the model was trained with first."""
        ids = [self._id(name) for name in ("eos_token_id", "eot_token_id", "eom_token_id")]
        if self._kind == "llama" and ids[0] is None:
            ids[0] = 2  # llama.cpp's default
        ends = tuple(dict.fromkeys(i for i in ids if i is not None))
        if not ends:
            raise InputError(f"{self._file.path}: tokenizer.ggml.eos_token_id is missing; {DOWNLOAD_AGAIN}")
        return ends

    def bos_id(self) -> int | None:
        """The id that begins every text, or None."""
        if not self._get("add_bos_token", bool, self._kind == "llama" or self._pre.get("add_bos", False)):
            return None
        bos = self._id("bos_token_id")
        return 1 if bos is None and self._kind == "llama" else bos  # llama.cpp's default

    def chat_template(self) -> str:
        """The jinja2 program of the model's conversations; "": there is none."""
        template = self._file.metadata.get("tokenizer.chat_template")
        return template if isinstance(template, str) else ""

    def named_tokens(self) -> dict[str, str]:
        """The texts of the special tokens, by their names in a tokenizer_config.json."""
        names = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}
        ids = {f"{name}_token": self._id(key) for name, key in names.items()}
        return {name: self._texts[i] for name, i in ids.items() if i is not None}

    def tokenizer_json(self) -> dict[str, Any]:
        """The content of a tokenizer.json."""
        texts = dict(enumerate(self._texts))
        if self._kind == "llama":
            # llama.cpp's converter writes the spaces of user-defined tokens as such.
            for i in np.flatnonzero(self._types == _USER_DEFINED).tolist():
                texts[i] = texts[i].replace(" ", _SPACE)
        vocab = {text: i for i, text in texts.items() if self._types[i] != _UNUSED}  # names of rows that pad
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [
                {"id": i, "content": text, "special": bool(self._types[i] == _CONTROL), **_AS_IT_STANDS}
                for text, i in vocab.items()
                if self._types[i] in (_CONTROL, _USER_DEFINED)
            ],
            **(self._byte_level(vocab) if self._kind == "gpt2" else self._sentencepiece(vocab)),
            "post_processor": self._post_processor(),
        }

    def _post_processor(self) -> dict[str, Any] | None:
        """What puts the BOS before a text, where other programs read the file."""
        bos = self.bos_id()
        if bos is None:
            return None
        special = {"SpecialToken": {"id": self._texts[bos], "type_id": 0}}
        texts = [{"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB")]
        return {
            "type": "TemplateProcessing",
            "single": [special, texts[0]],
            "pair": [special, texts[0], texts[1]],
            "special_tokens": {self._texts[bos]: {"id": self._texts[bos], "ids": [bos], "tokens": [self._texts[bos]]}},
        }

    def _byte_level(self, vocab: dict[str, int]) -> dict[str, Any]:
        merges = [merge.split(" ") for merge in self._get("merges", list)]
        model = {"type": "BPE", "vocab": vocab, "merges": merges, "byte_fallback": False}
        return {
            "normalizer": self._pre.get("normalizer"),
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": self._pre["pre_tokenizers"]},
            "model": {**model, "ignore_merges": self._pre.get("ignore_merges", False)},
            "decoder": _byte_level(True),
        }

    def _sentencepiece(self, vocab: dict[str, int]) -> dict[str, Any]:
        prefix = self._get("add_space_prefix", bool, True)
        to_spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
        normalizers = [{"type": "Prepend", "prepend": _SPACE}] * prefix + [to_spaces]
        decoders: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            *[{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix,
        ]
        unknown = self._id("unknown_token_id")
        return {
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": None,
            "model": {
                "type": "BPE",
                "vocab": vocab,
                "merges": list(self._merges(vocab)),
                "unk_token": self._texts[0 if unknown is None else unknown],
                "fuse_unk": True,
                "byte_fallback": True,
                "ignore_merges": False,
            },
            "decoder": {"type": "Sequence", "decoders": decoders},
        }

    def _merges(self, vocab: dict[str, int]) -> Iterator[list[str]]:
        """Pairs of tokens that make a token, in the order in which SentencePiece merges: the best score first.

        Ids of normal tokens are in the order of their scores. User-defined tokens have no score of their own, so the
        ids decide for all (as in Gemma's tokenizer.json); only where ids are not in that order do the scores.
        """
        scores = self._get("scores", np.ndarray)
        if len(scores) != len(self._texts):
            raise InputError(
                f"{self._file.path}: tokenizer.ggml.scores has {len(scores)} values for {len(self._texts)} tokens"
            )
        in_order = np.all(np.diff(scores[self._types == _NORMAL]) <= 0)
        ranked = vocab.items() if in_order else sorted(vocab.items(), key=lambda item: -float(scores[item[1]]))
        for text, i in ranked:
            if self._types[i] in (_NORMAL, _USER_DEFINED):
                for cut in range(len(text) - 1, 0, -1):
                    if text[:cut] in vocab and text[cut:] in vocab:
                        yield [text[:cut], text[cut:]]

    def _id(self, name: str) -> int | None:
        value = self._get(name, int, -1)
        if not -1 <= value < len(self._texts):
            raise InputError(
                f"{self._file.path}: tokenizer.ggml.{name} is {value}, of {len(self._texts)} tokens; {DOWNLOAD_AGAIN}"
            )
        return None if value == -1 else value

    def _get(self, name: str, kind: type, default: Any = None) -> Any:
        value = self._file.metadata.get(f"tokenizer.ggml.{name}", default)
        if not isinstance(value, kind):
            raise InputError(
                f"{self._file.path}: tokenizer.ggml.{name} must be {kind.__name__}, got {shown(value)}; "
                f"{DOWNLOAD_AGAIN}"
            )
        return value


_AS_IT_STANDS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
