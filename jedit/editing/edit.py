"""The driver: a method and requests in, a patch out."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, overload

import numpy as np
from absl import logging

from jedit.data.records import find_conflicts
from jedit.editing.contexts import contexts_of
from jedit.editing.delta import PlacedDelta
from jedit.editing.prompts import (
  Block,
  Contexts,
  EditRows,
  check_contexts,
  encode_edits,
  fit_shapes,
)
from jedit.editing.provenance import describe
from jedit.editing.schedule import Targets, choose_batch_size, optimise_targets
from jedit.editing.update import write_region
from jedit.io.progress import Timers
from jedit.methods import Method
from jedit.methods.base import Recipe
from jedit.methods.fine_tune import FineTuning, fine_tune
from jedit.models import functions
from jedit.models.language_model import LanguageModel
from jedit.models.patch import Patch, Update
from jedit.moments.files import SecondMoments
from jedit.parallel.mesh import num_row_shards
from jedit.solvers import FactorCache
from jedit.types import Kernel, Request, UserError


@dataclasses.dataclass(frozen=True, eq=False)
class Details:
  """Everything an edit computed on the way; arrays are in the order of the requests.

  Attributes:
    contexts: groups of prefix templates.
    rows: texts of every edit with their token ids and positions.
    targets: by stage, δ, v₀, z, step counts and traces.
    keys: averaged keys [B, F] by kernel, read when the layer was about to be written.
    residuals: [B, D] by kernel, shared over the layers.
    updates: by parameter path.
    seconds: by 'targets', 'keys' and 'solve'.
    solve_errors: by kernel, the relative residual ‖A x - b‖ / ‖b‖ of the normal equations,
      the largest over the edits; see `residual` of the solvers in `jedit.solvers`.
  """

  contexts: Contexts
  rows: tuple[EditRows, ...]
  targets: tuple[Targets, ...]
  keys: dict[Kernel, np.ndarray]
  residuals: dict[Kernel, np.ndarray]
  updates: dict[str, Update]
  seconds: dict[str, float]
  solve_errors: dict[Kernel, float]

  @classmethod
  def of_fine_tuning(cls, patch: Patch) -> 'Details':
    """Fine-tuning has neither targets nor keys."""
    return cls((), (), (), {}, {}, dict(patch.updates), {}, {})

  @property
  def z(self) -> dict[str, np.ndarray]:
    """Targets of all δ, [B, D] each."""
    return {name: value for stage in self.targets for name, value in stage.z.items()}


@overload
def edit(
  lm: LanguageModel,
  requests: Sequence[Request],
  method: Method,
  stats: SecondMoments | None = ...,
  *,
  contexts: Iterable[Iterable[str]] | None = ...,
  seed: int = ...,
  batch_size: int | None = ...,
  store: pathlib.Path | None = ...,
  earlier_keys: Mapping[Kernel, np.ndarray] | None = ...,
  targets: Targets | None = ...,
  factors: FactorCache | None = ...,
  details: Literal[False] = ...,
) -> Patch: ...
@overload
def edit(
  lm: LanguageModel,
  requests: Sequence[Request],
  method: Method,
  stats: SecondMoments | None = ...,
  *,
  contexts: Iterable[Iterable[str]] | None = ...,
  seed: int = ...,
  batch_size: int | None = ...,
  store: pathlib.Path | None = ...,
  earlier_keys: Mapping[Kernel, np.ndarray] | None = ...,
  targets: Targets | None = ...,
  factors: FactorCache | None = ...,
  details: Literal[True],
) -> tuple[Patch, Details]: ...
def edit(
  lm: LanguageModel,
  requests: Sequence[Request],
  method: Method,
  stats: SecondMoments | None = None,
  *,
  contexts: Iterable[Iterable[str]] | None = None,
  seed: int = 0,
  batch_size: int | None = None,
  store: pathlib.Path | None = None,
  earlier_keys: Mapping[Kernel, np.ndarray] | None = None,
  targets: Targets | None = None,
  factors: FactorCache | None = None,
  details: bool = False,
) -> Patch | tuple[Patch, Details]:
  """Edits all requests in one batch.

  Requests that contradict each other or share a subject are reported as warnings first.

  Args:
    lm: the model; it is not changed.
    requests: facts to write.
    method: of `jedit.methods`.
    stats: second moments of the kernels that the method writes; None for a method that uses none.
    contexts: groups of prefix templates, the bare prompt '{}' first; sampled from the model with
      `seed` when None, as the method's authors do (`jedit.editing.contexts`).
    seed: of the sampling.
    batch_size: edits whose targets are optimised at once; bounds memory, not the result. None
      takes what fits the device.
    store: directory for finished targets; a run that is repeated after a kill goes on from them,
      and so does one that writes the same targets in another way (`find_targets`).
    earlier_keys: by kernel, keys [N, F] of earlier edits: they are preserved, too. A
      sequence of edits gives those of `Details.keys`.
    targets: what `find_targets` found for the same requests, method and contexts on this model.
    factors: a cache made of `stats`, to be shared by several calls.
    details: also returns what was computed on the way.

  Returns:
    The patch, to be applied with `lm.apply`; with `details` a pair of it and `Details`.

  Raises:
    UserError: for no requests, texts longer than the model's positions, layers outside the model,
      missing second moments, more edits than the method can write at once, a target that is not
      finite, a solve that is singular.
  """
  requests = _checked(requests)
  for sentence in find_conflicts(requests).sentences():
    logging.warning('%s', sentence)
  if isinstance(method, FineTuning):
    patch = fine_tune(lm, requests, method, seed=seed)
    return (patch, Details.of_fine_tuning(patch)) if details else patch
  check_method(lm, method, stats, len(requests))
  groups = contexts_of(lm, method, seed, contexts)
  rows = encode_edits(lm.tokenizer, requests, groups, lm.config.position_limit)

  run, _ = functions(lm.config)
  timers = Timers({'targets': 0.0, 'keys': 0.0, 'solve': 0.0})
  params = lm.params
  updates: dict[str, Update] = {}
  keys: dict[Kernel, np.ndarray] = {}
  residuals: dict[Kernel, np.ndarray] = {}
  solve_errors: dict[Kernel, float] = {}
  stages: list[Targets] = []
  for number, names in enumerate(method.stages):
    if number == 0 and targets is not None:
      found = targets
    else:
      # A later stage starts from what was written.
      written_id = Patch(updates).id if updates else ''
      with timers('targets'):
        found = _stage_targets(
          lm, params, rows, groups, method, number, batch_size, store, written_id
        )
    stages.append(found)
    for region in map(method.region, names):
      written = write_region(
        run, params, region, rows, groups, found.z, stats, timers, earlier_keys, factors
      )
      params = written.params
      updates |= written.updates
      keys |= written.keys
      residuals |= written.residuals
      solve_errors |= written.solve_errors

  provenance = {
    **describe(lm, requests, method, seed),
    'contexts': [list(group) for group in groups],
    'second_moments': None if stats is None else dict(stats.provenance),
    'targets': [
      {'regions': list(names), **found.reached()}
      for names, found in zip(method.stages, stages, strict=True)
    ],
  }
  patch = Patch(updates, provenance)
  if not details:
    return patch
  return patch, Details(
    groups, tuple(rows), tuple(stages), keys, residuals, updates, timers.seconds, solve_errors
  )


def find_targets(
  lm: LanguageModel,
  requests: Sequence[Request],
  method: Recipe,
  *,
  contexts: Iterable[Iterable[str]],
  batch_size: int | None = None,
  store: pathlib.Path | None = None,
  shapes: Sequence[Block] | None = None,
) -> Targets:
  """The targets of a method's first stage, which depend on no other request and no second moment.

  Edits of the same requests in other batches, or written in another way, can start from them:
  see `targets` of `edit`.

  Args:
    lm, requests, method, batch_size, store: as of `edit`.
    contexts: groups of prefix templates, the bare prompt '{}' first.
    shapes: of `target_shapes` for all requests of a sequence that these are a part of, so that its
      parts share compiled programs; None fits these requests alone.

  Raises:
    UserError: for no requests, layers outside the model, a target that is not finite.
  """
  requests = _checked(requests)
  method.check_layers(lm.config.num_layers)
  groups = check_contexts(contexts)
  rows = encode_edits(lm.tokenizer, requests, groups, lm.config.position_limit)
  return _stage_targets(lm, lm.params, rows, groups, method, 0, batch_size, store, shapes=shapes)


def target_shapes(
  lm: LanguageModel,
  requests: Sequence[Request],
  method: Recipe,
  contexts: Iterable[Iterable[str]],
) -> list[Block]:
  """The shapes that the targets of a method's first stage are padded to, for `find_targets`.

  Args:
    lm, method, contexts: as of `find_targets`.
    requests: of the whole sequence.

  Raises:
    UserError: as `find_targets`.
  """
  limit = lm.config.position_limit
  rows = encode_edits(lm.tokenizer, _checked(requests), check_contexts(contexts), limit)
  tokens = tuple(dict.fromkeys(placed.token for placed in _placed(method, 0)))
  return fit_shapes(rows, tokens, method.objective.num_steps)


def _placed(method: Recipe, number: int) -> tuple[PlacedDelta, ...]:
  """The δ of a stage."""
  regions = map(method.region, method.stages[number])
  return tuple(PlacedDelta(d, r.layers[-1], r.token) for r in regions for d in r.deltas)


def _stage_targets(
  lm: LanguageModel,
  params: Any,
  rows: Sequence[EditRows],
  contexts: Contexts,
  method: Recipe,
  number: int,
  batch_size: int | None,
  store: pathlib.Path | None,
  written_id: str = '',
  shapes: Sequence[Block] | None = None,
) -> Targets:
  """Optimises what stage `number` optimises together.

  Methods that only write differently find, and leave, their targets under one name in `store`.
  """
  if batch_size is not None and batch_size < 1:
    raise UserError(f'batch_size is {batch_size}; give at least 1.')
  run, read_out = functions(lm.config)
  placed = _placed(method, number)
  first_layer = min(each.layer for each in placed)
  parts: list[Any] = [lm.fingerprint, lm.config.dtype, [p.id for p in lm.patches], written_id]
  parts += [repr(placed), repr(method.objective), repr([row.request for row in rows]), contexts]
  signature = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
  return optimise_targets(
    run,
    read_out,
    lm.config.num_layers,
    params,
    rows,
    placed,
    method.objective,
    batch_size=batch_size
    or choose_batch_size(lm.config, rows, first_layer, num_row_shards(params)),
    store=None if store is None else pathlib.Path(store) / signature[:16],
    signature=signature,
    shapes=shapes,
  )


def _checked(requests: Sequence[Request]) -> list[Request]:
  requests = list(requests)
  if not requests:
    raise UserError('There is nothing to edit; give at least one request.')
  return requests


def check_method(
  lm: LanguageModel, method: Recipe, stats: SecondMoments | None, num_edits: int
) -> None:
  """Raises UserError for whatever can be known before the long work starts.

  Args:
    lm, method, stats: as of `edit`.
    num_edits: of one batch.
  """
  config = lm.config
  method.check_layers(config.num_layers)
  size = config.key_sizes
  method.check_edits(num_edits, size)
  if not method.uses_moments:
    return
  if stats is None:
    raise UserError(f'Method {method.name} needs second moments; give those of jedit.statistics.')
  for kernel in method.kernels:
    shape = stats.covariance(kernel).shape
    if shape != (size[kernel.name], size[kernel.name]):
      raise UserError(
        f'The second moments of {kernel.label} have shape {shape}, the model '
        f'wants {(size[kernel.name], size[kernel.name])}; collect them on this model.'
      )
