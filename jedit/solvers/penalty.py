"""The penalty tr(ΔWᵀ M ΔW), M = C + ridge·I + EᵀE, that preserves old keys and earlier edits.

One Cholesky factor of M serves every batch, every weight and all solvers that use it, because a
weight w scales the keys instead of M: (w M + KᵀK)⁻¹ Kᵀ = (M + K'ᵀK')⁻¹ K'ᵀ / √w with K' = K/√w.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve

from jedit.solvers.devices import float64_alone
from jedit.solvers.factor import Factor, ScaledIdentity
from jedit.solvers.factor_cache import Covariance
from jedit.solvers.matrix import Matrix, chunks, product, relative_error


def max_unfactored_keys(key_size: int) -> int:
  """Earlier keys that stay outside the factor, at most: √(2F); the factor has a multiple of them.

  N of them add 2 F² N operations to every batch, and a factor that takes in N more costs F³/3 once
  in N/B batches. For B = 10 the sum is smallest near √(2F): an eighth of a factor per batch for
  GPT-J.
  """
  return max(math.isqrt(2 * key_size), 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Penalty:
  """M = C + ridge·I + EᵀE; factored when first needed, or by `start`.

  The factor has C, ridge and a multiple of `max_unfactored_keys` earlier keys; Woodbury's identity
  adds the others. That split depends on their number alone, so a resumed sequence of batches
  repeats the same operations.

  Attributes:
    cov: C.
    ridge: at least 0.
    earlier_key_NxF: E; None before the first batch.
  """

  cov: Covariance
  ridge: float = 0.0
  earlier_key_NxF: np.ndarray | None = None

  @functools.cached_property
  def factor(self) -> Factor | ScaledIdentity:
    """Of the part of M that is factored."""
    return self.cov.factor(self.ridge, self._factored_NxF)

  def start(self) -> None:
    """Starts the factor if the cache keeps it on one of several devices."""
    if self.cov.has_room():
      self.cov.factor(self.ridge, self._factored_NxF)

  def matrix(self, key_BxF: np.ndarray | None = None) -> Matrix:
    """M + KᵀK from C and the keys, independent of the factor."""
    key_JxF = self._no_keys if self.earlier_key_NxF is None else self.earlier_key_NxF
    if key_BxF is not None:
      key_JxF = self._after_earlier(key_BxF)
    if 'factor' in vars(self):
      beside = self.factor.matrix
      return Matrix(beside.cov_FxF, self.ridge, key_JxF, beside.device)
    return self.cov.matrix(self.ridge, key_JxF)

  def precondition(self, key_BxF: np.ndarray) -> np.ndarray:
    """M⁻¹ Kᵀ, [F, B] float64."""
    with float64_alone():
      return np.asarray(_add_rest(*self._solve_rows(key_BxF), len(key_BxF)))

  def constrained(self, key_BxF: np.ndarray) -> np.ndarray:
    """M⁻¹ Kᵀ (K M⁻¹ Kᵀ)⁻¹, [F, B] float64: the smallest penalty under K X = I."""
    with float64_alone():
      return np.asarray(_left(*self._solve_rows(key_BxF), len(key_BxF), 0.0))

  def regularized(self, key_BxF: np.ndarray, weight: float) -> np.ndarray:
    """(w M + KᵀK)⁻¹ Kᵀ, [F, B] float64; NaN if the matrix is not positive definite.

    Few edits are solved with the kept factor, as M⁻¹ Kᵀ (w I + K M⁻¹ Kᵀ)⁻¹ (Woodbury), in 2 F² B
    operations. Beyond F/4 edits, or if M is not positive definite, the whole sum is factored.

    Args:
      key_BxF: keys of the edits, float64.
      weight: w > 0.
    """
    root, num_edits = math.sqrt(weight), len(key_BxF)
    key_BxF = key_BxF / root
    if self.cov.is_small(num_edits) and self.factor.is_definite:
      with float64_alone():
        left_FxB = np.array(_left(*self._solve_rows(key_BxF), num_edits, 1.0))
    else:
      left_FxB = self._regularized_whole(key_BxF)
    left_FxB /= root
    return left_FxB

  def residual(self, key_BxF: np.ndarray, left_FxB: np.ndarray, weight: float) -> float:
    """Relative residual of (w M + KᵀK) X = Kᵀ; the largest over the edits.

    At most 4 F² B operations, and no B x B matrix beyond F/2 edits.
    """
    root, num_edits = math.sqrt(weight), len(key_BxF)
    key_BxF = key_BxF / root
    with float64_alone():
      matrix = self.matrix(key_BxF)
      multiply, errors = matrix.multiplier(num_edits), []
      for part in chunks(num_edits):
        key_RxF, x_FxR = jax.device_put((key_BxF[part], left_FxB[:, part]), matrix.device)
        error_FxR = multiply(root * x_FxR) - key_RxF.T
        errors.append(np.asarray(relative_error(error_FxR, key_RxF.T)).max())
      return float(np.max(errors))

  @property
  def _no_keys(self) -> np.ndarray:
    return np.zeros((0, self.cov.size))

  def _after_earlier(self, key_BxF: np.ndarray) -> np.ndarray:
    """[E; K]."""
    if self.earlier_key_NxF is None:
      return key_BxF
    return np.concatenate([self.earlier_key_NxF, key_BxF])

  @property
  def _factored_NxF(self) -> np.ndarray:
    """Earlier keys inside the factor."""
    if self.earlier_key_NxF is None:
      return self._no_keys
    count = len(self.earlier_key_NxF)
    return self.earlier_key_NxF[: count - count % max_unfactored_keys(self.cov.size)]

  @property
  def _rest_NxF(self) -> np.ndarray:
    """The other earlier keys, with zeros below, so that any number runs one program."""
    if self.earlier_key_NxF is None:
      return self._no_keys
    rest_NxF = self.earlier_key_NxF[len(self._factored_NxF) :]
    missing = max_unfactored_keys(self.cov.size) - len(rest_NxF)
    return np.pad(rest_NxF, ((0, missing), (0, 0)))

  def _solve_rows(self, key_BxF: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """A⁻¹ Jᵀ and J = [K; rest of E] with A the factored matrix."""
    rows_JxF = np.concatenate([key_BxF, self._rest_NxF], dtype=np.float64)
    row_JxF = jax.device_put(rows_JxF, self.factor.device)
    return self.factor.solve(row_JxF.T), row_JxF

  def _regularized_whole(self, key_BxF: np.ndarray) -> np.ndarray:
    """(M + KᵀK)⁻¹ Kᵀ with a factor of the sum."""
    factor = self.cov.factor_once(self.ridge, self._after_earlier(key_BxF))
    left_FxB = np.empty(key_BxF.shape[::-1])
    with float64_alone():
      for part in chunks(len(key_BxF)):
        left_FxB[:, part] = factor.solve(jax.device_put(key_BxF[part], factor.device).T)
    return left_FxB


def over_root(key_NxF: np.ndarray | None, weight: float) -> np.ndarray | None:
  """E/√w: earlier keys in a penalty that is weighted by w."""
  return None if key_NxF is None else key_NxF / math.sqrt(weight)


@functools.partial(jax.jit, static_argnums=2)
def _add_rest(solved_FxJ, row_JxF, num_edits):
  """(A + EᵀE)⁻¹ Kᵀ from A⁻¹ Jᵀ, J = [K; E], by Woodbury's identity."""
  solved_FxB, solved_FxN = solved_FxJ[:, :num_edits], solved_FxJ[:, num_edits:]
  if not solved_FxN.shape[1]:
    return solved_FxB
  moved_NxJ = product(row_JxF[num_edits:], solved_FxJ)
  inner_NxN = jnp.eye(len(moved_NxJ), dtype=moved_NxJ.dtype) + moved_NxJ[:, num_edits:]
  return solved_FxB - product(
    solved_FxN, cho_solve(cho_factor(inner_NxN), moved_NxJ[:, :num_edits])
  )


@functools.partial(jax.jit, static_argnums=2)
def _left(solved_FxJ, row_JxF, num_edits, key_ridge):
  """M⁻¹ Kᵀ (K M⁻¹ Kᵀ + key_ridge·I)⁻¹."""
  solved_FxB = _add_rest(solved_FxJ, row_JxF, num_edits)
  inner_BxB = product(row_JxF[:num_edits], solved_FxB)
  inner_BxB += key_ridge * jnp.eye(num_edits, dtype=inner_BxB.dtype)
  return cho_solve(cho_factor(inner_BxB), solved_FxB.T).T
