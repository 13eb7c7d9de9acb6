#!/usr/bin/env bash
# Writes launch/constraints/pythonX.Y.txt: the newest versions that setup.py allows, of all that an installation of the
# extras brings, from a fresh environment.
#
#   launch/refresh_constraints.sh python3.11 [python3.12 ...]
#
# STAR_EXTRAS: the extras (test,parity,wandb,gemma3). Run launch/test.sh --all with each interpreter before a commit.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $# -gt 0 ]] || { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }

# shellcheck source=launch/setup.sh
source launch/setup.sh
extras="${STAR_EXTRAS-test,parity,wandb,gemma3}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
for python in "$@"; do
  version="$(star_version "$python")" || { star_fail "$python does not run"; exit 2; }
  file="launch/constraints/python$version.txt"
  "$python" -m venv "$scratch/$version"
  "$scratch/$version/bin/python" -m pip install --disable-pip-version-check ".${extras:+[$extras]}"
  {
    echo "# Python $version, extras $extras. Written by launch/refresh_constraints.sh; setup.sh passes it to pip."
    # Less local builds (torch's +cpu): any build of the version will do.
    "$scratch/$version/bin/python" -m pip list --format=freeze --disable-pip-version-check \
      --exclude pip --exclude star_jax | sed 's/+.*//' | LC_ALL=C sort -f
  } > "$scratch/constraints.txt"
  mv "$scratch/constraints.txt" "$file"
  echo "star_jax: wrote $file" >&2
done
