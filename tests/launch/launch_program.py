"""What the workers run in launch_tpu_test in star_jax.main's place: it counts, goes on where it was, and can fail.

Worker 0 counts to --steps in WORKDIR/step, a line a step; the others wait for it. --fail=N: worker N exits with 7, and
worker 0, as star_jax.distributed.processes would have it, with 3. --stubborn: SIGTERM is ignored.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    given = dict(flag.removeprefix("--").partition("=")[::2] for flag in sys.argv[1:])
    me, workdir = int(os.environ["JAX_PROCESS_ID"]), Path(given["workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / f"started.{me}.json").write_text(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ)}))
    if "stubborn" in given:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if given.get("fail") == str(me):
        print("first\nthe reason", flush=True)
        (workdir / "failed").touch()
        return 7
    counter = workdir / "step"
    for step in range(steps_done(counter) + 1, int(given["steps"]) + 1):
        if (workdir / "failed").exists():
            print("another process died", file=sys.stderr)
            return 3
        if me == 0:
            print("step", step, flush=True)
            counter.with_suffix(".new").write_text(str(step))
            counter.with_suffix(".new").rename(counter)
        while me and steps_done(counter) < step and not (workdir / "failed").exists():
            time.sleep(0.02)
        time.sleep(float(given.get("pause", "0.02")))
    return 0


def steps_done(counter: Path) -> int:
    return int(counter.read_text()) if counter.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
