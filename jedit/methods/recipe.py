"""Recipes: methods that optimise targets and update kernels in closed form.

ROME, MEMIT, PMET, EMMET, AlphaEdit and JEEP are recipes: a published ablation is one field changed
with `dataclasses.replace`. The constructors in `jedit.methods` build them with the field's usual
names.
"""

import dataclasses
import html
from collections.abc import Sequence
from typing import Any

from jedit.editing.blocks import Block
from jedit.editing.context import EditContext
from jedit.editing.contexts import PREFIXES
from jedit.editing.objective import Objective, check_choice
from jedit.editing.problem import PlacedDelta, Problem
from jedit.editing.provenance import describe_settings, digest_requests
from jedit.editing.region import Delta, KernelUpdate, Region, as_layers, check_layers
from jedit.editing.result import Details, EditResult
from jedit.editing.slots import Targets, optimise_targets
from jedit.editing.update import RegionUpdate, update_region
from jedit.models import Model, ModelConfig
from jedit.models.patch import Patch
from jedit.solvers import Solver
from jedit.types import Kernel, Request, UserError


@dataclasses.dataclass(frozen=True, repr=False)
class Recipe:
  """An editing method of target optimisation and closed-form updates.

  Attributes:
    name: for tables and files.
    regions: in the order they are updated.
    objective: of the target optimisation.
    stages: names of the regions that are optimised together and then updated, stage by stage;
      `(('low', 'high'),)` is joint, `(('low',), ('high',))` one after the other.
    prefixes: kind of the contexts that are sampled if none are given, 'memit' or 'rome'
      (`jedit.editing.contexts`).
  """

  name: str
  regions: tuple[Region, ...]
  objective: Objective
  stages: tuple[tuple[str, ...], ...]
  prefixes: str = 'memit'

  def __post_init__(self) -> None:
    check_choice('prefixes', self.prefixes, PREFIXES)
    names = [region.name for region in self.regions]
    staged = [name for stage in self.stages for name in stage]
    if sorted(names) != sorted(staged) or len(set(names)) != len(names):
      raise UserError(f'stages name {staged}, but the regions are {names}; name each region once.')
    deltas = [delta.name for region in self.regions for delta in region.deltas]
    if len(set(deltas)) != len(deltas):
      raise UserError(f'The deltas are named {deltas}; give each its own name.')
    self._check_overlaps()

  def __repr__(self) -> str:
    o = self.objective
    lines = [f'Recipe {self.name}: {o.num_steps} evaluations at learning rate {o.learning_rate:g}']
    for region in self.regions:
      places = ', '.join(delta.place for delta in region.deltas)
      kernels = ', '.join(update.kernel for update in region.updates) or 'no'
      lines.append(
        f'  {region.name}: layers {", ".join(map(str, region.layers))} at {region.token}; '
        f'δ on {places}; {kernels} kernels, {region.schedule} schedule, {region.solver}'
      )
    return '\n'.join(lines)

  def _repr_html_(self) -> str:
    return f'<pre>{html.escape(repr(self))}</pre>'

  def region(self, name: str) -> Region:
    """The region of this name."""
    return next(region for region in self.regions if region.name == name)

  @property
  def updated(self) -> tuple[Kernel, ...]:
    """The kernels that are updated."""
    return tuple(dict.fromkeys(kernel for region in self.regions for kernel in region.kernels))

  @property
  def kernels(self) -> tuple[Kernel, ...]:
    """The kernels whose second moments the solves use."""
    used = (kernel for r in self.regions if r.solver.uses_cov for kernel in r.kernels)
    return tuple(dict.fromkeys(used))

  @property
  def layers(self) -> tuple[int, ...]:
    """Layers that are updated, ascending: `jedit.statistics` takes them."""
    return tuple(sorted({kernel.layer for kernel in self.updated}))

  def _check_overlaps(self) -> None:
    """A patch holds one update per kernel, and a place takes one δ at a time."""
    updated: set[Kernel] = set()
    for kernel in (kernel for region in self.regions for kernel in region.kernels):
      if kernel in updated:
        raise UserError(
          f'The {kernel.name} kernel of layer {kernel.layer} is written twice; '
          'choose layers and kernels that do not overlap.'
        )
      updated.add(kernel)
    for stage in self.stages:
      placed: dict[tuple[str, int], str] = {}
      for region in map(self.region, stage):
        for delta in region.deltas:
          place = (delta.place, region.layers[-1])
          if place in placed:
            raise UserError(
              f'The deltas {placed[place]} and {delta.name} are both at {delta.place} of layer '
              f'{region.layers[-1]}; choose other layers, or stages of their own.'
            )
          placed[place] = delta.name

  def check(self, config: ModelConfig, num_edits: int) -> None:
    """Raises UserError for layers outside the model and more edits than a solver takes at once."""
    for region in self.regions:
      check_layers(region.layers, config.num_layers)
      for update in region.updates:
        region.solver.check_size(num_edits, config.key_sizes[update.kernel])

  def edit(self, context: EditContext, requests: Sequence[Request]) -> EditResult:
    """Edits all requests in one batch: stage by stage, targets and then updates.

    Raises:
      UserError: for a target that is not finite and a solve that is singular or inexact.
    """
    model, timers = context.lm.model, context.timers
    rows = context.rows(requests)
    stages: list[Targets] = []
    done: list[RegionUpdate] = []
    for number, names in enumerate(self.stages):
      with timers('targets'):
        if number == 0:
          found = self._first_targets(context, requests)
        else:  # a later stage starts from the updates of the earlier ones
          updates = {path: update for each in done for path, update in each.updates.items()}
          found = self._targets(context, requests, number, model, Patch(updates).id)
      stages.append(found)
      for region in map(self.region, names):
        done.append(
          update_region(
            model,
            region,
            rows,
            context.contexts,
            found,
            context.factors,
            timers,
            context.earlier_keys,
          )
        )
        model = done[-1].model
    reached = [
      {'regions': list(names), **found.reached()}
      for names, found in zip(self.stages, stages, strict=True)
    ]
    details = Details(
      context.contexts,
      tuple(rows),
      tuple(stages),
      keys={kernel: key for each in done for kernel, key in each.keys.items()},
      residuals={kernel: r for each in done for kernel, r in each.residuals.items()},
      solve_errors={kernel: error for each in done for kernel, error in each.solve_errors.items()},
    )
    updates = {path: update for each in done for path, update in each.updates.items()}
    return EditResult(Patch(updates, {'targets': reached}), details)

  def problem(self, stage: int) -> Problem:
    """The deltas that a stage optimises together."""
    regions = map(self.region, self.stages[stage])
    placed = tuple(PlacedDelta(d, r.layers[-1], r.token) for r in regions for d in r.deltas)
    return Problem(placed, self.objective)

  def _first_targets(self, context: EditContext, requests: Sequence[Request]) -> Targets:
    """Targets of the first stage: found once for all requests that are edited on this model."""
    alongside = context.alongside
    if 0 not in context.targets:
      shapes = None
      if len(alongside) < len(context.requests):
        # Batches on other models follow: all share the shapes that fit the whole call.
        problem = self.problem(0)
        shapes = context.rows.shapes(problem.tokens, problem.token_flop(context.lm.config))
      context.targets[0] = self._targets(context, alongside, 0, context.lm.model, '', shapes)
    if len(requests) == len(alongside):
      return context.targets[0]
    number = {request: n for n, request in enumerate(alongside)}
    return context.targets[0].part([number[request] for request in requests])

  def _targets(
    self,
    context: EditContext,
    requests: Sequence[Request],
    stage: int,
    model: Model,
    updates_id: str,
    shapes: Sequence[Block] | None = None,
  ) -> Targets:
    """Optimises the deltas of a stage.

    Recipes that differ in their updates alone share the memo's targets.
    """
    lm, problem = context.lm, self.problem(stage)
    key: list[Any] = [
      lm.fingerprint,
      lm.config.dtype,
      [patch.id for patch in lm.patches],
      updates_id,
      describe_settings(problem),
      digest_requests(requests),
      context.contexts,
    ]
    return optimise_targets(
      model,
      context.rows(requests),
      problem,
      batch_size=context.target_batch_size,
      memo=context.memo,
      key=key,
      shapes=shapes,
    )


def single_region(
  name: str,
  layers: Sequence[int],
  *,
  deltas: tuple[Delta, ...],
  updates: tuple[KernelUpdate, ...],
  solver: Solver,
  schedule: str,
  objective: Objective,
  key_average: str = 'groups',
  keys_together: bool = False,
  prefixes: str = 'memit',
) -> Recipe:
  """A recipe with one region at the subject's last token; see `Region` and `Recipe`."""
  region = Region(
    name='edited',
    layers=as_layers(layers),
    token='subject_last',
    deltas=deltas,
    updates=updates,
    schedule=schedule,
    solver=solver,
    key_average=key_average,
    keys_together=keys_together,
  )
  return Recipe(name, (region,), objective, stages=(('edited',),), prefixes=prefixes)
