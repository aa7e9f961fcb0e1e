"""How much memory is free, so that what cannot fit is refused before it is begun."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import jax

from jedit.types import UserError
from jedit.units import format_bytes

_MEMINFO, _CGROUP = pathlib.Path('/proc/meminfo'), pathlib.Path('/sys/fs/cgroup')


def free_bytes(device: jax.Device) -> int | None:
  """Bytes that can still be put on a device; the host's for a CPU. None where nobody tells."""
  stats: dict[str, Any] = device.memory_stats() or {}
  if 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
  return free_host_bytes() if device.platform == 'cpu' else None


def free_host_bytes() -> int | None:
  """What the machine, or the container around this process, has left; None beyond Linux."""
  try:
    rows = dict(line.split(':') for line in _MEMINFO.read_text().splitlines())
    free = 1024 * int(rows['MemAvailable'].split()[0])
  except (OSError, KeyError, ValueError):
    return None
  try:
    limit = int((_CGROUP / 'memory.max').read_text())
    used = int((_CGROUP / 'memory.current').read_text())
    # Pages of files count as used and are given back when they are needed.
    parts = dict(line.split() for line in (_CGROUP / 'memory.stat').read_text().splitlines())
    return min(free, limit - used + int(parts['file']))
  except (OSError, KeyError, ValueError):  # no limit
    return free


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
  """Bytes that a pass for second moments takes besides parameters and activations.

  Attributes:
    num_kernels: how many second moments.
    device: its part of the sums.
    host: the results, and one kernel on its way to disk or to its mean; where the CPU is the
      device, its sums too.
  """

  num_kernels: int
  device: int
  host: int

  @classmethod
  def of(cls, sizes: Sequence[int], num_devices: int = 1) -> 'MemoryPlan':
    """For kernels with these F, whose sums so many devices share."""
    values = sum(size**2 for size in sizes)
    on_host = 8 * values if jax.default_backend() == 'cpu' else 0
    host = 4 * values + 16 * max(sizes) ** 2 + on_host
    return cls(len(sizes), 8 * values // num_devices, host)

  def check(self) -> None:
    """Raises UserError where the sums do not fit."""
    places = [('host', self.host, free_host_bytes())]
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
