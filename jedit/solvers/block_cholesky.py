"""Cholesky factors of matrices too large for one device, in blocks of rows under `shard_map`.

XLA's own `cholesky` gathers a sharded matrix on every device. Here block row i lies on device
i mod n, so every device has rows to work on until the end and never holds more than its rows and
one panel, a block wide. Blocks of columns are processed in turn: the diagonal block is broadcast,
each device solves its part of the panel below it, the panel is gathered, and each device subtracts
its products from its own rows. Right-hand sides are solved in the same layout.

Letters: F rows, a multiple of n times the block size P; R = F / n rows of one device.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

AXIS = 'rows'


def padded_size(size: int, num_devices: int, block: int) -> int:
  """Rows of a matrix padded to whole blocks on every device."""
  return -(-size // (num_devices * block)) * num_devices * block


def shard_rows(matrix_FxG: np.ndarray, mesh: Mesh, block: int) -> jax.Array:
  """Shards rows over the devices, block i on device i mod n; no device receives more than its own.

  Args:
    matrix_FxG: whole blocks for every device.
    mesh: one axis, `AXIS`.
    block: rows of a block.
  """
  size = len(matrix_FxG)
  blocks_SxNxPxG = matrix_FxG.reshape(-1, mesh.size, block, matrix_FxG.shape[1])
  rows = size // mesh.size

  def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
    assert index is not None
    return blocks_SxNxPxG[:, (index[0].start or 0) // rows].reshape(rows, -1)

  return jax.make_array_from_callback(matrix_FxG.shape, NamedSharding(mesh, Spec(AXIS)), of_device)


def in_order(rows_FxB: np.ndarray, num_devices: int, block: int) -> np.ndarray:
  """Inverse of the row order of `shard_rows`."""
  blocks_NxSxPxB = rows_FxB.reshape(num_devices, -1, block, rows_FxB.shape[1])
  return blocks_NxSxPxB.swapaxes(0, 1).reshape(rows_FxB.shape)


@functools.partial(jax.jit, static_argnums=(1, 2), donate_argnums=0)
def factorise(matrix_FxF: jax.Array, mesh: Mesh, block: int) -> jax.Array:
  """Lower Cholesky factor, in place and in the same layout.

  Args:
    matrix_FxF: symmetric, from `shard_rows`; donated.
    mesh, block: as in `shard_rows`.

  Returns:
    lower_FxF; entries above the diagonal are arbitrary. Not finite from the first block that is
    not positive definite.
  """
  run = functools.partial(_factorise_rows, block=block)
  return jax.shard_map(run, mesh=mesh, in_specs=Spec(AXIS), out_specs=Spec(AXIS))(matrix_FxF)


@functools.partial(jax.jit, static_argnums=(2, 3))
def solve(lower_FxF: jax.Array, rhs_FxB: jax.Array, mesh: Mesh, block: int) -> jax.Array:
  """(L Lᵀ)⁻¹ rhs.

  Args:
    lower_FxF: from `factorise`.
    rhs_FxB: from `shard_rows`.
    mesh, block: as in `shard_rows`.

  Returns:
    [F, B] in the layout of `rhs_FxB`.
  """
  run = functools.partial(_solve_rows, block=block)
  return jax.shard_map(run, mesh=mesh, in_specs=Spec(AXIS), out_specs=Spec(AXIS))(
    lower_FxF, rhs_FxB
  )


def _factorise_rows(row_RxF, *, block):
  num_devices = jax.lax.axis_size(AXIS)
  for step in range(row_RxF.shape[1] // block):
    first, start, end = _my_first(step, block), step * block, (step + 1) * block
    own_PxP = jax.lax.dynamic_slice_in_dim(row_RxF[:, start:end], first, block)
    lower_PxP = jnp.linalg.cholesky(_from_owner(own_PxP, step), symmetrize_input=False)
    # L of the rows below is A L⁻ᵀ; the device of the diagonal block sets that itself.
    below_QxP = solve_triangular(lower_PxP, row_RxF[first:, start:end].T, lower=True).T
    is_below_Q = _row_numbers(row_RxF.shape[0], block)[first:] >= end
    panel_QxP = jnp.where(is_below_Q[:, None], below_QxP, jnp.zeros_like(below_QxP))
    diagonal_QxP = jnp.zeros_like(below_QxP).at[:block].set(lower_PxP)
    is_owner = jax.lax.axis_index(AXIS) == step % num_devices
    written_QxP = jnp.where(is_owner, panel_QxP + diagonal_QxP, panel_QxP)
    row_RxF = _write(row_RxF, written_QxP, first, start)
    if end < row_RxF.shape[1]:
      gathered_NxQxP = jax.lax.all_gather(panel_QxP, AXIS)
      whole_GxP = _interleave(gathered_NxQxP, block)[end - first * num_devices :]
      row_RxF = _subtract(row_RxF, panel_QxP, whole_GxP, first, end)
  return row_RxF


def _subtract(row_RxF, panel_QxP, whole_GxP, first, start):
  """Subtracts panel · wholeᵀ from rows and columns from `first` and `start` on, block by block.

  At once, the product and the difference would be two copies of the rows.
  """
  block = whole_GxP.shape[1]

  def of_block(number, row_RxF):
    whole_PxP = jax.lax.dynamic_slice_in_dim(whole_GxP, number * block, block)
    product_QxP = jnp.einsum('qp,gp->qg', panel_QxP, whole_PxP, precision='highest')
    at = (first, start + number * block)
    part_QxP = jax.lax.dynamic_slice(row_RxF, at, product_QxP.shape)
    return _write(row_RxF, part_QxP - product_QxP, *at)

  # The compiler must not know the count: it would unroll a loop of one block, in a layout of its
  # own, for which it copies all rows.
  count = jax.lax.optimization_barrier(jnp.asarray(len(whole_GxP) // block))
  return jax.lax.fori_loop(0, count, of_block, row_RxF)


def _solve_rows(row_RxF, rhs_RxB, *, block):
  num_steps = row_RxF.shape[1] // block
  number_R = _row_numbers(row_RxF.shape[0], block)
  num_devices = jax.lax.axis_size(AXIS)

  def own(array, step):
    return array[_my_first(step, block) :][:block]

  def keep(rhs_RxB, step, value_PxB):
    """Writes a block of rows on its device."""
    first = _my_first(step, block)
    is_owner = jax.lax.axis_index(AXIS) == step % num_devices
    value_PxB = jnp.where(is_owner, value_PxB, own(rhs_RxB, step))
    return _write(rhs_RxB, value_PxB, first, 0)

  for step in range(num_steps):  # L y = rhs
    start, end = step * block, (step + 1) * block
    first = _my_first(step, block)
    both = jnp.concatenate([own(row_RxF[:, start:end], step), own(rhs_RxB, step)], axis=1)
    both = _from_owner(both, step)
    value_PxB = solve_triangular(both[:, :block], both[:, block:], lower=True)
    moved_QxB = jnp.einsum('qp,pb->qb', row_RxF[first:, start:end], value_PxB, precision='highest')
    is_below_Q = number_R[first:] >= end
    moved_QxB = jnp.where(is_below_Q[:, None], moved_QxB, 0 * moved_QxB)
    rhs_RxB = _write(rhs_RxB, rhs_RxB[first:] - moved_QxB, first, 0)
    rhs_RxB = keep(rhs_RxB, step, value_PxB)
  for step in reversed(range(num_steps)):  # Lᵀ x = y
    start, end = step * block, (step + 1) * block
    first = _my_first(step, block)
    is_below_Q = number_R[first:] >= end
    found_QxB = jnp.where(is_below_Q[:, None], rhs_RxB[first:], 0 * rhs_RxB[first:])
    moved_PxB = jnp.einsum('qp,qb->pb', row_RxF[first:, start:end], found_QxB, precision='highest')
    both = jnp.concatenate([own(row_RxF[:, start:end], step), own(rhs_RxB, step)], axis=1)
    both = _from_owner(both, step)
    wanted_PxB = both[:, block:] - jax.lax.psum(moved_PxB, AXIS)
    value_PxB = solve_triangular(both[:, :block], wanted_PxB, lower=True, trans='T')
    rhs_RxB = keep(rhs_RxB, step, value_PxB)
  return rhs_RxB


def _write(array: jax.Array, part: jax.Array, *start: Any) -> jax.Array:
  """The array with a part replaced."""
  return jax.lax.dynamic_update_slice(array, part, start)


def _my_first(step: int, block: int) -> int:
  """First of a device's rows in block `step` or after; on some devices, of the block before it."""
  return step // jax.lax.axis_size(AXIS) * block


def _from_owner(value: jax.Array, step: int) -> jax.Array:
  """Broadcasts the value on the device that owns block row `step`."""
  is_owner = jax.lax.axis_index(AXIS) == step % jax.lax.axis_size(AXIS)
  return jax.lax.psum(jnp.where(is_owner, value, jnp.zeros_like(value)), AXIS)


def _row_numbers(num_rows: int, block: int) -> jax.Array:
  """Row numbers, in the whole matrix, of a device's rows."""
  slot_R, within_R = np.divmod(np.arange(num_rows, dtype=np.int32), block)
  first_R = slot_R * jax.lax.axis_size(AXIS) * block + within_R
  return jnp.asarray(first_R) + jax.lax.axis_index(AXIS) * block


def _interleave(rows_NxQxP: jax.Array, block: int) -> jax.Array:
  """Rows of all devices in the order of the whole matrix."""
  num_devices, num_rows, width = rows_NxQxP.shape
  blocks_NxSxRxP = rows_NxQxP.reshape(num_devices, num_rows // block, block, width)
  return blocks_NxSxRxP.swapaxes(0, 1).reshape(num_devices * num_rows, width)
