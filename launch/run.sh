#!/usr/bin/env bash
# Sets star_jax up where that has not been done, and runs it. Without flags: the addition demo, into runs/arithmetic.
#
#   launch/run.sh                                                     configs/arithmetic.py
#   launch/run.sh --config=configs/arithmetic.py:no_rationalization   another config, any flag of star_jax.main
#
# PYTHON names the interpreter that makes .venv (3.11 or later); STAR_EXTRAS what is installed: tpu, gpu, ...
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/setup.sh
source launch/setup.sh
star_setup "${STAR_EXTRAS:-}"

has_config=false
for flag in "$@"; do
  case "$flag" in --config=* | -config=* | --help | --helpfull) has_config=true ;; esac
done
"$has_config" || set -- --config=configs/arithmetic.py "$@"
exec .venv/bin/python -m star_jax.main "$@"
