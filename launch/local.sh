#!/usr/bin/env bash
# Runs one experiment on this machine, on every device that JAX sees.
#
#   launch/local.sh --config=configs/NAME.py --workdir=DIR --config.field=value
#   launch/local.sh --dry-run ...      prints the command instead
set -euo pipefail

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi

command=("${PYTHON:-python}" -m jedit.main "$@")
cd "$(dirname "${BASH_SOURCE[0]}")/.."  # where configs/ and runs/ are
if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
