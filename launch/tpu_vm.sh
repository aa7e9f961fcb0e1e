#!/usr/bin/env bash
# Runs one experiment on all workers of a TPU VM, which find each other by themselves.
#
#   ZONE=us-west4-a launch/tpu_vm.sh TPU_NAME --config=configs/NAME.py --workdir=SHARED_DIR
#   launch/tpu_vm.sh --dry-run TPU_NAME ...      prints the command instead
#
# Every worker has a clone in ~/jedit (or DIRECTORY) with jedit installed beside jax[tpu]; the
# workdir lies on a disk that all of them see.
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
