"""The matrix A = C + ridge·I + KᵀK, by its parts."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.solvers import integer_product
from jedit.solvers.devices import float64_device

# Keys added to a matrix at once, and rows or columns that a device holds at once.
_KEYS, _CHUNK = 256, 4096


def chunks(count: int) -> Iterator[slice]:
  """Slices of rows or columns that bound the memory of a device."""
  return (slice(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK))


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix:
  """A = C + ridge·I + KᵀK by its parts.

  Float64 arrays keep their dtype only inside `float64_alone`, which all callers provide.

  Attributes:
    cov_FxF: C in its own dtype, on `device` or, in float32, on a device without float64; None for
      zero.
    ridge: at least 0.
    key_NxF: K, float64, on the host.
    device: of the float64 work.
  """

  cov_FxF: jax.Array | None
  ridge: float
  key_NxF: np.ndarray
  device: jax.Device

  @classmethod
  def on(cls, device: jax.Device, cov_FxF: Any, ridge: float, key_NxF: np.ndarray) -> 'Matrix':
    """Sends C to a device, unless it is there or takes float64 that the device lacks."""
    wide, cov = float64_device(device), None
    if cov_FxF is not None:
      cov = jax.device_put(cov_FxF, device if cov_FxF.dtype == jnp.float32 else wide)
    return cls(cov, float(ridge), np.asarray(key_NxF, np.float64), wide)

  @functools.cached_property
  def scale_F(self) -> np.ndarray:
    """D, powers of two that bring the diagonal of D A D near 1."""
    diagonal_F = None if self.cov_FxF is None else np.asarray(jnp.diagonal(self.cov_FxF))
    return equilibration(diagonal_F, self.ridge, self.key_NxF)

  def times(self, x_FxB: jax.Array) -> jax.Array:
    """A x, from the parts."""
    product_FxB = self.ridge * x_FxB
    if self.cov_FxF is not None and self.cov_FxF.devices() == {self.device}:
      product_FxB += product(self.cov_FxF, x_FxB)
    elif self.cov_FxF is not None:
      product_FxB += integer_product.times(self.cov_FxF, x_FxB, self.scale_F)
    for rows in chunks(len(self.key_NxF)):
      key_RxF = jax.device_put(self.key_NxF[rows], self.device)
      product_FxB += product(key_RxF.T, product(key_RxF, x_FxB))
    return product_FxB

  def multiplier(self, num_columns: int) -> Callable[[jax.Array], jax.Array]:
    """X ↦ A x for this many columns in all, by the cheaper way.

    From F/2 columns on, one product with A takes fewer operations than products with K and Kᵀ; N
    keys cost 4 N F B operations by parts and 2 N F² for A.
    """
    size = self.key_NxF.shape[1]
    if 2 * num_columns <= size:
      return self.times
    return functools.partial(product, self.assemble(np.ones(size)))

  def assemble(self, scale_F: np.ndarray) -> jax.Array:
    """D A D in float64, a few keys at a time."""
    cov_FxF = None if self.cov_FxF is None else jax.device_put(self.cov_FxF, self.device)
    scale, ridge = jax.device_put((scale_F, np.asarray(self.ridge)), self.device)
    matrix_FxF = _start(cov_FxF, ridge, scale)
    for key_KxF in self.scaled_keys(scale_F):
      matrix_FxF = _add_gram(matrix_FxF, jax.device_put(key_KxF, self.device))
    return matrix_FxF

  def scaled_keys(self, scale_F: np.ndarray) -> Iterator[np.ndarray]:
    """Rows of K D, always as many with zeros below, so that one program adds any number of keys."""
    for first in range(0, len(self.key_NxF), _KEYS):
      key_KxF = self.key_NxF[first : first + _KEYS] * scale_F
      yield np.pad(key_KxF, ((0, _KEYS - len(key_KxF)), (0, 0)))


def equilibration(diagonal_F: np.ndarray | None, ridge: float, key_NxF: np.ndarray) -> np.ndarray:
  """D_F, powers of two that bring the diagonal of A near 1; 1 where it is not positive.

  Args:
    diagonal_F: of C; None for zero.
    ridge: as of `Matrix`.
    key_NxF: K.
  """
  wanted_F = ridge + np.einsum('nf,nf->f', key_NxF, key_NxF)
  if diagonal_F is not None:
    wanted_F += diagonal_F
  is_usable_F = np.isfinite(wanted_F) & (wanted_F > 0)
  return np.exp2(-np.round(np.log2(np.where(is_usable_F, wanted_F, 1.0)) / 2))


@jax.jit
def product(left_FxG: jax.Array, x_GxB: jax.Array) -> jax.Array:
  """The product in the dtype of `x_GxB`, in full precision on every device."""
  return jnp.einsum('fg,gb->fb', left_FxG.astype(x_GxB.dtype), x_GxB, precision='highest')


@jax.jit
def relative_error(error_FxB: jax.Array, wanted_FxB: jax.Array) -> jax.Array:
  """‖error‖ / ‖wanted‖ of each column; 0 / 0 is 0."""
  norm_B = jnp.maximum(jnp.linalg.norm(wanted_FxB, axis=0), jnp.finfo(wanted_FxB.dtype).tiny)
  return jnp.linalg.norm(error_FxB, axis=0) / norm_B


@jax.jit
def _start(cov_FxF, ridge, scale_F):
  """D (C + ridge·I) D."""
  matrix_FxF = jnp.diag(ridge * scale_F**2)
  if cov_FxF is not None:
    matrix_FxF += scale_F[:, None] * cov_FxF.astype(scale_F.dtype) * scale_F[None, :]
  return matrix_FxF


@functools.partial(jax.jit, donate_argnums=0)
def _add_gram(matrix_FxF, key_KxF):
  return matrix_FxF + jnp.einsum('kf,kg->fg', key_KxF, key_KxF, precision='highest')
