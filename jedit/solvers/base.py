"""The solver protocol: a kernel update that maps edit keys to residuals and preserves old keys.

Every solver is linear in the residuals, ΔW = left · R with one row of R per edit, so it returns
`left_FxB` alone and the update is stored as a pair of factors. Kernels are [in, out], the transpose
of the papers' W. A solver holds settings only; the state of a solve belongs to the caller.
"""

from typing import Any, Protocol

import numpy as np

from jedit.solvers.factor_cache import Covariance
from jedit.types import UserError

# A relative residual above this leaves too few digits to write the update.
_MAX_ERROR = 1e-4


class UnsolvableError(ArithmeticError):
  """A system without a usable solution.

  Attributes:
    reason: half a sentence with the cause and the remedy.
    edits: indices of the edits at fault, where they are known.
  """

  def __init__(self, reason: str, edits: tuple[int, ...] = ()):
    super().__init__(reason)
    self.reason, self.edits = reason, edits


class Solver(Protocol):
  """Settings of a solve: `init` once per kernel, then `solve` and `residual` on its state."""

  @property
  def uses_cov(self) -> bool:
    """True if the solver needs second moments."""
    ...

  def check_size(self, num_edits: int, key_size: int) -> None:
    """Raises UserError if this many edits cannot be solved with keys of this size."""
    ...

  def init(
    self, cov: Covariance | None, num_edits: int, earlier_key_NxF: np.ndarray | None = None
  ) -> Any:
    """State for one kernel; drop it once the kernel is updated.

    Starts the factorisation without waiting for it if several devices share the layers and one of
    them has room to keep the factor; otherwise the first solve computes it.

    Args:
      cov: C = E[k kᵀ] over text tokens from a `FactorCache`; None for a solver that uses none.
      num_edits: edits of the batch.
      earlier_key_NxF: keys of earlier edits, preserved in addition to C.
    """
    ...

  def solve(self, state: Any, key_BxF: np.ndarray, bare_key_BxF: np.ndarray) -> np.ndarray:
    """Left factor of the update.

    Args:
      state: from `init`.
      key_BxF: keys of the edits, averaged over contexts, float64.
      bare_key_BxF: keys of the bare prompts, float64.

    Returns:
      left_FxB, float64: the update is left · R.

    Raises:
      UnsolvableError: if the system has no usable solution.
    """
    ...

  def residual(self, state: Any, key_BxF: np.ndarray, left_FxB: np.ndarray) -> float:
    """Relative residual of the normal equations A x = b, from C and the keys alone, in float64.

    Args:
      state: from `init`.
      key_BxF: as in `solve`.
      left_FxB: from `solve`.

    Returns:
      max over edits of ‖A x - b‖ / ‖b‖; each solver defines A and b.
    """
    ...


def check_error(error: float) -> None:
  """Raises UnsolvableError if a relative residual is NaN or too large."""
  if not error <= _MAX_ERROR:
    raise UnsolvableError(
      'its matrix is too close to singular even for float64 (the solution misses the normal '
      f'equations by {error:.1g} of their right-hand side); collect second moments over more '
      'tokens, or raise the ridge of the method if it has one (cov_ridge, key_ridge or ridge)'
    )


def check_finite(left_FxB: np.ndarray, remedy: str = '') -> None:
  """Raises UnsolvableError for a failed Cholesky factorisation, which leaves NaN.

  Args:
    left_FxB: the solution.
    remedy: alternative to more tokens: the end of the sentence.
  """
  if not np.isfinite(left_FxB).all():
    raise UnsolvableError(
      'its matrix is not positive definite; collect second moments over more tokens (many times '
      f'the key size, {len(left_FxB)}){remedy}'
    )


def check_weight(field: str, value: float, *, above: bool) -> None:
  """Raises UserError unless a setting is positive or, with `above` False, at least 0."""
  fits = isinstance(value, int | float) and (value > 0 if above else value >= 0)
  if not fits:
    bound = 'above 0' if above else 'of at least 0'
    raise UserError(f'{field} is {value!r}; give a number {bound}.')
