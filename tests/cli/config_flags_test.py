"""star_jax.cli.config_flags: the syntax of --config and its overrides; every mistake is one line that names it."""

import sys
from pathlib import Path

import pytest
from absl import flags

from star_jax import config, tasks
from star_jax.cli import option_help
from star_jax.cli.config_flags import load, read_config
from star_jax.cli.parser import Parser
from star_jax.errors import InputError

DEMO = "configs/arithmetic.py"


def read(*argv: str):
    parser = Parser("main", "A command.")
    parser.add_argument("--workdir")
    return read_config(parser, argv)


def test_forms_of_flags_and_overrides():
    _, default = read(f"--config={DEMO}")
    for argv in (
        (f"--config={DEMO}", "--config.star.steps=7", "--config.tensorboard=false", "--config.replication.z_loss=-1"),
        ("--config", DEMO, "--config.star.steps", "7", "--noconfig.tensorboard", "--config.replication.z_loss", "-1"),
        (f"-config={DEMO}", "-config.star.steps=7", "--config.tensorboard=False", "-config.replication.z_loss=-1"),
        ("--config.star.steps=5", "--config.star.steps=7", "--noconfig.tensorboard", "--config.replication.z_loss=-1.0",
         "--config", DEMO),
    ):  # fmt: skip
        args, options = read(*argv, "--workdir", "here")
        assert (args.config, args.workdir) == (DEMO, "here")
        assert (options.star.steps, options.tensorboard, options.replication.z_loss) == (7, False, -1.0), argv
        assert options.is_locked and options.star.iterations == default.star.iterations
    args, options = read(f"--config={DEMO}:no_rationalization", "--config.base.stages[0].steps=9")
    assert args.config == f"{DEMO}:no_rationalization" and options.star.rationalize == "none"
    assert [stage["steps"] for stage in options.base.stages] == [9]
    assert read(f"--config={DEMO}", "--config.tensorboard")[1].tensorboard


def test_an_empty_variant_is_none():
    """Also where the default is another config's name, as in configs/methods."""
    for path in (DEMO, "configs/methods/rft.py"):
        assert load(f"{path}:") == load(path)


def test_no_flag_is_defined_in_this_process():
    read(f"--config={DEMO}", "--config.star.steps=7")
    assert not {"config", "config.star.steps", "workdir"} & set(flags.FLAGS)


def test_mistakes_are_one_line(tmp_path):
    files = {
        "variant.py": "def get_config(variant):\n    return {}\n",
        "raises.py": "def get_config():\n    return 1 / 0\n",
        "imports.py": "import no_such_module\n",
        "syntax.py": "def get_config():\n    return (\n",
        "exits.py": "import sys\n\nsys.exit(1)\n",
        "none.py": "x = 1\n",
        "wrong.py": "def get_config():\n    return {}\n",
        "outer.py": "import runpy\nfrom pathlib import Path\n"
        "def get_config():\n    return runpy.run_path(Path(__file__).with_name('raises.py'))['get_config']()\n",
        "binary.py": "\0",
        "config.json": '{"seed": 0}',
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    wrong = []
    for argv, expected in (
        ([], "give --config=FILE"),
        (["--config"], "main: argument --config: expected one argument"),
        (["--config=configs/none.py"], "--config=configs/none.py: there is no such file"),
        (["--config=configs"], "--config=configs: there is no such file"),
        ([f"--config={tmp_path}/config.json"], "holds settings that a run stored; give the config file of the command"),
        ([f"--config={DEMO}:nonsense"], f"ValueError: {DEMO} has no variant 'nonsense'"),
        ([f"--config={DEMO}", "--config.star.iteration=3"], "no such option; did you mean star.iterations?"),
        ([f"--config={DEMO}", "--config.train.z_loss=1"], "z_loss: its name is now --config.replication.z_loss"),
        ([f"--config={DEMO}", "--config.star.items=3"], "--config.star.items: there is no such option"),
        ([f"--config={DEMO}", "--config.=3"], "--config.: there is no such option"),
        ([f"--config={DEMO}", "--config.zzzzzz=3"], "see star_jax/config.py"),
        ([f"--config={DEMO}", "--config.base.stages[9].steps=3"], "stages[9]"),
        ([f"--config={DEMO}", "--config.star.steps=many"], "--config.star.steps=many: must be an integer"),
        ([f"--config={DEMO}", "--config.star.steps"], "config.star.steps"),
        ([f"--config={DEMO}", "--config.star=3"], "--config.star=3"),
        ([f"--config={DEMO}", "--config.tensorboard", "surplus"], "unexpected argument 'surplus'"),
        ([f"--config={DEMO}", "surplus"], "unrecognized arguments: surplus"),
        ([f"--config={DEMO}", "--flagfile=/nowhere"], "unrecognized arguments: --flagfile=/nowhere"),
        ([f"--config={DEMO}", "--work=x"], "unrecognized arguments: --work=x"),
        ([f"--config={tmp_path}/raises.py"], f"{tmp_path}/raises.py:2: ZeroDivisionError: division by zero"),
        ([f"--config={DEMO}", "--config.optimizer.b1=many"], "--config.optimizer.b1=many: must be a number"),
        ([f"--config={tmp_path}/raises.py:x"], f"{tmp_path}/raises.py: get_config() takes no variant 'x'"),
        ([f"--config={tmp_path}/variant.py"], f"{tmp_path}/variant.py: get_config() needs a variant"),
        ([f"--config={tmp_path}/variant.py:"], f"{tmp_path}/variant.py: get_config() needs a variant"),
        ([f"--config={tmp_path}/imports.py"], f"{tmp_path}/imports.py:1: ModuleNotFoundError: No module named"),
        ([f"--config={tmp_path}/syntax.py"], f"{tmp_path}/syntax.py:2: SyntaxError: '(' was never closed"),
        ([f"--config={tmp_path}/exits.py"], f"{tmp_path}/exits.py:3: SystemExit: 1"),
        ([f"--config={tmp_path}/none.py"], f"{tmp_path}/none.py: defines no function get_config()"),
        ([f"--config={tmp_path}/wrong.py"], f"{tmp_path}/wrong.py: get_config() must return a ConfigDict, got dict"),
        ([f"--config={tmp_path}/outer.py"], f"{tmp_path}/raises.py:2: ZeroDivisionError"),
        ([f"--config={tmp_path}/binary.py"], f"{tmp_path}/binary.py: "),
    ):  # fmt: skip
        try:
            read(*argv)
            wrong.append((argv, "accepted"))
        except InputError as error:
            if expected not in str(error) or "Traceback" in str(error):
                wrong.append((argv, str(error)))
    assert not wrong
    assert "config_file" not in sys.modules


def test_help_names_every_option_and_helpfull_describes_it(capsys):
    """Each field of the config and of every task, with its default and its comment."""
    full, overview = option_help.full(), option_help.overview()
    described = {group.prefix + option.name: option for group in option_help.groups() for option in group.options}
    for name in tasks.TASKS:
        for option, value in _leaves(config.default(name).to_dict()):
            if option not in ("base.stages", "task.name", "task.stop"):
                assert option in described and option.rpartition(".")[2] in overview, option
                assert f"  {option}=" in full
                if not option.startswith("task."):
                    assert described[option].default == str(value) and described[option].comment, option
    assert {f"base.stages[0].{name}" for name in ("steps", "learning_rate", "gold")} <= described.keys()
    assert max(map(len, full.splitlines())) <= 120 and not set(config.MOVED) & described.keys()
    with pytest.raises(SystemExit) as stop:
        read("--helpfull=mesh")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and "mesh.fsdp=1" in text and "star." not in text
    with pytest.raises(InputError, match="--helpfull=mess: no such group; there are model, base, prompt"):
        read("--helpfull=mess")


def _leaves(values: dict, prefix: str = ""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def test_help_describes_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    text = capsys.readouterr().out
    assert stop.value.code == 0 and text.startswith("usage: python -m star_jax.main ")
    for part in ("A command.", "--workdir", "--config FILE[:VARIANT]", "--config.GROUP.OPTION=VALUE", "--helpfull"):
        assert part in text
    assert Path(DEMO).is_file()
