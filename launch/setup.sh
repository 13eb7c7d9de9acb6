#!/usr/bin/env bash
# Sourced by run.sh and test.sh: makes .venv and installs the package into it, once for each state of setup.py.

star_setup() {
  local extras="$1" python stamp wanted
  python="${PYTHON:-}"
  if [[ -z "$python" ]]; then
    for candidate in python3.11 python3.12 python3; do
      if command -v "$candidate" > /dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
        python="$candidate"
        break
      fi
    done
  fi
  if [[ -z "$python" ]]; then
    echo "star_jax: no Python 3.11 or later found; install one, or name it with PYTHON=..." >&2
    return 2
  fi
  [[ -x .venv/bin/python ]] || "$python" -m venv .venv
  stamp=".venv/star_jax.installed"
  wanted="$extras $(cksum < setup.py)"
  if [[ ! -f "$stamp" ]] || ! grep -qxF "$wanted" "$stamp"; then
    echo "star_jax: installing into .venv (a few minutes the first time)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}"
    echo "$wanted" >> "$stamp"
  fi
}
