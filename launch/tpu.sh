#!/usr/bin/env bash
# Sourced by run.sh: everything that --tpu=NAME does, through gcloud. It runs on laptops: bash 3.2 (macOS) must do.
# Its counterpart on the workers is worker.sh, which is copied there with the rest of the working tree.
#
# STAR_POLL: seconds between two looks at a TPU that is not ready (15); STAR_GRACE: seconds from SIGTERM to SIGKILL (30).

tpu_help() {
  cat << 'END'
launch/run.sh [--tpu=NAME ...] [flags of star_jax.main, below]

  --tpu=NAME          run on every worker of this TPU VM, stream worker 0's log, return its exit status. The same
                      command shows the log of a run that is going on, and goes on with one that was interrupted
  --zone, --project   where it is; default: gcloud's configuration
  --create --type=T   make it where it is absent, and anew where it was preempted: v5litepod-8, v4-32, v6e-16, ...
     --version=V      its software; default: the one for JAX on that type
     --spot           cheaper, and may be taken away: exit status 75. Goes on with the same command
     --queued         ask through a queued resource, and wait for it
     --create-flag=F  any other flag of gcloud's create, e.g. --create-flag=--reserved
  --clone=URL[@REF]   clone there, instead of copying this working tree (without what git ignores)
  --setup=COMMAND     run on every worker first, each time: mounts the storage that holds --workdir
  --env=NAME[=VALUE]  a variable for the run, e.g. HF_TOKEN or LIBTPU_INIT_ARGS; no others are passed on
  --internal-ip       ssh to internal addresses
  --stop              end the run, keep the TPU
  --delete            end the run, delete the TPU and its queued resource

--workdir must be on storage that all workers see and that outlives them: NFS (Filestore), or a bucket with gcsfuse.
STAR_EXTRAS is what is installed there (tpu).

END
}

# --- every call of gcloud ---

cloud() { gcloud compute tpus "$@" --zone="$tpu_zone" --project="$tpu_project" --quiet < /dev/null; }

cloud_default() { gcloud config get-value "$1" 2> /dev/null < /dev/null; }

cloud_state() { cloud "$1" describe "$tpu_name" --format="value($2)"; }

cloud_create() {
  cloud tpu-vm create "$tpu_name" --accelerator-type="$tpu_type" --version="$tpu_version" "$@"
}

cloud_queue() {
  cloud queued-resources create "$tpu_name" --node-id="$tpu_name" --accelerator-type="$tpu_type" \
    --runtime-version="$tpu_version" "$@"
}

cloud_delete() { cloud tpu-vm delete "$tpu_name"; }

cloud_unqueue() { cloud queued-resources delete "$tpu_name" --force; }

# A connection that died without a word (a preempted VM) ends after a minute.
cloud_ssh() { # WORKERS COMMAND
  cloud tpu-vm ssh "$tpu_name" --worker="$1" --command="$2" ${tpu_ssh[@]+"${tpu_ssh[@]}"} \
    --ssh-flag=-oServerAliveInterval=15 --ssh-flag=-oServerAliveCountMax=4
}

cloud_scp() { # FILE...: to every worker's home
  cloud tpu-vm scp "$@" "$tpu_name:" --worker=all ${tpu_ssh[@]+"${tpu_ssh[@]}"}
}

# --- flags ---

tpu_parse() {
  tpu_name="" tpu_zone="" tpu_project="" tpu_type="" tpu_version="" tpu_clone="" tpu_setup="" tpu_do="" tpu_queued=false
  tpu_made_by="" # the flags that go with --create, for the message
  tpu_create=() tpu_ssh=() tpu_env=() star_flags=()
  local flag value first=""
  for flag in "$@"; do
    value="${flag#*=}"
    case "$flag" in
      --tpu=?*) tpu_name="$value" ;;
      --zone=?*) tpu_zone="$value" ;;
      --project=?*) tpu_project="$value" ;;
      --type=?*) tpu_type="$value" tpu_made_by="--type" ;;
      --version=?*) tpu_version="$value" tpu_made_by="--version" ;;
      --spot) tpu_create+=(--spot) tpu_made_by="--spot" ;;
      --queued) tpu_queued=true tpu_made_by="--queued" ;;
      --create-flag=?*) tpu_create+=("$value") tpu_made_by="--create-flag" ;;
      --clone=?*) tpu_clone="$value" ;;
      --setup=?*) tpu_setup="$value" ;;
      --env=?*) tpu_add_env "$value" ;;
      --internal-ip) tpu_ssh+=(--internal-ip) ;;
      --create | --stop | --delete)
        [[ -z "$tpu_do" || "$tpu_do" == "${flag#--}" ]] || tpu_fail "give one of --create, --stop and --delete"
        tpu_do="${flag#--}"
        ;;
      --tpu* | --zone | --zone= | --project | --project= | --type | --type= | --version | --version= | --create-flag | \
        --create-flag= | --clone | --clone= | --setup | --setup= | --env | --env=)
        tpu_fail "$flag needs a value: ${flag%%=*}=..."
        ;;
      *)
        star_flags+=("$flag")
        continue
        ;;
    esac
    [[ "$flag" == --tpu=* ]] || first="${first:-${flag%%=*}}"
  done
  [[ -n "$tpu_name" || -z "$first" ]] || tpu_fail "$first goes with --tpu=NAME"
}

tpu_add_env() {
  local name="${1%%=*}"
  [[ "$name" =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || tpu_fail "--env=$1: $name is no name of a variable"
  if [[ "$1" == *=* ]]; then
    tpu_env+=("$1")
  elif [[ -n "${!name+set}" ]]; then
    tpu_env+=("$name=${!name}")
  else
    tpu_fail "--env=$name: $name is not set here; set it, or give --env=$name=VALUE"
  fi
}

tpu_check() {
  command -v gcloud > /dev/null || tpu_fail "gcloud is not on the PATH; --tpu needs the Google Cloud CLI"
  [[ -n "$tpu_zone" ]] || tpu_zone="$(cloud_default compute/zone)" || true
  [[ -n "$tpu_zone" ]] || tpu_fail "give --zone=ZONE, or set one: gcloud config set compute/zone ZONE"
  [[ -n "$tpu_project" ]] || tpu_project="$(cloud_default core/project)" || true
  [[ -n "$tpu_project" ]] || tpu_fail "give --project=PROJECT, or set one: gcloud config set project PROJECT"
  if [[ "$tpu_do" != create ]]; then
    [[ -z "$tpu_made_by" || -n "$tpu_do" ]] || tpu_fail "$tpu_made_by goes with --create"
    return 0
  fi
  [[ -n "$tpu_type" ]] || tpu_fail "--create needs --type, e.g. --type=v5litepod-8"
  [[ -n "$tpu_version" ]] && return 0
  case "$tpu_type" in
    v2-* | v3-* | v4-*) tpu_version=tpu-ubuntu2204-base ;;
    v5litepod-*) tpu_version=v2-alpha-tpuv5-lite ;;
    v5p-*) tpu_version=v2-alpha-tpuv5 ;;
    v6e-*) tpu_version=v2-alpha-tpuv6e ;;
    *) tpu_fail "--type=$tpu_type: no software version is known for it here; give --version=VERSION" ;;
  esac
}

# --- what run.sh calls ---

tpu_main() {
  tpu_check
  tpu_scratch="$(mktemp -d)"
  trap 'rm -rf "$tpu_scratch"' EXIT
  case "$tpu_do" in
    stop) tpu_stop ;;
    delete)
      (tpu_stop) || true # a TPU that cannot be reached costs as much
      tpu_delete
      ;;
    *)
      tpu_ready
      tpu_start "$@"
      tpu_follow
      tpu_finish
      ;;
  esac
}

# --- the TPU ---

# Prints the TPU's state, or its queued resource's while there is no TPU, or ABSENT.
tpu_state() {
  local state
  state="$(tpu_describe tpu-vm state)" || return
  if [[ "$state" == ABSENT ]]; then
    state="$(tpu_describe queued-resources state.state)" || return
    [[ "$state" != ACTIVE ]] || state=PROVISIONING # the TPU is a moment behind its queued resource
  fi
  echo "$state"
}

tpu_describe() {
  if cloud_state "$1" "$2" 2> "$tpu_scratch/error"; then
    return 0
  elif grep -qi 'not[_ ]found' "$tpu_scratch/error"; then
    echo ABSENT
  else
    cat "$tpu_scratch/error" >&2
    tpu_say "gcloud cannot describe $tpu_name in $tpu_zone (project $tpu_project)"
    return 2
  fi
}

# Returns when the TPU is READY; with --create, makes it where it is not there (any more).
tpu_ready() {
  local state said="" looks=0 made=false
  while true; do
    # The first look must succeed; during hours in a queue the network may fail for a moment.
    state="$(tpu_state)" || { [[ -n "$said" ]] || exit 2; state=UNKNOWN; }
    [[ "$state" != READY ]] || return 0
    if [[ "$state" != "$said" || $((looks % 40)) == 0 ]]; then
      tpu_say "$tpu_name is $state"
      said="$state"
    fi
    case "$state" in
      ABSENT | PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        [[ "$tpu_do" == create ]] || tpu_fail "there is no TPU $tpu_name to run on in $tpu_zone ($state);" \
          "the same command with --create --type=TYPE makes it, and goes on with its run"
        ! "$made" || tpu_fail "$tpu_name became $state as soon as it was asked for; see gcloud's messages, or try --queued"
        [[ "$state" == ABSENT ]] || tpu_delete
        tpu_make
        made=true
        ;;
      STOPPED | HIDDEN)
        tpu_fail "$tpu_name is $state; start it: gcloud compute tpus tpu-vm start $tpu_name --zone=$tpu_zone"
        ;;
      *) sleep "${STAR_POLL:-15}" ;;
    esac
    looks=$((looks + 1))
  done
}

tpu_make() {
  local how=cloud_create
  ! "$tpu_queued" || how=cloud_queue
  tpu_say "creating $tpu_name ($tpu_type, $tpu_version) in $tpu_zone"
  "$how" ${tpu_create[@]+"${tpu_create[@]}"} || tpu_fail "gcloud could not create $tpu_name; its message is above"
}

tpu_delete() {
  local queue state
  queue="$(tpu_describe queued-resources state.state)"
  state="$(tpu_describe tpu-vm state)"
  if [[ "$queue" != ABSENT ]]; then
    cloud_unqueue || tpu_fail "gcloud could not delete the queued resource $tpu_name; its message is above"
  elif [[ "$state" != ABSENT ]]; then
    cloud_delete || tpu_fail "gcloud could not delete $tpu_name; its message is above"
  else
    tpu_say "there is no TPU $tpu_name in $tpu_zone"
    return 0
  fi
  tpu_say "deleted $tpu_name"
}

# --- the run ---

# Starts the run on all workers, unless the same one is alive there already.
tpu_start() {
  (umask 077 && tpu_command "$@" > "$tpu_scratch/star_jax.command") # it may hold a token
  local probes workers alive checksum
  probes="$(cloud_ssh all "$(tpu_worker probe) || echo probe:")" || tpu_fail "the workers of $tpu_name cannot be reached"
  workers="$(grep -c '^probe:' <<< "$probes")" || true
  alive="$(grep -c '^probe:[^:]*:alive:' <<< "$probes")" || true
  if grep -q '^probe:0:alive:' <<< "$probes"; then
    checksum="$(cksum < "$tpu_scratch/star_jax.command")"
    grep -qxF "probe:0:alive:$checksum" <<< "$probes" || tpu_fail "another run is going on on $tpu_name;" \
      "end it with --stop, or give its own command to see its log"
    tpu_say "this run is going on already; its log follows"
    return 0
  fi
  tpu_check_workdir "$workers" "$@"
  [[ "$alive" == 0 ]] || tpu_stop # what a broken run left
  tpu_send
  cloud_ssh all "bash star_jax/launch/worker.sh start" || tpu_fail "the run could not be started on every worker; --stop ends it"
}

# A command for the workers: a verb of worker.sh, where there has been a copy.
tpu_worker() { echo "test -f star_jax/launch/worker.sh && bash star_jax/launch/worker.sh $1"; }

# What the workers source. Quoted for a shell once, and sent as a file: nothing between here and there reads it.
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
  [[ "$workers" == 1 ]] || tpu_fail "$tpu_name has $workers workers: give --workdir=/PATH on storage that all of them see" \
    "(--setup mounts it)"
  tpu_say "the run's files are on the TPU's own disk and go with it; --workdir=/PATH on other storage keeps them"
}

# Copies or clones, and installs, on all workers.
tpu_send() {
  local get url ref size
  if [[ -n "$tpu_clone" ]]; then
    url="$(tpu_url)" ref="HEAD"
    [[ "$url" == "$tpu_clone" ]] || ref="${tpu_clone#"$url@"}"
    get="git init -q star_jax && cd star_jax && git fetch -q --depth=1 $(printf '%q %q' "$url" "$ref") &&"
    get+=" git checkout -q --force FETCH_HEAD && cd .."
    tpu_say "cloning $url ($ref) on every worker"
  else
    get="mkdir -p star_jax && if test -f star_jax.tar.gz; then tar -xzf star_jax.tar.gz -C star_jax; fi"
    tpu_files | COPYFILE_DISABLE=1 tar --null -T - -czf "$tpu_scratch/star_jax.tar.gz"
    size=$(($(wc -c < "$tpu_scratch/star_jax.tar.gz") >> 20))
    ((size <= 200)) || tpu_fail "the working tree to copy has $size MB: let .gitignore name what is large, or use --clone=URL"
    tpu_say "copying the working tree to every worker"
  fi
  cloud_scp "$tpu_scratch"/star_jax.* || tpu_fail "the workers of $tpu_name cannot be reached"
  cloud_ssh all "$get && bash star_jax/launch/worker.sh install" || tpu_fail "installing failed; the messages are above"
}

# --clone without its @REF. An @ of user@host is followed by a : or a / somewhere, unless .git stands before it.
tpu_url() {
  case "$tpu_clone" in
    *.git@*) echo "${tpu_clone%.git@*}.git" ;;
    *) if [[ "${tpu_clone##*@}" == *[:/]* ]]; then echo "$tpu_clone"; else echo "${tpu_clone%@*}"; fi ;;
  esac
}

# The working tree without what git ignores, each name ended by NUL.
tpu_files() {
  local file
  if git rev-parse --is-inside-work-tree > /dev/null 2>&1; then
    git ls-files -z --cached --others --exclude-standard
  else
    find . \( -name .venv -o -name runs -o -name __pycache__ \) -prune -o -type f -print0
  fi | while IFS= read -r -d '' file; do
    # Git lists deleted files until that is committed.
    [[ ! -e "$file" && ! -L "$file" ]] || printf '%s\0' "$file"
  done
}

# Prints worker 0's log as it grows and leaves the run's exit status in tpu_status. The lines come numbered: gcloud and
# this loop both take up a broken connection, and no line may come twice or be lost.
tpu_follow() {
  local seen=0 breaks=0 line number state
  tpu_status=""
  trap 'tpu_say "the run goes on; the same command shows its log again, with --stop it ends"; exit 130' INT
  while true; do
    while IFS= read -r line; do
      number="${line%%:*}"
      if [[ "$number" == end ]]; then
        tpu_status="${line#end:}"
      elif [[ ! "$number" =~ ^[0-9]+$ ]]; then
        printf '%s\n' "$line" >&2 # not ours: ssh's
      elif ((number > seen)); then
        printf '%s\n' "${line#*:}"
        seen="$number" breaks=0
      fi
    done < <(cloud_ssh 0 "bash star_jax/launch/worker.sh follow $((seen + 1))")
    [[ -z "$tpu_status" ]] || break
    state="$(tpu_state)" || state=UNKNOWN
    case "$state" in
      ABSENT | PREEMPTED | TERMINATED | SUSPENDED | SUSPENDING | STOPPED | STOPPING | DELETING)
        tpu_say "$tpu_name is $state; the same command with --create makes it anew, and goes on with the run"
        exit 75
        ;;
    esac
    breaks=$((breaks + 1))
    ((breaks <= 40)) || tpu_fail "worker 0 cannot be reached; the run may go on, and the same command shows its log again"
    tpu_say "the connection to worker 0 broke ($tpu_name is $state); connecting again"
    sleep "${STAR_POLL:-15}"
  done
  trap - INT
}

# Exits with worker 0's status. Once it has failed the others will not do anything good: they are stopped at once.
tpu_finish() {
  local wait=0 code=0
  [[ "$tpu_status" != 0 ]] || wait=60
  cloud_ssh all "bash star_jax/launch/worker.sh finish $wait ${STAR_GRACE:-30}" || code=$?
  [[ "$tpu_status" == 0 ]] || code="$tpu_status"
  [[ "$code" == 0 ]] || tpu_say "the run ended with status $code; the same command goes on from there"
  exit "$code"
}

tpu_stop() {
  local state
  state="$(tpu_state)"
  if [[ "$state" == READY ]]; then
    cloud_ssh all "! test -f star_jax/launch/worker.sh || bash star_jax/launch/worker.sh stop ${STAR_GRACE:-30}" ||
      tpu_fail "the run could not be stopped on every worker"
  else
    tpu_say "no run is going on: $tpu_name is $state"
  fi
}

tpu_say() { echo "star_jax: $*" >&2; }

tpu_fail() {
  tpu_say "$@"
  exit 2
}
