"""star_jax.option_values: every path option of every command and of the config expands `~` and refuses a URL."""

import argparse
import dataclasses
import importlib
import os
import re
import sys
from pathlib import Path

import pytest

from star_jax import config, option_values, tasks
from star_jax.cli.config_flags import read_config
from star_jax.cli.parser import Parser
from star_jax.config import Config, from_dict
from star_jax.errors import InputError
from star_jax.option_values import PATH

URLS = ("gs://bucket/run", "s3://b", "file:///tmp/x", "https://host/m", "gs:/bucket/run")
COMMANDS = {
    "main": (), "evaluate": (), "sample": (), "report.__main__": (), "audit.__main__": (), "preflight.__main__": (),
    "study.__main__": (), "convert.__main__": ("--source_format=hf", "--target_format=hf"),
}  # fmt: skip


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return str(tmp_path / "home")


def test_a_home_directory_is_expanded_and_other_texts_stay(home):
    for text, path in (
        ("~", home), ("~/runs/x", f"{home}/runs/x"), ("~root/x", "/root/x"), ("a~b", "a~b"), ("./~", "./~"),
        ("runs/run[1]", "runs/run[1]"), ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"), ("pip:smollm2", "pip:smollm2"),
    ):  # fmt: skip
        assert option_values.local_path(text, "--x") == path


def test_what_is_no_path_of_this_machine_is_refused_in_one_line():
    for text, reason in (
        *((url, "is a URL") for url in URLS), ("", "empty"), ("  ", "empty"), ("a\0b", "NUL"),
        (os.fsdecode(b"caf\xe9"), "not UTF-8"), ("x" * 5000, "too long"),
        ("~nobody-of-this-name/x", "no home directory"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"(?s)^--x.*{reason}") as refused:
            option_values.local_path(text, "--x")
        assert len(str(refused.value)) < 300


def path_options(cls=Config, place=()) -> list[tuple[str, ...]]:
    """The options whose texts are paths, by the metadata of their fields."""
    found: list[tuple[str, ...]] = []
    types = config.typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(types[field.name]):
            found += path_options(types[field.name], (*place, field.name))
        elif field.metadata == PATH:
            found.append((*place, field.name))
    return found


def test_every_path_of_the_config_is_expanded_and_no_url_is_taken(home):
    options = [(("arithmetic", path)) for path in path_options()]
    options += [(name, ("task", field.name)) for name in tasks.TASKS for field in task_paths(name)]
    assert {".".join(path) for _, path in options} == {
        "base.path", "prompt.directory", "star.samples_from", "tokenizer",
        "task.data_dir", "task.train", "task.dev", "task.test",
    }  # fmt: skip
    for task, path in options:
        for text in ("~/x", *URLS):
            values = config.default(task).to_dict()
            values["base"]["path"] = values["base"]["path"] or "somewhere"
            group = values
            for key in path[:-1]:
                group = group[key]
            group[path[-1]] = text
            if text in URLS:
                with pytest.raises(InputError, match=re.escape(f"{'.'.join(path)}={text}: is a URL")):
                    from_dict(values)
                continue
            typed = from_dict(values)
            value = getattr(typed.make_task(), path[1]) if path[0] == "task" else typed
            if path[0] != "task":
                for key in path:
                    value = getattr(value, key)
            assert value == f"{home}/x", path


def task_paths(name: str) -> list[dataclasses.Field]:
    return [field for field in dataclasses.fields(tasks.task_class(name)) if field.metadata == PATH]


def flags_of(command: str, monkeypatch) -> list[str]:
    """The flags of a command that take a path, as its parser has them."""
    flags: list[str] = []

    def parse_args(parser, *args, **kwargs):
        paths = [a for a in parser._actions if a.metavar in ("DIR", "FILE", "MODEL") or "config" in a.dest]
        flags.extend(action.option_strings[0] for action in paths)
        raise InputError("stop")

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [command])
        with pytest.raises(InputError, match="stop"):
            importlib.import_module(f"star_jax.{command}").main()
    return flags


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_flag_of_a_command_refuses_a_url(command, monkeypatch):
    module = importlib.import_module(f"star_jax.{command}")
    flags = flags_of(command, monkeypatch)
    assert flags, command
    for flag in flags:
        given = [f"{other}=somewhere" for other in flags if other not in (flag, "--config")]
        for text, reason in ((URLS[0], "is a URL"), (os.fsdecode(b"\xff"), "is not UTF-8"), ("", "the path is empty")):
            monkeypatch.setattr(sys, "argv", [command, *COMMANDS[command], *given, f"{flag}={text}"])
            with pytest.raises(InputError, match=f"{flag}.*{reason}"):
                module.main()
    assert not Path("gs:").exists()


def test_a_path_flag_is_expanded(home):
    parser = Parser("report", "")
    parser.add_path("--workdir", action="append")
    parser.add_path("--output")
    args = parser.parse_args(["--workdir=~/a", "--workdir", "~/b", "--output=~/c/d"])
    assert [str(path) for path in (*args.workdir, args.output)] == [f"{home}/{name}" for name in ("a", "b", "c/d")]


def test_a_config_in_the_home_directory_is_found(home):
    Path(home).mkdir()
    (Path(home) / "c.py").write_text("from star_jax.config import default\ndef get_config(v=''):\n return default(v)\n")
    _, values = read_config(Parser("main", ""), ["--config=~/c.py:gsm8k"])
    assert values.task.name == "gsm8k"
