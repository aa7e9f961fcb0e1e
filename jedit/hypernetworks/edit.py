"""Editing with a trained editor: rows of the edits in, low-rank updates out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jedit.editing.context import EditContext
from jedit.editing.result import Details, EditResult
from jedit.hypernetworks import malmen, mend
from jedit.hypernetworks.editor import Editor
from jedit.hypernetworks.rows import Rows, captured
from jedit.hypernetworks.settings import MEND, Plan, Settings
from jedit.hypernetworks.statistics import Statistics, pushed
from jedit.hypernetworks.texts import (
  HiddenStates,
  denominators,
  group_size,
  ids_of,
  make_texts,
  texts_at_once,
)
from jedit.io.progress import Progress
from jedit.models import kernel_path
from jedit.models.encoding import Encoded
from jedit.models.patch import Patch, Update
from jedit.parallel.mesh import fetch
from jedit.parallel.shapes import bucket
from jedit.types import Kernel, Request, UserError

_ROWS_AT_ONCE = 1024  # through a net


def edit(context: EditContext, requests: Sequence[Request], settings: Settings) -> EditResult:
  """The update that the editor of the context makes of some requests.

  Raises:
    UserError: without an editor, for one of another model or method, and for losses or updates
      that are not finite.
  """
  editor, model = context.editor, context.lm.model
  if not isinstance(editor, Editor):
    raise UserError(f'The editor is {editor!r}; give one of jedit.train_editor or Editor.load.')
  editor.check(context.lm, settings)
  plan = settings.plan(model.config)
  params, statistics = editor.placed(model)
  texts = [row.with_target[0] for row in context.rows(requests)]
  with context.timers('rows'):
    keys, grads, statistics = _rows(context, requests, texts, settings, plan, statistics)
  with context.timers('transform'):
    make = _factors if settings.name == MEND else _updates
    updates = make(params, statistics, keys, grads, settings, plan)
  for kernel, update in updates.items():
    if not all(np.isfinite(array).all() for array in update.tensors().values()):
      raise UserError(
        f'The update of {kernel.label} is not finite; check the editor, or leave out records of '
        f'this batch, the first of which is {requests[0].label}.'
      )
  provenance = {
    'editor': editor.id,
    'rows': {str(kernel): len(key_RxI) for kernel, key_RxI in keys.items()},
    'rates': {str(kernel): editor.rate(kernel, plan) for kernel in keys},
  }
  named = {'/'.join(kernel_path(kernel)): update for kernel, update in updates.items()}
  return EditResult(Patch(named, provenance), Details(context.contexts))


def _rows(
  context: EditContext,
  requests: Sequence[Request],
  texts: Sequence[Encoded],
  settings: Settings,
  plan: Plan,
  statistics: Mapping[str, Statistics],
) -> tuple[dict[Kernel, np.ndarray], dict[Kernel, np.ndarray], Mapping[str, Statistics]]:
  """Inputs [R, I] and gradients [R, O] by kernel, and the statistics to normalise them with."""
  model, size = context.lm.model, group_size(settings)
  counts = [len(text.target_ids) for text in texts]
  if settings.denominator == 'training':
    divided = denominators(counts, size, context.editor.tokens_per_edit, fills=True)
  else:  # the released MEND has one mean over all edits
    divided = denominators(counts, len(texts) if settings.name == MEND else size)
  hidden = HiddenStates(
    model, settings.edited_layers[0], [ids_of(text, 'answer') for text in texts], keeps=False
  )
  num_reads = bucket(max(len(text.target_ids) for text in texts), smallest=1)
  longest = bucket(max(len(text.ids) - 1 for text in texts))
  at_once = context.target_batch_size or texts_at_once(model, settings.edited_layers[0], longest)
  at_once = max(min(at_once, bucket(len(texts), smallest=1)) // size, 1) * size
  parts: dict[Kernel, list[tuple[np.ndarray, np.ndarray]]] = {kernel: [] for kernel, _, _ in plan}
  with Progress('rows', len(texts), 'edits') as progress:
    for start in range(0, len(texts), at_once):
      numbers = list(range(start, min(start + at_once, len(texts))))
      chunk = [texts[number] for number in numbers]
      arrays = make_texts(
        hidden,
        numbers,
        chunk,
        divided[start : start + at_once],
        reads='answer',
        num_tokens=bucket(max(len(text.ids) - 1 for text in chunk)),
        num_reads=num_reads,
        num_texts=at_once,
      )
      loss_N, rows = captured(model, arrays, settings, plan)
      if settings.update_statistics:
        groups = 1 if settings.name == MEND else at_once // size
        statistics = pushed(statistics, rows, settings, plan, groups)[0]
      for number, loss in zip(numbers, fetch(loss_N), strict=False):
        if not np.isfinite(loss):
          raise UserError(
            f'The loss of {requests[number].label} is not finite; leave the record out, or check '
            'the model.'
          )
      for kernel, each in rows.items():
        key_NxPxI, grad_NxPxO, exists_NxP = fetch(tuple(each))
        parts[kernel].append((key_NxPxI[exists_NxP], grad_NxPxO[exists_NxP]))
      progress.update(len(numbers))
  keys = {k: np.concatenate([key_RxI for key_RxI, _ in each]) for k, each in parts.items()}
  grads = {k: np.concatenate([grad_RxO for _, grad_RxO in each]) for k, each in parts.items()}
  for net, each in statistics.items():
    count = int(fetch(each.count))
    if count < 2:
      raise UserError(
        f'The statistics of the net {net} hold {count} rows, and normalising takes at least 2; '
        'train the editor, or edit more records with update_statistics.'
      )
    if not np.isfinite(fetch(each.square_C)).all():
      raise UserError(
        f'The statistics of the net {net} are not finite: a mini-batch of these edits has a single '
        "row, whose variance the released code divides by 0; choose statistics='exact'."
      )
  return keys, grads, statistics


def _row_chunks(
  keys: Mapping[Kernel, np.ndarray], grads: Mapping[Kernel, np.ndarray], plan: Plan
) -> Any:
  """Pieces of the rows of one kernel, padded to one length: plan, number of rows, rows."""
  for planned in plan:
    key_RxI, grad_RxO = keys[planned.kernel], grads[planned.kernel]
    size = min(bucket(len(key_RxI)), _ROWS_AT_ONCE)
    for start in range(0, len(key_RxI), size):
      part = [array[start : start + size] for array in (key_RxI, grad_RxO)]
      count = len(part[0])
      key, grad = (np.pad(array, ((0, size - count), (0, 0)))[:, None] for array in part)
      yield planned, count, {planned.kernel: Rows(key, grad, (np.arange(size) < count)[:, None])}


def _factors(
  params: Any,
  statistics: Mapping[str, Statistics],
  keys: Mapping[Kernel, np.ndarray],
  grads: Mapping[Kernel, np.ndarray],
  settings: Settings,
  plan: Plan,
) -> dict[Kernel, Update]:
  """MEND: transformed rows are the factors."""
  parts: dict[Kernel, list[tuple[np.ndarray, np.ndarray]]] = {}
  for planned, count, rows in _row_chunks(keys, grads, plan):
    change = mend.changed(params, statistics, rows, settings, (planned,))[planned.kernel]
    left_1xIxR, right_1xRxO = fetch((change.left_IxR, change.right_RxO))
    parts.setdefault(planned.kernel, []).append((left_1xIxR[0, :, :count], right_1xRxO[0, :count]))
  return {
    kernel: Update.from_factors(
      np.concatenate([left for left, _ in each], axis=1),
      np.concatenate([right for _, right in each]),
    )
    for kernel, each in parts.items()
  }


def _updates(
  params: Any,
  statistics: Mapping[str, Statistics],
  keys: Mapping[Kernel, np.ndarray],
  grads: Mapping[Kernel, np.ndarray],
  settings: Settings,
  plan: Plan,
) -> dict[Kernel, Update]:
  """MALMEN: least squares of the shifts of all rows."""
  parts: dict[Kernel, list[np.ndarray]] = {}
  for planned, count, rows in _row_chunks(keys, grads, plan):
    shift = malmen.shifted(params, statistics, rows, settings, (planned,))[planned.kernel]
    parts.setdefault(planned.kernel, []).append(fetch(shift)[:count])
  found = {}
  for kernel, net, mode in plan:
    shift_RxO = np.concatenate(parts[kernel])
    log_ridge = fetch(params[net]['ridge'])[mode]
    _, (left, right) = malmen.solve(kernel, keys[kernel], shift_RxO, log_ridge)
    found[kernel] = (
      Update(dense=left.astype(np.float32)) if right is None else Update.from_factors(left, right)
    )
  return found
