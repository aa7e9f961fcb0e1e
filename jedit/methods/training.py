"""Training of fine-tuning baselines.

Adam lowers the loss of the targets by changing some weights of one or more layers and nothing
else. The blocks below them see the same rows in every epoch: they run once, and a step starts from
their output.

The released codes go through the requests in the order they are given, in every epoch the same;
nothing is shuffled and nothing drawn.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util

from jedit.editing.region import check_layers
from jedit.io.progress import Progress
from jedit.models import Model, kernel_path
from jedit.models.encoding import Encoded, Row, encode_many
from jedit.models.language_model import LanguageModel
from jedit.models.patch import Update
from jedit.parallel.mesh import fetch, num_row_shards, place_rows
from jedit.parallel.shapes import bucket, group_by_length, pad, round_up
from jedit.types import Kernel, Request, UserError

# Prefixes of the paths of the parameters that are trained in a layer.
PARAMETERS: Mapping[str, Callable[[int], tuple[str, ...]]] = {
  'block': lambda layer: kernel_path(Kernel(layer, 'mlp'))[:1],
  'mlp_out': lambda layer: kernel_path(Kernel(layer, 'mlp'))[:-1],  # and its bias, if any
  'mlp_kernel': lambda layer: kernel_path(Kernel(layer, 'mlp')),
}

# Add a compiled shape once padding would waste more than this many tokens over all epochs.
_PADDING_PER_PROGRAM = 2**17

LOSS_POSITIONS = ('released', 'paper')
MEANS = ('edits', 'tokens')
WEIGHT_DECAYS = ('released', 'paper')

Array = jax.Array | np.ndarray  # batches are made on the host and traced on the device


@dataclasses.dataclass(frozen=True)
class Training:
  """Settings of fine-tuning.

  Attributes:
    name: for tables and files.
    trained_layers: ascending layer numbers.
    parameters: 'block' trains all weights of these layers (norms and biases too), 'mlp_out' the
      MLP's output projection (in the released codes: kernel and bias), 'mlp_kernel' its kernel.
    learning_rate: of Adam (β 0.9 and 0.999, ε 1e-8).
    num_epochs: the most passes over all requests ("steps" in the released settings).
    batch_size: requests of a step; a last batch that is smaller is trained on, too.
    stop_loss: a batch below this loss takes no step, and training ends after an epoch whose mean
      loss, weighted by requests, is below it.
    loss_position: 'released' reads every target token from the one prediction at the end of the
      prompt, as the ROME and MEMIT codes do; 'paper' is the likelihood of the target, each token
      predicted after the ones before it (so does the JEEP code). The same for targets of one token.
    mean_over: 'edits' averages over the target tokens of each request and then over requests;
      'tokens' over all target tokens of the batch (the JEEP code).
    weight_decay: L2 coefficient w, added to the gradient as w · weight before Adam. 'paper' is
      MEMIT's power law of the number of edits; 'released' is 0, because the released code tests
      the law for a type that its loader does not produce.
    norm_bound: no weight ends further than this from where it began (FT-L, "FT+L": every step is
      projected back into the L∞ ball); None leaves them free.
  """

  name: str
  trained_layers: tuple[int, ...]
  parameters: str
  learning_rate: float = 5e-4
  num_epochs: int = 25
  batch_size: int = 64
  stop_loss: float = 0.01
  loss_position: str = 'released'
  mean_over: str = 'edits'
  weight_decay: float | str = 'released'
  norm_bound: float | None = None

  def __post_init__(self) -> None:
    check_layers(self.trained_layers)
    choices: dict[str, Sequence[str]] = {
      'parameters': tuple(PARAMETERS),
      'loss_position': LOSS_POSITIONS,
      'mean_over': MEANS,
    }
    for field, values in choices.items():
      if getattr(self, field) not in values:
        raise UserError(f'{field} is {getattr(self, field)!r}; choose one of {", ".join(values)}.')
    for field in ('num_epochs', 'batch_size'):
      value = getattr(self, field)
      if not isinstance(value, int) or value < 1:
        raise UserError(f'{field} is {value!r}; give a whole number of at least 1.')
    for field in ('learning_rate', 'norm_bound'):
      value = getattr(self, field)
      if value is None and field == 'norm_bound':
        continue
      if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise UserError(f'{field} is {value!r}; give a number above 0.')
    for field in ('stop_loss', 'weight_decay'):
      value = getattr(self, field)
      if field == 'weight_decay' and value in WEIGHT_DECAYS:
        continue
      if not isinstance(value, int | float) or not 0 <= value < math.inf:
        named = f', or {" or ".join(WEIGHT_DECAYS)}' if field == 'weight_decay' else ''
        raise UserError(f'{field} is {value!r}; give a number of at least 0{named}.')

  def decay(self, num_edits: int) -> float:
    """The coefficient w of `weight_decay`; the law gives 1.17 for one edit, 3.9e-4 for 10,000."""
    if isinstance(self.weight_decay, str):
      law = math.exp(0.15589562) * num_edits**-0.87028798
      return law if self.weight_decay == 'paper' else 0.0
    return float(self.weight_decay)


def train(
  lm: LanguageModel, requests: Sequence[Request], settings: Training
) -> tuple[dict[str, Update], list[float]]:
  """Trains the layers of the settings until the model predicts the targets.

  Args:
    lm: the model; it is not changed.
    requests: facts to write, trained on in this order.
    settings: what is trained and how.

  Returns:
    Dense updates by parameter path, and the mean loss of every epoch in nats per target token.

  Raises:
    UserError: for a loss or weight that is not finite.
  """
  rows = [Row(r.prompt, r.subject, r.target_new) for r in requests]
  texts = encode_many(lm.tokenizer, rows, lm.config.position_limit)
  model = lm.model
  batches = []
  for batch in _batches(texts, settings, num_row_shards(model)):
    hidden_NxTxD = _below(model, settings.trained_layers[0], place_rows(model, batch.arrays))
    # Kept on the host: one batch fits the device, all of them may not.
    arrays = dataclasses.replace(batch.arrays, hidden_NxTxD=fetch(hidden_NxTxD))
    batches.append(dataclasses.replace(batch, arrays=arrays))

  flat = traverse_util.flatten_dict(dict(lm.params))
  starts = tuple(PARAMETERS[settings.parameters](layer) for layer in settings.trained_layers)
  # Copies, since the steps hand their buffers on and the model keeps its own.
  trained = {
    path: jnp.array(leaf, jnp.float32)
    for path, leaf in flat.items()
    if any(path[: len(start)] == start for start in starts)
  }
  decay = settings.decay(len(requests))

  def step(trained: Any, moments: Any, arrays: _Arrays) -> tuple[Any, Any, jax.Array]:
    placed = place_rows(model, arrays)
    return _step(model, settings, decay, trained, moments, placed)

  trained, losses = _train(step, settings, trained, batches, requests)

  updates = {}
  for path, value in trained.items():
    change = fetch(value) - fetch(flat[path]).astype(np.float32)
    if not np.isfinite(change).all():
      raise UserError(f'The change of {"/".join(path)} is not finite; lower learning_rate.')
    updates['/'.join(path)] = Update(dense=change)
  return updates, losses


@struct.dataclass
class _Arrays:
  """Rows of a step, padded to a few lengths; Q positions are read and J tokens scored at each.

  One of Q and J is 1: all tokens are scored at the end of the prompt, or each at a position of its
  own.

  Attributes:
    token_NxT: prompt, and target as far as a position in it is read.
    last_N: last token of each row.
    read_at_NxQ: positions whose predictions are read.
    label_NxQxJ: target tokens; weight_NxQxJ is each one's share of the loss, 0 behind the target
      and in the rows that fill up a batch.
    hidden_NxTxD: input of the lowest trained layer, on the host.
  """

  token_NxT: Array
  last_N: Array
  read_at_NxQ: Array
  label_NxQxJ: Array
  weight_NxQxJ: Array
  hidden_NxTxD: Array | None = None


@dataclasses.dataclass(frozen=True)
class _Batch:
  """The requests of a step: `num_rows` from the number `first` on."""

  first: int
  num_rows: int
  arrays: _Arrays


def _batches(texts: Sequence[Encoded], settings: Training, row_shards: int) -> list[_Batch]:
  """Cuts the rows in batches, in order; every batch has the same number of rows and labels.

  Rows come in multiples of `row_shards`, the devices that share them.
  """
  is_released = settings.loss_position == 'released'
  rows = [text.ids[: text.target_start] if is_released else text.ids[:-1] for text in texts]
  size = min(settings.batch_size, len(texts))
  starts = range(0, len(texts), size)
  longest = [max(map(len, rows[first : first + size])) for first in starts]
  padding = _PADDING_PER_PROGRAM / (size * settings.num_epochs)
  groups = group_by_length(longest, padding=padding)
  num_tokens = {number: length for length, group in groups for number in group}
  # One J for all: scoring a few tokens in vain is cheaper than compiling more programs.
  num_targets = bucket(max(len(text.target_ids) for text in texts), smallest=1)
  index_J = np.arange(num_targets, dtype=np.int32)
  found = []
  for number, first in enumerate(starts):
    indices = list(range(first, min(first + size, len(texts))))
    num_rows = len(indices)
    indices += [first] * (round_up(size, row_shards) - num_rows)
    token_NxT, length_N = pad([rows[i] for i in indices], num_tokens[number])
    label_NxJ, count_N = pad([texts[i].target_ids for i in indices], num_targets)
    is_target_NxJ = index_J[None] < count_N[:, None]
    is_target_NxJ[num_rows:] = False
    if settings.mean_over == 'edits':
      weight_NxJ = is_target_NxJ / (count_N[:, None] * num_rows)
    else:
      weight_NxJ = is_target_NxJ / is_target_NxJ.sum()
    prompt_last_Nx1 = np.array([[texts[i].prompt_last] for i in indices], np.int32)
    one_by_one_NxJ = np.where(is_target_NxJ, prompt_last_Nx1 + index_J[None], 0)
    axis = 1 if is_released else 2
    arrays = _Arrays(
      token_NxT=token_NxT,
      last_N=length_N - 1,
      read_at_NxQ=prompt_last_Nx1 if is_released else one_by_one_NxJ,
      label_NxQxJ=np.expand_dims(label_NxJ, axis),
      weight_NxQxJ=np.expand_dims(weight_NxJ.astype(np.float32), axis),
    )
    found.append(_Batch(first, num_rows, arrays))
  return found


def _train(
  step: Callable,
  settings: Training,
  trained: Any,
  batches: Sequence[_Batch],
  requests: Sequence[Request],
) -> tuple[Any, list[float]]:
  """Epochs until the loss is low enough; the trained weights and the mean loss of every epoch."""
  moments = _adam(settings, 0.0).init(trained)
  losses: list[float] = []
  with Progress('fine-tuning', settings.num_epochs * len(batches), 'steps') as progress:
    for epoch in range(1, settings.num_epochs + 1):
      total, shares = 0.0, []
      for number in range(len(batches) + 1):
        if number < len(batches):
          trained, moments, loss_N = step(trained, moments, batches[number].arrays)
          shares.append(loss_N)
        # Looks at the step before, so that the device has work while this waits.
        if number > 0:
          batch = batches[number - 1]
          loss = _checked_loss(batch, fetch(shares[number - 1]), epoch, requests)
          total += loss * batch.num_rows
          progress.update(note=f'epoch {epoch} of at most {settings.num_epochs}, loss {loss:.3g}')
      losses.append(total / len(requests))
      if losses[-1] < settings.stop_loss:
        break
  return trained, losses


def _checked_loss(
  batch: _Batch, loss_N: np.ndarray, epoch: int, requests: Sequence[Request]
) -> float:
  """Loss of a step from the shares of its rows."""
  is_bad_N = ~np.isfinite(loss_N[: batch.num_rows])
  if is_bad_N.any():
    bad = [requests[batch.first + int(n)] for n in np.flatnonzero(is_bad_N)]
    others = f' (and of {len(bad) - 1} others in its batch)' if len(bad) > 1 else ''
    raise UserError(
      f'The loss of {bad[0].label}{others} is not finite '
      f'in epoch {epoch}; lower learning_rate, or leave the record out.'
    )
  return float(loss_N.sum())


def _adam(settings: Training, decay: float) -> optax.GradientTransformation:
  """Adam with the L2 term in the gradient, as torch.optim.Adam has it (AdamW keeps it apart)."""
  return optax.chain(
    optax.add_decayed_weights(decay),
    optax.adam(settings.learning_rate, b1=0.9, b2=0.999, eps=1e-8),
  )


@functools.partial(jax.jit, static_argnames='first')
def _below(model: Model, first: int, batch: _Arrays) -> jax.Array:
  """Input of block `first`, which no step changes."""
  return model(jnp.asarray(batch.token_NxT), stop=first, position_NxT=_positions(batch))[0]


def _positions(batch: _Arrays) -> jax.Array:
  # Padding takes the last position: dynamic rotary scaling looks at the largest one.
  return jnp.minimum(jnp.arange(batch.token_NxT.shape[1])[None], batch.last_N[:, None])


@functools.partial(
  jax.jit,
  static_argnames=('settings', 'decay'),
  donate_argnames=('trained', 'moments'),
)
def _step(
  model: Model,
  settings: Training,
  decay: float,
  trained,
  moments,
  batch: _Arrays,
) -> tuple[Any, Any, jax.Array]:
  """One Adam step, unless the loss is low already (or is not a number).

  Args:
    model: the model, with all parameters.
    settings: what is trained and how.
    decay: L2 coefficient.
    trained: float32 weights by path, which take the place of those in `params`.
    moments: of Adam.
    batch: rows.

  Returns:
    New weights and moments, and the share of each row in the loss before the step.
  """
  flat = traverse_util.flatten_dict(dict(model.params))

  def loss(trained):
    merged = dataclasses.replace(model, params=traverse_util.unflatten_dict({**flat, **trained}))
    hidden_NxTxD, _ = merged(
      hidden_NxTxD=batch.hidden_NxTxD,
      start=settings.trained_layers[0],
      position_NxT=_positions(batch),
    )
    read_NxQxD = jnp.take_along_axis(hidden_NxTxD, batch.read_at_NxQ[..., None], axis=1)
    logp_NxQxV = jax.nn.log_softmax(merged.head(read_NxQxD))
    logp_NxQxJ = jnp.take_along_axis(logp_NxQxV, batch.label_NxQxJ, axis=-1)
    loss_N = -(batch.weight_NxQxJ * logp_NxQxJ).sum((1, 2))
    return loss_N.sum(), loss_N

  value, pull_back, loss_N = jax.vjp(loss, trained, has_aux=True)

  def move():
    (gradient,) = pull_back(jnp.ones_like(value))
    with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer count
      change, new_moments = _adam(settings, decay).update(gradient, moments, trained)
    moved = optax.apply_updates(trained, change)
    if settings.norm_bound is not None:
      before = {path: flat[path].astype(jnp.float32) for path in trained}
      moved = {
        path: jnp.clip(leaf, before[path] - settings.norm_bound, before[path] + settings.norm_bound)
        for path, leaf in moved.items()
      }
    return moved, new_moments

  moved, new_moments = jax.lax.cond(value >= settings.stop_loss, move, lambda: (trained, moments))
  return moved, new_moments, loss_N
