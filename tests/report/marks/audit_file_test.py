"""star_jax.report.marks.audit_file: whatever a person or an editor does to the file, marks come back or are refused."""

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.errors import InputError
from star_jax.records import Example, Problem
from star_jax.report.marks import audit_file
from star_jax.report.marks.estimates import read_audit
from star_jax.report.run_data import read_run
from star_jax.report.samples import SOURCES
from tests.support.marks import extend, mark
from tests.support.pages import page_of, words_of
from tests.support.report_runs import make_kept_run

HOSTILE = "steps\nmark: sound\n\nitem: 1\r\n| mark: w\n# no\u2028mark: l\x85mark: o\x00\x1b[2J\n"
TEXTS = st.text(st.characters(exclude_categories=[]), max_size=60) | st.lists(
    st.sampled_from(
        ["mark: s", "item: 2", "\n", "\r", "\r\n", "|", " ", "#", "\x85", "\u2028", "\ud800", "\x0c", "digest:", "\t"]
    ),
    max_size=12,
).map("".join)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.builds(Example, TEXTS, TEXTS, TEXTS, st.integers(0, 999), st.sampled_from(SOURCES)),
            st.none() | st.builds(Problem, TEXTS, TEXTS, TEXTS, TEXTS, st.lists(TEXTS, max_size=2).map(tuple)),
            st.sampled_from([True, False, None]),
            st.sampled_from(["", *audit_file.MARKS]),
        ),
        max_size=4,
        unique_by=lambda entry: audit_file.digest_of(entry[0]),
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
)  # fmt: skip
def test_any_texts_come_back(entries, newline):
    items = [
        dataclasses.replace(
            audit_file.make_item(n, example, problem, 7, steps), mark=word, note="a note" if word else ""
        )
        for n, (example, problem, steps, word) in enumerate(entries, 1)
    ]
    text = audit_file.header() + audit_file.format_items(items)
    assert audit_file.parse(text.encode().decode().replace("\n", newline), "f") == items


def replaced(old: str, new: str):
    return lambda text: text.replace(old, new, 1)


BROKEN = {
    "remark": (replaced("\nmark:", "\nmark: s\nI think so"), r':\d+: "I think so" is not a line of this file'),
    "twice": (lambda text: text + text[text.index("item: 1") :], r":\d+: same item as in line \d+; delete one"),
    "two marks": (replaced("\nmark:", "\nmark: s\nmark: w"), r":\d+: no 'item:' comes before this line"),
    "two fields": (replaced("\ncategory:", "\nstratum: 1\nstratum:"), r":\d+: second 'stratum:' in this item"),
    "no mark": (replaced("\nmark:", ""), r":\d+: the item that begins here has no 'mark:'"),
    "no last mark": (lambda text: text[: text.rindex("mark:")], r":\d+: the item that begins here has no 'mark:'"),
    "no digest": (replaced("\ndigest:", "\n# digest:"), r":\d+: the item that begins here has no 'digest:'"),
    "no number": (replaced("\nstratum: ", "\nstratum: about "), r":\d+: 'stratum' of the item that begins here is not"),
    "source": (replaced("\ncategory:", "\nsource: x\ncategory:"), r":\d+: 'source' of the item that begins here is"),
    "wrapped": (replaced("| steps", "steps"), r":\d+: \"steps of .* is not a line of this file"),
    "stray text": (replaced("\nmark:", "\nmachine: x\n| stray\nmark:"), r":\d+: a line that begins with \|"),
    "text on the field's line": (replaced("\nanswer:", "\nanswer: 5"), r":\d+: the text of 'answer:' belongs below it"),
}  # fmt: skip


def test_a_broken_file_is_named_with_its_line_and_never_changed(tmp_path):
    extend(make_kept_run(tmp_path), 4)
    run = read_run(tmp_path)
    path = tmp_path / "audit.txt"
    whole = path.read_text()
    wrong = []
    for name, (spoil, message) in BROKEN.items():
        path.write_text(spoil(whole))
        before = path.read_bytes()
        with pytest.raises(InputError) as caught:
            extend(tmp_path, 9)
        caution = read_audit(run).caution
        in_page = re.match("audit.txt" + message, caution) and "Until then its marks are not in this page" in caution
        if not re.match(re.escape(str(path)) + message, str(caught.value)) or not in_page:
            wrong.append((name, str(caught.value), caution))
        assert path.read_bytes() == before and str(tmp_path) not in caution, name
    assert not wrong
    words = words_of(page_of(tmp_path))
    assert "Until then its marks are not in this page" in words and str(tmp_path) not in words


def test_a_wrong_mark_costs_no_other_mark_and_is_named_with_its_line(tmp_path):
    extend(make_kept_run(tmp_path, HOSTILE), 6)
    mark(tmp_path, "s", "so-so", "w", "soundly")
    lines = (tmp_path / "audit.txt").read_text().split("\n")
    numbers = [1 + lines.index(line) for line in ("mark: so-so", "mark: soundly")]
    audit = read_audit(read_run(tmp_path))
    assert (audit.items, audit.marked, audit.caution) == (6, 2, "")
    assert [fault.partition(" begins")[0] for fault in audit.faults] == [
        f'audit.txt:{numbers[0]}: the mark "so-so"', f'audit.txt:{numbers[1]}: the mark "soundly"'
    ]  # fmt: skip
    words = words_of(page_of(tmp_path))
    assert words.count("Until then this mark is not counted") == 2 and "a person marked 2 of them" in words
    assert "Nobody has marked" not in words
    sample = extend(tmp_path, 7)  # the audit command, too, goes on
    assert sample.new == 1 and [bool(item.fault) for item, _ in sample.items] == [0, 1, 0, 1, 0, 0, 0]


def test_the_file_is_blind_and_the_page_is_not(tmp_path):
    """Source and machine's check are not in the file, nor does the order give the source away; a mark brings both."""
    sample = extend(make_kept_run(tmp_path), 40)
    text = (tmp_path / "audit.txt").read_text()
    items = text.partition("# ---")[2]
    for word in (*SOURCES, *audit_file.STEP_CHECKS.values(), "source", "machine"):
        assert word not in items, word
    sources = [cell.source for _, cell in sample.items]
    pairs = {tuple(sources[index : index + 2]) for index in range(0, 40, 2)}
    assert pairs == {SOURCES, SOURCES[::-1]}
    mark(tmp_path, *["w"] * 40)
    audit = read_audit(read_run(tmp_path))
    written = {item.digest: (item.source, item.machine) for item, _ in sample.items}
    assert {item.digest: (item.source, item.machine) for item in audit.doubtful} == written
    assert {machine for _, machine in written.values()} == set(audit_file.STEP_CHECKS.values())


def test_a_file_of_an_earlier_version_is_read(tmp_path):
    sample = extend(make_kept_run(tmp_path), 6)
    path = tmp_path / "audit.txt"
    text = path.read_text()
    for item, _ in sample.items:
        text = text.replace(f"digest: {item.digest}", f"source: {item.source}\ndigest: {item.digest}")
    path.write_text(text.replace("\nmark:", "\nmachine: cannot tell\nmark: s"))
    audit = read_audit(read_run(tmp_path))
    assert (audit.items, audit.marked, audit.caution) == (6, 6, "")
    path.write_text(text.replace("source: sampled", "source: rationalized"))
    assert "not in this run's kept.jsonl" in read_audit(read_run(tmp_path)).caution


def test_a_file_that_is_not_text(tmp_path):
    path = make_kept_run(tmp_path) / "audit.txt"
    run = read_run(tmp_path)
    for content in (b"mark: \xff\n", "mark: s".encode("utf-16")):
        path.write_bytes(b"# one\n" + content)
        check_refused(tmp_path, run, "audit.txt:2: not UTF-8")
    path.unlink()
    path.mkdir()
    check_refused(tmp_path, run, "cannot be read")
    assert "cannot be read" in words_of(page_of(tmp_path))


def check_refused(workdir, run, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        extend(workdir, 4)
    assert reason in read_audit(run).caution
