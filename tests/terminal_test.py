"""star_jax.terminal: nothing that a model, a file or a path holds drives a terminal, hides, or is read as markup."""

import ast
import io
import json
import logging
import os
import subprocess
import sys
import unicodedata

import pytest

from star_jax import terminal
from star_jax.cli.parser import exit_on_bad_input
from star_jax.errors import InputError
from star_jax.runs import console
from tests.support.commands import ROOT

# ESC, BEL, CSI of C1, right-to-left override, joiner, filler, soft hyphen, variation selector, tag, lone surrogate.
HOSTILE = "\x1b[2J\x07\x9b31m\u202e\u200d\u3164\u00ad\ufe0f\U000e0041\ud800"
ROW = console.Row(0.5, 0.4, 0.6, 0.5)


def unseen(text: str) -> list[str]:
    """The characters of a text that a person does not see or that act on a terminal, by Unicode's own categories."""
    hidden = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return [hex(ord(c)) for c in text if unicodedata.category(c) in hidden and c not in "\t\n"]


def test_every_unseen_character_is_made_visible_and_every_other_one_stays():
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    assert unseen(terminal.visible(everything)) == []
    fillers = [0x34F, 0x115F, 0x1160, 0x17B4, 0x180B, 0x2800, 0x3164, 0xFE0F, 0xFFA0, 0xE0100, 0x2065, 0xFFF0]
    assert [hex(c) for c in fillers if chr(c) in terminal.visible(everything)] == []
    for text in ("\tplain\ntext", "naïve 日本語 हिन्दी 🙂 é", "a b", "[red]x[/]"):
        assert terminal.visible(text) == text
    assert terminal.visible("\x1b\x00\x9b\u202e") == "␛␀⟨U+009B⟩⟨U+202E⟩"
    assert terminal.one_line(" a\r\n\tb \u2028c") == "a␍ b ⟨U+2028⟩c"


def test_a_line_of_json_is_safe_to_print_and_holds_the_same_value():
    value = {HOSTILE[:-1]: [HOSTILE, "日本\n", 1.5]}
    line = terminal.json_line(value)
    assert unseen(line) == [] and "\n" not in line and "日本" in line
    assert json.loads(line) == value


def test_a_stream_that_cannot_hold_a_character_gets_an_escape():
    for encoding, expected in (("ascii", "\\u65e5\\xe9"), ("latin-1", "\\u65e5é"), ("utf-8", "日é")):
        buffer = io.BytesIO()
        stream = io.TextIOWrapper(buffer, encoding, write_through=True)
        terminal.say("日é", stream)
        assert buffer.getvalue().decode(encoding) == expected + "\n"


def test_json_is_json_in_any_encoding(monkeypatch):
    for encoding in ("ascii", "latin-1", "cp1252", "utf-8", "UTF8"):
        buffer = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding))
        terminal.say_json({"é": f"日本{HOSTILE}"})
        assert json.loads(buffer.getvalue().decode()) == {"é": f"日本{HOSTILE}"}
        assert ("日本" in buffer.getvalue().decode()) == encoding.lower().startswith("utf")


def raises(error: Exception) -> None:
    raise error


def test_errors_tracebacks_and_logs_reach_the_terminal_as_visible_text(capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # put back after the test
    for error in (InputError(f"a: {HOSTILE}"), ValueError(HOSTILE)):
        with pytest.raises((SystemExit, ValueError)) as ended:
            exit_on_bad_input(lambda error=error: raises(error))
        if ended.type is ValueError:
            sys.excepthook(ended.type, ended.value, ended.tb)  # as Python does
        text = capsys.readouterr().err
        assert unseen(text) == [] and "␛[2J␇⟨U+009B⟩31m⟨U+202E⟩" in text
        assert ("Traceback" in text) == (ended.type is ValueError)
    logging.getLogger("star_jax").warning("skipped %s", f"x\n12:00:00 {HOSTILE}")
    text = capsys.readouterr().err
    assert unseen(text) == [] and text.count("\n") == 1 and "skipped x 12:00:00 ␛[2J" in text


def test_a_terminal_without_a_width_gets_whole_tables(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "0")
    console.show([ROW], 0, "report.html")
    assert "50.0%" in capsys.readouterr().err


def test_a_platform_that_jax_lacks_is_one_line(capsys, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")
    error = RuntimeError("Unable to initialize backend 'nonsense': it is not in the list\nmore")
    with pytest.raises(SystemExit):
        exit_on_bad_input(lambda: raises(error))
    line = "star_jax: JAX_PLATFORMS=nonsense: Unable to initialize backend 'nonsense': it is not in the list; "
    assert capsys.readouterr().err == line + "correct the variable or unset it\n"


def test_a_platform_without_its_plugin_is_one_line(capsys, monkeypatch):
    """With JAX_PLATFORMS=cuda and no plugin for CUDA, JAX fails an assert. Other asserts keep their traceback."""
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    for module, ended in (("jax._src.xla_bridge", SystemExit), ("star_jax.weights.store", AssertionError)):
        backends = compile("assert None is not None", "x.py", "exec")
        with pytest.raises(ended):
            exit_on_bad_input(lambda names={"__name__": module}, code=backends: exec(code, names))
    line = "star_jax: JAX_PLATFORMS=cuda: JAX finds no such device here; correct the variable or unset it\n"
    assert capsys.readouterr().err == line


def test_devices_without_enough_memory_are_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        exit_on_bad_input(lambda: raises(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore")))
    text = capsys.readouterr().err
    assert ended.value.code == 2 and text.count("\n") == 1 and "more" not in text.partition(";")[0]
    assert text.startswith(
        "star_jax: the devices have too little memory (RESOURCE_EXHAUSTED: Out of memory allocating 9"
    )


def test_a_handler_of_a_library_is_replaced(capsys, monkeypatch):
    """Orbax adds one when it is imported; its lines would not be visible text, and each line would be there twice."""
    root = logging.getLogger()
    # Without pytest's own handlers: pytest-xdist cannot send what they keep of a lone surrogate.
    monkeypatch.setattr(root, "handlers", [logging.StreamHandler()])
    terminal.start_logging()
    logging.getLogger("star_jax").warning("skipped %s", HOSTILE)
    text = capsys.readouterr().err
    assert text.count("skipped ␛[2J") == 1 and unseen(text) == []


def test_markup_of_rich_is_text(capsys):
    for name in ("runs/[/]/r", "runs/[lr=3]/r", "runs/[red]x[/red]:smile:"):
        console.show([ROW], 0, f"{name}{HOSTILE}")
        text = capsys.readouterr().err
        assert f"report: {name}␛[2J" in text and unseen(text) == []


def test_tensorflow_is_imported_without_its_logs_and_nothing_else_is_held_back():
    code = "import sys\nfrom star_jax.tasks import seqio_task\nseqio_task.import_seqio()\nsys.stderr.write('and this')"
    env = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT, timeout=300)
    assert (done.returncode, done.stderr) == (0, "and this")
    code = (
        "import os\nfrom star_jax import terminal\nwith terminal.without_tensorflow_logs():\n"
        "    os.write(2, b'I0000 00:00:1796043346.5 99 port.cc:153] on\\nW1 a warning\\nE1234 12:00:00 no GPU\\n')\n"
        "    raise ValueError('a bug')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=ROOT, timeout=300)
    assert done.stderr.startswith("W1 a warning\nTraceback") and done.stderr.endswith("ValueError: a bug\n")


def test_everything_that_is_printed_goes_through_the_terminal_module():
    printers = ("print", "traceback.print_exc", "traceback.print_exception", "logging.basicConfig", "Console")
    printers += ("sys.stdout.write", "sys.stderr.write", "rich.print", "tqdm.write", "pprint")
    strays = [
        f"{path.name}: {ast.unparse(node.func)}"
        for path in (ROOT / "star_jax").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in printers
    ]
    # option_help prints lines of the package's own source, and runs where nothing is installed.
    assert sorted(strays) == ["option_help.py: print", "terminal.py: Console", "terminal.py: print"]
