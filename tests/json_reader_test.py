"""star_jax.json_reader: every file that is not one JSON object is one line with path and remedy."""

import os

import pytest

from star_jax.errors import InputError
from star_jax.json_reader import is_present, read_json_object, read_lines
from star_jax.records import Completion, from_json


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


def test_a_pipe_in_a_file_s_place_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"a\.json: cannot be read \(a pipe, not a file\); do this"):
        read_json_object(tmp_path / "a.json", "do this")


def test_a_deeply_nested_record_is_a_bad_line():
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json(Completion, '{"id": ' + "[" * 100_000)


def test_what_may_not_be_read_is_not_missing_and_not_to_be_deleted(tmp_path, monkeypatch):
    """A folder that may not be entered does not count as empty. permissions_test.py has whole commands."""
    (tmp_path / "file").write_text("{}")
    assert (
        is_present(tmp_path / "file") and not is_present(tmp_path / "none") and not is_present(tmp_path / "file/none")
    )
    (tmp_path / "link").symlink_to("nothing")
    assert is_present(tmp_path / "link")

    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "lstat", refuse)
    monkeypatch.setattr(os, "open", refuse)
    line = r"file: cannot be read \(Permission denied\); make it readable \(chmod\) and rerun$"
    for read in (is_present, read_json_object, lambda path: list(read_lines(path, "delete it"))):
        with pytest.raises(InputError, match=line):
            read(tmp_path / "file")
