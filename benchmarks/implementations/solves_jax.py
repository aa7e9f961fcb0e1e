"""Solves in JAX: the engine's least squares with the factor of C that a `FactorCache` keeps."""

import time
from typing import Any

import numpy as np
from common.workload import SolveWorkload

from implementations.base_jax import JaxImplementation
from jedit.solvers import FactorCache, LeastSquares
from jedit.types import Kernel

_KERNEL = Kernel(0, 'mlp')


class Engine(JaxImplementation):
  """`jedit.solvers.LeastSquares`: the factor once, then a solve and its check for every batch."""

  def __init__(self, workload: SolveWorkload):
    super().__init__('float64')
    self.cov_FxF, self.keys = workload.covariance(), workload.keys()
    self.solver = LeastSquares(workload.cov_weight)

  def work(self) -> tuple[dict[str, float], dict[int, np.ndarray]]:
    """Seconds by part, and the left factors by number of edits."""
    seconds: dict[str, float] = {}
    lefts: dict[int, np.ndarray] = {}
    factors = FactorCache({_KERNEL: self.cov_FxF})
    start = time.perf_counter()
    assert self.solver.init(factors[_KERNEL], 1).factor.is_definite
    seconds['factor'] = time.perf_counter() - start
    for count, key_BxF in self.keys.items():
      start = time.perf_counter()
      state = self.solver.init(factors[_KERNEL], count)
      lefts[count] = self.solver.solve(state, key_BxF, key_BxF)
      seconds[f'solve {count}'] = time.perf_counter() - start
      start = time.perf_counter()
      assert self.solver.residual(state, key_BxF, lefts[count]) < 1e-9
      seconds[f'check {count}'] = time.perf_counter() - start
    return seconds, lefts

  def report(self, done: Any, seconds: float) -> dict[str, Any]:
    parts, lefts = done
    answers = {f'left {count}': left_FxB[None] for count, left_FxB in lefts.items()}
    return {'amount': 1, 'parts': parts, 'answers': {'indices': [0], **answers}}
