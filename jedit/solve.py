"""Closed-form updates: change a kernel so that edit keys map to residuals and old keys stay.

Every solver is linear in the residuals: ΔW = left · R with R one row per edit, so it returns
`left_FxB` alone and an update can be kept as the pair of factors. Kernels are [in, out], the
transpose of the papers' W. Solves run in float64.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve

from jedit.types import UserError

# K · left may be this far from the identity where a constraint is to hold exactly.
_CONSTRAINT_TOLERANCE = 1e-6


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
    left_FxB = _in_float64(least_squares, cov_FxF, key_BxF, self.cov_weight, earlier_key_NxF)
    _check_definite(left_FxB, 'raise cov_weight')
    return left_FxB


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
    left_FxB = _in_float64(
      equality_constrained,
      cov_FxF,
      key_BxF,
      self.cov_weight,
      self.cov_ridge,
      key_ridge,
      earlier_key_NxF,
    )
    if key_ridge == 0:
      _check_constraint(key_BxF, left_FxB)
    _check_definite(left_FxB, 'raise cov_ridge')
    return left_FxB


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
    if not self.uses_cov:
      cov_FxF = np.eye(key_BxF.shape[1])
    left_Fx1 = _in_float64(rank_one, cov_FxF, key_BxF, through, earlier_key_NxF)
    _check_definite(left_Fx1, 'set use_cov to False')
    return left_Fx1


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
    eigenvalue_F, vector_FxF = np.linalg.eigh(cov_FxF)
    free_FxG = vector_FxF[:, eigenvalue_F < self.threshold]
    if not free_FxG.shape[1]:
      raise UnsolvableError(
        f'no eigenvalue of the second moment is below {self.threshold:g} (they start at '
        f'{eigenvalue_F[0]:.2g}), so nothing may change; raise threshold'
      )
    return _in_float64(null_space, free_FxG, key_BxF, self.ridge, earlier_key_NxF)


def least_squares(
  cov_FxF: jax.Array,
  key_BxF: jax.Array,
  cov_weight: jax.Array,
  earlier_key_NxF: jax.Array | None = None,
) -> jax.Array:
  """(λC + EᵀE + KᵀK)⁻¹ Kᵀ by Cholesky.

  MEMIT (arXiv:2210.07229), eq. 14; PMET (arXiv:2308.08742), eq. 9. The normal equations of
  preserving C with weight λ, and the earlier keys E, while K maps to R.

  Args:
    cov_FxF: second moment of the keys, positive definite.
    key_BxF: one key per edit.
    cov_weight: λ > 0; larger keeps more of the old behaviour.
    earlier_key_NxF: keys of earlier edits.

  Returns:
    left_FxB in the dtype of `cov_FxF`; not finite if the matrix is not positive definite.
  """
  matrix_FxF = _with_earlier(cov_weight * cov_FxF, earlier_key_NxF) + _gram(key_BxF)
  return cho_solve(cho_factor(matrix_FxF), key_BxF.T)


def equality_constrained(
  cov_FxF: jax.Array,
  key_BxF: jax.Array,
  cov_weight: jax.Array,
  cov_ridge: jax.Array,
  key_ridge: jax.Array,
  earlier_key_NxF: jax.Array | None = None,
) -> jax.Array:
  """C'⁻¹ Kᵀ (K C'⁻¹ Kᵀ + key_ridge I)⁻¹ with C' = λC + EᵀE + cov_ridge I.

  EMMET (arXiv:2403.14236), eq. 14, with the two ridges of its released code; for one edit
  without ridges this is ROME's update.

  Returns:
    left_FxB; not finite where C' or the inner matrix is not positive definite.
  """
  preserved_FxF = _with_earlier(cov_weight * cov_FxF, earlier_key_NxF)
  preserved_FxF = preserved_FxF + cov_ridge * jnp.eye(len(cov_FxF), dtype=cov_FxF.dtype)
  spread_FxB = cho_solve(cho_factor(preserved_FxF), key_BxF.T)
  inner_BxB = jnp.einsum('bf,fc->bc', key_BxF, spread_FxB, precision='highest')
  inner_BxB = inner_BxB + key_ridge * jnp.eye(len(inner_BxB), dtype=cov_FxF.dtype)
  return cho_solve(cho_factor(inner_BxB), spread_FxB.T).T


def rank_one(
  cov_FxF: jax.Array,
  key_1xF: jax.Array,
  through_1xF: jax.Array,
  earlier_key_NxF: jax.Array | None = None,
) -> jax.Array:
  """Direction u / (k' · u), u = (C + EᵀE)⁻¹ k, of ROME's update (arXiv:2202.05262, eq. 2)."""
  u_Fx1 = cho_solve(cho_factor(_with_earlier(cov_FxF, earlier_key_NxF)), key_1xF.T)
  return u_Fx1 / jnp.einsum('bf,fb->b', through_1xF, u_Fx1, precision='highest')[None, :]


def null_space(
  free_FxG: jax.Array,
  key_BxF: jax.Array,
  ridge: jax.Array,
  earlier_key_NxF: jax.Array | None = None,
) -> jax.Array:
  """The solution X of (P (KᵀK + EᵀE) + ridge I) X = P Kᵀ, P = U Uᵀ, as a symmetric system.

  AlphaEdit (arXiv:2410.02355), eq. 14, with the weight of ‖ΔW‖² of its released code. X lies in
  the range of P, so X = U Y with (Uᵀ (KᵀK + EᵀE) U + ridge I) Y = Uᵀ Kᵀ.

  Args:
    free_FxG: U, orthonormal columns that span the directions that may change.
    key_BxF: one key per edit.
    ridge: above 0.
    earlier_key_NxF: keys of earlier edits.

  Returns:
    left_FxB.
  """
  key_BxG = jnp.einsum('bf,fg->bg', key_BxF, free_FxG, precision='highest')
  matrix_GxG = _gram(key_BxG) + ridge * jnp.eye(free_FxG.shape[1], dtype=free_FxG.dtype)
  if earlier_key_NxF is not None:
    earlier_NxG = jnp.einsum('nf,fg->ng', earlier_key_NxF, free_FxG, precision='highest')
    matrix_GxG = matrix_GxG + _gram(earlier_NxG)
  solved_GxB = cho_solve(cho_factor(matrix_GxG), key_BxG.T)
  return jnp.einsum('fg,gb->fb', free_FxG, solved_GxB, precision='highest')


def _with_earlier(cov_FxF: jax.Array, earlier_key_NxF: jax.Array | None) -> jax.Array:
  return cov_FxF if earlier_key_NxF is None else cov_FxF + _gram(earlier_key_NxF)


def _gram(key_BxF: jax.Array) -> jax.Array:
  return jnp.einsum('bf,bg->fg', key_BxF, key_BxF, precision='highest')


def _in_float64(
  function: Callable[..., jax.Array], *arguments: np.ndarray | float | None
) -> np.ndarray:
  """Runs one jitted call in float64 from start to end; the result leaves as NumPy."""
  with jax.enable_x64(True):
    wide = [None if a is None else jnp.asarray(np.asarray(a, np.float64)) for a in arguments]
    return np.asarray(jax.jit(function)(*wide))


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
