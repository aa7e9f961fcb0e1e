"""Second moments of a model's keys over text: one pass for all kernels, which survives a kill.

The sum over batches is kept on the device as two float32 matrices, of which the second holds what
rounding took from the first (two-sum; Knuth, TAOCP 2, section 4.2.2): about 48 bits without float64
and without a transfer per batch. Both are saved as they are, so a run that goes on ends with the
bits of one that never stopped, wherever it was saved.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jedit.io.progress import Progress, note
from jedit.io.storage import (
  atomic_directory,
  read_json,
  read_tensors,
  to_json,
  write_json,
  write_tensors,
)
from jedit.models import functions, site
from jedit.models.language_model import LanguageModel
from jedit.models.sites import KERNEL_INPUT
from jedit.moments.corpus import Corpus, read_corpus
from jedit.moments.files import SecondMoments
from jedit.moments.packing import PackedText
from jedit.parallel.memory import MemoryPlan
from jedit.parallel.mesh import (
  fetch,
  is_first_process,
  least_over_processes,
  mesh_of,
  num_row_shards,
  place,
  place_rows,
  square_sharding,
  wait_for_all,
)
from jedit.types import Kernel, UserError
from jedit.units import format_bytes

_SECONDS_PER_SAVE = 60.0
_WORK_PER_SAVE = 20.0  # saving takes at most a twentieth of the time
_STATE = 'state.json'
_FAST_TOKENS = 10  # per component of a key

_Sums = dict[str, tuple[jax.Array, jax.Array]]  # by site: the sum, and what it lost


def statistics(
  lm: LanguageModel,
  corpus: Corpus | Sequence[str] | str | os.PathLike[str],
  layers: Sequence[int],
  sites: Sequence[str] = ('mlp',),
  *,
  row_tokens: int | None = None,
  batch_tokens: int = 8192,
  max_document_tokens: int | None = None,
  fast: bool = False,
  cache: str | os.PathLike[str] | None = None,
) -> SecondMoments:
  """Second moments of a model's keys over a corpus (MEMIT, arXiv:2210.07229, section 4.2.2).

  Args:
    lm: the model, with the patches it carries.
    corpus: of `jedit.moments.corpus`, or documents, or the path of such.
    layers: layers whose kernels are to be written.
    sites: kernels, 'mlp' or 'attn' or both.
    row_tokens: tokens of a packed row; the model's positions, at most 512, when None.
    batch_tokens: tokens run at once, by all devices together.
    max_document_tokens: longer documents are cut; None cuts at a row.
    fast: stops after 10 tokens for each component of the model's longest key, and says so; draw
      the documents at random.
    cache: file that keeps the result, for runs that share model, corpus and settings: kernels
      that it lacks are added to it, and a run that was killed goes on from its last save.

  Returns:
    The moments of the wanted kernels; of all that the cache has, where it is used.

  Raises:
    UserError: for no text, no layers or sites, unknown ones, too little memory, values that are not
      finite, or a cache made of another model, corpus or with other settings.
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
  if isinstance(corpus, str | os.PathLike):
    corpus = read_corpus(corpus)
  elif not isinstance(corpus, Corpus):
    corpus = Corpus.of(corpus)
  text = PackedText(
    lm.tokenizer,
    corpus,
    row_tokens=row_tokens or min(lm.config.max_positions, 512),
    batch_tokens=batch_tokens,
    max_document_tokens=max_document_tokens,
    multiple=num_row_shards(lm.params),
  )
  lm.config.check_length(text.row_tokens)
  max_tokens = _FAST_TOKENS * max(lm.config.key_sizes.values()) if fast else None
  provenance = to_json(
    {
      'model': lm.fingerprint,
      'patches': [patch.id for patch in lm.patches],
      'dtype': lm.config.dtype,
      **corpus.identity,
      'row_tokens': text.row_tokens,
      'batch_tokens': batch_tokens,
      'max_document_tokens': max_document_tokens,
      'max_tokens': max_tokens,
      'preset': 'fast' if fast else 'full',
    }
  )
  kernels = [Kernel(layer, name) for layer in sorted(set(layers)) for name in sites]
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
  run, _ = functions(lm.config)
  store = None if cache is None else cache.with_suffix('.partial')
  moments = accumulate(run, lm.params, text, kernels, store, provenance, max_tokens)
  if cache is not None:
    moments = dataclasses.replace(moments, cov={**known, **moments.cov})
    moments.save(cache)
    _remove(cache.with_suffix('.partial'))
  return moments


def accumulate(
  forward: Callable,
  params: Any,
  text: PackedText,
  kernels: Sequence[Kernel],
  store: pathlib.Path | None = None,
  provenance: Mapping[str, Any] | None = None,
  max_tokens: int | None = None,
) -> SecondMoments:
  """One pass over the text for all kernels, stopping at the highest layer.

  Args:
    forward: `(params, token_NxT, **arguments) -> (hidden, seen)`.
    params: of the model.
    text: batches of packed tokens.
    kernels: whose keys are taken.
    store: directory for the sums of a run in progress; a run that finds it goes on from there.
    provenance: kept with the result, and what a stored run must agree with to be continued.
    max_tokens: stops with the batch that reaches them.
  """
  provenance = dict(provenance or {})
  names = {site(k.layer, KERNEL_INPUT[k.name]): k for k in kernels}
  products = products_of(forward, tuple(names), stop=max(kernel.layer for kernel in kernels) + 1)
  tokens = place_rows(params, [np.zeros(text.shape, np.int32)] * 3)
  parts = jax.eval_shape(products, params, *tokens)
  mesh = mesh_of(params)
  plan = MemoryPlan.of([part.shape[0] for part in parts.values()], 1 if mesh is None else mesh.size)
  plan.check()
  key = hashlib.sha256(
    json.dumps([provenance, list(names), text.shape], sort_keys=True).encode()
  ).hexdigest()
  saves = _Saves(store, key)
  at, begun = saves.newest() or (
    _Place(),
    {name: (np.zeros(x.shape, x.dtype), np.zeros(x.shape, x.dtype)) for name, x in parts.items()},
  )
  sums = _placed(mesh, begun)
  step = adding(products, mesh).lower(params, sums, *tokens).compile()
  note(f'statistics: {plan}{_activations(step)}')
  ran = None
  with Progress('statistics', None, 'tokens', done=at.num_tokens) as progress:
    for batch in text.batches(at.end):
      arrays = (batch.token_NxT, batch.segment_NxT, batch.position_NxT)
      sums, now = step(params, sums, *place_rows(params, arrays))
      if ran is not None:
        ran.block_until_ready()  # the host is one batch ahead of the device, not more
      ran = now
      at = _Place(at.num_tokens + batch.num_tokens, batch.end)
      total = round(at.num_tokens * len(text.corpus) / at.end)
      total = max(total if max_tokens is None else min(total, max_tokens), at.num_tokens)
      progress.update(batch.num_tokens, total=total)
      if max_tokens is not None and at.num_tokens >= max_tokens:
        break
      saves.maybe(at, sums)
  cov = {}
  for name, kernel in names.items():
    cov[kernel] = (_wide(*sums.pop(name)) / at.num_tokens).astype(np.float32)
    if not np.isfinite(cov[kernel]).all():
      raise UserError(
        f'The second moments of {kernel.label} are not finite; '
        'check the checkpoint, or load it in float32.'
      )
  return SecondMoments(cov, at.num_tokens, {**provenance, 'num_tokens': at.num_tokens})


def products_of(forward: Callable, names: Sequence[str], stop: int) -> Callable:
  """Σ k kᵀ over the tokens of one batch, float32.

  bfloat16 keys are multiplied as they are, which is exact in float32; float32 keys are not
  shortened.

  Args:
    forward: as of `accumulate`.
    names: sites of the keys.
    stop: number of blocks to run.

  Returns:
    `(params, token_NxT, segment_NxT, position_NxT) -> part_FxF by site`.
  """

  def products(params, token_NxT, segment_NxT, position_NxT):
    _, seen = forward(
      params,
      token_NxT,
      stop=stop,
      taps=names,
      segment_NxT=segment_NxT,
      position_NxT=position_NxT,
    )
    is_text_NxTx1 = (segment_NxT > 0)[..., None]
    parts = {}
    for name in names:
      key_NxTxF = jnp.where(is_text_NxTx1, seen[name], jnp.zeros_like(seen[name]))
      parts[name] = jnp.einsum(
        'ntf,ntg->fg',
        key_NxTxF,
        key_NxTxF,
        precision='highest' if key_NxTxF.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
      )
    return parts

  return products


def adding(products: Callable, mesh: Mesh | None = None) -> jax.stages.Wrapped:
  """The jitted step `(params, sums, *tokens) -> (sums, ran)`, which takes over the old sums.

  `ran` is there once the step has run: the sums themselves cannot be waited for, since the next
  step takes them over.
  """

  @functools.partial(jax.jit, donate_argnums=1)
  def step(params, sums, token_NxT, segment_NxT, position_NxT):
    parts = products(params, token_NxT, segment_NxT, position_NxT)
    for name, part_FxF in parts.items():
      if mesh is not None:  # each device sums up its part over the rows of all
        part_FxF = jax.lax.with_sharding_constraint(part_FxF, square_sharding(mesh, part_FxF))
      sum_FxF, lost_FxF = sums[name]
      sums = {**sums, name: two_sum(sum_FxF, lost_FxF, part_FxF)}
    return sums, jnp.max(segment_NxT)

  return step


def two_sum(
  sum_FxF: jax.Array, lost_FxF: jax.Array, part_FxF: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Adds a part; what rounding takes from the sum goes to `lost`, exactly."""
  new_FxF = sum_FxF + part_FxF
  taken_FxF = new_FxF - sum_FxF
  return new_FxF, lost_FxF + ((sum_FxF - (new_FxF - taken_FxF)) + (part_FxF - taken_FxF))


def _placed(mesh: Mesh | None, sums: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> _Sums:
  if mesh is None:
    return jax.tree.map(jnp.asarray, dict(sums))
  return jax.tree.map(lambda x: place(x, square_sharding(mesh, x)), dict(sums))


def _wide(sum_FxF: jax.Array, lost_FxF: jax.Array) -> np.ndarray:
  wide_FxF = fetch(sum_FxF).astype(np.float64)
  wide_FxF += fetch(lost_FxF)
  return wide_FxF


def _activations(step: jax.stages.Compiled) -> str:
  """What the compiled program says that a batch takes, where it says so."""
  analysis = step.memory_analysis()
  size = getattr(analysis, 'temp_size_in_bytes', 0)
  return f', a batch {format_bytes(size)} beside the parameters' if size else ''


@dataclasses.dataclass(frozen=True)
class _Place:
  """How far a pass is: tokens, and documents of the corpus."""

  num_tokens: int = 0
  end: int = 0


class _Saves:
  """The sums of a pass in progress, one directory for each save; the newest is kept."""

  def __init__(self, store: pathlib.Path | None, key: str):
    """Starts the clock.

    Args:
      store: directory; None saves nothing.
      key: of everything that the sums depend on.
    """
    self._store, self._key = store, key
    self._due = time.monotonic() + _SECONDS_PER_SAVE

  def newest(self) -> tuple[_Place, dict[str, tuple[np.ndarray, np.ndarray]]] | None:
    """What there is to go on from; sums of another pass are removed."""
    if self._store is None or not self._store.is_dir():
      return None
    saved = [int(state.parent.name) for state in self._store.glob(f'[0-9]*/{_STATE}')]
    if saved:
      folder = self._store / str(max(saved))
      state = read_json(folder / _STATE)
      if state['key'] == self._key:
        sums = {}
        for number, name in enumerate(state['names']):
          tensors, _ = read_tensors(folder / f'{number}.safetensors')
          sums[name] = (tensors['sum'], tensors['lost'])
        return _Place(state['num_tokens'], state['end']), sums
    _remove(self._store)
    return None

  def maybe(self, at: _Place, sums: _Sums) -> None:
    """Saves if it is time."""
    started = time.monotonic()
    # All processes save together, or none: their clocks differ.
    if self._store is None or not least_over_processes(int(started >= self._due)):
      return
    with atomic_directory(self._store / str(at.end)) as folder:
      for number, pair in enumerate(sums.values()):  # one by one through the host's memory
        write_tensors(
          folder / f'{number}.safetensors', dict(zip(('sum', 'lost'), fetch(pair), strict=True))
        )
      state = {'key': self._key, 'names': list(sums), **dataclasses.asdict(at)}
      write_json(folder / _STATE, state)
    if is_first_process():
      for other in self._store.iterdir():
        if other.name != str(at.end):
          shutil.rmtree(other, ignore_errors=True)  # a file that is not ours stays
    now = time.monotonic()
    self._due = now + max(_SECONDS_PER_SAVE, _WORK_PER_SAVE * (now - started))


def _remove(store: pathlib.Path) -> None:
  """Removes what was saved: first what makes it count, since a kill may come between."""
  wait_for_all()  # until every process has looked at it
  if is_first_process():
    for state in store.glob(f'*/{_STATE}'):
      state.unlink()
    shutil.rmtree(store, ignore_errors=True)
  wait_for_all()
