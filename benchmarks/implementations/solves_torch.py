"""Solves in PyTorch, as the published codes do: the baseline."""

from typing import Any

import torch
from common.workload import SolveWorkload

from implementations.base_torch import TorchImplementation


class Baseline(TorchImplementation):
  """`torch.linalg.solve` of λC + KᵀK for every batch."""

  dtype = torch.float64

  def __init__(self, workload: SolveWorkload):
    super().__init__(None)
    self.cov_weight = workload.cov_weight
    self.cov_FxF = torch.from_numpy(workload.covariance()).to(self.device)
    self.keys = {b: torch.from_numpy(key).to(self.device) for b, key in workload.keys().items()}

  def warm_up(self) -> dict[str, Any]:
    self.round(0, 1)
    return self.started()

  def round(self, number: int, rounds: int) -> dict[str, Any]:
    del number, rounds
    parts, answers = {}, {}
    for count, key_BxF in self.keys.items():
      start = self.now()
      matrix_FxF = self.cov_weight * self.cov_FxF.double() + key_BxF.T @ key_BxF
      left_FxB = torch.linalg.solve(matrix_FxF, key_BxF.T)
      parts[f'solve {count}'] = self.now() - start
      answers[f'left {count}'] = left_FxB[None].cpu().numpy()
    return {
      'seconds': sum(parts.values()),
      'amount': 1,
      'parts': parts,
      'compile_seconds': None,
      'answers': {'indices': [0], **answers},
    }
