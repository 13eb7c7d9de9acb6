"""Program that the workers of launch_tpu_test run in place of star_jax.main. It counts, resumes, and can fail.

Worker 0 counts to --steps in WORKDIR/step and prints a line per step; the others wait for it. --fail=N: worker N exits
with 7, and worker 0 with 3, as star_jax.distributed.processes does. SIGTERM ends it with 75, as star_jax.main;
--stubborn: it is ignored.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    flags = dict(flag.removeprefix("--").partition("=")[::2] for flag in sys.argv[1:])
    worker, workdir = int(os.environ["JAX_PROCESS_ID"]), Path(flags["workdir"])
    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / f"started.{worker}.json").write_text(json.dumps({"argv": sys.argv[1:], "env": dict(os.environ)}))
    if "stubborn" in flags:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(75))
    if flags.get("fail") == str(worker):
        print("first\nthe reason", flush=True)
        (workdir / "failed").touch()
        return 7
    counter = workdir / "step"
    for step in range(steps_done(counter) + 1, int(flags["steps"]) + 1):
        if (workdir / "failed").exists():
            print("another process died", file=sys.stderr)
            return 3
        if worker == 0:
            print("step", step, flush=True)
            counter.with_suffix(".new").write_text(str(step))
            counter.with_suffix(".new").rename(counter)
        while worker and steps_done(counter) < step and not (workdir / "failed").exists():
            time.sleep(0.02)
        time.sleep(float(flags.get("pause", "0.02")))
    return 0


def steps_done(counter: Path) -> int:
    return int(counter.read_text()) if counter.exists() else 0


if __name__ == "__main__":
    sys.exit(main())
