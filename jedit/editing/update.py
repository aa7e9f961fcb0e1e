"""Writes a region: keys, residuals and solves, layer by layer, lowest first."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jedit.editing.layerwise import ClimbingRows
from jedit.editing.prompts import Contexts, EditRows, position
from jedit.io.progress import Progress, Timers
from jedit.methods.base import SPREADS, Region
from jedit.models.patch import Update, patched
from jedit.models.sites import KERNEL_INPUT, kernel_path
from jedit.moments.files import SecondMoments
from jedit.parallel.mesh import num_row_shards
from jedit.solvers import FactorCache, UnsolvableError, check_error
from jedit.types import Kernel, UserError


@dataclasses.dataclass(frozen=True)
class Written:
  """What writing a region did.

  Attributes:
    params: with the region written.
    updates: by parameter path.
    keys: averaged keys [B, F] by kernel, read when the layer was about to be written.
    residuals: what was written at them [B, D], already shared over the layers.
    solve_errors: by kernel, the relative residual of the normal equations.
  """

  params: Any
  updates: dict[str, Update]
  keys: dict[Kernel, np.ndarray]
  residuals: dict[Kernel, np.ndarray]
  solve_errors: dict[Kernel, float]


class RegionRows:
  """The rows a region reads keys and present values from, climbing together.

  Args:
    forward: of the model.
    rows: texts of the edits.
    region: says which token is read.
    contexts: groups of prefix templates, for the average.
    row_shards: devices that share rows.
  """

  def __init__(
    self,
    forward: Callable,
    rows: Sequence[EditRows],
    region: Region,
    contexts: Contexts,
    row_shards: int = 1,
  ):
    token = region.token
    self.num_edits, self.compared_on = len(rows), region.compared_on
    self.weight_P = _context_weights(contexts, region.key_average)
    # The first context is the bare prompt; only its rows look ahead, so they climb apart.
    with_context = [text for edit in rows for text in edit.without_target[1:]]
    self.context_rows = ClimbingRows(
      forward,
      [text.ids[: position(text, token) + 1] for text in with_context],
      groups=[*range(len(self.weight_P) - 1)] * len(rows),  # rows of one context begin alike
      row_shards=row_shards,
    )
    bare = [edit.bare for edit in rows]
    self.bare_rows = ClimbingRows(
      forward,
      [text.ids[: position(text, token) + 1] for text in bare],
      row_shards=row_shards,
    )

  def climb(self, params: Any, layer: int) -> None:
    self.context_rows.climb(params, layer)
    self.bare_rows.climb(params, layer)

  def keys(self, params: Any, layer: int, kernel: str) -> tuple[np.ndarray, np.ndarray]:
    """Averaged keys and keys of the bare prompts, [B, F] float64 each."""
    return self._mean_and_bare(params, layer, KERNEL_INPUT[kernel])

  def values(self, params: Any, layer: int, place: str) -> np.ndarray:
    """Present values of a place, [B, D] float64, on the prompts that the region compares on."""
    if self.compared_on == 'contexts':
      return self._mean_and_bare(params, layer, place)[0]
    return self.bare_rows.read(params, layer, place).astype(np.float64)

  def _mean_and_bare(self, params: Any, layer: int, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean over the contexts of each edit, and the value on its bare prompt."""
    bare_BxD = self.bare_rows.read(params, layer, place).astype(np.float64)
    if len(self.weight_P) == 1:
      return bare_BxD, bare_BxD
    value_NxD = self.context_rows.read(params, layer, place).astype(np.float64)
    value_BxPxD = value_NxD.reshape(self.num_edits, len(self.weight_P) - 1, -1)
    mean_BxD = np.einsum('bpd,p->bd', value_BxPxD, self.weight_P[1:])
    return mean_BxD + self.weight_P[0] * bare_BxD, bare_BxD


def write_region(
  forward: Callable,
  params: Any,
  region: Region,
  rows: Sequence[EditRows],
  contexts: Contexts,
  z: Mapping[str, np.ndarray],
  stats: SecondMoments | None,
  timers: Timers,
  earlier_keys: Mapping[Kernel, np.ndarray] | None = None,
  factors: FactorCache | None = None,
) -> Written:
  """Changes the region's kernels so that its last layer's values move to the targets.

  For every layer, lowest first: K = averaged keys, R = (z - present value at the last layer) /
  spread(layers left), and the solver's update is added before the next layer is looked at
  (MEMIT, arXiv:2210.07229, algorithm 1).

  Args:
    forward: of the model.
    params: with everything written so far; not changed.
    region: what to write.
    rows: texts of the edits.
    contexts: groups of prefix templates.
    z: by δ, targets [B, D].
    stats: second moments C of the kernels' keys; None where the solver uses none.
    timers: gets the seconds of 'keys' and 'solve'.
    earlier_keys: by kernel, keys [N, F] of earlier edits to preserve.
    factors: of `stats`, reused by every call that is handed the same cache.

  Raises:
    UserError: if a solve is singular or inexact, or a residual not finite; names the layer, where
      they are known the records, and what to change.
  """
  updates: dict[str, Update] = {}
  keys: dict[Kernel, np.ndarray] = {}
  residuals: dict[Kernel, np.ndarray] = {}
  solve_errors: dict[Kernel, float] = {}
  if not region.writes:
    return Written(params, updates, keys, residuals, solve_errors)
  last, earlier = region.layers[-1], earlier_keys or {}
  if stats is not None and factors is None:
    factors = FactorCache(stats)
  if factors is not None and factors.source is not stats:
    raise UserError('The factor cache belongs to other second moments; make one of these.')
  kernels = [Kernel(layer, w.kernel) for layer in region.layers for w in region.writes]
  with timers('solve'):
    states = {}
    for kernel in kernels:
      cov = factors[kernel] if factors is not None and region.solver.uses_cov else None
      states[kernel] = region.solver.init(cov, len(rows), earlier.get(kernel))
  region_rows = RegionRows(forward, rows, region, contexts, num_row_shards(params))
  with Progress(f'writing {region.name}', len(region.layers), 'layers') as progress:
    for index, layer in enumerate(region.layers):
      divisor = SPREADS[region.spread](len(region.layers) - index)
      with timers('keys'):
        region_rows.climb(params, layer)
        together = {}
        if region.keys_together:
          together = {w.kernel: region_rows.keys(params, layer, w.kernel) for w in region.writes}
      for write in region.writes:
        kernel = Kernel(layer, write.kernel)
        with timers('keys'):
          key_BxF, bare_key_BxF = together.get(write.kernel) or region_rows.keys(
            params, layer, write.kernel
          )
          value_BxD = region_rows.values(params, last, write.compare)
        residual_BxD = (z[write.delta].astype(np.float64) - value_BxD) / divisor
        with timers('solve'):
          _check_residual(residual_BxD, kernel, rows)
          state = states.pop(kernel)
          try:
            left_FxB = region.solver.solve(state, key_BxF, bare_key_BxF)
            error = region.solver.residual(state, key_BxF, left_FxB)
            check_error(error)
          except UnsolvableError as cause:
            raise _unsolvable(cause, kernel, rows) from cause
          update = Update.from_factors(left_FxB, residual_BxD)
          path = '/'.join(kernel_path(kernel))
          params = patched(params, {path: update})
        updates[path], keys[kernel], residuals[kernel] = update, key_BxF, residual_BxD
        solve_errors[kernel] = error
      progress.update()
  return Written(params, updates, keys, residuals, solve_errors)


def _context_weights(contexts: Contexts, average: str) -> np.ndarray:
  """Weight of each context in the key; groups weigh the same, or every context does."""
  if average == 'flat':
    count = sum(len(group) for group in contexts)
    return np.full(count, 1.0 / count)
  return np.concatenate([np.full(len(g), 1.0 / (len(g) * len(contexts))) for g in contexts])


def _check_residual(residual_BxD: np.ndarray, kernel: Kernel, rows: Sequence[EditRows]) -> None:
  is_bad_B = ~np.isfinite(residual_BxD).all(axis=-1)
  if is_bad_B.any():
    raise UserError(
      f'The residual of {_record(rows[int(is_bad_B.argmax())])} at {kernel.label} '
      f'is not finite; lower clip_factor or learning_rate. No model was changed.'
    )


def _unsolvable(error: UnsolvableError, kernel: Kernel, rows: Sequence[EditRows]) -> UserError:
  """The error with layer and records, for users."""
  whose = ' and '.join(_record(rows[number]) for number in error.edits)
  nearest = f' (most alike: {whose})' if whose else ''
  return UserError(
    f'The solve of {kernel.label} over {len(rows)} edits failed: '
    f'{error.reason}{nearest}. No model was changed.'
  )


def _record(edit: EditRows) -> str:
  request = edit.request
  return f'record {request.case_id} ({request.text!r} -> {request.target!r})'
