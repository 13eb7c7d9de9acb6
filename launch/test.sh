#!/usr/bin/env bash
# Sets star_jax up with its test extra and runs ruff, mypy, import-linter and pytest.
#
#   launch/test.sh                              the tests that are not marked slow, a process per core
#   launch/test.sh --all                        the slow ones too
#   launch/test.sh tests/sampling -k stop       any other arguments go to pytest
#
# STAR_EXTRAS=test,parity also installs torch and transformers, the oracles of the parity tests.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/setup.sh
source launch/setup.sh
star_setup "$PWD" "${STAR_EXTRAS:-test}"

.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
.venv/bin/python -c 'from importlinter.cli import lint_imports_command as main; main()'
if [[ $# == 0 ]]; then
  set -- -n auto -m "not slow"
elif [[ "$*" == --all ]]; then
  set -- -n auto
elif [[ "$1" == --all ]]; then
  shift
fi
exec .venv/bin/python -m pytest "$@"
