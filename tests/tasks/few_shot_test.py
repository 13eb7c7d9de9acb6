"""star_jax.tasks.few_shot, and the prompt files of the package."""

import itertools
import re

import pytest

from star_jax import tasks
from star_jax.errors import InputError
from star_jax.records import Problem
from star_jax.tasks import few_shot
from star_jax.tasks.arithmetic import make_problem
from star_jax.tasks.few_shot import PACKAGED, PromptSet
from tests.support.tables import every_row

TASK = tasks.make("arithmetic")
DIRECT = tasks.make("arithmetic", direct=True)
PROBLEM = make_problem("p", 34, 56, digits=2)
KINDS = [("arithmetic.txt", TASK, False), ("arithmetic_hint.txt", TASK, True), ("arithmetic_direct.txt", DIRECT, False)]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "t.txt").write_text("one\n1\n\ntwo\n2\n\n\n\nthree\n3\n", encoding="utf-8")
    (tmp_path / "t_hint.txt").write_text("\n\none (h)\n1\n\ntwo (h)\n2", encoding="utf-8")
    (tmp_path / "t_direct.txt").write_text("one\n\ntwo\n\nthree", encoding="utf-8")
    return str(tmp_path)


@every_row(
    ("shots", "direct", "plain", "hinted"),
    [
        (0, False, "", ""),
        (0, True, "", ""),
        (1, False, "one\n1\n\n", "one (h)\n1\n\n"),
        (2, False, "one\n1\n\ntwo\n2\n\n", "one (h)\n1\n\ntwo (h)\n2\n\n"),
        (3, True, "one\n\ntwo\n\nthree\n\n", ""),
    ],
)
def test_the_first_shots_each_with_a_blank_line_behind(folder, shots, direct, plain, hinted):
    assert few_shot.load("t", shots, direct, folder) == PromptSet(plain, hinted)


@every_row(
    ("name", "shots", "direct", "reason"),
    [
        ("t", 3, False, "t_hint.txt holds 2 shots, 3 are asked for; lower --config.prompt.shots"),
        ("t", 4, True, "t_direct.txt holds 3 shots, 4 are asked for"),
        ("absent", 1, False, "absent.txt: cannot read the few-shot prompts"),
    ],
)
def test_missing_shots_are_bad_input(folder, name, shots, direct, reason):
    with pytest.raises(InputError, match=re.escape(reason)):
        few_shot.load(name, shots, direct, folder)


def test_no_shots_need_no_file():
    assert few_shot.load("no such task", 0, direct=False) == PromptSet()


def test_a_file_that_is_not_text_is_bad_input(tmp_path):
    (tmp_path / "t_direct.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot read the few-shot prompts"):
        few_shot.load("t", 1, direct=True, directory=str(tmp_path))


def test_a_hint_changes_the_shots_and_the_problem():
    prompts = PromptSet("plain\n\n", "hinted\n\n")
    plain, hinted = prompts.prompt(TASK, PROBLEM), prompts.prompt(TASK, PROBLEM, hint=True)
    assert (plain.prefix, plain.body) == ("plain\n\n", "Input:\n3 4 + 5 6\nTarget:\n")
    assert (hinted.prefix, hinted.body) == ("hinted\n\n", "Input:\n3 4 + 5 6\nTarget: 9 0\n")
    assert prompts.without_shots().prompt(TASK, PROBLEM).text == plain.body


def test_the_fingerprint_tells_any_two_sets_apart():
    sets = [PromptSet(), PromptSet("a"), PromptSet("", "a"), PromptSet("a", "b"), PromptSet("ab"), PromptSet("b", "a")]
    prints = [s.fingerprint for s in sets]
    assert len(set(prints)) == len(sets)
    assert all(re.fullmatch("[0-9a-f]{12}", p) for p in prints)
    assert prints == [PromptSet(s.plain, s.hinted).fingerprint for s in sets]


def packaged(name):
    """[(shot, its two operands)] of a packaged arithmetic file."""
    shots = few_shot.read_shots(PACKAGED / name)
    sums = [shot.split("\n")[1].replace(" ", "").split("+") for shot in shots]
    return [(shot, (int(a), int(b))) for shot, (a, b) in zip(shots, sums, strict=True)]


@every_row(("name", "task", "hint"), KINDS)
def test_packaged_shots_are_what_the_task_writes(name, task, hint):
    for shot, (a, b) in packaged(name):
        problem = make_problem("shot", a, b, digits=len(str(a)))
        assert shot == task.render(problem, hint) + task.reference(problem)


@every_row("name", [name for name, _, _ in KINDS])
def test_packaged_shots_are_two_of_each_length_and_mixed(name):
    lengths = [len(str(a)) for _, (a, _) in packaged(name)]
    assert sorted(lengths) == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert sorted(lengths[:5]) == [1, 2, 3, 4, 5]  # five shots show every length
    assert all(first != second for first, second in itertools.pairwise(lengths))


@every_row("name", [name for name, _, _ in KINDS])
def test_packaged_shots_hold_no_dev_or_test_pair(name):
    held_out = {pair for digits in range(1, 6) for split in TASK.held_out(digits).values() for pair in split}
    assert not held_out & {pair for _, pair in packaged(name)}


@every_row("name", [name for name, _, _ in KINDS])
def test_packaged_files_have_one_blank_line_between_shots(name):
    text = (PACKAGED / name).read_text(encoding="utf-8")
    assert text == "\n\n".join(shot for shot, _ in packaged(name)) + "\n"


SHOTS = ["Q: a?\nA: One.\n#### 1", "Q: b?\nA: Two.\nMore.\n#### 2"]


def load_own(tmp_path, content, shots=2, **options):
    for name in ("jsonl.txt", "jsonl_hint.txt"):
        (tmp_path / name).write_bytes(content)
    return few_shot.load("jsonl", shots, direct=False, directory=str(tmp_path), task=tasks.make("jsonl", **options))


@every_row(
    "content",
    [
        "\n\n".join(SHOTS),
        "\ufeff" + "\n\n".join(SHOTS),
        "\n \n".join(SHOTS) + "\n\t\n",
        "\n\u3000\n \n\n".join(SHOTS),
        "\r\n \r\n".join(SHOTS),
    ],
)
def test_marks_and_blanks_around_shots_change_no_prompt(tmp_path, content):
    assert load_own(tmp_path, content.encode()).plain == "".join(shot + "\n\n" for shot in SHOTS)


@every_row(
    ("content", "line", "reason"),
    [
        ("Q: a?\nA: One.\n\n#### 1\n\n" + SHOTS[1], 1, "has no answer"),
        (SHOTS[0] + "\n\nQ: b\n \nor c?\nA: #### 1", 5, "is not a problem and its completion"),
        ("Q: a?\nA:\n\n" + SHOTS[1], 1, "is not a problem and its completion"),
        (SHOTS[0] + "\n" + SHOTS[1] + "\n\n" + SHOTS[1], 1, "a stop of completions"),
        ("\n\nQ: a?\nB: One.\n\n" + SHOTS[1], 3, "is not a problem and its completion"),
    ],
)
def test_a_shot_that_is_not_a_problem_and_its_completion_is_refused(tmp_path, content, line, reason):
    with pytest.raises(InputError) as caught:
        load_own(tmp_path, content.encode())
    assert str(caught.value).startswith(f"{tmp_path / 'jsonl.txt'}:{line}: ") and reason in str(caught.value)


@every_row(
    ("name", "shots", "fingerprints"),
    [
        ("arithmetic", 10, ["c426f89a5911", "b42671b3cd47"]),
        ("commonsense_qa", 7, ["0136cdeae9cf", "841056ebc4a6"]),
        ("gsm8k", 8, ["6a8a5406808c", "1530255f8787"]),
    ],
)
def test_the_packaged_shots_pass_the_check_and_keep_their_fingerprints(name, shots, fingerprints):
    loaded = [few_shot.load(name, shots, direct, task=tasks.make(name, direct=direct)) for direct in (False, True)]
    assert [prompts.fingerprint for prompts in loaded] == fingerprints


@every_row(
    ("name", "line"),
    [
        ("commonsense_qa", r"Hint: (Therefore, the answer is .+ \([a-e]\)\.)"),
        ("gsm8k", r"Hint: (#### [0-9]+)"),
    ],
)
def test_with_a_hint_line_each_shot_states_its_answer_before_its_completion(name, line):
    """The hint is how the completion ends, and there is no hint anywhere else."""
    task = tasks.make(name, hint_line=True)
    prompts = few_shot.load(name, 3, direct=False, task=task)
    for shot, plain in zip(prompts.hinted.strip().split("\n\n"), prompts.plain.strip().split("\n\n"), strict=True):
        problem, completion = task.split_turns(shot)
        hint = re.fullmatch(line, problem.rpartition("\n")[2])
        assert hint and completion.endswith(hint[1]) and completion == task.split_turns(plain)[1]
        assert shot.replace(f"\n{hint[0]}", "") == plain
        assert task.parse(completion) is not None and task.parse(f" {hint[0]}{completion}") is None


def test_a_hint_share_is_the_start_of_the_reference_rationale():
    solution = "She packs 4 boxes.\n4 * 5 = <<4*5=20>>20.\n\n20 + 1 = <<20+1=21>>21.\n#### 21"
    problem = Problem("p", "How many?", "21", rationale=solution)
    lines = ["She packs 4 boxes.", "4 * 5 = <<4*5=20>>20.", "20 + 1 = <<20+1=21>>21."]
    for share, count in ((0.01, 1), (0.33, 1), (0.34, 2), (0.5, 2), (0.67, 3), (1.0, 3)):
        task = tasks.make("gsm8k", hint_share=share)
        assert task.render(problem, hint=True) == f"Q: How many?\nHint: {' '.join(lines[:count])}\nA:", share
        assert task.render(problem) == "Q: How many?\nA:"
        assert task.parse(" Hint: She packs.\n#### 21") is None and task.parse(" So.\n#### 21") == "21"
        prompts = few_shot.load("gsm8k", 4, direct=False, task=task)
        for shot, plain in zip(prompts.hinted.strip().split("\n\n"), prompts.plain.strip().split("\n\n"), strict=True):
            hint = shot.split("\nHint: ")[1].split("\nA:")[0]
            steps = [line.strip() for line in task.split_turns(plain)[1].split("\n") if "####" not in line]
            assert hint == " ".join(steps[: -(-len(steps) * round(100 * share) // 100)]) and "####" not in hint
            assert shot.replace(f"\nHint: {hint}", "") == plain
    with pytest.raises(InputError, match=r"task.hint_share: problem 'q' has no reference rationale"):
        tasks.make("gsm8k", hint_share=0.5).render(Problem("q", "How many?", "21"), hint=True)
    with pytest.raises(InputError, match=r"hint_share must be between 0 and 1"):
        tasks.make("gsm8k", hint_share=1.5)
