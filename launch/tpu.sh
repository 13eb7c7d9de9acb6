#!/usr/bin/env bash
# Sourced by run.sh: the run on the workers of a TPU, from a laptop (so for macOS's bash 3.2, as what it sources). Its
# counterpart on the workers is worker.sh, which is copied there with the rest of the tree.
#
# STAR_POLL: seconds between two polls of a state (15); STAR_GRACE: seconds from SIGTERM to SIGKILL (30).

# shellcheck source=launch/gcloud.sh
source "$(dirname "${BASH_SOURCE[0]}")/gcloud.sh"

tpu_worker=star_jax/launch/worker.sh # relative to a worker's home

tpu_main() {
  tpu_check
  tpu_scratch="$(mktemp -d)"
  trap 'rm -rf "$tpu_scratch"' EXIT
  case "$tpu_action" in
    stop) tpu_stop ;;
    delete)
      (tpu_stop) || true # delete also a TPU that cannot be reached: it costs as much
      tpu_delete
      ;;
    *)
      tpu_ready
      # From here on the run may be in progress on the workers, even if the connection to them failed.
      trap 'tpu_say "the run continues; the same command shows its log again, --stop ends it"; exit 130' INT
      tpu_start "$@"
      tpu_follow
      trap - INT
      tpu_finish
      ;;
  esac
}

# Starts the run on all workers, unless the same one is alive there already.
tpu_start() {
  (umask 077 && tpu_command "$@" > "$tpu_scratch/star_jax.command") # it may hold a token
  local probes workers alive checksum
  probes="$(cloud_ssh all "test -f $tpu_worker && bash $tpu_worker probe || echo probe:")" || tpu_unreachable
  workers="$(grep -c '^probe:' <<< "$probes")" || true
  alive="$(grep -c '^probe:[^:]*:alive:' <<< "$probes")" || true
  if grep -q '^probe:0:alive:' <<< "$probes"; then
    checksum="$(cksum < "$tpu_scratch/star_jax.command")"
    grep -qxF "probe:0:alive:$checksum" <<< "$probes" || tpu_fail "another run is in progress on $tpu_name;" \
      "end it with --stop, or repeat its command to see its log"
    tpu_say "this run is in progress already; its log follows"
    return 0
  fi
  tpu_check_workdir "$workers" "$@"
  [[ "$alive" == 0 ]] || tpu_stop # remaining processes of a broken run
  tpu_send
  cloud_ssh all "bash $tpu_worker start" >&2 ||
    tpu_fail "the run could not be started on every worker; --stop ends it on those that it was started on"
}

# Prints the file that the workers source. It is quoted once; sent as a file, no other shell expands it on the way.
tpu_command() {
  local pair
  for pair in ${tpu_env[@]+"${tpu_env[@]}"}; do
    printf 'export %s=%q\n' "${pair%%=*}" "${pair#*=}"
  done
  printf 'setup_command=%q\nextras=%q\nflags=(' "$tpu_setup" "${STAR_EXTRAS-tpu}"
  printf ' %q' "$@"
  printf ' )\n'
}

tpu_check_workdir() {
  local workers="$1" flag workdir=""
  for flag in "${@:2}"; do
    case "$flag" in --workdir=* | -workdir=*) workdir="${flag#*=}" ;; esac
  done
  [[ "$workdir" == /* ]] && return 0
  [[ "$workers" == 1 ]] || tpu_fail "$tpu_name has $workers workers: give --workdir=/PATH on storage that all of" \
    "them see (--setup mounts it)"
  tpu_say "the run is stored on the TPU's own disk and is deleted with it; --workdir=/PATH on other storage keeps it"
}

# Copies or clones, and installs, on all workers.
tpu_send() {
  local get url ref size
  if [[ -n "$tpu_clone" ]]; then
    url="$(tpu_url)" ref="HEAD"
    [[ "$url" == "$tpu_clone" ]] || ref="${tpu_clone#"$url@"}"
    get="git init -q star_jax && git -C star_jax fetch -q --depth=1 $(printf '%q %q' "$url" "$ref")"
    get+=" && git -C star_jax checkout -q --force FETCH_HEAD"
    tpu_say "cloning $url ($ref) on every worker"
  else
    get="mkdir -p star_jax && if test -f star_jax.tar.gz; then tar -xzf star_jax.tar.gz -C star_jax; fi"
    size="$(tpu_files | xargs -0 cat 2> /dev/null | head -c $((101 << 20)) | wc -c)" || true
    ((size <= 100 << 20)) || tpu_fail "the working tree to copy has over 100 MB: list large files in .gitignore," \
      "or use --clone=URL"
    tpu_files | COPYFILE_DISABLE=1 tar --null -T - -czf "$tpu_scratch/star_jax.tar.gz"
    tpu_say "copying the working tree to every worker"
  fi
  cloud_scp "$tpu_scratch"/star_jax.* >&2 || tpu_unreachable
  cloud_ssh all "$get && bash $tpu_worker install" >&2 || tpu_fail "installing failed; the messages are above"
}

# Prints --clone less its @REF. An @ of user@host has a : or a / after it; one after .git begins a REF in any case.
tpu_url() {
  case "$tpu_clone" in
    *.git@*) echo "${tpu_clone%.git@*}.git" ;;
    *) if [[ "${tpu_clone##*@}" == *[:/]* ]]; then echo "$tpu_clone"; else echo "${tpu_clone%@*}"; fi ;;
  esac
}

# Prints the files of the working tree less those that git ignores, each name terminated by NUL.
tpu_files() {
  local file
  if git rev-parse --is-inside-work-tree > /dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard
  else
    find . \( -name .venv -o -name runs -o -name __pycache__ \) -prune -o -type f -print0
  fi | while IFS= read -r -d '' file; do
    # Git lists a deleted file until the deletion is committed.
    [[ ! -e "$file" && ! -L "$file" ]] || printf '%s\0' "$file"
  done
}

# Prints worker 0's log to standard output as it grows, and sets tpu_status to the run's exit status. The worker numbers
# the lines: gcloud and this loop both reconnect, and no line may be repeated or lost.
tpu_follow() {
  local seen=0 breaks=0 line number
  tpu_status=""
  while true; do
    while IFS= read -r line; do
      number="${line%%:*}"
      if [[ "$number" == end ]]; then
        tpu_status="${line#end:}"
      elif [[ ! "$number" =~ ^[0-9]+$ ]]; then
        printf '%s\n' "$line" >&2 # a message of ssh
      elif ((number > seen)); then
        printf '%s\n' "${line#*:}"
        seen="$number" breaks=0
      fi
    done < <(cloud_ssh 0 "bash $tpu_worker follow $((seen + 1))")
    [[ -z "$tpu_status" ]] || break
    tpu_exit_if_gone
    breaks=$((breaks + 1))
    ((breaks <= 40)) || tpu_fail "worker 0 cannot be reached; the run may continue: repeat the command for its log"
    tpu_say "the connection to worker 0 broke; reconnecting"
    sleep "${STAR_POLL:-15}"
  done
}

# Exits with worker 0's status. If it failed, the other workers are stopped at once.
tpu_finish() {
  local wait=0 code=0
  [[ "$tpu_status" != 0 && "$tpu_status" != 75 ]] || wait=60 # finished, or stopped by SIGTERM: so are the others, soon
  cloud_ssh all "bash $tpu_worker finish $wait ${STAR_GRACE:-30}" >&2 || code=$?
  [[ "$tpu_status" == 0 ]] || code="$tpu_status"
  if [[ "$code" != 0 ]]; then
    tpu_exit_if_gone # a preemption may end the run with a SIGTERM first
    if [[ "$code" == 2 ]]; then # wrong input
      tpu_say "the run ended with status 2"
    else
      tpu_say "the run ended with status $code; the same command continues it"
    fi
  fi
  exit "$code"
}

tpu_exit_if_gone() {
  local state
  state="$(tpu_state)" || return 0 # gcloud's failure does not mean that the TPU is gone
  case "$state" in
    ABSENT | PREEMPTED | TERMINATED | SUSPENDED | SUSPENDING | STOPPED | STOPPING | DELETING)
      tpu_say "$tpu_name is $state; rerun with --create to create it again and to continue the run"
      exit 75
      ;;
  esac
}

tpu_stop() {
  local state
  state="$(tpu_state)"
  if [[ "$state" == READY ]]; then
    cloud_ssh all "! test -f $tpu_worker || bash $tpu_worker stop ${STAR_GRACE:-30}" >&2 ||
      tpu_fail "the run could not be stopped on every worker"
  else
    tpu_say "no run is in progress: $tpu_name is $state"
  fi
}

tpu_unreachable() { tpu_fail "the workers of $tpu_name cannot be reached; gcloud's message is above"; }
