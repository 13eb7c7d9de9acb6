#!/usr/bin/env bash
# Sourced by tpu.sh: every call of gcloud, and the state, creation and deletion of the TPU.

# shellcheck source=launch/flags.sh
source "$(dirname "${BASH_SOURCE[0]}")/flags.sh"

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

# The keep-alive ends a dead connection (of a preempted VM) after a minute.
cloud_ssh() { # WORKERS COMMAND
  cloud tpu-vm ssh "$tpu_name" --worker="$1" --command="$2" ${tpu_ssh[@]+"${tpu_ssh[@]}"} \
    --ssh-flag=-oServerAliveInterval=15 --ssh-flag=-oServerAliveCountMax=4
}

cloud_scp() { # FILE...: to every worker's home
  cloud tpu-vm scp "$@" "$tpu_name:" --worker=all ${tpu_ssh[@]+"${tpu_ssh[@]}"}
}

# Prints the TPU's state; without a TPU that of its queued resource, or ABSENT.
tpu_state() {
  local state
  state="$(tpu_describe tpu-vm state)" || return
  if [[ "$state" == ABSENT ]]; then
    state="$(tpu_describe queued-resources state.state)" || return
    [[ "$state" != ACTIVE ]] || state=PROVISIONING # the TPU appears a moment later
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

# Returns when the TPU is READY. With --create, creates it if it is absent or gone.
tpu_ready() {
  local state last="" polls=0 created=false
  while true; do
    # The first request must succeed. Later, in hours of waiting in a queue, the network may fail for a moment.
    state="$(tpu_state)" || { [[ -n "$last" ]] || exit 2; state=UNKNOWN; }
    [[ "$state" != READY ]] || return 0
    if [[ "$state" != "$last" || $((polls % 40)) == 0 ]]; then
      tpu_say "$tpu_name is $state"
      last="$state"
    fi
    case "$state" in
      ABSENT | PREEMPTED | TERMINATED | SUSPENDED | FAILED)
        [[ "$tpu_action" == create ]] || tpu_fail "there is no TPU $tpu_name in $tpu_zone ($state);" \
          "rerun with --create --type=TYPE to create it and to continue the run"
        ! "$created" || tpu_fail "$tpu_name became $state right after its creation; see gcloud's messages above"
        [[ "$state" == ABSENT ]] || tpu_delete
        tpu_create
        created=true
        ;;
      STOPPED | HIDDEN)
        tpu_fail "$tpu_name is $state; start it:" \
          "gcloud compute tpus tpu-vm start $tpu_name --zone=$tpu_zone --project=$tpu_project"
        ;;
      *) sleep "${STAR_POLL:-15}" ;;
    esac
    polls=$((polls + 1))
  done
}

tpu_create() {
  local command=cloud_create
  ! "$tpu_queued" || command=cloud_queue
  tpu_say "creating $tpu_name ($tpu_type, $tpu_version) in $tpu_zone"
  "$command" ${tpu_create_flags[@]+"${tpu_create_flags[@]}"} ||
    tpu_fail "gcloud could not create $tpu_name; its message is above"
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
