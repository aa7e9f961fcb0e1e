"""Cholesky factors of A = C + ridge·I + KᵀK in float64 on one device, by LAPACK or cuSOLVER.

The diagonal is first scaled to about 1, by powers of two, which is exact.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve

from jedit.solvers.devices import float64_alone
from jedit.solvers.matrix import Matrix


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
  """Cholesky factor of a matrix, with the matrix beside it for residuals.

  Attributes:
    matrix: A.
    root_FxF: Lᵀ of D A D = L Lᵀ: LAPACK's columns are its rows, so a solve copies nothing. Not
      finite if A is not positive definite.
  """

  matrix: Matrix
  root_FxF: jax.Array

  @classmethod
  def of(cls, cov_FxF: Any, ridge: float, key_NxF: np.ndarray, device: jax.Device) -> 'Factor':
    """Starts the factorisation on a device with float64, without waiting for it.

    Args:
      cov_FxF: C, symmetric, float32 or wider; None for zero.
      ridge: at least 0.
      key_NxF: K.
      device: where the factor is stored.
    """
    with float64_alone():
      return cls.of_matrix(Matrix.on(device, cov_FxF, ridge, key_NxF))

  @classmethod
  def of_matrix(cls, matrix: Matrix) -> 'Factor':
    """The factor on the matrix's device."""
    with float64_alone():
      return Factor(matrix, _factorise(matrix.assemble(matrix.scale_F)))

  @functools.cached_property
  def is_definite(self) -> bool:
    """True if A is positive definite to float64 precision; waits for the factor."""
    with float64_alone():
      return bool(jnp.isfinite(self.root_FxF[-1, -1]))

  @property
  def device(self) -> jax.Device:
    """Device of the float64 work around the factor."""
    return self.matrix.device

  @property
  def devices(self) -> set[jax.Device]:
    return self.root_FxF.devices()

  @property
  def nbytes(self) -> int:
    """Bytes on the devices of the factor."""
    cov_FxF = self.matrix.cov_FxF
    is_beside = cov_FxF is not None and cov_FxF.devices() == self.devices
    return self.root_FxF.nbytes + (cov_FxF.nbytes if cov_FxF is not None and is_beside else 0)

  def solve(self, rhs_FxB: jax.Array) -> jax.Array:
    """A⁻¹ rhs, float64."""
    scale_FxB = self.matrix.scale_F[:, None]
    return scale_FxB * _cho_solve(self.root_FxF, scale_FxB * rhs_FxB)


@dataclasses.dataclass(frozen=True, eq=False)
class ScaledIdentity:
  """A = ridge·I, which needs no factor."""

  matrix: Matrix
  is_definite = True

  @property
  def device(self) -> jax.Device:
    return self.matrix.device

  def solve(self, rhs_FxB: jax.Array) -> jax.Array:
    return rhs_FxB / self.matrix.ridge


@functools.partial(jax.jit, donate_argnums=0)
def _factorise(matrix_FxF):
  return jnp.linalg.cholesky(matrix_FxF, symmetrize_input=False).T


@jax.jit
def _cho_solve(root_FxF, rhs_FxB):
  return cho_solve((root_FxF.T, True), rhs_FxB)
