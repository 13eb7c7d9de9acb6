"""python -m star_jax.evaluate on a finished run whose data file changes: nothing is scored across contents."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from star_jax import evaluate, report
from star_jax.errors import InputError
from star_jax.evaluation import stored_run
from star_jax.records import write_lines
from star_jax.runs import atomic_files
from star_jax.runs.layout import model_directory
from star_jax.runs.run_directory import RunDirectory
from star_jax.sampling.sampler import Sampler
from star_jax.weights import checkpoint
from tests.support.stored_runs import make_run
from tests.support.tables import every_row


def line(name: str, answer: str, question: str = "Which?", **values) -> dict:
    return {
        "id": name,
        "question": f"{question} ({name})",
        "choices": ["tea", "ink", "oil"],
        "answer": answer,
        **values,
    }


LINES = [line("p0", "b"), line("p1", "b"), line("p2", "a"), line("p3", "b"), line("p4", "b")]
NUMBERED = [{key: value for key, value in values.items() if key != "id"} for values in LINES]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run whose base answers (a) and whose iteration 1 answers (b); the dev file next to it is to be written."""
    folder = tmp_path_factory.mktemp("made")
    data = str(folder / "dev.jsonl")
    return make_run(folder / "run", "jsonl", [" (a).\n\n", " (b).\n\n"], train=data, dev=data)


@pytest.fixture
def command(monkeypatch, capsys):
    """command(run, *flags): what evaluate prints; a failing one prints nothing."""

    def call(run: Path, *flags: str) -> str:
        monkeypatch.setattr(sys, "argv", ["evaluate", f"--workdir={run}", *flags])
        try:
            evaluate.main()
        except InputError:
            assert capsys.readouterr().out == ""
            raise
        printed = capsys.readouterr()
        call.notes = printed.err
        return printed.out

    return call


def write(made: Path, lines: list[dict] | None) -> None:
    path = made.parent / "dev.jsonl"
    path.unlink(missing_ok=True)
    if lines is not None:
        path.write_text("".join(json.dumps(values) + "\n" for values in lines))


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def stored_accuracy(run: Path, iteration: int) -> float:
    return json.loads((run / f"iter_{iteration:03d}/eval_dev.json").read_text())["accuracy"]


SAMPLED = ("--iteration=1", "--samples=2", "--temperature=0.5")
CHANGES = {
    "an answer": ([line("p0", "a"), *LINES[1:]], "'p0' has another question, choices or answer now", 0.6),
    "a question": ([*LINES[:4], line("p4", "b", "What?")], "'p4' has another question, choices or answer now", 0.8),
    "a choice": ([*LINES[:4], line("p4", "b", choices=["tea", "ink"])], "'p4' has another question, choices", 0.8),
    "a line more": ([*LINES, line("p5", "c")], "holds 5 completions, but 6 problems", 4 / 6),
    "a line less": (LINES[1:], "'p0' is not among the problems any more", 0.75),
    "other lines": ([line("q", "b"), *LINES[1:]], "'p0' is not among the problems any more", 0.8),
}


@every_row("change", CHANGES)
def test_a_changed_data_file_is_named_and_the_remedy_scores_the_new_one(made, tmp_path, command, change):
    """The second command reads what the first one stored; with --samples too. Deleting the file is the remedy."""
    lines, reason, accuracy = CHANGES[change]
    once = made.parent / "evaluated"
    write(made, LINES)
    if not once.exists():
        shutil.copytree(made, once)
        assert "accuracy   0.8000" in command(once, "--iteration=1") and "majority   0.8000" in command(once, *SAMPLED)
    run = shutil.copytree(once, tmp_path / "run")
    before = contents(run)
    write(made, lines)
    for name, options in (("eval_dev", SAMPLED[:1]), ("eval_dev_2_samples_t0.5", SAMPLED)):
        with pytest.raises(InputError) as caught:
            command(run, *options)
        message = str(caught.value)
        assert message.startswith(f"{run / 'iter_001' / name}.jsonl: ") and "\n" not in message
        assert (reason.replace("5 completions", "10 completions") if "samples" in name else reason) in message
        assert message.endswith(f"or delete {name}.jsonl to sample again")
    assert contents(run) == before
    (run / "iter_001/eval_dev.jsonl").unlink()
    assert f"accuracy   {accuracy:.4f}" in command(run, "--iteration=1")
    assert stored_accuracy(run, 1) == pytest.approx(accuracy)


def test_the_order_of_the_lines_changes_nothing_unless_their_numbers_name_them(made, tmp_path, command):
    run = shutil.copytree(made, tmp_path / "run")
    write(made, LINES)
    first = command(run, "--iteration=1")
    write(made, LINES[::-1])
    before = contents(run)
    assert command(run, "--iteration=1").replace("stored in", "written to") == first
    assert contents(run).keys() == before.keys() and stored_accuracy(run, 1) == 0.8
    run = shutil.copytree(made, tmp_path / "numbered")
    write(made, NUMBERED)
    assert command(run, "--iteration=1").replace("numbered", "run") == first
    write(made, [NUMBERED[2], *NUMBERED[:2], *NUMBERED[3:]])
    with pytest.raises(InputError, match=r"eval_dev.jsonl: .*'dev-1' has another question, choices or answer now"):
        command(run, "--iteration=1")


@every_row(
    ("content", "reason"),
    [(None, "cannot be read (No such file or directory)"), ([], "holds no problems"), ([{"q": 1}], "unknown key 'q'")],
)
def test_a_data_file_that_is_gone_or_broken_is_named(made, tmp_path, command, content, reason):
    run = shutil.copytree(made, tmp_path / "run")
    write(made, LINES)
    command(run, "--iteration=1")
    write(made, content)
    with pytest.raises(InputError) as caught:
        command(run, "--iteration=1")
    assert str(caught.value).startswith(str(made.parent / "dev.jsonl")) and reason in str(caught.value)


def test_the_best_iteration_and_the_report_compare_no_iterations_of_different_contents(made, tmp_path, command):
    """The base was evaluated on problems that it answers; then the data changed, and iteration 1 was evaluated."""
    run = shutil.copytree(made, tmp_path / "run")
    write(made, [line(f"p{i}", "a") for i in range(5)])
    command(run, "--iteration=base")
    assert stored_accuracy(run, 0) == 1.0
    write(made, LINES)
    command(run, "--iteration=1")
    assert json.loads((run / "iter_001/eval_dev.json").read_text())["iteration"] == 1
    assert command(run) == command(run, "--iteration=1")  # the best
    assert command.notes.startswith("iteration 1: ")
    assert report.read_run(run).best == 1


def test_what_is_counted_and_which_model_it_is_of_are_named(made, tmp_path, command):
    """Of several samples: categories are of the majority vote, verdicts of samples. The best may be the base."""
    run = shutil.copytree(made, tmp_path / "run")
    write(made, [line(f"p{i}", "a", category="xy"[i % 2]) for i in range(4)])
    greedy = command(run, "--iteration=base")
    assert command.notes.startswith("the base (iteration 0): 4 dev problems, greedy\n")
    assert "\naccuracy by category:\n  x" in greedy and "\nof 4 problems: 4 right, " in greedy
    sampled = command(run, "--samples=3")
    assert command.notes.startswith(
        "the base (iteration 0), which no iteration beats on dev: 4 dev problems, 3 samples each, temperature 0.7\n"
    )
    assert "\nmajority vote by category:\n  x" in sampled and "\nof 12 samples: " in sampled
    with pytest.raises(InputError, match="--temperature=0 is greedy"):
        command(run, "--samples=3", "--temperature=0")
    write(made, [line("p0", "b")])
    (run / "iter_000/eval_dev.json").unlink()
    command(run, "--iteration=1")
    command(run, "--iteration=best")
    assert command.notes.startswith("iteration 1, the best on dev: 1 dev problems, greedy\n")


def test_right_answers_with_wrong_steps_are_counted_among_the_right_ones(capsys):
    rate = {"n": 4, "accuracy": 0.75, "ci95": [0.3, 0.95]}
    counts = dict(right=3, wrong=1, unparsable=0, truncated=0)
    for wrong_steps, printed in ((2, "3 right (2 of them with wrong steps), 1 wrong"), (0, "3 right, 1 wrong")):
        evaluate._print({**rate, "by_category": {"": rate}, **counts, "right_wrong_steps": wrong_steps})
        assert f"of 4 problems: {printed}, 0 unparsable, 0 truncated\n" in capsys.readouterr().out


def test_temperatures_that_differ_have_files_of_their_own(made, tmp_path, command):
    run = shutil.copytree(made, tmp_path / "run")
    write(made, LINES[:1])
    flags = [("--iteration=1", "--samples=1", f"--temperature={text}") for text in ("0.7", "0.70000001")]
    names = [command(run, *options).split()[-1] for options in flags]
    assert [Path(name).stem for name in names] == ["eval_dev_1_samples_t0.7", "eval_dev_1_samples_t0.70000001"]
    assert [json.loads(Path(name).read_text())["temperature"] for name in names] == [0.7, 0.70000001]


def test_every_category_has_its_line_even_if_its_name_looks_like_another(made, tmp_path, command):
    run = shutil.copytree(made, tmp_path / "run")
    names = ["x", "x ", "x\n", " x", "accuracy", "y"]
    write(made, [line(f"p{i}", "b", category=name) for i, name in enumerate(names)])
    printed = [
        words for text in command(run, "--iteration=1").splitlines() if (words := text.split())[-3:-1] == ["n", "="]
    ]
    assert [words[0] for words in printed if words[-1] == "1"].count("x") == 4
    assert sum(words[-1] == "1" for words in printed) == len(names)


def test_the_runs_own_problems_are_evaluated_from_any_folder(made, tmp_path, command, monkeypatch, capsys):
    """Its data file is gone, and its path is relative to another folder; a split that it lacks is named."""
    run, folder = shutil.copytree(made, tmp_path / "run"), tmp_path / "elsewhere"
    write(made, LINES)
    stored = stored_run.open_iteration(run, "1")
    (run / "problems_dev.jsonl").write_text(write_lines(stored.task.problems("dev")))
    write(made, None)
    values = json.loads((run / "config.json").read_text())
    values["task"].update(train="train.jsonl", dev="dev.jsonl")
    (run / "checksums.json").unlink()
    (run / "config.json").write_text(json.dumps(values))
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert "accuracy   0.8000" in command(run, "--iteration=1")
    with pytest.raises(InputError, match=r"^train\.jsonl: .*the run itself holds the splits dev: --split=dev$"):
        command(run, "--iteration=1", "--split=train")
    assert not list(folder.iterdir())


def test_output_takes_the_results_of_a_run_that_is_not_to_change(made, tmp_path, command, monkeypatch):
    run, results = shutil.copytree(made, tmp_path / "run"), tmp_path / "results"
    write(made, LINES)
    before = contents(run)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != run)
    with pytest.raises(InputError, match=r"run: cannot be written; give --output=DIR"):
        command(run, "--iteration=1")
    printed = command(run, "--iteration=1", f"--output={results}")
    assert contents(run) == before and printed.endswith(f"written to {results}/iter_001/eval_dev.json\n")
    assert stored_accuracy(results, 1) == 0.8


def test_stored_figures_are_not_shown_as_measured(made, tmp_path, monkeypatch, capsys):
    run = shutil.copytree(made, tmp_path / "run")
    write(made, LINES)
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--workdir={run}", "--iteration=1"])
    evaluate.main()
    first, notes = capsys.readouterr()
    assert notes == "iteration 1: 5 dev problems, greedy\n"
    before = contents(run)
    monkeypatch.setattr(RunDirectory, "write_json", lambda *_: pytest.fail("it writes"))
    evaluate.main()
    second, notes = capsys.readouterr()
    assert contents(run) == before and second == first.replace("written to", "stored in")
    assert notes.endswith(f"stored already; delete {run}/iter_001/eval_dev.jsonl to sample again\n")


def test_a_run_that_cannot_be_written_is_refused_before_anything_is_sampled(made, tmp_path, command, monkeypatch):
    def refuse(path, text):
        raise InputError(f"{path}: cannot be written (Read-only file system); fix and rerun")

    run = shutil.copytree(made, tmp_path / "run")
    write(made, LINES)
    monkeypatch.setattr(atomic_files, "append_text", refuse)
    monkeypatch.setattr(Sampler, "stream", lambda *_: pytest.fail("it samples"))
    with pytest.raises(InputError, match=r"eval_dev\.jsonl\.part: cannot be written"):
        command(run, "--iteration=1")


def test_interpolated_weights_are_the_mean_of_both_models(made, tmp_path, command):
    """The model with more weight decides: the base says (a), iteration 1 (b); four of five answers are (b)."""
    shutil.copytree(made, tmp_path / "run")
    run = tmp_path / "run"
    (made.parent / "dev.jsonl").write_text("".join(json.dumps(values) + "\n" for values in LINES))
    for share, accuracy in ((0.3, 0.2), (0.7, 0.8)):
        printed = command(run, "--iteration=1", f"--interpolate={share}")
        assert f"accuracy   {accuracy:.4f}" in printed and f"eval_dev_interpolated_{share}.json" in printed
        assert f"{share} of its weights and {1 - share:g} of the base's" in command.notes
        weights = json.loads((run / f"iter_001/eval_dev_interpolated_{share}.json").read_text())["weights"]
        assert weights.startswith(f"{share} ") and f" + {1 - share:g} " in weights
    assert "accuracy   0.8000" in command(run, "--iteration=1", "--interpolate=1")
    assert not (run / "iter_001/eval_dev_interpolated_1.json").exists()
    with pytest.raises(InputError, match="iteration 0 is the base itself"):
        command(run, "--iteration=base", "--interpolate=0.5")
    report.write(run)  # shows the evaluations that it knows
    stored = stored_run.open_iteration(run, "1", share=0.25)
    own, base = (checkpoint.load_model(model_directory(run, n))[1]["head"]["kernel"] for n in (1, 0))
    mixed = stored._weights[1].rest["head"]["kernel"]
    np.testing.assert_allclose(np.asarray(mixed), 0.25 * np.asarray(own) + 0.75 * np.asarray(base), atol=1e-7)
