"""Least squares: MEMIT, PMET, JEEP."""

import dataclasses
from typing import ClassVar

import numpy as np

from jedit.solvers.base import check_finite, check_weight
from jedit.solvers.factor_cache import Covariance
from jedit.solvers.penalty import Penalty, over_root


@dataclasses.dataclass(frozen=True)
class LeastSquares:
  """Minimises λ tr(ΔWᵀ C ΔW) + ‖E ΔW‖² + ‖K ΔW - R‖²: left = (λC + EᵀE + KᵀK)⁻¹ Kᵀ.

  MEMIT (arXiv:2210.07229), eq. 14; PMET (arXiv:2308.08742), eq. 9. `residual` is that of these
  normal equations.

  Attributes:
    cov_weight: λ > 0; a larger one preserves more of the old behaviour.
  """

  cov_weight: float
  uses_cov: ClassVar[bool] = True

  def __post_init__(self) -> None:
    check_weight('cov_weight', self.cov_weight, above=True)

  def check_size(self, num_edits: int, key_size: int) -> None:
    """Any number of edits will do."""

  def init(
    self, cov: Covariance | None, num_edits: int, earlier_key_NxF: np.ndarray | None = None
  ) -> Penalty:
    """See `jedit.solvers.base.Solver`."""
    assert cov is not None
    penalty = Penalty(cov, 0.0, over_root(earlier_key_NxF, self.cov_weight))
    if cov.is_small(num_edits):
      penalty.start()
    return penalty

  def solve(self, state: Penalty, key_BxF: np.ndarray, bare_key_BxF: np.ndarray) -> np.ndarray:
    """See `jedit.solvers.base.Solver`."""
    del bare_key_BxF
    left_FxB = state.regularized(key_BxF, self.cov_weight)
    check_finite(left_FxB)
    return left_FxB

  def residual(self, state: Penalty, key_BxF: np.ndarray, left_FxB: np.ndarray) -> float:
    """See `jedit.solvers.base.Solver`."""
    return state.residual(key_BxF, left_FxB, self.cov_weight)
