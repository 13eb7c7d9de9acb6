"""The loop teaches a tiny model something new, on a user's own file: multiple choice with shuffled choices.

The task is to learn where 24 animals live. The base, pretrained here, can justify any choice it gets as a hint, and
its pretraining contains the homes of the first 12 animals only.
"""

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from tokenizers import ByteLevelBPETokenizer

from star_jax import config, tasks
from star_jax.algorithms import star
from star_jax.distributed import sharding
from star_jax.models import families
from star_jax.records import Completion, Example, Problem, read_jsonl
from star_jax.tokenizers import JsonTokenizer
from star_jax.training import fine_tune, packing
from star_jax.weights import checkpoint, placement

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]

ANIMALS = (
    *("dog", "cat", "cow", "horse", "goat", "hen", "duck", "fox", "wolf", "bear", "deer", "mole"),
    *("otter", "seal", "whale", "crab", "eagle", "owl", "snake", "frog", "lion", "camel", "bee", "ant"),
)
SHOWN = ANIMALS[:12]
HOMES = ("farm", "forest", "water", "desert", "sky")
HOME = {animal: HOMES[i % 5] for i, animal in enumerate(ANIMALS)}
PEOPLE = ("child", "girl", "boy", "man", "woman", "guest", "friend", "nurse", "baker", "pilot")


def row(rng: random.Random, name: str, animals: Sequence[str] = ANIMALS) -> dict:
    animal = rng.choice(animals)
    others = rng.sample([home for home in HOMES if home != HOME[animal]], 3)
    choices = rng.sample([HOME[animal], *others], 4)
    question = f"A {rng.choice(PEOPLE)} and a {rng.choice(PEOPLE)} look for a {animal} . Where is the {animal} ?"
    kind = "shown" if animal in SHOWN else "new"
    return {"id": name, "question": question, "choices": choices, "answer": HOME[animal], "category": kind}


def animal_of(problem: Problem) -> str:
    return problem.question.split()[-2]


def rationale(problem: Problem, home: str) -> str:
    letter = "abcd"[problem.choices.index(home)]
    return f" A {animal_of(problem)} lives in the {home}. Therefore, the answer is {home} ({letter})."


def transcript(task: tasks.Task, rng: random.Random, name: str) -> Example:
    """Half with a hint, any animal and any of the homes; the other half without, of SHOWN animals and their homes."""
    hint = rng.random() < 0.5
    problem = task.make_problem(row(rng, name, ANIMALS if hint else SHOWN), name)
    home = rng.choice(problem.choices) if hint else HOME[animal_of(problem)]
    problem = dataclasses.replace(problem, answer="abcd"[problem.choices.index(home)])
    return Example(name, task.render(problem, hint), rationale(problem, home), iteration=0, source="pretraining")


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> config.Config:
    """The run's config; its files and its base exist."""
    folder = tmp_path_factory.mktemp("animals")
    rng = random.Random(0)
    for split, size in (("train", 600), ("dev", 200)):
        rows = [json.dumps(row(rng, f"{split}{i}")) for i in range(size)]
        (folder / f"{split}.jsonl").write_text("\n".join(rows))
    values = config.default("jsonl")
    values.task.update(dict(data_dir=str(folder), train="train.jsonl", dev="dev.jsonl", max_tokens=24))
    values.base.path, values.mesh.data, values.tensorboard = str(folder / "base"), 1, False
    values.optimizer.update(dict(learning_rate=2e-3, warmup_steps=10, decay="linear", end_fraction=0.1, b2=0.98))
    values.train.update(dict(batch_rows=8, row_tokens=128))
    values.star.update(dict(iterations=2, steps=240, step_growth=1.0))
    values.sampling.update(dict(slots=64))
    typed = config.from_dict(values)
    save_base(typed, folder)
    return typed


def save_base(typed: config.Config, folder: Path) -> None:
    task, rng = typed.make_task(), random.Random(1)
    examples = [transcript(task, rng, f"base{i}") for i in range(2400)]
    library = ByteLevelBPETokenizer()
    texts = (e.prompt + e.completion for e in examples)
    library.train_from_iterator(texts, vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    words = JsonTokenizer(library.to_str(), end_ids=(library.token_to_id("<|endoftext|>"),))
    sizes = config.ModelConfig(
        n_layers=2, d_model=64, n_heads=4, d_mlp=256, rotary_dim=16, vocab_size=words.vocab_size, max_positions=256,
        architecture="gptj", scan_unroll=2,
    )  # fmt: skip
    model, mesh = families.build(sizes), sharding.make_mesh(typed.mesh)
    with sharding.use(mesh):
        params, _ = fine_tune.fine_tune(
            model,
            placement.init_params(model, mesh, seed=0),
            packing.pack(examples, words, typed.train.row_tokens, seed=0, name="base"),
            fine_tune.FineTuneSpec(
                steps=500,
                seed=0,
                train=typed.train,
                optimizer=dataclasses.replace(typed.optimizer, warmup_steps=40),
                peak_learning_rate=4e-3,
            ),
            mesh,
        )
    checkpoint.save_model(folder / "base", model, params, words)


def test_the_loop_teaches_what_pretraining_left_out(settings, tmp_path):
    star.run(settings, tmp_path)
    results = [json.loads((tmp_path / f"iter_{n:03d}" / "eval_dev.json").read_text()) for n in range(3)]
    new = [result["by_category"]["new"]["accuracy"] for result in results]
    assert new[0] < 0.4, "the base already knows what its pretraining left out"
    assert new[2] > new[0] + 0.3 and results[2]["accuracy"] > results[0]["accuracy"] + 0.2
    for n in (1, 2):
        kept = list(read_jsonl(Example, tmp_path / f"iter_{n:03d}" / "kept.jsonl"))
        hinted = list(read_jsonl(Completion, tmp_path / f"iter_{n:03d}" / "rationalizations.jsonl"))
        assert {"sampled", "rationalized"} == {e.source for e in kept}
        assert not any("(CORRECT)" in e.prompt or "(CORRECT)" in e.completion for e in kept)
        assert sum(h.verdict == "right" for h in hinted) == sum(e.source == "rationalized" for e in kept)
