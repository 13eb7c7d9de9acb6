"""launch/run.sh --tpu=NAME against a stand-in for gcloud, whose workers are local processes, each with its own home."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import gcloud_standin
from tests.support.executables import write_script

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
PREEMPTED = 75  # run.sh's exit status, and that of a run after SIGTERM
PYTHON = f'"{sys.executable}" -I -S'  # quicker, and the standard library does
CREATE = ("--create", "--type=v5litepod-8")


class Cloud:
    """The stand-in's directory, a working tree to launch from, and storage that all workers see."""

    def __init__(self, folder: Path) -> None:
        self.root, self.tree, self.workdir = folder / "cloud", folder / "my tree", folder / "shared" / "run"
        write_script(
            self.root / "bin" / "gcloud", f'exec {PYTHON} "{HERE.parent / "support" / "gcloud_standin.py"}" "$@"\n'
        )
        # Workers have a .venv, so an installation is one call of pip, which is logged.
        write_script(
            self.root / "seed/star_jax/.venv/bin/python",
            "[[ $1 != -c ]] || { echo 3.11; exit; }\n"
            f'[[ $2 != pip ]] || exec echo "$@" >> "$HOME/pip.log"\n'
            f'[[ $2 == star_jax.main ]] && exec {PYTHON} "{HERE / "launch_program.py"}" "${{@:3}}"\n',
        )
        shutil.copytree(ROOT / "launch", self.tree / "launch")
        shutil.copy(ROOT / "setup.py", self.tree)
        (self.tree / ".gitignore").write_text(".venv/\nruns/\n")
        subprocess.run(["git", "init", "-q"], cwd=self.tree, check=True)
        self.config(**{"compute/zone": "here", "core/project": "mine"})

    def config(self, **values: str) -> None:
        (self.root / "config.json").write_text(json.dumps(values))

    def start(self, *flags: str, tpu: str = "--tpu=t", cwd: Path | None = None, **env: str) -> subprocess.Popen:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("STAR_")}
        env = {**inherited, "GCLOUD_STANDIN": str(self.root), "STAR_POLL": "0.1", "STAR_GRACE": "5", **env}
        env["PATH"] = f"{self.root}/bin:{env['PATH']}"
        return subprocess.Popen(
            ["bash", self.tree / "launch/run.sh", tpu, *flags],
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # Processes of a suite in the background ignore SIGINT, and a shell cannot undo that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *flags: str, **env: str) -> subprocess.CompletedProcess:
        return result_of(self.start(*flags, **env))

    def launch(self, *flags: str, steps: int = 3, **env: str) -> subprocess.CompletedProcess:
        return self.run(*CREATE, *self.work(steps), *flags, **env)

    def work(self, steps: int = 3) -> tuple[str, str]:
        return f"--workdir={self.workdir}", f"--steps={steps}"

    def home(self, number: int, tpu: str = "t") -> Path:
        return self.root / tpu / "workers" / str(number)

    def calls(self, *words: str) -> list[list[str]]:
        """The calls of gcloud that begin with `compute tpus WORDS`."""
        lines = (self.root / "calls.jsonl").read_text().splitlines() if (self.root / "calls.jsonl").exists() else []
        every = [json.loads(line)["argv"] for line in lines]
        return [call for call in every if call[2 : 2 + len(words)] == list(words)]

    def step(self) -> int:
        file = self.workdir / "step"
        return int(file.read_text()) if file.exists() else 0

    def wait_for_step(self, step: int) -> None:
        wait_for(lambda: self.step() >= step)

    def started(self, worker: int) -> dict:
        return json.loads((self.workdir / f"started.{worker}.json").read_text())

    def processes(self) -> list[int]:
        return gcloud_standin.processes(self.root)


def result_of(process: subprocess.Popen, seconds: float = 60) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=seconds)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def wait_for(condition, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition was not met in {seconds} seconds"
        time.sleep(0.02)


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    gcloud_standin.kill_workers(cloud.root)


def steps(first: int, last: int) -> list[str]:
    return [f"step {number}" for number in range(first, last + 1)]


# --- from creation to deletion ---


def test_create_run_preempt_run_again_stop_delete(cloud):
    running = cloud.start(*CREATE, *cloud.work(10_000))
    cloud.wait_for_step(5)
    gcloud_standin.preempt(cloud.root / "t")
    result = result_of(running)
    assert result.returncode == PREEMPTED, result.stderr
    reached = cloud.step()
    assert result.stdout.splitlines() == steps(1, result.stdout.count("\n")), "its last lines may be lost with it"
    assert "t is PREEMPTED; rerun with --create to create it again" in result.stderr

    result = cloud.run(*cloud.work(reached + 2))
    assert result.returncode == 2 and "(PREEMPTED); rerun with --create" in result.stderr.splitlines()[-1]

    result = cloud.launch(steps=reached + 2)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == steps(reached + 1, reached + 2)

    running = cloud.start(*cloud.work(10_000))
    cloud.wait_for_step(reached + 5)
    assert cloud.run("--stop").returncode == 0
    assert result_of(running).returncode == PREEMPTED and not cloud.processes()
    result = cloud.run("--stop")
    assert result.returncode == 0 and result.stderr.count("no run is in progress") == 2
    assert len(cloud.calls("tpu-vm", "create")) == 2, "--stop keeps the TPU"

    for message in ("deleted t", "there is no TPU t"):
        result = cloud.run("--delete")
        assert result.returncode == 0 and message in result.stderr and not (cloud.root / "t").exists()


@pytest.mark.slow
def test_creating_a_tpu_that_exists_continues_the_run(cloud):
    assert cloud.launch().returncode == 0
    assert cloud.launch(steps=5).stdout.splitlines() == steps(4, 5)
    assert len(cloud.calls("tpu-vm", "create")) == 1


def bash(code: str, *arguments: str) -> str:
    """What `code` prints after sourcing launch/tpu.sh; `arguments` are $1, $2, ..."""
    command = ["bash", "-euc", f"source launch/tpu.sh; {code}", "-", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.slow
def test_each_type_has_its_software(cloud):
    versions = {
        "v2-8": "tpu-ubuntu2204-base",
        "v3-32": "tpu-ubuntu2204-base",
        "v4-8": "tpu-ubuntu2204-base",
        "v5litepod-16": "v2-alpha-tpuv5-lite",
        "v5p-8": "v2-alpha-tpuv5",
        "v6e-4": "v2-alpha-tpuv6e",
    }
    code = 'gcloud() { echo mine; }; tpu_parse --tpu=t --create "$1"; tpu_check; echo "$tpu_version"'
    assert {kind: bash(code, f"--type={kind}") for kind in versions} == versions
    assert cloud.run("--create", "--type=v6e-4", *cloud.work(1)).returncode == 0
    [call] = cloud.calls("tpu-vm", "create")
    assert "--accelerator-type=v6e-4" in call and "--version=v2-alpha-tpuv6e" in call


@pytest.mark.slow
def test_flags_of_creation_are_passed_on(cloud):
    result = cloud.launch("--version=mine", "--spot", "--create-flag=--reserved", "--zone=z", "--project=p")
    assert result.returncode == 0, result.stderr
    [call] = cloud.calls("tpu-vm", "create")
    assert {"--version=mine", "--spot", "--reserved", "--zone=z", "--project=p"} <= set(call)


@pytest.mark.slow
def test_zone_and_project_come_from_gclouds_configuration(cloud):
    assert cloud.launch().returncode == 0
    assert all({"--zone=here", "--project=mine"} <= set(call) for call in cloud.calls("tpu-vm"))


@pytest.mark.slow
def test_a_queued_resource_is_waited_for_and_deleted_with_its_tpu(cloud):
    (cloud.root / "queue").write_text("ACCEPTED WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES PROVISIONING")
    result = cloud.launch("--queued", "--spot")
    assert result.returncode == 0, result.stderr
    assert [line.split()[-1] for line in result.stderr.splitlines() if line.startswith("star_jax: t is")] == [
        "ABSENT",
        "ACCEPTED",
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
    ]
    [call] = cloud.calls("queued-resources", "create")
    assert {"--node-id=t", "--accelerator-type=v5litepod-8", "--runtime-version=v2-alpha-tpuv5-lite"} < set(call)
    assert "--spot" in call and not cloud.calls("tpu-vm", "create")
    assert cloud.run("--delete").returncode == 0
    assert not (cloud.root / "t").exists() and not (cloud.root / "t.queued").exists()


@pytest.mark.slow
def test_a_suspended_queued_resource_is_created_again(cloud):
    """After a spot TPU was preempted, its queued resource is still there, SUSPENDED, and the name is in use."""
    (cloud.root / "t.queued").write_text("SUSPENDED")
    assert cloud.run(*cloud.work()).returncode == 2
    result = cloud.launch("--queued")
    assert result.returncode == 0 and result.stdout.splitlines() == steps(1, 3), result.stderr


@pytest.mark.slow
def test_a_queued_resource_that_fails_at_once_is_not_asked_for_again(cloud):
    (cloud.root / "queue").write_text("FAILED")
    result = cloud.launch("--queued")
    assert result.returncode == 2 and "t became FAILED right after" in result.stderr
    assert len(cloud.calls("queued-resources", "create")) == 1


# --- the same command again ---


@pytest.mark.slow
def test_the_same_command_shows_the_log_of_a_run_in_progress(cloud):
    first = cloud.start(*CREATE, *cloud.work(400))
    cloud.wait_for_step(2)
    second = cloud.run(*CREATE, *cloud.work(400))
    assert second.returncode == 0 and "in progress already" in second.stderr
    assert second.stdout.splitlines() == steps(1, 400) == result_of(first).stdout.splitlines()
    assert len(cloud.calls("tpu-vm", "scp")) == 1, "nothing is copied under a run"


@pytest.mark.slow
def test_another_command_is_refused_during_a_run(cloud):
    first = cloud.start(*CREATE, *cloud.work(10_000))
    cloud.wait_for_step(2)
    result = cloud.run(*CREATE, *cloud.work(20_000))
    assert result.returncode == 2 and "another run is in progress on t" in result.stderr.splitlines()[-1]
    assert cloud.run("--delete").returncode == 0
    assert result_of(first).returncode in (PREEMPTED, 143) and not cloud.processes()


@pytest.mark.slow
def test_ctrl_c_leaves_the_run_alone(cloud):
    first = cloud.start(*CREATE, *cloud.work(600))
    cloud.wait_for_step(3)
    os.killpg(first.pid, signal.SIGINT)
    result = result_of(first)
    assert result.returncode == 130 and "the run continues" in result.stderr
    cloud.wait_for_step(cloud.step() + 2)
    result = cloud.run(*cloud.work(600))
    assert result.returncode == 0 and result.stdout.splitlines() == steps(1, 600)


@pytest.mark.slow
def test_processes_killed_on_a_tpu_that_is_ready(cloud):
    first = cloud.start(*CREATE, *cloud.work(10_000))
    cloud.wait_for_step(3)
    gcloud_standin.kill_workers(cloud.root)
    result = result_of(first)
    assert result.returncode == 137 and "the run ended with status 137" in result.stderr
    reached = cloud.step()
    assert cloud.run(*cloud.work(reached + 1)).stdout.splitlines() == steps(reached + 1, reached + 1)


@pytest.mark.slow
def test_remaining_processes_of_a_broken_run_are_stopped_first(cloud):
    """Worker 0 is dead, worker 1 is alive: unless it is stopped, the new run cannot start there."""
    first = cloud.start(*CREATE, *cloud.work(10_000))
    cloud.wait_for_step(3)
    os.killpg(first.pid, signal.SIGKILL)
    for pid in gcloud_standin.processes(cloud.home(0)):
        os.kill(pid, signal.SIGKILL)
    reached = cloud.step()
    assert cloud.processes(), "worker 1 lives"
    result = cloud.run(*cloud.work(reached + 2))
    assert result.returncode == 0 and "worker 1: stopped" in result.stderr, result.stderr
    assert result.stdout.splitlines() == steps(reached + 1, reached + 2)


@pytest.mark.slow
def test_sigkill_for_processes_that_ignore_sigterm(cloud):
    first = cloud.start(*CREATE, *cloud.work(10_000), "--stubborn")
    cloud.wait_for_step(2)
    assert cloud.run("--stop", STAR_GRACE="0.5").returncode == 0
    assert result_of(first).returncode == 137 and not cloud.processes()


# --- the log ---


def test_a_lost_connection_neither_loses_nor_repeats_lines(cloud):
    """gcloud itself reconnects with the same command, so its output begins again at the same line."""
    (cloud.root / "hiccup").touch()
    result = cloud.launch(steps=20)
    assert result.returncode == 0 and result.stdout.splitlines() == steps(1, 20)
    assert not (cloud.root / "hiccup").exists()


@pytest.mark.slow
def test_it_reconnects_when_gcloud_gives_up(cloud):
    running = cloud.start(*CREATE, *cloud.work(60))
    cloud.wait_for_step(5)
    follows: list[int] = []
    while not follows:  # the launcher looks at the log a moment later than we do
        calls = [json.loads(line) for line in (cloud.root / "calls.jsonl").read_text().splitlines()]
        follows = [call["pid"] for call in calls if any(" follow " in word for word in call["argv"])]
        assert running.poll() is None
    os.kill(follows[0], signal.SIGKILL)
    result = result_of(running)
    assert result.returncode == 0 and result.stdout.splitlines() == steps(1, 60)
    assert "reconnecting" in result.stderr


@pytest.mark.slow
def test_the_last_lines_of_a_worker_that_failed(cloud):
    result = cloud.launch("--fail=1", steps=10_000)
    assert result.returncode == 3, "worker 0's status"
    assert "worker 1: ended with status 7" in result.stderr and "worker 1:     the reason" in result.stderr
    assert "another process died" in result.stdout and not cloud.processes()
    assert result.stderr.splitlines()[-1] == "star_jax: the run ended with status 3; the same command continues it"


@pytest.mark.slow
def test_a_single_worker_needs_no_shared_storage(cloud):
    (cloud.root / "workers").write_text("1")
    result = cloud.run(*CREATE, "--workdir=runs/1", "--steps=2")
    assert result.returncode == 0 and result.stdout.splitlines() == steps(1, 2)
    assert "the TPU's own disk" in result.stderr
    assert (cloud.home(0) / "star_jax/runs/1/step").exists()
    assert cloud.run("--workdir=runs/1", "--steps=3").stdout.splitlines() == steps(3, 3), "a copy keeps runs/"


# --- what arrives on the workers ---


def test_flags_arrive_unharmed(cloud):
    flags = ["--a=two  words", "--b='\"`$HOME`\\", "--c=[1, (2,)] * ? {x,y} ~ ! #;&|<>", "--d=a\nb\tc", "--e=é∑", ""]
    assert cloud.launch(*flags).returncode == 0
    for worker in (0, 1):
        assert cloud.started(worker)["argv"][-len(flags) :] == flags


@pytest.mark.slow
def test_workers_get_only_the_variables_of_env_flags(cloud):
    given = {"HF_TOKEN": "a b'c", "SECRET": "s", "XLA_FLAGS": "--xla_x"}
    assert cloud.launch("--env=HF_TOKEN", "--env=LIBTPU_INIT_ARGS=--x=1 --y", **given).returncode == 0
    for worker in (0, 1):
        env = cloud.started(worker)["env"]
        assert (env["HF_TOKEN"], env["LIBTPU_INIT_ARGS"]) == ("a b'c", "--x=1 --y")
        assert env["STAR_DISTRIBUTED"] == "1" and env["JAX_PROCESS_ID"] == str(worker)
        assert not {"SECRET", "XLA_FLAGS"} & set(env)
        command = cloud.home(worker) / "star_jax.run" / "command"
        assert command.stat().st_mode & 0o077 == 0 and command.parent.stat().st_mode & 0o077 == 0
    assert not any("a b" in word for call in cloud.calls() for word in call), "visible to all with ps"


@pytest.mark.slow
def test_every_worker_installs_the_tpu_extra_once(cloud):
    assert cloud.launch().returncode == 0 and cloud.launch(steps=4).returncode == 0
    for worker in (0, 1):
        [call] = (cloud.home(worker) / "pip.log").read_text().splitlines()
        assert call.endswith("--constraint launch/constraints/python3.11.txt --editable .[tpu]")
    assert cloud.launch(steps=5, STAR_EXTRAS="tpu,hub").returncode == 0
    assert (cloud.home(1) / "pip.log").read_text().splitlines()[-1].endswith(".[tpu,hub]")


@pytest.mark.slow
def test_setup_comes_first_on_every_worker(cloud):
    result = cloud.launch('--setup=test ! -e pip.log && echo "it\'s $JAX_PROCESS_ID" > ~/mounted', "--env=X=1")
    assert result.returncode == 0, result.stdout
    assert [(cloud.home(n) / "mounted").read_text() for n in (0, 1)] == ["it's 0\n", "it's 1\n"]


def test_a_failing_setup_or_installation_starts_nothing(cloud):
    result = cloud.launch("--setup=echo no such share; exit 32")
    assert result.returncode == 2 and not cloud.workdir.exists()
    assert "worker 1: no such share" in result.stderr and "installing failed" in result.stderr


@pytest.mark.slow
def test_the_working_tree_is_copied_as_git_sees_it(cloud):
    for name in ("tracked.py", "untracked é.py", "deleted.py", ".venv/bin/python", "runs/old/step", "sub/x y.txt"):
        (cloud.tree / name).parent.mkdir(parents=True, exist_ok=True)
        (cloud.tree / name).write_text(name)
    subprocess.run(["git", "add", "tracked.py", "deleted.py"], cwd=cloud.tree, check=True)
    (cloud.tree / "deleted.py").unlink()
    assert cloud.launch().returncode == 0
    for worker in (0, 1):
        copy = cloud.home(worker) / "star_jax"
        for name in ("tracked.py", "untracked é.py", "sub/x y.txt"):
            assert (copy / name).read_text() == name
        assert not (copy / "runs").exists() and not (copy / "deleted.py").exists() and not (copy / ".git").exists()
        assert "launch_program" in (copy / ".venv/bin/python").read_text()


@pytest.mark.slow
def test_a_second_copy_removes_deleted_files_only(cloud):
    """Else a renamed module would still be imported. Files that a user put there must stay."""
    for name in ("old name.py", "kept.py"):
        (cloud.tree / name).write_text("1")
    assert cloud.launch().returncode == 0
    (cloud.home(1) / "star_jax/mine.txt").write_text("mine")
    (cloud.tree / "old name.py").rename(cloud.tree / "new name.py")
    (cloud.tree / "kept.py").write_text("2")
    assert cloud.launch(steps=4).returncode == 0
    copy = cloud.home(1) / "star_jax"
    assert {path.name for path in copy.glob("*.*")} >= {"new name.py", "kept.py", "mine.txt"}
    assert not (copy / "old name.py").exists() and (copy / "kept.py").read_text() == "2"


@pytest.mark.slow
def test_a_tree_without_git_is_copied_too(cloud):
    shutil.rmtree(cloud.tree / ".git")
    (cloud.tree / "runs").mkdir()
    (cloud.tree / "runs/big").touch()
    assert cloud.launch(GIT_CEILING_DIRECTORIES=str(cloud.tree.parent)).returncode == 0
    assert (cloud.home(1) / "star_jax/setup.py").exists() and not (cloud.home(1) / "star_jax/runs").exists()


def commit(cloud: Cloud, message: str) -> None:
    identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
    subprocess.run(["git", "add", "-A"], cwd=cloud.tree, check=True)
    subprocess.run(["git", *identity, "commit", "-qm", message], cwd=cloud.tree, check=True)


@pytest.mark.slow
def test_clone(cloud):
    commit(cloud, "one")
    subprocess.run(["git", "branch", "first"], cwd=cloud.tree, check=True)
    (cloud.tree / "second.py").touch()
    commit(cloud, "two")
    (cloud.tree / "untracked.py").touch()
    url = f"--clone=file://{cloud.tree}"
    for ref, there in (("", True), ("@first", False)):
        result = cloud.launch(url + ref, steps=cloud.step() + 1)
        assert result.returncode == 0, result.stderr
        for worker in (0, 1):
            assert (cloud.home(worker) / "star_jax/second.py").exists() == there
            assert not (cloud.home(worker) / "star_jax/untracked.py").exists()


def test_the_ref_of_a_clone():
    urls = {
        "https://host/a/b.git": "https://host/a/b.git",
        "https://host/a/b.git@feature/x": "https://host/a/b.git",
        "https://host/a/b@v1": "https://host/a/b",
        "https://me@host/a/b": "https://me@host/a/b",
        "git@host:a/b.git": "git@host:a/b.git",
        "git@host:a/b@v1": "git@host:a/b",
    }
    assert {clone: bash('tpu_parse "$1" --tpu=x; tpu_url', f"--clone={clone}") for clone in urls} == urls


# --- one clear line ---


def test_a_wrong_invocation_is_one_line(cloud):
    rows = [
        (["--create"], "--create needs --type, e.g. --type=v5litepod-8"),
        (["--create", "--type=v9-8"], "--type=v9-8: its software version is not known here; give --version=VERSION"),
        (["--stop", "--delete"], "give one of --create, --stop and --delete"),
        (["--create", "--delete"], "give one of --create, --stop and --delete"),
        (["--type=v4-8"], "--type goes with --create"),
        (["--spot"], "--spot goes with --create"),
        (["--zone"], "--zone needs a value: --zone=..."),
        (["--type="], "--type= needs a value: --type=..."),
        (["--env=NOT_SET_HERE"], "--env=NOT_SET_HERE: NOT_SET_HERE is not set here"),
        (["--env=a b"], "--env=a b: a b is not a variable name"),
        ([], "there is no TPU t in here (ABSENT); rerun with --create --type=TYPE to create it"),
    ]
    wrong = []
    for flags, expected in rows:
        result = cloud.run(*flags)
        lines = [line for line in result.stderr.splitlines() if line != "star_jax: t is ABSENT"]
        if result.returncode != 2 or len(lines) != 1 or not lines[0].startswith(f"star_jax: {expected}"):
            wrong.append((flags, result.stderr))
    assert not wrong and not (cloud.root / "t").exists()


def test_flags_of_a_tpu_need_its_name(cloud):
    wrong = []
    for flag in ("--zone=z", "--create", "--stop", "--env=A=1", "--internal-ip"):
        result = result_of(cloud.start(flag, tpu="--config=x.py"))
        expected = f"star_jax: {flag.partition('=')[0]} goes with --tpu=NAME\n"
        wrong += [result.stderr] if (result.returncode, result.stderr) != (2, expected) else []
    for flag in ("--tpu", "--tpu=", "--tpus=t"):
        result = result_of(cloud.start(tpu=flag))
        expected = f"star_jax: {flag} needs a value"
        wrong += [result.stderr] if result.returncode != 2 or not result.stderr.startswith(expected) else []
    assert not wrong


def test_without_a_zone_or_a_project(cloud):
    wrong = []
    for key, flag in (("compute/zone", "--zone=ZONE"), ("core/project", "--project=PROJECT")):
        cloud.config(**{"compute/zone": "here", "core/project": "mine", key: ""})
        result = cloud.run("--stop")
        expected = f"star_jax: give {flag}, or set one: gcloud config set "
        wrong += [result.stderr] if result.returncode != 2 or not result.stderr.startswith(expected) else []
    assert not wrong


def test_gcloud_is_missing(cloud, tmp_path):
    for name in ("bash", "dirname", "cat"):
        (tmp_path / "few").mkdir(exist_ok=True)
        (tmp_path / "few" / name).symlink_to(shutil.which(name))
    shutil.rmtree(cloud.root / "bin")
    result = result_of(cloud.start(*CREATE, PATH=str(tmp_path / "few")))
    assert result.returncode == 2 and result.stderr.startswith("star_jax: gcloud is not on the PATH")


def test_errors_of_gcloud_are_shown(cloud):
    """A failing gcloud (no login, no permission, no API) is not the same as an absent TPU."""
    write_script(cloud.root / "bin/gcloud", "echo 'ERROR: PERMISSION_DENIED: tpu.nodes.get' >&2; exit 1\n")
    result = cloud.launch("--zone=z", "--project=p")
    assert result.returncode == 2 and "PERMISSION_DENIED" in result.stderr
    assert result.stderr.splitlines()[-1] == "star_jax: gcloud cannot describe t in z (project p)"


@pytest.mark.slow
def test_several_workers_need_storage_that_all_see(cloud):
    wrong = []
    for workdir in ([], ["--workdir=runs/1"], ["--workdir=gs://bucket/1"]):
        result = cloud.run(*CREATE, *workdir)
        expected = "t has 2 workers: give --workdir=/PATH on storage"
        if result.returncode != 2 or expected not in result.stderr.splitlines()[-1]:
            wrong.append((workdir, result.stderr))
    assert not wrong and not cloud.calls("tpu-vm", "scp")


@pytest.mark.slow
def test_a_config_has_to_be_in_the_tree_that_is_copied(cloud):
    """A config inside the tree may be relative to the caller's folder; one outside would be missing on the workers."""
    folder = cloud.tree / "my configs"
    folder.mkdir()
    for path in (folder / "mine.py", cloud.tree.parent / "other.py"):
        path.touch()
    assert result_of(cloud.start(*CREATE, *cloud.work(1), "--config=mine.py:a", cwd=folder)).returncode == 0
    assert "--config=my configs/mine.py:a" in cloud.started(0)["argv"]
    result = result_of(cloud.start(*CREATE, *cloud.work(1), "--config=other.py", cwd=cloud.tree.parent))
    assert result.returncode == 2 and "star_jax: --config=other.py is not in " in result.stderr


@pytest.mark.slow
def test_a_tree_that_is_too_large_to_copy(cloud):
    with (cloud.tree / "weights").open("wb") as file:
        file.truncate(110 << 20)
    result = cloud.launch()
    assert result.returncode == 2 and "over 100 MB: list large files in .gitignore" in result.stderr.splitlines()[-1]


# --- the real program ---


# Every stage of the loop but sampling, for which a base of two steps is too weak.
TINY = (
    "--config=configs/arithmetic.py:direct",
    "--config.model.n_layers=1",
    "--config.model.scan_unroll=1",
    "--config.model.d_model=16",
    "--config.model.n_heads=2",
    "--config.model.rotary_dim=8",
    "--config.model.d_mlp=16",
    "--config.base.stages=({'steps': 2, 'learning_rate': 1e-3, 'gold': (0.5,)},)",
    "--config.task.max_digits=2",
    "--config.task.train_per_length=20",
    "--config.task.held_out_per_length=2",
    "--config.sampling.max_new_tokens=16",
    "--config.sampling.slots=8",
    "--config.star.problems_per_iteration=16",
    "--config.star.steps=4",
    "--config.train.batch_rows=4",
    "--config.train.row_tokens=64",
)


@pytest.mark.slow
def test_star_on_two_workers(cloud):
    """star_jax.main as two gloo processes of two devices: preempted after pretraining, it continues from the base."""
    env = 'XLA_FLAGS=--xla_force_host_platform_device_count=2 PYTHONPATH="$PWD" TF_CPP_MIN_LOG_LEVEL=3 \\\n'
    env += f'JAX_COMPILATION_CACHE_DIR="{os.environ["JAX_COMPILATION_CACHE_DIR"]}" \\\n'
    write_script(
        cloud.root / "seed/star_jax/.venv/bin/python",
        f'[[ $1 != -c ]] || {{ echo 3.11; exit; }}\n[[ $2 != pip ]] || exit 0\n{env}exec "{sys.executable}" "$@"\n',
    )
    cloud.tree = ROOT
    flags = (*CREATE, f"--workdir={cloud.workdir}", *TINY)
    running = cloud.start(*flags)
    wait_for(lambda: list(cloud.workdir.glob("iter_000/*")) or running.poll() is not None, seconds=150)
    gcloud_standin.preempt(cloud.root / "t")
    result = result_of(running, seconds=30)
    assert result.returncode == PREEMPTED, result.stdout + result.stderr
    assert not (cloud.workdir / "iter_001" / "DONE").exists()
    base = (cloud.workdir / "base" / "model.json").stat().st_mtime_ns
    result = result_of(cloud.start(*flags), seconds=150)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (cloud.workdir / "iter_001" / "DONE").exists() and (cloud.workdir / "report.html").exists()
    assert (cloud.workdir / "base" / "model.json").stat().st_mtime_ns == base
    assert len(list((cloud.workdir / "base" / "weights").glob("ocdbt.process_*"))) == 2, "both wrote the weights"
