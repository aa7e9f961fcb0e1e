"""Trains an editor: steps on batches of edits, validation on records that are held back.

A step asks that paraphrases of its edits are answered with the new targets and that predictions on
unrelated prompts stay. Adam moves the nets, the step sizes and the ridges; the model stays as it
is. A killed training goes on from its last state to the same bits.
"""

import functools
import hashlib
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jedit.hypernetworks.editor import Editor, place_nets
from jedit.hypernetworks.net import init, shardings
from jedit.hypernetworks.rows import Losses
from jedit.hypernetworks.settings import Settings
from jedit.hypernetworks.steps import Examples, run_step
from jedit.io.checkpoints import Checkpoints
from jedit.io.progress import Progress
from jedit.io.sealed import digest
from jedit.models.language_model import LanguageModel
from jedit.parallel.mesh import fetch, mesh_of
from jedit.types import Record, UserError

_MOST_POINTS = 1000  # of the curve of losses
_LOSSES = ('inner', 'edit', 'locality', 'total', 'norm')


def train_editor(
  lm: LanguageModel,
  records: Sequence[Record],
  method: Settings,
  *,
  seed: int = 0,
  store: str | os.PathLike[str] | None = None,
) -> Editor:
  """Trains an editor for a model.

  Args:
    lm: the unedited model.
    records: edits to train on, each with a paraphrase and an unrelated prompt with its answer; no
      record of a test should be among them, nor share a subject with one.
    method: of `jedit.methods.mend` or `jedit.methods.malmen`, with the settings of the training.
    seed: of the nets, the order of records and the prompts that are drawn.
    store: directory for the state of a training in progress; the same call continues from it.

  Returns:
    The editor with the lowest loss in validation, or without validation that of the last step. Its
    provenance has the losses.

  Raises:
    UserError: for a model with patches, too few records, a record without the prompts, and losses
      or gradients that are not finite.
  """
  if not isinstance(method, Settings):
    raise UserError(f'Method {method.name} has no editor to train; give mend or malmen.')  # type: ignore[attr-defined]
  if lm.patches:
    raise UserError('The model carries patches; train the editor on the unedited model.')
  run = _Training(lm, list(records), method, seed)
  directory = None if store is None else pathlib.Path(store)
  checkpoints = Checkpoints(
    directory, digest([lm.fingerprint, lm.config.dtype, method, run.data, seed])
  )
  editor = run.train(checkpoints)
  checkpoints.remove()
  return editor


class _Training:
  """A training from its first step to the editor."""

  def __init__(self, lm: LanguageModel, records: list[Record], settings: Settings, seed: int):
    self._lm, self._settings, self._seed = lm, settings, seed
    self._plan = settings.plan(lm.config)
    self._mesh = mesh_of(lm.params)
    self._per_step = settings.num_edits * settings.accumulate
    held = settings.num_validation if settings.validation_interval else 0
    if len(records) - held < self._per_step:
      raise UserError(
        f'{len(records)} records are given, a step takes {self._per_step} and validation {held}; '
        'give more records, or lower num_edits, accumulate or num_validation.'
      )
    order = np.random.default_rng([seed, 0]).permutation(len(records))
    self._records = [records[number] for number in order]
    self._examples = Examples(lm, self._records, settings, seed)
    self._num_trained = len(records) - held
    self.data = hashlib.sha256(repr(records).encode()).hexdigest()[:16]

  def train(self, checkpoints: Checkpoints) -> Editor:
    """Steps from the state of the checkpoints, or from the beginning."""
    settings, start = self._settings, time.monotonic()
    every = -(-settings.num_steps // _MOST_POINTS)
    about: dict[str, Any] = {'curve': [], 'validation': [], 'best': None, 'seconds': 0.0}
    done, state, about = checkpoints.newest(self._abstract()) or (0, self._begin(), about)
    earlier = about['seconds']
    is_over, number = False, done
    with Progress('train editor', settings.num_steps, done=done) as progress:
      for number in range(done + 1, settings.num_steps + 1):
        state, values = self._step(state, number)
        if number % every == 0:
          about['curve'].append([number, *values])
        note = f'loss {values[_LOSSES.index("total")]:.3f}'
        if settings.validation_interval and number % settings.validation_interval == 0:
          loss = self._validate(state)
          about['validation'].append([number, loss])
          if about['best'] is None or loss < about['best'][1]:
            about['best'] = [number, loss]
            state['best'] = _kept(state['params'], state['statistics'])
          note += f', validation {loss:.3f}, best {about["best"][1]:.3f}'
          is_over = 0 < settings.patience <= number - about['best'][0]
        progress.update(note=note)
        about['seconds'] = earlier + time.monotonic() - start
        if is_over:
          break
        checkpoints.save_if_due(number, state, about)
    params, statistics = state['params'], state['statistics']
    if about['best'] is not None:
      params, statistics = state['best']['params'], state['best']['statistics']
    provenance = {
      'data': self.data,
      'num_records': self._num_trained,
      'num_validation': len(self._records) - self._num_trained,
      'seed': self._seed,
      'jax': jax.__version__,
      'steps': number,
      'best_step': about['best'][0] if about['best'] else number,
      'losses': list(_LOSSES),
      'curve': about['curve'],
      'validation': about['validation'],
      'seconds': about['seconds'],
    }
    return Editor(
      settings,
      fetch(params),
      fetch(statistics),
      self._lm.fingerprint,
      self._examples.tokens_per_edit,
      provenance,
    )

  def _begin(self) -> dict[str, Any]:
    state = place_nets(self._mesh, self._initial())
    return {**state, 'best': _kept(state['params'], state['statistics'])}

  def _initial(self) -> dict[str, Any]:
    params, statistics = init(self._lm.config, self._settings, jax.random.key(self._seed))
    return {
      'params': params,
      'statistics': statistics,
      'moments': optax.scale_by_adam().init(params),
      'best': {'params': params, 'statistics': statistics},
    }

  def _abstract(self) -> dict[str, Any]:
    abstract = jax.eval_shape(self._initial)
    if self._mesh is None:
      return abstract
    return jax.tree.map(
      lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
      abstract,
      shardings(self._mesh, abstract),
    )

  def _step(self, state: dict[str, Any], number: int) -> tuple[dict[str, Any], list[float]]:
    """The state after a step, and its losses."""
    epoch, chosen = self._chosen(number)
    texts = self._examples.texts_of(self._examples.numbers(chosen, epoch))
    try:
      gradient, statistics, losses = run_step(
        self._lm.model, state['params'], state['statistics'], texts, self._settings, self._plan
      )
    except UserError as error:
      first = self._records[chosen[0]].request.label
      raise UserError(
        f'Step {number} of the training, whose first edit is {first}, failed: {error}'
      ) from error
    self._check_losses(number, chosen, losses)
    params, moments, norms = update(
      state['params'], state['moments'], gradient, settings=self._settings
    )
    norm = self._check_norms(number, chosen, fetch(norms))
    values = [float(fetch(part).sum()) for part in losses[:3]]
    values = [value / texts.num_groups for value in values]
    new = {**state, 'params': params, 'statistics': statistics, 'moments': moments}
    return new, [*values, float(fetch(losses.total)), norm]

  def _chosen(self, number: int) -> tuple[int, list[int]]:
    """Epoch and records of a step: the order changes after an epoch, a remainder is left out."""
    epoch, place = divmod(number - 1, self._num_trained // self._per_step)
    order = np.arange(self._num_trained)
    if epoch:
      order = np.random.default_rng([self._seed, 1, epoch]).permutation(self._num_trained)
    return epoch, order[place * self._per_step : (place + 1) * self._per_step].tolist()

  def _validate(self, state: dict[str, Any]) -> float:
    """Mean loss of the records held back, with fixed statistics."""
    total, held = 0.0, range(self._num_trained, len(self._records))
    for first in range(0, len(held), self._per_step):
      part = list(held[first : first + self._per_step])
      texts = self._examples.texts_of(self._examples.numbers(part))
      _, _, losses = run_step(
        self._lm.model,
        state['params'],
        state['statistics'],
        texts,
        self._settings,
        self._plan,
        trains=False,
      )
      total += float(fetch(losses.total)) * len(part)
    return total / len(held)

  def _check_losses(self, number: int, chosen: Sequence[int], losses: Losses) -> None:
    """Raises UserError for statistics of a single row; names the record of a loss not finite."""
    count = int(fetch(losses.num_rows))
    if count < 2:
      raise UserError(
        f'The first update has {count} row for the statistics of a net, and normalising takes 2: '
        f'{self._records[chosen[0]].request.label} has a single token to predict; increase '
        'num_edits, or edit a lower layer as well.'
      )
    for name, part in zip(_LOSSES, losses[:3], strict=False):
      for place in np.flatnonzero(~np.isfinite(fetch(part))):
        record = self._records[chosen[min(int(place), len(chosen) - 1)]]
        raise UserError(
          f'The {name} loss of {record.request.label} is not finite in step {number} of the '
          'training; lower learning_rate or rate_learning_rate, or leave the record out.'
        )

  def _check_norms(self, number: int, chosen: Sequence[int], norms: dict[str, Any]) -> float:
    """The norm of the gradient; raises UserError and names the layers if it is not finite."""
    for net, norm in norms.items():
      if not np.isfinite(norm):
        layers = ', '.join(str(kernel) for kernel, name, _ in self._plan if name == net)
        raise UserError(
          f'The gradient of the net of {layers} is not finite in step {number} of the training, '
          f'whose first edit is {self._records[chosen[0]].request.label}; lower learning_rate.'
        )
    return float(np.sqrt(sum(norm**2 for norm in norms.values())))


def _kept(params: Any, statistics: Any) -> dict[str, Any]:
  """Copies, since the steps hand their buffers on."""
  return jax.tree.map(jnp.copy, {'params': params, 'statistics': statistics})


@functools.partial(jax.jit, static_argnames='settings', donate_argnames=('params', 'moments'))
def update(params: Any, moments: Any, gradient: Any, settings: Settings) -> Any:
  """An Adam step on the clipped gradient, with learning rates of nets and of step sizes.

  Returns:
    Nets, moments, and the norm of the gradient before clipping, by net.
  """
  norms = {net: optax.tree.norm(tree) for net, tree in gradient.items()}
  norm = jnp.sqrt(sum(jnp.square(each) for each in norms.values()))
  factor = jnp.minimum(1.0, settings.clip_norm / (norm + 1e-6))  # as torch clips
  clipped = jax.tree.map(lambda x: x * factor, gradient)
  with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer count
    moved, moments = optax.scale_by_adam().update(clipped, moments, params)
  slow = settings.rate_learning_rate or settings.learning_rate

  def add(path: Any, value: jax.Array, change: jax.Array) -> jax.Array:
    rate = slow if path[-1].key in ('rate', 'ridge') else settings.learning_rate
    return value - rate * change

  return jax.tree_util.tree_map_with_path(add, params, moved), moments, norms
