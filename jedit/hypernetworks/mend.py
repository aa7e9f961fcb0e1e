"""MEND (arXiv:2110.11309): each update is a sum of transformed outer products of its rows."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jedit.hypernetworks.net import Params, transform
from jedit.hypernetworks.rows import Losses, Rows, captured, divergence, edited_nll
from jedit.hypernetworks.settings import Plan, Settings
from jedit.hypernetworks.statistics import Statistics, fixed, push_rows
from jedit.hypernetworks.texts import Texts
from jedit.models import Model
from jedit.models.sites import Change
from jedit.types import Kernel


def changes(
  params: Params,
  statistics: Mapping[Kernel, Statistics],
  rows: Mapping[Kernel, Rows],
  settings: Settings,
  plan: Plan,
) -> dict[Kernel, Change]:
  """Updates of B groups of rows: W' = W + rate · x̃ᵀ δ̃.

  Args:
    params: nets.
    statistics: that normalise the rows, with a leading axis B.
    rows: of B · n texts.
    settings: of the method.
    plan: nets of the kernels.

  Returns:
    Factors with a leading axis B; the rank is the number of rows of a group.
  """
  sign = 1.0 if settings.sign == 'released' else -1.0
  found = {}
  for kernel, net, mode in plan:
    num_groups = statistics[kernel].count.shape[0]
    joined_BxRxC = rows[kernel].joined_NxPxC
    joined_BxRxC = joined_BxRxC.reshape(num_groups, -1, joined_BxRxC.shape[-1])
    exists_BxR = rows[kernel].exists_NxP.reshape(num_groups, -1)

    def one(statistics, row_RxC, exists_R, net=params[net], mode=mode):
      # Rows of zeros have no derivative by a nan: they are replaced before the net.
      row_RxC = jnp.where(exists_R[:, None], row_RxC, statistics.mean_C[None])
      row_RxC = transform(net, mode, statistics.normalise(row_RxC, settings.name), settings.name)
      return jnp.where(exists_R[:, None], row_RxC, jnp.zeros_like(row_RxC))

    row_BxRxC = jax.vmap(one)(statistics[kernel], joined_BxRxC, exists_BxR)
    size = rows[kernel].key_NxPxI.shape[-1]
    rate = params[net]['rate'][mode] * sign
    left_BxIxR = jnp.swapaxes(row_BxRxC[..., :size], 1, 2) * rate
    found[kernel] = Change(left_BxIxR, row_BxRxC[..., size:])
  return found


@functools.partial(jax.jit, static_argnames=('settings', 'plan'))
def changed(
  params: Params,
  statistics: Mapping[str, Statistics],
  rows: Mapping[Kernel, Rows],
  settings: Settings,
  plan: Plan,
) -> dict[Kernel, Change]:
  """`changes` of a single group with the same statistics for all its rows, compiled."""
  return changes(params, fixed(statistics, plan, 1), rows, settings, plan)


def losses(
  model: Model,
  params: Params,
  statistics: Mapping[Kernel, Statistics],
  rows: Mapping[Kernel, Rows],
  outer: Texts,
  locality: Texts,
  settings: Settings,
  plan: Plan,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  """The mean over groups of c_edit · NLL(paraphrases) + c_loc · KL(unrelated prompts).

  Every group has its own update, and no edited kernel is formed.
  """
  made = changes(params, statistics, rows, settings, plan)
  num_groups = next(iter(made.values())).left_IxR.shape[0]

  def grouped(texts):
    return jax.tree.map(lambda x: jnp.asarray(x).reshape(num_groups, -1, *x.shape[1:]), texts)

  def one(change, outer, locality):
    return edited_nll(model, change, outer), divergence(model, change, locality)

  edit_BxN, locality_BxN = jax.vmap(one)(made, grouped(outer), grouped(locality))
  total = settings.edit_weight * edit_BxN.sum() + settings.locality_weight * locality_BxN.sum()
  return total / num_groups, (edit_BxN.reshape(-1), locality_BxN.reshape(-1))


@functools.partial(jax.jit, static_argnames=('settings', 'plan', 'num_groups', 'trains'))
def step(
  model: Model,
  params: Params,
  statistics: Mapping[str, Statistics],
  inner: Texts,
  outer: Texts,
  locality: Texts,
  settings: Settings,
  plan: Plan,
  num_groups: int,
  trains: bool = True,
) -> tuple[Any, dict[str, Statistics], Losses]:
  """Gradient, statistics and losses of B updates of n edits each.

  Args:
    model: the base model.
    params: nets.
    statistics: by net.
    inner: the edits, B · n texts in the order of groups.
    outer: a paraphrase of each.
    locality: an unrelated prompt with its answer for each.
    settings: of the method.
    plan: nets of the kernels.
    num_groups: B.
    trains: moves the statistics and takes the gradient; without, the losses alone.
  """
  inner_N, rows = captured(model, inner, settings, plan)
  if trains:
    moved, seen = push_rows(statistics, rows, plan, settings.statistics, num_groups)
  else:
    moved, seen = dict(statistics), fixed(statistics, plan, num_groups)
  num_rows = jnp.min(jnp.stack([each.count.min() for each in seen.values()]))

  def total(params):
    return losses(model, params, seen, rows, outer, locality, settings, plan)

  if not trains:
    value, (edit_N, locality_N) = total(params)
    return None, moved, Losses(inner_N, edit_N, locality_N, value, num_rows)
  (value, (edit_N, locality_N)), gradient = jax.value_and_grad(total, has_aux=True)(params)
  return gradient, moved, Losses(inner_N, edit_N, locality_N, value, num_rows)
