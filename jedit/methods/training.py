"""Training of fine-tuning baselines.

Adam lowers the loss of the targets by changing some weights of one or more layers and nothing
else. The blocks below them see the same rows in every epoch: they run once, and a step starts from
their output.

The released codes go through the requests in the order they are given, in every epoch the same;
nothing is shuffled and nothing drawn.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct, traverse_util

from jedit.io.progress import Progress
from jedit.models import Model, kernel_path
from jedit.models.encoding import Encoded, Row, encode_many, pad
from jedit.models.language_model import LanguageModel
from jedit.models.patch import Update
from jedit.parallel.mesh import fetch, num_row_shards, place_rows
from jedit.parallel.shapes import bucket, group_by_length, round_up
from jedit.types import Kernel, Request, UserError

if TYPE_CHECKING:
  from jedit.methods.fine_tuning import FineTuning

# Prefixes of the paths of the parameters that are trained in a layer.
PARAMETERS: Mapping[str, Callable[[int], tuple[str, ...]]] = {
  'block': lambda layer: kernel_path(Kernel(layer, 'mlp'))[:1],
  'mlp_out': lambda layer: kernel_path(Kernel(layer, 'mlp'))[:-1],  # and its bias, if any
  'mlp_kernel': lambda layer: kernel_path(Kernel(layer, 'mlp')),
}

# Add a compiled shape once padding would waste more than this many tokens over all epochs.
_PADDING_PER_PROGRAM = 2**17

Array = jax.Array | np.ndarray  # batches are made on the host and traced on the device


def train(
  lm: LanguageModel, requests: Sequence[Request], method: 'FineTuning'
) -> tuple[dict[str, Update], list[float]]:
  """Trains the layers of `method` until the model predicts the targets.

  Args:
    lm: the model; it is not changed.
    requests: facts to write, trained on in this order.
    method: settings.

  Returns:
    Dense updates by parameter path, and the mean loss of every epoch in nats per target token.

  Raises:
    UserError: for a loss or weight that is not finite.
  """
  rows = [Row(r.prompt, r.subject, r.target_new) for r in requests]
  texts = encode_many(lm.tokenizer, rows, lm.config.position_limit)
  model = lm.model
  batches = []
  for batch in _batches(texts, method, num_row_shards(model)):
    hidden_NxTxD = _below(model, method.trained_layers[0], place_rows(model, batch.arrays))
    # Kept on the host: one batch fits the device, all of them may not.
    arrays = dataclasses.replace(batch.arrays, hidden_NxTxD=fetch(hidden_NxTxD))
    batches.append(dataclasses.replace(batch, arrays=arrays))

  flat = traverse_util.flatten_dict(dict(lm.params))
  starts = tuple(PARAMETERS[method.parameters](layer) for layer in method.trained_layers)
  # Copies, since the steps hand their buffers on and the model keeps its own.
  trained = {
    path: jnp.array(leaf, jnp.float32)
    for path, leaf in flat.items()
    if any(path[: len(start)] == start for start in starts)
  }
  decay = method.decay(len(requests))

  def step(trained: Any, moments: Any, arrays: _Arrays) -> tuple[Any, Any, jax.Array]:
    placed = place_rows(model, arrays)
    return _step(model, method, decay, trained, moments, placed)

  trained, losses = _train(step, method, trained, batches, requests)

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


def _batches(texts: Sequence[Encoded], method: 'FineTuning', row_shards: int) -> list[_Batch]:
  """Cuts the rows in batches, in order; every batch has the same number of rows and labels.

  Rows come in multiples of `row_shards`, the devices that share them.
  """
  is_released = method.loss_position == 'released'
  rows = [text.ids[: text.target_start] if is_released else text.ids[:-1] for text in texts]
  size = min(method.batch_size, len(texts))
  starts = range(0, len(texts), size)
  longest = [max(map(len, rows[first : first + size])) for first in starts]
  padding = _PADDING_PER_PROGRAM / (size * method.num_epochs)
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
    if method.mean_over == 'edits':
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
  method: 'FineTuning',
  trained: Any,
  batches: Sequence[_Batch],
  requests: Sequence[Request],
) -> tuple[Any, list[float]]:
  """Epochs until the loss is low enough; the trained weights and the mean loss of every epoch."""
  moments = _adam(method, 0.0).init(trained)
  losses: list[float] = []
  with Progress('fine-tuning', method.num_epochs * len(batches), 'steps') as progress:
    for epoch in range(1, method.num_epochs + 1):
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
          progress.update(note=f'epoch {epoch} of at most {method.num_epochs}, loss {loss:.3g}')
      losses.append(total / len(requests))
      if losses[-1] < method.stop_loss:
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


def _adam(method: 'FineTuning', decay: float) -> optax.GradientTransformation:
  """Adam with the L2 term in the gradient, as torch.optim.Adam has it (AdamW keeps it apart)."""
  return optax.chain(
    optax.add_decayed_weights(decay),
    optax.adam(method.learning_rate, b1=0.9, b2=0.999, eps=1e-8),
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
  static_argnames=('method', 'decay'),
  donate_argnames=('trained', 'moments'),
)
def _step(
  model: Model,
  method: 'FineTuning',
  decay: float,
  trained,
  moments,
  batch: _Arrays,
) -> tuple[Any, Any, jax.Array]:
  """One Adam step, unless the loss is low already (or is not a number).

  Args:
    model: the model, with all parameters.
    method: settings.
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
      start=method.trained_layers[0],
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
      change, new_moments = _adam(method, decay).update(gradient, moments, trained)
    moved = optax.apply_updates(trained, change)
    if method.norm_bound is not None:
      before = {path: flat[path].astype(jnp.float32) for path in trained}
      moved = {
        path: jnp.clip(leaf, before[path] - method.norm_bound, before[path] + method.norm_bound)
        for path, leaf in moved.items()
      }
    return moved, new_moments

  moved, new_moments = jax.lax.cond(value >= method.stop_loss, move, lambda: (trained, moments))
  return moved, new_moments, loss_N
