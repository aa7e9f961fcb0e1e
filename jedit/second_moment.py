"""Second moments C = E[k kᵀ] of the keys that an edit must preserve, from text."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.checkpoint import read_tensors, write_tensors
from jedit.data.corpus import PackedBatch, pack, read_corpus
from jedit.language_model import LanguageModel
from jedit.log import Progress
from jedit.models import functions, site
from jedit.models.sites import KERNEL_INPUT
from jedit.types import UserError

_FORMAT = 'jedit-second-moments-1'
_BATCHES_PER_SAVE = 64

Kernel = tuple[str, int]  # ('mlp' or 'attn', layer)


@dataclasses.dataclass(frozen=True, eq=False)
class SecondMoments:
  """Uncentred second moments by kernel.

  Attributes:
    cov: by (kernel, layer), C_FxF of the kernel's input, float32 or wider.
    num_tokens: tokens they were taken over; 0 where unknown.
    provenance: JSON-able description of model, corpus and settings.
  """

  cov: Mapping[Kernel, np.ndarray]
  num_tokens: int = 0
  provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def covariance(self, kernel: str, layer: int) -> np.ndarray:
    """C_FxF of a kernel's keys.

    Raises:
      UserError: where it was not collected.
    """
    if (kernel, layer) not in self.cov:
      has = ', '.join(f'{name} of layer {number}' for name, number in sorted(self.cov)) or 'nothing'
      raise UserError(
        f'There are no second moments of the {kernel} kernel in layer {layer} (there is {has}); '
        'collect them for the layers and sites of the method.'
      )
    return self.cov[kernel, layer]

  def save(self, path: str | os.PathLike[str]) -> None:
    """Writes a safetensors file with count and provenance in its header."""
    tensors = {f'{kernel}/{layer}': cov for (kernel, layer), cov in self.cov.items()}
    metadata = {
      'format': _FORMAT,
      'num_tokens': self.num_tokens,
      'provenance': dict(self.provenance),
    }
    write_tensors(path, tensors, metadata)

  @classmethod
  def load(cls, path: str | os.PathLike[str]) -> 'SecondMoments':
    """Reads what `save` wrote.

    Raises:
      UserError: if the file is missing or holds something else.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get('format') != _FORMAT:
      raise UserError(f'{path} holds no second moments; give a file written by SecondMoments.save.')
    cov = {}
    for name, array in tensors.items():
      kernel, _, layer = name.partition('/')
      cov[kernel, int(layer)] = array
    return cls(cov, metadata['num_tokens'], metadata['provenance'])


def statistics(
  lm: LanguageModel,
  corpus: Sequence[str] | str | os.PathLike[str],
  layers: Sequence[int],
  sites: Sequence[str] = ('mlp',),
  *,
  row_tokens: int | None = None,
  batch_tokens: int = 8192,
  max_document_tokens: int | None = None,
  cache: str | os.PathLike[str] | None = None,
) -> SecondMoments:
  """Second moments of a model's keys over a corpus (MEMIT, arXiv:2210.07229, section 4.2.2).

  Args:
    lm: the model, with the patches it carries.
    corpus: documents, or the path of a text file or directory (`jedit.data.corpus.read_corpus`).
    layers: layers whose kernels are to be written.
    sites: kernels, 'mlp' or 'attn' or both.
    row_tokens: tokens of a packed row; the model's positions, at most 512, when None.
    batch_tokens: tokens run at once.
    max_document_tokens: longer documents are cut; None cuts at a row.
    cache: file that keeps the result, for runs that share model, corpus and settings: kernels
      that it lacks are added to it, and a run that was killed goes on from its last save.

  Returns:
    The moments of the wanted kernels; of all that the cache has, where it is used.

  Raises:
    UserError: for no text, no layers or sites, unknown ones, values that are not finite, or a
      cache made of another model, corpus or with other settings.
  """
  for layer in layers:
    if not 0 <= layer < lm.config.num_layers:
      raise UserError(
        f'Layer {layer} is outside the model, which has 0 to {lm.config.num_layers - 1}.'
      )
  for name in sites:
    if name not in KERNEL_INPUT:
      raise UserError(f'There is no site {name!r}; choose {" or ".join(KERNEL_INPUT)}.')
  if not layers or not sites:
    raise UserError('There is no layer or no site to take second moments of; give some.')
  documents = read_corpus(corpus) if isinstance(corpus, str | os.PathLike) else list(corpus)
  row_tokens = row_tokens or min(lm.config.max_positions, 512)
  lm.config.check_length(row_tokens)
  digest = hashlib.sha256()
  for document in documents:
    digest.update(document.encode() + b'\0')
  provenance = {
    'model': lm.fingerprint,
    'patches': [patch.id for patch in lm.patches],
    'dtype': lm.config.dtype,
    'corpus': digest.hexdigest()[:16],
    'num_documents': len(documents),
    'row_tokens': row_tokens,
    'batch_tokens': batch_tokens,
    'max_document_tokens': max_document_tokens,
  }
  kernels = [(name, layer) for layer in sorted(set(layers)) for name in sites]
  cache = None if cache is None else pathlib.Path(cache)
  known: dict[Kernel, np.ndarray] = {}
  if cache is not None and cache.is_file():
    found = SecondMoments.load(cache)
    for name, value in provenance.items():
      if found.provenance.get(name) != value:
        raise UserError(
          f'{cache} holds second moments of other settings: {name} is '
          f'{found.provenance.get(name)!r} there and {value!r} here; choose another file.'
        )
    known = dict(found.cov)
    kernels = [kernel for kernel in kernels if kernel not in known]
    if not kernels:
      return found
  batches = pack(
    lm.tokenizer,
    documents,
    row_tokens=row_tokens,
    batch_tokens=batch_tokens,
    max_document_tokens=max_document_tokens,
  )
  run, _ = functions(lm.config)
  store = None if cache is None else cache.with_suffix('.partial')
  moments = accumulate(run, lm.params, batches, kernels, store, provenance)
  if cache is not None:
    moments = dataclasses.replace(moments, cov={**known, **moments.cov})
    moments.save(cache)
    cache.with_suffix('.partial').unlink(missing_ok=True)
  return moments


def accumulate(
  forward: Callable,
  params: Any,
  batches: Sequence[PackedBatch],
  kernels: Sequence[Kernel],
  store: pathlib.Path | None = None,
  provenance: Mapping[str, Any] | None = None,
) -> SecondMoments:
  """One pass over the text for all kernels, stopping at the highest layer.

  Products of a batch are summed in float32 on the device, the batches in float64 on the host.

  Args:
    forward: `(params, token_NxT, **arguments) -> (hidden, seen)`.
    params: of the model.
    batches: packed tokens.
    kernels: (kernel, layer) pairs.
    store: file for the sums of a run in progress; a run that finds it goes on from there.
    provenance: kept with the result, and what a stored run must agree with to be continued.
  """
  provenance = dict(provenance or {})
  kernels = tuple(dict.fromkeys(kernels))
  stop = max(layer for _, layer in kernels) + 1
  names = tuple(site(layer, KERNEL_INPUT[kernel]) for kernel, layer in kernels)

  @jax.jit
  def products(params, token_NxT, segment_NxT, position_NxT):
    _, seen = forward(
      params,
      token_NxT,
      stop=stop,
      taps=names,
      segment_NxT=segment_NxT,
      position_NxT=position_NxT,
    )
    is_text_NxT = segment_NxT > 0
    sums = []
    for name in names:
      key_NxTxF = jnp.where(is_text_NxT[..., None], seen[name], jnp.zeros_like(seen[name]))
      precision = 'highest' if key_NxTxF.dtype == jnp.float32 else None
      sums.append(
        jnp.einsum(
          'ntf,ntg->fg',
          key_NxTxF,
          key_NxTxF,
          precision=precision,
          preferred_element_type=jnp.float32,
        )
      )
    return sums

  key = hashlib.sha256(
    json.dumps([provenance, names, len(batches)], sort_keys=True).encode()
  ).hexdigest()
  done, num_tokens, sums = _resume(store, key)
  total = sum(batch.num_tokens for batch in batches)
  with Progress('statistics', total, 'tokens', done=num_tokens) as progress:
    for index in range(done, len(batches)):
      batch = batches[index]
      parts = products(params, batch.token_NxT, batch.segment_NxT, batch.position_NxT)
      for name, part in zip(names, parts, strict=True):
        wide = np.asarray(part, np.float64)
        sums[name] = wide if name not in sums else sums[name] + wide
      num_tokens += batch.num_tokens
      progress.update(batch.num_tokens)
      if store is not None and (index + 1) % _BATCHES_PER_SAVE == 0 and index + 1 < len(batches):
        write_tensors(store, sums, {'key': key, 'done': index + 1, 'num_tokens': num_tokens})
  cov = {
    kernel: (sums[name] / num_tokens).astype(np.float32)
    for kernel, name in zip(kernels, names, strict=True)
  }
  for (kernel, layer), array in cov.items():
    if not np.isfinite(array).all():
      raise UserError(
        f'The second moments of the {kernel} kernel in layer {layer} are not finite; '
        'check the checkpoint, or load it in float32.'
      )
  return SecondMoments(cov, num_tokens, {**provenance, 'num_tokens': num_tokens})


def _resume(store: pathlib.Path | None, key: str) -> tuple[int, int, dict[str, np.ndarray]]:
  """Batches done, tokens and sums of an interrupted run of the same settings, or nothing."""
  if store is None or not store.is_file():
    return 0, 0, {}
  sums, metadata = read_tensors(store)
  if metadata.get('key') != key:
    return 0, 0, {}
  return metadata['done'], metadata['num_tokens'], sums
