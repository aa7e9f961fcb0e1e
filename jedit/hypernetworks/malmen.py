"""MALMEN (arXiv:2311.04661): shifts of all rows, aggregated by least squares.

The meta-gradient goes through the least squares by hand (`ridge`), so that a step is three parts:
rows of all edits, the meta loss as a function of the updates, and the net as a function of the
shifts. No edited kernel is formed as long as there are fewer rows than dimensions of a key.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jedit.hypernetworks.net import Params, transform
from jedit.hypernetworks.ridge import Ridge, Solution, as_change
from jedit.hypernetworks.rows import Losses, Rows, captured, divergence, edited_nll
from jedit.hypernetworks.settings import Plan, Settings
from jedit.hypernetworks.statistics import Statistics, pushed
from jedit.hypernetworks.texts import Texts
from jedit.models import Model
from jedit.models.precision import wider
from jedit.models.sites import Change
from jedit.parallel.mesh import fetch, place_rows
from jedit.parallel.shapes import bucket
from jedit.types import Kernel, UserError


def shifts(
  params: Params,
  statistics: Mapping[str, Statistics],
  rows: Mapping[Kernel, Rows],
  settings: Settings,
  plan: Plan,
) -> dict[Kernel, jax.Array]:
  """D = -rate · (k · k̃) g̃ by kernel [R, O]: by how much the output should change at each row."""
  found: dict[Kernel, jax.Array] = {}
  for net in dict.fromkeys(net for _, net, _ in plan):  # the kernels of a net at once
    kernels = [kernel for kernel, name, _ in plan if name == net]
    mode_M = np.array([mode for _, name, mode in plan if name == net])
    size = rows[kernels[0]].key_NxPxI.shape[-1]
    exists_MxRx1 = jnp.stack([rows[kernel].exists_NxP.reshape(-1, 1) for kernel in kernels])
    joined_MxRxC = jnp.stack([rows[kernel].joined_RxC for kernel in kernels])
    joined_MxRxC = jnp.where(exists_MxRx1, joined_MxRxC, statistics[net].mean_C[None, None])
    row_MxRxC = statistics[net].normalise(joined_MxRxC, settings.name)
    row_MxRxC = transform(params[net], mode_M, row_MxRxC, settings.name)
    product_MxRx1 = (joined_MxRxC[..., :size] * row_MxRxC[..., :size]).sum(-1, keepdims=True)
    rate_Mx1x1 = params[net]['rate'][mode_M][:, None, None]
    shift_MxRxO = -rate_Mx1x1 * product_MxRx1 * row_MxRxC[..., size:]
    shift_MxRxO = jnp.where(exists_MxRx1, shift_MxRxO, jnp.zeros_like(shift_MxRxO))
    found.update(zip(kernels, shift_MxRxO, strict=True))
  return found


shifted = jax.jit(shifts, static_argnames=('settings', 'plan'))


@functools.partial(jax.jit, static_argnames=('settings', 'plan'))
def _differentiated(
  params: Params,
  statistics: Mapping[str, Statistics],
  rows: Mapping[Kernel, Rows],
  settings: Settings,
  plan: Plan,
) -> tuple[dict[Kernel, jax.Array], Any]:
  """`shifts`, and the map from a gradient by them to that of the nets."""
  return jax.vjp(lambda params: shifts(params, statistics, rows, settings, plan), params)


@jax.jit
def _pull_back(pull: Any, cotangents: dict[Kernel, jax.Array]) -> Any:
  """Gradient of the nets for that of the shifts."""
  return pull(cotangents)[0]


@functools.partial(jax.jit, static_argnames=('settings', 'trains'))
def _meta(
  model: Model,
  changes: Mapping[Kernel, Change],
  outer: Texts,
  locality: Texts,
  settings: Settings,
  trains: bool,
) -> tuple[Any, jax.Array, jax.Array]:
  """Gradient of the meta loss by the right factors (or dense updates), and the shares of texts."""

  def total(moving):
    made = {kernel: _with(changes[kernel], value) for kernel, value in moving.items()}
    edit_N = edited_nll(model, made, outer)
    locality_N = divergence(model, made, locality)
    value = settings.edit_weight * edit_N.sum() + settings.locality_weight * locality_N.sum()
    return value, (edit_N, locality_N)

  moving = {
    kernel: change.left_IxR if change.right_RxO is None else change.right_RxO
    for kernel, change in changes.items()
  }
  if not trains:
    _, (edit_N, locality_N) = total(moving)
    return None, edit_N, locality_N
  grad, (edit_N, locality_N) = jax.grad(total, has_aux=True)(moving)
  return grad, edit_N, locality_N


def _with(change: Change, moving: jax.Array) -> Change:
  return Change(moving) if change.right_RxO is None else Change(change.left_IxR, moving)


def joined(parts: Sequence[Mapping[Kernel, Rows]]) -> dict[Kernel, Rows]:
  """Rows of several chunks of texts."""
  if len(parts) == 1:
    return dict(parts[0])
  return {
    kernel: Rows(*map(jnp.concatenate, zip(*(p[kernel] for p in parts)))) for kernel in parts[0]
  }


def existing(rows: Mapping[Kernel, Rows]) -> dict[Kernel, Rows]:
  """The rows that count, on the host, filled up to a size that other steps share."""
  found = {}
  for kernel, each in rows.items():
    key_NxPxI, grad_NxPxO, exists_NxP = fetch(tuple(each))
    count = int(exists_NxP.sum())
    filled = (0, bucket(count) - count), (0, 0)
    key_RxI, grad_RxO = (np.pad(x[exists_NxP], filled) for x in (key_NxPxI, grad_NxPxO))
    exists_R = np.arange(len(key_RxI)) < count
    found[kernel] = Rows(key_RxI[:, None], grad_RxO[:, None], exists_R[:, None])
  return found


def solve(
  kernel: Kernel, key_RxI: np.ndarray, shift_RxO: np.ndarray, log_ridge: float
) -> tuple[Ridge, Solution]:
  """The system of a kernel and its update.

  Raises:
    UserError: names the kernel if its system is singular or not finite.
  """
  ridge = Ridge(key_RxI, float(np.exp(np.float64(log_ridge))))
  is_finite = np.isfinite(key_RxI).all() and np.isfinite(shift_RxO).all()
  if not (is_finite and ridge.is_definite):
    raise UserError(
      f'The update of {kernel.label} is not finite; lower learning_rate or rate_learning_rate, or '
      'leave out the records of this batch.'
    )
  return ridge, ridge.change(shift_RxO)


def step(
  model: Model,
  params: Params,
  statistics: Mapping[str, Statistics],
  inner: Sequence[Texts],
  outer: Sequence[Texts],
  locality: Sequence[Texts],
  settings: Settings,
  plan: Plan,
  num_batches: int,
  trains: bool = True,
) -> tuple[Any, dict[str, Statistics], Losses]:
  """Gradient, statistics and losses of one update of many edits.

  Args:
    model: the base model.
    params: nets.
    statistics: by net.
    inner: the edits, in chunks of whole mini-batches.
    outer: a paraphrase of each, in chunks.
    locality: an unrelated prompt with its answer for each, in chunks.
    settings: of the method.
    plan: nets of the kernels.
    num_batches: mini-batches of all chunks together.
    trains: moves the statistics and takes the gradient; without, the losses alone.

  Raises:
    UserError: for an update that is not finite; names its kernel.
  """
  parts = [captured(model, texts, settings, plan) for texts in inner]
  inner_N = jnp.concatenate([loss_N for loss_N, _ in parts])
  rows = joined([rows for _, rows in parts])
  if trains:
    statistics = pushed(statistics, rows, settings, plan, num_batches)[0]
  num_rows = jnp.min(jnp.stack([each.count for each in statistics.values()]))
  if not np.isfinite(fetch(inner_N)).all():  # the caller knows the record
    return None, dict(statistics), Losses(inner_N, inner_N, inner_N, inner_N.sum(), num_rows)
  rows = existing(rows)
  shift, pull = _differentiated(params, statistics, place_rows(model, rows), settings, plan)
  shift, solved = fetch(shift), {}
  for kernel, net, mode in plan:
    key_RxI = np.asarray(rows[kernel].key_NxPxI)[:, 0]
    solved[kernel] = solve(kernel, key_RxI, shift[kernel], fetch(params[net]['ridge'])[mode])
  dtype = wider(model.config.dtype, 'float32')
  changes = {kernel: as_change(value, dtype) for kernel, (_, value) in solved.items()}

  grads, edit, local = [], [], []
  for texts, unrelated in zip(outer, locality, strict=True):
    grad, edit_N, locality_N = _meta(model, changes, texts, unrelated, settings, trains)
    grads.append(grad)
    edit.append(edit_N)
    local.append(locality_N)
  edit_N, locality_N = jnp.concatenate(edit), jnp.concatenate(local)
  total = settings.edit_weight * edit_N.sum() + settings.locality_weight * locality_N.sum()
  losses = Losses(inner_N, edit_N, locality_N, total, num_rows)
  if not trains:
    return None, dict(statistics), losses

  cotangents, by_ridge = {}, {}
  for kernel, (ridge, value) in solved.items():
    grad = np.sum([np.asarray(fetch(grad[kernel]), np.float64) for grad in grads], axis=0)
    cotangents[kernel], by_ridge[kernel] = ridge.pull_back(value, grad)
  cotangents = {kernel: each.astype(dtype) for kernel, each in cotangents.items()}
  gradient = dict(_pull_back(pull, cotangents))
  for net in gradient:
    values = [by_ridge[kernel] for kernel, name, _ in plan if name == net]
    gradient[net] = {**gradient[net], 'ridge': np.asarray(values, gradient[net]['ridge'].dtype)}
  return gradient, dict(statistics), losses
