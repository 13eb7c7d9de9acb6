#!/usr/bin/env bash
# Runs on each worker of a TPU VM, in ~/star_jax. launch/tpu.sh calls it through ssh:
#
#   install             runs --setup, makes .venv and installs the extras
#   start               starts the run in its own session; does nothing while one is alive
#   probe               prints probe:WORKER:alive|idle:CHECKSUM of the command
#   follow LINE         prints the log from line LINE on, as NUMBER:TEXT, until the run ends; then end:STATUS
#   finish WAIT GRACE   waits WAIT seconds for the end, then stops the run; shows the log end of a failure; its status
#   stop GRACE          SIGTERM to the run's processes, SIGKILL after GRACE seconds
#
# ~/star_jax.command comes from tpu.sh and is sourced: exports, `flags`, `extras` and `setup_command`.
# ~/star_jax.run holds command, pid, status (written when the run ends), a log per run (`log` links to the last), and
# the lock that all processes of the run hold open: it is free exactly when none of them is alive.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

state="$HOME/star_jax.run"
hostname="$(uname -n)"
worker="${JAX_PROCESS_ID:-${hostname##*-w-}}" # TPU VMs are called t1v-n-0123abcd-w-0, -w-1, ...

worker_install() {
  mkdir -p "$state"
  chmod 700 "$state" # the command may hold a token
  # shellcheck source=/dev/null
  source "$HOME/star_jax.command"
  worker_forget_files
  [[ -z "$setup_command" ]] || bash -euo pipefail -c "$setup_command"
  # shellcheck source=launch/setup.sh
  source launch/setup.sh
  star_setup "$PWD" "$extras"
}

# Deletes files of the last copy that are not in this one: they were deleted from the working tree. Others stay.
worker_forget_files() {
  [[ -f "$HOME/star_jax.tar.gz" ]] || return 0
  tar -tzf "$HOME/star_jax.tar.gz" --quoting-style=literal | grep -v '/$' | LC_ALL=C sort > "$state/files.new"
  if [[ -f "$state/files" ]]; then
    LC_ALL=C comm -23 "$state/files" "$state/files.new" | tr '\n' '\0' | xargs -0 -r rm -f --
  fi
  mv "$state/files.new" "$state/files"
  rm "$HOME/star_jax.tar.gz"
}

worker_start() {
  exec 9>> "$state/lock"
  if ! flock -w 5 9; then
    echo "a run is in progress already"
    return 0
  fi
  mv "$HOME/star_jax.command" "$state/command"
  rm -f "$state/status"
  local log
  log="$state/$(date +%Y%m%d-%H%M%S).log"
  ln -sfn "$log" "$state/log"
  setsid nohup bash launch/worker.sh run > "$log" 2>&1 < /dev/null & # inherits the lock
  echo $! > "$state/pid"
  echo "started; its log is $log"
}

worker_run() {
  trap ':' TERM # the program gets the signal too; this shell stays to write its exit status
  # shellcheck source=/dev/null
  source "$state/command"
  export STAR_DISTRIBUTED=1 PYTHONUNBUFFERED=1
  local code=0
  # shellcheck disable=SC2154 # `flags` is in the command
  .venv/bin/python -m star_jax.main "${flags[@]}" || code=$?
  echo "$code" > "$state/status.new"
  mv "$state/status.new" "$state/status"
}

worker_alive() {
  [[ -e "$state/lock" ]] && ! flock --nonblock --shared "$state/lock" true
}

worker_status() {
  cat "$state/status" 2> /dev/null || echo 137 # killed, or the machine went down, before it was written
}

worker_probe() {
  local condition=idle checksum=""
  ! worker_alive || condition=alive
  [[ ! -f "$state/command" ]] || checksum="$(cksum < "$state/command")"
  echo "probe:$worker:$condition:$checksum"
}

worker_follow() {
  local first="$1" number=1 line rest="" more=true
  exec 3< "$state/log"
  while "$more"; do
    worker_alive || more=false # before reading, so that all that the run wrote is read below
    while IFS= read -r line; do
      ((number < first)) || printf '%d:%s\n' "$number" "$rest$line"
      number=$((number + 1)) rest=""
    done <&3
    rest+="$line" # an incomplete line
    ! "$more" || sleep 0.2
  done
  [[ -z "$rest" ]] || printf '%d:%s\n' "$number" "$rest"
  echo "end:$(worker_status)"
}

worker_finish() {
  flock --shared -w "$1" "$state/lock" true || worker_stop "$2"
  local code
  code="$(worker_status)"
  [[ "$code" != 0 ]] || return 0
  echo "ended with status $code; the last lines of its log:"
  tail -n 15 "$state/log" | sed 's/^/    /'
  return $((code < 255 ? code : 1)) # 255 is ssh's own failure
}

worker_stop() {
  if ! worker_alive; then
    echo "no run is in progress"
    return 0
  fi
  local group
  group="$(cat "$state/pid")"
  kill -TERM -- "-$group" 2> /dev/null || true
  if ! flock --shared -w "$1" "$state/lock" true; then
    kill -KILL -- "-$group" 2> /dev/null || true
    flock --shared -w 10 "$state/lock" true || { echo "processes of the run are alive after SIGKILL"; return 1; }
  fi
  [[ -f "$state/status" ]] || echo 137 > "$state/status"
  echo "stopped"
}

case "$1" in
  run | probe | follow) "worker_$1" "${@:2}" ;;
  *) # several workers write to one terminal
    (set -e; "worker_$1" "${@:2}") 2>&1 | sed -u "s/^/worker $worker: /"
    ;;
esac
