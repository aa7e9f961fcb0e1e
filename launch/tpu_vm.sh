#!/usr/bin/env bash
# Runs one experiment on all workers of a TPU VM; JAX finds their addresses.
#
#   ZONE=us-west4-a launch/tpu_vm.sh TPU_NAME --config=configs/NAME.py --workdir=SHARED_DIR
#   launch/tpu_vm.sh --dry-run TPU_NAME ...      only prints the command
#
# Every worker needs a clone in ~/jedit (or DIRECTORY) with jedit and jax[tpu] installed; the
# workdir must be on a disk that all workers share.
set -euo pipefail

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
if [[ $# -eq 0 || "$1" == -* ]]; then
  echo 'Give the name of the TPU VM first: launch/tpu_vm.sh TPU_NAME ...' >&2
  exit 2
fi
name=$1
shift

line="cd ${DIRECTORY:-jedit} && exec python -m jedit.main --coordinator=auto$(printf ' %q' "$@")"
command=(gcloud compute tpus tpu-vm ssh "$name" --worker=all "--command=$line")
if [[ -n "${ZONE:-}" ]]; then
  command+=("--zone=$ZONE")
fi
if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
