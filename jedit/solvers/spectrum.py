"""Eigenvectors of a second moment, for solvers that change its weak directions only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jedit.solvers.devices import float64_alone, float64_device


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
  """Eigenvectors of C by ascending eigenvalue.

  Attributes:
    eigenvalue_F: ascending, float64.
    vector_FxF: one eigenvector per column, float64.
  """

  eigenvalue_F: jax.Array
  vector_FxF: jax.Array

  @classmethod
  def of(cls, cov_FxF: np.ndarray, device: jax.Device) -> 'Spectrum':
    """Starts the decomposition on a device, without waiting for it."""
    with float64_alone():
      return cls(*_eigh(jax.device_put(cov_FxF, float64_device(device))))

  @property
  def devices(self) -> set[jax.Device]:
    return self.vector_FxF.devices()

  @property
  def nbytes(self) -> int:
    return self.vector_FxF.nbytes

  def count_below(self, threshold: float) -> int:
    """Number of eigenvalues below the threshold."""
    return int(np.searchsorted(np.asarray(self.eigenvalue_F), threshold))


@jax.jit
def _eigh(cov_FxF):
  return jnp.linalg.eigh(cov_FxF.astype(jnp.float64))
