#!/usr/bin/env bash
#SBATCH --job-name=jedit
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --requeue
# Runs one experiment as a Slurm job with one process per task; JAX gets their addresses from Slurm.
#
#   sbatch --nodes=2 --gres=gpu:8 launch/slurm.sh --config=configs/NAME.py --workdir=SHARED_DIR
#   launch/slurm.sh --dry-run ...      only prints the command
#
# Submit from the clone. A requeued job resumes in the same workdir.
set -euo pipefail

dry_run=false
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=true
  shift
fi

command=(srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m jedit.main --coordinator=auto "$@")
if $dry_run; then
  printf '%q ' "${command[@]}"
  echo
else
  cd "${SLURM_SUBMIT_DIR:-.}" # Slurm runs a copy of this script in another directory
  exec "${command[@]}"
fi
