"""star_jax.runs.json_files: every file that is not one JSON object is one line with path and remedy."""

import pytest

from star_jax.errors import InputError
from star_jax.runs.json_files import read_json_object


def test_every_failure_is_one_line(tmp_path):
    contents = {
        "directory": None,
        "missing.json": None,
        "empty.json": b"",
        "torn.json": b'{"a": 1,\n "b": ',
        "latin.json": '{"a": "\xe9"}'.encode("latin-1"),
        "zeros.json": bytes(64),
        "list.json": b"[1]",
        "null.json": b"null",
        "deep.json": b'{"a": ' * 100_000,
        "digits.json": b'{"a": 1' + b"0" * 5000 + b"}",
    }
    (tmp_path / "directory").mkdir()
    reasons = {
        "directory": ": cannot be read",
        "missing.json": ": cannot be read (No such file",
        "empty.json": ":1: invalid JSON",
        "torn.json": ":2: invalid JSON",
        "latin.json": ": is not UTF-8 text",
        "zeros.json": ":1: invalid JSON",
        "list.json": ": holds list, not a JSON object",
        "null.json": ": holds NoneType",
        "deep.json": ": invalid JSON (nested too deeply)",
        "digits.json": ": invalid JSON (Exceeds",
    }
    wrong = []
    for name, content in contents.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        try:
            wrong.append((name, read_json_object(tmp_path / name, "do this")))
        except InputError as error:
            line = str(error)
            if not line.startswith(f"{tmp_path / name}{reasons[name]}") or not line.endswith("; do this"):
                wrong.append((name, line))
    assert not wrong


def test_an_object_is_read_with_or_without_a_byte_order_mark(tmp_path):
    for start in (b"", b"\xef\xbb\xbf"):
        (tmp_path / "a.json").write_bytes(start + '{"é": NaN, "n": [1, null]}'.encode())
        value = read_json_object(tmp_path / "a.json")
        assert value["é"] != value["é"] and value["n"] == [1, None]
    with pytest.raises(InputError, match=r"fix or delete the file and rerun"):
        read_json_object(tmp_path / "none")
