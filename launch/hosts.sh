#!/usr/bin/env bash
# Runs one experiment on several machines, with one process on each, started over ssh.
#
#   launch/hosts.sh HOST,HOST,... --config=configs/NAME.py --workdir=SHARED_DIR
#   launch/hosts.sh --dry-run HOST,HOST,... ...      only prints the commands
#
# jedit must be in the same directory on every machine, the workdir on a disk that all machines
# share, and the first host reachable at PORT (default 8476). 'localhost' needs no ssh.
set -euo pipefail

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi
if [[ $# -eq 0 || "$1" == -* ]]; then
  echo 'Give the hosts first, separated by commas: launch/hosts.sh HOST,HOST ...' >&2
  exit 2
fi
IFS=, read -ra hosts <<<"$1"
shift

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' INT TERM
for id in "${!hosts[@]}"; do
  command=("${PYTHON:-python}" -m jedit.main "--coordinator=${hosts[0]}:${PORT:-8476}"
    "--num_processes=${#hosts[@]}" "--process_id=$id" "$@")
  line="cd $(printf '%q' "$root") && exec $(printf '%q ' "${command[@]}")"
  run=(ssh "${hosts[$id]}" "$line")
  if [[ "${hosts[$id]}" == localhost ]]; then
    run=(bash -c "$line")
  fi
  if $dry_run; then
    printf '%q ' "${run[@]}"
    echo
  else
    "${run[@]}" &
    pids+=($!)
  fi
done

# The first failure ends all processes; the others would wait forever.
for _ in "${pids[@]}"; do
  status=0
  wait -n || status=$?
  if ((status)); then
    kill "${pids[@]}" 2>/dev/null || true
    exit "$status"
  fi
done
