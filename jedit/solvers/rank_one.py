"""Rank-one updates of single edits: ROME, R-ROME."""

import dataclasses

import jax
import numpy as np

from jedit.solvers.base import check_finite
from jedit.solvers.devices import float64_alone
from jedit.solvers.factor_cache import Covariance
from jedit.solvers.penalty import Penalty
from jedit.types import UserError


@dataclasses.dataclass(frozen=True)
class RankOne:
  """One edit: ΔW = u rᵀ / (k' · u), u = (C + EᵀE)⁻¹ k, so that k' maps to exactly r.

  ROME (arXiv:2202.05262), eq. 2.

  Attributes:
    divide_by: 'bare_key' takes k' from the bare prompt (ROME's released code); 'mean_key' uses k
      itself (ROME, arXiv:2202.05262, eq. 2; R-ROME, arXiv:2403.07175).
    uses_cov: False replaces C by the identity without earlier keys: u = k (EasyEdit's setting).
  """

  divide_by: str = 'bare_key'
  uses_cov: bool = True

  def __post_init__(self) -> None:
    if self.divide_by not in ('bare_key', 'mean_key'):
      raise UserError(f'divide_by is {self.divide_by!r}; choose bare_key or mean_key.')

  def check_size(self, num_edits: int, key_size: int) -> None:
    """One edit at a time."""
    if num_edits != 1:
      raise UserError(
        f'A rank-one solve writes one edit at a time, not {num_edits}; edit one by one '
        '(edit.mode separate or sequential with edit.edits_per_batch 1), or choose a method for '
        'batches.'
      )

  def init(
    self, cov: Covariance | None, num_edits: int, earlier_key_NxF: np.ndarray | None = None
  ) -> Penalty | None:
    """See `jedit.solvers.base.Solver`; None for M = I, which leaves u = k."""
    del num_edits
    if not self.uses_cov:
      if earlier_key_NxF is None:
        return None
      return Penalty(Covariance(None, size=earlier_key_NxF.shape[1]), 1.0, earlier_key_NxF)
    assert cov is not None
    penalty = Penalty(cov, 0.0, earlier_key_NxF)
    penalty.start()
    return penalty

  def solve(
    self, state: Penalty | None, key_BxF: np.ndarray, bare_key_BxF: np.ndarray
  ) -> np.ndarray:
    """See `jedit.solvers.base.Solver`."""
    self.check_size(*key_BxF.shape)
    through_1xF = bare_key_BxF if self.divide_by == 'bare_key' else key_BxF
    u_Fx1 = key_BxF.T if state is None else state.precondition(key_BxF)
    left_Fx1 = u_Fx1 / (through_1xF @ u_Fx1)
    check_finite(left_Fx1, ', or set use_cov to False')
    return left_Fx1

  def residual(self, state: Penalty | None, key_BxF: np.ndarray, left_FxB: np.ndarray) -> float:
    """Of (C + EᵀE) X = k c, with the number c that fits best."""
    product_Fx1 = left_FxB
    if state is not None:
      with float64_alone():
        matrix = state.matrix()
        product_Fx1 = np.asarray(matrix.times(jax.device_put(left_FxB, matrix.device)))
    wanted_Fx1 = key_BxF.T @ (key_BxF @ product_Fx1) / np.square(key_BxF).sum()
    return float(np.linalg.norm(product_Fx1 - wanted_Fx1) / np.linalg.norm(wanted_Fx1))
