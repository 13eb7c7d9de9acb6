"""`--config=FILE[:VARIANT]` and `--config.GROUP.OPTION=VALUE`: from a command line to a ConfigDict.

The syntax is that of ml_collections' config_flags, which interprets the overrides here. Its flags live in a private
FlagValues, so no flag of this process is defined or read at import.
"""

import argparse
import difflib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from star_jax import option_values, terminal
from star_jax.cli import option_help
from star_jax.cli.parser import Parser
from star_jax.errors import InputError
from star_jax.option_names import MOVED

_OVERRIDE = re.compile(r"--(no)?config\.")


def read_config(
    parser: Parser,
    argv: Sequence[str] | None = None,
    default: Callable[[argparse.Namespace], ConfigDict | None] = lambda args: None,
    prefix: str = "",
) -> tuple[argparse.Namespace, ConfigDict]:
    """Parses a command line that names a config file and may override its options.

    Args:
      parser: the command's own flags; `--config` is added here, and its help printed for --help.
      argv: the arguments after the program's name; default: those of this process.
      default: the config of a command line without `--config`; None if there has to be one.
      prefix: where the config has the options of config.py, for --help: "common." in a study's.

    Returns: the parsed flags (`args.config` is FILE[:VARIANT]), and the locked config with all overrides applied.

    Raises InputError for a wrong flag, for a config file that is missing or fails, and for an override of an option
    that does not exist or with a value of the wrong type.
    """
    parser.add_argument("--config", metavar="FILE[:VARIANT]", help="a config file, e.g. configs/arithmetic.py")
    parser.add_argument(
        "--helpfull", nargs="?", const="", action=_HelpFull, metavar="GROUP",
        help="describe every option of the config, or those of a group (star, sampling, ...), and exit",
    )  # fmt: skip
    if any(arg in ("-h", "-help", "--help") for arg in (sys.argv[1:] if argv is None else argv)):
        parser.epilog = f"{option_help.overview(prefix)}\n\n{parser.epilog}"
    arguments, overrides = _split(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(arguments)
    config = default(args) if args.config is None else load(args.config)
    if config is None:
        raise InputError("give --config=FILE, e.g. --config=configs/arithmetic.py")
    config.lock()
    if overrides:
        config = _override(config, overrides)
    return args, config


class _HelpFull(argparse.Action):
    """Prints the options of the config with their comments, and exits."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: Any = None) -> None:
        text = option_help.full(values)
        if not text:
            names = dict.fromkeys(group.prefix.partition(".")[0].partition("[")[0] for group in option_help.groups())
            raise InputError(f"--helpfull={values}: no such group; there are {', '.join(filter(None, names))}")
        terminal.say(text)
        parser.exit()


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The arguments without overrides, and the overrides, each one argument or two (`--config.a.b 3`)."""
    arguments: list[str] = []
    overrides: list[str] = []
    takes_value = False  # the argument before this one is an override without "="
    for arg in argv:
        if re.match(r"-[a-z]\w", arg):  # flags may begin with one hyphen, as with absl: -config=FILE
            arg = f"-{arg}"
        is_override = _OVERRIDE.match(arg) is not None
        if is_override or (takes_value and not arg.startswith("--")):
            overrides.append(arg)
        else:
            arguments.append(arg)
        takes_value = is_override and "=" not in arg
    return arguments, overrides


def load(spec: str, folder: Path | None = None) -> ConfigDict:
    """What `get_config` of FILE[:VARIANT] returns. Raises InputError with file, line and reason.

    `folder`: also look there for FILE, and for a FILE.py; a config that builds on others names them so.
    """
    file, _, variant = spec.partition(":")
    path = Path(option_values.local_path(spec if variant.startswith("//") else file, "--config"))  # "gs://...": a URL
    if folder and not path.is_file():
        path = next((p for p in (folder / path, folder / f"{path}.py") if p.is_file()), path)
    if not path.is_file():
        raise InputError(f"--config={spec}: there is no such file; give e.g. --config=configs/arithmetic.py")
    if path.suffix == ".json":
        raise InputError(
            f"--config={spec}: holds settings that a run stored; give the config file of the command that started it"
        )
    namespace: dict[str, Any] = {"__name__": "config_file", "__file__": str(path)}
    try:
        exec(compile(path.read_bytes(), str(path), "exec"), namespace)
        if "get_config" not in namespace:
            raise InputError("defines no function get_config(); see configs/arithmetic.py")
        _check_variant(namespace["get_config"], variant)
        config = namespace["get_config"](*([variant] if variant else []))
        if not isinstance(config, ConfigDict):
            raise InputError(f"get_config() must return a ConfigDict, got {type(config).__name__}")
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (Exception, SystemExit) as error:
        raise _failure(path, error) from error
    return config


def run_name(spec: str, limit: int) -> str:
    """The name of the directory that FILE[:VARIANT] has by default in runs/.

    `limit`: config.limit. A quick try has a directory of its own, so that the whole run can follow.
    """
    parts = [Path(part).stem for part in spec.split(":")]  # a variant may name another config file
    return "_".join(filter(None, [*parts, f"limit{limit}" * bool(limit)]))


def _check_variant(get_config: Callable[..., Any], variant: str) -> None:
    """Raises InputError if get_config() takes no variant and one is given, or needs one and none is."""
    try:
        inspect.signature(get_config).bind(*([variant] if variant else []))
    except TypeError as error:
        remedy = f"takes no variant {variant!r}" if variant else "needs a variant: --config=FILE:VARIANT"
        raise InputError(f"get_config() {remedy}; as get_config(variant='') it goes with and without one") from error


def _failure(path: Path, error: BaseException) -> InputError:
    """An error of a config file as one line: the last line run in its folder (configs run each other), reason."""
    where, reason = str(path), str(error)
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).resolve().parent == path.resolve().parent:
            where = f"{frame.filename}:{frame.lineno}"
    if isinstance(error, SyntaxError) and error.filename:
        where, reason = f"{error.filename}:{error.lineno}", error.msg
    return InputError(f"{where}: {type(error).__name__}: {reason}")


def _override(config: ConfigDict, overrides: list[str]) -> ConfigDict:
    """Applies `--config.a.b=VALUE` arguments in order; the last of several values wins."""
    for arg in overrides:
        if _OVERRIDE.match(arg):
            _check_option(config, arg.partition("=")[0].partition("config.")[2])
    values = flags.FlagValues()
    argv = ["star_jax", *overrides]
    try:
        holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        surplus = values(argv)[1:]
    except flags.Error as error:  # its text names the flag
        raise InputError(_plain_words(str(error))) from error
    except (LookupError, AttributeError, TypeError, ValueError, SyntaxError) as error:
        raise InputError(f"{' '.join(overrides)}: {error}") from error
    if surplus:
        raise InputError(f"unexpected argument {surplus[0]!r}; options are given as --config.GROUP.OPTION=VALUE")
    return holder.value


def _plain_words(message: str) -> str:
    """A message about a value that is no number, without Python's names for that."""
    message = re.sub(r"invalid literal for int\(\) with base 10: .*", "must be an integer", message)
    return re.sub(r"could not convert string to float: .*", "must be a number", message)


def _check_option(config: ConfigDict, name: str) -> None:
    """Raises InputError with a suggestion unless the config has the option, or the group, `name`."""
    names = list(_option_names(config))
    root = name.partition("[")[0]  # an item of a list: base.stages[0]
    if not any(known == root or known.startswith(f"{root}.") for known in names):
        if root in MOVED:
            raise InputError(f"--config.{name}: its name is now --config.{MOVED[root]}")
        near = difflib.get_close_matches(name, names, n=1)
        suggestion = f"did you mean {near[0]}?" if near else "see star_jax/config.py"
        raise InputError(f"--config.{name}: there is no such option; {suggestion}")


def _option_names(config: ConfigDict, prefix: str = "") -> Iterator[str]:
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            yield from _option_names(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
