"""Files and folders without permission: one line that names what cannot be read, and never the result of the others."""

import contextlib
import ctypes
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.commands import ROOT

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, PR_CAPBSET_DROP = 1, 2, 24


def without_privileges() -> None:
    """Of a child process before it starts its program: for root, too, permissions count afterwards."""
    if os.geteuid() == 0:
        for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
            assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0) == 0


def check(folder: Path, *commands: str) -> list[str]:
    """What is wrong with the commands of this module's `main` for each file and folder of folder/run."""
    program = [sys.executable, "-m", "tests.runs.permissions_test", folder, *commands]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(program, env=env, preexec_fn=without_privileges, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_the_report_and_the_audit_leave_nothing_out(tmp_path):
    from tests.support.report_runs import make_run

    make_run(tmp_path / "run")
    assert check(tmp_path, "report", "audit") == []


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_no_evaluation_is_left_out_and_no_weights_are_taken_for_missing(tmp_path, monkeypatch):
    from star_jax import evaluate
    from tests.support.stored_runs import make_run

    data = str(tmp_path / "dev.jsonl")
    Path(data).write_text('{"question": "Which?", "choices": ["tea", "ink"], "answer": "b"}\n')
    run = make_run(tmp_path / "run", "jsonl", [" (b).\n\n", " (a).\n\n"], train=data, dev=data)
    for iteration in ("base", "1"):
        monkeypatch.setattr(sys, "argv", ["evaluate", f"--workdir={run}", f"--iteration={iteration}"])
        evaluate.main()
    assert check(tmp_path, "evaluate", "convert") == []


def main(folder: Path, names: list[str]) -> None:
    """Prints a line for each command and file of folder/run without which it neither works as before nor names it."""
    copy, expected = folder / "copy", {}
    for name in names:
        expected[name] = call(name, shutil.copytree(folder / "run", copy))
        shutil.rmtree(copy)
    for path in [folder / "run", *sorted((folder / "run").rglob("*"))]:
        for name in names:
            shutil.copytree(folder / "run", copy)
            locked = copy / path.relative_to(folder / "run")
            mode = locked.stat().st_mode
            locked.chmod(0)
            outcome = call(name, copy)
            locked.chmod(mode)
            shutil.rmtree(copy)
            named = str(locked) in outcome[1] and "Permission denied" in outcome[1]
            if outcome != expected[name] and not (outcome[0] == "refused" and named):
                print(f"{name} without {path.relative_to(folder)}: {outcome}"[:500])


def call(name: str, run: Path) -> tuple[str, str]:
    """("ok", what a command printed and wrote) or ("refused", its line)."""
    from star_jax.errors import InputError

    arguments = {"convert": [f"--source={run}/base", "--source_format=orbax", f"--target={run.parent}/out"]}
    arguments["convert"] += ["--target_format=hf"]
    sys.argv = [name, *arguments.get(name, [f"--workdir={run}"])]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            command(name)()
    except InputError as error:
        return "refused", str(error)
    except Exception as error:
        return "traceback", repr(error)
    finally:
        shutil.rmtree(run.parent / "out", ignore_errors=True)
    page = run / "report.html"
    written = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "", page.read_text()) if page.exists() else ""
    return "ok", printed.getvalue() + written


def command(name: str):
    if name == "evaluate":
        from star_jax.evaluate import main
    elif name == "convert":
        from star_jax.convert.__main__ import main
    elif name == "audit":
        from star_jax.audit.__main__ import main
    else:
        from star_jax.report.__main__ import main
    return main


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
