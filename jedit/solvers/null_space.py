"""Least squares in the null space of old keys: AlphaEdit."""

import dataclasses
import functools
from typing import ClassVar

import jax
import numpy as np

from jedit.solvers.base import UnsolvableError, check_finite, check_weight
from jedit.solvers.devices import float64_alone
from jedit.solvers.factor_cache import Covariance
from jedit.solvers.matrix import Matrix, chunks, product, relative_error
from jedit.solvers.penalty import Penalty, over_root
from jedit.solvers.spectrum import Spectrum


@dataclasses.dataclass(frozen=True)
class NullSpace:
  """Least squares among the updates that leave the strong directions of C alone.

  AlphaEdit (arXiv:2410.02355), eq. 14, with the weight of ‖ΔW‖² of its released code: the solution
  X of (P (KᵀK + EᵀE) + ridge·I) X = P Kᵀ, where P = U Uᵀ and U are the eigenvectors of C below the
  threshold. X lies in the range of P, so X = U Y with (ridge·I + Uᵀ (KᵀK + EᵀE) U) Y = Uᵀ Kᵀ: a
  symmetric system whose penalty is the identity, which needs no factor.

  Attributes:
    threshold: directions of C with an eigenvalue below it are free (paper 0.01, code 0.02).
    ridge: weight of ‖ΔW‖² (L2 in the released code).
  """

  threshold: float = 0.02
  ridge: float = 10.0
  uses_cov: ClassVar[bool] = True

  def __post_init__(self) -> None:
    check_weight('threshold', self.threshold, above=True)
    check_weight('ridge', self.ridge, above=True)

  def check_size(self, num_edits: int, key_size: int) -> None:
    """Any number of edits will do."""

  def init(
    self, cov: Covariance | None, num_edits: int, earlier_key_NxF: np.ndarray | None = None
  ) -> 'FreeSpace':
    """See `jedit.solvers.base.Solver`."""
    del num_edits
    assert cov is not None
    if cov.has_room():
      cov.spectrum()
    return FreeSpace(cov, self.threshold, self.ridge, earlier_key_NxF)

  def solve(self, state: 'FreeSpace', key_BxF: np.ndarray, bare_key_BxF: np.ndarray) -> np.ndarray:
    """See `jedit.solvers.base.Solver`."""
    del bare_key_BxF
    left_GxB = state.penalty.regularized(state.coordinates(key_BxF), self.ridge)
    left_FxB = state.vectors(left_GxB)
    check_finite(left_FxB, ', or raise ridge')
    return left_FxB

  def residual(self, state: 'FreeSpace', key_BxF: np.ndarray, left_FxB: np.ndarray) -> float:
    """Of (P (KᵀK + EᵀE) + ridge·I) X = P Kᵀ."""
    return state.residual(key_BxF, left_FxB)


@dataclasses.dataclass(frozen=True, eq=False)
class FreeSpace:
  """The free directions of one C, with the penalty in their coordinates; state of `NullSpace`.

  Attributes:
    cov: C.
    threshold, ridge: of the solver.
    earlier_key_NxF: E.
  """

  cov: Covariance
  threshold: float
  ridge: float
  earlier_key_NxF: np.ndarray | None

  @functools.cached_property
  def spectrum(self) -> Spectrum:
    """Eigenvectors of C, held for solve and residual even if the cache has no room for them."""
    return self.cov.spectrum()

  @functools.cached_property
  def basis_FxG(self) -> jax.Array:
    """The free eigenvectors."""
    num_free = self.spectrum.count_below(self.threshold)
    if not num_free:
      raise UnsolvableError(
        f'no eigenvalue of the second moments is below {self.threshold:g} (the smallest is '
        f'{np.asarray(self.spectrum.eigenvalue_F)[0]:.2g}), so nothing may change; raise threshold'
      )
    with float64_alone():
      return self.spectrum.vector_FxF[:, :num_free]

  @functools.cached_property
  def penalty(self) -> Penalty:
    """I + EᵀE / ridge in coordinates; its weight is the ridge."""
    earlier_NxF = over_root(self.earlier_key_NxF, self.ridge)
    earlier_NxG = None if earlier_NxF is None else self.coordinates(earlier_NxF)
    return Penalty(self.cov.zero(self.basis_FxG.shape[1]), 1.0, earlier_NxG)

  @property
  def device(self) -> jax.Device:
    (device,) = self.basis_FxG.devices()
    return device

  def coordinates(self, key_NxF: np.ndarray) -> np.ndarray:
    """K U, [N, G] float64."""
    key_NxG = np.empty((len(key_NxF), self.basis_FxG.shape[1]))
    with float64_alone():
      for part in chunks(len(key_NxF)):
        key_NxG[part] = product(jax.device_put(key_NxF[part], self.device), self.basis_FxG)
    return key_NxG

  def vectors(self, x_GxB: np.ndarray) -> np.ndarray:
    """U Y, [F, B] float64."""
    x_FxB = np.empty((self.cov.size, x_GxB.shape[1]))
    with float64_alone():
      for part in chunks(x_GxB.shape[1]):
        x_FxB[:, part] = product(self.basis_FxG, jax.device_put(x_GxB[:, part], self.device))
    return x_FxB

  def residual(self, key_BxF: np.ndarray, left_FxB: np.ndarray) -> float:
    """Of (P (KᵀK + EᵀE) + ridge·I) X = P Kᵀ, in all F dimensions; the largest over the edits."""
    num_edits, errors = len(key_BxF), []
    earlier = [] if self.earlier_key_NxF is None else [self.earlier_key_NxF]
    with float64_alone():
      gram = Matrix(None, 0.0, np.concatenate([*earlier, key_BxF]), self.device)
      multiply, basis_FxG = gram.multiplier(num_edits), self.basis_FxG
      for part in chunks(num_edits):
        key_RxF, x_FxR = jax.device_put((key_BxF[part], left_FxB[:, part]), self.device)
        missing_GxR = product(basis_FxG.T, multiply(x_FxR) - key_RxF.T)
        error_FxR = product(basis_FxG, missing_GxR) + self.ridge * x_FxR
        wanted_GxR = product(basis_FxG.T, key_RxF.T)  # of the norm of P Kᵀ
        errors.append(np.asarray(relative_error(error_FxR, wanted_GxR)).max())
    return float(np.max(errors))
