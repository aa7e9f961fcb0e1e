"""Products from 8-bit integers, against products in extended precision."""

import jax
import numpy as np
import pytest

from jedit.solvers import integer_product
from jedit.solvers.devices import float64_alone

SIZE, WIDTH = 300, 5


def _times(matrix_MxF, x_FxB, scale_F=None):
  scale_F = np.ones(x_FxB.shape[0]) if scale_F is None else scale_F
  with float64_alone():
    matrix_MxF, x_FxB = jax.device_put((matrix_MxF, x_FxB))
    return np.asarray(integer_product.times(matrix_MxF, x_FxB, scale_F))


@pytest.fixture(name='rng')
def _rng():
  return np.random.default_rng(0)


def test_products_have_the_accuracy_of_float64(rng):
  """Columns of A that differ by a factor of 16,384, and rows of x as much the other way."""
  scale_F = np.exp2(rng.integers(-7, 8, SIZE))
  root = rng.normal(size=(2 * SIZE, SIZE))
  matrix_FxF = (root.T @ root / scale_F[:, None] / scale_F[None, :]).astype(np.float32)
  x_FxB = rng.normal(size=(SIZE, WIDTH)) * scale_F[:, None]
  found_FxB = _times(matrix_FxF, x_FxB, scale_F)
  expected_FxB = matrix_FxF.astype(np.longdouble) @ x_FxB.astype(np.longdouble)
  size_FxB = np.abs(matrix_FxF.astype(np.float64)) @ np.abs(x_FxB)
  assert found_FxB.dtype == np.float64 and found_FxB.shape == (SIZE, WIDTH)
  assert np.max(np.abs(found_FxB - expected_FxB) / size_FxB) < 1e-15
  rounded = (matrix_FxF @ x_FxB.astype(np.float32)) - expected_FxB
  assert np.max(np.abs(rounded) / size_FxB) > 1e-9, 'float32 would not do'


def test_integers_are_multiplied_exactly(rng):
  """Full digits of one sign are the largest sums; every carry is a positive or negative one."""
  for low, high in ((0, 2**20), (-(2**20), 0), (-(2**20), 2**20)):
    matrix_MxF = rng.integers(low, high, (7, SIZE)).astype(np.float32)
    x_FxB = rng.integers(low, high, (SIZE, WIDTH)).astype(np.float64)
    np.testing.assert_array_equal(_times(matrix_MxF, x_FxB), matrix_MxF.astype(np.float64) @ x_FxB)


def test_rows_and_columns_come_in_several_parts(rng, monkeypatch):
  monkeypatch.setattr(integer_product, '_ROWS', 128)
  monkeypatch.setattr(integer_product, '_MAX_COLUMNS', 2)
  integer_product._multiply.clear_cache()
  test_products_have_the_accuracy_of_float64(rng)
  integer_product._multiply.clear_cache()


def test_values_that_are_not_finite_stay_so(rng):
  matrix_MxF = rng.normal(size=(4, SIZE)).astype(np.float32)
  x_FxB = rng.normal(size=(SIZE, WIDTH))
  matrix_MxF[1, 3], x_FxB[5, 2] = np.nan, np.inf
  found_MxB = _times(matrix_MxF, x_FxB)
  is_finite_MxB = np.ones((4, WIDTH), bool)
  is_finite_MxB[1], is_finite_MxB[:, 2] = False, False
  np.testing.assert_array_equal(np.isfinite(found_MxB), is_finite_MxB)


def test_zeros_and_numbers_far_apart():
  matrix_MxF, x_FxB = np.zeros((3, SIZE), np.float32), np.zeros((SIZE, 3))
  matrix_MxF[1, 0], matrix_MxF[2, 1], x_FxB[0, 1], x_FxB[1, 2] = 1e30, 1e-30, 1e-100, 1e100
  expected_MxB = matrix_MxF.astype(np.float64) @ x_FxB
  np.testing.assert_allclose(_times(matrix_MxF, x_FxB), expected_MxB, rtol=1e-15)
