"""Devices as one mesh with the axes 'data' and 'model', over one process or several.

Every process runs the same program and holds the same host arrays; only device arrays are sharded:
parameters over 'model' (their placement defines the mesh), rows of texts and edits over 'data'.
Arrays fetched to the host are whole in every process. The first process writes files while the
others wait.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jedit.parallel.devices import find_devices
from jedit.types import UserError

DATA, MODEL = 'data', 'model'
_barriers = itertools.count()


def initialise(coordinator: str, num_processes: int | None, process_id: int | None) -> None:
  """Joins the processes of a run; call it before anything touches a device.

  Args:
    coordinator: address host:port of the first process; 'auto' takes the cluster's (Slurm, TPU,
      MPI).
    num_processes: number of processes; None takes the cluster's.
    process_id: number of this process, from 0; None takes the cluster's.

  Raises:
    UserError: if they do not find each other.
  """
  address = None if coordinator == 'auto' else coordinator
  if address is not None and (num_processes is None or process_id is None):
    raise UserError('With --coordinator=HOST:PORT give --num_processes and --process_id as well.')
  try:
    jax.distributed.initialize(address, num_processes, process_id)
  except (RuntimeError, ValueError) as error:
    reason = str(error).splitlines()[0]
    raise UserError(
      f'The processes of this run did not find each other ({reason}); check --coordinator, '
      '--num_processes and --process_id of each.'
    ) from error


def make_mesh(
  data: int = 0, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh | None:
  """Devices as a mesh; None for a single one.

  Args:
    data: devices that share the rows; 0 takes as many as `model` leaves.
    model: devices that share each copy of the parameters.
    devices: of a topology; None takes all devices of all processes.

  Raises:
    UserError: if the numbers do not fit the devices.
  """
  devices = find_devices() if devices is None else devices
  if model < 1 or data < 0 or len(devices) % model or data not in (0, len(devices) // model):
    raise UserError(
      f'A mesh of mesh.data={data} and mesh.model={model} does not fit {len(devices)} devices; '
      'choose numbers whose product is that, or mesh.data=0.'
    )
  if len(devices) == 1:
    return None
  axes = (len(devices) // model, model)
  return jax.make_mesh(axes, (DATA, MODEL), (AxisType.Auto, AxisType.Auto), devices=devices)


def mesh_of(params: Any) -> Mesh | None:
  """The mesh of sharded parameters, or of their shapes; None for those on one device."""
  for leaf in jax.tree.leaves(params):
    has_sharding = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    if has_sharding and isinstance(leaf.sharding, NamedSharding):
      mesh = leaf.sharding.mesh
      assert isinstance(mesh, Mesh), 'parameters are concrete'
      return mesh
  return None


def num_row_shards(params: Any) -> int:
  """Number of shards of the rows; batches that are multiples of it use all devices."""
  mesh = mesh_of(params)
  return 1 if mesh is None else mesh.shape[DATA]


def platform_of(params: Any) -> str:
  """Platform of the devices of parameters, or of their shapes: 'cpu', 'gpu' or 'tpu'."""
  [device, *_] = jax.tree.leaves(params)[0].sharding.device_set
  return device.platform


def place_rows(params: Any, rows: Any) -> Any:
  """Host arrays as arrays on the devices of the parameters, their first axis over 'data'.

  Arrays whose first axis does not divide are whole on every device. Without a mesh, jit places
  them. Rows of a model without arrays become shapes, for a dry run.
  """
  mesh = mesh_of(params)
  if isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct):
    return _abstract_rows(params, rows)
  if mesh is None:
    return rows
  return jax.tree.map(lambda x: place(x, _row_sharding(mesh, x)), rows)


def _abstract_rows(params: Any, rows: Any) -> Any:
  """Shapes of rows, with the shardings that `place_rows` gives them."""
  mesh, first = mesh_of(params), jax.tree.leaves(params)[0]

  def abstract(x: Any) -> jax.ShapeDtypeStruct:
    sharding = first.sharding if mesh is None else _row_sharding(mesh, x)
    return jax.ShapeDtypeStruct(np.shape(x), x.dtype, sharding=sharding)

  return jax.tree.map(abstract, rows)


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """A host array that every process holds as one array over the mesh."""
  # Not device_put: over several processes it first compares the values of all of them.
  array = np.asarray(array)
  return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _row_sharding(mesh: Mesh, array: Any) -> NamedSharding:
  shape = np.shape(array)
  divides = bool(shape) and shape[0] % mesh.shape[DATA] == 0
  return NamedSharding(mesh, PartitionSpec(DATA) if divides else PartitionSpec())


def over_rows(mesh: Mesh | None, tree: Any, split: int | None = None) -> Any:
  """Inside jit: shards the first axis of every array over 'data' where it divides.

  Args:
    mesh: of the devices; None changes nothing.
    tree: arrays.
    split: an axis of each that 'model' splits likewise, counted from the last, -1; None for none.
  """
  if mesh is None:
    return tree

  def constrain(x):
    sharding = _row_sharding(mesh, x)
    if split is not None and x.shape[split] % mesh.shape[MODEL] == 0:
      rows = sharding.spec[0] if sharding.spec else None
      between = (None,) * (x.ndim + split - 1)
      sharding = NamedSharding(mesh, PartitionSpec(rows, *between, MODEL))
    return jax.lax.with_sharding_constraint(x, sharding)

  return jax.tree.map(constrain, tree)


def square_sharding(mesh: Mesh, x_FxF: Any) -> NamedSharding:
  """Sharding of a sum over rows: over both axes, so that no two devices hold the same part."""
  sides = zip(x_FxF.shape, (MODEL, DATA), strict=True)
  axes = (axis if size % mesh.shape[axis] == 0 else None for size, axis in sides)
  return NamedSharding(mesh, PartitionSpec(*axes))


def fetch(tree: Any) -> Any:
  """Arrays as NumPy, whole in every process; shapes as zeros, which take no memory."""
  jax.tree.map(_start_copy, tree)
  return jax.tree.map(_fetch, tree)


def _is_spread(x: Any) -> bool:
  return isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated)


def _start_copy(x: Any) -> None:
  if isinstance(x, jax.Array) and not _is_spread(x):
    x.copy_to_host_async()


def _fetch(x: Any) -> np.ndarray:
  if isinstance(x, jax.ShapeDtypeStruct):  # of a dry run
    return np.broadcast_to(np.zeros((), x.dtype), x.shape)
  return np.asarray(multihost_utils.process_allgather(x, tiled=True) if _is_spread(x) else x)


def is_first_process() -> bool:
  """True in the process that writes files and prints."""
  return not jax.distributed.is_initialized() or jax.process_index() == 0


def wait_for_all() -> None:
  """Waits for every process; all have to call it in the same order."""
  if jax.distributed.is_initialized():
    multihost_utils.sync_global_devices(f'jedit {next(_barriers)}')


def least_over_processes(value: int) -> int:
  """The smallest of the processes' values, for choices in which all must agree."""
  if not jax.distributed.is_initialized():
    return value
  return int(multihost_utils.process_allgather(np.int64(value)).min())
