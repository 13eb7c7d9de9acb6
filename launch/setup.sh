#!/usr/bin/env bash
# Sourced by run.sh, test.sh and worker.sh: makes ROOT/.venv and installs the package into it, in the exact versions of
# launch/constraints/pythonX.Y.txt. It installs again when setup.py, that file, the extras or ROOT change.

star_setup() { # ROOT EXTRAS
  local root="$1" extras="$2" asked="" version why
  if [[ -n "${PYTHON:-}" ]]; then
    asked="$(star_version "$PYTHON")" || star_fail "PYTHON=$PYTHON does not run; name a Python 3.11 or later" || return
    star_supports "$asked" || star_fail "PYTHON=$PYTHON is Python $asked; star_jax needs 3.11 or later" || return
  fi
  version="$(star_version "$root/.venv/bin/python")" || version=""
  why=""
  if [[ -z "$version" ]]; then
    why="has no Python that runs"
  elif ! star_supports "$version"; then
    why="has Python $version, which is too old"
  elif [[ "${asked:-$version}" != "$version" ]]; then
    why="has Python $version, and PYTHON=$PYTHON is $asked"
  elif [[ -e "$root/.venv/star_jax.unfinished" ]]; then
    why="is of an installation that was interrupted"
  fi
  if [[ -n "$why" ]]; then
    [[ ! -e "$root/.venv" && ! -L "$root/.venv" ]] || echo "star_jax: .venv $why; making it again" >&2
    star_venv "$root" "$extras" || return
    version="$(star_version "$root/.venv/bin/python")"
  fi
  star_is_installed "$root" "$extras" "$version" || star_install "$root" "$extras" "$version"
}

star_fail() {
  echo "star_jax: $*" >&2
  return 2
}

star_version() { "$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2> /dev/null; }

star_supports() { [[ "$1" =~ ^3\.(1[1-9]|[2-9][0-9])$ ]]; }

# What the stamp holds for an installation, less its extras.
star_state() { # ROOT VERSION
  local file sums=""
  for file in setup.py "launch/constraints/python$2.txt"; do
    [[ ! -e "$1/$file" ]] || sums+="$(cksum < "$1/$file") "
  done
  echo "$sums$1"
}

star_is_installed() { # ROOT EXTRAS VERSION
  local stamp="$1/.venv/star_jax.installed" state
  state="$(star_state "$1" "$3")"
  # An installation with extras holds the one without.
  grep -qxF "[$2] $state" "$stamp" 2> /dev/null || { [[ -z "$2" ]] && grep -qF "] $state" "$stamp" 2> /dev/null; }
}

star_install() { # ROOT EXTRAS VERSION
  local root="$1" extras="$2" file="launch/constraints/python$3.txt" state stamps pip
  local stamp="$1/.venv/star_jax.installed" unfinished="$1/.venv/star_jax.unfinished"
  state="$(star_state "$root" "$3")"
  stamps="$(grep -F "] $state" "$stamp" 2> /dev/null)" || true # other extras of the same state stay installed
  rm -f "$stamp"
  pip=(-m pip install --disable-pip-version-check)
  if [[ -e "$root/$file" ]]; then
    pip+=(--constraint "$file")
  else
    echo "star_jax: there is no $file: installing the newest versions, which nobody has tried together" >&2
  fi
  echo "star_jax: installing into .venv (a few minutes the first time)" >&2
  if ! star_pip "$root" "${pip[@]}" --editable ".${extras:+[$extras]}"; then
    [[ ! -e "$unfinished" ]] || rm -rf "$root/.venv"
    star_fail "installing failed, and nothing was run; the messages are above. Fix and rerun the same command"
    return 2
  fi
  rm -f "$unfinished"
  printf '%s\n' ${stamps:+"$stamps"} "[$extras] $state" > "$stamp"
}

# Runs pip. A terminal shows seconds and pip's last line, others a line a minute; a failure shows pip's last 20 lines.
star_pip() { # ROOT ARGUMENTS...
  local root="$1" log="$1/.venv/star_jax.pip.log" begin="$SECONDS" minute=0 elapsed code=0 pid
  (cd "$root" && exec .venv/bin/python "${@:2}" > "$log" 2>&1) &
  pid=$!
  trap 'kill "$pid" 2> /dev/null; exit 130' INT TERM # the shell starts background processes with SIGINT ignored
  while kill -0 "$pid" 2> /dev/null; do
    elapsed=$((SECONDS - begin))
    if [[ -t 2 ]]; then
      printf '\r\033[K%.78s' "$elapsed s: $(tail -n 1 "$log" 2> /dev/null)" >&2
    elif ((elapsed / 60 > minute)); then
      minute=$((elapsed / 60))
      echo "star_jax: still installing after $elapsed s" >&2
    fi
    sleep 0.3
  done
  wait "$pid" || code=$?
  trap - INT TERM
  [[ ! -t 2 ]] || printf '\r\033[K' >&2
  [[ "$code" == 0 ]] || tail -n 20 "$log" >&2
  return "$code"
}

# Prints the extra that this machine's accelerator needs: tpu, gpu, or nothing. STAR_ROOT: where /dev and /sys are.
star_accelerator() {
  local root="${STAR_ROOT:-}" chips
  # Google's PCI vendor alone is no proof of a TPU: its network cards and disks have it too. Nor is a vfio device.
  chips="$(compgen -G "$root/dev/accel[0-9]*" || compgen -G "$root/dev/vfio/[0-9]*" || true)"
  if [[ -n "$chips" ]] && grep -qsx 0x1ae0 "$root"/sys/bus/pci/devices/*/vendor; then
    echo tpu
  elif nvidia-smi -L > /dev/null 2>&1; then
    echo gpu
  fi
}

# Makes an empty .venv, marked as unfinished until the package is installed in it.
star_venv() { # ROOT EXTRAS
  local root="$1" extras="$2" python="${PYTHON:-}" candidate version
  if [[ -z "$python" ]]; then
    for candidate in python3.11 python3.12 python3; do
      version="$(star_version "$candidate")" || continue
      if star_supports "$version"; then
        python="$candidate"
        break
      fi
    done
  fi
  if [[ -z "$python" && ",$extras," != *,tpu,* ]] && ! command -v uv > /dev/null; then
    star_fail "no Python 3.11 or later found; install one, or name it with PYTHON=..."
    return 2
  fi
  rm -rf "$root/.venv" # without a slash at its end: of a link the link is removed, not the folder
  if [[ -n "$python" ]]; then
    # Debian's Python without its venv package makes .venv/bin/python and then fails.
    "$python" -m venv "$root/.venv" || { rm -rf "$root/.venv"; return 2; }
  else
    star_uv_venv "$root" || return
  fi
  : > "$root/.venv/star_jax.unfinished"
}

# TPU VMs are Ubuntu 22.04 with Python 3.10. uv brings a newer one without root and without apt, which unattended
# upgrades keep locked in a VM's first minutes; and the same one on every worker.
star_uv_venv() { # ROOT
  local uv=(uv)
  if ! command -v uv > /dev/null; then
    uv=(python3 -m uv)
    python3 -m pip install --quiet --disable-pip-version-check --user uv || uv=(false)
  fi
  if ! "${uv[@]}" venv --quiet --python 3.11 --seed "$1/.venv"; then
    rm -rf "$1/.venv"
    star_fail "no Python 3.11 or later here, and uv could not install one; install one, or name it with PYTHON=..."
  fi
}
