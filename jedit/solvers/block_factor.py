"""Factors in blocks of rows: on TPUs, in float32, and over several devices.

TPUs only emulate float64. There the factor is float32, and residuals with the accuracy of float64
refine every solution. Where refinement stalls, from a condition number of about 1e7, the matrix is
factored once more in float64 on the host.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.parallel.shapes import bucket
from jedit.solvers import block_cholesky
from jedit.solvers.block_cholesky import Layout
from jedit.solvers.devices import float64_alone, host, working_dtype
from jedit.solvers.factor import Factor
from jedit.solvers.matrix import Matrix, relative_error

# Refinement ends at the first error and fails above the second; in between it is rounding.
_REFINED, _MAX_REFINED = 1e-13, 1e-10
# A refinement step that gains less than this has stalled.
_MIN_GAIN = 8
# Right-hand sides are padded to few counts, since each is compiled.
_COLUMNS = 128


@dataclasses.dataclass(frozen=True, eq=False)
class BlockFactor(Factor):
  """A factor with rows on one or more devices, in their widest dtype.

  Attributes:
    matrix: A, with C on the device of the factor if that is one, otherwise on the host.
    root_FxF: as of `jedit.solvers.block_cholesky.factorise`.
    layout: of its rows.
  """

  layout: Layout

  @classmethod
  def over(
    cls, cov_FxF: Any, ridge: float, key_NxF: np.ndarray, devices: Sequence[jax.Device]
  ) -> 'BlockFactor':
    """Starts the factorisation, without waiting for it; arguments as in `Factor.of`."""
    layout, dtype = Layout.of(key_NxF.shape[1], devices), working_dtype(devices[0])
    with float64_alone():
      matrix = Matrix.on(devices[0] if len(devices) == 1 else host(), cov_FxF, ridge, key_NxF)
      cov_RxF = matrix.cov_FxF
      if cov_RxF is not None and cov_RxF.devices() != set(devices):
        cov_RxF = layout.shard(np.asarray(cov_FxF))
      number_G = layout.shard(np.arange(layout.padded)[:, None])[:, 0]
      scale_F, ridge_dtype = matrix.scale_F, np.asarray(ridge, dtype)
      matrix_GxG = _start(cov_RxF, number_G, ridge_dtype, scale_F.astype(dtype), layout)
      for key_KxF in matrix.scaled_keys(scale_F):
        matrix_GxG = _add_gram(matrix_GxG, number_G, key_KxF.astype(dtype), layout)
      return cls(matrix, block_cholesky.factorise(matrix_GxG, layout), layout)

  @functools.cached_property
  def in_float64(self) -> Factor:
    """The factor computed again in float64 on the host, for matrices beyond float32."""
    return Factor.of_matrix(self.matrix)

  @functools.cached_property
  def is_definite(self) -> bool:
    with float64_alone():
      is_finite = bool(jnp.isfinite(self.root_FxF[-1, -1]))
    return is_finite or (self._is_narrow and self.in_float64.is_definite)

  def solve(self, rhs_FxB: jax.Array) -> jax.Array:
    """A⁻¹ rhs, float64.

    A float32 factor refines: x += A⁻¹ (rhs - A x) until the error is rounding. If that stalls, this
    and every later solve uses `in_float64`.
    """
    if not self._is_narrow:
      return self._solve_once(rhs_FxB)
    if 'in_float64' not in vars(self):
      x_FxB, error = self._refine(rhs_FxB)
      if error <= _MAX_REFINED:  # False for NaN
        return x_FxB
    return self.in_float64.solve(rhs_FxB)

  @property
  def _is_narrow(self) -> bool:
    return self.root_FxF.dtype != jnp.float64

  def _refine(self, rhs_FxB: jax.Array) -> tuple[jax.Array, float]:
    """The best solution found and the largest relative error of its columns, scaled by D."""
    x_FxB, scale_FxB = self._solve_once(rhs_FxB), self.matrix.scale_F[:, None]
    best_FxB, best = x_FxB, np.inf
    while True:
      error_FxB = rhs_FxB - self.matrix.times(x_FxB)
      error = float(relative_error(scale_FxB * error_FxB, scale_FxB * rhs_FxB).max())
      has_stalled = not _MIN_GAIN * error < best  # True for NaN
      if error < best:
        best_FxB, best = x_FxB, error
      if has_stalled or error < _REFINED:
        return best_FxB, best
      x_FxB = x_FxB + self._solve_once(error_FxB)

  def _solve_once(self, rhs_FxB: jax.Array) -> jax.Array:
    """Solution in the precision of the factor."""
    width, scale_FxB = rhs_FxB.shape[1], self.matrix.scale_F[:, None]
    scaled_FxB = np.asarray(scale_FxB * rhs_FxB, self.root_FxF.dtype)
    scaled_FxC = np.pad(scaled_FxB, ((0, 0), (0, bucket(width, _COLUMNS) - width)))
    found = block_cholesky.solve(self.root_FxF, self.layout.shard(scaled_FxC), self.layout)
    found_FxB = self.layout.in_order(np.asarray(found))[:, :width].astype(np.float64)
    return scale_FxB * jax.device_put(found_FxB, self.device)


@functools.partial(jax.jit, static_argnums=4)
def _start(cov_FxF, number_G, ridge, scale_F, layout):
  """D (C + ridge·I) D, filled up with the identity."""

  def start(number_R, cov_RxF=None, *, layout):
    missing = layout.padded - layout.size
    scale_G = jnp.pad(scale_F, (0, missing), constant_values=1)
    diagonal_G = jnp.pad(ridge * scale_F**2, (0, missing), constant_values=1)
    is_diagonal_RxG = number_R[:, None] == jnp.arange(layout.padded)[None, :]
    matrix_RxG = jnp.where(is_diagonal_RxG, diagonal_G[None, :], jnp.zeros_like(diagonal_G))
    if cov_RxF is None:
      return matrix_RxG
    cov_RxG = jnp.pad(cov_RxF, ((0, layout.rows - len(cov_RxF)), (0, missing)))
    return matrix_RxG + scale_G[number_R][:, None] * cov_RxG.astype(scale_F.dtype) * scale_G[None]

  return layout.run(start, number_G, *([] if cov_FxF is None else [cov_FxF]))


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _add_gram(matrix_GxG, number_G, key_KxF, layout):
  """Adds KᵀK."""

  def add(matrix_RxG, number_R, *, layout):
    key_KxG = jnp.pad(key_KxF, ((0, 0), (0, layout.padded - layout.size)))
    key_KxR = key_KxG[:, number_R]
    return matrix_RxG + jnp.einsum('kr,kg->rg', key_KxR, key_KxG, precision='highest')

  return layout.run(add, matrix_GxG, number_G)
