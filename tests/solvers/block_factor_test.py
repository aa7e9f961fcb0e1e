"""Factors in blocks: loops over panels against LAPACK, refinement, and programs for a TPU."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.solving import solve
from jedit.parallel.compiled import cost_of, memory_of
from jedit.parallel.topology import CHIPS, find_topology
from jedit.solvers import (
  LeastSquares,
  UnsolvableError,
  block_cholesky,
  block_factor,
  budget,
  factor_cache,
)
from jedit.solvers.block_cholesky import Layout
from jedit.solvers.block_factor import BlockFactor
from jedit.solvers.devices import float64_alone

SIZE = 90  # fills no whole number of blocks


def _matrix(condition, size=SIZE):
  """With a diagonal that scaling cannot improve."""
  vector_FxF, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(size, size)))
  matrix_FxF = (vector_FxF * np.geomspace(1, 1 / condition, size)) @ vector_FxF.T
  return (matrix_FxF + matrix_FxF.T) / 2


def _solve(factor, rhs_FxB):
  with float64_alone():
    return np.asarray(factor.solve(jax.device_put(rhs_FxB, factor.device)))


def _over(cov_FxF, key_NxF=None):
  key_NxF = np.zeros((0, SIZE)) if key_NxF is None else key_NxF
  return BlockFactor.over(cov_FxF, 0.25, key_NxF, jax.local_devices()[:1])


@pytest.fixture(name='narrow')
def _narrow(monkeypatch):
  for module in (block_factor, budget, factor_cache):
    monkeypatch.setattr(module, 'working_dtype', lambda device: np.float32)


@pytest.mark.parametrize(('block', 'max_tile'), [(512, 4), (7, 4), (16, 1), (90, 4), (128, 4)])
def test_any_blocks_and_tiles_give_what_lapack_gives(block, max_tile, monkeypatch):
  monkeypatch.setattr(block_cholesky, '_BLOCK', block)
  monkeypatch.setattr(block_cholesky, '_MIN_BLOCKS', 1)
  monkeypatch.setattr(block_cholesky, '_MAX_TILE', max_tile)
  cov_FxF, rng = _matrix(1e4), np.random.default_rng(0)
  key_NxF, rhs_FxB = rng.normal(size=(300, SIZE)), rng.normal(size=(SIZE, 3))
  factor = _over(cov_FxF, key_NxF)
  assert factor.layout.tile % factor.layout.block == factor.layout.rows % factor.layout.tile == 0
  expected = np.linalg.solve(cov_FxF + 0.25 * np.eye(SIZE) + key_NxF.T @ key_NxF, rhs_FxB)
  np.testing.assert_allclose(
    _solve(factor, rhs_FxB), expected, rtol=0, atol=1e-12 * np.abs(expected).max()
  )


@pytest.mark.parametrize('bad', [-1.0, np.nan])
@pytest.mark.parametrize('at', [0, 44, 89])
def test_a_matrix_that_is_not_definite_is_told(narrow, bad, at):
  cov_FxF = np.eye(SIZE, dtype=np.float32)
  cov_FxF[at, at] = bad
  factor = _over(cov_FxF)
  assert not factor.is_definite and not np.isfinite(_solve(factor, np.ones((SIZE, 2)))).all()
  with pytest.raises(UnsolvableError, match='not positive definite; collect second moments'):
    solve(LeastSquares(1.0), cov_FxF, np.eye(SIZE)[:2] * 1e-3)


@pytest.mark.parametrize(('condition', 'refines'), [(1e2, True), (1e5, True), (1e9, False)])
def test_refinement_reaches_float64(narrow, condition, refines):
  """Up to a condition number of about 1e7; beyond, the host factors in float64."""
  cov_FxF = _matrix(condition) - 0.25 * np.eye(SIZE)  # the ridge adds it again
  rhs_FxB = np.random.default_rng(0).normal(size=(SIZE, 3))
  factor = _over(cov_FxF)
  found_FxB = _solve(factor, rhs_FxB)
  assert ('in_float64' not in vars(factor)) == refines
  expected_FxB = np.linalg.solve(cov_FxF + 0.25 * np.eye(SIZE), rhs_FxB)
  atol = 1e-15 * condition * np.abs(expected_FxB).max()
  np.testing.assert_allclose(found_FxB, expected_FxB, rtol=0, atol=atol)


def test_the_number_of_right_hand_sides_makes_few_programs(narrow):
  factor, rng = _over(_matrix(10)), np.random.default_rng(0)
  block_cholesky.solve.clear_cache()
  for width in (1, 5, 100, 128, 130):
    _solve(factor, rng.normal(size=(SIZE, width)))
  assert block_cholesky.solve._cache_size() == 2


@pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='libtpu is not installed (extra tpu)'
)
def test_a_tpu_factors_in_place():
  layout = Layout.of(3000, find_topology('v5e:1x1')[:1])
  assert (layout.block, layout.padded) == (512, 3072)

  def rows(width):
    return jax.ShapeDtypeStruct((layout.padded, width), jnp.float32, sharding=layout.sharding)

  with float64_alone():
    factor = block_cholesky.factorise.lower(rows(layout.padded), layout).compile()
    solve = block_cholesky.solve.lower(rows(layout.padded), rows(128), layout).compile()
  size, memory = 4 * layout.padded**2, memory_of(factor)
  assert memory.aliases == memory.outputs == size and memory.temporaries < size / 4
  assert memory_of(solve).temporaries < size / 4
  assert 0 < cost_of(solve).seconds(CHIPS['v5e']) < 2e-3
