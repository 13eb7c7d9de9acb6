"""A stand-in for gcloud: TPUs are directories, and each worker is a home directory with local processes.

$GCLOUD_STANDIN/NAME/ holds a TPU: its state, and workers/N (worker N's home). $GCLOUD_STANDIN/calls.jsonl logs all
calls. A test may add to $GCLOUD_STANDIN:

    workers     the number of workers of the next TPU (2)
    bin/        left out of the workers' PATH
    seed/       copied into every new home
    queue       the states of a queued resource before ACTIVE, one per request
    config.json what `gcloud config get-value` prints
    hiccup      the next `follow` loses its connection after one line and is repeated, as gcloud does

It accepts the flags that launch/tpu.sh uses, as gcloud's help describes them, and no others. In place of the TPU's
metadata server it sets the three JAX_* variables.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(os.environ.get("GCLOUD_STANDIN", "/nonexistent"))
MARK = "GCLOUD_STANDIN_WORKER"
CONNECTION_LOST = 255


def main(argv: list[str]) -> int:
    with (ROOT / "calls.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"argv": argv, "pid": os.getpid()}) + "\n")
    if argv[:2] == ["config", "get-value"]:
        config = ROOT / "config.json"
        print(json.loads(config.read_text()).get(argv[2], "") if config.exists() else "")
        return 0
    args = parser().parse_args(argv)
    return args.call(args)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser("gcloud", allow_abbrev=False)
    groups = commands(commands(commands(top, "compute"), "tpus"), "tpu-vm", "queued-resources")
    vm, queue = commands(groups[0]), commands(groups[1])
    add(vm, "create", create, "--accelerator-type", "--version", bools=("--spot", "--reserved"))
    add(vm, "describe", lambda a: show(ROOT / a.name / "state"), "--format")
    add(vm, "delete", delete)
    ssh_flags = ("--worker",)
    add(vm, "ssh", ssh, "--command", *ssh_flags, bools=("--internal-ip",)).add_argument("--ssh-flag", action="append")
    add(vm, "scp", scp, *ssh_flags, bools=("--internal-ip",), nargs="+")
    add(
        queue, "create", enqueue, "--node-id", "--accelerator-type", "--runtime-version", bools=("--spot", "--reserved")
    )
    add(queue, "describe", describe_queue, "--format")
    add(queue, "delete", unqueue, bools=("--force",))
    return top


def commands(parent, *names):
    group = parent.add_subparsers(required=True)
    if not names:
        return group
    parsers = [group.add_parser(name, allow_abbrev=False) for name in names]
    return parsers if len(parsers) > 1 else parsers[0]


def add(group, name, call, *required, bools=(), nargs=None):
    command = group.add_parser(name, allow_abbrev=False)
    command.set_defaults(call=call)
    command.add_argument("name", nargs=nargs)
    for flag in ("--zone", "--project", *required):
        command.add_argument(flag, required=True)
    for flag in (*bools, "--quiet"):
        command.add_argument(flag, action="store_true")
    return command


def error(text: str, status: int = 1) -> int:
    print(f"ERROR: (gcloud.compute.tpus) {text}", file=sys.stderr)
    return status


def missing(name: str) -> int:
    return error(f"NOT_FOUND: Resource 'projects/p/locations/z/nodes/{name}' was not found")


def show(path: Path) -> int:
    if not path.exists():
        return missing(path.parent.name)
    print(path.read_text().strip())
    return 0


# --- TPUs and queued resources ---


def create(args) -> int:
    tpu = ROOT / args.name
    if (tpu / "state").exists():
        return error(f"ALREADY_EXISTS: Resource '{args.name}' already exists")
    count = ROOT / "workers"
    for number in range(int(count.read_text()) if count.exists() else 2):
        home = tpu / "workers" / str(number)
        if (ROOT / "seed").is_dir():
            shutil.copytree(ROOT / "seed", home, symlinks=True)
        else:
            home.mkdir(parents=True)
    (tpu / "state").write_text("READY")
    return 0


def delete(args) -> int:
    tpu = ROOT / args.name
    if not (tpu / "state").exists():
        return missing(args.name)
    kill_workers(tpu)
    shutil.rmtree(tpu)
    return 0


def enqueue(args) -> int:
    path = ROOT / f"{args.name}.queued"
    if path.exists():
        return error(f"ALREADY_EXISTS: queued resource '{args.name}' already exists")
    states = ROOT / "queue"
    path.write_text(states.read_text() if states.exists() else "")
    return 0


def describe_queue(args) -> int:
    path = ROOT / f"{args.name}.queued"
    if not path.exists():
        return missing(args.name)
    state, *rest = path.read_text().split() or ["ACTIVE"]
    if state not in ("FAILED", "SUSPENDED"):
        path.write_text("\n".join(rest))
    if not rest and not (ROOT / args.name / "state").exists() and state not in ("FAILED", "SUSPENDED"):
        create(args)
    print(state)
    return 0


def unqueue(args) -> int:
    path = ROOT / f"{args.name}.queued"
    if not path.exists():
        return missing(args.name)
    if (ROOT / args.name / "state").exists():
        if not args.force:
            return error("FAILED_PRECONDITION: the queued resource has nodes")
        delete(args)
    path.unlink()
    return 0


def preempt(tpu: Path) -> None:
    """Preempts a TPU: every process of every worker is killed at once, and the state becomes PREEMPTED."""
    (tpu / "state").write_text("PREEMPTED")
    kill_workers(tpu)


def kill_workers(tpu: Path) -> None:
    for pid in processes(tpu):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    deadline = time.monotonic() + 10
    while processes(tpu) and time.monotonic() < deadline:
        time.sleep(0.02)


def processes(under: Path) -> list[int]:
    """Ids of the processes of workers whose home is this directory or below it."""
    pids, mark = [], f"{MARK}={under}/".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if any((variable + b"/").startswith(mark) for variable in variables):
                pids.append(int(entry.name))
    return pids


# --- ssh and scp ---


def homes(name: str, which: str) -> list[Path]:
    """The homes of the selected workers. Raises SystemExit with gcloud's error if the TPU is absent or not READY."""
    tpu = ROOT / name
    if not (tpu / "state").exists():
        sys.exit(missing(name))
    state = (tpu / "state").read_text()
    if state != "READY":
        sys.exit(error(f"TPU is in state {state}, therefore unreachable"))
    workers = sorted((tpu / "workers").iterdir(), key=lambda home: int(home.name))
    return workers if which == "all" else [workers[int(number)] for number in which.split(",")]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ssh(args) -> int:
    selected = homes(args.name, args.worker)
    count = len(list((ROOT / args.name / "workers").iterdir()))
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if Path(p) != ROOT / "bin")
    common = {"PATH": path, "JAX_NUM_PROCESSES": str(count), "JAX_PLATFORMS": "cpu", "LANG": "C.UTF-8"}
    common["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free_port()}"
    statuses = [0] * len(selected)

    def run_on(index: int, home: Path) -> None:
        env = {**common, "HOME": str(home), "JAX_PROCESS_ID": home.name, MARK: str(home)}
        hiccup = ROOT / "hiccup"
        lines = 10**9
        if " follow " in args.command and hiccup.exists():
            hiccup.unlink()
            lines = 1
        statuses[index] = remote(args.command, home, env, lines)
        if lines == 1:
            statuses[index] = remote(args.command, home, env, 10**9)

    threads = [threading.Thread(target=run_on, args=item) for item in enumerate(selected)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return next(filter(None, statuses), 0)


def remote(command: str, home: Path, env: dict[str, str], lines: int) -> int:
    """Runs a command in a new session, as sshd does, and prints at most `lines` lines of its output."""
    running = subprocess.Popen(
        ["bash", "-c", command],
        cwd=home,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    for number, line in enumerate(running.stdout, 1):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
        if number == lines:
            os.killpg(running.pid, signal.SIGKILL)
            break
    status = running.wait()
    return CONNECTION_LOST if status < 0 else status


def scp(args) -> int:
    *sources, target = args.name
    name, _, folder = target.partition(":")
    for home in homes(name, args.worker):
        for source in sources:
            subprocess.run(["cp", "-r", source, home / folder], check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
