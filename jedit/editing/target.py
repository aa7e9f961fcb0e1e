"""Target optimisation: the hidden state at which the model predicts the new object.

Edits are independent: the loss is written for one and vmapped; the optimiser, the stop rules and
the trace act on [B, ...] outside. Edits occupy slots: one that stops makes room for another.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from jedit.editing.blocks import Block, RowBatch
from jedit.editing.loss import kl_logp, loss
from jedit.editing.objective import Number
from jedit.editing.problem import Problem
from jedit.editing.window import Window, cut_window
from jedit.models import Model
from jedit.parallel.mesh import mesh_of, over_rows, place_rows

TRACE_COLUMNS = ('loss', 'nll', 'kl', 'decay', 'probability', 'all_top', 'nll_factor')


@struct.dataclass
class State:
  """Progress of the optimisation of each edit of a batch.

  Attributes:
    delta_BxD, moments, nll_factor_B: by δ its value; of the optimiser; present weight.
    joint_BxD: by δ, the value of its place on the bare prompt at the last evaluation, with every
      δ in the network.
    is_done_B, num_evals_B: which have stopped, and evaluations so far.
    trace_BxEx7: `TRACE_COLUMNS` of every evaluation, NaN behind an edit's last.
  """

  delta_BxD: dict[str, jax.Array]
  joint_BxD: dict[str, jax.Array]
  moments: Any
  nll_factor_B: jax.Array
  is_done_B: jax.Array
  num_evals_B: jax.Array
  trace_BxEx7: jax.Array


@struct.dataclass
class Slots:
  """Edits in progress, one per slot; every array has B slots in front.

  Attributes:
    rows, window, state: of the edits.
    kl_start_BxV: log-probabilities of the unedited model at the KL position.
  """

  rows: RowBatch
  window: Window
  kl_start_BxV: jax.Array
  state: State


def enter(
  model: Model,
  problem: Problem,
  rows: RowBatch,
  slots: Slots | None,
  at: np.ndarray,
  block: Block,
) -> Slots:
  """Puts edits into free slots, with δ = 0.

  Args:
    model: the model.
    problem: the deltas and their objective, float32 numbers.
    rows: R rows of edits; those behind the first `len(at)` are padding.
    slots: edits in progress; None starts with free slots alone.
    at: a free slot for each edit.
    block: has the sizes.
  """
  rows, mesh = place_rows(model, rows), mesh_of(model)
  entering = _start(model, problem, rows, window=block.window, past=block.past)
  if slots is None:
    slots = _free_slots(entering, size=block.size, mesh=mesh)
  # Padding goes to a slot beyond the last and is dropped.
  at_R = np.full(len(rows.kl_start_B), block.size, np.int32)
  at_R[: len(at)] = at
  return _put(slots, entering, at_R, mesh=mesh)


@functools.partial(jax.jit, static_argnames=('window', 'past'))
def _start(model: Model, problem: Problem, rows: RowBatch, *, window: int, past: int) -> Slots:
  fixed = cut_window(model, problem, rows, window=window, past=past)
  delta_BxD = jax.tree.map(jnp.zeros_like, fixed.init_BxD)
  kl_start_BxV = jax.vmap(kl_logp, in_axes=(None, None, 0, 0, 0))(
    model, problem, delta_BxD, fixed.kl_hidden_BxSxD, fixed.kl_past
  )
  num_edits, objective = len(kl_start_BxV), problem.objective
  state = State(
    delta_BxD=delta_BxD,
    joint_BxD=fixed.init_BxD,
    moments=jax.vmap(objective.optimizer(objective.learning_rate).init)(delta_BxD),
    nll_factor_B=jnp.broadcast_to(objective.nll_factor, (num_edits,)),
    is_done_B=jnp.zeros((num_edits,), bool),
    num_evals_B=jnp.zeros((num_edits,), jnp.int32),
    trace_BxEx7=jnp.full(
      (num_edits, objective.num_steps, len(TRACE_COLUMNS)), jnp.nan, jnp.float32
    ),
  )
  return Slots(rows, fixed, kl_start_BxV, state)


@functools.partial(jax.jit, static_argnames=('size', 'mesh'))
def _free_slots(like: Slots, *, size: int, mesh: Mesh | None) -> Slots:
  slots = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), like)
  state = dataclasses.replace(slots.state, is_done_B=jnp.ones((size,), bool))
  return over_rows(mesh, dataclasses.replace(slots, state=state))


@functools.partial(jax.jit, static_argnames='mesh', donate_argnames='slots')
def _put(slots: Slots, entering: Slots, at_R: jax.Array, *, mesh: Mesh | None) -> Slots:
  put = jax.tree.map(lambda old, new: old.at[at_R].set(new, mode='drop'), slots, entering)
  return over_rows(mesh, put)


@functools.partial(jax.jit, donate_argnames='slots')
def run_steps(model: Model, problem: Problem, slots: Slots, count: jax.Array) -> Slots:
  """Runs `count` evaluations, fewer if all edits stop before.

  One program holds them all and keeps its memory from one evaluation to the next: fresh pages for
  the stored activations of the backward pass took a fifth of the time on a CPU.
  """

  def goes_on(carry):
    index, state = carry
    return (index < count) & ~state.is_done_B.all()

  def body(carry):
    index, state = carry
    return index + 1, _step(model, problem, dataclasses.replace(slots, state=state))

  _, state = jax.lax.while_loop(goes_on, body, (jnp.zeros((), jnp.int32), slots.state))
  return dataclasses.replace(slots, state=state)


def _step(model: Model, problem: Problem, slots: Slots) -> State:
  """One evaluation, then one optimiser step for the edits that do not stop at it."""
  objective, state, window = problem.objective, slots.state, slots.window
  axes = (0, None, None, 0, 0, 0, 0)
  grad = jax.vmap(jax.value_and_grad(loss, has_aux=True), in_axes=axes)
  (loss_B, terms), grad_BxD = grad(
    state.delta_BxD, model, problem, window, slots.kl_start_BxV, slots.rows, state.nll_factor_B
  )
  trace_Bx7 = jnp.stack(
    [loss_B, terms.nll, terms.kl, terms.decay, terms.probability]
    + [terms.is_all_top.astype(jnp.float32), state.nll_factor_B],
    axis=-1,
  )
  # Edits that had stopped before write behind the end of the array, which drops them.
  at_B = jnp.where(state.is_done_B, objective.num_steps, state.num_evals_B)
  trace_BxEx7 = jax.vmap(lambda trace, at, row: trace.at[at].set(row, mode='drop'))(
    state.trace_BxEx7, at_B, trace_Bx7
  )

  stops_B = state.num_evals_B + 1 >= objective.num_steps
  stops_B = stops_B | (loss_B < objective.stop_loss)
  stops_B = stops_B | (terms.probability >= objective.stop_probability)
  nll_factor_B = state.nll_factor_B
  if objective.nll_switch:
    low, full = 0.1 * objective.nll_factor, objective.nll_factor
    nll_factor_B = jnp.where(terms.is_all_top, low, full)
    stops_B = stops_B | (terms.is_all_top & (terms.kl <= 0.01))

  with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer count
    optimizer = objective.optimizer(objective.learning_rate)
    update_BxD, moments = jax.vmap(optimizer.update)(grad_BxD, state.moments)
  moved = optax.apply_updates(state.delta_BxD, update_BxD)
  moved = {
    placed.name: _clip(moved[placed.name], window.init_BxD[placed.name], placed.delta.clip_factor)
    for placed in problem.deltas
  }
  stays_B = state.is_done_B | stops_B

  def keep(old, new):
    return jnp.where(stays_B.reshape((-1,) + (1,) * (old.ndim - 1)), old, new)

  return State(
    delta_BxD=jax.tree.map(keep, state.delta_BxD, moved),
    joint_BxD=terms.joint_D,
    moments=jax.tree.map(keep, state.moments, moments),
    nll_factor_B=jnp.where(stays_B, state.nll_factor_B, nll_factor_B),
    is_done_B=stays_B,
    num_evals_B=state.num_evals_B + (~state.is_done_B).astype(jnp.int32),
    trace_BxEx7=trace_BxEx7,
  )


def _clip(delta_BxD: jax.Array, init_BxD: jax.Array, factor: Number) -> jax.Array:
  """Scales δ down to a norm of factor · ‖v₀‖ if it is longer; Adam's moments are left alone."""
  norm_B = jnp.linalg.norm(delta_BxD, axis=-1)
  bound_B = factor * jnp.linalg.norm(init_BxD, axis=-1)
  scale_B = jnp.where(norm_B > bound_B, bound_B / jnp.maximum(norm_B, 1e-30), 1.0)
  return delta_BxD * scale_B[:, None]
