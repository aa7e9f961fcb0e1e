"""Topologies of TPUs that are not here, and what is known of their chips.

XLA's compiler for TPUs comes with libtpu and runs on any machine, so that programs can be compiled
for devices that only their topology describes.
"""

import dataclasses
import importlib.metadata
import math
import os
import re

import jax
from jax.experimental import topologies

from jedit.types import UserError


@dataclasses.dataclass(frozen=True)
class Chip:
  """Figures of a chip.

  Sources: peak, memory and the number of links are Google's
  (cloud.google.com/tpu/docs/v5e, /v5p, /v6e). The clock is the one at which the matrix units, of
  which the pages give number and size, reach that peak: 4 of 128 x 128 in v5e, 8 in v5p, 2 of
  256 x 256 that take two operands a cycle in v6e. The memory is what the compiler leaves to
  programs. The rate of a link in one direction is that of "How to Scale Your Model" (Google
  DeepMind, 2025, jax-ml.github.io/scaling-book/tpus).

  Attributes:
    kind: as JAX names its devices.
    peak: FLOP/s of dense products in bfloat16.
    clock: cycles per second.
    memory: bytes for programs.
    link: bytes per second of one link in one direction.
    axes: of a shape: a 2D or 3D torus.
    most: chips of a pod.
  """

  kind: str
  peak: float
  clock: float
  memory: int
  link: float
  axes: int
  most: int


CHIPS = {
  'v5e': Chip('TPU v5 lite', 197e12, 1.5e9, int(15.75 * 2**30), 45e9, 2, 256),
  'v5p': Chip('TPU v5', 459e12, 1.75e9, int(95.74 * 2**30), 90e9, 3, 8960),
  'v6e': Chip('TPU v6 lite', 918e12, 1.75e9, int(31.25 * 2**30), 90e9, 2, 256),
}
_SHAPE = re.compile(r'\d+(x\d+)*')


def find_topology(name: str) -> list[jax.Device]:
  """The devices of a topology, to compile for.

  Args:
    name: chip and shape, such as 'v5e:4x4' or 'v5p:2x2x1'.

  Raises:
    UserError: for a topology that does not exist, and without the libtpu that goes with this JAX.
  """
  kind, _, sizes = name.partition(':')
  shape = [int(size) for size in sizes.split('x')] if _SHAPE.fullmatch(sizes) else []
  chip = CHIPS.get(kind)
  if chip is None or len(shape) != chip.axes or not 1 <= math.prod(shape) <= chip.most:
    raise UserError(
      f'plan.topology is {name!r}; give a chip ({", ".join(CHIPS)}) and a shape inside its pod, '
      'such as v5e:4x4 or v5p:2x2x1.'
    )
  _check_libtpu()
  # libtpu would ask the network which machine it is on, and refuse a second process.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  os.environ.setdefault('ALLOW_MULTIPLE_LIBTPU_LOAD', '1')
  os.environ.setdefault('TPU_WORKER_HOSTNAMES', 'localhost')
  os.environ.setdefault('TPU_ACCELERATOR_TYPE', f'{kind}-1')
  os.environ.setdefault('TPU_MIN_LOG_LEVEL', '3')
  os.environ.setdefault('TPU_STDERR_LOG_LEVEL', '3')
  single = {'chips_per_host_bounds': [1, 1, 1]} if max(shape) == 1 else {}
  try:
    return list(topologies.get_topology_desc(name, platform='tpu', **single).devices)
  except (RuntimeError, jax.errors.JaxRuntimeError) as error:
    reason = str(error).splitlines()[0].rstrip('.')
    raise UserError(
      f'plan.topology is {name!r}, which the TPU compiler does not know ({reason}); give another '
      'shape, such as v5e:4x4 or v5p:2x2x1.'
    ) from error


def chip_of(device: jax.Device) -> Chip | None:
  """Figures of a device's chip; None where none are known."""
  return next((chip for chip in CHIPS.values() if chip.kind == device.device_kind), None)


def _check_libtpu() -> None:
  """Refuses another libtpu than the one that JAX asks for in its extra 'tpu'."""
  wanted = next(
    match[1]
    for line in importlib.metadata.requires('jax') or ()
    if (match := re.match(r'libtpu==([\d.]+)\.\*', line))
  )
  try:
    found = importlib.metadata.version('libtpu')
  except importlib.metadata.PackageNotFoundError:
    found = ''
  if not found.startswith(f'{wanted}.') and found != wanted:
    has = f'libtpu {found}' if found else 'no libtpu'
    raise UserError(
      f'plan.topology needs libtpu {wanted}, and {has} is installed; run pip install '
      f"'jedit[tpu]' or pip install 'libtpu=={wanted}.*'."
    )
