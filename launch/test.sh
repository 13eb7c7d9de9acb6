#!/usr/bin/env bash
# Sets star_jax up with its test extra and passes the tests: ruff, mypy, pytest. Arguments go to pytest.
#
#   launch/test.sh                          everything
#   launch/test.sh tests/sampler_test.py -k stop
#
# STAR_EXTRAS=test,parity also installs torch and transformers, the oracles of the parity tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/setup.sh
source launch/setup.sh
star_setup "${STAR_EXTRAS:-test}"

.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
[[ $# -gt 0 ]] || set -- -n auto  # a process a core
exec .venv/bin/python -m pytest "$@"
