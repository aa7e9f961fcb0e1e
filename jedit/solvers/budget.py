"""Device memory of factors: which device factors a matrix, and which factors are kept."""

import weakref
from typing import Any

import jax
import numpy as np

from jedit.parallel.memory import free_bytes
from jedit.solvers.block_factor import BlockFactor
from jedit.solvers.devices import host, memory, num_sharing, working_dtype
from jedit.solvers.factor import Factor


def make_factor(
  cov_FxF: np.ndarray | None, ridge: float, key_NxF: np.ndarray, device: jax.Device
) -> Factor:
  """A factor where there is room: on `device`, over all devices of this process, or on the host."""
  size, devices = key_NxF.shape[1], jax.local_devices()
  if fits(device, size):
    if working_dtype(device) == np.float64:
      return Factor.of(cov_FxF, ridge, key_NxF, device)
    return BlockFactor.over(cov_FxF, ridge, key_NxF, [device])
  if len(devices) > 1 and fits(device, size, len(devices)):
    return BlockFactor.over(cov_FxF, ridge, key_NxF, devices)
  return Factor.of(cov_FxF, ridge, key_NxF, host())


def fits(device: jax.Device, size: int, num_devices: int = 1) -> bool:
  """True if a factorisation fits the free memory of a device, or of several that share its rows."""
  return working_bytes(device, size) <= num_devices * free(device)


def working_bytes(device: jax.Device, size: int) -> int:
  """Bytes of a factorisation on one device: at most three F x F matrices with C."""
  return 3 * size**2 * np.dtype(working_dtype(device)).itemsize


def kept_bytes(device: jax.Device, size: int) -> int:
  """Bytes of a factor with float32 C beside it."""
  return (4 + np.dtype(working_dtype(device)).itemsize) * size**2


def free(device: jax.Device) -> float:
  """Free bytes of a device; all of them where it does not report any."""
  found = free_bytes(device)
  return memory(device) if found is None else found / num_sharing(device)


class Budget:
  """Device memory of kept results; several caches see each other through the free memory."""

  def __init__(self) -> None:
    self._kept: weakref.WeakSet[Any] = weakref.WeakSet()

  def add(self, value: Any) -> None:
    """Counts a result until it is gone."""
    self._kept.add(value)

  def held(self, device: jax.Device) -> float:
    """Bytes of a device that kept results take."""
    return sum(bytes_per_device(value) for value in self._kept if device in value.devices)

  def room(self, device: jax.Device, size: int) -> float:
    """Bytes of a device that may still be kept: the next matrix of this size must fit besides.

    At most half of the memory that is free without kept results, since a batch needs the rest.
    """
    available = free(device)
    half = (available + self.held(device)) / 2 - self.held(device)
    return min(half, available - working_bytes(device, size))

  def least_used(self) -> jax.Device:
    return min(jax.local_devices(), key=self.held)


def bytes_per_device(value: Any) -> float:
  """Bytes on each device of a factor or spectrum."""
  return value.nbytes / len(value.devices)
