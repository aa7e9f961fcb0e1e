"""Target optimisation: the hidden state at which the model predicts the new object.

Edits are independent: the loss is written for one and vmapped; the optimiser, the stop rules and
the trace act on [B, ...] outside. Edits occupy slots: one that stops makes room for another.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax.sharding import Mesh

from jedit.editing.blocks import Block, RowBatch
from jedit.editing.loss import Fixed, Terms, loss
from jedit.editing.objective import Number
from jedit.editing.problem import Problem
from jedit.editing.window import (
  HEADS,
  AddWhere,
  Window,
  backward,
  cut_window,
  forward,
  window_view,
)
from jedit.models import Model
from jedit.models.view import View
from jedit.parallel.mesh import mesh_of, over_rows, place_rows
from jedit.parallel.program import jit

Tree = TypeVar('Tree')

TRACE_COLUMNS = ('loss', 'nll', 'kl', 'decay', 'probability', 'all_top', 'nll_factor')


@struct.dataclass
class State:
  """Progress of the optimisation of each edit of a batch.

  Attributes:
    delta_BxD, moments, nll_factor_B: by δ its value; of the optimiser; present weight.
    joint_BxD: by δ, the value of its place on the bare prompt at the last evaluation, with every
      δ in the network.
    fixed: of the first evaluation, [B, ...].
    is_done_B, num_evals_B: which have stopped, and evaluations so far.
    trace_BxEx7: `TRACE_COLUMNS` of every evaluation, NaN behind an edit's last.
  """

  delta_BxD: dict[str, jax.Array]
  joint_BxD: dict[str, jax.Array]
  moments: Any
  nll_factor_B: jax.Array
  fixed: Fixed
  is_done_B: jax.Array
  num_evals_B: jax.Array
  trace_BxEx7: jax.Array


@struct.dataclass
class Slots:
  """Edits in progress, one per slot; every array has B slots in front.

  Attributes:
    rows, window, state: of the edits.
  """

  rows: RowBatch
  window: Window
  state: State


@struct.dataclass
class Reading:
  """Losses of an evaluation, [B], their terms, and what stays fixed from the first one on."""

  loss_B: jax.Array
  terms: Terms
  fixed: Fixed


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
  rows, mesh, config = place_rows(model, rows), mesh_of(model), model.config
  window = cut_window(model, problem, rows, window=block.window, past=block.past)
  state = _start(problem, len(rows.kl_start_B), config.width, config.vocab_size)
  if slots is None:
    slots = _free_slots(Slots(rows, window, state), size=block.size, mesh=mesh)
  # Padding goes to a slot beyond the last and is dropped.
  at_R = np.full(len(rows.kl_start_B), block.size, np.int32)
  at_R[: len(at)] = at
  past = {  # layer by layer, through one small program
    layer: _put(slots.window.past[layer], new, at_R, split=HEADS, mesh=mesh)
    for layer, new in window.past.items()
  }
  others = slots.rows, slots.window.hidden_BxMxD, slots.state
  rows, hidden_BxMxD, state = _put(others, (rows, window.hidden_BxMxD, state), at_R, mesh=mesh)
  return Slots(rows, Window(hidden_BxMxD, past), state)


@functools.partial(jit, static_argnames=('num_edits', 'width', 'vocab_size'))
def _start(problem: Problem, num_edits: int, width: int, vocab_size: int) -> State:
  objective = problem.objective
  zero_BxD = {placed.name: jnp.zeros((num_edits, width), jnp.float32) for placed in problem.deltas}
  no_B, width_of_trace = jnp.zeros((num_edits,), bool), len(TRACE_COLUMNS)
  return State(
    delta_BxD=zero_BxD,
    joint_BxD=zero_BxD,
    moments=jax.vmap(objective.optimizer(objective.learning_rate).init)(zero_BxD),
    nll_factor_B=jnp.broadcast_to(objective.nll_factor, (num_edits,)),
    fixed=Fixed(~no_B, jnp.zeros((num_edits, vocab_size), jnp.float32), zero_BxD),
    is_done_B=no_B,
    num_evals_B=jnp.zeros((num_edits,), jnp.int32),
    trace_BxEx7=jnp.full((num_edits, objective.num_steps, width_of_trace), jnp.nan, jnp.float32),
  )


@functools.partial(jit, static_argnames=('size', 'mesh'))
def _free_slots(like: Slots, *, size: int, mesh: Mesh | None) -> Slots:
  slots = jax.tree.map(lambda x: jnp.zeros((size, *x.shape[1:]), x.dtype), like)
  state = dataclasses.replace(slots.state, is_done_B=jnp.ones((size,), bool))
  slots = over_rows(mesh, dataclasses.replace(slots, state=state))
  past = over_rows(mesh, slots.window.past, HEADS)
  return dataclasses.replace(slots, window=dataclasses.replace(slots.window, past=past))


@functools.partial(jit, static_argnames=('mesh', 'split'), donate_argnames='old')
def _put(
  old: Tree, new: Tree, at_R: jax.Array, *, mesh: Mesh | None, split: int | None = None
) -> Tree:
  """Arrays of all slots with those of entering edits at theirs; `split` as of `over_rows`."""
  put = jax.tree.map(lambda x, y: x.at[at_R].set(y, mode='drop'), old, new)
  return over_rows(mesh, put, split)


def run_steps(model: Model, problem: Problem, slots: Slots, block: Block, count: int) -> Slots:
  """Runs `count` evaluations, each followed by an optimiser step, without waiting for them."""
  mesh, tokens = mesh_of(model), problem.tokens
  view, hits = window_view(slots.rows, model.config, block.window, block.past, tokens, mesh)
  blocks = {
    layer: model.block(layer) for layer in range(problem.first_layer, model.config.num_layers)
  }
  top, state = model.top(), slots.state
  for _ in range(count):
    evaluation = _evaluate(blocks, top, problem, slots, state, view, hits, mesh)
    state = _step(problem, state, *evaluation)
  return dataclasses.replace(slots, state=state)


def _evaluate(
  blocks: Mapping[int, Model],
  top: Model,
  problem: Problem,
  slots: Slots,
  state: State,
  view: View,
  hits: Mapping[str, jax.Array],
  mesh: Mesh | None,
) -> tuple[Reading, dict[str, list[jax.Array]], dict[str, jax.Array]]:
  """Forward and backward pass, block by block.

  Returns:
    What the head reads; by δ, parts of its gradient; by δ, the value of its place.
  """
  placed_in = {
    layer: [placed for placed in problem.deltas if placed.layer == layer] for layer in blocks
  }
  added = {
    layer: {
      placed.delta.place: AddWhere(hits[placed.token], state.delta_BxD[placed.name])
      for placed in deltas
    }
    for layer, deltas in placed_in.items()
  }
  hidden_BxMxD, past = slots.window.hidden_BxMxD, slots.window.past
  inputs, recorded = {}, {}
  joint_BxD: dict[str, jax.Array] = {}
  for layer, block in blocks.items():
    inputs[layer] = hidden_BxMxD
    hidden_BxMxD, recorded[layer], values = forward(
      block, hidden_BxMxD, view, past[layer], added[layer], mesh=mesh
    )
    joint_BxD |= {placed.name: values[placed.delta.place] for placed in placed_in[layer]}
  reading, grad_BxMxD, direct_BxD = _read(
    top, problem, slots.rows, state, hidden_BxMxD, joint_BxD, mesh=mesh
  )
  grad_BxD = {name: [part] for name, part in direct_BxD.items()}
  for layer in sorted(blocks, reverse=True):
    grad_BxMxD, found = backward(
      blocks[layer],
      inputs.pop(layer),
      view,
      past[layer],
      added[layer],
      recorded.pop(layer),
      grad_BxMxD,
      is_lowest=layer == problem.first_layer,
      mesh=mesh,
    )
    for placed in placed_in[layer]:
      grad_BxD[placed.name].append(found[placed.delta.place])
  return reading, grad_BxD, joint_BxD


@functools.partial(jit, static_argnames='mesh')
def _read(
  top: Model,
  problem: Problem,
  rows: RowBatch,
  state: State,
  hidden_BxMxD: jax.Array,
  joint_BxD: dict[str, jax.Array],
  *,
  mesh: Mesh | None,
) -> tuple[Reading, jax.Array, dict[str, jax.Array]]:
  """Losses with their terms; their gradients with respect to hidden states and, directly, to δ."""
  axes = (0, 0, None, None, 0, 0, 0, 0)
  grad = jax.vmap(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), in_axes=axes)
  (loss_B, (terms, fixed)), (grad_BxMxD, grad_BxD) = grad(
    hidden_BxMxD, state.delta_BxD, top, problem, rows, state.fixed, joint_BxD, state.nll_factor_B
  )
  return over_rows(mesh, (Reading(loss_B, terms, fixed), grad_BxMxD, grad_BxD))


@functools.partial(jit, donate_argnames='state')
def _step(
  problem: Problem,
  state: State,
  reading: Reading,
  grad_BxD: dict[str, list[jax.Array]],
  joint_BxD: dict[str, jax.Array],
) -> State:
  """One optimiser step for the edits that do not stop at this evaluation.

  Args:
    problem: the deltas and their objective.
    state: before the step.
    reading, grad_BxD, joint_BxD: of `_evaluate`.
  """
  objective, loss_B = problem.objective, reading.loss_B
  terms, fixed = reading.terms, reading.fixed
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

  stop_loss, stop_probability = objective.stop_loss, objective.stop_probability
  assert stop_loss is not None and stop_probability is not None  # replaced when it was made
  stops_B = state.num_evals_B + 1 >= objective.num_steps
  stops_B = stops_B | (loss_B < stop_loss)
  stops_B = stops_B | (terms.probability >= stop_probability)
  nll_factor_B = state.nll_factor_B
  if objective.nll_switch:
    low, full = 0.1 * objective.nll_factor, objective.nll_factor
    nll_factor_B = jnp.where(terms.is_all_top, low, full)
    stops_B = stops_B | (terms.is_all_top & (terms.kl <= 0.01))

  with jax.numpy_dtype_promotion('standard'):  # optax raises a float to an integer count
    optimizer = objective.optimizer(objective.learning_rate)
    summed_BxD = {name: sum(parts) for name, parts in grad_BxD.items()}
    update_BxD, moments = jax.vmap(optimizer.update)(summed_BxD, state.moments)
  moved = optax.apply_updates(state.delta_BxD, update_BxD)
  moved = {
    placed.name: _clip(moved[placed.name], fixed.init_D[placed.name], placed.delta.clip_factor)
    for placed in problem.deltas
  }
  stays_B = state.is_done_B | stops_B

  def keep(old, new):
    return jnp.where(stays_B.reshape((-1,) + (1,) * (old.ndim - 1)), old, new)

  return State(
    delta_BxD=jax.tree.map(keep, state.delta_BxD, moved),
    joint_BxD=joint_BxD,
    moments=jax.tree.map(keep, state.moments, moments),
    nll_factor_B=jnp.where(stays_B, state.nll_factor_B, nll_factor_B),
    is_done_B=stays_B,
    fixed=fixed,
    num_evals_B=state.num_evals_B + (~state.is_done_B).astype(jnp.int32),
    trace_BxEx7=trace_BxEx7,
  )


def _clip(delta_BxD: jax.Array, init_BxD: jax.Array, factor: Number) -> jax.Array:
  """Scales δ down to a norm of factor · ‖v₀‖ if it is longer; Adam's moments are left alone."""
  norm_B = jnp.linalg.norm(delta_BxD, axis=-1)
  bound_B = factor * jnp.linalg.norm(init_BxD, axis=-1)
  scale_B = jnp.where(norm_B > bound_B, bound_B / jnp.maximum(norm_B, 1e-30), 1.0)
  return delta_BxD * scale_B[:, None]
