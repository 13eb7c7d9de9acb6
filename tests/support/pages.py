"""Reads the report's HTML page: its words, and what its scripts get."""

import base64
import gzip
import html
import json
import re
from pathlib import Path

from star_jax import report


def page_of(*workdirs: Path) -> str:
    """Writes the report of these runs; returns the HTML."""
    return report.write(list(workdirs)).read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """The words that a reader sees: no tags, scripts and styles, white space folded."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL).replace("<wbr>", "")
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def browser_contents(page: str) -> list[dict]:
    """What browser.js knows of each run before it unpacks a block."""
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)]


def collections_of(page: str, run: int = 0) -> dict[str, dict]:
    """Collection -> what browser.js knows of it, with the unpacked blocks (None: not in the page)."""
    texts = re.findall(r'data-block="(\w+)">([\w+/=]*)</script>', page)
    blocks = {name: json.loads(gzip.decompress(base64.b64decode(text))) for name, text in texts}
    collections = {}
    for collection in browser_contents(page)[run]["collections"]:
        samples = {number: blocks.get(name) for number, name in collection["samples"]}
        values = {"problems": blocks.get(collection["problems"]), "samples": samples}
        collections[collection["name"]] = collection | values
    return collections
