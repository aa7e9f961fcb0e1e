"""Factors in the free memory of a device: kept, made for each batch, sharded, or on the host."""

import dataclasses

import jax
import numpy as np
import pytest

from jedit.solvers import budget
from jedit.solvers.budget import Budget, bytes_per_device, fits, make_factor

GIB = 2**30


@dataclasses.dataclass(eq=False)
class Device:
  """A TPU with 15.75 GiB, as v5e has."""

  used: float
  limit: float = 15.75 * GIB
  platform: str = 'tpu'

  def memory_stats(self):
    return {'bytes_limit': int(self.limit), 'bytes_in_use': int(self.used)}


@dataclasses.dataclass(eq=False)
class Value:
  nbytes: int
  devices: set


@pytest.fixture(name='places')
def _places(monkeypatch):
  """`make_factor` tells where the factor would lie, on fake devices."""
  monkeypatch.setattr(budget, 'host', lambda: 'host')
  monkeypatch.setattr(budget.Factor, 'of', lambda cov, ridge, keys, device: device)
  monkeypatch.setattr(budget.BlockFactor, 'over', lambda cov, ridge, keys, devices: list(devices))

  def place(size, *devices):
    monkeypatch.setattr(jax, 'local_devices', lambda: list(devices))
    return make_factor(None, 1.0, np.broadcast_to(0.0, (1, size)), devices[0])

  return place


def _kept(device, size, layers):
  """Which layers' factors are kept, one after the other; all must fit while they are made."""
  found, held = Budget(), []
  for _ in range(layers):
    assert fits(device, size)
    room, value = found.room(device, size), Value(8 * size**2, {device})
    if bytes_per_device(value) <= room:
      found.add(value)
      held.append(value)
      device.used += value.nbytes
  return len(held)


@pytest.mark.parametrize(
  ('weights', 'size', 'kept'),
  [
    (11.27 * GIB, 16_384, 0),  # GPT-J 6B in bfloat16: factors in turn
    (12.55 * GIB, 11_008, 1),  # LLaMA 7B
    (3.1 * GIB, 16_384, 3),  # a quarter of GPT-J on each device
    (0.5 * GIB, 4_096, 6),
  ],
)
def test_kept_factors_leave_room_for_the_next_one(weights, size, kept):
  assert _kept(Device(weights), size, 6) == kept


def test_weights_of_others_count_and_not_the_size_of_the_device(places):
  device = Device(11.27 * GIB)
  assert places(16_384, device) == [device]
  device.used = 13 * GIB  # 2.75 GiB are free, and three matrices are 3 GiB
  assert places(16_384, device) == 'host'
  assert places(11_008, device) == [device]


def test_a_matrix_beyond_one_device_is_sharded_if_that_helps(places):
  devices = [Device(13 * GIB) for _ in range(4)]
  assert places(16_384, *devices) == devices
  assert places(50_000, *devices) == 'host'


def test_devices_with_float64_factor_whole_matrices(places):
  device = Device(0, platform='gpu')
  assert places(16_384, device) is device


def test_a_device_that_reports_nothing_counts_as_empty(monkeypatch):
  device = Device(0)
  monkeypatch.setattr(budget, 'free_bytes', lambda device: None)
  assert budget.free(device) == int(device.limit)
