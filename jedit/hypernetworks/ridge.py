"""MALMEN's aggregation: ridge regression from keys to the outputs that they should change by.

  S = (KᵀK + e^λ 1)⁻¹ Kᵀ D = Kᵀ (KKᵀ + e^λ 1)⁻¹ D        MALMEN (arXiv:2311.04661), section 4

The smaller of the two systems is solved, in float64, and the loss's gradient goes back through it
by hand: with X = (KKᵀ + e^λ 1)⁻¹ D and G = dL/dS,

  dL/dD = (KKᵀ + e^λ 1)⁻¹ dL/dX = K (KᵀK + e^λ 1)⁻¹ G     dL/dλ = -e^λ ⟨dL/dD, X⟩
"""

from typing import Any

import jax
import numpy as np

from jedit.models.sites import Change
from jedit.parallel.shapes import bucket
from jedit.solvers.budget import make_factor
from jedit.solvers.devices import float64_alone

# Kᵀ and X, whose product is the update S; or S itself, and None.
Solution = tuple[np.ndarray, np.ndarray | None]


class Ridge:
  """The system of one kernel, factored once for the update and its gradient.

  Args:
    key_RxI: K, on the host; rows of zeros change nothing.
    ridge: e^λ.
  """

  def __init__(self, key_RxI: np.ndarray, ridge: float):
    self._count, self._ridge = len(key_RxI), ridge
    self._key_RxI = self._padded(key_RxI)
    self._is_dual = self._key_RxI.shape[0] <= self._key_RxI.shape[1]
    keys = self._key_RxI.T if self._is_dual else self._key_RxI
    self._factor = make_factor(None, ridge, keys, jax.local_devices()[0])

  def change(self, shift_RxO: np.ndarray) -> Solution:
    """The update S for the shifts D, float64."""
    shift_RxO = self._padded(shift_RxO)
    if self._is_dual:
      return self._key_RxI.T[:, : self._count], self._solve(shift_RxO)[: self._count]
    return self._solve(self._key_RxI.T @ shift_RxO), None

  def pull_back(self, change: Solution, grad: np.ndarray) -> tuple[np.ndarray, float]:
    """Gradients of the loss by D [R, O] and by λ.

    Args:
      change: as of `change`.
      grad: of the loss by X if there is one, otherwise by S.
    """
    left, right = change
    if right is not None:
      solved_RxO = self._solve(self._padded(grad))[: self._count]
      return solved_RxO, -self._ridge * float(np.vdot(solved_RxO, right))
    solved_IxO = self._solve(np.asarray(grad, np.float64))
    slope = -self._ridge * float(np.vdot(solved_IxO, left))
    return (self._key_RxI @ solved_IxO)[: self._count], slope

  @property
  def is_definite(self) -> bool:
    """False if keys or ridge are not finite, or the ridge is too small for them."""
    return self._factor.is_definite

  def _padded(self, rows: np.ndarray) -> np.ndarray:
    """Rows of zeros up to a size that other batches share: programs are compiled for each."""
    rows = np.asarray(rows, np.float64)
    return np.pad(rows, ((0, bucket(self._count) - self._count), (0, 0)))

  def _solve(self, rhs: np.ndarray) -> np.ndarray:
    with float64_alone():
      return np.asarray(self._factor.solve(jax.device_put(rhs, self._factor.device)))


def as_change(change: Solution, dtype: Any) -> Change:
  """Factors in the dtype of a pass."""
  left, right = (None if each is None else np.asarray(each, dtype) for each in change)
  return Change(left, right)  # type: ignore[arg-type]  # host arrays, for all processes alike
