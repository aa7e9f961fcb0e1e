"""Updates the kernels of a region: keys, residuals and solves, layer by layer, lowest first."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jedit.editing.layerwise import LayerwiseForward
from jedit.editing.prompts import Contexts, EditRows, position
from jedit.editing.region import Region
from jedit.editing.schedule import SCHEDULES
from jedit.editing.slots import Targets
from jedit.io.progress import Progress, Timers
from jedit.models import Model
from jedit.models.patch import Update, patched
from jedit.models.sharding import with_float32
from jedit.models.sites import KERNEL_INPUT, kernel_path
from jedit.parallel.mesh import num_row_shards
from jedit.solvers import FactorCache, UnsolvableError, check_error
from jedit.types import Kernel, UserError


@dataclasses.dataclass(frozen=True)
class RegionUpdate:
  """The update of a region.

  Attributes:
    model: with the region updated.
    updates: by parameter path.
    keys: averaged keys [B, F] by kernel, read when the layer was about to be updated.
    residuals: right sides of the solves [B, D], already shared over the layers.
    solve_errors: by kernel, the relative residual of the normal equations.
  """

  model: Model
  updates: dict[str, Update]
  keys: dict[Kernel, np.ndarray]
  residuals: dict[Kernel, np.ndarray]
  solve_errors: dict[Kernel, float]


class RegionRows:
  """The rows from which a region reads keys and present values, moving up together.

  Args:
    rows: texts of the edits.
    region: has the token that is read.
    contexts: groups of prefix templates, for the average.
    row_shards: devices that share rows.
  """

  def __init__(
    self, rows: Sequence[EditRows], region: Region, contexts: Contexts, row_shards: int = 1
  ):
    token = region.token
    self.num_edits, self.compared_on = len(rows), region.compared_on
    self.weight_P = _context_weights(contexts, region.key_average)
    # The first context is the bare prompt; only its rows look ahead, so they are kept apart.
    with_context = [text for edit in rows for text in edit.without_target[1:]]
    self.context_rows = LayerwiseForward(
      [text.ids[: position(text, token) + 1] for text in with_context],
      groups=[*range(len(self.weight_P) - 1)] * len(rows),  # rows of one context begin alike
      row_shards=row_shards,
    )
    self.bare_rows = LayerwiseForward(
      [edit.bare.ids[: position(edit.bare, token) + 1] for edit in rows], row_shards=row_shards
    )

  def advance(self, model: Model, layer: int) -> None:
    """Carries all rows to the input of a layer."""
    self.context_rows.advance(model, layer)
    self.bare_rows.advance(model, layer)

  def keys(self, model: Model, kernel: Kernel) -> tuple[np.ndarray, np.ndarray]:
    """Averaged keys and keys of the bare prompts, [B, F] float64 each."""
    return self._mean_and_bare(model, kernel.layer, KERNEL_INPUT[kernel.name])

  def values(self, model: Model, layer: int, place: str) -> np.ndarray:
    """Present values of a place, [B, D] float64, on the prompts that the region compares on."""
    if self.compared_on == 'contexts':
      return self._mean_and_bare(model, layer, place)[0]
    return self.bare_rows.read(model, layer, place).astype(np.float64)

  def read_chunks(
    self, model: Model, layer: int, place: str, compared_on: str = 'contexts'
  ) -> None:
    """Reads a place on the devices, as `keys` and `values` do."""
    self.bare_rows.read_chunks(model, layer, place)
    if compared_on == 'contexts' and len(self.weight_P) > 1:
      self.context_rows.read_chunks(model, layer, place)

  def _mean_and_bare(self, model: Model, layer: int, place: str) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean over the contexts of each edit, and the value on its bare prompt."""
    bare_BxD = self.bare_rows.read(model, layer, place).astype(np.float64)
    if len(self.weight_P) == 1:
      return bare_BxD, bare_BxD
    value_NxD = self.context_rows.read(model, layer, place).astype(np.float64)
    value_BxPxD = value_NxD.reshape(self.num_edits, len(self.weight_P) - 1, -1)
    mean_BxD = np.einsum('bpd,p->bd', value_BxPxD, self.weight_P[1:])
    return mean_BxD + self.weight_P[0] * bare_BxD, bare_BxD


def update_region(
  model: Model,
  region: Region,
  rows: Sequence[EditRows],
  contexts: Contexts,
  targets: Targets,
  factors: FactorCache | None,
  timers: Timers,
  earlier_keys: Mapping[Kernel, np.ndarray] | None = None,
) -> RegionUpdate:
  """Updates the region's kernels so that its last layer's values move to the targets.

  For every layer, lowest first: K = averaged keys, R = (z - present value at the last layer) /
  divisor of the schedule, and the solver's update is added before the next layer is read
  (MEMIT, arXiv:2210.07229, algorithm 1).

  Args:
    model: with all earlier updates; not changed.
    region: layers, kernels, schedule and solver.
    rows: texts of the edits.
    contexts: groups of prefix templates.
    targets: of the region's δ.
    factors: second moments C of the kernels' keys with their factors; None if the solver uses none.
    timers: gets the seconds of 'keys' and 'solve'.
    earlier_keys: by kernel, keys [N, F] of earlier edits that are to be preserved as well.

  Raises:
    UserError: if a solve is singular or inexact, or a residual not finite; names the layer, the
      records if they are known, and the field to change.
  """
  updates: dict[str, Update] = {}
  keys: dict[Kernel, np.ndarray] = {}
  residuals: dict[Kernel, np.ndarray] = {}
  solve_errors: dict[Kernel, float] = {}
  if not region.updates:
    return RegionUpdate(model, updates, keys, residuals, solve_errors)
  last, solver = region.layers[-1], region.solver
  with timers('solve'):  # the factorisations of all layers start here, each on a device of its own
    states = {
      kernel: solver.init(
        factors[kernel] if factors is not None and solver.uses_cov else None,
        len(rows),
        (earlier_keys or {}).get(kernel),
      )
      for kernel in region.kernels
    }
  region_rows = RegionRows(rows, region, contexts, num_row_shards(model))
  with Progress(f'updating {region.name}', len(region.layers), 'layers') as progress:
    for index, layer in enumerate(region.layers):
      divisor = SCHEDULES[region.schedule](len(region.layers) - index)
      kernels = [Kernel(layer, update.kernel) for update in region.updates]
      with timers('keys'):
        region_rows.advance(model, layer)
        together = {}
        if region.keys_together:
          together = {kernel: region_rows.keys(model, kernel) for kernel in kernels}
      for kernel, update in zip(kernels, region.updates, strict=True):
        with timers('keys'):
          key_BxF, bare_key_BxF = together.get(kernel) or region_rows.keys(model, kernel)
          value_BxD = region_rows.values(model, last, update.compare)
        residual_BxD = (targets.wanted(update).astype(np.float64) - value_BxD) / divisor
        with timers('solve'):
          _check_residual(residual_BxD, kernel, rows)
          try:
            left_FxB = solver.solve(states[kernel], key_BxF, bare_key_BxF)
            error = solver.residual(states[kernel], key_BxF, left_FxB)
            check_error(error)
          except UnsolvableError as cause:
            raise _unsolvable(cause, kernel, rows) from cause
          change = Update.from_factors(left_FxB, residual_BxD)
          path = '/'.join(kernel_path(kernel))
          model = dataclasses.replace(model, params=patched(model.params, {path: change}))
        updates[path], keys[kernel], residuals[kernel] = change, key_BxF, residual_BxD
        solve_errors[kernel] = error
      progress.update()
  return RegionUpdate(model, updates, keys, residuals, solve_errors)


def dry_run_region(
  model: Model, region: Region, rows: Sequence[EditRows], contexts: Contexts
) -> Model:
  """Reads what `update_region` reads, without arrays (`jedit.parallel.program.dry_run`).

  Returns:
    The model with the kernels of the region in float32.
  """
  if not region.updates:
    return model
  region_rows, last = RegionRows(rows, region, contexts, num_row_shards(model)), region.layers[-1]
  for layer in region.layers:
    region_rows.advance(model, layer)
    for update in region.updates:
      region_rows.read_chunks(model, layer, KERNEL_INPUT[update.kernel])
      region_rows.read_chunks(model, last, update.compare, region.compared_on)
    for update in region.updates:
      model = with_float32(model, Kernel(layer, update.kernel))
  return model


def _context_weights(contexts: Contexts, average: str) -> np.ndarray:
  """Weight of each context in the key: equal weights of groups ('groups') or of contexts."""
  if average == 'flat':
    count = sum(len(group) for group in contexts)
    return np.full(count, 1.0 / count)
  return np.concatenate([np.full(len(g), 1.0 / (len(g) * len(contexts))) for g in contexts])


def _check_residual(residual_BxD: np.ndarray, kernel: Kernel, rows: Sequence[EditRows]) -> None:
  is_bad_B = ~np.isfinite(residual_BxD).all(axis=-1)
  if is_bad_B.any():
    request = rows[int(is_bad_B.argmax())].request
    raise UserError(
      f'The residual of {request.label} at {kernel.label} is not finite; '
      'lower clip_factor or learning_rate. No model was changed.'
    )


def _unsolvable(error: UnsolvableError, kernel: Kernel, rows: Sequence[EditRows]) -> UserError:
  """The error with layer and records, for users."""
  records = ' and '.join(rows[number].request.label for number in error.edits)
  nearest = f' (most alike: {records})' if records else ''
  return UserError(
    f'The solve of {kernel.label} over {len(rows)} edits failed: '
    f'{error.reason}{nearest}. No model was changed.'
  )
