"""Free memory of devices and host, so that what cannot fit is refused before it begins."""

import pathlib
from typing import Any

import jax
import psutil

from jedit.parallel.topology import chip_of
from jedit.types import UserError
from jedit.units import format_bytes

_CGROUP = pathlib.Path('/sys/fs/cgroup')


def free_bytes(device: jax.Device) -> int | None:
  """Bytes free on a device; the host's for a CPU, None for a device that does not report them."""
  try:
    stats: dict[str, Any] = device.memory_stats() or {}
  except jax.errors.JaxRuntimeError:  # a device of a topology, or of another process
    chip = chip_of(device)
    return None if chip is None else chip.memory
  if 'bytes_limit' in stats:
    return stats['bytes_limit'] - stats.get('bytes_in_use', 0)
  return free_host_bytes() if device.platform == 'cpu' else None


def check_fits(what: str, size: int, remedy: str) -> None:
  """Raises UserError for work of more bytes than the first device has free."""
  free = free_bytes(jax.local_devices()[0])
  if free is not None and size > free:
    raise UserError(
      f'{what} takes {format_bytes(size)} and {format_bytes(free)} are free; {remedy}.'
    )


def free_host_bytes() -> int:
  """Bytes free on the machine, or in the container around this process."""
  free = psutil.virtual_memory().available
  try:  # psutil reports the machine and not the limits of a container (cgroup v2)
    limit = int((_CGROUP / 'memory.max').read_text())
    used = int((_CGROUP / 'memory.current').read_text())
    # Cached pages of files count as used; the kernel gives them back on demand.
    parts = dict(line.split() for line in (_CGROUP / 'memory.stat').read_text().splitlines())
    return min(free, limit - used + int(parts['file']))
  except (OSError, KeyError, ValueError):  # no limit
    return free
