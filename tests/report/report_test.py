"""star_jax.report: a run made by hand goes in, the page's numbers and texts come out."""

import base64
import gzip
import hashlib
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from star_jax import report
from star_jax.errors import InputError
from star_jax.records import Completion, Example, Problem, write_lines
from star_jax.report import figures, load, series, texts, words

ROOT = Path(__file__).parents[2]
CLASSES = ("1 digit", "2 digits")
VERDICTS = {0: "rwuc", 1: "rwrw", 2: "rrrw"}  # of the four dev problems, classes in turn, in each iteration
LETTERS = {"r": "right", "w": "wrong", "u": "unparsable", "c": "truncated"}


def problem(index: int, split: str = "dev", place: int | None = None) -> Problem:
    category = CLASSES[index % 2 if place is None else place]
    return Problem(f"{split}-{index}", f"{index} + {index}", str(2 * index), category)


def completion(index: int, iteration: int, verdict: str, split: str = "dev", text: str | None = None) -> Completion:
    text = f"steps of {index} in {iteration}" if text is None else text
    answer = str(2 * index) if verdict == "right" else None
    return Completion(f"{split}-{index}", iteration, 0, False, text, answer, verdict, None, -1.0, 3, "seed")


def put(path: Path, content: dict | list) -> None:
    """Writes an object as JSON, a list of records as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(write_lines(content) if isinstance(content, list) else json.dumps(content), encoding="utf-8")


def add_evaluation(directory: Path, number: int, letters: str) -> None:
    """eval_dev.json and eval_dev.jsonl of one iteration, a letter a problem."""
    put(directory / "eval_dev.jsonl", [completion(i, number, LETTERS[letter]) for i, letter in enumerate(letters)])
    halves = {label: letters[place::2] for place, label in enumerate(CLASSES)}
    shares = {label: half.count("r") / len(half) for label, half in halves.items()}
    values = {"iteration": number, "split": "dev", "weights": "abc", "n": len(letters), "right_wrong_steps": 0}
    values |= {
        "accuracy": letters.count("r") / len(letters),
        "ci95": [0.0625, 0.9375],
        "mean_of_categories": sum(shares.values()) / 2,
    }
    values |= {"by_category": {label: {"n": 2, "accuracy": shares[label], "ci95": [0.125, 0.875]} for label in CLASSES}}
    values |= {verdict: letters.count(letter) for letter, verdict in LETTERS.items()}
    put(directory / "eval_dev.json", values)


def add_training(directory: Path, number: int, sampled: int, rationalized: int) -> None:
    """What an iteration leaves before its evaluation, over eight train problems; both counts are even."""
    verdicts = ["right"] * sampled + ["wrong"] * (8 - sampled)
    put(directory / "samples.jsonl", [completion(i, number, verdict, "train") for i, verdict in enumerate(verdicts)])
    put(directory / "rationalizations.jsonl", [])
    sources = ["sampled"] * sampled + ["rationalized"] * rationalized
    kept = [Example(f"train-{i}", f"{i} + {i} =", f"kept {i}", number, source) for i, source in enumerate(sources)]
    put(directory / "kept.jsonl", kept)
    halves = {"sampled": sampled // 2, "rationalized": rationalized // 2}
    counts = {"iteration": number, "problems": 8, "samples": 8, "right": sampled, "wrong": 8 - sampled}
    counts |= {"unparsable": 0, "truncated": 0, "right_wrong_steps": 0, "hints_kept": 0, "kept": len(kept)}
    counts |= {"rationalization_tried": 8 - sampled, "rationalization_right": rationalized}
    counts |= {"kept_sampled": sampled, "kept_rationalized": rationalized, "kept_reference": 0}
    by_category = {
        "kept_by_category": dict.fromkeys(CLASSES, halves),
        "problems_by_category": dict.fromkeys(CLASSES, 4),
    }
    put(directory / "filter.json", counts | by_category)
    put(directory / "finetune.json", {"steps": 20, "loss_first": 2.0, "loss_last": 0.5, "seconds": 90.0 * number})


def make_run(workdir: Path, iterations: int = 2) -> Path:
    """A finished run of up to two iterations."""
    config = {"seed": 0, "task": {"name": "arithmetic"}, "model": {"n_layers": 2, "d_model": 64}}
    put(workdir / "config.json", config | {"star": {"iterations": iterations, "rationalize": True}})
    put(workdir / "problems_dev.jsonl", [problem(index) for index in range(4)])
    lines = [{"time": 0, "iteration": 0, "stage": "pretrain", "step": step, "loss": 4.0 - step} for step in (0, 1)]
    for number in range(iterations + 1):
        directory = workdir / f"iter_{number:03d}"
        add_evaluation(directory, number, VERDICTS[number])
        if number:
            add_training(directory, number, sampled=2 * number, rationalized=2)
            tuning = {"iteration": number, "stage": "fine_tune"}
            lines += [tuning | {"step": 10, "loss": 2.0 / number}, tuning | {"step": 20, "loss": 0.5}]
            lines += [{"iteration": number, "stage": "sample", "step": 0, "seconds": 30.0}]
        (directory / "DONE").touch()
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return workdir


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def remove(workdir: Path, *patterns: str) -> None:
    for path in {path for pattern in patterns for path in workdir.glob(pattern)}:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def page_of(*workdirs: Path) -> str:
    return report.write(list(workdirs)).read_text(encoding="utf-8")


def shown(text: str) -> str:
    """A page's words: tags, scripts and styles gone, white space folded."""
    text = re.sub(r"<(script|style)\b.*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


def browsers(text: str) -> list[dict]:
    """What browser.js knows of each run of a page."""
    return [json.loads(found) for found in re.findall(r'<script type="application/json">(.*?)</script>', text)]


def unpacked(text: str) -> dict:
    """Name of a block in a page -> its content."""
    found = re.findall(r'data-block="(\w+)">([\w+/=]*)</script>', text)
    return {name: json.loads(gzip.decompress(base64.b64decode(content))) for name, content in found}


def collections_of(text: str, run: int = 0) -> dict[str, dict]:
    """Collection -> what browser.js knows of it, with the blocks of its problems and of each iteration's draws."""
    blocks = unpacked(text)
    found = {}
    for collection in browsers(text)[run]["collections"]:
        draws = {number: blocks.get(name) for number, name in collection["draws"]}
        found[collection["name"]] = collection | {"problems": blocks.get(collection["problems"]), "draws": draws}
    return found


def is_refused_in_a_line(module: str, arguments: str, reason: str) -> None:
    done = python("-m", module, *arguments.split())
    assert done.returncode == 2 and done.stdout == ""
    assert reason in done.stderr and done.stderr.count("\n") == 1  # so it is no traceback


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)


def test_numbers_are_those_of_the_raw_files(tmp_path):
    run = load.read_run(make_run(tmp_path))
    class_of = {problem(index).id: problem(index).category for index in range(4)}
    for label, points in series.accuracy_series(run).items():
        for point in points:
            lines = (tmp_path / f"iter_{point.iteration:03d}" / "eval_dev.jsonl").read_text().splitlines()
            drawn = [line for line in map(json.loads, lines) if class_of[line["problem_id"]] == label]
            assert point.accuracy == sum(line["verdict"] == "right" for line in drawn) / len(drawn)
    by_category = {label: [p.accuracy for p in points] for label, points in series.accuracy_series(run).items()}
    assert by_category == {"1 digit": [0.5, 1.0, 1.0], "2 digits": [0.0, 0.0, 0.5]}
    assert [p.accuracy for p in series.mean_series(run)] == [0.25, 0.5, 0.75]
    assert [(p.low, p.high) for p in series.overall_series(run)] == [(0.0625, 0.9375)] * 3
    assert series.best(run).iteration == 2
    assert series.stage_seconds(run) == {"sample": 30.0 + 30.0, "fine_tune": 90.0 + 180.0}


def test_figure_1_draws_the_series(tmp_path):
    """The heights in the SVG are the accuracies, on one scale."""
    svg = str(figures.accuracy(load.read_run(make_run(tmp_path)), "f-").svg)
    heights = {}
    for path, colour in re.findall(r'<path d="([^"]*)"[^>]*style="[^"]*stroke: (var\(--series-\d\)|currentColor)', svg):
        numbers = [float(number) for number in re.findall(r"-?\d+\.?\d*", path)]
        if len(numbers) == 6:  # three points; an axis or an interval has two
            heights[colour] = numbers[1::2]
    one, two, mean = heights["var(--series-0)"], heights["var(--series-1)"], heights["currentColor"]
    zero, unit = two[0], two[0] - one[1]  # y goes down
    for drawn, wanted in ((one, [0.5, 1, 1]), (two, [0, 0, 0.5]), (mean, [0.25, 0.5, 0.75])):
        assert [(zero - y) / unit for y in drawn] == pytest.approx(wanted, abs=1e-5)


def test_kept_series(tmp_path):
    run = load.read_run(make_run(tmp_path))
    bars = series.kept_series(run)
    assert [(bar.sampled, bar.rationalized, bar.problems) for bar in bars] == [(2, 2, 8), (4, 2, 8)]
    by_category = [
        (bar.iteration, bar.label, bar.sampled, bar.rationalized) for bar in series.kept_by_class_series(run)
    ]
    assert by_category == [(1, "1 digit", 1, 1), (1, "2 digits", 1, 1), (2, "1 digit", 2, 1), (2, "2 digits", 2, 1)]


def test_losses_of_a_resumed_run_count_once_and_a_torn_line_is_left_out(tmp_path):
    """A kill tears a line; the resumed run logs step 20 again on a line of its own, and is killed too."""
    with open(make_run(tmp_path) / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"iteration": 2, "stage": "fine_tune", "st\n')
        file.write('{"iteration": 2, "stage": "fine_tune", "step": 20, "loss": 0.25}\n')
        file.write('{"iteration": 2, "stage": "fine_tune", "step": 30, "loss": NaN}\n{"iteration": 2, "sta')
    losses = {(line.stage, line.iteration): line for line in series.loss_series(load.read_run(tmp_path))}
    assert losses["fine_tune", 2].points == ((10, 1.0), (20, 0.25)) and losses["fine_tune", 2].not_finite == 1
    assert losses["fine_tune", 1].points == ((10, 2.0), (20, 0.5))
    assert losses["pretrain", 0].points == ((0, 4.0), (1, 3.0))
    assert "2 line(s) of metrics.jsonl could not be read" in shown(page_of(tmp_path))


def test_a_finished_run(tmp_path):
    words = shown(text := page_of(make_run(tmp_path)))
    assert "done: 2 of 2 iterations" in words and "base 25.0 % → 75.0 % at iteration 2, the best" in words
    assert "selected on this same split (dev)" in words
    assert "2, best 4 75.0 % 6.2 % to 93.8 % 75.0 % 3 1 0 0 0" in words
    for part in ("Figure 1.", "Figure 2.", "Figure 3.", "Figure 3b.", "4 of 4 kept", "6 of 6 kept"):
        assert part in words
    found = collections_of(text)["evaluation"]
    assert list(found["draws"]) == [0, 1, 2] and found["best"] == 2
    assert found["problems"]["classes"] == list(CLASSES) and found["problems"]["problems"][1][:4] == [
        "dev-1", "1 + 1", "2", 1,
    ]  # fmt: skip
    texts_of_1 = [(rows[1][4], rows[1][-1]) for rows in found["draws"].values()]
    assert texts_of_1 == [("wrong", "steps of 1 in 0"), ("wrong", "steps of 1 in 1"), ("right", "steps of 1 in 2")]


def test_the_best_is_compared_with_the_base_problem_by_problem(tmp_path):
    words = shown(page_of(make_run(tmp_path)))
    assert "2 problems gained on the base, 0 lost: p = 0.5" in words  # "rwuc" -> "rrrw"
    remove(tmp_path, "iter_000/eval_dev.jsonl")
    assert "gained on the base" not in shown(page_of(tmp_path))


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "p = 1"), (0.03125, "p = 0.031"), (0.001, "p = 0.001"), (1e-9, "p < 0.001")]
)
def test_chance(p, text):
    assert words.chance(p) == text


def test_the_page_is_self_contained_and_its_ids_are_unique(tmp_path):
    text = page_of(make_run(tmp_path / "a"), make_run(tmp_path / "b"))
    assert not re.search(r'(?:src|href)="(?!#)|https?://|@import|url\((?!#)', text)
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]*)', text)) <= set(ids)
    assert str(tmp_path) not in text
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text).group(1))
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize(
    ("missing", "standing"),
    [
        (["iter_002"], "iteration 1 of 2 done"),
        (["iter_002/*"], "iteration 2 of 2, in progress or stopped; sampling comes next"),
        (["iter_002/DONE", "iter_002/[!s]*"], "rationalizing comes next"),
        (["iter_002/DONE", "iter_002/[!sr]*"], "filtering comes next"),
        (["iter_002/DONE", "iter_002/eval_*", "iter_002/finetune.json"], "fine-tuning, step 20 reached"),
        (["iter_002/DONE", "iter_002/eval_*", "iter_002/finetune.json", "metrics.jsonl"], "fine-tuning comes next"),
        (["iter_002/DONE", "iter_002/eval_*"], "evaluating comes next"),
        (["iter_002/DONE"], "all of its stages are on disk"),
        (["iter_*"], "Where it stands no evaluation yet"),
        (["iter_00[12]"], "the base model is evaluated; iteration 1 of 2 comes next"),
        (["iter_002/filter.json"], "2 – 8 4 4 – – –"),  # the draws are counted before they are filtered
        (["config.json"], "config.json is missing or empty"),
        (["problems_dev.jsonl", "metrics.jsonl", "iter_000", "iter_001/eval_dev.json"], "done: 2 of 2 iterations"),
        (["[!c]*"], "Figure 1 (accuracy by class) comes with the first evaluation."),
    ],
)
def test_a_run_of_which_a_part_is_missing(tmp_path, missing, standing):
    remove(make_run(tmp_path), *missing)
    assert standing in shown(page_of(tmp_path))


def test_an_iteration_that_kept_nothing(tmp_path):
    """A run stops there; its samples are on disk, and a filter.json may be."""
    remove(make_run(tmp_path, iterations=1), "iter_001")
    add_training(tmp_path / "iter_001", 1, sampled=0, rationalized=0)
    remove(tmp_path, "iter_001/finetune.json")
    words = shown(page_of(tmp_path))
    assert "kept nothing, so there is nothing to fine-tune" in words and "No iteration has kept examples yet." in words
    remove(tmp_path, "iter_001/filter.json", "iter_001/kept.jsonl")
    assert "no completion reached a right answer, so there is nothing to keep" in shown(page_of(tmp_path))


def test_the_evaluated_split_is_the_configs(tmp_path):
    config = make_run(tmp_path) / "config.json"
    put(config, json.loads(config.read_text()) | {"evaluation": {"split": "test"}})
    for path in [*tmp_path.glob("*_dev.jsonl"), *tmp_path.glob("iter_*/*_dev.json*")]:
        path.rename(path.with_name(path.name.replace("dev", "test")))
    text = page_of(tmp_path)
    assert "selected on this same split (test)" in shown(text) and [
        len(rows) for rows in collections_of(text)["evaluation"]["draws"].values()
    ] == [4, 4, 4]


def test_a_class_of_no_problems_and_an_accuracy_without_interval(tmp_path):
    path = make_run(tmp_path) / "iter_001" / "eval_dev.json"
    values = json.loads(path.read_text())
    values["by_category"]["9 digits"] = {"n": 0, "accuracy": None, "ci95": None}
    del values["ci95"], values["mean_of_categories"]
    put(path, values)
    run = load.read_run(tmp_path)
    assert run.classes == (*CLASSES, "9 digits") and "9 digits" not in series.accuracy_series(run)
    assert [p.accuracy for p in series.mean_series(run)] == [0.25, 0.5, 0.75]
    assert "1 4 50.0 % 50.0 %" in shown(page_of(tmp_path))


def test_a_base_that_is_not_beaten_and_counts_of_another_run(tmp_path):
    put(make_run(tmp_path, iterations=1) / "iter_001" / "filter.json", {"samples": 9})
    add_evaluation(tmp_path / "iter_000", 0, "rrrr")
    words = shown(page_of(tmp_path))
    assert "Accuracy base 100.0 % (the best so far)" in words
    assert "Iteration 1: filter.json counts 9 draws, samples.jsonl holds 8" in words


def test_hostile_text_is_only_ever_text(tmp_path):
    """Whatever a run says, in any field that is shown, the page has the elements of a harmless run's page."""
    make_run(tmp_path / "plain")
    config = tmp_path / "plain" / "config.json"
    config.write_text(config.read_text().replace("arithmetic", "no task of the paper's"))
    make_run(tmp_path / "hostile")
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'"
    evil = json.dumps(evil + "{{ 7 * 7 }}$x^$\u202egnp\u200f\x00\x1b&amp;\ud800")[1:-1]
    for path in (tmp_path / "hostile").rglob("*.json*"):
        text = path.read_text(encoding="utf-8")
        for word in ("1 digit", "steps of 1", "1 + 1", "arithmetic", "kept 0", "pretrain", 'train-0"'):
            text = text.replace(word, evil + word[-1:])
        path.write_text(text.replace('"verdict": "unparsable"', f'"verdict": "{evil}"'), encoding="utf-8")
    plain, hostile = (page_of(tmp_path / name) for name in ("plain", "hostile"))
    for text in ("alert(1)</script>", "<script>alert", "<img", "\u202e", "\u200f", "\x00", "\x1b", "\ud800"):
        assert text not in hostile
    tags = [re.findall(r"</?[a-zA-Z]+", text) for text in (plain, hostile)]
    assert tags[0] == tags[1] and len(tags[0]) > 100
    assert "alert(1)" in shown(hostile) and "{{ 7 * 7 }}$x^$⟨U+202E⟩gnp⟨U+200F⟩␀␛&amp;⟨U+D800⟩" in shown(hostile)
    evaluated = collections_of(hostile)["evaluation"]["draws"][1]
    assert evaluated[1][-1].startswith("</script><script>alert(1)")


def test_several_runs_side_by_side(tmp_path):
    first, second = make_run(tmp_path / "first"), make_run(tmp_path / "second", iterations=1)
    path = report.write([first, second])
    assert path == first / "report.html" and not (second / "report.html").exists()
    words = shown(text := path.read_text(encoding="utf-8"))
    for part in ("2 STaR runs side by side", "first 25.0 → 75.0 %", "second 25.0 → 50.0 %"):
        assert part in words
    assert "first done: 2 of 2 iterations 25.0 % 75.0 % 6.2 % to 93.8 % 2 75.0 % 5 min 30 s" in words
    # Right are problems 1, 2, 3 in the first run's best iteration, 1 and 3 in the second's.
    assert "second 4 2 1 0 -25.0 points p = 1" in words
    assert re.findall(r'class="differs"><th scope="row"><bdi>([^<]*)', text) == ["star.iterations"] * 2
    assert [len(collections_of(text, run)["evaluation"]["draws"]) for run in (0, 1)] == [3, 2]
    words = shown(page_of(make_run(tmp_path / "other" / "first"), first))
    assert "first (1)" in words and "first (2)" in words


def test_the_pick_of_kept_examples_is_seeded_and_balanced(tmp_path):
    put(make_run(tmp_path) / "problems_train.jsonl", [problem(i, "train", place=int(i == 7)) for i in range(100)])
    kept = [Example(f"train-{i}", "p", f"c {i}", 1, "sampled" if i % 10 else "rationalized") for i in range(100)]
    put(tmp_path / "iter_001" / "kept.jsonl", kept)
    run = load.read_run(tmp_path)
    number, total, picks = texts.kept_picks(run)[0]
    assert (number, total, len(picks)) == (1, 100, texts.EXAMPLES_SHOWN)
    assert picks == texts.kept_picks(run)[0][2]
    groups = [(pick.label, pick.example.source) for pick in picks]
    assert groups.count(("2 digits", "sampled")) == 1  # the only one there is
    assert groups.count(("1 digit", "rationalized")) in (5, 6) and groups.count(("1 digit", "sampled")) in (5, 6)


def test_duration_and_count():
    seconds = {None: "–", 7.25: "7.2 s", 59.97: "1 min 0 s", 85.2: "1 min 25 s", 3599.6: "1 h 0 min", 3725: "1 h 2 min"}
    assert {value: words.duration(value) for value in seconds} == seconds
    numbers = {None: "–", 12000: "12,000", 0.000123: "0.000123", 0.0: "0"}
    assert {value: words.count(value) for value in numbers} == numbers


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("iter_001/samples.jsonl", b'{"problem_id": "x"', "Expecting"),
        ("iter_001/samples.jsonl", b'{"text": "\xff"}', "not UTF-8"),
        ("iter_001/eval_dev.jsonl", b'{"problem_id": "x"}', "key 'answer' is missing"),
        ("iter_001/eval_dev.jsonl", b"[]", "not a JSON object"),
        ("iter_001/kept.jsonl", b"nonsense", "Expecting value"),
        ("problems_dev.jsonl", b'{"id": "x", "question": 5, "answer": "y"}', "'question' should be text, is 5"),
        ("config.json", b"{", "invalid JSON"),
        ("config.json", b"[1]", "not a JSON object"),
        ("iter_001/eval_dev.json", b'{"accuracy": 55}', "'accuracy' should be a number in 0..1, is 55"),
        ("iter_001/eval_dev.json", b'{"accuracy": 0.5, "ci95": [0.5]}', "'ci95' should be [low, high]"),
        ("iter_001/eval_dev.json", b'{"by_category": {"a": 3}}', "should be an object"),
        ("iter_001/filter.json", b'{"kept_by_category": []}', "'kept_by_category' should be an object"),
    ],
)
def test_a_broken_file_is_named_and_in_a_long_one_the_line(tmp_path, name, content, reason):
    path = make_run(tmp_path) / name
    before = path.read_bytes() if path.suffix == ".jsonl" else b""
    path.write_bytes(before + content + b"\n")
    place = f":{len(before.splitlines()) + 1}" if before else ""
    with pytest.raises(InputError) as caught:
        report.write(tmp_path)
    assert str(caught.value).startswith(f"{path}{place}:") and reason in str(caught.value)
    assert not (tmp_path / "report.html").exists()


def test_the_page_replaces_the_old_one_and_leaves_nothing_aside(tmp_path):
    make_run(tmp_path)
    (tmp_path / "report.html").write_text("old", encoding="utf-8")
    path = report.write(tmp_path)
    assert path == tmp_path / "report.html" and path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not [other for other in tmp_path.iterdir() if "tmp" in other.name]
    with pytest.raises(InputError, match="cannot be written"):
        report.write(tmp_path, tmp_path / "config.json" / "report.html")


def test_command_line(tmp_path):
    arguments = (f"--workdir={make_run(tmp_path / 'run')}", f"--output={tmp_path / 'out.html'}")
    done = python("-m", "star_jax.report", *arguments)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.strip() == str(tmp_path / "out.html")
    assert "--workdir" in python("-m", "star_jax.report", "--help").stdout


MISTAKES = {
    "": "--workdir",
    "--workdir=absent": "there is no such directory",
    "--workdir=tests": "neither config.json nor iter_000",
    "--workdir=tests --nonsense": "--nonsense",
}


@pytest.mark.parametrize(("arguments", "reason"), MISTAKES.items())
def test_command_line_mistakes_take_one_line(arguments, reason):
    is_refused_in_a_line("star_jax.report", arguments, reason)


def test_nothing_heavy_is_imported():
    """A report must open without JAX: it is written beside a training job, or on a laptop."""
    heavy = "{'jax', 'tensorflow', 'seqio', 'star_jax.runs.run_directory', 'star_jax.config'}"
    done = python("-c", f"import sys, star_jax.report; print(*{heavy} & sys.modules.keys())")
    assert done.returncode == 0 and done.stdout.strip() == ""
