"""Sums of k kᵀ over batches: products of one batch, and float32 sums that lose no digits.

k kᵀ is symmetric, so of its F rows the i-th quarter is computed from column i·F/4 on only: four
panels with 10 of the 16 blocks, which saves three eighths of the work, memory and transfers.

The sum over batches is kept as two float32 matrices, of which the second holds what rounding took
from the first (two-sum; Knuth, TAOCP 2, section 4.2.2): about 48 bits without float64 and without
a transfer per batch.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jedit.models import Model
from jedit.parallel.memory import free_bytes, free_host_bytes
from jedit.parallel.mesh import fetch, over_rows, square_sharding
from jedit.types import UserError
from jedit.units import format_bytes

_NUM_PANELS = 4

Panels = tuple[jax.Array, ...]


def panel_rows(size: int) -> list[slice]:
  """Rows of each panel of a matrix [F, F]; the panel begins at the column of its first row."""
  edges = [size * number // _NUM_PANELS for number in range(_NUM_PANELS + 1)]
  return [slice(start, stop) for start, stop in zip(edges, edges[1:]) if stop > start]


def num_values(size: int) -> int:
  """Numbers in the panels of a matrix [F, F]."""
  return sum((rows.stop - rows.start) * (size - rows.start) for rows in panel_rows(size))


def products_of(
  names: Sequence[str], stop: int, mesh: Mesh | None = None
) -> Callable[..., dict[str, Panels]]:
  """Σ k kᵀ over the tokens of one batch, float32, in panels.

  bfloat16 keys are multiplied as they are, which is exact in float32; float32 keys are not
  shortened.

  Args:
    names: sites of the keys.
    stop: number of blocks to run.
    mesh: of the model's parameters.

  Returns:
    `(model, token_NxT, segment_NxT, position_NxT) -> panels by site`.
  """

  def products(model: Model, token_NxT, segment_NxT, position_NxT):
    _, seen = model(
      token_NxT, stop=stop, taps=names, segment_NxT=segment_NxT, position_NxT=position_NxT
    )
    is_text_NxTx1 = (segment_NxT > 0)[..., None]
    parts = {}
    for name in names:
      key_NxTxF = jnp.where(is_text_NxTx1, seen[name], jnp.zeros_like(seen[name]))
      # Rows over 'data' and whole keys on each device: otherwise every panel gathers its own.
      key_SxF = over_rows(mesh, key_NxTxF.reshape(-1, key_NxTxF.shape[-1]))
      parts[name] = tuple(
        jnp.einsum(
          'sf,sg->fg',
          over_rows(mesh, key_SxF[:, rows]),
          key_SxF[:, rows.start :],
          precision='highest' if key_SxF.dtype == jnp.float32 else None,
          preferred_element_type=jnp.float32,
        )
        for rows in panel_rows(key_SxF.shape[-1])
      )
    return parts

  return products


def shapes_of(parts: Mapping[str, Sequence[Any]], mesh: Mesh | None) -> dict[str, Any]:
  """The sums of such products, with a `jax.ShapeDtypeStruct` for every array.

  Over a mesh every device holds a part of its own, so that no two hold the same.
  """

  def pair(part: Any) -> tuple[Any, Any]:
    sharding = None if mesh is None else square_sharding(mesh, part)
    return (jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=sharding),) * 2

  return {name: tuple(map(pair, panels)) for name, panels in parts.items()}


def adding(products: Callable, mesh: Mesh | None = None) -> jax.stages.Wrapped:
  """The jitted step `(model, sums, *tokens) -> (sums, ran)`; `sums` is donated to it.

  Block on `ran` to wait for a step: its sums are donated to the next one.
  """

  @functools.partial(jax.jit, donate_argnums=1)
  def step(model, sums, token_NxT, segment_NxT, position_NxT):
    def add(pair, part_FxG):
      if mesh is not None:  # each device sums up its part over the rows of all
        part_FxG = jax.lax.with_sharding_constraint(part_FxG, square_sharding(mesh, part_FxG))
      sum_FxG, lost_FxG = pair
      return two_sum(sum_FxG, lost_FxG, part_FxG)

    parts = products(model, token_NxT, segment_NxT, position_NxT)
    new = {name: tuple(map(add, sums[name], panels)) for name, panels in parts.items()}
    return new, jnp.max(segment_NxT)

  return step


def two_sum(
  sum_FxG: jax.Array, lost_FxG: jax.Array, part_FxG: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Adds a part; what rounding takes from the sum goes to `lost`, exactly."""
  new_FxG = sum_FxG + part_FxG
  taken_FxG = new_FxG - sum_FxG
  return new_FxG, lost_FxG + ((sum_FxG - (new_FxG - taken_FxG)) + (part_FxG - taken_FxG))


def mean(panels: Sequence[tuple[jax.Array, jax.Array]], num_tokens: int) -> np.ndarray:
  """C_FxF, float32 and whole in every process, of the panels of a sum over so many tokens."""
  size = panels[0][0].shape[1]
  cov_FxF = np.empty((size, size), np.float32)
  for rows, (sum_FxG, lost_FxG) in zip(panel_rows(size), panels, strict=True):
    wide_FxG = fetch(sum_FxG).astype(np.float64)
    wide_FxG += fetch(lost_FxG)
    wide_FxG /= num_tokens
    cov_FxF[rows, rows.start :] = wide_FxG
    cov_FxF[rows.start :, rows] = wide_FxG.T
  return cov_FxF


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
  """Bytes that a pass for second moments takes besides parameters and activations.

  Attributes:
    num_kernels: number of second moments.
    device: its part of the sums.
    host: the results, and one kernel on its way to disk or to its mean; where the CPU is the
      device, its sums as well.
  """

  num_kernels: int
  device: int
  host: int

  @classmethod
  def of(cls, sizes: Sequence[int], num_devices: int = 1) -> 'MemoryPlan':
    """For kernels with these F, whose sums so many devices share."""
    sums = 8 * sum(map(num_values, sizes))
    results = 4 * sum(size**2 for size in sizes)
    host = results + 16 * max(sizes) ** 2 + (sums if jax.default_backend() == 'cpu' else 0)
    return cls(len(sizes), sums // num_devices, host)

  def check(self) -> None:
    """Raises UserError where the sums do not fit."""
    places: list[tuple[str, int, int | None]] = [('host', self.host, free_host_bytes())]
    device = jax.local_devices()[0]
    if device.platform != 'cpu':
      places.append(('device', self.device, free_bytes(device)))
    for owner, need, free in places:
      if free is not None and need > free:
        raise UserError(
          f'Second moments of {self.num_kernels} kernels need {format_bytes(need)} of {owner} '
          f'memory and {format_bytes(free)} are free; take them of fewer layers at a time, into '
          'one file, or on a machine with more.'
        )

  def __str__(self) -> str:
    return (
      f'{self.num_kernels} kernels take {format_bytes(self.device)} for sums on the device and '
      f'{format_bytes(self.host)} on the host'
    )
