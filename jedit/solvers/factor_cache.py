"""What an update is to leave alone, M = C + ridge I + EᵀE, factored once for many batches of edits.

A factor belongs to its C: it is found again by whoever solves with the same array, and goes when
the array goes. Only as many are kept as fit a third of a device's memory (about 12 F² bytes each
where C is float32: 3.2 GB for GPT-J); what does not fit is factored anew for every batch. None is
thrown out for another: layers come in turn, and the oldest is always the next one that is needed.
Several devices share them evenly, whole layers each.
"""

import dataclasses
import functools
import math
import weakref
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_factor, cho_solve

from jedit.solvers.factor import Factor, float64_alone, make_factor, memory, product, wide_device


class _Keepable(Protocol):
  @property
  def nbytes(self) -> int: ...
  @property
  def devices(self) -> set[jax.Device]: ...


_Kept = TypeVar('_Kept', bound=_Keepable)
# By identity of the matrix and kind: the matrix, what else the result depends on, the result.
_kept: dict[tuple[int, type], tuple[Callable[[], Any], tuple[Any, ...], Any]] = {}


def most_apart(key_size: int) -> int:
  """Earlier keys that stay out of the factor, at most: √(2F), a multiple of which is inside.

  N of them add 2 F² N operations to every batch, and a factor that takes in N more F³/3 once in N/B
  batches. For B = 10 the sum is least near √(2F): for GPT-J an eighth of a factor in each batch.
  """
  return max(math.isqrt(2 * key_size), 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Preserved:
  """M = C + ridge I + EᵀE, ready to be solved with.

  Attributes:
    factor: of C + ridge I and the first earlier keys, a multiple of `most_apart` of them.
    rest_NxF: the others, filled up with zeros; Woodbury's identity brings them in.
  """

  factor: Factor
  rest_NxF: np.ndarray

  @property
  def is_definite(self) -> bool:
    return self.factor.is_definite

  def spread(self, key_BxF: np.ndarray) -> np.ndarray:
    """M⁻¹ Kᵀ, [F, B] float64."""
    with float64_alone():
      return np.asarray(_with_rest(*self._spread(key_BxF), len(key_BxF)))

  def left(self, key_BxF: np.ndarray, key_ridge: float) -> np.ndarray:
    """M⁻¹ Kᵀ (K M⁻¹ Kᵀ + key_ridge I)⁻¹, [F, B] float64; for 1 that is (M + KᵀK)⁻¹ Kᵀ."""
    with float64_alone():
      return np.asarray(_left(*self._spread(key_BxF), len(key_BxF), key_ridge))

  def _spread(self, key_BxF: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """A⁻¹ Jᵀ and J: the keys, and below them the earlier ones that the factor lacks."""
    rows = np.concatenate([key_BxF, self.rest_NxF])
    row_JxF = jax.device_put(rows.astype(np.float64), self.factor.wide)
    return self.factor.solve(row_JxF.T), row_JxF


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
  """Eigenvectors of C, by ascending eigenvalue.

  Attributes:
    eigenvalue_F: ascending, float64.
    vector_FxF: one in each column, float64; as of `jedit.solvers.factor.Factor`.
    identities: what `identity` gave last, by size.
  """

  eigenvalue_F: jax.Array
  vector_FxF: jax.Array
  identities: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

  @classmethod
  def of(cls, cov_FxF: np.ndarray, device: jax.Device) -> 'Spectrum':
    with float64_alone():
      return cls(*_eigh(jax.device_put(cov_FxF, wide_device(device))))

  @property
  def devices(self) -> set[jax.Device]:
    return self.vector_FxF.devices()

  @property
  def nbytes(self) -> int:
    return self.vector_FxF.nbytes

  def count_below(self, threshold: float) -> int:
    """Number of eigenvalues below it."""
    return int(np.searchsorted(np.asarray(self.eigenvalue_F), threshold))

  def into(self, key_NxF: np.ndarray, num_vectors: int) -> np.ndarray:
    """Coordinates of rows along the first eigenvectors, [N, G] float64."""
    with float64_alone():
      vector_GxF = self.vector_FxF[:, :num_vectors].T
      return np.asarray(product(vector_GxF, jax.device_put(key_NxF.T, *self.devices))).T

  def out_of(self, x_GxB: np.ndarray) -> np.ndarray:
    """Columns from their coordinates, [F, B] float64."""
    with float64_alone():
      vector_FxG = self.vector_FxF[:, : len(x_GxB)]
      return np.asarray(product(vector_FxG, jax.device_put(x_GxB, *self.devices)))

  def identity(self, size: int) -> np.ndarray:
    """The identity that the coordinates are preserved with; the same array every time."""
    if size not in self.identities:
      self.identities.clear()
      self.identities[size] = np.eye(size, dtype=np.float32)
    return self.identities[size]


def preserve(
  cov_FxF: np.ndarray, ridge: float = 0.0, earlier_key_NxF: np.ndarray | None = None
) -> Preserved:
  """M of a C, with the factor that is kept for it, if there is one.

  What is inside the factor depends on the number of earlier keys alone, so that a sequence that
  goes on after a kill repeats the same operations.

  Args:
    cov_FxF: C, symmetric; must not change while it lives.
    ridge: at least 0.
    earlier_key_NxF: E.
  """
  size = len(cov_FxF)
  earlier_NxF = np.zeros((0, size)) if earlier_key_NxF is None else earlier_key_NxF
  unit = most_apart(size)
  inside = len(earlier_NxF) // unit * unit
  rest_NxF = np.zeros((unit if earlier_key_NxF is not None else 0, size))
  rest_NxF[: len(earlier_NxF) - inside] = earlier_NxF[inside:]
  factor = keep(
    cov_FxF,
    (ridge, earlier_NxF[:inside]),
    Factor,
    lambda device: make_factor(cov_FxF, ridge, earlier_NxF[:inside], device),
  )
  return Preserved(factor, rest_NxF)


def moment_times(cov_FxF: np.ndarray, x_FxB: np.ndarray) -> np.ndarray:
  """C x, float64, on the device that has C beside a factor; it is sent there otherwise."""
  known, _, factor = _kept.get((id(cov_FxF), Factor), (lambda: None, (), None))
  with float64_alone():
    if factor is not None and known() is cov_FxF:
      return np.asarray(factor.cov_times(jax.device_put(x_FxB, factor.wide)))
    wide = wide_device(_least_used())
    return np.asarray(product(jax.device_put(cov_FxF, wide), jax.device_put(x_FxB, wide)))


def solve_whole(cov_FxF: np.ndarray, key_NxF: np.ndarray, rhs_FxB: np.ndarray) -> np.ndarray:
  """(C + KᵀK)⁻¹ rhs, [F, B] float64, with a factor of its own, which is not kept."""
  factor = make_factor(cov_FxF, 0.0, key_NxF, _least_used())
  with float64_alone():
    return np.asarray(factor.solve(jax.device_put(rhs_FxB, factor.wide)))


def spectrum(cov_FxF: np.ndarray) -> Spectrum:
  """Eigenvectors of a C, taken once while it lives, as far as they fit."""
  return keep(cov_FxF, (), Spectrum, lambda device: Spectrum.of(cov_FxF, device))


def keep(
  matrix: np.ndarray,
  setting: tuple[Any, ...],
  kind: type[_Kept],
  make: Callable[[jax.Device], _Kept],
) -> _Kept:
  """The result of this kind that is kept for a matrix, or a new one.

  Args:
    matrix: what it is made of.
    setting: numbers and arrays that it depends on besides.
    kind: of the result; there is one of each kind for a matrix.
    make: makes it on a device.
  """
  name = (id(matrix), kind)
  # A matrix that was changed in place has another diagonal.
  setting = (*setting, np.diagonal(matrix))
  if name in _kept:
    known, known_setting, value = _kept[name]
    if known() is matrix and all(map(np.array_equal, known_setting, setting)):
      return value
    del _kept[name]
  device = _least_used()
  value = make(device)
  if _held(device) + value.nbytes / len(value.devices) <= _budget(device):
    reference = weakref.ref(matrix, lambda _: _kept.pop(name, None))
    _kept[name] = (reference, tuple(np.array(part) for part in setting), value)
  return value


def has_room(cov_FxF: np.ndarray) -> bool:
  """Whether what is made of C on the least used of several devices could be kept there."""
  device = _least_used()
  needed = 8 * cov_FxF.size + cov_FxF.nbytes
  return len(jax.local_devices()) > 1 and _held(device) + needed <= _budget(device)


def _least_used() -> jax.Device:
  return min(jax.local_devices(), key=_held)


def _held(device: jax.Device) -> float:
  """Bytes that kept results take of a device."""
  values = [value for *_, value in _kept.values()]
  return sum(value.nbytes / len(value.devices) for value in values if device in value.devices)


@functools.cache
def _budget(device: jax.Device) -> float:
  return memory(device) / 3


@jax.jit
def _eigh(cov_FxF):
  return jnp.linalg.eigh(cov_FxF.astype(jnp.float64))


@functools.partial(jax.jit, static_argnums=2)
def _with_rest(spread_FxJ, row_JxF, num_edits):
  """(A + EᵀE)⁻¹ Kᵀ of A⁻¹ Jᵀ, J = [K; E], by Woodbury's identity."""
  spread_FxB, spread_FxN = spread_FxJ[:, :num_edits], spread_FxJ[:, num_edits:]
  if not spread_FxN.shape[1]:
    return spread_FxB
  moved_NxJ = product(row_JxF[num_edits:], spread_FxJ)
  inner_NxN = jnp.eye(len(moved_NxJ), dtype=moved_NxJ.dtype) + moved_NxJ[:, num_edits:]
  return spread_FxB - product(
    spread_FxN, cho_solve(cho_factor(inner_NxN), moved_NxJ[:, :num_edits])
  )


@functools.partial(jax.jit, static_argnums=2)
def _left(spread_FxJ, row_JxF, num_edits, key_ridge):
  spread_FxB = _with_rest(spread_FxJ, row_JxF, num_edits)
  inner_BxB = product(row_JxF[:num_edits], spread_FxB)
  inner_BxB += key_ridge * jnp.eye(num_edits, dtype=inner_BxB.dtype)
  return cho_solve(cho_factor(inner_BxB), spread_FxB.T).T
