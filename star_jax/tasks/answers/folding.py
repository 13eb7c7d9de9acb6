"""Texts compared without their case, spaces and Unicode form."""

import unicodedata


def folded(text: str) -> str:
    """The text in lower case, in composed Unicode form (NFC) and with single spaces."""
    return " ".join(unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold()).split())
