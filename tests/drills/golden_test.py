"""Two small runs give the digests of golden.json: a change that is to change no result changes none.

Those of "qa" are equal to what the code gave before it was moved into packages; those of "drill" are from after the
texts that its base is pretrained on changed.

Floating-point sums differ between machines and versions of JAX, so the digests are compared only where a fixed
computation gives the same bits as on the machine that made them; golden_run.py compares two checkouts on any machine.

    python tests/drills/golden_test.py DIGESTS.json      stores digests that golden_run.py --save has written here
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STORED = HERE / "golden.json"
FOR_TESTS = ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS", "JAX_COMPILATION_CACHE_DIR", "STAR_TEST_CACHE")
ARITHMETIC = """
import hashlib, jax, jax.numpy as jnp, numpy as np
a, b = (np.random.default_rng(s).standard_normal((192, 320)).astype(np.float32) for s in (0, 1))
run = jax.jit(lambda a, b: jnp.exp(0.01 * (a @ b.T)) * jax.lax.rsqrt(jnp.sum(a * a, axis=1, keepdims=True)))
print(jax.__version__, hashlib.sha256(np.asarray(run(a, b)).tobytes()).hexdigest()[:16])
"""


def environment() -> dict[str, str]:
    """The environment of a user's run: without the flags under which tests compile."""
    env = {name: value for name, value in os.environ.items() if name not in FOR_TESTS}
    return env | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def arithmetic() -> dict[str, str | int]:
    """What the bits of a run depend on besides the code: JAX's version, the cores, and this machine's arithmetic."""
    command = [sys.executable, "-c", ARITHMETIC]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    version, digest = done.stdout.split()
    return {"jax": version, "cores": len(os.sched_getaffinity(0)), "digest": digest}


def is_complete(digests: dict[str, str]) -> bool:
    return all(any(name.startswith(f"{run}/") for name in digests) for run in ("drill", "qa"))


@pytest.mark.slow
@pytest.mark.parametrize("run", ["drill", "qa"])
def test_a_run_has_the_stored_digests(run, tmp_path, request):
    stored = json.loads(STORED.read_text())
    here = arithmetic()
    if here != stored["arithmetic"]:
        pytest.skip(f"the digests were made with {stored['arithmetic']}; here it is {here}")
    data = request.getfixturevalue("shared_dir") / "data" if run == "qa" else tmp_path
    digests = tmp_path / "golden.json"
    digests.write_text(json.dumps(stored["digests"]))
    command = [sys.executable, str(HERE / "golden_run.py"), f"--runs={run}", f"--data={data}", f"--against={digests}"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=3000, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count("equal") == sum(name.startswith(f"{run}/") for name in stored["digests"])


def test_the_stored_digests_are_complete():
    assert is_complete(json.loads(STORED.read_text())["digests"])


if __name__ == "__main__":
    new = json.loads(Path(sys.argv[1]).read_text())
    STORED.write_text(json.dumps({"arithmetic": arithmetic(), "digests": new}, indent=1) + "\n")
