"""star_jax.preflight.lengths: the lengths that are counted with are those of the run."""

import json
import runpy
from pathlib import Path

import pytest

from star_jax import config, tokenizers
from star_jax.algorithms import setup
from star_jax.errors import InputError
from star_jax.preflight import lengths
from star_jax.sampling import sampler
from star_jax.tasks import few_shot
from tests.support.tables import every_row

CONFIGS = Path(__file__).parents[2] / "configs"


def typed(name: str, **changes) -> config.Config:
    """A config of configs/; `group__option=value` changes an option."""
    values = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    for key, value in changes.items():
        group, option = key.split("__")
        values[group][option] = value
    return config.from_dict(values)


@every_row(
    ("name", "changes"),
    [
        ("jsonl_example", {}),
        ("jsonl_example", dict(prompt__shots=0)),
        ("jsonl_example", dict(star__rationalize="none")),
        ("jsonl_example", dict(star__direct=True, sampling__max_new_tokens=7)),
        ("arithmetic", dict(task__train_per_length=9, task__held_out_per_length=9)),
    ],
)
def test_measured_lengths_are_those_of_the_run(tmp_path, name, changes):
    settings = typed(name, **changes, mesh__data=1)
    run = setup.open_run(settings, tmp_path / "run")
    run.run_dir.close()
    prompts = [
        run.first_prompts(run.train_problems[0], hinted) for hinted in (False, True)[: 1 + settings.star.rationalizes]
    ]
    size, origin = lengths.of_run(settings, Path())
    new = settings.sampling.max_new_tokens or settings.make_task().max_new_tokens
    body = sampler.round_up(run.longest_body, 8)
    assert size.new == new and size.body == body
    if not settings.star.direct:
        assert size.prefix == sampler.round_up(max(len(prompt.prefix_ids) for prompt in prompts), 16)
    assert f"prompt.shots={settings.prompt.shots}" in origin and f"{run.longest_body} of a problem" in origin


def test_the_demo_is_counted_with_its_own_lengths():
    """No shots, two numbers of five digits, and the 96 new tokens of its config."""
    size, origin = lengths.of_run(typed("arithmetic"), Path())
    assert (size.prefix, size.body, size.new) == (0, 24, 96) and size.cached == 119
    assert origin == (
        "0 of shots (prompt.shots=0), 22 of a problem (the longest of 50,810), 96 new (sampling.max_new_tokens)"
    )


def test_flags_take_precedence_and_are_named():
    size, origin = lengths.of_run(typed("jsonl_example"), Path(), prefix_tokens=100, body_tokens=50)
    assert (size.prefix, size.body) == (112, 56)
    assert "100 of shots (--prefix_tokens), 50 of a problem (--body_tokens)" in origin
    with pytest.raises(InputError, match=r"they are 632 together; the model has 512 positions; lower prompt\.shots"):
        lengths.of_run(typed("jsonl_example"), Path(), prefix_tokens=450)


def test_data_that_are_missing_are_assumed_and_data_that_are_wrong_are_refused(tmp_path):
    changes = dict(task__data_dir=str(tmp_path), task__held_out=0, task__dev="dev.jsonl")
    settings = typed("jsonl_example", **changes)
    size, origin = lengths.of_run(settings, Path())
    assert size.body == lengths.ASSUMED_BODY and f"{tmp_path}/questions.jsonl: cannot be read" in origin
    # A tokenizer may take the last line breaks of the shots into the problem's tokens.
    assert 0 <= size.prefix - lengths.of_run(typed("jsonl_example"), Path())[0].prefix <= 16
    (tmp_path / "dev.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": 2}) + "\n")
    (tmp_path / "questions.jsonl").write_text(json.dumps({"question": "1 + 1?"}) + "\n")
    with pytest.raises(InputError, match=r"questions\.jsonl:1: key 'answer' is missing"):
        lengths.of_run(settings, Path())


def test_without_a_tokenizer_lengths_are_estimated_from_the_texts():
    """Shots and problems are longer in bytes than in the tokens of any tokenizer of words."""
    (size, origin), (in_bytes, _) = (lengths.of_run(typed("jsonl_example"), base) for base in (None, Path()))
    assert origin.count("estimated") == 2 and in_bytes.prefix / 5 < size.prefix < in_bytes.prefix
    assert in_bytes.body / 5 < size.body < in_bytes.body


def test_an_estimate_is_rather_too_high_than_too_low(shared_dir):
    """The shots of all tasks in GPT-2's tokens."""
    tokenizer = tokenizers.load_directory(shared_dir / "data" / "gpt2")
    ratios = {}
    for path in sorted(few_shot.PACKAGED.glob("*.txt")):
        text = "\n\n".join(few_shot.read_shots(path))
        ratios[path.name] = lengths.estimated_tokens(text) / len(tokenizer.encode(text))
    assert len(ratios) >= 6 and min(ratios.values()) >= 1 and max(ratios.values()) < 1.5, ratios
