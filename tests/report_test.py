"""star_jax.report: a run made by hand goes in, the page's numbers and texts come out."""

import dataclasses
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from star_jax import report
from star_jax.errors import InputError
from star_jax.records import Completion, Example, Problem, write_lines
from star_jax.report import load, page, series, texts

CLASSES = ("1 digit", "2 digits")
# Verdicts of the four dev problems (classes in turn) in each iteration, r = right, w = wrong, u = unparsable,
# c = cut off: the accuracies below are counted off by eye.
VERDICTS = {0: "rwuc", 1: "rwrw", 2: "rrrw"}
LETTERS = {"r": "right", "w": "wrong", "u": "unparsable", "c": "cut_off"}


def problem(index: int, split: str = "dev") -> Problem:
    return Problem(
        id=f"{split}-{index}", question=f"{index} + {index}", answer=str(2 * index), category=CLASSES[index % 2]
    )


def completion(index: int, iteration: int, verdict: str, split: str = "dev", text: str | None = None) -> Completion:
    return Completion(
        problem_id=f"{split}-{index}",
        iteration=iteration,
        draw=0,
        hinted=False,
        text=f"steps of {index} in {iteration}" if text is None else text,
        answer=str(2 * index) if verdict == "right" else None,
        verdict=verdict,
        consistent=None,
        log_probability=-1.0,
        tokens=3,
        seed="seed",
    )


def write_json(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values), encoding="utf-8")


def add_evaluation(directory: Path, number: int, letters: str) -> None:
    """eval_dev.json and eval_dev.jsonl of one iteration, a letter a problem; the numbers are counted from the letters."""
    drawn = [completion(index, number, LETTERS[letter]) for index, letter in enumerate(letters)]
    right = {label: [letter == "r" for letter in letters[place::2]] for place, label in enumerate(CLASSES)}
    by_class = {
        label: {"n": len(hits), "accuracy": sum(hits) / len(hits), "ci95": [0.125, 0.875]}
        for label, hits in right.items()
    }
    values = {
        "iteration": number,
        "split": "dev",
        "n": len(letters),
        "accuracy": letters.count("r") / len(letters),
        "ci95": [0.0625, 0.9375],
        "mean_of_classes": sum(rate["accuracy"] for rate in by_class.values()) / 2,
        "by_class": by_class,
        **{verdict: letters.count(letter) for letter, verdict in LETTERS.items()},
        "right_wrong_steps": 0,
        "weights": "abc",
    }
    write_json(directory / "eval_dev.json", values)
    (directory / "eval_dev.jsonl").write_text(write_lines(drawn), encoding="utf-8")


def add_training(directory: Path, number: int, sampled: int, rationalized: int) -> None:
    """samples.jsonl, kept.jsonl, filter.json and finetune.json of one iteration over eight train problems."""
    verdicts = ["right"] * sampled + ["wrong"] * (8 - sampled)
    drawn = [completion(index, number, verdict, "train") for index, verdict in enumerate(verdicts)]
    kept = [
        Example(f"train-{index}", f"{index} + {index} =", f"kept {index}", number, source)
        for index, source in enumerate(["sampled"] * sampled + ["rationalized"] * rationalized)
    ]
    by_class = {
        label: {
            source: sum(example.source == source for example in kept[place::2])
            for source in ("sampled", "rationalized")
        }
        for place, label in enumerate(CLASSES)
    }
    counts = {
        "iteration": number,
        "problems": 8,
        "draws": 8,
        "right": sampled,
        "wrong": 8 - sampled,
        "unparsable": 0,
        "cut_off": 0,
        "right_wrong_steps": 0,
        "rationalization_tried": 8 - sampled,
        "rationalization_right": rationalized,
        "kept": len(kept),
        "kept_sampled": sampled,
        "kept_rationalized": rationalized,
        "kept_reference": 0,
        "hints_kept": 0,
        "kept_by_class": by_class,
        "problems_by_class": dict.fromkeys(CLASSES, 4),
    }
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "samples.jsonl").write_text(write_lines(drawn), encoding="utf-8")
    (directory / "rationalizations.jsonl").write_text("", encoding="utf-8")
    (directory / "kept.jsonl").write_text(write_lines(kept), encoding="utf-8")
    write_json(directory / "filter.json", counts)
    if kept:
        tuned = {"iteration": number, "steps": 20, "examples": len(kept), "loss_first": 2.0, "loss_last": 0.5}
        write_json(directory / "finetune.json", tuned | {"seconds": 90.0 * number, "learning_rate": 1e-4})


def make_run(workdir: Path, iterations: int = 2) -> Path:
    """A finished run of up to two iterations."""
    config = {"seed": 0, "task": {"name": "arithmetic"}, "model": {"layers": 2, "embed": 64}}
    write_json(workdir / "config.json", config | {"star": {"iterations": iterations, "rationalize": True}})
    (workdir / "problems_dev.jsonl").write_text(write_lines(problem(index) for index in range(4)), encoding="utf-8")
    lines = [{"time": 0, "iteration": 0, "stage": "pretrain", "step": step, "loss": 4.0 - step} for step in (0, 1)]
    for number in range(iterations + 1):
        directory = workdir / f"iter_{number:03d}"
        add_evaluation(directory, number, VERDICTS[number])
        if number:
            add_training(directory, number, sampled=2 * number, rationalized=2)
            losses = zip((10, 20), (2.0 / number, 0.5), strict=True)
            lines += [{"iteration": number, "stage": "fine_tune", "step": step, "loss": loss} for step, loss in losses]
            lines += [{"iteration": number, "stage": "sample", "seconds": 30.0}]
        (directory / "DONE").touch()
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return workdir


def page_of(*workdirs: Path) -> str:
    return report.write(list(workdirs)).read_text(encoding="utf-8")


def shown(text: str) -> str:
    """A page's words: tags, scripts and styles gone, white space folded."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def embedded(text: str, index: int = 0) -> dict:
    """The JSON browser.js reads."""
    return json.loads(re.findall(r'<script type="application/json">(.*?)</script>', text, flags=re.DOTALL)[index])


def run_command(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "star_jax.report", *arguments]
    root = Path(report.__file__).parents[2]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=root, env=os.environ | {"COLUMNS": "80"}
    )


def test_accuracies_are_those_of_the_raw_completions(tmp_path):
    run = load.read_run(make_run(tmp_path))
    by_class = {problem(index).id: problem(index).category for index in range(4)}
    for label in CLASSES:
        for point in series.accuracy_series(run)[label]:
            path = tmp_path / f"iter_{point.iteration:03d}" / "eval_dev.jsonl"
            drawn = [json.loads(line) for line in path.read_text().splitlines()]
            hits = [line["verdict"] == "right" for line in drawn if by_class[line["problem_id"]] == label]
            assert point.accuracy == sum(hits) / len(hits)
    assert [p.accuracy for p in series.accuracy_series(run)["1 digit"]] == [0.5, 1.0, 1.0]
    assert [p.accuracy for p in series.accuracy_series(run)["2 digits"]] == [0.0, 0.0, 0.5]
    assert [p.accuracy for p in series.mean_series(run)] == [0.25, 0.5, 0.75]
    assert [(p.low, p.high) for p in series.overall_series(run)] == [(0.0625, 0.9375)] * 3
    assert series.best(run).iteration == 2


def test_figure_1_draws_the_series(tmp_path):
    """The heights in the SVG are the accuracies: 0.5 -> 1.0 and 0.0 -> 0.5 span the same distance."""
    run = load.read_run(make_run(tmp_path))
    svg = str(page.figures.accuracy(run, "f-").svg)
    lines = re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*stroke: (var\(--series-[01]\)|currentColor)', svg)
    heights = {}
    for path, colour in lines:
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path)]
        if len(numbers) == 6:
            heights[colour] = numbers[1::2]
    one, two, mean = heights["var(--series-0)"], heights["var(--series-1)"], heights["currentColor"]
    unit = two[0] - one[0]  # 0.0 and 0.5; y goes down
    assert one == pytest.approx([two[0] - unit, two[0] - 2 * unit, two[0] - 2 * unit], abs=1e-4)
    assert two[2] == pytest.approx(one[0], abs=1e-4)
    assert mean == pytest.approx([two[0] - unit / 2, two[0] - unit, two[0] - 1.5 * unit], abs=1e-4)


def test_kept_series(tmp_path):
    run = load.read_run(make_run(tmp_path))
    totals = [(bar.iteration, bar.sampled, bar.rationalized, bar.problems) for bar in series.kept_series(run)]
    assert totals == [(1, 2, 2, 8), (2, 4, 2, 8)]
    by_class = [(bar.iteration, bar.label, bar.sampled, bar.rationalized) for bar in series.kept_by_class_series(run)]
    assert by_class == [(1, "1 digit", 1, 1), (1, "2 digits", 1, 1), (2, "1 digit", 2, 1), (2, "2 digits", 2, 1)]


def test_losses_of_a_resumed_run_count_once_and_a_torn_line_is_left_out(tmp_path):
    """A kill tears a line; the resumed run logs step 20 again on a line of its own."""
    with open(make_run(tmp_path) / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"iteration": 2, "stage": "fine_tune", "st\n')
        file.write('{"iteration": 2, "stage": "fine_tune", "step": 20, "loss": 0.25}\n')
        file.write('{"iteration": 2, "stage": "fine_tune", "step": 30, "loss": NaN}\n{"iteration": 2, "sta')
    run = load.read_run(tmp_path)
    losses = {(line.stage, line.iteration): line for line in series.loss_series(run)}
    assert losses["fine_tune", 2].points == ((10, 1.0), (20, 0.25))
    assert losses["fine_tune", 2].not_finite == 1
    assert losses["fine_tune", 1].points == ((10, 2.0), (20, 0.5))
    assert losses["pretrain", 0].points == ((0, 4.0), (1, 3.0))
    assert "2 line(s) of metrics.jsonl could not be read" in shown(page_of(tmp_path))


def test_seconds_by_stage_add_up_over_the_iterations(tmp_path):
    assert series.stage_seconds(load.read_run(make_run(tmp_path))) == {"sample": 60.0, "fine_tune": 270.0}


def test_a_finished_run(tmp_path):
    text = page_of(make_run(tmp_path))
    words = shown(text)
    assert "done: 2 of 2 iterations" in words
    assert "base 25.0 % → 75.0 % at iteration 2, the best" in words
    assert "selected on this same split (dev)" in words
    assert "2, best 4 75.0 % 6.2 % to 93.8 % 75.0 % 3 1 0 0 0" in words
    for title in ("Figure 1.", "Figure 2.", "Figure 3.", "Figure 3b.", "4 of 4 kept examples", "6 of 6 kept examples"):
        assert title in words
    data = embedded(text)
    assert data["iterations"] == [0, 1, 2] and data["classes"] == list(CLASSES)
    assert data["rows"][1] == [
        "1 + 1",
        "2",
        1,
        [
            ["steps of 1 in 0", None, "wrong", None],
            ["steps of 1 in 1", None, "wrong", None],
            ["steps of 1 in 2", "2", "right", None],
        ],
    ]


def test_the_page_is_self_contained_and_its_ids_are_unique(tmp_path):
    text = page_of(make_run(tmp_path / "a"), make_run(tmp_path / "b"))
    assert not re.search(r'(?:src|href)="(?!#)', text)
    assert not re.search(r"https?://|@import|url\((?!#)", text)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:href="|url\()#([^")]*)', text):
        assert reference in ids


@pytest.mark.parametrize(
    ("missing", "standing"),
    [
        (["iter_002"], "iteration 1 of 2 done"),
        (["iter_002/*"], "iteration 2 of 2, in progress or stopped; sampling comes next"),
        (["iter_002/DONE", "iter_002/[!s]*"], "rationalizing comes next"),
        (["iter_002/DONE", "iter_002/[!sr]*"], "filtering comes next"),
        (["iter_002/DONE", "iter_002/eval_*", "iter_002/finetune.json"], "fine-tuning comes next"),
        (["iter_002/DONE", "iter_002/eval_*"], "evaluating comes next"),
        (["iter_002/DONE"], "all of its stages are on disk"),
        (["iter_*"], "the base model is not evaluated yet"),
        (["iter_00[12]"], "base model evaluated"),
    ],
)
def test_a_run_that_is_not_finished(tmp_path, missing, standing):
    make_run(tmp_path)
    for pattern in missing:
        for path in sorted(tmp_path.glob(pattern)):
            for inner in path.iterdir() if path.is_dir() else ():
                inner.unlink()
            path.rmdir() if path.is_dir() else path.unlink()
    assert standing in shown(page_of(tmp_path))


def test_draws_are_counted_before_they_are_filtered(tmp_path):
    make_run(tmp_path)
    (tmp_path / "iter_002" / "filter.json").unlink()
    assert "2 – 8 4 4 – – –" in shown(page_of(tmp_path))  # no problems yet; draws, right, wrong


def test_one_iteration(tmp_path):
    words = shown(page_of(make_run(tmp_path, iterations=1)))
    assert "done: 1 of 1 iterations" in words and "Figure 2." in words


@pytest.mark.parametrize("name", ["config.json", "problems_dev.jsonl", "metrics.jsonl", "iter_000", "iter_001"])
def test_any_part_may_be_missing(tmp_path, name):
    make_run(tmp_path)
    path = tmp_path / name
    for inner in path.iterdir() if path.is_dir() else ():
        inner.unlink()
    path.rmdir() if path.is_dir() else path.unlink()
    assert "STaR run" in shown(page_of(tmp_path))


def test_only_the_config_is_there(tmp_path):
    write_json(tmp_path / "config.json", {"task": {"name": "arithmetic"}, "star": {"iterations": 3}})
    words = shown(page_of(tmp_path))
    assert "the base model is not evaluated yet" in words
    for part in ("Figure 1 (accuracy by class) comes with", "no evaluation yet", "No dev problem is on record yet."):
        assert part in words


def test_an_iteration_that_kept_nothing(tmp_path):
    make_run(tmp_path, iterations=1)
    directory = tmp_path / "iter_001"
    for path in directory.iterdir():
        path.unlink()
    add_training(directory, 1, sampled=0, rationalized=0)
    words = shown(page_of(tmp_path))
    assert "it kept nothing, so there is nothing to fine-tune on" in words
    assert "No iteration has kept examples yet." in words


def test_a_class_of_no_problems_and_an_accuracy_without_interval(tmp_path):
    path = make_run(tmp_path) / "iter_001" / "eval_dev.json"
    values = json.loads(path.read_text())
    values["by_class"]["9 digits"] = {"n": 0, "accuracy": None, "ci95": None}
    del values["ci95"], values["mean_of_classes"]
    write_json(path, values)
    run = load.read_run(tmp_path)
    assert run.classes == (*CLASSES, "9 digits") and "9 digits" not in series.accuracy_series(run)
    assert [p.accuracy for p in series.mean_series(run)] == [0.25, 0.5, 0.75]
    assert "1 4 50.0 % 50.0 %" in shown(page_of(tmp_path))


def test_counts_of_another_run_are_pointed_out(tmp_path):
    path = make_run(tmp_path) / "iter_001" / "filter.json"
    write_json(path, json.loads(path.read_text()) | {"draws": 9})
    assert "Iteration 1: filter.json counts 9 draws, samples.jsonl holds 8" in shown(page_of(tmp_path))


HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'{{ 7 * 7 }}$x^$\u202egnp\u200f\x00\x1b&amp;\ud800"
)


def test_hostile_text_is_only_ever_text(tmp_path):
    """Whatever a run says, in any field that is shown, the page has the elements of a harmless run's page."""
    make_run(tmp_path / "plain")
    make_run(tmp_path / "hostile")
    for path in sorted((tmp_path / "hostile").rglob("*.json*")):
        text = path.read_text(encoding="utf-8")
        for word in ("1 digit", "steps of 1", "1 + 1", "arithmetic", "kept 0", "unparsable", "pretrain", '"embed'):
            if word == "unparsable" and path.suffix == ".json":
                continue  # there it is a key of a count
            evil = json.dumps(HOSTILE)[1:-1]
            text = text.replace(word, f'"{evil}' if word.startswith('"') else evil)
        path.write_text(text, encoding="utf-8")
    plain, hostile = (page_of(tmp_path / name) for name in ("plain", "hostile"))
    for text in ("alert(1)</script>", "<script>alert", "<img", "onerror=alert(2)>", "\u202e", "\u200f", "\x00", "\x1b"):
        assert text not in hostile
    tags = [
        re.findall(r"<(/?[a-zA-Z]+)", re.sub(r"<svg.*?</svg>", "", text, flags=re.DOTALL)) for text in (plain, hostile)
    ]
    assert tags[0] == tags[1]
    assert "alert(1)" in shown(hostile) and "{{ 7 * 7 }}$x^$⟨U+202E⟩gnp⟨U+200F⟩␀␛&amp;⟨U+D800⟩" in shown(hostile)
    assert embedded(hostile)["rows"][1][3][1][0].startswith("</script><script>alert(1)")


def test_only_our_script_may_run(tmp_path):
    text = page_of(make_run(tmp_path))
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1))
    script = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = page.base64.b64encode(page.hashlib.sha256(script[0].encode()).digest()).decode()
    assert len(script) == 1 and f"default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_several_runs_side_by_side(tmp_path):
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", iterations=1)
    path = report.write([first, second])
    assert path == first / "report.html" and not (second / "report.html").exists()
    text = path.read_text(encoding="utf-8")
    words = shown(text)
    assert "2 STaR runs side by side" in words
    assert "first 25.0 → 75.0 %" in words and "second 25.0 → 50.0 %" in words
    assert "first done: 2 of 2 iterations 25.0 % 75.0 % 6.2 % to 93.8 % 2 75.0 % 5 min 30 s" in words
    assert re.search(r'class="differs"><th scope="row"><bdi>star.iterations', text)
    assert not re.search(r'class="differs"><th scope="row"><bdi>task.name', text)
    assert len(embedded(text, 0)["iterations"]) == 3 and len(embedded(text, 1)["iterations"]) == 2


def test_runs_of_the_same_name_are_told_apart(tmp_path):
    words = shown(page_of(make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")))
    assert "run (1)" in words and "run (2)" in words


def test_no_path_of_this_machine_is_on_the_page(tmp_path):
    assert str(tmp_path) not in page_of(make_run(tmp_path / "run"))


def test_rationales_are_capped_in_class_balanced_order(tmp_path, monkeypatch):
    make_run(tmp_path)
    lopsided = [dataclasses.replace(problem(index), category=CLASSES[index == 3]) for index in range(4)]
    (tmp_path / "problems_dev.jsonl").write_text(write_lines(lopsided), encoding="utf-8")
    monkeypatch.setattr(texts, "MOST_PROBLEMS", 3)
    text = page_of(tmp_path)
    assert [row[0] for row in embedded(text)["rows"]] == ["0 + 0", "3 + 3", "1 + 1"]
    assert "the first 3 of 4 problems in class-balanced order" in shown(text)
    monkeypatch.setattr(texts, "MOST_CHARACTERS", 300)
    assert len(embedded(page_of(tmp_path))["rows"]) == 1


def test_a_page_of_many_problems_stays_small(tmp_path):
    """800 problems over 4 evaluations, 600 characters each, would be 2 MB; ten times that is cut to the budget."""
    make_run(tmp_path)
    for length in (600, 6_000):
        problems = [problem(index) for index in range(800)]
        (tmp_path / "problems_dev.jsonl").write_text(write_lines(problems), encoding="utf-8")
        for number in range(4):
            drawn = [completion(index, number, "right", text="x" * length) for index in range(800)]
            (tmp_path / f"iter_{number:03d}").mkdir(exist_ok=True)
            (tmp_path / f"iter_{number:03d}" / "eval_dev.jsonl").write_text(write_lines(drawn), encoding="utf-8")
        path = report.write(tmp_path)
        assert path.stat().st_size < 3_000_000
        assert (len(embedded(path.read_text(encoding="utf-8"))["rows"]) == 800) == (length == 600)


def test_the_pick_of_kept_examples_is_seeded_and_balanced(tmp_path):
    make_run(tmp_path)
    kept = [
        Example(f"t-{index}", "p", f"c {index}", 1, "rationalized" if index % 10 == 0 else "sampled")
        for index in range(100)
    ]
    (tmp_path / "iter_001" / "kept.jsonl").write_text(write_lines(kept), encoding="utf-8")
    run = load.read_run(tmp_path)
    number, total, picks = texts.kept_picks(run)[0]
    assert (number, total, len(picks)) == (1, 100, texts.EXAMPLES_SHOWN)
    assert sum(pick.example.source == "rationalized" for pick in picks) == texts.EXAMPLES_SHOWN // 2
    assert picks == texts.kept_picks(run)[0][2]


def test_classes_of_train_problems_balance_the_pick(tmp_path):
    make_run(tmp_path)
    problems = [dataclasses.replace(problem(index, "train"), category=CLASSES[index == 7]) for index in range(8)]
    (tmp_path / "problems_train.jsonl").write_text(write_lines(problems), encoding="utf-8")
    kept = [Example(f"train-{index}", "p", "c", 1, "sampled") for index in range(8)]
    (tmp_path / "iter_001" / "kept.jsonl").write_text(write_lines(kept), encoding="utf-8")
    picks = texts.kept_picks(load.read_run(tmp_path))[0][2]
    assert "2 digits" in [pick.label for pick in picks[:2]]


def test_long_texts_are_cut_and_say_so():
    assert texts.clipped("x" * texts.LONGEST_TEXT) == "x" * texts.LONGEST_TEXT
    assert texts.clipped("x" * 9_999).endswith("x … [cut for this page; 9,999 characters in all]")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (7.25, "7.2 s"),
        (59.97, "1 min 0 s"),
        (85.2, "1 min 25 s"),
        (3599.6, "1 h 0 min"),
        (3725, "1 h 2 min"),
    ],
)
def test_duration(value, text):
    assert page.duration(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (12000, "12,000"), (0.000123, "0.000123"), (0.0, "0")])
def test_count(value, text):
    assert page.count(value) == text


@pytest.mark.parametrize(
    ("name", "line", "reason"),
    [
        ("iter_001/samples.jsonl", '{"problem_id": "x"', "Expecting"),
        ("iter_001/eval_dev.jsonl", '{"problem_id": "x"}', "key 'answer' is missing"),
        ("iter_001/eval_dev.jsonl", "[]", "not a JSON object"),
        ("iter_001/kept.jsonl", "nonsense", "Expecting value"),
        ("problems_dev.jsonl", '{"id": "x", "question": 5, "answer": "y"}', "'question' should be text, is 5"),
    ],
)
def test_a_broken_line_is_named(tmp_path, name, line, reason):
    path = make_run(tmp_path) / name
    place = len(path.read_text().splitlines()) + 1
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(InputError) as caught:
        report.write(tmp_path)
    assert str(caught.value).startswith(f"{path}:{place}: ") and reason in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_a_line_that_is_not_utf_8_is_named(tmp_path):
    path = make_run(tmp_path) / "iter_001" / "samples.jsonl"
    path.write_bytes(path.read_bytes() + b'{"text": "\xff"}\n')
    with pytest.raises(InputError, match=re.escape(f"{path}:9: is not UTF-8 text")):
        report.write(tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("config.json", "{", "not valid JSON"),
        ("config.json", "[1]", "should hold a JSON object"),
        ("iter_001/eval_dev.json", '{"accuracy": 55}', "'accuracy' should be a number in 0..1, is 55"),
        ("iter_001/eval_dev.json", '{"accuracy": 0.5, "ci95": [0.5]}', "'ci95' should be [low, high]"),
        ("iter_001/eval_dev.json", '{"by_class": {"a": 3}}', "should be an object"),
        ("iter_001/filter.json", '{"kept_by_class": []}', "'kept_by_class' should be an object"),
    ],
)
def test_a_broken_file_is_named(tmp_path, name, content, reason):
    path = make_run(tmp_path) / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        report.write(tmp_path)
    assert str(caught.value).startswith(f"{path}: ") and reason in str(caught.value)


def test_the_page_replaces_the_old_one_and_leaves_nothing_aside(tmp_path):
    make_run(tmp_path)
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    path = report.write(tmp_path)
    assert path == tmp_path / "report.html" and path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not [other for other in tmp_path.iterdir() if "tmp" in other.name]
    assert report.write(tmp_path, tmp_path / "else.html") == tmp_path / "else.html"
    with pytest.raises(InputError, match="cannot be written"):
        report.write(tmp_path, tmp_path / "absent" / "report.html")


def test_command_line(tmp_path):
    make_run(tmp_path / "run")
    done = run_command(f"--workdir={tmp_path / 'run'}", f"--output={tmp_path / 'out.html'}")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip() == str(tmp_path / "out.html")
    assert "--workdir" in run_command("--help").stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "--workdir"),
        (["--workdir=absent"], "there is no such directory"),
        (["--workdir=."], "neither config.json nor iter_000"),
        (["--workdir=.", "--nonsense"], "--nonsense"),
    ],
)
def test_command_line_mistakes_take_one_line(tmp_path, arguments, reason):
    arguments = [argument.replace("=.", f"={tmp_path}") for argument in arguments]
    done = run_command(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert reason in done.stderr and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_nothing_heavy_is_imported():
    """A report must open without JAX: it runs beside a training job, and where no accelerator is."""
    code = "import sys, star_jax.report; print(*sorted(m for m in sys.modules if m in ('jax', 'tensorflow', 'seqio')))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(report.__file__).parents[2]
    )
    assert done.returncode == 0 and done.stdout.strip() == ""
