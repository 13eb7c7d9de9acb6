#!/usr/bin/env bash
# Sets star_jax up where that has not been done, and runs it: here, or with --tpu=NAME on every worker of a TPU VM.
# Without flags: the addition demo, into runs/arithmetic.
#
#   launch/run.sh                                                     configs/arithmetic.py
#   launch/run.sh --config=configs/arithmetic.py:no_rationalization   another config, any flag of star_jax.main
#   launch/run.sh --tpu=NAME --zone=ZONE --workdir=/mnt/runs/1 ...    on a TPU VM; --help lists these flags
#
# It can be called from any folder. Relative paths are the caller's; a --config that is not there is looked for in this
# repository. PYTHON names the interpreter that makes .venv (3.11 or later); STAR_EXTRAS what is installed: tpu, gpu,
# ... (by default what this machine has: the TPU's, the GPU's, or neither; empty: neither).
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# shellcheck source=launch/setup.sh
source "$root/launch/setup.sh"
# shellcheck source=launch/tpu.sh
source "$root/launch/tpu.sh"

tpu_parse "$@" # leaves the flags that are not the launcher's in star_flags
set -- ${star_flags[@]+"${star_flags[@]}"}

# Prints a --config as the run will find it: under the caller's folder, else under this repository. The workers of a TPU
# have the repository only.
config_path() {
  local file="${1%%:*}" folder
  if [[ -z "$tpu_name" ]]; then
    [[ -e "$file" || ! -e "$root/$file" ]] || file="$root/$file"
  elif [[ -e "$file" && ! -e "$root/$file" ]]; then
    folder="$(cd "$(dirname "$file")" && pwd)/"
    [[ "$folder" == "$root"/* ]] || tpu_fail "--config=$1 is not in $root, which is what the workers get; put it there"
    file="${folder#"$root"/}$(basename "$file")"
  fi
  echo "$file${1#"${1%%:*}"}"
}

flags=() has_config=false wants_help=false name=""
for flag in "$@"; do
  if [[ -n "$name" ]]; then # --config FILE is --config=FILE
    flag="$name=$flag" name=""
  fi
  case "$flag" in
    --config | -config | --workdir | -workdir)
      name="$flag"
      continue
      ;;
    --config=* | -config=*)
      has_config=true
      path="$(config_path "${flag#*=}")"
      flag="${flag%%=*}=$path"
      ;;
    -h | -help | --help | --helpfull*) wants_help=true ;;
  esac
  flags+=("$flag")
done
[[ -z "$name" ]] || flags+=("$name")

if "$wants_help"; then
  tpu_help
  version="$(star_version "$root/.venv/bin/python")" || version=none
  if ! star_is_installed "$root" "" "$version"; then
    python="$root/.venv/bin/python"
    [[ "$version" != none ]] || python="${PYTHON:-python3}"
    exec "$python" -I "$root/star_jax/cli/option_help.py" "${flags[@]}" # needs no package
  fi
elif ! "$has_config"; then
  path=configs/arithmetic.py
  [[ -n "$tpu_name" ]] || path="$root/$path"
  flags=("--config=$path" ${flags[@]+"${flags[@]}"})
fi
if [[ -n "$tpu_name" ]] && ! "$wants_help"; then
  cd "$root"
  tpu_main "${flags[@]}"
  exit
fi
"$wants_help" || star_setup "$root" "${STAR_EXTRAS-$(star_accelerator)}"
# -P: a folder called star_jax where the caller is (this clone's, say) must not be taken for the package.
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}:$PWD"
exec "$root/.venv/bin/python" -P -m star_jax.main "${flags[@]}"
