"""Round trips: the ids of a text must give the text again, or a model is asked and trained on something else.

`check` looks at a tokenizer when it is loaded, `check_text` at the ids of a prompt or a reference. Two differences lose
nothing: the space that some tokenizers put before a document, and composed characters for decomposed ones (Unicode's
NFC, as in Qwen's tokenizers), which are the same text by Unicode's definition; the second is logged. A character that
a small vocabulary does not have is refused in the text that needs it.
"""

import functools
import logging
import unicodedata
from collections.abc import Sequence, Set

from star_jax.errors import InputError
from star_jax.tokenizers.base import Tokenizer

LOG = logging.getLogger("star_jax")
PROBES = {
    "words": "Q: How many? A: (b) It is The LAST one, so 3 + 4 = <<3+4=7>>7. #### 7",
    "a space at the start": " a",
    "spaces at the start": "  a",
    "a space at the end": "a ",
    "spaces in a row": "a  b   c      d",
    "line ends": "a\nb\n\nc\n\n\n d \n",
    "line ends of Windows": "a\r\nb\r\n\r\nc\r",
    "tabs": "\ta\t\tb \t c",
    "other white space": "a\u00a0b\u2009c\u200bd\u2028e\u3000f",
    "digits": "0123456789 12345678901234567890 1,234.50 007",
    "letters and signs": "".join(map(chr, range(33, 127))),
    "controls": "".join(map(chr, [*range(9), 11, 12, *range(14, 32), 127, 133])),
    "composed letters": "café Ångström ñandú ﬁ ² ½ Ⅳ ｆ",
    "combining characters": "cafe\u0301 q\u0323\u0307 n\u0303andu\u0301 \u0301",
    "scripts": "Ж ё Ω ς ß İ ı עברית العربية हिन्दी ไทย 한국어 日本語 中文",
    "emoji": "🙂 👩‍👩‍👧 🏳️‍🌈 👍🏽 🇪🇺",
    # Every byte that UTF-8 has: the letters of Latin-1, and a character for each first byte.
    "bytes": "".join(map(chr, range(0x80, 0x100)))
    + "".join(chr(65 * i) for i in range(4, 32))
    + "กሴ⁰㐀䀀倀怀瀀耀退ꀁ뀀쀀퀀\ue123\uf8ff"
    + "\U00010348\U00040001\U00080001\U000e0041\U0010fffd",
}


def check(tokenizer: Tokenizer, added: Sequence[str] = (), because: str = "") -> None:
    """Checks texts of every kind, as the start of a document, after another text and in two parts.

    Args:
      added: texts that are tokens as they stand.
      because: what may change a text, for the message.

    Raises InputError with the first text that does not come back. Characters that no token writes are left out of it.
    """
    probes = {**PROBES, "added tokens": "".join(f"a {text}b{text} {text}  c" for text in added)}
    for name, probe in probes.items():
        if name == "added tokens":  # their own spaces, in SentencePiece's way of writing them
            probe = probe.replace("▁", " ")
        if _difference(tokenizer, probe) is not None:
            pieces = set(tokenizer.pieces)
            probe = "".join(char for char in probe if _has(tokenizer, pieces, char))
            if (decoded := _difference(tokenizer, probe)) is not None:
                parts = f" ({because})" if because else ""
                raise InputError(
                    f"the tokenizer does not keep {name}: {_around(probe, decoded)}. A model would be trained on other "
                    f"texts than the task's; remove from its file the part that changes texts{parts}, or use the "
                    "tokenizer of another model"
                )


def check_text(tokenizer: Tokenizer, ids: Sequence[int], text: str, starts_document: bool) -> None:
    """Raises InputError naming the first character of a text that its ids do not give."""
    decoded = tokenizer.decode(ids)
    if not _same(text, decoded, starts_document):
        raise InputError(f"the tokenizer does not keep its text: {_around(text, decoded)}; change the text")
    if decoded != text and not decoded.endswith(text):
        _log_normalization()


def _difference(tokenizer: Tokenizer, text: str) -> str | None:
    """What the ids of a text give if that is another text."""
    decoded = tokenizer.decode(tokenizer.encode(text))
    if not _same(text, decoded, starts_document=True):
        return decoded
    decoded = tokenizer.decode(tokenizer.encode_continuation(text))
    return None if _same(text, decoded, starts_document=False) else decoded


def _same(text: str, decoded: str, starts_document: bool) -> bool:
    """Whether two texts are canonically equivalent, apart from a space before a document."""
    if decoded == text or (starts_document and decoded == f" {text}"):
        return True
    text, decoded = unicodedata.normalize("NFC", text), unicodedata.normalize("NFC", decoded)
    return decoded == text or (starts_document and decoded == f" {text}")


@functools.cache  # once in a process
def _log_normalization() -> None:
    LOG.warning("the tokenizer composes or decomposes characters of this task (Unicode normalization); the model reads "
                "canonically equivalent texts")  # fmt: skip


def _has(tokenizer: Tokenizer, pieces: Set[bytes], char: str) -> bool:
    """Whether the vocabulary has a character, or a tokenizer writes another in its place.

    SmolLM2's vocabulary lacks the bytes 0xF1 and 0xF2, with which no character in use begins.
    """
    content, decoded = char.encode(), tokenizer.decode(tokenizer.encode_continuation(char))
    in_vocabulary = content in pieces or all(content[i : i + 1] in pieces for i in range(len(content)))
    return in_vocabulary or (decoded != "" and "\ufffd" not in decoded)


def _around(text: str, decoded: str) -> str:
    """The first character that differs, and the texts around it."""
    text, decoded = unicodedata.normalize("NFC", text), unicodedata.normalize("NFC", decoded)
    decoded = decoded[1:] if decoded[:1] == " " != text[:1] else decoded
    index = next((i for i, pair in enumerate(zip(text, decoded, strict=False)) if pair[0] != pair[1]), None)
    index = min(len(text), len(decoded)) if index is None else index
    near = slice(max(0, index - 8), index + 8)
    char = f"{text[index]!r} (U+{ord(text[index]):04X}) in " if index < len(text) else ""
    return f"{char}{text[near]!r} comes back as {decoded[near]!r}"
