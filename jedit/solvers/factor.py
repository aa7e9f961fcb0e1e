"""Cholesky factors of matrices that are solved with again and again.

Everything around a factor is float64. The factor itself is float64 where the device has that; on
TPUs, which only imitate it, it is float32 and float64 residuals taken on the host refine what it
gives. The diagonal is scaled to about 1 first, by powers of two, which round nothing.
"""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

from jedit.solvers.block_cholesky import AXIS, factorise, in_order, padded_size, shard_rows, solve

# A refined solution gains about three digits a step, as long as the factor is good for one at all.
_MOST_REFINEMENTS = 30
_REFINED = 1e-13
# Keys that are added to a matrix at once.
_ROWS = 256


def working_dtype(device: jax.Device) -> Any:
  """Dtype of factors on a device: float64 on CPUs and GPUs, float32 on TPUs."""
  return jnp.float32 if device.platform == 'tpu' else jnp.float64


def wide_device(device: jax.Device) -> jax.Device:
  """Where float64 work for `device` runs: there if it has float64, else on the host's CPU."""
  if working_dtype(device) == jnp.float64:
    return device
  return jax.local_devices(backend='cpu')[0]


def memory(device: jax.Device) -> int:
  """Bytes that a device has for arrays; CPU devices share the host's."""
  limit = (device.memory_stats() or {}).get('bytes_limit')
  if limit:
    return int(limit)
  sharing = sum(other.platform == device.platform for other in jax.local_devices())
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') // max(sharing, 1)


@contextlib.contextmanager
def float64_alone() -> Iterator[None]:
  """Float64, and devices chosen here even where the caller has entered a mesh."""
  with jax.enable_x64(True), jax.set_mesh(Mesh(np.empty((), object), ())):
    yield


@dataclasses.dataclass(frozen=True, eq=False)
class Factor:
  """A = C + ridge I + KᵀK as a Cholesky factor, with C and K beside it for residuals.

  Float64 arrays are only themselves inside `float64_alone`, which `solve` and `times` want around
  them.

  Attributes:
    cov_FxF: C in its own dtype.
    ridge: added to the diagonal.
    key_NxF: K, float64; no rows where there are none.
    scale_F: D, float64.
    root_FxF: Lᵀ of D A D = L Lᵀ, since LAPACK's columns are then its rows and nothing is copied for
      a solve; not finite where A is not positive definite.
  """

  cov_FxF: jax.Array
  ridge: jax.Array
  key_NxF: jax.Array
  scale_F: jax.Array
  root_FxF: jax.Array

  @classmethod
  def of(
    cls, cov_FxF: np.ndarray, ridge: float, key_NxF: np.ndarray, device: jax.Device
  ) -> 'Factor':
    """Starts the factorisation on a device, without waiting for it.

    Args:
      cov_FxF: C, symmetric; float32 or wider.
      ridge: at least 0.
      key_NxF: K.
      device: where the factor is to be kept.
    """
    dtype, wide = working_dtype(device), wide_device(device)
    scale_F = equilibration(cov_FxF, ridge, key_NxF)
    with float64_alone():
      kept = _put(cov_FxF, ridge, key_NxF, scale_F, wide)
      sent = kept
      if dtype != jnp.float64:
        sent = tuple(jax.device_put(np.asarray(part, dtype), device) for part in kept)
      matrix_FxF = _start(*sent[:2], dtype)
      for first in range(0, len(key_NxF), _ROWS):
        matrix_FxF = _add_gram(matrix_FxF, _fill_rows(sent[2][first : first + _ROWS]))
      cov, ridge_, key, scale = kept
      return cls(cov, ridge_, key, scale, _factorise(matrix_FxF, sent[3]))

  @functools.cached_property
  def is_definite(self) -> bool:
    """Whether A is positive definite, as far as the factor's dtype tells; waits for it."""
    with float64_alone():
      return bool(jnp.isfinite(self.root_FxF[-1, -1]))

  @property
  def devices(self) -> set[jax.Device]:
    return self.root_FxF.devices()

  @property
  def wide(self) -> jax.Device:
    """Device of the float64 work around the factor."""
    (device,) = self.scale_F.devices()
    return device

  @property
  def nbytes(self) -> int:
    """Bytes on the devices."""
    arrays = (self.cov_FxF, self.key_NxF, self.root_FxF)
    return sum(array.nbytes for array in arrays if array.devices() == self.devices)

  def cov_times(self, x_FxB: jax.Array) -> jax.Array:
    """C x, float64."""
    return product(self.cov_FxF, x_FxB)

  def times(self, x_FxB: jax.Array) -> jax.Array:
    """A x, float64."""
    product_FxB = self.cov_times(x_FxB) + self.ridge * x_FxB
    return product_FxB + product(self.key_NxF.T, product(self.key_NxF, x_FxB))

  def solve(self, rhs_FxB: jax.Array) -> jax.Array:
    """A⁻¹ rhs, float64, refined where the factor is not float64.

    Refinement adds A⁻¹ (rhs - A x) until that is rounding or stops getting smaller; what is then
    left shows in the residual of the whole solve.
    """
    x_FxB = self._solve_once(rhs_FxB)
    if self.root_FxF.dtype == jnp.float64:
      return x_FxB
    best, last = x_FxB, np.inf
    for _ in range(_MOST_REFINEMENTS):
      error_FxB = rhs_FxB - self.times(x_FxB)
      error = self._scaled_norm(error_FxB) / self._scaled_norm(rhs_FxB)
      if not error < last:  # true for NaN
        break
      best, last = x_FxB, error
      if error < _REFINED:
        break
      x_FxB = x_FxB + self._solve_once(error_FxB)
    return best

  def _scaled_norm(self, x_FxB: jax.Array) -> float:
    """‖D x‖: dimensions of any size count alike."""
    return float(jnp.linalg.norm(self.scale_F[:, None] * x_FxB))

  def _solve_once(self, rhs_FxB: jax.Array) -> jax.Array:
    """With the factor as it is."""
    scaled_FxB = self.scale_F[:, None] * rhs_FxB
    (device,), dtype = self.devices, self.root_FxF.dtype
    sent_FxB = jax.device_put(scaled_FxB.astype(dtype), device)
    found_FxB = jax.device_put(_cho_solve(self.root_FxF, sent_FxB), self.wide)
    return self.scale_F[:, None] * found_FxB.astype(scaled_FxB.dtype)


class ShardedFactor(Factor):
  """A factor whose rows lie on several devices, for matrices that do not fit one.

  C stays on the host, where residuals are computed. `root_FxF` has rows of L, in the layout of
  `jedit.solvers.block_cholesky`.
  """

  @classmethod
  def over(
    cls, cov_FxF: np.ndarray, ridge: float, key_NxF: np.ndarray, devices: Sequence[jax.Device]
  ) -> 'ShardedFactor':
    """Starts the factorisation on several devices; arguments as of `Factor.of`."""
    size, dtype = len(cov_FxF), working_dtype(devices[0])
    (host, *_), mesh = jax.local_devices(backend='cpu'), Mesh(np.array(devices), (AXIS,))
    block = _block(size, mesh.size)
    filled = padded_size(size, mesh.size, block)
    scale_F = equilibration(cov_FxF, ridge, key_NxF)
    with float64_alone():
      cov, ridge_, key, scale = _put(cov_FxF, ridge, key_NxF, scale_F, host)
      rows_GxF = shard_rows(_fill(np.asarray(cov_FxF), filled), mesh, block)
      number_G = shard_rows(np.arange(filled)[:, None], mesh, block)[:, 0]
      parts = [np.asarray(part, dtype) for part in (ridge, key_NxF, scale_F)]
      specs = (Spec(AXIS), Spec(AXIS), Spec(), Spec(), Spec())
      assemble = jax.shard_map(_assemble, mesh=mesh, in_specs=specs, out_specs=Spec(AXIS))
      matrix_GxG = jax.jit(assemble)(rows_GxF, number_G, *parts)
      return cls(cov, ridge_, key, scale, factorise(matrix_GxG, mesh, block))

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
    return self.scale_F[:, None] * jax.device_put(found_FxB, self.wide)


def make_factor(
  cov_FxF: np.ndarray, ridge: float, key_NxF: np.ndarray, device: jax.Device
) -> Factor:
  """A factor on one device where that holds it, and otherwise on all of this process."""
  devices = jax.local_devices()
  if len(devices) == 1 or fits(device, len(cov_FxF)):
    return Factor.of(cov_FxF, ridge, key_NxF, device)
  return ShardedFactor.over(cov_FxF, ridge, key_NxF, devices)


def fits(device: jax.Device, size: int) -> bool:
  """Whether a factorisation, which takes three such matrices, fits half of a device's memory."""
  return 6 * size**2 * np.dtype(working_dtype(device)).itemsize <= memory(device)


def _block(size: int, num_devices: int) -> int:
  """Rows of a block: wide enough for fast products, at least four for each device."""
  return min(512, -(-size // (4 * num_devices)))


def _put(cov_FxF, ridge, key_NxF, scale_F, device):
  """C as it is and the rest in float64, on a device."""
  wide = [np.asarray(part, np.float64) for part in (ridge, key_NxF, scale_F)]
  return tuple(jax.device_put(part, device) for part in (np.asarray(cov_FxF), *wide))


def _fill(matrix_FxF: np.ndarray, size: int) -> np.ndarray:
  missing = size - len(matrix_FxF)
  return np.pad(matrix_FxF, (0, missing)) if missing else matrix_FxF


def _fill_rows(key_NxF: jax.Array) -> jax.Array:
  """Zeros below, so that any number of keys is added by one program."""
  return jnp.pad(key_NxF, ((0, _ROWS - len(key_NxF)), (0, 0)))


def equilibration(cov_FxF: np.ndarray, ridge: float, key_NxF: np.ndarray) -> np.ndarray:
  """D_F, powers of two that bring the diagonal of A near 1; 1 where it is not positive."""
  diagonal_F = np.diagonal(cov_FxF).astype(np.float64) + ridge + np.square(key_NxF).sum(0)
  is_usable_F = np.isfinite(diagonal_F) & (diagonal_F > 0)
  return np.exp2(-np.round(np.log2(np.where(is_usable_F, diagonal_F, 1.0)) / 2))


@functools.partial(jax.jit, static_argnums=2)
def _start(cov_FxF, ridge, dtype):
  return cov_FxF.astype(dtype) + ridge * jnp.eye(len(cov_FxF), dtype=dtype)


@functools.partial(jax.jit, donate_argnums=0)
def _add_gram(matrix_FxF, key_NxF):
  return matrix_FxF + jnp.einsum('nf,ng->fg', key_NxF, key_NxF, precision='highest')


@functools.partial(jax.jit, donate_argnums=0)
def _factorise(matrix_FxF, scale_F):
  scaled_FxF = scale_F[:, None] * matrix_FxF * scale_F[None, :]
  return jnp.linalg.cholesky(scaled_FxF, symmetrize_input=False).T


def _assemble(cov_RxG, number_R, ridge, key_NxF, scale_F):
  """Rows of D A D with these numbers, of a matrix that the identity fills up."""
  dtype, missing = scale_F.dtype, cov_RxG.shape[1] - len(scale_F)
  scale_G = jnp.concatenate([scale_F, jnp.ones(missing, dtype)])
  added_G = jnp.concatenate([ridge * jnp.ones(len(scale_F), dtype), jnp.ones(missing, dtype)])
  is_diagonal_RxG = number_R[:, None] == jnp.arange(cov_RxG.shape[1])[None, :]
  matrix_RxG = cov_RxG.astype(dtype) + is_diagonal_RxG * added_G[None, :]
  if len(key_NxF):
    key_NxG = jnp.pad(key_NxF, ((0, 0), (0, missing)))
    matrix_RxG += jnp.einsum('nr,ng->rg', key_NxG[:, number_R], key_NxG, precision='highest')
  return scale_G[number_R][:, None] * matrix_RxG * scale_G[None, :]


@jax.jit
def product(left_FxG: jax.Array, x_GxB: jax.Array) -> jax.Array:
  """The product in the dtype of `x_GxB`; made in full precision on every device."""
  return jnp.einsum('fg,gb->fb', left_FxG.astype(x_GxB.dtype), x_GxB, precision='highest')


@jax.jit
def _cho_solve(root_FxF, rhs_FxB):
  return cho_solve((root_FxF.T, True), rhs_FxB)
