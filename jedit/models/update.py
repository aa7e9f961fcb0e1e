"""Update: the change of one parameter, as a pair of factors where these are smaller than it."""

import dataclasses

import numpy as np

_NORM_FLOP = 1e10  # a repr that takes longer than this leaves the norm out


@dataclasses.dataclass(frozen=True, eq=False)
class Update:
  """Change of one parameter: `left @ right`, or `dense`; float32.

  Attributes:
    left_FxR, right_RxD: low-rank factors, for kernels [in, out].
    dense: the change itself, of any shape.
  """

  left_FxR: np.ndarray | None = None
  right_RxD: np.ndarray | None = None
  dense: np.ndarray | None = None

  @classmethod
  def from_factors(cls, left_FxR: np.ndarray, right_RxD: np.ndarray) -> 'Update':
    """Keeps the factors where they are smaller than their product, which is made in float64."""
    (rows, rank), columns = left_FxR.shape, right_RxD.shape[1]
    if rank * (rows + columns) < rows * columns:
      return cls(left_FxR=left_FxR.astype(np.float32), right_RxD=right_RxD.astype(np.float32))
    return cls(dense=(left_FxR.astype(np.float64) @ right_RxD).astype(np.float32))

  @property
  def shape(self) -> tuple[int, ...]:
    if self.dense is not None:
      return self.dense.shape
    assert self.left_FxR is not None and self.right_RxD is not None
    return self.left_FxR.shape[0], self.right_RxD.shape[1]

  def value(self) -> np.ndarray:
    """The change as one float32 array."""
    if self.dense is not None:
      return self.dense
    assert self.left_FxR is not None and self.right_RxD is not None
    return (self.left_FxR.astype(np.float64) @ self.right_RxD.astype(np.float64)).astype(np.float32)

  def factors(self, max_rank: int | None = None) -> tuple[np.ndarray, np.ndarray, float]:
    """The change as a product of two factors, of its own rank or of a lower one.

    Factors of at most `max_rank` columns stay as they are. Otherwise the best approximation in
    the Frobenius norm (Eckart and Young, 1936), the largest singular values, in float64: of
    `left @ right` by the QR factors of both sides, without their product. The roots of the singular
    values go to both factors, so that neither loses more in a narrower dtype.

    Args:
      max_rank: the largest rank; None keeps all of the change, of a dense one to the rounding of
        float32.

    Returns:
      left_FxR, right_RxD in float32; the norm of what is left out, relative to that of the change.
    """
    if self.left_FxR is not None and self.right_RxD is not None:
      if max_rank is None or self.left_FxR.shape[1] <= max_rank:
        return self.left_FxR, self.right_RxD, 0.0
      left_FxR, upper_RxR = np.linalg.qr(self.left_FxR.astype(np.float64))
      right_DxR, lower_RxR = np.linalg.qr(self.right_RxD.T.astype(np.float64))
      u_RxR, size_R, v_RxR = np.linalg.svd(upper_RxR @ lower_RxR.T)
      left_FxR, right_RxD = left_FxR @ u_RxR, v_RxR @ right_DxR.T
    else:
      assert self.dense is not None
      dense = self.dense.astype(np.float64)
      left_FxR, size_R, right_RxD = np.linalg.svd(dense, full_matrices=False)
    if max_rank is None:
      noise = size_R[0] * max(self.shape) * np.finfo(np.float32).eps
      max_rank = max(1, int(np.sum(size_R > noise)))
    root_R = np.sqrt(size_R[:max_rank])
    error = float(np.linalg.norm(size_R[max_rank:]) / (np.linalg.norm(size_R) or 1.0))
    left_FxR = (left_FxR[:, :max_rank] * root_R).astype(np.float32)
    return left_FxR, (root_R[:, None] * right_RxD[:max_rank]).astype(np.float32), error

  def norm(self) -> float:
    """Frobenius norm; of factors as tr(LᵀL RRᵀ), without their product."""
    if self.dense is not None:
      return float(np.linalg.norm(self.dense.astype(np.float64)))
    assert self.left_FxR is not None and self.right_RxD is not None
    left_FxR, right_RxD = self.left_FxR.astype(np.float64), self.right_RxD.astype(np.float64)
    square = np.sum((left_FxR.T @ left_FxR) * (right_RxD @ right_RxD.T))
    return float(np.sqrt(max(square, 0.0)))

  @property
  def rank(self) -> int | None:
    """Number of columns of the left factor; None for a dense update."""
    return None if self.left_FxR is None else self.left_FxR.shape[1]

  @property
  def is_small(self) -> bool:
    """True if the norm is a matter of a second."""
    return (self.rank or 1) ** 2 * sum(self.shape) < _NORM_FLOP

  def __repr__(self) -> str:
    size = ' x '.join(map(str, self.shape))
    kind = 'dense' if self.rank is None else f'rank {self.rank}'
    return f'{size}, {kind}' + (f', norm {self.norm():.4g}' if self.is_small else '')

  def tensors(self) -> dict[str, np.ndarray]:
    """The arrays that are stored, by field name."""
    fields = {'left': self.left_FxR, 'right': self.right_RxD, 'dense': self.dense}
    return {name: array for name, array in fields.items() if array is not None}
