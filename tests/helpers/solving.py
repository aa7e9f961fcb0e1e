"""One solve from start to end."""

import numpy as np

from jedit.solvers import Covariance, Solver


def solve(
  solver: Solver,
  cov: np.ndarray | Covariance | None,
  key_BxF: np.ndarray,
  bare_key_BxF: np.ndarray | None = None,
  earlier_key_NxF: np.ndarray | None = None,
) -> np.ndarray:
  """`init` and `solve`; an array of second moments gets a cache of its own."""
  cov = Covariance(cov) if isinstance(cov, np.ndarray) else cov
  state = solver.init(cov, len(key_BxF), earlier_key_NxF)
  return solver.solve(state, key_BxF, key_BxF if bare_key_BxF is None else bare_key_BxF)


def residual(
  solver: Solver,
  cov: np.ndarray | Covariance | None,
  key_BxF: np.ndarray,
  left_FxB: np.ndarray,
  earlier_key_NxF: np.ndarray | None = None,
) -> float:
  """The residual on a state that has not solved."""
  cov = Covariance(cov) if isinstance(cov, np.ndarray) else cov
  return solver.residual(solver.init(cov, len(key_BxF), earlier_key_NxF), key_BxF, left_FxB)
