"""Dtypes and memory of the devices that solve."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jedit.compat import enable_x64


def working_dtype(device: jax.Device) -> Any:
  """Dtype of factors on a device: float64 on CPUs and GPUs, float32 on TPUs."""
  return jnp.float32 if device.platform == 'tpu' else jnp.float64


def float64_device(device: jax.Device) -> jax.Device:
  """Device of the float64 work for `device`: itself if it has float64, otherwise the host's CPU."""
  return device if working_dtype(device) == jnp.float64 else host()


def host() -> jax.Device:
  """The first CPU device."""
  return jax.local_devices(backend='cpu')[0]


def memory(device: jax.Device) -> int:
  """Total bytes of a device; CPU devices share the host's."""
  limit = (device.memory_stats() or {}).get('bytes_limit')
  if limit:
    return int(limit)
  total = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  return total // num_sharing(device)


def num_sharing(device: jax.Device) -> int:
  """Local devices that share the memory of this one: all CPU devices share the host's."""
  if device.platform != 'cpu':
    return 1
  return len(jax.local_devices(backend='cpu'))


@contextlib.contextmanager
def float64_alone() -> Iterator[None]:
  """Float64, with devices chosen explicitly even inside the mesh of a caller."""
  with enable_x64(True), jax.set_mesh(Mesh(np.empty((), object), ())):
    yield
