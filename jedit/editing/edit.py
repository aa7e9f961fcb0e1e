"""The driver: requests and a method in, an `EditResult` out, in one batch or several."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from jedit.data.records import find_conflicts
from jedit.editing.context import EditContext, TokenizedRequests
from jedit.editing.contexts import contexts_of
from jedit.editing.method import Method
from jedit.editing.provenance import describe
from jedit.editing.result import EditResult, sum_seconds
from jedit.io.memo import Memo
from jedit.io.progress import Timers
from jedit.models.language_model import LanguageModel
from jedit.models.patch import merge, patch_of
from jedit.moments.files import SecondMoments
from jedit.solvers import FactorCache
from jedit.types import Kernel, Record, Request, UserError, as_requests


@dataclasses.dataclass(frozen=True)
class Together:
  """All requests in one batch."""


@dataclasses.dataclass(frozen=True)
class Separate:
  """Batches of the original model, each a patch of its own; 1 gives single edits."""

  edits_per_batch: int = 1


@dataclasses.dataclass(frozen=True)
class Sequential:
  """Batches one after the other, each on the model with all earlier batches.

  Attributes:
    edits_per_batch: requests of a batch.
    accumulate_keys: preserves the keys of earlier batches as well, beside λC (AlphaEdit,
      arXiv:2410.02355; the other published methods do not).
  """

  edits_per_batch: int = 1
  accumulate_keys: bool = False


Batching = Together | Separate | Sequential


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
  """One batch of an edit.

  Attributes:
    edits: the requests of the batch, as a slice of all.
    result: its result; without details if it was stored by an earlier run.
    base: the model that was edited, with all earlier batches of a sequence.
  """

  edits: slice
  result: EditResult
  base: LanguageModel

  @functools.cached_property
  def lm(self) -> LanguageModel:
    """The edited model, made when it is first wanted."""
    return self.base.apply(self.result)


def edit(
  lm: LanguageModel,
  requests: Sequence[Request] | Sequence[Record] | Request | Record,
  method: Method,
  second_moments: SecondMoments | None = None,
  *,
  contexts: Iterable[Iterable[str]] | None = None,
  seed: int = 0,
  batching: Batching = Together(),
  target_batch_size: int | None = None,
  store: str | os.PathLike[str] | None = None,
  target_store: str | os.PathLike[str] | None = None,
  factors: FactorCache | None = None,
  editor: Any = None,
) -> EditResult:
  """Edits a model.

  Requests that contradict each other or share a subject are reported as warnings first.

  Args:
    lm: the model; it is not changed.
    requests: facts to write: requests, records, or mappings with the fields of a request.
    method: of `jedit.methods`, or any object with the members of `jedit.methods.Method`.
    second_moments: of the original model's keys, for the kernels that the method needs.
    contexts: groups of prefix templates, the bare prompt '{}' first; None samples them from the
      model with `seed`, as the method's authors do (`jedit.editing.contexts`).
    seed: of every random draw.
    batching: `Together()`, `Separate(edits_per_batch)` or `Sequential(edits_per_batch)`.
    target_batch_size: edits whose targets are optimised at once; bounds memory. None takes what
      fits the device. In bfloat16 it decides the rounding of a target; the patch's provenance has
      the number that was used.
    store: directory for finished targets and batches; a run that is repeated after a kill goes on
      from them.
    target_store: directory for finished targets that several runs share; None keeps them in
      `store`.
    factors: factors of `second_moments` that several edits share; None makes them anew.
    editor: of `jedit.train_editor`, for the methods that edit with one.

  Returns:
    Patch, details and batches; `lm.apply` takes the result as a whole.

  Raises:
    UserError: for no requests, texts longer than the model's positions, layers outside the model,
      missing second moments, more edits than the method can write at once, a target that is not
      finite, a solve that is singular.
  """
  results = [
    batch.result
    for batch in edit_stream(
      lm,
      requests,
      method,
      second_moments,
      contexts=contexts,
      seed=seed,
      batching=batching,
      target_batch_size=target_batch_size,
      store=store,
      target_store=target_store,
      factors=factors,
      editor=editor,
    )
  ]
  return collect(results, batching)


def collect(results: Sequence[EditResult], batching: Batching) -> EditResult:
  """One result of the batches of an edit."""
  if len(results) == 1:
    return results[0]
  patches = [result.patch for result in results if result.patch is not None]
  return EditResult(
    None if isinstance(batching, Separate) else merge(patches),
    batches=tuple(results),
    seconds=sum_seconds(*(result.seconds for result in results)),
  )


def edit_stream(
  lm: LanguageModel,
  requests: Sequence[Request] | Sequence[Record] | Request | Record,
  method: Method,
  second_moments: SecondMoments | None = None,
  *,
  contexts: Iterable[Iterable[str]] | None = None,
  seed: int = 0,
  batching: Batching = Together(),
  target_batch_size: int | None = None,
  store: str | os.PathLike[str] | None = None,
  target_store: str | os.PathLike[str] | None = None,
  factors: FactorCache | None = None,
  editor: Any = None,
) -> Iterator[Batch]:
  """Yields the batches of `edit` as they are finished; ending the iteration ends the edit.

  Arguments and errors as of `edit`. `collect` makes one result of the batches.
  """
  todo = as_requests(requests)
  if isinstance(method, str):
    raise UserError(
      f"The method is {method!r}; give its settings, such as jedit.preset({method!r}, 'gptj-6b')."
    )
  parts = _parts(len(todo), batching)
  num_at_once = max(part.stop - part.start for part in parts)
  for sentence in find_conflicts(todo).sentences():
    logging.warning('%s', sentence)
  method.check(lm.config, num_at_once)
  check_second_moments(lm, method, second_moments)
  if (editor is not None) != getattr(method, 'uses_editor', False):
    raise UserError(
      f'Method {method.name} edits without an editor; leave `editor` out.'
      if editor is not None
      else f'Method {method.name} edits with a trained editor; give one of jedit.train_editor or '
      'Editor.load in `editor`.'
    )
  if factors is not None and factors.source is not second_moments:
    raise UserError('The factors are of other second moments; make them of those of this call.')
  if factors is None and second_moments is not None and method.kernels:
    factors = FactorCache(second_moments)
  groups = contexts_of(lm, method, seed, contexts)
  memo = Memo(store)
  context = EditContext(
    lm=lm,
    requests=tuple(todo),
    alongside=tuple(todo),
    rows=TokenizedRequests(lm.tokenizer, todo, groups, lm.config.position_limit),
    contexts=groups,
    second_moments=second_moments,
    factors=factors,
    editor=editor,
    seed=seed,
    target_batch_size=target_batch_size,
    memo=memo.below('targets') if target_store is None else Memo(target_store),
  )
  # A single batch is not stored: its caller keeps the patch.
  batch_memo = Memo(None) if isinstance(batching, Together) else memo.below('batches')
  shared = {
    'contexts': [list(group) for group in groups],
    'second_moments': None if second_moments is None else dict(second_moments.provenance),
    **({} if editor is None else {'editor': editor.id}),
  }
  earlier: dict[Kernel, np.ndarray] = {}
  for number, part in enumerate(parts):
    batch = todo[part]
    context = dataclasses.replace(context, lm=lm, earlier_keys=earlier, timers=Timers())
    if isinstance(batching, Sequential):
      context = dataclasses.replace(context, alongside=tuple(batch), targets={})
    provenance = {**describe(lm, batch, method, seed), **shared}
    key = [provenance, dataclasses.asdict(batching)]
    stored = batch_memo.get(f'{number:05d}', key)
    if stored is not None:
      result = EditResult.unpack(stored)
    else:
      result = _edit_batch(method, context, batch, provenance)
      if batch_memo.folder is not None:
        batch_memo.put(f'{number:05d}', key, result.pack())
    done = Batch(part, result, lm)
    yield done
    if isinstance(batching, Sequential):
      lm = done.lm
      if batching.accumulate_keys:
        earlier = _with_keys(earlier, result.details.keys)
    del done  # with its edited model


def _edit_batch(
  method: Method,
  context: EditContext,
  requests: Sequence[Request],
  provenance: Mapping[str, Any],
) -> EditResult:
  """The result of a batch, with the provenance of the edit and the seconds of its stages."""
  result = method.edit(context, requests)
  patch = patch_of(result)
  return dataclasses.replace(
    result,
    patch=dataclasses.replace(patch, provenance={**provenance, **patch.provenance}),
    seconds={**context.timers.seconds, **result.seconds},
  )


def _with_keys(
  earlier: Mapping[Kernel, np.ndarray], keys: Mapping[Kernel, np.ndarray]
) -> dict[Kernel, np.ndarray]:
  """Keys of all batches so far."""
  new = dict(earlier)
  for kernel, key_BxF in keys.items():
    new[kernel] = np.concatenate([new[kernel], key_BxF]) if kernel in new else key_BxF
  return new


def _parts(num_requests: int, batching: Batching) -> list[slice]:
  if isinstance(batching, Together):
    return [slice(0, num_requests)]
  size = batching.edits_per_batch
  if size < 1:
    raise UserError(f'edits_per_batch is {size}; give at least 1.')
  return [slice(i, min(i + size, num_requests)) for i in range(0, num_requests, size)]


def check_second_moments(
  lm: LanguageModel, method: Method, second_moments: SecondMoments | None
) -> None:
  """Raises UserError unless there are second moments of every kernel that the method needs."""
  if not method.kernels:
    return
  if second_moments is None:
    raise UserError(f'Method {method.name} needs second moments; give those of jedit.statistics.')
  for kernel in method.kernels:
    shape, size = second_moments.covariance(kernel).shape, lm.config.key_sizes[kernel.name]
    if shape != (size, size):
      raise UserError(
        f'The second moments of {kernel.label} have shape {shape}, the model wants '
        f'{(size, size)}; collect them on this model.'
      )
