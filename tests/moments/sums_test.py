"""Panels of k kᵀ, and sums that lose no digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from jedit.moments.sums import (
  MemoryPlan,
  Sums,
  mean,
  num_values,
  panel_rows,
  products,
  two_sum,
)
from jedit.parallel import memory


@struct.dataclass
class _Model:
  """Keys by token."""

  table_VxF: jax.Array

  def __call__(self, token_NxT, *, taps, **unused):
    return None, dict.fromkeys(taps, self.table_VxF[token_NxT])


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize('size', [1, 3, 6, 24])
def test_panels_hold_the_matrix(size, dtype):
  rng = np.random.default_rng(size)
  model = _Model(jnp.asarray(rng.integers(-4, 5, (8, size)), dtype))  # exact in float32
  token_NxT = rng.integers(8, size=(3, 5)).astype(np.int32)
  segment_NxT = (rng.random((3, 5)) < 0.7).astype(np.int32)
  arrays = (token_NxT, segment_NxT, token_NxT)
  sums = Sums(model, ('a', 'b'), 1, arrays, None)
  assert set(sums.shapes) == {'a', 'b'}
  assert sum(total.size for total, _ in sums.shapes['a']) == num_values(size)
  sums.start(None)
  for _ in range(2):
    assert sums.add(arrays) == 1
  assert sums.is_whole
  key_KxF = np.asarray(model.table_VxF, np.float64)[token_NxT[segment_NxT > 0]]
  expected_FxF = 2 * key_KxF.T @ key_KxF / 30
  for panels in sums.total.values():
    cov_FxF = mean(panels, 30)
    np.testing.assert_array_equal(cov_FxF, expected_FxF.astype(np.float32))


def test_the_lower_triangle_is_left_out():
  assert panel_rows(8) == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
  assert num_values(8) == 8 * 8 * 5 / 8
  assert num_values(1) == 1 and num_values(3) == 6


def test_sums_and_results_are_planned_for():
  sums = 8 * (64 + 256) * 5 // 8
  plan = MemoryPlan.of([8, 16])
  assert plan.num_kernels == 2 and plan.device == sums
  assert plan.host == 4 * (64 + 256) + 16 * 256 + sums  # the CPU is the device here
  assert memory.free_host_bytes() > plan.host
  plan.check()
  # Devices that share rows have sums of their own beside their part of the totals.
  assert MemoryPlan.of([8, 16], data=1, model=2).device == sums // 2
  assert MemoryPlan.of([8, 16], data=2, model=4).device == sums // 4 + sums // 8


def test_the_second_sum_holds_what_the_first_loses():
  values = np.random.default_rng(0).uniform(1, 2, 3000).astype(np.float32)
  add = jax.jit(two_sum)
  total = lost = np.float32(0)
  for value in values:
    total, lost = add(total, lost, value)
  exact = values.astype(np.float64).sum()
  assert abs(float(total) + float(lost) - exact) < 1e-9 * exact
  assert abs(float(total) - exact) > 1e-7 * exact, 'the sum alone has lost something'


def test_nothing_is_lost_of_a_small_sum_either():
  total, lost = jax.jit(two_sum)(np.float32(1 / 3), np.float32(0), np.float32(1e6 + 1 / 16))
  assert float(total) + float(lost) == float(np.float32(1 / 3)) + float(np.float32(1e6 + 1 / 16))
  assert float(lost) != 0


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_products_of_the_lowered_program_keep_their_digits(dtype):
  """A CPU computes the same without the flags; accelerators shorten operands and results."""
  model = _Model(jnp.ones((8, 16), dtype))
  arrays = (np.zeros((2, 3), np.int32),) * 3
  program = jax.jit(functools.partial(products, names=('a',), stop=1))
  text = program.lower(model, *arrays).as_text()
  found = [line for line in text.splitlines() if 'stablehlo.dot_general' in line]
  assert len(found) == 4  # panels
  for line in found:
    assert ('precision = [HIGHEST, HIGHEST]' in line) == (dtype == jnp.float32)
    assert line.rpartition('->')[2].strip().endswith('xf32>')
