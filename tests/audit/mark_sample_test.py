"""star_jax.audit: which kept rationales the sample takes, and the file it writes."""

import itertools
import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from star_jax.audit import mark_sample
from star_jax.audit.__main__ import main
from star_jax.errors import InputError
from star_jax.records import Example, Problem, Source
from star_jax.report.marks import audit_file
from star_jax.report.marks.estimates import Cell
from star_jax.report.samples import SOURCES
from tests.support.commands import python
from tests.support.marks import extend, items_of, mark
from tests.support.report_runs import KEPT, MARK_CATEGORIES, make_kept_run, make_run, match_contents, put

HOSTILE = "steps\nmark: sound\n\nitem: 1\r\n| mark: w\n# no\u2028mark: l\x85mark: o\x00\x1b[2J\n"


def test_the_same_run_gives_the_same_file_and_another_seed_another(tmp_path):
    for name in "abc":
        make_kept_run(tmp_path / name)
    config = tmp_path / "c" / "config.json"
    put(config, json.loads(config.read_text()) | {"seed": 1})
    files = []
    for name in "abc":
        extend(tmp_path / name, 20)
        files.append((tmp_path / name / "audit.txt").read_text())
    assert files[0] == files[1] != files[2]
    assert len({item.digest for item in items_of(tmp_path / "a")}) == 20


def test_a_larger_sample_begins_with_the_smaller_one(tmp_path):
    make_kept_run(tmp_path / "once")
    extend(tmp_path / "once", 37, "all")
    make_kept_run(tmp_path / "thrice")
    for n in (5, 18, 37):
        extend(tmp_path / "thrice", n, "all")
    assert items_of(tmp_path / "once") == items_of(tmp_path / "thrice")


def leximin(sizes: list[int], n: int) -> list[int]:
    """The most even allocation of n, sorted, by brute force: the smallest part is as large as possible, and so on."""
    n = min(n, sum(sizes))
    every = itertools.product(*(range(size + 1) for size in sizes))
    return max(sorted(parts) for parts in every if sum(parts) == n)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.integers(1, 2), st.sampled_from(SOURCES), st.sampled_from(MARK_CATEGORIES[:2])),
        st.integers(1, 4),
        min_size=1,
    ),
    st.integers(1, 20),
)
def test_the_allocation_is_as_even_as_can_be(sizes, n):
    """Between sources, between the categories of a source, between the iterations of such a category."""
    kept = {
        Cell(*key): [Example(f"{key} {i}", "p", "c", key[0], key[1]) for i in range(size)]
        for key, size in sizes.items()
    }
    chosen = mark_sample.choose_examples(kept, set(), n, "0")
    assert len({(cell, example.problem_id) for cell, example in chosen}) == len(chosen) == min(n, sum(sizes.values()))
    assert all(example in kept[cell] for cell, example in chosen)

    def key_of(cell: Cell) -> tuple:
        return cell.source, cell.category, cell.iteration

    available = [key_of(cell) for cell, examples in kept.items() for _ in examples]
    taken = [key_of(cell) for cell, _ in chosen]

    def check(level: int, prefix: tuple) -> None:
        """Checks the cells whose keys begin with `prefix`, grouped by the next part of the key."""
        groups = sorted({key[: level + 1] for key in available if key[:level] == prefix})

        def sizes_in(keys: list[tuple]) -> list[int]:
            return [sum(key[: level + 1] == group for key in keys) for group in groups]

        assert sorted(sizes_in(taken)) == leximin(sizes_in(available), sum(sizes_in(taken)))
        if level < 2:
            for group in groups:
                check(level + 1, group)

    check(0, ())


def test_one_item_for_each_category_covers_every_iteration():
    kept = {
        Cell(i, Source.SAMPLED, c): [Example(f"{i}{c}{k}", "p", "c", i, Source.SAMPLED) for k in range(9)]
        for i in (1, 2, 3)
        for c in MARK_CATEGORIES
    }
    cells = [cell for cell, _ in mark_sample.choose_examples(kept, set(), 3, "0")]
    assert {cell.iteration for cell in cells} == {1, 2, 3} and {cell.category for cell in cells} == set(MARK_CATEGORIES)


def test_within_a_cell_every_example_is_as_likely():
    cell = Cell(1, Source.SAMPLED, "")
    examples = [Example(f"p{i}", "p", "c", 1, Source.SAMPLED) for i in range(5)]
    samples = [mark_sample.choose_examples({cell: examples}, set(), 2, str(seed)) for seed in range(2000)]
    counts = [sum(example in [e for _, e in sample] for sample in samples) for example in examples]
    assert stats.chisquare(counts).pvalue > 1e-3


def test_items_have_their_origin_and_earlier_iterations_are_not_counted_twice(tmp_path):
    sample = extend(make_kept_run(tmp_path), 500, "all")
    assert sample.new == 61 + 86 and sample.sizes == {
        Cell(number, source, MARK_CATEGORIES[category]): size
        for number, groups in KEPT.items()
        for (source, category), size in groups.items()
    }
    checks = {}
    for name in ("samples", "rationalizations"):
        for line in itertools.chain.from_iterable((tmp_path / f"iter_00{n}/{name}.jsonl").open() for n in (1, 2)):
            values = json.loads(line)
            checks[values["problem_id"], values["iteration"], values["hinted"]] = values["consistent"]
    for item, cell in sample.items:
        assert (item.iteration, item.source, item.category) == cell and item.stratum == sample.sizes[cell]
        index = item.problem.split("-")[-1]
        assert (item.question, item.answer) == (f"what is {index}?", index)
        assert item.rationale == f"steps of {item.problem} in {item.iteration}"
        hinted = item.source == Source.RATIONALIZED
        assert item.machine == audit_file.STEP_CHECKS[checks[item.problem, item.iteration, hinted]]


def test_which_iterations(tmp_path):
    def iterations() -> set[int]:
        return {item.iteration for item in items_of(tmp_path)}

    extend(make_kept_run(tmp_path), 5)
    assert iterations() == {2}
    extend(tmp_path, 9, "1")
    assert iterations() == {1, 2} and len(items_of(tmp_path)) == 5 + 9
    extend(tmp_path, 16)  # of the file's iterations, which have 14 items
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


def test_what_a_person_wrote_survives_to_the_byte(tmp_path):
    for name, newline in (("unix", "\n"), ("windows", "\r\n")):
        check_survives(tmp_path / name, newline)


def check_survives(tmp_path, newline: str) -> None:
    extend(make_kept_run(tmp_path, HOSTILE), 6)
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
    sample = extend(make_kept_run(tmp_path, HOSTILE), 8)
    for item, (written, _) in zip(items_of(tmp_path), sample.items, strict=True):
        assert item == written and not item.mark
        assert item.rationale.startswith(
            "steps\nmark: sound\n\nitem: 1␍\n| mark: w\n# no⟨U+2028⟩mark: l⟨U+0085⟩mark: o␀␛[2J\n"
        )


def run_main(monkeypatch, capsys, *arguments: str) -> str:
    """What the command prints."""
    monkeypatch.setattr(sys, "argv", ["audit", *arguments])
    main()
    return capsys.readouterr().out


def test_the_command(tmp_path, monkeypatch, capsys):
    run = make_kept_run(tmp_path / "run")
    problems = [Problem(f"train-{c}-{i}", "q", "a", "[red]:x: \n") for c in range(3) for i in range(60)]
    put(run / "problems_train.jsonl", problems)
    match_contents(run)
    result = python("-m", "star_jax.audit", f"--workdir={run}", "--n=4")
    assert (result.returncode, result.stderr) == (0, "") and "4 items, 4 of them new; 0 marked" in result.stdout
    assert f"Then: python -m star_jax.report --workdir={run}" in result.stdout and "[red]:x:" in result.stdout
    mark(run, "s", "w", "s", "o")
    text = run_main(monkeypatch, capsys, f"--workdir={run}", "--n=2")
    assert "The file has 4 items, more than --n=2: all of them stay" in text
    assert "100 (34–100)" in text and max(map(len, text.split("\n")[3:-3])) <= 80
    other = tmp_path / "new" / "other.txt"
    text = run_main(monkeypatch, capsys, f"--workdir={run}", "--n=900", f"--output={other}")
    assert "Only 86 rationales were kept" in text
    assert "The report reads audit.txt of the run directory, not this file." in text
    with pytest.raises(SystemExit, match="0"):
        run_main(monkeypatch, capsys, "--help")
    assert "--iteration" in capsys.readouterr().out


def test_mistakes_take_one_line(tmp_path, monkeypatch, capsys):
    mistakes = {
        "": "--workdir",
        "--workdir=absent": "no such directory",
        f"--workdir={tmp_path} --n=0": "--n must be at least 1",
        f"--workdir={tmp_path} --n=x": "--n",
        f"--workdir={tmp_path}": "neither config.json nor iter_000",
        f"--workdir={tmp_path} --nonsense": "--nonsense",
    }
    for arguments, reason in mistakes.items():
        with pytest.raises(InputError, match=reason) as caught:
            run_main(monkeypatch, capsys, *arguments.split())
        assert "\n" not in str(caught.value), arguments
