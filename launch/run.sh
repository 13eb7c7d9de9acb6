#!/usr/bin/env bash
# Sets star_jax up where that has not been done, and runs it: here, or with --tpu=NAME on every worker of a TPU VM.
# Without flags: the addition demo, into runs/arithmetic.
#
#   launch/run.sh                                                     configs/arithmetic.py
#   launch/run.sh --config=configs/arithmetic.py:no_rationalization   another config, any flag of star_jax.main
#   launch/run.sh --tpu=NAME --zone=ZONE --workdir=/mnt/runs/1 ...    on a TPU VM; --help lists these flags
#
# PYTHON names the interpreter that makes .venv (3.11 or later); STAR_EXTRAS what is installed: tpu, gpu, ... (by
# default what this machine has: the TPU's, the GPU's, or neither; empty: neither).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# shellcheck source=launch/setup.sh
source launch/setup.sh
# shellcheck source=launch/tpu.sh
source launch/tpu.sh

tpu_parse "$@" # leaves the flags that are not the launcher's in star_flags
set -- ${star_flags[@]+"${star_flags[@]}"}

has_config=false
for flag in "$@"; do
  case "$flag" in
    --config=* | -config=*) has_config=true ;;
    -h | -help | --help | --helpfull)
      has_config=true
      tpu_help
      tpu_name=""
      ;;
  esac
done
"$has_config" || set -- --config=configs/arithmetic.py "$@"
if [[ -n "$tpu_name" ]]; then
  tpu_main "$@"
else
  star_setup "${STAR_EXTRAS-$(star_accelerator)}"
  exec .venv/bin/python -m star_jax.main "$@"
fi
