"""Sums of k kᵀ over batches: products of one batch, and float32 sums that lose no digits.

k kᵀ is symmetric, so of its F rows the i-th quarter is computed from column i·F/4 on only: four
panels with 10 of the 16 blocks, which saves three eighths of the work, memory and transfers.

The sum over batches is kept as two float32 matrices, of which the second holds what rounding took
from the first (two-sum; Knuth, TAOCP 2, section 4.2.2): about 48 bits without float64 and without
a transfer per batch.

Where devices share the rows, each has such sums over its own rows. Every `BATCHES_PER_REDUCTION`
batches they are added to the totals, of which no two devices hold the same part: the devices
exchange sums then and not at every batch. The number is fixed, so that the bits do not depend on
when a run is saved; saves follow a reduction.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jedit.models import Model
from jedit.parallel.memory import free_bytes, free_host_bytes
from jedit.parallel.mesh import DATA, MODEL, fetch, over_rows, square_sharding
from jedit.parallel.program import DryRun
from jedit.types import UserError
from jedit.units import format_bytes

BATCHES_PER_REDUCTION = 16
_NUM_PANELS = 4

Panels = tuple[jax.Array, ...]


def panel_rows(size: int) -> list[slice]:
  """Rows of each panel of a matrix [F, F]; the panel begins at the column of its first row."""
  edges = [size * number // _NUM_PANELS for number in range(_NUM_PANELS + 1)]
  return [slice(start, stop) for start, stop in zip(edges, edges[1:]) if stop > start]


def num_values(size: int) -> int:
  """Numbers in the panels of a matrix [F, F]."""
  return sum((rows.stop - rows.start) * (size - rows.start) for rows in panel_rows(size))


def products(
  model: Model,
  token_NxT: jax.Array,
  segment_NxT: jax.Array,
  position_NxT: jax.Array,
  *,
  names: Sequence[str],
  stop: int,
  mesh: Mesh | None = None,
) -> dict[str, Panels]:
  """Σ k kᵀ over the tokens of one batch, float32, in panels.

  bfloat16 keys are multiplied as they are, which is exact in float32; float32 keys are not
  shortened.

  Args:
    model: parameters on one device or over a mesh.
    token_NxT, segment_NxT, position_NxT: as of `PackedBatch`.
    names: sites of the keys.
    stop: number of blocks to run.
    mesh: of the model's parameters.

  Returns:
    By site, panels with one matrix for each of the devices that share the rows, [R, F, G], or
    [F, G] without such.
  """
  num_shards = _num_shards(mesh)

  def panels(key: jax.Array) -> Panels:
    """Of keys [R, S, F], or [S, F]."""
    return tuple(
      jnp.einsum(
        '...sf,...sg->...fg',
        over_rows(mesh, key[..., rows]),
        key[..., rows.start :],
        precision='highest' if key.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
      )
      for rows in panel_rows(key.shape[-1])
    )

  _, seen = model(
    token_NxT, stop=stop, taps=names, segment_NxT=segment_NxT, position_NxT=position_NxT
  )
  is_text_NxTx1 = (segment_NxT > 0)[..., None]
  parts = {}
  for name in names:
    key_NxTxF = jnp.where(is_text_NxTx1, seen[name], jnp.zeros_like(seen[name]))
    # Whole keys of its own rows on each device: otherwise every panel gathers them.
    shape = (-1,) if num_shards == 1 else (num_shards, -1)
    parts[name] = panels(over_rows(mesh, key_NxTxF.reshape(*shape, key_NxTxF.shape[-1])))
  return parts


_products = jax.jit(products, static_argnames=('names', 'stop', 'mesh'))  # keeps its shapes


@functools.partial(jax.jit, static_argnames=('names', 'stop', 'mesh'), donate_argnames='sums')
def add_batch(
  model: Model,
  sums: dict[str, Any],
  token_NxT: jax.Array,
  segment_NxT: jax.Array,
  position_NxT: jax.Array,
  *,
  names: tuple[str, ...],
  stop: int,
  mesh: Mesh | None,
) -> tuple[dict[str, Any], jax.Array]:
  """The sums with one more batch, and a number that is there when they are; as of `products`."""

  def over_devices(part):
    if mesh is None:
      return part
    own = part.ndim == 3
    sharding = _own_sharding(mesh, part) if own else square_sharding(mesh, part)
    return jax.lax.with_sharding_constraint(part, sharding)

  tokens = token_NxT, segment_NxT, position_NxT
  new = {
    name: tuple(
      two_sum(total, lost, over_devices(part))
      for (total, lost), part in zip(sums[name], panels, strict=True)
    )
    for name, panels in products(model, *tokens, names=names, stop=stop, mesh=mesh).items()
  }
  return new, jnp.max(segment_NxT)


class Sums:
  """Sums over batches, in panels of (sum, lost) by site.

  Attributes:
    shapes: of the totals, with shardings: no two devices hold the same part.
    total: the sums over all batches, if `is_whole`; after `start`.
  """

  def __init__(
    self, model: Model, names: tuple[str, ...], stop: int, tokens: Sequence[Any], mesh: Mesh | None
  ):
    """Finds the shapes; nothing is allocated or compiled before `start`.

    Args:
      model: parameters on one device or over a mesh.
      names: sites of the keys.
      stop: number of blocks to run.
      tokens: tokens, segments and positions of a batch.
      mesh: of the parameters.
    """
    self._static = {'names': names, 'stop': stop, 'mesh': mesh}
    parts = _products.eval_shape(model, *tokens, **self._static)
    self._model, self._tokens, self._mesh, self._num_batches = model, tokens, mesh, 0
    self.shapes = {name: _pairs(panels, mesh) for name, panels in parts.items()}
    self._own_shapes = {name: _own_pairs(panels, mesh) for name, panels in parts.items()}
    self.total: dict[str, Any] = {}
    # Where devices share the rows: the sums of each since the last reduction.
    self._own: dict[str, Any] | None = None

  def dry_run(self, run: DryRun, num_batches: float) -> None:
    """Notes the programs of a pass over so many batches; the model has no arrays."""
    with run.repeated(num_batches):
      run.call(add_batch, self._model, self._own_shapes, *self._tokens, **self._static)
    if _num_shards(self._mesh) > 1:
      with run.repeated(max(num_batches / BATCHES_PER_REDUCTION, 1)):
        for name, own in self._own_shapes.items():
          run.call(_reduce, self.shapes[name], own, mesh=self._mesh)

  def compile(self, tokens: Sequence[Any]) -> jax.stages.Compiled:
    """The program of `add` for batches of a shape; `add` uses it."""
    return add_batch.lower(self._model, self._own_shapes, *tokens, **self._static).compile()

  def compile_reductions(self) -> list[jax.stages.Compiled]:
    """The programs of `reduce`, one by site."""
    return [
      _reduce.lower(self.shapes[name], own, mesh=self._mesh).compile()
      for name, own in self._own_shapes.items()
      if _num_shards(self._mesh) > 1
    ]

  def start(self, total: dict[str, Any] | None) -> None:
    """Begins with stored sums of these `shapes`, or with zeros."""
    self.total = _zeros(self.shapes) if total is None else total
    self._own = _zeros(self._own_shapes) if _num_shards(self._mesh) > 1 else None

  @property
  def is_whole(self) -> bool:
    """True if the totals hold every batch."""
    return self._own is None or self._num_batches == 0

  def add(self, tokens: Sequence[Any]) -> jax.Array:
    """Adds a batch; block on the result to wait for it, since its sums are donated to the next."""
    if self._own is None:
      self.total, ran = add_batch(self._model, self.total, *tokens, **self._static)
      return ran
    self._own, ran = add_batch(self._model, self._own, *tokens, **self._static)
    self._num_batches += 1
    if self._num_batches == BATCHES_PER_REDUCTION:
      self.reduce()
    return ran

  def reduce(self) -> None:
    """Adds every device's sums to the totals."""
    if self.is_whole:
      return
    assert self._own is not None
    for name, own in self._own.items():
      self.total[name], self._own[name] = _reduce(self.total[name], own, mesh=self._mesh)
    self._num_batches = 0


def _num_shards(mesh: Mesh | None) -> int:
  """Devices that share rows."""
  return 1 if mesh is None else mesh.shape[DATA]


def _pairs(panels: Sequence[Any], mesh: Mesh | None) -> tuple[Any, ...]:
  """Shapes [F, G] of totals."""

  def pair(part: Any) -> tuple[Any, Any]:
    whole = jax.ShapeDtypeStruct(part.shape[-2:], part.dtype)
    sharding = None if mesh is None else square_sharding(mesh, whole)
    return (jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=sharding),) * 2

  return tuple(map(pair, panels))


def _own_pairs(panels: Sequence[Any], mesh: Mesh | None) -> tuple[Any, ...]:
  """Shapes [R, F, G] of each device's sums; those of the totals if rows are not shared."""
  if mesh is None or _num_shards(mesh) == 1:
    return _pairs(panels, mesh)
  return tuple(
    (jax.ShapeDtypeStruct(part.shape, part.dtype, sharding=_own_sharding(mesh, part)),) * 2
    for part in panels
  )


def _own_sharding(mesh: Mesh, part_RxFxG: Any) -> NamedSharding:
  divides = part_RxFxG.shape[1] % mesh.shape[MODEL] == 0
  return NamedSharding(mesh, PartitionSpec(DATA, MODEL if divides else None))


def _zeros(shapes: Any) -> Any:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype, device=x.sharding), shapes)


@functools.partial(jax.jit, static_argnames='mesh', donate_argnums=(0, 1))
def _reduce(total: Any, own: Any, *, mesh: Mesh) -> tuple[Any, Any]:
  """Totals with the sums of all devices, and zeros in place of these."""

  def add(pair, own_pair):
    sharding = square_sharding(mesh, pair[0])
    over_parts = NamedSharding(mesh, PartitionSpec(None, *sharding.spec))
    own_pair = jax.lax.with_sharding_constraint(own_pair, over_parts)  # each owner gets its part

    def add_one(pair, one):
      sum_FxG, lost_FxG = two_sum(pair[0], pair[1], one[0])
      return (sum_FxG, lost_FxG + one[1]), None

    pair, _ = jax.lax.scan(add_one, pair, own_pair)
    return jax.lax.with_sharding_constraint(pair, sharding)

  def zero(part_RxFxG):
    zeros = jnp.zeros_like(part_RxFxG)
    return jax.lax.with_sharding_constraint(zeros, _own_sharding(mesh, part_RxFxG))

  return tuple(map(add, total, own)), jax.tree.map(zero, own)


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
    device: its part of the totals and, where devices share rows, its own sums.
    host: the results, and one kernel on its way to disk or to its mean; where the CPU is the
      device, its sums as well.
  """

  num_kernels: int
  device: int
  host: int

  @classmethod
  def of(cls, sizes: Sequence[int], data: int = 1, model: int = 1) -> 'MemoryPlan':
    """For kernels with these F on a mesh of data x model devices."""
    sums = 8 * sum(map(num_values, sizes))
    device = sums // (data * model) + (sums // model if data > 1 else 0)
    results = 4 * sum(size**2 for size in sizes)
    on_host = data * model * device if jax.default_backend() == 'cpu' else 0
    return cls(len(sizes), device, results + 16 * max(sizes) ** 2 + on_host)

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
