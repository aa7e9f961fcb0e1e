"""Solvers against linear algebra that shares no code with them, and what the updates promise."""

import functools
import os
import pathlib

import numpy as np
import pytest

from helpers.solving import solve
from jedit.solvers import (
  Covariance,
  EqualityConstrained,
  LeastSquares,
  NullSpace,
  RankOne,
  UnsolvableError,
)
from jedit.solvers.penalty import Penalty
from jedit.types import UserError

_DEFAULT = pathlib.Path(__file__).parents[3] / 'shared' / 'golden'
_FOLDERS = [pathlib.Path(p) for p in os.environ.get('JEDIT_GOLDEN', str(_DEFAULT)).split(':')]
_ARCHIVES = [folder / 'solvers' / 'solvers.npz' for folder in _FOLDERS]
_STORED = next((path for path in _ARCHIVES if path.is_file()), None)
_INPUTS = ('K', 'R', 'C', 'bare_key')

needs_stored = pytest.mark.skipif(
  _STORED is None, reason='no solvers.npz: set JEDIT_GOLDEN or provide ../shared/golden'
)


def _equality_with_ridge_for_one(cov_weight, cov_ridge, key_ridge):
  """The stored updates have the key ridge for a single edit, unlike the solver."""

  def solve_with_ridge(cov_FxF, key_BxF, _):
    penalty = Penalty(Covariance(cov_FxF), cov_ridge / cov_weight)
    return penalty.regularized(key_BxF, cov_weight * key_ridge)

  return solve_with_ridge


_SOLVERS = {
  'least_squares_lam20': functools.partial(solve, LeastSquares(20.0)),
  'least_squares_lam0p5': functools.partial(solve, LeastSquares(0.5)),
  'equality_ridge0p1': _equality_with_ridge_for_one(1.0, 0.0, 0.1),
  'equality_lam5_ridgec0p3_ridged0p1': _equality_with_ridge_for_one(5.0, 0.3, 0.1),
  'equality_exact': functools.partial(solve, EqualityConstrained(1.0, 0.0, 0.0)),
  'rank_one_bare_key': functools.partial(solve, RankOne('bare_key')),
  'rank_one_same_key': functools.partial(solve, RankOne('mean_key')),
}


def _stored_updates() -> list[str]:
  if _STORED is None:
    return []
  with np.load(_STORED) as archive:
    return [name for name in archive.files if name.split('__')[1] not in _INPUTS]


def _relative(ours, theirs):
  return np.abs(ours - theirs).max() / np.abs(theirs).max()


def _problem(num_edits, size=12, width=5, seed=0):
  """C, K, R and the keys of the bare prompts, float64."""
  rng = np.random.default_rng(seed)
  root = rng.normal(size=(3 * size, size))
  key_BxF = rng.normal(size=(num_edits, size))
  residual_BxD = rng.normal(size=(num_edits, width))
  bare_BxF = key_BxF + 0.1 * rng.normal(size=key_BxF.shape)
  return root.T @ root / len(root), key_BxF, residual_BxD, bare_BxF


@needs_stored
def test_every_stored_update_is_tried():
  names = [name.split('__') for name in _stored_updates()]
  assert {solver for _, solver in names} == set(_SOLVERS)
  assert {case for case, _ in names} == {'n1', 'n7', 'n100'}


@needs_stored
@pytest.mark.parametrize('name', _stored_updates())
def test_stored_updates_are_met(name):
  case, solver = name.split('__')
  with np.load(_STORED) as archive:
    stored = {
      key.removeprefix(f'{case}__'): archive[key]
      for key in archive.files
      if key.startswith(f'{case}__')
    }
  bare_BxF = stored['bare_key'][None] if 'bare_key' in stored else stored['K']
  left_FxB = _SOLVERS[solver](stored['C'], stored['K'], bare_BxF)
  assert left_FxB.dtype == np.float64
  assert _relative((left_FxB @ stored['R']).T, stored[solver]) < 1e-9


@needs_stored
@pytest.mark.parametrize('case', ['n7', 'n100'])
def test_the_key_ridge_counts_for_several_edits(case):
  with np.load(_STORED) as archive:
    key_BxF, residual_BxD, cov_FxF = (archive[f'{case}__{name}'] for name in 'KRC')
    stored = archive[f'{case}__equality_lam5_ridgec0p3_ridged0p1']
  left_FxB = solve(EqualityConstrained(5.0, 0.3, 0.1), cov_FxF, key_BxF, key_BxF)
  assert _relative((left_FxB @ residual_BxD).T, stored) < 1e-9


@pytest.mark.parametrize('num_edits', [1, 5])
def test_least_squares_is_the_minimum(num_edits):
  """W [C^½ √λ; K] is fitted to [0; R] by an orthogonal factorisation, not normal equations."""
  cov_FxF, key_BxF, residual_BxD, bare_BxF = _problem(num_edits)
  left_FxB = solve(LeastSquares(3.0), cov_FxF, key_BxF, bare_BxF)
  preserved_FxF = np.sqrt(3.0) * np.linalg.cholesky(cov_FxF).T
  rows = np.concatenate([preserved_FxF, key_BxF])
  wanted = np.concatenate([np.zeros((len(cov_FxF), residual_BxD.shape[1])), residual_BxD])
  expected_FxD, *_ = np.linalg.lstsq(rows, wanted, rcond=None)
  assert _relative(left_FxB @ residual_BxD, expected_FxD) < 1e-9


def test_equality_constrained_is_the_minimum_under_its_constraint():
  """The saddle point of the Lagrangian, solved as one system."""
  cov_FxF, key_BxF, residual_BxD, bare_BxF = _problem(4)
  left_FxB = solve(EqualityConstrained(key_ridge=0.0), cov_FxF, key_BxF, bare_BxF)
  system = np.block([[cov_FxF, key_BxF.T], [key_BxF, np.zeros((4, 4))]])
  right = np.concatenate([np.zeros((len(cov_FxF), residual_BxD.shape[1])), residual_BxD])
  expected_FxD = np.linalg.solve(system, right)[: len(cov_FxF)]
  assert _relative(left_FxB @ residual_BxD, expected_FxD) < 1e-9


@pytest.mark.parametrize('num_edits', [1, 4])
def test_keys_map_to_residuals_where_nothing_is_preserved(num_edits):
  cov_FxF, key_BxF, residual_BxD, bare_BxF = _problem(num_edits)
  solved = key_BxF @ solve(LeastSquares(1e-10), cov_FxF, key_BxF, bare_BxF) @ residual_BxD
  assert _relative(solved, residual_BxD) < 1e-8
  kept = key_BxF @ solve(LeastSquares(1.0), cov_FxF, key_BxF, bare_BxF) @ residual_BxD
  assert _relative(kept, residual_BxD) > 0.01
  forced = key_BxF @ solve(EqualityConstrained(7.0, 0.2, 0.0), cov_FxF, key_BxF, bare_BxF)
  assert _relative(forced @ residual_BxD, residual_BxD) < 1e-9


def test_equality_for_one_edit_is_rome():
  matrices = _problem(1)
  cov_FxF, key_BxF, _, bare_BxF = matrices
  rome = solve(RankOne('mean_key'), cov_FxF, key_BxF, bare_BxF)
  # The released key ridge is left out for one edit, and λ cancels.
  emmet = solve(EqualityConstrained(4.0, 0.0, 0.1), cov_FxF, key_BxF, bare_BxF)
  assert _relative(emmet, rome) < 1e-9
  expected_Fx1 = np.linalg.solve(cov_FxF, key_BxF.T)
  assert _relative(rome, expected_Fx1 / (key_BxF @ expected_Fx1)) < 1e-9


@pytest.mark.parametrize('divide_by', ['bare_key', 'mean_key'])
def test_rank_one_maps_the_chosen_key_to_the_residual(divide_by):
  cov_FxF, key_BxF, residual_BxD, bare_BxF = _problem(1)
  update_FxD = solve(RankOne(divide_by), cov_FxF, key_BxF, bare_BxF) @ residual_BxD
  chosen, other = (bare_BxF, key_BxF) if divide_by == 'bare_key' else (key_BxF, bare_BxF)
  assert _relative(chosen @ update_FxD, residual_BxD) < 1e-9
  assert _relative(other @ update_FxD, residual_BxD) > 1e-3


def test_a_larger_weight_changes_old_keys_less():
  cov_FxF, key_BxF, residual_BxD, bare_BxF = _problem(4)
  costs = []
  for cov_weight in (0.1, 1.0, 10.0):
    update_FxD = solve(LeastSquares(cov_weight), cov_FxF, key_BxF, bare_BxF) @ residual_BxD
    costs.append(np.trace(update_FxD.T @ cov_FxF @ update_FxD))
  assert costs[0] > 1.1 * costs[1] > 2 * costs[2]


@pytest.mark.parametrize(
  'solver',
  [LeastSquares(1.0), EqualityConstrained(), RankOne(), EqualityConstrained(key_ridge=0.0)],
)
def test_a_matrix_that_is_not_positive_definite_is_refused(solver):
  cov_FxF, key_BxF, _, bare_BxF = _problem(1)
  cov_FxF = cov_FxF - 10 * np.eye(len(cov_FxF))
  with pytest.raises(
    UnsolvableError, match='not positive definite.* second moments over more tokens'
  ):
    solve(solver, cov_FxF, key_BxF, bare_BxF)


def test_keys_that_depend_on_each_other_cannot_all_hold_exactly():
  """Cholesky of the singular inner matrix may well succeed, by rounding, with finite garbage."""
  cov_FxF, key_BxF, _, bare_BxF = _problem(5)
  key_BxF[3] = 2 * key_BxF[1]
  with pytest.raises(UnsolvableError, match='raise key_ridge above 0') as caught:
    solve(EqualityConstrained(key_ridge=0.0), cov_FxF, key_BxF, bare_BxF)
  assert sorted(caught.value.edits) == [1, 3]


def test_more_exact_edits_than_dimensions_are_refused_at_once():
  with pytest.raises(UserError, match='13 edits cannot .* 12 dimensions; raise key_ridge'):
    EqualityConstrained(key_ridge=0.0).check_size(13, 12)
  EqualityConstrained(key_ridge=0.0).check_size(12, 12)
  EqualityConstrained(key_ridge=0.1).check_size(13, 12)


_BATCHES = [LeastSquares(3.0), EqualityConstrained(2.0, 0.3, 0.1), NullSpace(0.8, 0.5)]


@pytest.mark.parametrize('solver', _BATCHES, ids=lambda solver: type(solver).__name__)
def test_earlier_keys_count_as_preserved_ones(solver):
  """Literally: EᵀE beside λC, in NumPy."""
  cov_FxF, key_BxF, residual_BxD, bare_BxF = _problem(4)
  earlier_NxF = np.random.default_rng(9).normal(size=(3, len(cov_FxF)))
  gram_FxF, eye = earlier_NxF.T @ earlier_NxF, np.eye(len(cov_FxF))
  update_FxD = solve(solver, cov_FxF, key_BxF, bare_BxF, earlier_NxF) @ residual_BxD
  if isinstance(solver, LeastSquares):
    matrix_FxF = 3.0 * cov_FxF + gram_FxF + key_BxF.T @ key_BxF
    expected_FxD = np.linalg.solve(matrix_FxF, key_BxF.T @ residual_BxD)
  elif isinstance(solver, EqualityConstrained):
    spread_FxB = np.linalg.solve(2.0 * cov_FxF + gram_FxF + 0.3 * eye, key_BxF.T)
    expected_FxD = spread_FxB @ np.linalg.solve(
      key_BxF @ spread_FxB + 0.1 * np.eye(4), residual_BxD
    )
  else:
    expected_FxD = _null_space(cov_FxF, key_BxF, residual_BxD, gram_FxF, 0.8, 0.5)
  assert _relative(update_FxD, expected_FxD) < 1e-9
  alone_FxD = solve(solver, cov_FxF, key_BxF, bare_BxF) @ residual_BxD
  assert np.abs(earlier_NxF @ update_FxD).sum() < 0.9 * np.abs(earlier_NxF @ alone_FxD).sum()


def _null_space(cov_FxF, key_BxF, residual_BxD, gram_FxF, threshold, ridge):
  """The released form: one solve with a projector from an SVD, not symmetric."""
  left_FxF, singular_F, _ = np.linalg.svd(cov_FxF)
  free_FxG = left_FxF[:, singular_F < threshold]
  assert 0 < free_FxG.shape[1] < len(cov_FxF)
  projector_FxF = free_FxG @ free_FxG.T
  matrix_FxF = projector_FxF @ (key_BxF.T @ key_BxF + gram_FxF) + ridge * np.eye(len(cov_FxF))
  return np.linalg.solve(matrix_FxF, projector_FxF @ key_BxF.T @ residual_BxD)


def test_the_null_space_is_all_that_changes():
  cov_FxF, key_BxF, residual_BxD, bare_BxF = _problem(4)
  update_FxD = solve(NullSpace(0.8, 0.5), cov_FxF, key_BxF, bare_BxF) @ residual_BxD
  expected_FxD = _null_space(cov_FxF, key_BxF, residual_BxD, 0 * cov_FxF, 0.8, 0.5)
  assert _relative(update_FxD, expected_FxD) < 1e-9
  eigenvalue_F, vector_FxF = np.linalg.eigh(cov_FxF)
  kept = vector_FxF[:, eigenvalue_F >= 0.8].T @ update_FxD
  assert np.abs(kept).max() < 1e-12 * np.abs(update_FxD).max() + 1e-12


def test_a_null_space_without_directions_is_refused():
  cov_FxF, key_BxF, _, bare_BxF = _problem(2)
  with pytest.raises(UnsolvableError, match='nothing may change; raise threshold'):
    solve(NullSpace(1e-9), cov_FxF, key_BxF, bare_BxF)


def test_rank_one_without_second_moments_takes_the_identity():
  cov_FxF, key_BxF, _, bare_BxF = _problem(1)
  ours = solve(RankOne('mean_key', uses_cov=False), None, key_BxF, bare_BxF)
  identity = solve(RankOne('mean_key'), np.eye(len(cov_FxF)), key_BxF, bare_BxF)
  assert _relative(ours, identity) < 1e-12


def test_a_key_ridge_makes_repeated_keys_solvable():
  cov_FxF, key_BxF, _, bare_BxF = _problem(2)
  key_BxF[1] = key_BxF[0]
  left_FxB = solve(EqualityConstrained(key_ridge=0.1), cov_FxF, key_BxF, bare_BxF)
  np.testing.assert_allclose(left_FxB[:, 0], left_FxB[:, 1], rtol=0, atol=1e-12)
  quadratic = key_BxF[0] @ np.linalg.solve(cov_FxF, key_BxF[0])
  np.testing.assert_allclose(key_BxF[0] @ left_FxB[:, 0], quadratic / (2 * quadratic + 0.1))


@pytest.mark.parametrize(
  ('make', 'words'),
  [
    (lambda: LeastSquares(0.0), 'cov_weight is 0.0; give a number above 0'),
    (lambda: LeastSquares('much'), "cov_weight is 'much'"),
    (lambda: LeastSquares(float('nan')), 'cov_weight is nan'),
    (lambda: EqualityConstrained(cov_weight=-1.0), 'cov_weight is -1.0'),
    (lambda: EqualityConstrained(cov_ridge=-0.1), 'cov_ridge is -0.1; give .* at least 0'),
    (lambda: EqualityConstrained(key_ridge=-0.1), 'key_ridge is -0.1'),
    (lambda: NullSpace(threshold=0.0), 'threshold is 0.0; give a number above 0'),
    (lambda: NullSpace(ridge=-1.0), 'ridge is -1.0'),
    (lambda: RankOne('last_key'), "divide_by is 'last_key'; choose bare_key or mean_key"),
  ],
)
def test_settings_out_of_range_are_named(make, words):
  with pytest.raises(UserError, match=words):
    make()


def test_rank_one_takes_one_edit():
  cov_FxF, key_BxF, _, bare_BxF = _problem(3)
  with pytest.raises(UserError, match='one edit at a time, not 3'):
    solve(RankOne(), cov_FxF, key_BxF, bare_BxF)
