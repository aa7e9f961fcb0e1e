"""Cholesky factors of A = C + ridge·I + KᵀK.

All work around a factor is float64. The factor itself is float64 on CPUs and GPUs and float32 on
TPUs, which only emulate float64; there, float64 residuals computed on the host refine every
solution. Where refinement stalls, from a condition number of about 1e7, the matrix is factored once
more in float64 on the host. The diagonal is first scaled to about 1, by powers of two, which is
exact.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from jedit.compat import enable_x64
from jedit.solvers.block_cholesky import AXIS, factorise, in_order, padded_size, shard_rows, solve

# Refinement ends at the first error and fails above the second; in between it is rounding.
_REFINED, _MAX_REFINED = 1e-13, 1e-10
# A refinement step that gains less than this has stalled.
_MIN_GAIN = 8
# Keys added to a matrix at once, and rows or columns that a device holds at once.
_KEYS, _CHUNK = 256, 4096


def working_dtype(device: jax.Device) -> Any:
  """Dtype of factors on a device: float64 on CPUs and GPUs, float32 on TPUs."""
  return jnp.float32 if device.platform == 'tpu' else jnp.float64


def float64_device(device: jax.Device) -> jax.Device:
  """Device of the float64 work for `device`: itself if it has float64, otherwise the host's CPU."""
  return device if working_dtype(device) == jnp.float64 else host()


def host() -> jax.Device:
  """The first CPU device."""
  return jax.local_devices(backend='cpu')[0]


def memory(device: jax.Device) -> int:
  """Total bytes of a device; CPU devices share the host's."""
  limit = (device.memory_stats() or {}).get('bytes_limit')
  if limit:
    return int(limit)
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return total // num_sharing(device)


def num_sharing(device: jax.Device) -> int:
  """Local devices that share the memory of this one: all CPU devices share the host's."""
  if device.platform != 'cpu':
    return 1
  return len(jax.local_devices(backend='cpu'))


@contextlib.contextmanager
def float64_alone() -> Iterator[None]:
  """Float64, with devices chosen explicitly even inside the mesh of a caller."""
  with enable_x64(True), jax.set_mesh(Mesh(np.empty((), object), ())):
    yield


def chunks(count: int) -> Iterator[slice]:
  """Slices of rows or columns that bound the memory of a device."""
  return (slice(first, min(first + _CHUNK, count)) for first in range(0, count, _CHUNK))


@dataclasses.dataclass(frozen=True, eq=False)
class Matrix:
  """A = C + ridge·I + KᵀK by its parts.

  Float64 arrays keep their dtype only inside `float64_alone`, which all callers provide.

  Attributes:
    cov_FxF: C in its own dtype, on `device`; None for zero.
    ridge: at least 0.
    key_NxF: K, float64, on the host.
    device: where products are computed, in float64.
  """

  cov_FxF: jax.Array | None
  ridge: float
  key_NxF: np.ndarray
  device: jax.Device

  @classmethod
  def on(cls, device: jax.Device, cov_FxF: Any, ridge: float, key_NxF: np.ndarray) -> 'Matrix':
    """Sends C to a device, unless it is there."""
    cov = None if cov_FxF is None else jax.device_put(cov_FxF, device)
    return cls(cov, float(ridge), np.asarray(key_NxF, np.float64), device)

  def times(self, x_FxB: jax.Array) -> jax.Array:
    """A x, from the parts."""
    product_FxB = self.ridge * x_FxB
    if self.cov_FxF is not None:
      product_FxB += product(self.cov_FxF, x_FxB)
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
    return functools.partial(product, self.assemble(np.ones(size), self.device, jnp.float64))

  def assemble(self, scale_F: np.ndarray, device: jax.Device, dtype: Any) -> jax.Array:
    """D A D on a device, a few keys at a time."""
    cov: Any = self.cov_FxF
    if cov is not None and dtype != jnp.float64:
      cov = np.asarray(cov, dtype)
    cov = None if cov is None else jax.device_put(cov, device)
    scale, ridge = jax.device_put((scale_F.astype(dtype), np.asarray(self.ridge, dtype)), device)
    matrix_FxF = _start(cov, ridge, scale)
    for key_KxF in _scaled_keys(self.key_NxF, scale_F, dtype):
      matrix_FxF = _add_gram(matrix_FxF, jax.device_put(key_KxF, device))
    return matrix_FxF


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
  """Cholesky factor of a matrix, with the matrix beside it for residuals.

  Attributes:
    matrix: A.
    scale_F: D, float64.
    root_FxF: Lᵀ of D A D = L Lᵀ: LAPACK's columns are its rows, so a solve copies nothing. Not
      finite if A is not positive definite.
  """

  matrix: Matrix
  scale_F: np.ndarray
  root_FxF: jax.Array

  @classmethod
  def of(
    cls,
    cov_FxF: np.ndarray | None,
    ridge: float,
    key_NxF: np.ndarray,
    device: jax.Device,
    dtype: Any = None,
  ) -> 'Factor':
    """Starts the factorisation on a device, without waiting for it.

    Args:
      cov_FxF: C, symmetric, float32 or wider; None for zero.
      ridge: at least 0.
      key_NxF: K.
      device: where the factor is stored.
      dtype: of the factor; by default the widest of the device.
    """
    dtype = working_dtype(device) if dtype is None else dtype
    with float64_alone():
      wide = device if dtype == jnp.float64 else host()
      matrix = Matrix.on(wide, cov_FxF, ridge, key_NxF)
      scale_F = equilibration(cov_FxF, ridge, matrix.key_NxF)
      return cls(matrix, scale_F, _factorise(matrix.assemble(scale_F, device, dtype)))

  @functools.cached_property
  def in_float64(self) -> 'Factor':
    """The factor computed again in float64 on the host, for matrices beyond float32."""
    device = self.matrix.device
    with float64_alone():
      root_FxF = _factorise(self.matrix.assemble(self.scale_F, device, jnp.float64))
      return Factor(self.matrix, self.scale_F, root_FxF)

  @functools.cached_property
  def is_definite(self) -> bool:
    """True if A is positive definite to float64 precision; waits for the factor."""
    with float64_alone():
      is_finite = bool(jnp.isfinite(self.root_FxF[-1, -1]))
    return is_finite or (self._is_narrow and self.in_float64.is_definite)

  @property
  def _is_narrow(self) -> bool:
    return self.root_FxF.dtype != jnp.float64

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

  def _refine(self, rhs_FxB: jax.Array) -> tuple[jax.Array, float]:
    """The best solution found and the largest relative error of its columns, scaled by D."""
    x_FxB, scale_FxB = self._solve_once(rhs_FxB), self.scale_F[:, None]
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
    scaled_FxB = self.scale_F[:, None] * rhs_FxB
    (device,), dtype = self.devices, self.root_FxF.dtype
    sent_FxB = jax.device_put(scaled_FxB.astype(dtype), device)
    found_FxB = jax.device_put(_cho_solve(self.root_FxF, sent_FxB), self.device)
    return self.scale_F[:, None] * found_FxB.astype(scaled_FxB.dtype)


class ShardedFactor(Factor):
  """A factor with rows on several devices, for matrices that do not fit one.

  C stays on the host, which computes residuals. `root_FxF` has rows of L in the layout of
  `jedit.solvers.block_cholesky`.
  """

  @classmethod
  def over(
    cls,
    cov_FxF: np.ndarray | None,
    ridge: float,
    key_NxF: np.ndarray,
    devices: Sequence[jax.Device],
  ) -> 'ShardedFactor':
    """Starts the factorisation on several devices; arguments as in `Factor.of`."""
    size, dtype = key_NxF.shape[1], working_dtype(devices[0])
    mesh = Mesh(np.array(devices), (AXIS,))
    block = _block(size, mesh.size)
    filled = padded_size(size, mesh.size, block)
    with float64_alone():
      matrix = Matrix.on(host(), cov_FxF, ridge, key_NxF)
      scale_F = equilibration(cov_FxF, ridge, matrix.key_NxF)
      cov = np.zeros((size, size), np.float32) if cov_FxF is None else np.asarray(cov_FxF)
      cov_RxG = shard_rows(_fill(cov, filled), mesh, block)
      number_R = shard_rows(np.arange(filled)[:, None], mesh, block)[:, 0]
      matrix_RxG = _start_rows(
        cov_RxG, number_R, np.asarray(ridge, dtype), scale_F.astype(dtype), mesh
      )
      for key_KxF in _scaled_keys(matrix.key_NxF, scale_F, dtype):
        key_KxG = np.pad(key_KxF, ((0, 0), (0, filled - size)))
        matrix_RxG = _add_gram_rows(matrix_RxG, number_R, key_KxG, mesh)
      return cls(matrix, scale_F, factorise(matrix_RxG, mesh, block))

  def _solve_once(self, rhs_FxB: jax.Array) -> jax.Array:
    sharding = self.root_FxF.sharding
    assert isinstance(sharding, NamedSharding)
    mesh = sharding.mesh
    assert isinstance(mesh, Mesh)
    (size, width), filled = rhs_FxB.shape, len(self.root_FxF)
    block = _block(size, mesh.size)
    scaled_FxB = np.asarray(self.scale_F[:, None] * rhs_FxB, self.root_FxF.dtype)
    scaled_GxB = np.concatenate([scaled_FxB, np.zeros((filled - size, width), scaled_FxB.dtype)])
    found = solve(self.root_FxF, shard_rows(scaled_GxB, mesh, block), mesh, block)
    found_FxB = in_order(np.asarray(found), mesh.size, block)[:size].astype(np.float64)
    return self.scale_F[:, None] * jax.device_put(found_FxB, self.device)


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


def make_factor(
  cov_FxF: np.ndarray | None, ridge: float, key_NxF: np.ndarray, device: jax.Device
) -> Factor:
  """A factor on `device` if the matrix fits there, otherwise on all devices of this process."""
  devices = jax.local_devices()
  if len(devices) == 1 or fits(device, key_NxF.shape[1]):
    return Factor.of(cov_FxF, ridge, key_NxF, device)
  return ShardedFactor.over(cov_FxF, ridge, key_NxF, devices)


def fits(device: jax.Device, size: int) -> bool:
  """True if a factorisation, which takes three F x F matrices, fits half of a device's memory."""
  return 6 * size**2 * np.dtype(working_dtype(device)).itemsize <= memory(device)


def equilibration(cov_FxF: np.ndarray | None, ridge: float, key_NxF: np.ndarray) -> np.ndarray:
  """D_F, powers of two that bring the diagonal of A near 1; 1 where it is not positive."""
  diagonal_F = ridge + np.einsum('nf,nf->f', key_NxF, key_NxF)
  if cov_FxF is not None:
    diagonal_F += np.diagonal(cov_FxF)
  is_usable_F = np.isfinite(diagonal_F) & (diagonal_F > 0)
  return np.exp2(-np.round(np.log2(np.where(is_usable_F, diagonal_F, 1.0)) / 2))


def _block(size: int, num_devices: int) -> int:
  """Rows of a block: wide enough for fast products, at least four blocks per device."""
  return min(512, -(-size // (4 * num_devices)))


def _fill(matrix_FxF: np.ndarray, size: int) -> np.ndarray:
  missing = size - len(matrix_FxF)
  return np.pad(matrix_FxF, (0, missing)) if missing else matrix_FxF


def _scaled_keys(key_NxF: np.ndarray, scale_F: np.ndarray, dtype: Any) -> Iterator[np.ndarray]:
  """Rows of K D, always as many with zeros below, so that one program adds any number of keys."""
  for first in range(0, len(key_NxF), _KEYS):
    key_KxF = (key_NxF[first : first + _KEYS] * scale_F).astype(dtype)
    yield np.pad(key_KxF, ((0, _KEYS - len(key_KxF)), (0, 0)))


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


@functools.partial(jax.jit, donate_argnums=0)
def _factorise(matrix_FxF):
  return jnp.linalg.cholesky(matrix_FxF, symmetrize_input=False).T


@functools.partial(jax.jit, static_argnums=4)
def _start_rows(cov_GxG, number_G, ridge, scale_F, mesh):
  """`_start` in rows over devices, filled up with the identity."""

  def start(cov_RxG, number_R, ridge, scale_F):
    ones = jnp.ones(cov_RxG.shape[1] - len(scale_F), scale_F.dtype)
    scale_G = jnp.concatenate([scale_F, ones])
    diagonal_G = jnp.concatenate([ridge * scale_F**2, ones])
    is_diagonal_RxG = number_R[:, None] == jnp.arange(cov_RxG.shape[1])[None, :]
    scaled_RxG = scale_G[number_R][:, None] * cov_RxG.astype(scale_F.dtype) * scale_G[None, :]
    return scaled_RxG + is_diagonal_RxG * diagonal_G[None, :]

  specs = (Spec(AXIS), Spec(AXIS), Spec(), Spec())
  return jax.shard_map(start, mesh=mesh, in_specs=specs, out_specs=Spec(AXIS))(
    cov_GxG, number_G, ridge, scale_F
  )


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _add_gram_rows(matrix_GxG, number_G, key_KxG, mesh):
  """`_add_gram` in rows over devices."""

  def add(matrix_RxG, number_R, key_KxG):
    key_KxR = key_KxG[:, number_R]
    return matrix_RxG + jnp.einsum('kr,kg->rg', key_KxR, key_KxG, precision='highest')

  specs = (Spec(AXIS), Spec(AXIS), Spec())
  return jax.shard_map(add, mesh=mesh, in_specs=specs, out_specs=Spec(AXIS))(
    matrix_GxG, number_G, key_KxG
  )


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
def _cho_solve(root_FxF, rhs_FxB):
  return cho_solve((root_FxF.T, True), rhs_FxB)
