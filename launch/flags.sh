#!/usr/bin/env bash
# Sourced by gcloud.sh: parses the launcher's own flags into tpu_*, and collects those of star_jax.main in star_flags.
# shellcheck disable=SC2034 # gcloud.sh and tpu.sh read them

tpu_help() {
  cat << 'END'
launch/run.sh [--tpu=NAME ...] [flags of star_jax.main, below]

  --tpu=NAME          run on every worker of this TPU VM, stream worker 0's log, return its exit status. The same
                      command attaches to a run in progress, and continues one that was interrupted
  --zone, --project   of the TPU; default: gcloud's configuration
  --create --type=T   create it if it is absent or was preempted: v5litepod-8, v4-32, v6e-16, ...
     --version=V      its software; default: the one for JAX on that type
     --spot           cheaper, and may be preempted: exit status 75, as of a run that SIGTERM stopped. The same
                      command continues the run
     --queued         ask for it through a queued resource, and wait
     --create-flag=F  any other flag of gcloud's create, e.g. --create-flag=--reserved
  --clone=URL[@REF]   clone on the workers, instead of copying this working tree (less what git ignores)
  --setup=COMMAND     run on every worker first, each time, e.g. to mount the storage that holds --workdir
  --env=NAME[=VALUE]  a variable for the run, e.g. HF_TOKEN or LIBTPU_INIT_ARGS; no others are passed on
  --internal-ip       ssh to internal addresses
  --stop              end the run, keep the TPU
  --delete            end the run, delete the TPU and its queued resource

--workdir must be on storage that all workers see and that outlives them: NFS (Filestore), or a bucket with gcsfuse.
STAR_EXTRAS names the extras that are installed on the workers (tpu).

END
}

tpu_parse() {
  tpu_name="" tpu_zone="" tpu_project="" tpu_type="" tpu_version="" tpu_clone="" tpu_setup="" tpu_action=""
  tpu_queued=false
  tpu_scratch="" # a temporary directory, made by tpu_main
  tpu_needs_create="" # the last flag that needs --create, for the error message
  tpu_create_flags=() tpu_ssh=() tpu_env=() star_flags=()
  local flag value first=""
  for flag in "$@"; do
    value="${flag#*=}"
    case "$flag" in
      --tpu=?*) tpu_name="$value" ;;
      --zone=?*) tpu_zone="$value" ;;
      --project=?*) tpu_project="$value" ;;
      --type=?*) tpu_type="$value" tpu_needs_create="--type" ;;
      --version=?*) tpu_version="$value" tpu_needs_create="--version" ;;
      --spot) tpu_create_flags+=(--spot) tpu_needs_create="--spot" ;;
      --queued) tpu_queued=true tpu_needs_create="--queued" ;;
      --create-flag=?*) tpu_create_flags+=("$value") tpu_needs_create="--create-flag" ;;
      --clone=?*) tpu_clone="$value" ;;
      --setup=?*) tpu_setup="$value" ;;
      --env=?*) tpu_add_env "$value" ;;
      --internal-ip) tpu_ssh+=(--internal-ip) ;;
      --create | --stop | --delete)
        [[ -z "$tpu_action" || "$tpu_action" == "${flag#--}" ]] || tpu_fail "give one of --create, --stop and --delete"
        tpu_action="${flag#--}"
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
  [[ "$name" =~ ^[A-Za-z_][A-Za-z0-9_]*$ ]] || tpu_fail "--env=$1: $name is not a variable name"
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
  if [[ "$tpu_action" != create ]]; then
    [[ -z "$tpu_needs_create" || -n "$tpu_action" ]] || tpu_fail "$tpu_needs_create goes with --create"
    return 0
  fi
  [[ -n "$tpu_type" ]] || tpu_fail "--create needs --type, e.g. --type=v5litepod-8"
  [[ -n "$tpu_version" ]] && return 0
  case "$tpu_type" in
    v2-* | v3-* | v4-*) tpu_version=tpu-ubuntu2204-base ;;
    v5litepod-*) tpu_version=v2-alpha-tpuv5-lite ;;
    v5p-*) tpu_version=v2-alpha-tpuv5 ;;
    v6e-*) tpu_version=v2-alpha-tpuv6e ;;
    *) tpu_fail "--type=$tpu_type: its software version is not known here; give --version=VERSION" ;;
  esac
}

tpu_say() { echo "star_jax: $*" >&2; }

tpu_fail() {
  tpu_say "$@"
  exit 2
}
