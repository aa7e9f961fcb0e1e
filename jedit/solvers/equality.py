"""Equality constraints: EMMET."""

import dataclasses
from typing import ClassVar

import jax
import numpy as np

from jedit.solvers.base import UnsolvableError, check_finite, check_weight
from jedit.solvers.devices import float64_alone
from jedit.solvers.factor_cache import Covariance
from jedit.solvers.matrix import product, relative_error
from jedit.solvers.penalty import Penalty, over_root
from jedit.types import UserError

# K · left may differ from the identity by this much where a constraint is to hold exactly.
_CONSTRAINT_TOLERANCE = 1e-6


@dataclasses.dataclass(frozen=True)
class EqualityConstrained:
  """Minimises tr(ΔWᵀ C' ΔW) subject to K ΔW = R, with C' = λC + EᵀE + cov_ridge·I.

  left = C'⁻¹ Kᵀ (K C'⁻¹ Kᵀ + key_ridge·I)⁻¹: EMMET (arXiv:2403.14236), eq. 14, with the two ridges
  of the released code. For one edit without ridges this is ROME's update; with a key ridge of 1 it
  is least squares.

  Attributes:
    cov_weight: λ; without ridges and earlier keys the result does not depend on it.
    cov_ridge: added to the diagonal of λC (`update_norm_lambda` in the released code).
    key_ridge: added to the diagonal of K C'⁻¹ Kᵀ for more than one edit (`emmet_lambda`; 0.1 in
      every released config, absent from the paper). Above 0 the constraint holds approximately.
  """

  cov_weight: float = 1.0
  cov_ridge: float = 0.0
  key_ridge: float = 0.1
  uses_cov: ClassVar[bool] = True

  def __post_init__(self) -> None:
    check_weight('cov_weight', self.cov_weight, above=True)
    check_weight('cov_ridge', self.cov_ridge, above=False)
    check_weight('key_ridge', self.key_ridge, above=False)

  def check_size(self, num_edits: int, key_size: int) -> None:
    """Exact constraints need at most as many edits as dimensions."""
    if self.key_ridge == 0 and num_edits > key_size:
      raise UserError(
        f'{num_edits} edits cannot all hold exactly with keys of {key_size} dimensions; raise '
        'key_ridge above 0 or edit fewer at once.'
      )

  def init(
    self, cov: Covariance | None, num_edits: int, earlier_key_NxF: np.ndarray | None = None
  ) -> Penalty:
    """See `jedit.solvers.base.Solver`."""
    assert cov is not None
    ridge = float(self.cov_ridge) / self.cov_weight
    penalty = Penalty(cov, ridge, over_root(earlier_key_NxF, self.cov_weight))
    if self._weight(num_edits) == 0 or cov.is_small(num_edits):
      penalty.start()
    return penalty

  def solve(self, state: Penalty, key_BxF: np.ndarray, bare_key_BxF: np.ndarray) -> np.ndarray:
    """See `jedit.solvers.base.Solver`."""
    del bare_key_BxF
    weight = self._weight(len(key_BxF))
    if weight:
      left_FxB = state.regularized(key_BxF, weight)
    else:
      left_FxB = state.constrained(key_BxF)
      _check_constraint(state, key_BxF, left_FxB)
    check_finite(left_FxB, ', or raise cov_ridge')
    return left_FxB

  def residual(self, state: Penalty, key_BxF: np.ndarray, left_FxB: np.ndarray) -> float:
    """Of C' X = Kᵀ Y, with the multipliers Y = Xᵀ C' X that this and K X = I imply.

    With a key ridge, of (key_ridge C' + KᵀK) X = Kᵀ, which eliminates Y.
    """
    weight = self._weight(len(key_BxF))
    if weight:
      return state.residual(key_BxF, left_FxB, weight)
    with float64_alone():
      matrix = state.matrix()
      left, key = jax.device_put((left_FxB, key_BxF), matrix.device)
      product_FxB = matrix.multiplier(len(key_BxF))(left)
      wanted_FxB = product(key.T, product(left.T, product_FxB))
      return float(relative_error(product_FxB - wanted_FxB, wanted_FxB).max())

  def _weight(self, num_edits: int) -> float:
    """Weight of the penalty C'/λ in the equivalent least squares; 0 for exact constraints."""
    return self.cov_weight * self.key_ridge if num_edits > 1 else 0.0


def _check_constraint(state: Penalty, key_BxF: np.ndarray, left_FxB: np.ndarray) -> None:
  """Raises UnsolvableError unless K · left = I; dependent keys leave it far off, yet finite."""
  with float64_alone():
    key, left = jax.device_put((key_BxF, left_FxB), state.factor.device)
    error_BxB = np.asarray(product(key, left)) - np.eye(len(key_BxF))
  if np.abs(error_BxB).max() <= _CONSTRAINT_TOLERANCE:  # False for NaN
    return
  norm_B = np.linalg.norm(key_BxF, axis=1)
  cosine_BxB = np.abs(key_BxF @ key_BxF.T) / np.outer(norm_B, norm_B)
  np.fill_diagonal(cosine_BxB, 0.0)
  first, second = np.unravel_index(np.nanargmax(cosine_BxB), cosine_BxB.shape)
  raise UnsolvableError(
    'its keys are linearly dependent or its matrix is not positive definite, so the equality '
    'constraints cannot all be met; raise key_ridge above 0, edit fewer at once, or collect second '
    'moments over more tokens',
    (int(first), int(second)) if len(key_BxF) > 1 else (),
  )
