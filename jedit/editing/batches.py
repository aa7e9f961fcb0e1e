"""Edits in several batches: each on the original model, or one after the other on a running one."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jedit.editing.contexts import contexts_of
from jedit.editing.edit import check_method, edit, find_targets, target_shapes
from jedit.editing.prompts import Contexts
from jedit.editing.provenance import describe
from jedit.io.progress import Timers
from jedit.io.storage import read_tensors, to_json, write_tensors
from jedit.methods import Method
from jedit.methods.base import Recipe
from jedit.models.language_model import LanguageModel
from jedit.models.patch import Patch
from jedit.moments.files import SecondMoments
from jedit.solvers import FactorCache
from jedit.types import Kernel, Request, UserError

_PATCH, _KEYS = 'patch.safetensors', 'keys.safetensors'


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """One batch of several.

  Attributes:
    edits: which of the requests.
    patch: what it changed.
    lm: the model with it, and in a sequence with all batches before it.
    seconds: by 'targets', 'keys' and 'solve'; empty for a batch that was stored.
  """

  edits: slice
  patch: Patch
  lm: LanguageModel
  seconds: Mapping[str, float]


def edit_separately(
  lm: LanguageModel,
  requests: Sequence[Request],
  method: Method,
  stats: SecondMoments | None = None,
  *,
  size: int,
  contexts: Iterable[Iterable[str]] | None = None,
  seed: int = 0,
  batch_size: int | None = None,
  store: pathlib.Path | None = None,
  targets_store: pathlib.Path | None = None,
) -> Iterator[Batch]:
  """Edits in batches, each from the original model; `size` 1 gives single edits.

  Targets of different edits do not depend on each other, so those of a first stage are found for
  all batches together.

  Args:
    lm, requests, method, stats, contexts, seed, batch_size: as of `jedit.edit`.
    size: requests of a batch.
    store: directory for finished targets and patches; a run that is repeated after a kill goes
      on from them.
    targets_store: directory for the targets of the first stage, which runs may share; None keeps
      them in `store`.

  Yields:
    The batches in order; the model of each carries its own patch alone.

  Raises:
    UserError: as `jedit.edit`.
  """
  parts = _parts(requests, size)
  if isinstance(method, Recipe):
    check_method(lm, method, stats, min(size, len(requests)))
  groups = contexts_of(lm, method, seed, contexts)
  targets, timers = None, Timers()
  if isinstance(method, Recipe):
    with timers('targets'):
      targets = find_targets(
        lm,
        requests,
        method,
        contexts=groups,
        batch_size=batch_size,
        store=targets_store or _below(store, 'targets'),
      )
  seconds: Mapping[str, float] = timers.seconds  # goes to the first batch
  shared = _shared(groups, stats)
  factors = None if stats is None else FactorCache(stats)
  for number, part in enumerate(parts):
    folder = _below(store, f'batch-{number:05d}')
    origin = {**describe(lm, requests[part], method, seed), **shared}
    patch = _stored_patch(folder, origin)
    if patch is None:
      patch, details = edit(
        lm,
        requests[part],
        method,
        stats,
        contexts=groups,
        seed=seed,
        batch_size=batch_size,
        store=folder,
        targets=None if targets is None else targets.part(part),
        factors=factors,
        details=True,
      )
      patch = _keep(folder, patch, origin)
      seconds = _sum(seconds, details.seconds)
    yield Batch(part, patch, lm.apply(patch), seconds)
    seconds = {}


def edit_sequentially(
  lm: LanguageModel,
  requests: Sequence[Request],
  method: Method,
  stats: SecondMoments | None = None,
  *,
  size: int,
  accumulate_keys: bool = False,
  contexts: Iterable[Iterable[str]] | None = None,
  seed: int = 0,
  batch_size: int | None = None,
  store: pathlib.Path | None = None,
) -> Iterator[Batch]:
  """Edits in batches one after the other, each on the model that the earlier ones left.

  Stopping to iterate stops the editing. `jedit.models.patch.merge` makes one patch of all.

  Args:
    lm, requests, method, stats, contexts, seed, batch_size: as of `jedit.edit`; second moments
      are those of the original model throughout.
    size: requests of a batch.
    accumulate_keys: preserves the keys of earlier batches, too, beside λC (AlphaEdit,
      arXiv:2410.02355; the other published methods do not).
    store: directory for finished targets, patches and keys; a run that is repeated after a kill
      goes on from them.

  Yields:
    The batches in order; the model of each carries all patches up to its own.

  Raises:
    UserError: as `jedit.edit`.
  """
  parts = _parts(requests, size)
  if isinstance(method, Recipe):
    check_method(lm, method, stats, min(size, len(requests)))
  groups = contexts_of(lm, method, seed, contexts)
  shapes = target_shapes(lm, requests, method, groups) if isinstance(method, Recipe) else None
  earlier: dict[Kernel, np.ndarray] = {}
  factors = None if stats is None else FactorCache(stats)
  shared = {**_shared(groups, stats), 'accumulate_keys': accumulate_keys}
  for number, part in enumerate(parts):
    folder = _below(store, f'batch-{number:05d}')
    origin = {**describe(lm, requests[part], method, seed), **shared}
    patch = _stored_patch(folder, origin)
    if patch is not None and folder is not None:
      keys, seconds = _stored_keys(folder), {}
    else:
      targets, timers = None, Timers()
      if isinstance(method, Recipe):
        with timers('targets'):
          targets = find_targets(
            lm,
            requests[part],
            method,
            contexts=groups,
            batch_size=batch_size,
            store=folder,
            shapes=shapes,
          )
      patch, details = edit(
        lm,
        requests[part],
        method,
        stats,
        contexts=groups,
        seed=seed,
        batch_size=batch_size,
        store=folder,
        earlier_keys=earlier if accumulate_keys else None,
        targets=targets,
        factors=factors,
        details=True,
      )
      keys, seconds = details.keys, _sum(timers.seconds, details.seconds)
      patch = _keep(folder, patch, origin, keys if accumulate_keys else {})
    if accumulate_keys:
      for kernel, key_BxF in keys.items():
        known = [earlier[kernel]] if kernel in earlier else []
        earlier[kernel] = np.concatenate([*known, key_BxF])
    lm = lm.apply(patch)
    yield Batch(part, patch, lm, seconds)


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
  return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}


def _parts(requests: Sequence[Request], size: int) -> list[slice]:
  if size < 1:
    raise UserError(f'The size of a batch is {size}; give at least 1.')
  if not requests:
    raise UserError('There is nothing to edit; give at least one request.')
  return [slice(i, min(i + size, len(requests))) for i in range(0, len(requests), size)]


def _below(store: pathlib.Path | None, name: str) -> pathlib.Path | None:
  return None if store is None else pathlib.Path(store) / name


def _shared(contexts: Contexts, stats: SecondMoments | None) -> dict[str, Any]:
  """What all batches depend on besides model, requests and method, as JSON-able values."""
  return to_json(
    {
      'contexts': contexts,
      'second_moments': None if stats is None else dict(stats.provenance),
    }
  )


def _stored_patch(folder: pathlib.Path | None, origin: Mapping[str, Any]) -> Patch | None:
  """The patch of a finished batch, which is written last, if it has this origin."""
  if folder is None or not (folder / _PATCH).is_file():
    return None
  patch = Patch.load(folder / _PATCH)
  return patch if all(patch.provenance.get(name) == origin[name] for name in origin) else None


def _stored_keys(folder: pathlib.Path) -> dict[Kernel, np.ndarray]:
  tensors, _ = read_tensors(folder / _KEYS)
  return {Kernel.parse(name): key_BxF for name, key_BxF in tensors.items()}


def _keep(
  folder: pathlib.Path | None,
  patch: Patch,
  origin: Mapping[str, Any],
  keys: Mapping[Kernel, np.ndarray] | None = None,
) -> Patch:
  """The patch with all of its origin in the provenance; stored where there is a folder."""
  patch = dataclasses.replace(patch, provenance={**patch.provenance, **origin})
  if folder is not None:
    if keys is not None:
      tensors = {str(kernel): key_BxF for kernel, key_BxF in keys.items()}
      write_tensors(folder / _KEYS, tensors)
    patch.save(folder / _PATCH)
  return patch
