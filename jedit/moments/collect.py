"""Second moments of a model's keys over text: one pass for all kernels, which survives a kill.

The sums are saved as they are, so a run that continues ends with the bits of one that never
stopped, wherever it was saved.
"""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jedit.io.checkpoints import Checkpoints
from jedit.io.out_of_memory import halve_once
from jedit.io.progress import Progress, note
from jedit.io.sealed import StaleFile, digest
from jedit.io.storage import to_json
from jedit.models import Model, site
from jedit.models.language_model import LanguageModel
from jedit.models.sharding import kernel_shape
from jedit.models.sites import KERNEL_INPUT
from jedit.moments import sums
from jedit.moments.corpus import Corpus, read_corpus
from jedit.moments.files import SecondMoments
from jedit.moments.packing import START, PackedBatch, PackedText, Place, prefetch
from jedit.parallel.memory import check_fits
from jedit.parallel.mesh import mesh_of, num_row_shards, place_rows
from jedit.types import Kernel, UserError
from jedit.units import format_bytes

_FAST_TOKENS = 10  # per component of a key
_PACKING = 'best fit, rows of several lengths'  # a pass over other rows has other sums


def statistics(
  lm: LanguageModel,
  corpus: Corpus | Sequence[str] | str | os.PathLike[str],
  layers: Sequence[int],
  kernels: Sequence[str] = ('mlp',),
  *,
  row_tokens: int | None = None,
  batch_tokens: int = 8192,
  max_document_tokens: int | None = None,
  fast: bool = False,
  cache: str | os.PathLike[str] | None = None,
  sites: None = None,
) -> SecondMoments:
  """Second moments of a model's keys over a corpus (MEMIT, arXiv:2210.07229, section 4.2.2).

  Args:
    lm: the model, with the patches it carries.
    corpus: of `jedit.moments.corpus`, or documents, or the path of such.
    layers: layers of the kernels that a method edits.
    kernels: their names, 'mlp' or 'attn' or both.
    row_tokens: tokens of a packed row; the model's positions, at most 512, when None.
    batch_tokens: tokens run at once by each of the devices that share rows; half of them where
      memory runs out.
    max_document_tokens: longer documents are cut; None cuts at a row.
    fast: stops after 10 tokens for each component of the model's longest key, and says so; draw
      the documents at random.
    cache: file that keeps the result, for runs that share model, corpus and settings: kernels
      that it lacks are added to it, and a killed run continues from its last save.
    sites: former name of `kernels`; refused.

  Returns:
    The second moments of the wanted kernels, or of all in `cache`.

  Raises:
    StaleFile: for a cache that is damaged, or of another model, corpus or with other settings.
    UserError: for no text, no layers or kernels, unknown ones, too little memory, or values that
      are not finite.
  """
  if sites is not None:
    raise UserError('Kernels are named by `kernels` instead of `sites`; give kernels=("mlp",).')
  for name, value, example in (('layers', layers, '(5,)'), ('kernels', kernels, '("mlp",)')):
    if isinstance(value, int | str):
      raise UserError(f'`{name}` is {value!r}; give a tuple, such as {name}={example}.')
  for layer in layers:
    if not 0 <= layer < lm.config.num_layers:
      raise UserError(
        f'Layer {layer} is outside the model, which has 0 to {lm.config.num_layers - 1}.'
      )
  for name in kernels:
    kernel_shape(lm.config, Kernel(0, name))
  if not len(layers) or not len(kernels):
    raise UserError('`layers` and `kernels` must not be empty.')
  if isinstance(corpus, str | os.PathLike):
    corpus = read_corpus(corpus)
  elif not isinstance(corpus, Corpus):
    corpus = Corpus.of(corpus)
  row_tokens = row_tokens or min(lm.config.max_positions, 512)
  lm.config.check_length(row_tokens)
  max_tokens = _FAST_TOKENS * max(lm.config.key_sizes.values()) if fast else None
  provenance = to_json(
    {
      'model': lm.fingerprint,
      'patches': [patch.id for patch in lm.patches],
      'dtype': lm.config.dtype,
      **corpus.identity,
      'row_tokens': row_tokens,
      'batch_tokens': batch_tokens,
      'max_document_tokens': max_document_tokens,
      'max_tokens': max_tokens,
      'preset': 'fast' if fast else 'full',
    }
  )
  missing = [Kernel(layer, name) for layer in sorted(set(layers)) for name in kernels]
  cache = None if cache is None else pathlib.Path(cache)
  known: dict[Kernel, np.ndarray] = {}
  if cache is not None and cache.is_file():
    found = SecondMoments.load(cache)
    for name, value in provenance.items():
      if name == 'batch_tokens' and found.provenance.get(name) == batch_tokens // 2:
        continue  # it ran out of memory with these
      if found.provenance.get(name) != value:
        raise StaleFile(
          f'{cache} holds second moments of other settings: {name} is '
          f'{found.provenance.get(name)!r} there and {value!r} here; choose another file.'
        )
    known = dict(found.cov)
    missing = [kernel for kernel in missing if kernel not in known]
    if not missing:
      return found

  documents = corpus

  def run(size: int) -> SecondMoments:
    text = PackedText(
      lm.tokenizer,
      documents,
      row_tokens=row_tokens,
      batch_tokens=size,
      max_document_tokens=max_document_tokens,
      row_shards=num_row_shards(lm.params),
    )
    # Other batches have other sums; those of a killed run that ran out of memory are kept.
    suffix = '.partial' if size == batch_tokens else '.half.partial'
    store = None if cache is None else cache.with_suffix(suffix)
    about = {**provenance, 'batch_tokens': size}
    moments = accumulate(lm.model, text, missing, store, about, max_tokens)
    if cache is not None:
      moments = dataclasses.replace(moments, cov={**known, **moments.cov})
      moments.save(cache)
      Checkpoints(store).remove()
    return moments

  return halve_once(
    run,
    batch_tokens,
    stage='statistics',
    field='statistics.batch_tokens',
    most=batch_tokens,
    least=row_tokens,
  )


def accumulate(
  model: Model,
  text: PackedText,
  kernels: Sequence[Kernel],
  store: pathlib.Path | None = None,
  provenance: Mapping[str, Any] | None = None,
  max_tokens: int | None = None,
) -> SecondMoments:
  """One pass over the text for all kernels, stopping at the highest layer.

  Args:
    model: parameters on one device or over a mesh.
    text: batches of packed tokens.
    kernels: whose keys are taken.
    store: directory for the sums of a run in progress; a run that finds it continues from there.
    provenance: kept with the result, and what a stored run must agree with to be continued.
    max_tokens: stops with the batch that reaches them.
  """
  provenance = dict(provenance or {})
  names, mesh = _sites(kernels), mesh_of(model)
  running = sums_of(model, kernels, text.shapes[-1])
  sizes = [panels[0][0].shape[1] for panels in running.shapes.values()]
  plan = sums.MemoryPlan.of(sizes, *((1, 1) if mesh is None else mesh.devices.shape))
  plan.check()
  checkpoints = Checkpoints(store, digest([provenance, list(names), text.shapes, _PACKING]))
  saved = checkpoints.newest(running.shapes)
  if saved is None:
    at, total = _Done(), None
  else:
    _, total, about = saved
    document, rows, rest = about['place']
    at = _Done(**{**about, 'place': Place(document, tuple(rows), rest)})
  running.start(total)
  ran = None
  compiled: set[tuple[int, ...]] = set()
  with Progress('statistics', None, 'tokens', done=at.num_tokens) as progress:
    for batch in prefetch(text.batches(at.place)):
      tokens = place_rows(model, [batch.token_NxT, batch.segment_NxT, batch.position_NxT])
      if batch.token_NxT.shape not in compiled:
        size = getattr(running.compile(tokens).memory_analysis(), 'temp_size_in_bytes', 0)
        check_fits('A batch of statistics', size, 'lower statistics.batch_tokens')
        if not compiled:
          batch_bytes = f', a batch {format_bytes(size)} beside the parameters' if size else ''
          note(f'statistics: {plan}{batch_bytes}')
        compiled.add(batch.token_NxT.shape)
      now = running.add(tokens)
      if ran is not None:
        ran.block_until_ready()  # the host is one batch ahead of the device, not more
      ran = now
      at = at.after(batch)
      expected = round(at.num_tokens * len(text.corpus) / at.num_documents)
      expected = max(expected if max_tokens is None else min(expected, max_tokens), at.num_tokens)
      progress.update(batch.num_tokens, total=expected)
      if max_tokens is not None and at.num_tokens >= max_tokens:
        break
      if running.is_whole:
        checkpoints.save_if_due(at.num_batches, running.total, dataclasses.asdict(at))
  running.reduce()
  cov: dict[Kernel, np.ndarray] = {}
  for name, readers in names.items():
    cov_FxF = sums.mean(running.total.pop(name), at.num_tokens)
    if not np.isfinite(cov_FxF).all():
      raise UserError(
        f'The second moments of {readers[0].label} are not finite; '
        'check the checkpoint, or load it in float32.'
      )
    cov |= dict.fromkeys(readers, cov_FxF)
  return SecondMoments(cov, at.num_tokens, {**provenance, 'num_tokens': at.num_tokens})


def sums_of(model: Model, kernels: Sequence[Kernel], shape: tuple[int, int]) -> sums.Sums:
  """Sums for the second moments of these kernels.

  Args:
    model: parameters on one device or over a mesh, or their shapes for a dry run.
    kernels: whose keys are taken.
    shape: rows and tokens of a batch.
  """
  stop = max(kernel.layer for kernel in kernels) + 1
  tokens = place_rows(model, [np.zeros(shape, np.int32)] * 3)
  return sums.Sums(model, tuple(_sites(kernels)), stop, tokens, mesh_of(model))


def _sites(kernels: Sequence[Kernel]) -> dict[str, list[Kernel]]:
  """The sites of the kernels' keys; two kernels may read one."""
  names: dict[str, list[Kernel]] = {}
  for kernel in kernels:
    names.setdefault(site(kernel.layer, KERNEL_INPUT[kernel.name]), []).append(kernel)
  return names


@dataclasses.dataclass(frozen=True)
class _Done:
  """Finished part of a pass, and the place where the next batch begins."""

  num_batches: int = 0
  num_documents: int = 0
  num_tokens: int = 0
  place: Place = START

  def after(self, batch: PackedBatch) -> '_Done':
    """With one more batch."""
    return _Done(
      self.num_batches + 1,
      self.num_documents + batch.num_documents,
      self.num_tokens + batch.num_tokens,
      batch.end,
    )
