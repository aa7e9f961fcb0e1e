"""Solvers: change a kernel so that edit keys map to residuals and old keys stay.

A solver is the settings of one of `closed_form`, what it asks of its input, and how far its
answer is from the normal equations. Every one is linear in the residuals: ΔW = left · R with R one
row per edit, so it returns `left_FxB` alone and an update can be kept as the pair of factors.
Kernels are [in, out], the transpose of the papers' W.
"""

import dataclasses
from typing import ClassVar, Protocol

import numpy as np

from jedit.solvers import factor_cache
from jedit.solvers.closed_form import (
  equality_constrained,
  is_small,
  least_squares,
  null_space,
  rank_one,
  weighted,
)
from jedit.solvers.factor_cache import moment_times, preserve
from jedit.types import UserError

# K · left may be this far from the identity where a constraint is to hold exactly.
_CONSTRAINT_TOLERANCE = 1e-6
# A solve whose normal equations are further off than this has too few digits to be written.
_MOST_ERROR = 1e-4


class UnsolvableError(ArithmeticError):
  """A system without a usable solution.

  Attributes:
    reason: half a sentence that says why and which field to change.
    edits: numbers of the edits that are to blame, where that is known.
  """

  def __init__(self, reason: str, edits: tuple[int, ...] = ()):
    super().__init__(reason)
    self.reason, self.edits = reason, edits


class Solver(Protocol):
  """Settings of a solve; called with the keys of one kernel."""

  @property
  def uses_cov(self) -> bool:
    """Whether second moments are needed at all."""
    ...

  def check_size(self, num_edits: int, key_size: int) -> None:
    """Raises UserError if so many edits cannot be solved with keys of this size."""
    ...

  def __call__(
    self,
    cov_FxF: np.ndarray | None,
    key_BxF: np.ndarray,
    bare_key_BxF: np.ndarray,
    earlier_key_NxF: np.ndarray | None = None,
  ) -> np.ndarray:
    """Left factor of the update.

    Args:
      cov_FxF: C = E[k kᵀ] over text tokens, positive definite; None where it is not used.
      key_BxF: keys of the edits, averaged over contexts.
      bare_key_BxF: keys of the bare prompts.
      earlier_key_NxF: keys of earlier edits, preserved besides C.

    Returns:
      left_FxB, float64: the update is left · R.

    Raises:
      UnsolvableError: where the system has no usable solution.
    """
    ...

  def residual(
    self,
    cov_FxF: np.ndarray | None,
    key_BxF: np.ndarray,
    left_FxB: np.ndarray,
    earlier_key_NxF: np.ndarray | None = None,
  ) -> float:
    """How far a left factor is from solving the normal equations.

    Computed from C and the keys alone, in float64, whatever found the left factor.

    Returns:
      ‖A x - b‖ / ‖b‖, the largest over the edits; each solver says what A and b are.
    """
    ...

  def prepare(
    self, cov_FxF: np.ndarray, num_edits: int, earlier_key_NxF: np.ndarray | None
  ) -> None:
    """Starts what a later call will want of C, without waiting for it.

    Several layers are then factored at the same time, each on a device of its own.
    """
    ...


@dataclasses.dataclass(frozen=True)
class LeastSquares:
  """Minimises λ tr(ΔWᵀ C ΔW) + ‖K ΔW - R‖²; see `least_squares`."""

  cov_weight: float
  uses_cov: ClassVar[bool] = True

  def __post_init__(self) -> None:
    _check_weight('cov_weight', self.cov_weight, above=True)

  def check_size(self, num_edits: int, key_size: int) -> None:
    pass

  def __call__(self, cov_FxF, key_BxF, bare_key_BxF, earlier_key_NxF=None):
    del bare_key_BxF
    left_FxB = least_squares(cov_FxF, key_BxF, self.cov_weight, earlier_key_NxF)
    _check_definite(left_FxB, 'raise cov_weight')
    return left_FxB

  def residual(
    self,
    cov_FxF: np.ndarray | None,
    key_BxF: np.ndarray,
    left_FxB: np.ndarray,
    earlier_key_NxF: np.ndarray | None = None,
  ) -> float:
    """Of (λC + EᵀE + KᵀK) X = Kᵀ."""
    assert cov_FxF is not None
    product_FxB = self.cov_weight * moment_times(cov_FxF, left_FxB)
    product_FxB += _gram_times(earlier_key_NxF, left_FxB) + _gram_times(key_BxF, left_FxB)
    return _relative(product_FxB - key_BxF.T, key_BxF.T)

  def prepare(
    self, cov_FxF: np.ndarray, num_edits: int, earlier_key_NxF: np.ndarray | None
  ) -> None:
    if is_small(num_edits, len(cov_FxF)) and factor_cache.has_room(cov_FxF):
      preserve(cov_FxF, 0.0, weighted(self.cov_weight, earlier_key_NxF))


@dataclasses.dataclass(frozen=True)
class EqualityConstrained:
  """Minimises tr(ΔWᵀ C ΔW) subject to K ΔW = R; see `equality_constrained`.

  Attributes:
    cov_weight: λ; without ridges and earlier keys the result does not depend on it.
    cov_ridge: added to the diagonal of λC (`update_norm_lambda` in the released code).
    key_ridge: added to the diagonal of K (λC)⁻¹ Kᵀ for more than one edit (`emmet_lambda`; 0.1 in
      every released config, absent from the paper). Above 0 the constraint holds only nearly.
  """

  cov_weight: float = 1.0
  cov_ridge: float = 0.0
  key_ridge: float = 0.1
  uses_cov: ClassVar[bool] = True

  def __post_init__(self) -> None:
    _check_weight('cov_weight', self.cov_weight, above=True)
    _check_weight('cov_ridge', self.cov_ridge, above=False)
    _check_weight('key_ridge', self.key_ridge, above=False)

  def check_size(self, num_edits: int, key_size: int) -> None:
    if self.key_ridge == 0 and num_edits > key_size:
      raise UserError(
        f'{num_edits} edits cannot all hold exactly with keys of {key_size} dimensions; raise '
        'key_ridge above 0 or edit fewer at once.'
      )

  def __call__(self, cov_FxF, key_BxF, bare_key_BxF, earlier_key_NxF=None):
    del bare_key_BxF
    key_ridge = self.key_ridge if len(key_BxF) > 1 else 0.0
    left_FxB = equality_constrained(
      cov_FxF, key_BxF, self.cov_weight, self.cov_ridge, key_ridge, earlier_key_NxF
    )
    if key_ridge == 0:
      _check_constraint(key_BxF, left_FxB)
    _check_definite(left_FxB, 'raise cov_ridge')
    return left_FxB

  def residual(
    self,
    cov_FxF: np.ndarray | None,
    key_BxF: np.ndarray,
    left_FxB: np.ndarray,
    earlier_key_NxF: np.ndarray | None = None,
  ) -> float:
    """Of C' X = Kᵀ Y with the multipliers Y that K X + key_ridge Y = I and this imply.

    Without a key ridge Y is Xᵀ C' X; with one, key_ridge C' X + KᵀK X = Kᵀ has Y taken out.
    """
    assert cov_FxF is not None
    key_ridge = self.key_ridge if len(key_BxF) > 1 else 0.0
    product_FxB = self.cov_weight * moment_times(cov_FxF, left_FxB) + self.cov_ridge * left_FxB
    product_FxB += _gram_times(earlier_key_NxF, left_FxB)
    if key_ridge == 0:
      wanted_FxB = key_BxF.T @ (left_FxB.T @ product_FxB)
    else:
      product_FxB = key_ridge * product_FxB + _gram_times(key_BxF, left_FxB)
      wanted_FxB = key_BxF.T
    return _relative(product_FxB - wanted_FxB, wanted_FxB)

  def prepare(
    self, cov_FxF: np.ndarray, num_edits: int, earlier_key_NxF: np.ndarray | None
  ) -> None:
    del num_edits
    if factor_cache.has_room(cov_FxF):
      ridge = self.cov_ridge / self.cov_weight
      preserve(cov_FxF, ridge, weighted(self.cov_weight, earlier_key_NxF))


@dataclasses.dataclass(frozen=True)
class RankOne:
  """One edit: ΔW = u rᵀ / (u · k'), u = C⁻¹ k, so that k' maps to exactly r; see `rank_one`.

  Attributes:
    divide_by: 'bare_key' takes k' from the bare prompt (ROME's released code), 'mean_key' uses k
      itself (ROME, arXiv:2202.05262, eq. 2; R-ROME, arXiv:2403.07175).
    uses_cov: False takes u = k, as if C were the identity (settings of EasyEdit).
  """

  divide_by: str = 'bare_key'
  uses_cov: bool = True

  def __post_init__(self) -> None:
    if self.divide_by not in ('bare_key', 'mean_key'):
      raise UserError(f'divide_by is {self.divide_by!r}; choose bare_key or mean_key.')

  def check_size(self, num_edits: int, key_size: int) -> None:
    if num_edits != 1:
      raise UserError(
        f'A rank-one solve writes one edit at a time, not {num_edits}; edit one by one '
        '(edit.mode separate or sequential with edit.size 1) or choose a method for batches.'
      )

  def __call__(self, cov_FxF, key_BxF, bare_key_BxF, earlier_key_NxF=None):
    self.check_size(*key_BxF.shape)
    through = bare_key_BxF if self.divide_by == 'bare_key' else key_BxF
    left_Fx1 = rank_one(cov_FxF if self.uses_cov else None, key_BxF, through, earlier_key_NxF)
    _check_definite(left_Fx1, 'set use_cov to False')
    return left_Fx1

  def residual(
    self,
    cov_FxF: np.ndarray | None,
    key_BxF: np.ndarray,
    left_FxB: np.ndarray,
    earlier_key_NxF: np.ndarray | None = None,
  ) -> float:
    """Of (C + EᵀE) X = k c, with the number c that fits best."""
    product_Fx1 = left_FxB if cov_FxF is None else moment_times(cov_FxF, left_FxB)
    product_Fx1 = product_Fx1 + _gram_times(earlier_key_NxF, left_FxB)
    wanted_Fx1 = key_BxF.T @ (key_BxF @ product_Fx1) / np.square(key_BxF).sum()
    return _relative(product_Fx1 - wanted_Fx1, wanted_Fx1)

  def prepare(
    self, cov_FxF: np.ndarray, num_edits: int, earlier_key_NxF: np.ndarray | None
  ) -> None:
    del num_edits
    if self.uses_cov and factor_cache.has_room(cov_FxF):
      preserve(cov_FxF, 0.0, earlier_key_NxF)


@dataclasses.dataclass(frozen=True)
class NullSpace:
  """Least squares among the updates that leave the span of C's strong directions alone.

  AlphaEdit (arXiv:2410.02355); see `null_space`.

  Attributes:
    threshold: directions of C with an eigenvalue below it are free (paper 0.01, code 0.02).
    ridge: weight of ‖ΔW‖² (L2 in the released code).
  """

  threshold: float = 0.02
  ridge: float = 10.0
  uses_cov: ClassVar[bool] = True

  def __post_init__(self) -> None:
    _check_weight('threshold', self.threshold, above=True)
    _check_weight('ridge', self.ridge, above=True)

  def check_size(self, num_edits: int, key_size: int) -> None:
    pass

  def __call__(self, cov_FxF, key_BxF, bare_key_BxF, earlier_key_NxF=None):
    del bare_key_BxF
    self._num_free(cov_FxF)
    left_FxB = null_space(cov_FxF, key_BxF, self.threshold, self.ridge, earlier_key_NxF)
    _check_definite(left_FxB, 'raise ridge')
    return left_FxB

  def residual(
    self,
    cov_FxF: np.ndarray | None,
    key_BxF: np.ndarray,
    left_FxB: np.ndarray,
    earlier_key_NxF: np.ndarray | None = None,
  ) -> float:
    """Of (P (KᵀK + EᵀE) + ridge I) X = P Kᵀ."""
    assert cov_FxF is not None
    spectrum, num_free = factor_cache.spectrum(cov_FxF), self._num_free(cov_FxF)
    pulled_FxB = _gram_times(key_BxF, left_FxB) + _gram_times(earlier_key_NxF, left_FxB)
    both_FxJ = np.concatenate([pulled_FxB, key_BxF.T], axis=1)
    free_FxJ = spectrum.out_of(spectrum.into(both_FxJ.T, num_free).T)
    product_FxB, wanted_FxB = np.split(free_FxJ, 2, axis=1)
    return _relative(product_FxB + self.ridge * left_FxB - wanted_FxB, wanted_FxB)

  def prepare(
    self, cov_FxF: np.ndarray, num_edits: int, earlier_key_NxF: np.ndarray | None
  ) -> None:
    del num_edits, earlier_key_NxF
    if factor_cache.has_room(cov_FxF):
      factor_cache.spectrum(cov_FxF)

  def _num_free(self, cov_FxF: np.ndarray) -> int:
    spectrum = factor_cache.spectrum(cov_FxF)
    num_free = spectrum.count_below(self.threshold)
    if not num_free:
      raise UnsolvableError(
        f'no eigenvalue of the second moment is below {self.threshold:g} (they start at '
        f'{np.asarray(spectrum.eigenvalue_F)[0]:.2g}), so nothing may change; raise threshold'
      )
    return num_free


def _gram_times(key_NxF: np.ndarray | None, x_FxB: np.ndarray) -> np.ndarray:
  """KᵀK x."""
  return np.zeros_like(x_FxB) if key_NxF is None else key_NxF.T @ (key_NxF @ x_FxB)


def _relative(error_FxB: np.ndarray, wanted_FxB: np.ndarray) -> float:
  """Largest ‖error‖ / ‖wanted‖ of the columns."""
  norm_B = np.maximum(np.linalg.norm(wanted_FxB, axis=0), np.finfo(np.float64).tiny)
  return float((np.linalg.norm(error_FxB, axis=0) / norm_B).max())


def check_error(error: float) -> None:
  """Raises UnsolvableError if a solve's relative residual is too large, or not a number."""
  if not error <= _MOST_ERROR:
    raise UnsolvableError(
      f'its matrix is so close to singular that the solution misses the normal equations by '
      f'{error:.1g} of their right side; take second moments of more tokens, or raise cov_weight '
      'or a ridge'
    )


def _check_definite(left_FxB: np.ndarray, remedy: str) -> None:
  """A Cholesky factorisation that fails leaves nothing finite."""
  if not np.isfinite(left_FxB).all():
    raise UnsolvableError(
      f'its matrix is not positive definite; take second moments of more tokens, or {remedy}'
    )


def _check_constraint(key_BxF: np.ndarray, left_FxB: np.ndarray) -> None:
  """K · left must be the identity: keys that depend on each other leave it far off, yet finite."""
  error_BxB = np.abs(key_BxF @ left_FxB - np.eye(len(key_BxF)))
  if error_BxB.max() <= _CONSTRAINT_TOLERANCE:  # False for NaN
    return
  norm_B = np.linalg.norm(key_BxF, axis=1)
  cosine_BxB = np.abs(key_BxF @ key_BxF.T) / np.outer(norm_B, norm_B)
  np.fill_diagonal(cosine_BxB, 0.0)
  first, second = np.unravel_index(np.nanargmax(cosine_BxB), cosine_BxB.shape)
  alike = (int(first), int(second)) if len(key_BxF) > 1 else ()
  raise UnsolvableError(
    'their keys depend on each other or its matrix is not positive definite, and then not all '
    'targets can hold exactly; raise key_ridge above 0, edit fewer at once, or take second '
    'moments of more tokens',
    alike,
  )


def _check_weight(field: str, value: float, *, above: bool) -> None:
  fits = isinstance(value, int | float) and (value > 0 if above else value >= 0)
  if not fits:
    bound = 'above 0' if above else 'of at least 0'
    raise UserError(f'{field} is {value!r}; give a number {bound}.')
