"""Cholesky factors in blocks of rows, over one device or several.

XLA unrolls its own `cholesky` and triangular solves for a TPU, which takes minutes to compile for
every size, and gathers a sharded matrix on every device. Here a factorisation and a solve are loops
over panels, P columns wide, of one shape each: their programs do not grow with the matrix.

Block row i lies on device i mod n, so every device has rows to work on until the end and holds its
rows and a panel. In each step the diagonal block is broadcast and inverted, each device multiplies
its part of the panel below it, the panel is gathered, and each device subtracts products with it
from its own rows, tile by tile, below the diagonal alone.

Letters: G rows, F padded to whole blocks on every device; R = G / n rows of one device; P rows of a
block; T rows and columns of a tile.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as Spec

AXIS = 'rows'
# Rows of a block, and blocks of a tile at most. XLA unrolls the factor of a diagonal block in
# 128 rows; a device needs at least four blocks to share the work.
_BLOCK, _MAX_TILE, _MIN_BLOCKS = 512, 4, 4


@dataclasses.dataclass(frozen=True)
class Layout:
  """Rows of a square matrix over devices.

  Attributes:
    size: F, before padding.
    block: P.
    mesh: one axis, `AXIS`.
  """

  size: int
  block: int
  mesh: Mesh

  @classmethod
  def of(cls, size: int, devices: Sequence[jax.Device]) -> 'Layout':
    block = min(_BLOCK, -(-size // (_MIN_BLOCKS * len(devices))))
    return cls(size, block, Mesh(np.array(devices), (AXIS,)))

  @property
  def padded(self) -> int:
    """G."""
    return self.mesh.size * self.rows

  @property
  def rows(self) -> int:
    """R."""
    return -(-self.size // (self.mesh.size * self.block)) * self.block

  @property
  def tile(self) -> int:
    """T: as many blocks as divide a device's rows."""
    return self.block * math.gcd(self.rows // self.block, _MAX_TILE)

  @property
  def sharding(self) -> NamedSharding:
    return NamedSharding(self.mesh, Spec(AXIS))

  def shard(self, rows_FxB: np.ndarray) -> jax.Array:
    """Shards rows, padded with zeros; no device receives more than its own."""
    rows_GxB = np.pad(rows_FxB, ((0, self.padded - len(rows_FxB)), (0, 0)))
    blocks_SxNxPxB = rows_GxB.reshape(-1, self.mesh.size, self.block, rows_FxB.shape[1])

    def of_device(index: tuple[slice, ...] | None) -> np.ndarray:
      assert index is not None
      number = (index[0].start or 0) // self.rows
      return blocks_SxNxPxB[:, number].reshape(self.rows, -1)

    return jax.make_array_from_callback(rows_GxB.shape, self.sharding, of_device)

  def in_order(self, rows_GxB: np.ndarray) -> np.ndarray:
    """Inverse of `shard`."""
    blocks_NxSxPxB = rows_GxB.reshape(self.mesh.size, -1, self.block, rows_GxB.shape[1])
    return blocks_NxSxPxB.swapaxes(0, 1).reshape(rows_GxB.shape)[: self.size]

  def run(self, function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Runs a function of a device's rows on every device."""
    specs = tuple(Spec(AXIS) for _ in arrays)
    run = functools.partial(function, layout=self)
    return jax.shard_map(run, mesh=self.mesh, in_specs=specs, out_specs=Spec(AXIS))(*arrays)


@functools.partial(jax.jit, static_argnums=1, donate_argnums=0)
def factorise(matrix_GxG: jax.Array, layout: Layout) -> jax.Array:
  """Lower Cholesky factor, in place and in the same layout.

  Args:
    matrix_GxG: symmetric, as of `Layout.shard`, padded with the identity; donated.
    layout: of its rows.

  Returns:
    root_GxG: L with the inverse of each diagonal block in its place; blocks above are arbitrary.
    Not finite from the first block that is not positive definite.
  """
  return layout.run(_factorise_rows, matrix_GxG)


@functools.partial(jax.jit, static_argnums=2)
def solve(root_GxG: jax.Array, rhs_GxB: jax.Array, layout: Layout) -> jax.Array:
  """(L Lᵀ)⁻¹ rhs, in the layout of rhs.

  Args:
    root_GxG: from `factorise`.
    rhs_GxB: from `Layout.shard`.
    layout: of both.
  """
  return layout.run(_solve_rows, root_GxG, rhs_GxB)


def _factorise_rows(row_RxG, *, layout):
  block, tile, number_R = layout.block, layout.tile, _row_numbers(layout)

  def step(number, row_RxG):
    column_RxP = _column(row_RxG, number, block)
    lower_PxP = jnp.linalg.cholesky(
      _from_owner(_own(column_RxP, number, layout), number), symmetrize_input=False
    )
    inverse_PxP = solve_triangular(lower_PxP, jnp.eye(block, dtype=row_RxG.dtype), lower=True)
    is_below_Rx1 = (number_R >= (number + 1) * block)[:, None]
    below_RxP = _product('rp,qp->rq', column_RxP, inverse_PxP)  # L = A L⁻ᵀ
    written_RxP = jnp.where(is_below_Rx1, below_RxP, column_RxP)
    written_RxP = _write_own(written_RxP, inverse_PxP, number, layout)
    row_RxG = jax.lax.dynamic_update_slice_in_dim(row_RxG, written_RxP, number * block, 1)
    panel_RxP = jnp.where(is_below_Rx1, below_RxP, jnp.zeros_like(below_RxP))
    whole_GxP = _interleave(jax.lax.all_gather(panel_RxP, AXIS), layout)
    return subtract(number, row_RxG, panel_RxP, whole_GxP)

  def subtract(number, row_RxG, panel_RxP, whole_GxP):
    """Subtracts panel · wholeᵀ from the tiles below the diagonal; both are zero above."""

    def of_tile(row, column, row_RxG):
      at = (row * tile, column * tile)
      left_TxP = jax.lax.dynamic_slice_in_dim(panel_RxP, at[0], tile)
      right_TxP = jax.lax.dynamic_slice_in_dim(whole_GxP, at[1], tile)
      part_TxT = jax.lax.dynamic_slice(row_RxG, at, (tile, tile))
      part_TxT -= _product('rp,cp->rc', left_TxP, right_TxP)
      return jax.lax.dynamic_update_slice(row_RxG, part_TxT, at)

    def of_row(row, row_RxG):
      first, end = (number + 1) * block // tile, (row + 1) * layout.mesh.size
      return _loop(first, end, functools.partial(of_tile, row), row_RxG)

    first = number // layout.mesh.size * block // tile
    return _loop(first, layout.rows // tile, of_row, row_RxG)

  return _loop(0, layout.padded // block, step, row_RxG)


def _solve_rows(row_RxG, rhs_RxB, *, layout):
  block, number_R = layout.block, _row_numbers(layout)
  num_blocks = layout.padded // block

  def panel(number):
    """The inverse of the diagonal block on its device, and L below it."""
    column_RxP = _column(row_RxG, number, block)
    is_below_Rx1 = (number_R >= (number + 1) * block)[:, None]
    below_RxP = jnp.where(is_below_Rx1, column_RxP, jnp.zeros_like(column_RxP))
    return _own(column_RxP, number, layout), below_RxP

  def down(number, rhs_RxB):  # L y = rhs
    inverse_PxP, below_RxP = panel(number)
    value_PxB = _product('pq,qb->pb', inverse_PxP, _own(rhs_RxB, number, layout))
    value_PxB = _from_owner(value_PxB, number)
    rhs_RxB -= _product('rp,pb->rb', below_RxP, value_PxB)
    return _write_own(rhs_RxB, value_PxB, number, layout)

  def up(step, rhs_RxB):  # Lᵀ x = y
    number = num_blocks - 1 - step
    inverse_PxP, below_RxP = panel(number)
    moved_PxB = jax.lax.psum(_product('rp,rb->pb', below_RxP, rhs_RxB), AXIS)
    wanted_PxB = _own(rhs_RxB, number, layout) - moved_PxB
    value_PxB = _product('pq,pb->qb', inverse_PxP, wanted_PxB)
    return _write_own(rhs_RxB, value_PxB, number, layout)

  return _loop(0, num_blocks, up, _loop(0, num_blocks, down, rhs_RxB))


def _loop(first, end, step, value):
  """`fori_loop` that counts in int32, also where float64 makes int64 the default."""
  return jax.lax.fori_loop(jnp.int32(first), jnp.int32(end), step, value)


def _product(spec: str, left: jax.Array, right: jax.Array) -> jax.Array:
  """In full precision on every device."""
  return jnp.einsum(spec, left, right, precision='highest')


def _column(row_RxG: jax.Array, number: jax.Array, block: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(row_RxG, number * block, block, axis=1)


def _own(array: jax.Array, number: jax.Array, layout: Layout) -> jax.Array:
  """Block row `number` on its device, and on the others the one that they hold in its place."""
  first = number // layout.mesh.size * layout.block
  return jax.lax.dynamic_slice_in_dim(array, first, layout.block)


def _write_own(array: jax.Array, value: jax.Array, number: jax.Array, layout: Layout) -> jax.Array:
  """The array with block row `number` replaced on its device."""
  first = number // layout.mesh.size * layout.block
  value = jnp.where(_is_owner(number), value, _own(array, number, layout))
  return jax.lax.dynamic_update_slice_in_dim(array, value, first, 0)


def _from_owner(value: jax.Array, number: jax.Array) -> jax.Array:
  """Broadcasts the value on the device that owns block row `number`."""
  return jax.lax.psum(jnp.where(_is_owner(number), value, jnp.zeros_like(value)), AXIS)


def _is_owner(number: jax.Array) -> jax.Array:
  return jax.lax.axis_index(AXIS) == number % jax.lax.axis_size(AXIS)


def _row_numbers(layout: Layout) -> jax.Array:
  """Row numbers, in the whole matrix, of a device's rows."""
  slot_R, within_R = np.divmod(np.arange(layout.rows, dtype=np.int32), layout.block)
  first_R = slot_R * layout.mesh.size * layout.block + within_R
  return jnp.asarray(first_R) + jax.lax.axis_index(AXIS) * layout.block


def _interleave(rows_NxRxP: jax.Array, layout: Layout) -> jax.Array:
  """Rows of all devices in the order of the whole matrix."""
  blocks_NxSxPxP = rows_NxRxP.reshape(layout.mesh.size, -1, layout.block, layout.block)
  return blocks_NxSxPxP.swapaxes(0, 1).reshape(layout.padded, layout.block)
