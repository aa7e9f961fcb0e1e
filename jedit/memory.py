"""How much memory is free, so that what cannot fit is refused before it is begun."""

import pathlib
from typing import Any

import jax

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
