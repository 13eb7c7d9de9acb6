"""star_jax.training.pretrain: a base for a task of one's own, from the texts that the task supplies."""

import dataclasses
import itertools
import random
from collections.abc import Sequence

import pytest

from star_jax import tasks
from star_jax.algorithms import star
from star_jax.errors import InputError
from star_jax.records import Example, Problem
from star_jax.runs.run_directory import RunDirectory
from star_jax.tasks.base import Task, transcript
from star_jax.training import pretrain
from tests.support.runs import small_config

LETTERS = "abcdefgh"


@dataclasses.dataclass(frozen=True)
class NextLetter(Task):
    """Which letter follows?"""

    stop = ("\n",)
    symbols = (*LETTERS, ">", "\n", "Q", "A")
    max_new_tokens = 4

    def problems(self, split: str) -> list[Problem]:
        return [Problem(f"{split}-{a}", a, b) for a, b in itertools.pairwise(LETTERS)]

    def render(self, problem: Problem, hint: bool = False) -> str:
        return f"Q {problem.question}{f' {problem.answer}' if hint else ''}\nA\n"

    def split_turns(self, text: str) -> tuple[str, str]:
        problem, _, completion = text.partition("\nA\n")
        return problem, completion

    def parse(self, text: str) -> str | None:
        return text.strip().removeprefix("> ") or None

    def transcripts(self, gold: Sequence[float], count: int, seed: int) -> list[Example]:
        rng = random.Random(seed)
        chosen = rng.choices(self.problems("train"), k=count)
        return [transcript(self, p, f"> {p.answer}", hint=rng.random() > gold[0]) for p in chosen]


class Silent(NextLetter):
    transcripts = Task.transcripts


@pytest.fixture
def letters(monkeypatch):
    """Changes of `small_config` for a run on NextLetter."""
    monkeypatch.setitem(tasks.TASKS, "letters", f"{__name__}:NextLetter")
    monkeypatch.setitem(tasks.TASKS, "silent", f"{__name__}:Silent")
    stages = (dict(steps=60, learning_rate=1e-2, gold=(0.5,)),)
    return dict(task={"name": "letters"}, base__stages=stages, base__examples=100, star__iterations=0)


def test_a_base_solves_what_the_task_s_transcripts_show(letters, tmp_path):
    star.run(small_config(**letters), tmp_path)
    result = RunDirectory(tmp_path).read_json(tmp_path / "iter_000" / "eval_dev.json")
    assert (result["n"], result["accuracy"]) == (7, 1.0)


def test_a_base_is_shown_each_transcript_after_the_shots_of_the_run(letters, tmp_path, monkeypatch):
    (tmp_path / "letters.txt").write_text("Q a\nA\n> b\n\nQ b\nA\n> c\n")
    (tmp_path / "letters_hint.txt").write_text("Q a b\nA\n> b\n\nQ b c\nA\n> c\n")
    packed: list[Example] = []

    def pack(examples, *args, **kwargs):
        packed.extend(examples)
        raise InputError("packed")

    monkeypatch.setattr(pretrain.packing, "pack", pack)
    with pytest.raises(InputError, match="packed"):
        star.run(small_config(**letters, prompt__shots=2, prompt__directory=str(tmp_path)), tmp_path / "run")
    assert {example.hint_kept for example in packed} == {True, False}
    for example in packed:
        letter = example.completion[-1]
        shots = f"Q a{' b' * example.hint_kept}\nA\n> b\n\nQ b{' c' * example.hint_kept}\nA\n> c\n\n"
        body = f"Q {LETTERS[LETTERS.index(letter) - 1]}{f' {letter}' * example.hint_kept}\nA\n"
        assert (example.prompt, example.prefix_length) == (shots + body, len(shots))


def test_a_task_without_transcripts_needs_a_base(letters, tmp_path):
    for name in ("silent", "gsm8k"):
        with pytest.raises(InputError, match=f"task '{name}' has no transcripts to pretrain a base on; give base.path"):
            small_config(**letters | {"task": {"name": name}})
    values = small_config(**letters | {"task": {"name": "silent"}, "base__path": "somewhere"})
    assert values.make_task().max_new_tokens == 4
