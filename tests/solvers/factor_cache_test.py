"""Factors of second moments are made once, found again, and given back."""

import gc

import numpy as np
import pytest

from helpers import editing
from jedit import methods
from jedit.editing.batches import edit_separately, edit_sequentially
from jedit.solvers import closed_form, factor, factor_cache
from jedit.solvers.factor_cache import most_apart, preserve
from jedit.solvers.solve import EqualityConstrained, LeastSquares, NullSpace, RankOne

SIZE = 40
CONTEXTS = (('{}',),)
SOLVERS = [LeastSquares(3.0), EqualityConstrained(2.0, 0.3, 0.1), RankOne(), NullSpace(0.8, 0.5)]
solvers = pytest.mark.parametrize('solver', SOLVERS, ids=lambda solver: type(solver).__name__)


def _cov(seed=0, size=SIZE):
  rng = np.random.default_rng(seed)
  root = rng.normal(size=(3 * size, size))
  return (root.T @ root / len(root)).astype(np.float32)


def _keys(count, seed=1, size=SIZE):
  return np.random.default_rng(seed).normal(size=(count, size))


@pytest.fixture
def made(monkeypatch):
  """What is factored and decomposed."""
  found = []

  def counted(make, name):
    def call(*arguments):
      found.append(name)
      return make(*arguments)

    return call

  monkeypatch.setattr(factor_cache, 'make_factor', counted(factor_cache.make_factor, 'factor'))
  monkeypatch.setattr(factor_cache, '_eigh', counted(factor_cache._eigh, 'spectrum'))
  return found


@solvers
def test_one_factor_serves_every_batch(solver, made):
  cov_FxF, count = _cov(), 1 if isinstance(solver, RankOne) else 3
  for seed in range(3):
    key_BxF = _keys(count, seed)
    found = solver(cov_FxF, key_BxF, key_BxF)
    alone = solver(cov_FxF.copy(), key_BxF, key_BxF)
    np.testing.assert_array_equal(found, alone)
  # The copies take one each.
  assert made.count('factor') == 4
  assert made.count('spectrum') == (4 if isinstance(solver, NullSpace) else 0)


def test_one_factor_serves_every_weight_and_method(made):
  cov_FxF, key_BxF = _cov(), _keys(3)
  for solver in (LeastSquares(0.1), LeastSquares(9.0), EqualityConstrained(2.0, 0.0, 0.1)):
    solver(cov_FxF, key_BxF, key_BxF)
  assert made == ['factor']
  EqualityConstrained(2.0, 0.3, 0.1)(cov_FxF, key_BxF, key_BxF)
  assert made == ['factor'] * 2  # a ridge makes another matrix


def test_batches_of_edits_factor_each_layer_once(made):
  lm = editing.language_model('gptj', num_layers=3)
  method = methods.memit(layers=(0, 1), cov_weight=0.5, num_steps=1)
  stats = editing.second_moments(lm, method)
  for mode in (edit_separately, edit_sequentially):
    found = list(mode(lm, editing.REQUESTS[:4], method, stats, size=2, contexts=CONTEXTS))
    assert len(found) == 2
  assert made == ['factor'] * 2


def test_a_matrix_that_was_changed_is_factored_again(made):
  cov_FxF, key_BxF = _cov(), _keys(3)
  LeastSquares(1.0)(cov_FxF, key_BxF, key_BxF)
  cov_FxF *= 2
  found = LeastSquares(1.0)(cov_FxF, key_BxF, key_BxF)
  np.testing.assert_array_equal(found, LeastSquares(1.0)(cov_FxF.copy(), key_BxF, key_BxF))
  assert len(made) == 3


def test_factors_go_with_their_matrix():
  cov_FxF = _cov()
  gc.collect()
  before = len(factor_cache._kept)
  preserve(cov_FxF)
  assert len(factor_cache._kept) == before + 1
  del cov_FxF
  gc.collect()
  assert len(factor_cache._kept) == before


def test_what_does_not_fit_is_made_anew_with_the_same_bits(made, monkeypatch):
  covs, key_BxF = [_cov(0), _cov(1)], _keys(3)
  kept = [LeastSquares(1.0)(cov, key_BxF, key_BxF) for cov in covs]
  one = preserve(covs[0]).factor.nbytes
  del made[:]
  factor_cache._kept.clear()
  monkeypatch.setattr(factor_cache, '_budget', lambda device: 1.5 * one)
  for _ in range(2):
    again = [LeastSquares(1.0)(cov, key_BxF, key_BxF) for cov in covs]
    np.testing.assert_array_equal(again, kept)
  assert len(made) == 3  # the first stays, the second does not


@solvers
@pytest.mark.parametrize('count', [1, 8, 20, 90])
def test_any_number_of_earlier_keys_is_preserved(solver, count):
  """A few stay beside the factor, most are inside; whatever came before, the same bits."""
  num_edits = 1 if isinstance(solver, RankOne) else 3
  cov_FxF, key_BxF, earlier_NxF = _cov(), _keys(num_edits), _keys(count, seed=7)
  found = solver(cov_FxF, key_BxF, key_BxF, earlier_NxF)
  added = solver.residual(cov_FxF, key_BxF, found, earlier_NxF)
  assert added < 1e-10
  assert solver.residual(cov_FxF, key_BxF, found) > 1e-3
  warm_FxF = cov_FxF.copy()
  for earlier in range(0, count, 3):
    solver(warm_FxF, key_BxF, key_BxF, earlier_NxF[:earlier])
  np.testing.assert_array_equal(solver(warm_FxF, key_BxF, key_BxF, earlier_NxF), found)
  assert len(preserve(cov_FxF, 0.0, earlier_NxF).rest_NxF) == most_apart(SIZE) < SIZE / 4


@pytest.mark.parametrize('num_edits', [1, 7, 10])
def test_both_ways_of_least_squares_agree(num_edits, monkeypatch):
  cov_FxF, key_BxF, earlier_NxF = _cov(), _keys(num_edits), _keys(5, seed=3)
  small = LeastSquares(0.2)(cov_FxF, key_BxF, key_BxF, earlier_NxF)
  monkeypatch.setattr(closed_form, 'is_small', lambda *sizes: False)
  whole = LeastSquares(0.2)(cov_FxF, key_BxF, key_BxF, earlier_NxF)
  np.testing.assert_allclose(small, whole, rtol=0, atol=1e-12 * np.abs(whole).max())


def test_keys_may_make_up_for_a_singular_moment():
  cov_FxF, key_BxF = _cov(), _keys(3)
  direction_F = key_BxF[1] / np.linalg.norm(key_BxF[1])
  cov_FxF -= np.outer(direction_F, cov_FxF @ direction_F).astype(np.float32)
  cov_FxF -= np.outer(cov_FxF @ direction_F, direction_F).astype(np.float32)
  cov_FxF -= (1e-3 * np.outer(direction_F, direction_F)).astype(np.float32)
  cov_FxF = (cov_FxF + cov_FxF.T) / 2
  assert np.linalg.eigvalsh(cov_FxF)[0] < 0
  left_FxB = LeastSquares(0.5)(cov_FxF, key_BxF, key_BxF)
  expected_FxB = np.linalg.solve(0.5 * cov_FxF.astype(np.float64) + key_BxF.T @ key_BxF, key_BxF.T)
  np.testing.assert_allclose(left_FxB, expected_FxB, rtol=0, atol=1e-9 * np.abs(expected_FxB).max())


@solvers
def test_residuals_tell_right_from_wrong(solver):
  num_edits = 1 if isinstance(solver, RankOne) else 3
  cov_FxF, key_BxF = _cov(), _keys(num_edits)
  left_FxB = solver(cov_FxF, key_BxF, key_BxF)
  assert solver.residual(cov_FxF, key_BxF, left_FxB) < 1e-12
  wrong_FxB = left_FxB + 1e-3 * np.abs(left_FxB).max() * _keys(num_edits, seed=5).T
  assert solver.residual(cov_FxF, key_BxF, wrong_FxB) > 1e-4


@solvers
def test_devices_without_float64_refine(solver, monkeypatch):
  """Dimensions that differ by a factor of ten thousand, and seven digits in the factor."""
  num_edits = 1 if isinstance(solver, RankOne) else 3
  scale_F = np.exp2(np.linspace(-7, 7, SIZE).round()).astype(np.float32)
  if isinstance(solver, NullSpace):
    scale_F = np.ones_like(scale_F)
  cov_FxF = scale_F[:, None] * _cov() * scale_F[None, :]
  key_BxF, earlier_NxF = _keys(num_edits) * scale_F, _keys(11, seed=4) * scale_F
  wide = solver(cov_FxF.copy(), key_BxF, key_BxF, earlier_NxF)
  monkeypatch.setattr(factor, 'working_dtype', lambda device: np.float32)
  factor_cache._kept.clear()
  cov_FxF = cov_FxF.copy()
  refined = solver(cov_FxF, key_BxF, key_BxF, earlier_NxF)
  kept = [value for *_, value in factor_cache._kept.values() if isinstance(value, factor.Factor)]
  assert [factor.root_FxF.dtype for factor in kept] == [np.float32]
  np.testing.assert_allclose(refined, wide, rtol=0, atol=1e-10 * np.abs(wide).max())
  assert solver.residual(cov_FxF, key_BxF, refined, earlier_NxF) < 1e-9


def test_tpus_get_float32():
  class Device:
    platform = 'tpu'

  assert factor.working_dtype(Device()) == np.float32
  Device.platform = 'gpu'
  assert factor.working_dtype(Device()) == np.float64
