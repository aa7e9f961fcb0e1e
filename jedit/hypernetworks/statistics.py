"""Running normalisation of the rows that the nets read."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jedit.hypernetworks.rows import Rows
from jedit.hypernetworks.settings import MEND, Plan, Settings
from jedit.hypernetworks.texts import Array
from jedit.types import Kernel

# Added to the standard deviation; MALMEN adds it to the count as well.
_STD_EPS = {'mend': 1e-7, 'malmen': 2.0**-23}


@struct.dataclass
class Statistics:
  """Running mean and sum of squared deviations of the rows of a net.

  Attributes:
    count: number of rows, int32.
    mean_C: mean.
    square_C: sum of squared deviations from it.
  """

  count: Array
  mean_C: Array
  square_C: Array

  @classmethod
  def empty(cls, size: int, dtype: Any = jnp.float32) -> 'Statistics':
    return cls(jnp.zeros((), jnp.int32), jnp.zeros(size, dtype), jnp.zeros(size, dtype))

  def push(self, row_RxC: jax.Array, exists_R: jax.Array, form: str) -> 'Statistics':
    """With the rows that exist, all at once (Chan et al.): equal to Welford's up to rounding.

    Args:
      row_RxC: rows.
      exists_R: which of them count.
      form: 'exact', or 'released' for MALMEN's sum: b times the unbiased variance of b rows.
    """
    dtype = self.mean_C.dtype
    added = exists_R.sum(dtype=jnp.int32)
    b, n = added.astype(dtype), self.count.astype(dtype)
    one = jnp.ones((), dtype)
    weight_Rx1 = exists_R[:, None].astype(dtype)
    mean_C = (weight_Rx1 * row_RxC).sum(0) / jnp.maximum(b, one)
    square_C = (weight_Rx1 * jnp.square(row_RxC - mean_C[None])).sum(0)
    if form == 'released':
      square_C = square_C * (b / (b - one))  # a single row gives nan, which is refused
    total = jnp.maximum(n + b, one)
    gap_C = mean_C - self.mean_C
    new = Statistics(
      self.count + added,
      self.mean_C + gap_C * (b / total),
      self.square_C + square_C + jnp.square(gap_C) * (n * b / total),
    )
    return jax.tree.map(lambda x, y: jnp.where(added > 0, x, y), new, self)

  def normalise(self, row: jax.Array, name: str) -> jax.Array:
    """Rows [..., C] less the mean, divided by the standard deviation; of the method `name`."""
    eps = jnp.asarray(_STD_EPS[name], self.mean_C.dtype)
    freedom = (self.count - 1).astype(eps.dtype) + (eps * 0 if name == MEND else eps)
    std_C = jnp.sqrt(self.square_C / freedom)
    shape = (1,) * (row.ndim - 1) + (-1,)
    return (row - self.mean_C.reshape(shape)) / (std_C.reshape(shape) + eps)


def push_rows(
  statistics: Mapping[str, Statistics],
  rows: Mapping[Kernel, Rows],
  plan: Plan,
  form: str,
  num_groups: int,
) -> tuple[dict[str, Statistics], dict[Kernel, Statistics]]:
  """Adds rows to the running statistics, group by group and in a group kernel by kernel.

  Args:
    statistics: by net.
    rows: of all texts.
    plan: nets of the kernels, in the order of visits.
    form: see `Statistics.push`.
    num_groups: groups of equally many texts: updates of MEND, mini-batches of MALMEN.

  Returns:
    The statistics afterwards, by net, and for every kernel those that it saw, with a leading axis
    of groups: a kernel sees its own rows and those of the kernels before it.
  """

  def grouped(x):
    return x.reshape(num_groups, -1, *x.shape[2:])

  arrays = {
    kernel: (grouped(each.joined_NxPxC), grouped(each.exists_NxP)) for kernel, each in rows.items()
  }

  def push(state, group):
    seen = {}
    for kernel, net, _ in plan:
      state = {**state, net: state[net].push(*group[kernel], form)}
      seen[kernel] = state[net]
    return state, seen

  return jax.lax.scan(push, dict(statistics), arrays)


@functools.partial(jax.jit, static_argnames=('settings', 'plan', 'num_groups'))
def pushed(
  statistics: Mapping[str, Statistics],
  rows: Mapping[Kernel, Rows],
  settings: Settings,
  plan: Plan,
  num_groups: int,
) -> tuple[dict[str, Statistics], dict[Kernel, Statistics]]:
  """`push_rows`, compiled."""
  return push_rows(statistics, rows, plan, settings.statistics, num_groups)


def fixed(
  statistics: Mapping[str, Statistics], plan: Plan, num_groups: int
) -> dict[Kernel, Statistics]:
  """The same statistics for every group and kernel."""

  def spread(x):
    return jnp.broadcast_to(x, (num_groups, *x.shape))

  return {kernel: jax.tree.map(spread, statistics[net]) for kernel, net, _ in plan}
