"""star_jax.audit: the sample, the file a person marks, and what the page makes of the marks."""

import dataclasses
import itertools
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from star_jax.audit import __main__ as audit
from star_jax.errors import InputError
from star_jax.records import Completion, Example, Problem
from star_jax.report import audit_file, audited
from star_jax.report.audited import Cell
from star_jax.report.load import read_run
from tests.report.report_test import is_refused_in_a_line, make_run, page_of, put, python, shown

CLASSES = ("1 digit", "2 digits", "10 digits")
# Of iteration 1 and 2: (source, class) -> how many were kept. Classes are of very different sizes.
KEPT = {
    1: {("sampled", 0): 30, ("sampled", 1): 9, ("rationalized", 1): 20, ("rationalized", 2): 2},
    2: {("sampled", 0): 40, ("sampled", 1): 20, ("sampled", 2): 1, ("rationalized", 2): 25},
}
HOSTILE = "steps\nmark: sound\n\nitem: 1\r\n| mark: w\n# no\u2028mark: l\x85mark: o\x00\x1b[2J\n"


def kept_run(workdir: Path, text: str = "steps") -> Path:
    """A run of two iterations whose kept sets are KEPT; the second's file holds the first's, too."""
    make_run(workdir)
    problems = [
        Problem(f"train-{c}-{i}", f"what is {i}?", str(i), name) for c, name in enumerate(CLASSES) for i in range(60)
    ]
    put(workdir / "problems_train.jsonl", problems)
    earlier: list[Example] = []
    for number, groups in KEPT.items():
        draws: dict[bool, list[Completion]] = {False: [], True: []}
        own, used = [], dict.fromkeys(range(3), 0)
        for (source, place), size in groups.items():
            for _ in range(size):
                problem, hinted = problems[60 * place + used[place]], source == "rationalized"
                used[place] += 1
                steps = (True, False, None)[used[place] % 3]
                full = f"{text} of {problem.id} in {number}"
                draws[hinted].append(
                    Completion(problem.id, number, 0, hinted, full, problem.answer, "right", steps, -1.0, 3, "s")
                )
                own.append(Example(problem.id, "a prompt", full, number, source))
        directory = workdir / f"iter_{number:03d}"
        put(directory / "samples.jsonl", draws[False])
        put(directory / "rationalizations.jsonl", draws[True])
        put(directory / "kept.jsonl", own + earlier)
        values = json.loads((directory / "filter.json").read_text())
        put(directory / "filter.json", values | {"samples": len(draws[False])})
        earlier = own
    return workdir


def extend(workdir: Path, n: int, which: str | None = None) -> audit.Sample:
    return audit.extend(read_run(workdir), workdir / "audit.txt", n, which)


def mark(workdir: Path, *marks: str) -> None:
    """Writes these marks behind the first items that have none."""
    path = workdir / "audit.txt"
    text = path.read_bytes().decode()
    for words in marks:
        text = re.sub(r"^mark:(?=\r?$)", lambda _, words=words: f"mark: {words}", text, count=1, flags=re.MULTILINE)
    path.write_bytes(text.encode())


def items_of(workdir: Path) -> list[audit_file.Item]:
    return audit_file.parse((workdir / "audit.txt").read_bytes().decode(), "audit.txt")


def test_the_same_run_gives_the_same_file_and_another_seed_another(tmp_path):
    for name in "abc":
        kept_run(tmp_path / name)
    config = tmp_path / "c" / "config.json"
    put(config, json.loads(config.read_text()) | {"seed": 1})
    files = []
    for name in "abc":
        extend(tmp_path / name, 20)
        files.append((tmp_path / name / "audit.txt").read_text())
    assert files[0] == files[1] != files[2]
    assert len({item.digest for item in items_of(tmp_path / "a")}) == 20


def test_a_larger_sample_begins_with_the_smaller_one(tmp_path):
    kept_run(tmp_path / "once")
    extend(tmp_path / "once", 37, "all")
    kept_run(tmp_path / "thrice")
    for n in (5, 18, 37):
        extend(tmp_path / "thrice", n, "all")
    assert items_of(tmp_path / "once") == items_of(tmp_path / "thrice")


def leximin(sizes: list[int], n: int) -> list[int]:
    """The most even allocation of n (sorted), found by trying all: the smallest part is largest, then the next ..."""
    n = min(n, sum(sizes))
    every = itertools.product(*(range(size + 1) for size in sizes))
    return max(sorted(parts) for parts in every if sum(parts) == n)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(1, 2), st.sampled_from(audit_file.SOURCES), st.sampled_from(CLASSES[:2])),
        st.integers(1, 4),
        min_size=1,
    ),
    st.integers(1, 20),
)
def test_the_allocation_is_as_even_as_can_be(sizes, n):
    """Between sources, between the classes of a source, between the iterations of such a class."""
    kept = {
        Cell(*key): [Example(f"{key} {i}", "p", "c", key[0], key[1]) for i in range(size)]
        for key, size in sizes.items()
    }
    drawn = audit.draw(kept, set(), n, "0")
    assert len({(cell, example.problem_id) for cell, example in drawn}) == len(drawn) == min(n, sum(sizes.values()))
    assert all(example in kept[cell] for cell, example in drawn)

    def check(level: int, within: tuple) -> None:
        """The cells that begin with `within`, grouped by what comes next: source, class, iteration."""
        keys = [(cell.source, cell.category, cell.iteration) for cell in kept]
        groups = sorted({key[: level + 1] for key in keys if key[:level] == within})

        def size(group: tuple, of: list[tuple]) -> int:
            return sum(key[: level + 1] == group for key in of)

        there = [
            key
            for cell, examples in kept.items()
            for key in [(cell.source, cell.category, cell.iteration)] * len(examples)
        ]
        got = [size(group, [(c.source, c.category, c.iteration) for c, _ in drawn]) for group in groups]
        assert sorted(got) == leximin([size(group, there) for group in groups], sum(got))
        if level < 2:
            for group in groups:
                check(level + 1, group)

    check(0, ())


def test_one_item_a_class_sees_every_iteration():
    kept = {
        Cell(i, "sampled", c): [Example(f"{i}{c}{k}", "p", "c", i, "sampled") for k in range(9)]
        for i in (1, 2, 3)
        for c in CLASSES
    }
    drawn = audit.draw(kept, set(), 3, "0")
    assert {cell.iteration for cell, _ in drawn} == {1, 2, 3} and {cell.category for cell, _ in drawn} == set(CLASSES)


def test_within_a_cell_every_example_is_as_likely():
    cell = Cell(1, "sampled", "")
    examples = [Example(f"p{i}", "p", "c", 1, "sampled") for i in range(5)]
    seen = [audit.draw({cell: examples}, set(), 2, str(seed)) for seed in range(2000)]
    counts = [sum(example in [e for _, e in drawn] for drawn in seen) for example in examples]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_items_say_where_they_come_from_and_earlier_iterations_are_not_counted_twice(tmp_path):
    sample = extend(kept_run(tmp_path), 500, "all")
    assert sample.new == 61 + 86 and sample.sizes == {
        Cell(number, source, CLASSES[place]): size
        for number, groups in KEPT.items()
        for (source, place), size in groups.items()
    }
    told = {}
    for name in ("samples", "rationalizations"):
        for line in itertools.chain.from_iterable((tmp_path / f"iter_00{n}/{name}.jsonl").open() for n in (1, 2)):
            values = json.loads(line)
            told[values["problem_id"], values["iteration"], values["hinted"]] = values["consistent"]
    for item, cell in sample.items:
        assert (item.iteration, item.source, item.category) == cell and item.stratum == sample.sizes[cell]
        index = item.problem.split("-")[-1]
        assert (item.question, item.answer) == (f"what is {index}?", index)
        assert item.rationale == f"steps of {item.problem} in {item.iteration}"
        assert item.machine == audit_file.MACHINE[told[item.problem, item.iteration, item.source == "rationalized"]]


def test_which_iterations(tmp_path):
    def iterations() -> set[int]:
        return {item.iteration for item in items_of(kept_run(tmp_path))}

    extend(kept_run(tmp_path), 5)
    assert iterations() == {2}
    extend(tmp_path, 9, "1")
    assert iterations() == {1, 2} and len(items_of(tmp_path)) == 5 + 9
    extend(tmp_path, 16)  # of those the file has: 14 are there
    assert len(items_of(tmp_path)) == 16
    with pytest.raises(InputError, match="--iteration must be last, all or one of 1, 2, got '3'"):
        extend(tmp_path, 5, "3")


def test_nothing_to_mark(tmp_path):
    make_run(tmp_path)
    for number in (1, 2):
        put(tmp_path / f"iter_00{number}/kept.jsonl", [Example("train-0", "p", "4", number, "reference")])
    with pytest.raises(InputError, match="nothing to mark"):
        extend(tmp_path, 5)
    assert not (tmp_path / "audit.txt").exists()


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_what_a_person_wrote_survives_to_the_byte(tmp_path, newline):
    extend(kept_run(tmp_path, HOSTILE), 6)
    mark(tmp_path, "s", "w begging the question", "LEAK – uses it", "Wrong reasoning: red herring", "other(?)")
    path = tmp_path / "audit.txt"
    text = path.read_text().replace("\n", newline).replace("# ---", "# my own remark", 1).rstrip()
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())  # Windows' Notepad
    before = path.read_bytes()
    assert extend(tmp_path, 3).new == extend(tmp_path, 6).new == 0 and path.read_bytes() == before
    assert extend(tmp_path, 11).new == 5
    after = path.read_bytes()
    assert after.startswith(before) and (b"\r\n" in after) == (newline == "\r\n")
    assert after.count(b"\n") == after.count(newline.encode())
    notes = [(item.mark, item.note) for item in items_of(tmp_path)]
    assert notes[:6] == [
        ("sound", ""), ("wrong reasoning", "begging the question"), ("leak", "uses it"),
        ("wrong reasoning", "red herring"), ("other", "(?)"), ("", ""),
    ]  # fmt: skip
    assert notes[6:] == [("", "")] * 5 and [item.number for item in items_of(tmp_path)] == [*range(1, 12)]
    assert [p.name for p in tmp_path.iterdir() if "tmp" in p.name] == []


def test_hostile_texts_are_no_marks(tmp_path):
    sample = extend(kept_run(tmp_path, HOSTILE), 8)
    for item, (drawn, _) in zip(items_of(tmp_path), sample.items, strict=True):
        assert item == drawn and not item.mark
        assert item.rationale.startswith(
            "steps\nmark: sound\n\nitem: 1␍\n| mark: w\n# no⟨U+2028⟩mark: l⟨U+0085⟩mark: o␀␛[2J\n"
        )


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
            st.builds(Example, TEXTS, TEXTS, TEXTS, st.integers(0, 999), st.sampled_from(audit_file.SOURCES)),
            st.none() | st.builds(Problem, TEXTS, TEXTS, TEXTS, TEXTS, st.lists(TEXTS, max_size=2).map(tuple)),
            st.sampled_from([True, False, None]),
            st.sampled_from(["", *audit_file.MARKS]),
        ),
        max_size=4,
        unique_by=lambda drawn: audit_file.digest_of(drawn[0]),
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
)  # fmt: skip
def test_any_texts_come_back(drawn, newline):
    items = [
        dataclasses.replace(
            audit_file.make_item(n, example, problem, 7, steps), mark=word, note="a note" if word else ""
        )
        for n, (example, problem, steps, word) in enumerate(drawn, 1)
    ]
    text = audit_file.head() + audit_file.write_items(items)
    assert audit_file.parse(text.encode().decode().replace("\n", newline), "f") == items


def replaced(old: str, new: str):
    return lambda text: text.replace(old, new, 1)


BROKEN = {
    "mark": (replaced("\nmark:", "\nmark: so-so"), r':\d+: the mark "so-so" begins with none of sound, wrong'),
    "word": (replaced("\nmark:", "\nmark: soundly"), r':\d+: the mark "soundly"'),
    "remark": (replaced("\nmark:", "\nmark: s\nI think so"), r':\d+: "I think so" is no line of this file'),
    "twice": (lambda text: text + text[text.index("item: 1") :], r":\d+: the same item stands in line \d+; delete one"),
    "two marks": (replaced("\nmark:", "\nmark: s\nmark: w"), r":\d+: no 'item:' comes before this line"),
    "two fields": (replaced("\nclass:", "\nsource: sampled\nclass:"), r":\d+: 'source:' for the second time"),
    "no mark": (replaced("\nmark:", ""), r":\d+: the item that begins here has no 'mark:'"),
    "no last mark": (lambda text: text[: text.rindex("mark:")], r":\d+: the item that begins here has no 'mark:'"),
    "no digest": (replaced("\ndigest:", "\n# digest:"), r":\d+: the item that begins here has no 'digest:'"),
    "no number": (replaced("\nstratum: ", "\nstratum: about "), r":\d+: 'stratum' of the item that begins here is no"),
    "source": (replaced("source: ", "source: not "), r":\d+: 'source' of the item that begins here is none of"),
    "wrapped": (replaced("| steps", "steps"), r":\d+: \"steps of .* is no line of this file"),
    "stray text": (replaced("\nmachine", "\nmachine: x\n| stray\nmachine"), r":\d+: a line with \| belongs behind"),
    "text beside": (replaced("\nanswer:", "\nanswer: 5"), r":\d+: a text stands below 'answer:'"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_with_its_line_and_never_changed(tmp_path, name):
    spoil, message = BROKEN[name]
    extend(kept_run(tmp_path), 4)
    path = tmp_path / "audit.txt"
    path.write_text(spoil(path.read_text()))
    before = path.read_bytes()
    with pytest.raises(InputError, match=re.escape(str(path)) + message):
        extend(tmp_path, 9)
    words = shown(page_of(tmp_path))
    assert re.search("audit.txt" + message, words) and "Until then its marks are not in this page" in words
    assert path.read_bytes() == before and str(tmp_path) not in words


def test_the_line_of_a_wrong_mark_is_right(tmp_path):
    extend(kept_run(tmp_path, HOSTILE), 4)
    mark(tmp_path, "s", "s", "?")
    line = 1 + (tmp_path / "audit.txt").read_text().split("\n").index("mark: ?")
    with pytest.raises(InputError, match=rf"audit\.txt:{line}: "):
        extend(tmp_path, 4)


@pytest.mark.parametrize("content", [b"mark: \xff\n", "mark: s".encode("utf-16"), None])
def test_a_file_that_is_no_text(tmp_path, content):
    path = kept_run(tmp_path) / "audit.txt"
    path.mkdir() if content is None else path.write_bytes(b"# one\n" + content)
    reason = "cannot be read" if content is None else "audit.txt:2: is not UTF-8"
    with pytest.raises(InputError, match=reason):
        extend(tmp_path, 4)
    assert reason in shown(page_of(tmp_path))


def test_items_of_another_run_are_noticed_and_not_counted(tmp_path):
    extend(kept_run(tmp_path), 12, "all")
    mark(tmp_path, *["s"] * 12)
    kept = tmp_path / "iter_002/kept.jsonl"
    kept.write_text(kept.read_text().replace("steps", "other steps"))
    strange = [item for item in items_of(tmp_path) if item.iteration == 2]
    with pytest.raises(
        InputError, match=rf"audit\.txt:{strange[0].line}: {len(strange)} item\(s\) are not what this run"
    ):
        extend(tmp_path, 20)
    words = shown(page_of(tmp_path))
    assert f"audit.txt:{strange[0].line}: {len(strange)} item(s) are not" in words and "They are left out here" in words
    assert f"{12 - len(strange)} rationales that iteration 1 kept" in words
    put(kept, [])
    assert f"{len(strange)} item(s) are not" in shown(page_of(tmp_path))
    path = tmp_path / "audit.txt"
    path.write_text(re.sub(r"^stratum: \d+", "stratum: 9999", path.read_text(), flags=re.MULTILINE))
    assert "12 item(s) are not" in shown(page_of(tmp_path))


def test_rates_by_hand(tmp_path):
    """Weights, estimates and intervals again, in NumPy and SciPy, from the file alone."""
    run = kept_run(tmp_path)
    extend(run, 40)
    words = list(audit_file.MARKS)
    rng = np.random.default_rng(0)
    mark(run, *rng.choice(words, 31, p=[0.6, 0.2, 0.1, 0.1]))
    items = [item for item in items_of(run) if item.mark]
    sample = extend(run, 40)
    found = audited.rates([(i, c) for i, c in sample.items if i.mark], sample.sizes)
    cells = sorted({(item.source, item.category) for item in items})
    assert found.unseen == 0 and [row.label for row in found.weighted] == ["sampled", "rationalized", "all"]
    for row, counted in zip(found.weighted, found.counted, strict=True):
        inside = [cell for cell in cells if row.label in (cell[0], "all")]
        of_cell = [[item for item in items if (item.source, item.category) == cell] for cell in inside]
        sizes = np.array([found_items[0].stratum for found_items in of_cell])
        n = np.array([len(found_items) for found_items in of_cell])
        weight = np.repeat(sizes / sizes.sum() / n, n)  # of each item
        effective = weight.sum() ** 2 / (weight**2).sum()
        assert row.n == sizes.sum() and counted.n == n.sum()
        for word in words:
            hits = np.array([item.mark == word for found_items in of_cell for item in found_items])
            share = row.shares[word]
            p, z2 = weight @ hits, stats.norm.ppf(0.975) ** 2
            ends = np.roots([1 + z2 / effective, -(2 * p + z2 / effective), p**2]).real
            np.testing.assert_allclose([share.share, share.low, share.high], [p, *np.sort(ends)], atol=1e-8)
            raw = counted.shares[word]
            assert (raw.count, raw.share) == (hits.sum(), hits.mean())
            if row.label == "all":
                assert (raw.low, raw.high) == (None, None)
            else:
                interval = stats.binomtest(int(hits.sum()), len(hits)).proportion_ci(0.95, method="wilson")
                np.testing.assert_allclose([raw.low, raw.high], interval, atol=1e-9)


def test_what_nothing_is_marked_of_is_left_out_and_said(tmp_path):
    extend(kept_run(tmp_path), 8)  # sampled: 1, 2 and 10 digits; rationalized: 10 digits
    mark(tmp_path, "s", "l")  # one of each source: 40 + 25 of 86 kept
    words = shown(page_of(tmp_path))
    assert "leave out 21 kept rationales, of classes in which nothing is marked" in words
    assert "marked 2 of them, 6 are not marked yet" in words and "all 65 kept" in words


def test_the_page_shows_counts_rates_and_what_is_not_sound(tmp_path):
    extend(kept_run(tmp_path, "<b>steps</b>"), 4)
    mark(tmp_path, "s", "w <i>red</i> herring", "s", "s")
    text = page_of(tmp_path)
    words = shown(text)
    assert "4 rationales that iteration 2 kept" in words and "Marked as not sound (1)" in words
    assert "sampled 2 marked 2 (100.0 %) 34.2 % to 100.0 %" in words
    assert "rationalized 2 marked 1 (50.0 %) 9.5 % to 90.5 %" in words and "all 4 marked 3 (75.0 %) 1 (25.0 %)" in words
    assert "<i>red</i> herring" in words and "<i>" not in text and "<b>steps" not in text


def test_steps_checked_by_machine(tmp_path):
    words = shown(page_of(kept_run(tmp_path)))
    rows = {}
    for number in (1, 2):
        told = {}
        for name in ("samples", "rationalizations"):
            for line in (tmp_path / f"iter_00{number}/{name}.jsonl").open():
                told.setdefault(name, []).append(json.loads(line)["consistent"])
        rows[number] = [[values.count(steps) for steps in (True, False, None)] for values in told.values()]
        cells = " ".join(
            f"{sum(row)} " + " ".join(f"{count} {100 * count / sum(row):.1f} %" for count in row)
            for row in rows[number]
        )
        assert f"{number} {cells}" in words
    for path in tmp_path.glob("iter_*/*s.jsonl"):
        path.unlink()
    assert "Steps checked by machine" not in shown(page_of(tmp_path))


def test_pages_without_marks(tmp_path):
    hint = "Sample a sample to mark: python -m star_jax.audit --workdir=DIR --n=50"
    kept_run(tmp_path)
    assert hint in shown(page_of(tmp_path))
    extend(tmp_path, 4)
    words = shown(page_of(tmp_path))
    assert hint in words and "marked 0 of them, 4 are not marked yet" in words and "As marked" not in words
    for path in tmp_path.glob("iter_*/kept.jsonl"):
        path.unlink()
    assert "No iteration has kept rationales yet" in shown(page_of(tmp_path))


def test_command_line(tmp_path):
    run = kept_run(tmp_path / "run")
    put(
        run / "problems_train.jsonl",
        [Problem(f"train-{c}-{i}", "q", "a", "[red]:x: \n") for c in range(3) for i in range(60)],
    )
    done = python("-m", "star_jax.audit", f"--workdir={run}", "--n=4")
    assert (done.returncode, done.stderr) == (0, "") and "4 items, 4 of them new; 0 marked" in done.stdout
    assert f"Then: python -m star_jax.report --workdir={run}" in done.stdout and "[red]:x:" in done.stdout
    mark(run, "s", "w", "s", "o")
    done = python("-m", "star_jax.audit", f"--workdir={run}", "--n=2")
    assert done.returncode == 0 and "The file has 4 items, more than --n=2: all of them stay" in done.stdout
    assert "100 (34–100)" in done.stdout and max(map(len, done.stdout.split("\n")[3:-3])) <= 80
    done = python("-m", "star_jax.audit", f"--workdir={run}", "--n=900", f"--output={tmp_path / 'new' / 'other.txt'}")
    assert done.returncode == 0 and "No more than 86 rationales were kept" in done.stdout
    assert "The report reads audit.txt of the run's directory, not this file." in done.stdout
    assert "--iteration" in python("-m", "star_jax.audit", "--help").stdout


MISTAKES = {
    "": "--workdir",
    "--workdir=absent": "there is no such directory",
    "--workdir=tests --n=0": "--n must be at least 1",
    "--workdir=tests --n=x": "--n",
    "--workdir=tests": "neither config.json nor iter_000",
    "--workdir=tests --nonsense": "--nonsense",
}


@pytest.mark.parametrize(("arguments", "reason"), MISTAKES.items())
def test_command_line_mistakes_take_one_line(arguments, reason):
    is_refused_in_a_line("star_jax.audit", arguments, reason)
