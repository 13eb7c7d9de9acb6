#!/usr/bin/env bash
# Sourced by run.sh, test.sh and worker.sh: makes .venv and installs the package into it, once for each state of
# setup.py.

star_setup() {
  local extras="$1" stamp wanted
  [[ -x .venv/bin/python ]] || star_venv "$extras"
  stamp=".venv/star_jax.installed"
  wanted="$extras $(cksum < setup.py)"
  if [[ ! -f "$stamp" ]] || ! grep -qxF "$wanted" "$stamp"; then
    echo "star_jax: installing into .venv (a few minutes the first time)" >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}"
    echo "$wanted" >> "$stamp"
  fi
}

# Prints the extra that this machine's accelerator needs: tpu, gpu, or nothing. STAR_ROOT: where /dev and /sys are.
star_accelerator() {
  local root="${STAR_ROOT:-}" chips
  # Google's PCI vendor alone does not tell: its network cards and disks carry it too. Nor does a device of vfio.
  chips="$(compgen -G "$root/dev/accel[0-9]*" || compgen -G "$root/dev/vfio/[0-9]*" || true)"
  if [[ -n "$chips" ]] && grep -qsx 0x1ae0 "$root"/sys/bus/pci/devices/*/vendor; then
    echo tpu
  elif nvidia-smi -L > /dev/null 2>&1; then
    echo gpu
  fi
}

star_venv() {
  local extras="$1" python="${PYTHON:-}" candidate
  if [[ -z "$python" ]]; then
    for candidate in python3.11 python3.12 python3; do
      if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
        python="$candidate"
        break
      fi
    done
  fi
  if [[ -n "$python" ]]; then
    # Half a .venv (a Python whose ensurepip is missing) would pass for a whole one the next time.
    "$python" -m venv .venv || { rm -rf .venv; return 2; }
  elif command -v uv > /dev/null || [[ ",$extras," == *,tpu,* ]]; then
    star_uv_venv
  else
    echo "star_jax: no Python 3.11 or later found; install one, or name it with PYTHON=..." >&2
    return 2
  fi
}

# TPU VMs are Ubuntu 22.04 with Python 3.10. uv brings a newer one without root and without apt, which unattended
# upgrades keep locked in a VM's first minutes; and the same one on every worker.
star_uv_venv() {
  local uv=(uv)
  if ! command -v uv > /dev/null; then
    uv=(python3 -m uv)
    python3 -m pip install --quiet --disable-pip-version-check --user uv || uv=(false)
  fi
  if ! "${uv[@]}" venv --quiet --python 3.11 --seed .venv; then
    rm -rf .venv
    echo "star_jax: no Python 3.11 or later here, and uv brought none; install one, or name it with PYTHON=..." >&2
    return 2
  fi
}
