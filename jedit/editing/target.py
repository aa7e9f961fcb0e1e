"""Target optimisation: the hidden state that makes the model say the new answer.

The published codes run the whole network at every step. Here nothing runs that cannot change:
blocks below the lowest δ and tokens before it are run once (`prepare`), and each step runs the
upper blocks on the window from the δ position on, attending to stored keys and values. The KL
row is read at its δ position, so its window is one token.

Edits are independent: the loss is written for one and vmapped; the optimiser, the stop rules and
the trace act on [B, ...] outside.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from jedit.editing.delta import Number, Numbers, PlacedDelta
from jedit.editing.prompts import Block
from jedit.methods.base import Objective
from jedit.models import AddAt, Past, past_taps
from jedit.parallel.mesh import mesh_of, over_rows, place_rows

Array = jax.Array | np.ndarray  # rows are made on the host and traced on the device

TRACE_COLUMNS = ('loss', 'nll', 'kl', 'decay', 'probability', 'all_top', 'nll_factor')


@struct.dataclass
class RowBatch:
  """Token rows of a batch of edits, as the host builds them.

  Attributes:
    token_BxPxT: context + prompt + target without its last token, padded on the right.
    start_BxP: where the window starts, the first δ position of the row.
    delta_at_BxP: by δ, its position relative to the window.
    read_at_BxPxJ: window position whose prediction is scored, for each target token.
    label_BxPxJ: the target tokens; label_mask_BxPxJ is False behind the end.
    kl_token_BxT: "{subject} is a"; kl_start_B: its subject's last token, the window.
  """

  token_BxPxT: Array
  start_BxP: Array
  delta_at_BxP: Mapping[str, Array]
  read_at_BxPxJ: Array
  label_BxPxJ: Array
  label_mask_BxPxJ: Array
  kl_token_BxT: Array
  kl_start_B: Array


@struct.dataclass
class Window:
  """What stays fixed during the optimisation, per edit: where the steps start from.

  Attributes:
    hidden_BxPxSxD: input of the lowest δ's block from the window's start on.
    past: keys and values of the tokens before the window, [B, P, T, K, Dh] by layer.
    kl_hidden_BxSxD, kl_past: the same for the KL row, S = 1 and P = 1.
    init_BxD: by δ, the value v₀ of its place on the bare prompt (row 0), float32.
    kl_start_BxV: log-probabilities of the unedited model at the KL position.
  """

  hidden_BxPxSxD: jax.Array
  past: Past
  kl_hidden_BxSxD: jax.Array
  kl_past: Past
  init_BxD: dict[str, jax.Array]
  kl_start_BxV: jax.Array


@struct.dataclass
class State:
  """Where the optimisation of each edit of a batch stands."""

  delta_BxD: dict[str, jax.Array]
  moments: Any
  nll_factor_B: jax.Array
  is_done_B: jax.Array
  num_evals_B: jax.Array
  trace_BxEx7: jax.Array  # `TRACE_COLUMNS` of every evaluation, NaN behind an edit's last


@struct.dataclass
class Slots:
  """Edits at work, one per slot; every array has B slots in front."""

  rows: RowBatch
  window: Window
  state: State


@struct.dataclass
class Terms:
  """The parts of one evaluation's loss; scalars per edit."""

  nll: jax.Array
  kl: jax.Array
  decay: jax.Array
  probability: jax.Array
  is_all_top: jax.Array


class TargetOptimiser:
  """Compiled programs for one model, set of δ and objective; one program per batch shape.

  `Numbers` are arguments of the programs: those of deltas and objective are not looked at.

  Args:
    forward: `(params, token_NxT, **arguments) -> (hidden, seen)`, as `jedit.models.forward`.
    head: `(params, hidden) -> logits`.
    num_layers: of the model.
    deltas: the δ optimised together.
    objective: form of the loss, step count.
  """

  def __init__(
    self,
    forward: Callable,
    head: Callable,
    num_layers: int,
    deltas: tuple[PlacedDelta, ...],
    objective: Objective,
  ):
    self.forward, self.head = forward, head
    self.deltas, self.objective = deltas, objective
    self.first_layer = min(placed.layer for placed in deltas)
    self.layers = tuple(range(self.first_layer, num_layers))
    self.steps = jax.jit(self._steps, donate_argnames='slots')
    self._entering = jax.jit(self._enter, static_argnames=('window', 'past'))

  def enter(
    self,
    params: Any,
    numbers: Numbers,
    rows: RowBatch,
    slots: Slots | None,
    at: np.ndarray,
    block: Block,
  ) -> Slots:
    """Lets edits into free slots, with δ = 0.

    Args:
      params: of the model.
      numbers: of the deltas and the objective.
      rows: of the edits, R of them; those behind the first `len(at)` are padding.
      slots: what is at work; None starts with nothing.
      at: a free slot for each edit.
      block: has the sizes.
    """
    rows, mesh = place_rows(params, rows), mesh_of(params)
    entering = self._entering(params, numbers, rows, window=block.window, past=block.past)
    if slots is None:
      slots = _free_slots(entering, size=block.size, mesh=mesh)
    # A slot that does not exist takes the padding.
    at_R = np.full(len(rows.kl_start_B), block.size, np.int32)
    at_R[: len(at)] = at
    return _put(slots, entering, at_R, mesh=mesh)

  def _enter(self, params, numbers: Numbers, rows: RowBatch, *, window: int, past: int) -> Slots:
    fixed = self._prepare(params, rows, window=window, past=past)
    return Slots(rows, fixed, self._start(fixed, numbers))

  def _start(self, window: Window, numbers: Numbers) -> State:
    delta_BxD = jax.tree.map(jnp.zeros_like, window.init_BxD)
    num_edits = len(window.kl_start_BxV)
    shape = (num_edits, self.objective.num_steps, len(TRACE_COLUMNS))
    return State(
      delta_BxD=delta_BxD,
      moments=jax.vmap(_adam(numbers).init)(delta_BxD),
      nll_factor_B=jnp.broadcast_to(numbers.nll_factor, (num_edits,)),
      is_done_B=jnp.zeros((num_edits,), bool),
      num_evals_B=jnp.zeros((num_edits,), jnp.int32),
      trace_BxEx7=jnp.full(shape, jnp.nan, jnp.float32),
    )

  def _prepare(self, params, rows: RowBatch, *, window: int, past: int) -> Window:
    """Runs everything that does not depend on δ.

    Args:
      params: of the model.
      rows: tokens and positions.
      window: S, tokens kept from each row's window start; covers every position that is read.
      past: tokens whose keys and values are kept; at least the largest window start.
    """
    num_edits, num_prompts, num_tokens = rows.token_BxPxT.shape
    token_NxT, start_N = rows.token_BxPxT.reshape(-1, num_tokens), rows.start_BxP.reshape(-1)
    hidden, earlier, seen = self._run_rows(params, token_NxT, start_N, window, past)

    def per_edit(x):
      return x.reshape(num_edits, num_prompts, *x.shape[1:])

    init_BxD = {}
    for placed in self.deltas:
      name = placed.delta.name
      bare_BxTxD = per_edit(seen[placed.site])[:, 0]
      at_B = rows.start_BxP[:, 0] + rows.delta_at_BxP[name][:, 0]
      init_BxD[name] = _take(bare_BxTxD, at_B).astype(jnp.float32)

    kl_past_size = rows.kl_token_BxT.shape[1]
    kl_hidden, kl_past, _ = self._run_rows(
      params, rows.kl_token_BxT, rows.kl_start_B, 1, kl_past_size
    )
    kl_past = jax.tree.map(lambda x: x[:, None], kl_past)
    zeros = jax.tree.map(jnp.zeros_like, init_BxD)
    kl_start_BxV = jax.vmap(self._kl_logp, in_axes=(None, 0, 0, 0))(
      params, zeros, kl_hidden, kl_past
    )
    return Window(
      hidden_BxPxSxD=per_edit(hidden),
      past=jax.tree.map(per_edit, earlier),
      kl_hidden_BxSxD=kl_hidden,
      kl_past=kl_past,
      init_BxD=init_BxD,
      kl_start_BxV=kl_start_BxV,
    )

  def _run_rows(self, params, token_NxT, start_N, window: int, past: int):
    """Full forward of whole rows: window hidden states, earlier keys and values, δ places."""
    below_NxTxD, _ = self.forward(params, token_NxT, stop=self.first_layer)
    places = tuple(placed.site for placed in self.deltas)
    _, seen = self.forward(
      params,
      hidden_NxTxD=below_NxTxD,
      start=self.first_layer,
      taps=past_taps(self.layers) + places,
    )
    index_NxS = start_N[:, None] + jnp.arange(window)[None, :]
    index_NxS = jnp.minimum(index_NxS, token_NxT.shape[1] - 1)
    hidden_NxSxD = jnp.take_along_axis(below_NxTxD, index_NxS[..., None], axis=1)
    earlier = {name: seen[name][:, :past] for name in past_taps(self.layers)}
    return hidden_NxSxD, Past.from_seen(earlier, self.layers, start_N), seen

  def _upper(self, params, hidden_NxSxD, past: Past, edits):
    hidden, _ = self.forward(
      params, hidden_NxTxD=hidden_NxSxD, start=self.first_layer, past=past, edits=edits
    )
    return hidden

  def _kl_logp(self, params, delta_D, hidden_SxD, past: Past) -> jax.Array:
    """Log-probabilities [V] at the subject's last token of "{subject} is a".

    A δ of the prompt's last token sits at "a", behind this token, and cannot change it.
    """
    edits = {
      placed.site: AddAt(jnp.zeros((1,), jnp.int32), delta_D[placed.delta.name][None])
      for placed in self.deltas
      if placed.token == 'subject_last'
    }
    hidden_1xSxD = self._upper(params, hidden_SxD[None], past, edits)
    return jax.nn.log_softmax(self.head(params, hidden_1xSxD[0, 0]))

  def _loss(self, delta_D, params, numbers: Numbers, window: Window, rows: RowBatch, nll_factor):
    """Loss of one edit (no B axis anywhere) and its terms."""
    edits = {}
    for placed in self.deltas:
      at_P = rows.delta_at_BxP[placed.delta.name]
      delta_PxD = jnp.broadcast_to(
        delta_D[placed.delta.name], (len(at_P), len(delta_D[placed.delta.name]))
      )
      edits[placed.site] = AddAt(jnp.asarray(at_P), delta_PxD)
    hidden_PxSxD = self._upper(params, window.hidden_BxPxSxD, window.past, edits)
    read_PxJxD = jnp.take_along_axis(hidden_PxSxD, rows.read_at_BxPxJ[..., None], axis=1)
    logits_PxJxV = self.head(params, read_PxJxD)
    label_PxJx1 = rows.label_BxPxJ[..., None]
    label_logit_PxJ = jnp.take_along_axis(logits_PxJxV, label_PxJx1, axis=-1)[..., 0]
    logp_PxJ = label_logit_PxJ - jax.nn.logsumexp(logits_PxJxV, axis=-1)
    mask_PxJ = rows.label_mask_BxPxJ
    count_P = mask_PxJ.sum(-1).astype(jnp.float32)
    row_nll_P = -jnp.where(mask_PxJ, logp_PxJ, 0.0).sum(-1) / count_P
    is_top_PxJ = label_logit_PxJ >= logits_PxJxV.max(-1)

    kl_V = self._kl_logp(params, delta_D, window.kl_hidden_BxSxD, window.kl_past)
    kl = jnp.sum(jnp.exp(kl_V) * (kl_V - window.kl_start_BxV))

    decay = jnp.zeros((), jnp.float32)
    for placed in self.deltas:
      name = placed.delta.name
      norm = safe_norm(delta_D[name])
      if self.objective.decay_form == 'released':
        norm = norm / jnp.sum(jnp.square(window.init_BxD[name]))
      decay = decay + numbers.weight_decay[name] * norm
    terms = Terms(
      nll=nll_factor * row_nll_P.mean(),
      kl=numbers.kl_factor * kl,
      decay=decay,
      probability=jnp.exp(-row_nll_P).mean(),
      is_all_top=jnp.all(is_top_PxJ | ~mask_PxJ),
    )
    return terms.nll + terms.kl + terms.decay, terms

  def _steps(self, params, numbers: Numbers, slots: Slots, count: jax.Array) -> Slots:
    """So many evaluations, fewer where all edits stop before.

    In one program, which keeps its memory from one evaluation to the next: fresh pages for what
    the backward pass keeps took a fifth of the time on a CPU.
    """

    def goes_on(carry):
      index, state = carry
      return (index < count) & ~state.is_done_B.all()

    def body(carry):
      index, state = carry
      return index + 1, self._step(params, numbers, slots.rows, slots.window, state)

    _, state = jax.lax.while_loop(goes_on, body, (jnp.zeros((), jnp.int32), slots.state))
    return dataclasses.replace(slots, state=state)

  def _step(self, params, numbers: Numbers, rows: RowBatch, window: Window, state: State) -> State:
    """One evaluation, then one Adam step for the edits that do not stop at it."""
    objective = self.objective
    axes = (0, None, None, 0, 0, 0)
    grad = jax.vmap(jax.value_and_grad(self._loss, has_aux=True), in_axes=axes)
    (loss_B, terms), grad_BxD = grad(
      state.delta_BxD, params, numbers, window, rows, state.nll_factor_B
    )
    trace_Bx7 = jnp.stack(
      [loss_B, terms.nll, terms.kl, terms.decay, terms.probability]
      + [terms.is_all_top.astype(jnp.float32), state.nll_factor_B],
      axis=-1,
    )
    # Behind the end of the array for edits that had stopped before: nothing is written there.
    at_B = jnp.where(state.is_done_B, objective.num_steps, state.num_evals_B)
    trace_BxEx7 = jax.vmap(lambda trace, at, row: trace.at[at].set(row, mode='drop'))(
      state.trace_BxEx7, at_B, trace_Bx7
    )

    stops_B = state.num_evals_B + 1 >= objective.num_steps
    stops_B = stops_B | (loss_B < numbers.stop_loss)
    stops_B = stops_B | (terms.probability >= numbers.stop_probability)
    nll_factor_B = state.nll_factor_B
    if objective.nll_switch:
      low, full = 0.1 * numbers.nll_factor, numbers.nll_factor
      nll_factor_B = jnp.where(terms.is_all_top, low, full)
      stops_B = stops_B | (terms.is_all_top & (terms.kl <= 0.01))

    with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer count
      update_BxD, moments = jax.vmap(_adam(numbers).update)(grad_BxD, state.moments)
    moved = optax.apply_updates(state.delta_BxD, update_BxD)
    moved = {
      name: _clip(moved[name], window.init_BxD[name], numbers.clip_factor[name]) for name in moved
    }
    stays_B = state.is_done_B | stops_B

    def keep(old, new):
      return jnp.where(stays_B.reshape((-1,) + (1,) * (old.ndim - 1)), old, new)

    return State(
      delta_BxD=jax.tree.map(keep, state.delta_BxD, moved),
      moments=jax.tree.map(keep, state.moments, moments),
      nll_factor_B=jnp.where(stays_B, state.nll_factor_B, nll_factor_B),
      is_done_B=stays_B,
      num_evals_B=state.num_evals_B + (~state.is_done_B).astype(jnp.int32),
      trace_BxEx7=trace_BxEx7,
    )


@functools.partial(jax.jit, static_argnames=('size', 'mesh'))
def _free_slots(like: Slots, *, size: int, mesh: Mesh | None) -> Slots:
  slots = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), like)
  state = dataclasses.replace(slots.state, is_done_B=jnp.ones((size,), bool))
  return over_rows(mesh, dataclasses.replace(slots, state=state))


@functools.partial(jax.jit, static_argnames='mesh', donate_argnames='slots')
def _put(slots: Slots, entering: Slots, at_R: jax.Array, *, mesh: Mesh | None) -> Slots:
  put = jax.tree.map(lambda old, new: old.at[at_R].set(new, mode='drop'), slots, entering)
  return over_rows(mesh, put)


def _adam(numbers: Numbers) -> optax.GradientTransformation:
  return optax.adam(numbers.learning_rate, b1=0.9, b2=0.999, eps=1e-8)


def safe_norm(x: jax.Array) -> jax.Array:
  """‖x‖₂ of a vector, with derivative 0 at 0 instead of NaN."""
  square = jnp.sum(jnp.square(x))
  return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _clip(delta_BxD: jax.Array, init_BxD: jax.Array, factor: Number) -> jax.Array:
  """Brings ‖δ‖ down to factor · ‖v₀‖ where it is longer; Adam's moments are left alone."""
  norm_B = jnp.linalg.norm(delta_BxD, axis=-1)
  bound_B = factor * jnp.linalg.norm(init_BxD, axis=-1)
  scale_B = jnp.where(norm_B > bound_B, bound_B / jnp.maximum(norm_B, 1e-30), 1.0)
  return delta_BxD * scale_B[:, None]


def _take(x_NxTxD: jax.Array, at_N: Array) -> jax.Array:
  """The vector of each row at its own token: [N, D]."""
  return jnp.take_along_axis(x_NxTxD, jnp.asarray(at_N)[:, None, None], axis=1)[:, 0]
