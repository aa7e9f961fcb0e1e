#!/usr/bin/env bash
# Runs one experiment on this machine, on all devices that JAX finds.
#
#   launch/local.sh --config=configs/NAME.py --workdir=DIR --config.field=value
#   launch/local.sh --dry-run ...      only prints the command
set -euo pipefail

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi

command=("${PYTHON:-python}" -m jedit.main "$@")
cd "$(dirname "${BASH_SOURCE[0]}")/.."  # paths of configs/ and runs/ are relative to the clone
if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
