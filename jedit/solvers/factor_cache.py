"""Factors of second moments, kept for every batch of edits that solves with them.

The cache belongs to the caller, and the factors live as long as it does, within the bounds of
`jedit.solvers.budget`. A factor takes 12 F² bytes with float32 C, and 8 F² on a TPU: 3.2 and 2.1 GB
for GPT-J. A layer that does not fit is factored again for every batch, with the same bits. No
factor is evicted: layers are visited in turn, so the oldest is always the next one needed. Several
devices share the layers evenly.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jedit.solvers.budget import Budget, bytes_per_device, fits, kept_bytes, make_factor
from jedit.solvers.devices import host, working_dtype
from jedit.solvers.factor import Factor, ScaledIdentity
from jedit.solvers.matrix import Matrix
from jedit.solvers.spectrum import Spectrum
from jedit.types import Kernel


class Source(Protocol):
  """Second moments that name a missing kernel in their error."""

  def covariance(self, kernel: Kernel, /) -> np.ndarray:
    """C_FxF of a kernel's keys."""
    ...


class FactorCache:
  """Factors and spectra of second moments, by kernel.

  Args:
    source: second moments C_FxF by kernel. Callers that are handed a cache compare `cache.source`
      with their own second moments.
  """

  def __init__(self, source: Mapping[Kernel, np.ndarray] | Source):
    self.source = source
    self._budget = Budget()
    self._covariances: dict[Kernel, Covariance] = {}

  def __getitem__(self, kernel: Kernel) -> 'Covariance':
    """C of a kernel; starts afresh if the source's array was replaced or changed."""
    source = self.source
    cov_FxF = source[kernel] if isinstance(source, Mapping) else source.covariance(kernel)
    known = self._covariances.get(kernel)
    if known is None or not known.is_of(cov_FxF):
      known = self._covariances[kernel] = Covariance(cov_FxF, self._budget)
    return known


_Kept = TypeVar('_Kept', Factor, Spectrum)


class Covariance:
  """C of one kernel with the factor and the spectrum computed from it.

  Args:
    cov_FxF: C, symmetric, not to be changed; None for zero, a matrix that ridge and earlier keys
      make definite.
    budget: shared by the layers of a cache.
    size: F, needed where C is None.

  Attributes:
    kept: by kind of result, the settings it depends on and the result.
  """

  def __init__(self, cov_FxF: np.ndarray | None, budget: Budget | None = None, size: int = 0):
    self.cov_FxF = cov_FxF
    self.size = size if cov_FxF is None else len(cov_FxF)
    self.kept: dict[type, tuple[Sequence[Any], Any]] = {}
    self._budget = budget or Budget()
    self._zero: Covariance | None = None
    self._diagonal_F = None if cov_FxF is None else np.diagonal(cov_FxF).copy()

  def is_of(self, cov_FxF: np.ndarray) -> bool:
    """True for this very array, unless it was changed since."""
    if cov_FxF is not self.cov_FxF or self._diagonal_F is None:
      return False
    return np.array_equal(np.diagonal(cov_FxF), self._diagonal_F)

  def zero(self, size: int) -> 'Covariance':
    """The zero matrix of this size; its factor is kept with those of C."""
    if self._zero is None or self._zero.size != size:
      self._zero = Covariance(None, self._budget, size)
    return self._zero

  def is_small(self, num_edits: int) -> bool:
    """True if solving with a kept factor takes fewer operations than factoring the whole sum."""
    return num_edits <= (self.size // 4 if self.cov_FxF is not None else self.size)

  def factor(self, ridge: float, key_NxF: np.ndarray) -> Factor | ScaledIdentity:
    """The kept factor of C + ridge·I + KᵀK, or a new one."""
    if self.cov_FxF is None and not len(key_NxF):
      return ScaledIdentity(self.matrix(ridge, key_NxF))
    return self._get_or_make(
      Factor,
      (ridge, key_NxF),
      lambda device: make_factor(self.cov_FxF, ridge, key_NxF, device),
    )

  def factor_once(self, ridge: float, key_NxF: np.ndarray) -> Factor:
    """A factor of C + ridge·I + KᵀK that is not kept, for one batch of many edits.

    Devices without float64 leave it to the host: to refine the solutions of more than F/4 edits
    takes more float64 operations than the factor.
    """
    device = self._budget.least_used()
    if working_dtype(device) != jnp.float64:
      return Factor.of(self.cov_FxF, ridge, key_NxF, host())
    return make_factor(self.cov_FxF, ridge, key_NxF, device)

  def spectrum(self) -> Spectrum:
    """The kept eigenvectors of C, or new ones."""
    cov_FxF = self.cov_FxF
    assert cov_FxF is not None
    return self._get_or_make(Spectrum, (), lambda device: Spectrum.of(cov_FxF, device))

  def matrix(self, ridge: float, key_NxF: np.ndarray) -> Matrix:
    """C + ridge·I + KᵀK for products, where C lies beside its factor if that is kept."""
    if Factor in self.kept:
      beside = self.kept[Factor][1].matrix
      return Matrix(beside.cov_FxF, ridge, key_NxF, beside.device)
    device = self._budget.least_used()
    place = device if fits(device, self.size) else host()
    return Matrix.on(place, self.cov_FxF, ridge, key_NxF)

  def has_room(self) -> bool:
    """True if one of several devices can keep a factor or spectrum, so that starting it pays."""
    device = self._budget.least_used()
    room = self._budget.room(device, self.size)
    return len(jax.local_devices()) > 1 and kept_bytes(device, self.size) <= room

  def _get_or_make(
    self, kind: type[_Kept], settings: Sequence[Any], make: Callable[[jax.Device], _Kept]
  ) -> _Kept:
    """The kept result of this kind for these settings, or a new one.

    Args:
      kind: of the result; one of each is kept.
      settings: numbers and arrays it depends on besides C.
      make: computes it on a device.
    """
    if kind in self.kept:
      known, value = self.kept[kind]
      if all(map(np.array_equal, known, settings)):
        return value
      del self.kept[kind], value
    device = self._budget.least_used()
    room = self._budget.room(device, self.size)  # without what the work itself takes
    value = make(device)
    if bytes_per_device(value) <= room:
      self.kept[kind] = [np.array(part) for part in settings], value
      self._budget.add(value)
    return value
