"""Sides of `solve.py`: least squares with a kept factor, and a whole system for every batch."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from processes import Here, Process

COV_WEIGHT = 100.0


def run(
  sizes: Sequence[int],
  edits: Sequence[int],
  rounds: int,
  start: Callable[..., Process | Here] = Process,
) -> list[dict[str, Any]]:
  """Times both sides for every size.

  Args:
    sizes: F.
    edits: B; a quarter of F at most is solved with the kept factor.
    rounds: of every size.
    start: `Process`, or `Here` to stay in this process.
  """
  sides = {name: start(f'solve_sides:{name}') for name in ('Engine', 'Baseline')}
  rows = []
  try:
    ceiling = max(side.call('ceiling') for side in sides.values())
    for size in sizes:
      for side in sides.values():
        side.call('prepare', size, tuple(edits))
      found = [{n: side.call('round') for n, side in sides.items()} for _ in range(rounds)]
      factor = [each['Engine']['factor'] for each in found]
      rows.append(_row('factor once', size, 0, size**3 / 3, ceiling, factor))
      for count in edits:
        ours = [each['Engine'][count] for each in found]
        theirs = [each['Baseline'][count] for each in found]
        check = [each['Engine'][f'check {count}'] for each in found]
        whole = size**3 / 3 + 3 * size**2 * count
        rows.append(_row('kept factor', size, count, 2 * size**2 * count, ceiling, ours))
        rows.append(_row('  its check', size, count, 2 * size**2 * count, ceiling, check))
        rows.append(_row('torch.linalg', size, count, whole, ceiling, theirs))
        rows[-1]['times_slower'] = rows[-1]['seconds'] / rows[-3]['seconds']
        rows[-1]['difference'] = sides['Engine'].call(
          'difference', count, sides['Baseline'].call('answer', count)
        )
  finally:
    for side in sides.values():
      side.close()
  return rows


def _row(name, size, count, needed, ceiling, seconds) -> dict[str, Any]:
  middle = statistics.median(seconds)
  return {
    'name': name,
    'F': size,
    'B': count,
    'needed_flop': needed,
    'seconds': middle,
    'min': min(seconds),
    'max': max(seconds),
    'flop_per_second': needed / middle,
    'share_of_ceiling': needed / middle / ceiling,
  }


def problem(size: int, edits: Sequence[int]) -> tuple[np.ndarray, dict[int, np.ndarray]]:
  """A well-conditioned C_FxF, float32, and keys for each number of edits."""
  index_F = np.arange(size, dtype=np.float32)
  rng = np.random.default_rng(size)
  keys = {count: rng.normal(size=(count, size)) for count in edits}
  return np.exp2(-np.abs(index_F[:, None] - index_F[None, :])), keys


class Engine:
  """`jedit.solvers`."""

  def __init__(self):
    from jedit.solvers import LeastSquares

    self.solver = LeastSquares(COV_WEIGHT)

  def ceiling(self) -> float:
    import jax
    from jax_sides import matmul_ceiling

    with jax.enable_x64(True):
      return matmul_ceiling('float64')

  def prepare(self, size: int, edits: Sequence[int]) -> None:
    """Makes the problem and compiles."""
    self.cov_FxF, self.keys = problem(size, edits)
    self.round()

  def round(self) -> dict[int | str, float]:
    """Seconds of the factor, and of the solve and its check by number of edits."""
    from jedit.solvers import Covariance

    cov = Covariance(self.cov_FxF)
    seconds: dict[int | str, float] = {}
    start = time.perf_counter()
    assert cov.factor(0.0, np.zeros((0, cov.size))).is_definite
    seconds['factor'] = time.perf_counter() - start
    self.left = {}
    for count, key_BxF in self.keys.items():
      start = time.perf_counter()
      state = self.solver.init(cov, count)
      self.left[count] = self.solver.solve(state, key_BxF, key_BxF)
      seconds[count] = time.perf_counter() - start
      start = time.perf_counter()
      assert self.solver.residual(state, key_BxF, self.left[count]) < 1e-9
      seconds[f'check {count}'] = time.perf_counter() - start
    return seconds

  def difference(self, count: int, theirs_FxB: np.ndarray) -> float:
    """Largest, relative to the largest value."""
    return float(np.abs(self.left[count] - theirs_FxB).max() / np.abs(theirs_FxB).max())


class Baseline:
  """`torch.linalg.solve`."""

  def __init__(self):
    import torch

    self.torch = torch
    self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')

  def _now(self) -> float:
    if self.device.type == 'cuda':
      self.torch.cuda.synchronize()
    return time.perf_counter()

  def ceiling(self) -> float:
    size, repeats = (1024, 6) if self.device.type == 'cpu' else (8192, 5)
    x = self.torch.full((size, size), 1 / size, device=self.device, dtype=self.torch.float64)
    seconds = []
    for _ in range(repeats):
      start = self._now()
      x @ x
      seconds.append(self._now() - start)
    return 2 * size**3 / min(seconds)

  def prepare(self, size: int, edits: Sequence[int]) -> None:
    """Makes the problem."""
    cov_FxF, keys = problem(size, edits)
    self.cov_FxF = self.torch.from_numpy(cov_FxF).to(self.device)
    self.keys = {count: self.torch.from_numpy(key).to(self.device) for count, key in keys.items()}
    self.left = {}

  def round(self) -> dict[int, float]:
    """Seconds of the solve by number of edits."""
    seconds = {}
    for count, key_BxF in self.keys.items():
      start = self._now()
      matrix_FxF = COV_WEIGHT * self.cov_FxF.double() + key_BxF.T @ key_BxF
      self.left[count] = self.torch.linalg.solve(matrix_FxF, key_BxF.T)
      seconds[count] = self._now() - start
    return seconds

  def answer(self, count: int) -> np.ndarray:
    return self.left[count].cpu().numpy()
