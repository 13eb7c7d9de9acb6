"""Objects of a user's own Python code, which an option names as "module:name" or "path/to/file.py:name".

Loading one runs the code. The user's own config may name any; one that a run's directory names is loaded only with
--allow_import (evaluation/stored_run.py). A run keeps the code's text, from which it is loaded elsewhere.
"""

import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from star_jax import option_values
from star_jax.errors import InputError


def load(text: str, option: str) -> Any:
    """The object that an option names.

    A module is looked for as by `import`, in the folder of the command first; a file's path may be relative to that
    folder. Each is run once in a process. Raises InputError for a text of another form, for code that is missing or
    fails, and for a name that it does not define.
    """
    source, _, name = text.rpartition(":")
    if not source or not name.isidentifier():
        raise InputError(f"{option}={text}: name an object as module:name or path/to/file.py:name")
    module = _module(source, option)
    if not hasattr(module, name):
        raise InputError(f"{option}={text}: {source} defines no {name!r}")
    return getattr(module, name)


def text_of(text: str, option: str) -> str:
    """The source of the module that defines what `load` returns; "" if it comes from no file. Raises InputError."""
    source = text.rpartition(":")[0]
    if source in _stored:
        return _stored[source]
    file = getattr(_module(source, option), "__file__", None)
    return _read(Path(file)) if file else ""


def digest(text: str, option: str) -> str:
    """Twelve hex digits of the SHA-256 of `text_of`; "" if there is none."""
    code = text_of(text, option)
    return hashlib.sha256(_bytes(code)).hexdigest()[:12] if code else ""


def stands_alone(source: str) -> bool:
    """Whether a module, which is there, is one file in UTF-8 and no part of a package: its text runs anywhere."""
    path, text = _file(source), file_text(source) or ""
    in_utf8 = not any("\udc80" <= sign <= "\udcff" for sign in text)
    return path is not None and in_utf8 and (source.endswith(".py") or path.name != "__init__.py")


def file_text(source: str) -> str | None:
    """The text of the file of a module that `load` would take, which is not run; None if there is no such file."""
    path = _file(source)
    return _read(path) if path else None


def use_stored(source: str, text: str) -> None:
    """From now on `source` is `text`, whatever its file holds."""
    _stored[source] = text


def failure(error: BaseException, option: str) -> InputError:
    """An error that a user's code raised, as one line with the innermost place outside of star_jax and libraries."""
    elsewhere = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), "<")
    places = [
        f"{frame.filename}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(elsewhere)
    ]
    place, reason = places[-1] if places else "", str(error)
    if isinstance(error, SyntaxError) and error.filename:
        place, reason = f"{error.filename}:{error.lineno}", error.msg
    return InputError(f"{option}: {f'{place}: ' * bool(place)}{type(error).__name__}: {' '.join(reason.split())}")


def refusal(error: BaseException) -> InputError | None:
    """An error that code of the user's raised while star_jax called it, as one line; None for any other error.

    It is the user's if no frame of star_jax lies inside of the user's innermost one.
    """
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    last = max((i for i, file in enumerate(files) if file in _options), default=None)
    if last is None or any(file.startswith(_PACKAGE) for file in files[last + 1 :]):
        return None
    return failure(error, _options[files[last]])


_options: dict[str, str] = {}  # file of the user's code -> the option that named it
_stored: dict[str, str] = {}  # module or file -> the text that is run in its place
_PACKAGE = f"{Path(__file__).parent}{os.sep}"


def _read(path: Path) -> str:
    """A file's text, of which `_bytes` makes the same bytes: line ends stay, other encodings give lone surrogates."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _file(source: str) -> Path | None:
    """The file of a module, which is not run; None if there is none, or for a module in a package."""
    if source.endswith(".py"):
        path = Path(source)
    elif "." in source:  # to look for it would run the package
        return None
    else:
        try:
            spec = importlib.util.find_spec(source)
        except ValueError:  # a module without a spec
            return None
        path = Path(spec.origin) if spec and spec.origin else Path()
    return path if path.is_file() else None


def _module(source: str, option: str) -> ModuleType:
    path = Path(option_values.local_path(source, option)).resolve() if source.endswith(".py") else None
    stored = _stored.get(source)
    name, option = f"{source} as stored" if stored is not None else str(path or source), f"{option}={source}"
    if name in sys.modules:
        return sys.modules[name]
    if stored is None and path and not path.is_file():
        raise InputError(f"{option}: there is no file {path}; a relative path is relative to the command's folder")
    try:
        if stored is not None:
            module = _run_text(stored, name)
        else:
            module = importlib.import_module(source) if path is None else _run_file(path, name)
        _options[str(module.__file__)] = option
        return module
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{source}.".startswith(f"{error.name}."):
            reason = f"there is no module {error.name!r} here or installed; give path/to/file.py:name"
            raise InputError(f"{option}: {reason}") from error
        raise failure(error, option) from error


def _run_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or (loader := spec.loader) is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    _run(module, name, lambda: loader.exec_module(module))
    return module


def _run_text(text: str, name: str) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = name
    _run(module, name, lambda: exec(compile(_bytes(text), name, "exec"), vars(module)))
    return module


def _run(module: ModuleType, name: str, run: Callable[[], None]) -> None:
    sys.modules[name] = module  # dataclasses look their module up while it is run
    try:
        run()
    except BaseException:
        del sys.modules[name]
        raise
