"""Closed-form updates: change a kernel so that edit keys map to residuals and old keys stay.

Every solver is linear in the residuals: ΔW = left · R with R one row per edit, so it returns
`left_FxB` alone and an update can be kept as the pair of factors. Kernels are [in, out], the
transpose of the papers' W. Solves run in float64.
"""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve

from jedit.types import UserError


class Solver(Protocol):
  """Settings of a solve; called with the keys of one kernel."""

  def __call__(
    self, cov_FxF: np.ndarray, key_BxF: np.ndarray, bare_key_BxF: np.ndarray
  ) -> np.ndarray:
    """Left factor of the update.

    Args:
      cov_FxF: C = E[k kᵀ] over text tokens, positive definite.
      key_BxF: keys of the edits, averaged over contexts.
      bare_key_BxF: keys of the bare prompts.

    Returns:
      left_FxB, float64: the update is left · R. Not finite where a system cannot be solved.
    """
    ...


@dataclasses.dataclass(frozen=True)
class LeastSquares:
  """Minimises λ tr(ΔWᵀ C ΔW) + ‖K ΔW - R‖²; see `least_squares`."""

  cov_weight: float

  def __post_init__(self) -> None:
    _check_weight('cov_weight', self.cov_weight, above=True)

  def __call__(self, cov_FxF, key_BxF, bare_key_BxF):
    del bare_key_BxF
    return _in_float64(least_squares, cov_FxF, key_BxF, self.cov_weight)


@dataclasses.dataclass(frozen=True)
class EqualityConstrained:
  """Minimises tr(ΔWᵀ C ΔW) subject to K ΔW = R; see `equality_constrained`.

  Attributes:
    cov_weight: λ; without ridges the result does not depend on it.
    cov_ridge: added to the diagonal of λC (`update_norm_lambda` in the released code).
    key_ridge: added to the diagonal of K (λC)⁻¹ Kᵀ for more than one edit (`emmet_lambda`; 0.1 in
      every released config, absent from the paper). Above 0 the constraint holds only nearly.
  """

  cov_weight: float = 1.0
  cov_ridge: float = 0.0
  key_ridge: float = 0.1

  def __post_init__(self) -> None:
    _check_weight('cov_weight', self.cov_weight, above=True)
    _check_weight('cov_ridge', self.cov_ridge, above=False)
    _check_weight('key_ridge', self.key_ridge, above=False)

  def __call__(self, cov_FxF, key_BxF, bare_key_BxF):
    del bare_key_BxF
    key_ridge = self.key_ridge if len(key_BxF) > 1 else 0.0
    return _in_float64(
      equality_constrained, cov_FxF, key_BxF, self.cov_weight, self.cov_ridge, key_ridge
    )


@dataclasses.dataclass(frozen=True)
class RankOne:
  """One edit: ΔW = u rᵀ / (u · k'), u = C⁻¹ k, so that k' maps to exactly r; see `rank_one`.

  Attributes:
    divide_by: 'bare_key' takes k' from the bare prompt (ROME's released code), 'mean_key' uses k
      itself (ROME, arXiv:2202.05262, eq. 2, and R-ROME, arXiv:2403.07175).
  """

  divide_by: str = 'bare_key'

  def __post_init__(self) -> None:
    if self.divide_by not in ('bare_key', 'mean_key'):
      raise UserError(f'divide_by is {self.divide_by!r}; choose bare_key or mean_key.')

  def __call__(self, cov_FxF, key_BxF, bare_key_BxF):
    if len(key_BxF) != 1:
      raise UserError(
        f'A rank-one solve writes one edit at a time, not {len(key_BxF)}; '
        'edit one by one or choose a solver for batches.'
      )
    through = bare_key_BxF if self.divide_by == 'bare_key' else key_BxF
    return _in_float64(rank_one, cov_FxF, key_BxF, through)


def least_squares(cov_FxF: jax.Array, key_BxF: jax.Array, cov_weight: jax.Array) -> jax.Array:
  """(λC + KᵀK)⁻¹ Kᵀ by Cholesky.

  MEMIT (arXiv:2210.07229), eq. 14; PMET (arXiv:2308.08742), eq. 9. The normal equations of
  preserving C with weight λ while K maps to R.

  Args:
    cov_FxF: second moment of the keys, positive definite.
    key_BxF: one key per edit.
    cov_weight: λ > 0; larger keeps more of the old behaviour.

  Returns:
    left_FxB in the dtype of `cov_FxF`; not finite if λC + KᵀK is not positive definite.
  """
  gram_FxF = jnp.einsum('bf,bg->fg', key_BxF, key_BxF, precision='highest')
  return cho_solve(cho_factor(cov_weight * cov_FxF + gram_FxF), key_BxF.T)


def equality_constrained(
  cov_FxF: jax.Array,
  key_BxF: jax.Array,
  cov_weight: jax.Array,
  cov_ridge: jax.Array,
  key_ridge: jax.Array,
) -> jax.Array:
  """C'⁻¹ Kᵀ (K C'⁻¹ Kᵀ + key_ridge I)⁻¹ with C' = λC + cov_ridge I.

  EMMET (arXiv:2403.14236), eq. 14, with the two ridges of its released code; for one edit
  without ridges this is ROME's update.

  Returns:
    left_FxB; not finite where C' or the inner matrix is not positive definite.
  """
  preserved_FxF = cov_weight * cov_FxF + cov_ridge * jnp.eye(len(cov_FxF), dtype=cov_FxF.dtype)
  spread_FxB = cho_solve(cho_factor(preserved_FxF), key_BxF.T)
  inner_BxB = jnp.einsum('bf,fc->bc', key_BxF, spread_FxB, precision='highest')
  inner_BxB = inner_BxB + key_ridge * jnp.eye(len(inner_BxB), dtype=cov_FxF.dtype)
  return cho_solve(cho_factor(inner_BxB), spread_FxB.T).T


def rank_one(cov_FxF: jax.Array, key_1xF: jax.Array, through_1xF: jax.Array) -> jax.Array:
  """C⁻¹ k / (k' · C⁻¹ k), the direction of ROME's update (arXiv:2202.05262, eq. 2): left_Fx1."""
  u_Fx1 = cho_solve(cho_factor(cov_FxF), key_1xF.T)
  return u_Fx1 / jnp.einsum('bf,fb->b', through_1xF, u_Fx1, precision='highest')[None, :]


def _in_float64(function: Callable[..., jax.Array], *arguments: np.ndarray | float) -> np.ndarray:
  """Runs one jitted call in float64 from start to end; the result leaves as NumPy."""
  with jax.enable_x64(True):
    wide = [jnp.asarray(np.asarray(a, np.float64)) for a in arguments]
    return np.asarray(jax.jit(function)(*wide))


def _check_weight(field: str, value: float, *, above: bool) -> None:
  fits = isinstance(value, int | float) and (value > 0 if above else value >= 0)
  if not fits:
    bound = 'above 0' if above else 'of at least 0'
    raise UserError(f'{field} is {value!r}; give a number {bound}.')
