"""Factors of second moments: made once per cache, reused, and released with it."""

import gc
import weakref

import numpy as np
import pytest

from helpers import editing
from helpers.solving import residual, solve
from jedit import methods
from jedit.editing.edit import Separate, Sequential, edit
from jedit.solvers import (
  Covariance,
  EqualityConstrained,
  FactorCache,
  LeastSquares,
  NullSpace,
  RankOne,
  UnsolvableError,
  block_cholesky,
  block_factor,
  budget,
  check_error,
  devices,
  factor,
  factor_cache,
  matrix,
  spectrum,
)
from jedit.solvers.factor import Factor
from jedit.solvers.penalty import max_unfactored_keys
from jedit.types import Kernel

SIZE = 40
CONTEXTS = (('{}',),)
KERNELS = Kernel(0, 'mlp'), Kernel(1, 'mlp')
SOLVERS = [LeastSquares(3.0), EqualityConstrained(2.0, 0.3, 0.1), RankOne(), NullSpace(0.8, 0.5)]
solvers = pytest.mark.parametrize('solver', SOLVERS, ids=lambda solver: type(solver).__name__)


def _cov(seed=0, size=SIZE):
  rng = np.random.default_rng(seed)
  root = rng.normal(size=(3 * size, size))
  return (root.T @ root / len(root)).astype(np.float32)


def _ill_conditioned(condition, size=SIZE):
  """Float64, with a diagonal that scaling cannot improve."""
  rng = np.random.default_rng(2)
  vector_FxF, _ = np.linalg.qr(rng.normal(size=(size, size)))
  cov_FxF = (vector_FxF * np.geomspace(1, 1 / condition, size)) @ vector_FxF.T
  return (cov_FxF + cov_FxF.T) / 2


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
  monkeypatch.setattr(spectrum, '_eigh', counted(spectrum._eigh, 'spectrum'))
  return found


@pytest.fixture
def without_float64(monkeypatch):
  for module in (block_factor, budget, factor_cache):
    monkeypatch.setattr(module, 'working_dtype', lambda device: np.float32)


@solvers
def test_one_factor_serves_every_batch(solver, made):
  cov, count = Covariance(_cov()), 1 if isinstance(solver, RankOne) else 3
  for seed in range(3):
    key_BxF = _keys(count, seed)
    found = solve(solver, cov, key_BxF)
    alone = solve(solver, _cov(), key_BxF)
    np.testing.assert_array_equal(found, alone)
  # Those alone take one each.
  is_null_space = isinstance(solver, NullSpace)
  assert made == 4 * ['spectrum' if is_null_space else 'factor']


def test_one_factor_serves_every_weight_and_method(made):
  cov, key_BxF = Covariance(_cov()), _keys(3)
  for solver in (LeastSquares(0.1), LeastSquares(9.0), EqualityConstrained(2.0, 0.0, 0.1)):
    solve(solver, cov, key_BxF)
  assert made == ['factor']
  solve(EqualityConstrained(2.0, 0.3, 0.1), cov, key_BxF)
  assert made == ['factor'] * 2  # a ridge makes another matrix


def test_batches_of_edits_factor_each_layer_once(made):
  lm = editing.language_model('gptj', num_layers=3)
  method = methods.memit(layers=(0, 1), cov_weight=0.5, num_steps=1)
  moments = editing.second_moments(lm, method)
  for calls, batching in enumerate((Separate(2), Sequential(2)), 1):
    found = edit(lm, editing.REQUESTS[:4], method, moments, contexts=CONTEXTS, batching=batching)
    assert len(found.batches) == 2
    assert made == ['factor'] * 2 * calls


def test_a_matrix_that_was_changed_is_factored_again(made):
  source, key_BxF, (kernel, _) = {KERNELS[0]: _cov()}, _keys(3), KERNELS
  factors = FactorCache(source)
  solve(LeastSquares(1.0), factors[kernel], key_BxF)
  source[kernel] *= 2
  changed = solve(LeastSquares(1.0), factors[kernel], key_BxF)
  np.testing.assert_array_equal(changed, solve(LeastSquares(1.0), 2 * _cov(), key_BxF))
  source[kernel] = source[kernel].copy()
  np.testing.assert_array_equal(changed, solve(LeastSquares(1.0), factors[kernel], key_BxF))
  assert len(made) == 4


def test_factors_belong_to_their_cache(made):
  """No module keeps them: a second cache makes its own, and they go with the cache at once."""
  source, key_BxF = {KERNELS[0]: _cov()}, _keys(3)
  one, other = FactorCache(source), FactorCache(source)
  assert one.source is other.source is source
  for factors in (one, other, one):
    solve(LeastSquares(1.0), factors[KERNELS[0]], key_BxF)
  assert made == ['factor'] * 2
  _, kept = one[KERNELS[0]].kept[Factor]
  reference = weakref.ref(kept)
  gc.disable()
  try:
    del one, kept, factors
    assert reference() is None
  finally:
    gc.enable()


def test_second_moments_name_the_kernel_they_lack():
  lm = editing.language_model()
  moments = editing.second_moments(lm, methods.memit(layers=(0, 1), cov_weight=0.5))
  factors = FactorCache(moments)
  assert factors[KERNELS[0]].cov_FxF is moments.covariance(KERNELS[0])
  with pytest.raises(ValueError, match='no second moments of .*layer 7'):
    factors[Kernel(7, 'mlp')]


def test_what_does_not_fit_is_made_anew_with_the_same_bits(made, monkeypatch):
  source, key_BxF = dict(zip(KERNELS, [_cov(0), _cov(1)], strict=True)), _keys(3)
  factors = FactorCache(source)
  kept = [solve(LeastSquares(1.0), factors[kernel], key_BxF) for kernel in KERNELS]
  one = factors[KERNELS[0]].kept[Factor][1].nbytes
  del made[:]
  # Half of what is free without the cache has room for one of them and not for two.
  factors = FactorCache(source)
  held = [0]
  monkeypatch.setattr(budget, 'num_sharing', lambda device: 1)
  monkeypatch.setattr(budget, 'free_bytes', lambda device: 3 * one - held[0])
  for _ in range(2):
    again = []
    for kernel in KERNELS:
      again.append(solve(LeastSquares(1.0), factors[kernel], key_BxF))
      held[0] = sum(one for kernel in KERNELS if factors[kernel].kept)
    np.testing.assert_array_equal(again, kept)
  assert len(made) == 3  # the first stays, the second does not


def test_memory_that_others_take_is_not_kept(made, monkeypatch):
  """The bound is free memory, not the size of the device."""
  monkeypatch.setattr(budget, 'free_bytes', lambda device: 1000)
  cov, key_BxF = Covariance(_cov()), _keys(3)
  for _ in range(2):
    solve(LeastSquares(1.0), cov, key_BxF)
  assert len(made) == 2 and not cov.kept


@solvers
def test_solve_and_residual_share_a_factor_that_is_not_kept(solver, made, monkeypatch):
  """One eigendecomposition per layer and batch, and no factor of the identity."""
  monkeypatch.setattr(budget, 'free_bytes', lambda device: 0)
  key_BxF = _keys(1 if isinstance(solver, RankOne) else 3)
  state = solver.init(Covariance(_cov()), len(key_BxF))
  left_FxB = solver.solve(state, key_BxF, key_BxF)
  assert solver.residual(state, key_BxF, left_FxB) < 1e-12
  assert made == ['spectrum' if isinstance(solver, NullSpace) else 'factor']


def test_the_identity_is_factored_for_many_earlier_keys_alone(made):
  cov, key_BxF = Covariance(_cov()), _keys(3)
  solver, limit = NullSpace(10.0, 0.5), max_unfactored_keys(SIZE)  # all directions are free
  for count in (0, 1, limit - 1):
    solve(solver, cov, key_BxF, None, _keys(count, seed=7))
  assert made == ['spectrum']
  for count in (limit, limit + 1, 2 * limit - 1):
    solve(solver, cov, key_BxF, None, _keys(count, seed=7))
  assert made == ['spectrum', 'factor']


@solvers
@pytest.mark.parametrize('count', [1, 8, 20, 90])
def test_any_number_of_earlier_keys_is_preserved(solver, count):
  """A few stay beside the factor, most are inside; whatever came before, the same bits."""
  num_edits = 1 if isinstance(solver, RankOne) else 3
  cov, key_BxF, earlier_NxF = Covariance(_cov()), _keys(num_edits), _keys(count, seed=7)
  found = solve(solver, cov, key_BxF, None, earlier_NxF)
  added = residual(solver, cov, key_BxF, found, earlier_NxF)
  assert added < 1e-10
  assert residual(solver, cov, key_BxF, found) > 1e-3
  warm = Covariance(_cov())
  for earlier in range(0, count, 3):
    solve(solver, warm, key_BxF, None, earlier_NxF[:earlier])
  np.testing.assert_array_equal(solve(solver, warm, key_BxF, None, earlier_NxF), found)
  assert max_unfactored_keys(SIZE) < SIZE / 4


@pytest.mark.parametrize(
  'solver', [LeastSquares(0.2), EqualityConstrained(0.5, 0.0, 0.2), NullSpace(0.8, 0.5)]
)
@pytest.mark.parametrize('num_edits', [2, 7, 10, 25, 41, 100])
def test_both_ways_of_least_squares_agree(solver, num_edits, monkeypatch):
  key_BxF, earlier_NxF = _keys(num_edits), _keys(5, seed=3)
  found = []
  for is_small in (True, False):
    monkeypatch.setattr(Covariance, 'is_small', lambda *sizes, is_small=is_small: is_small)
    found.append(solve(solver, _cov(), key_BxF, None, earlier_NxF))
  np.testing.assert_allclose(*found, rtol=0, atol=1e-12 * np.abs(found[1]).max())


def test_keys_may_make_up_for_a_singular_moment():
  cov_FxF, key_BxF = _cov(), _keys(3)
  direction_F = key_BxF[1] / np.linalg.norm(key_BxF[1])
  cov_FxF -= np.outer(direction_F, cov_FxF @ direction_F).astype(np.float32)
  cov_FxF -= np.outer(cov_FxF @ direction_F, direction_F).astype(np.float32)
  cov_FxF -= (1e-3 * np.outer(direction_F, direction_F)).astype(np.float32)
  cov_FxF = (cov_FxF + cov_FxF.T) / 2
  assert np.linalg.eigvalsh(cov_FxF)[0] < 0
  left_FxB = solve(LeastSquares(0.5), cov_FxF, key_BxF)
  expected_FxB = np.linalg.solve(0.5 * cov_FxF.astype(np.float64) + key_BxF.T @ key_BxF, key_BxF.T)
  np.testing.assert_allclose(left_FxB, expected_FxB, rtol=0, atol=1e-9 * np.abs(expected_FxB).max())


@solvers
@pytest.mark.parametrize('num_edits', [3, 15, 30, 55])
def test_residuals_tell_right_from_wrong(solver, num_edits, monkeypatch):
  """In every regime of sizes, and over several chunks of edits."""
  monkeypatch.setattr(matrix, '_CHUNK', 20)
  num_edits = 1 if isinstance(solver, RankOne) else num_edits
  cov, key_BxF = Covariance(_cov()), _keys(num_edits)
  left_FxB = solve(solver, cov, key_BxF)
  assert residual(solver, cov, key_BxF, left_FxB) < 1e-12
  wrong_FxB = left_FxB + 1e-3 * np.abs(left_FxB).max() * _keys(num_edits, seed=5).T
  assert residual(solver, cov, key_BxF, wrong_FxB) > 1e-4
  left_FxB[3, -1] = np.nan
  assert np.isnan(residual(solver, cov, key_BxF, left_FxB))


@pytest.mark.parametrize('solver', [each for each in SOLVERS if not isinstance(each, RankOne)])
def test_beyond_as_many_edits_as_dimensions_none_meet_all_others(solver):
  """A B x B matrix in float64 would take 3.2 GB here, and F x B takes 5 MB."""
  cov, key_BxF = Covariance(_cov(size=32)), _keys(20_000, size=32)
  before = _peak_megabytes(reset=True)
  state = solver.init(cov, len(key_BxF))
  left_FxB = solver.solve(state, key_BxF, key_BxF)
  assert solver.residual(state, key_BxF, left_FxB) < 1e-12
  assert _peak_megabytes() - before < 500


def _peak_megabytes(reset=False):
  """Peak resident memory of this process."""
  try:
    if reset:
      with open('/proc/self/clear_refs', 'w') as file:
        file.write('5')
    with open('/proc/self/status') as file:
      (line,) = [line for line in file if line.startswith('VmHWM')]
  except OSError:
    pytest.skip('peak memory is read from /proc')
  return int(line.split()[1]) / 1024


@solvers
def test_devices_without_float64_refine(solver, without_float64, monkeypatch):
  """Dimensions that differ by a factor of ten thousand, and seven digits in the factor."""
  num_edits = 1 if isinstance(solver, RankOne) else 3
  scale_F = np.exp2(np.linspace(-7, 7, SIZE).round()).astype(np.float32)
  if isinstance(solver, NullSpace):
    scale_F = np.ones_like(scale_F)
  cov = Covariance(scale_F[:, None] * _cov() * scale_F[None, :])
  key_BxF, earlier_NxF = _keys(num_edits) * scale_F, _keys(11, seed=4) * scale_F
  refined = solve(solver, cov, key_BxF, None, earlier_NxF)
  holder = cov.zero(cov._zero.size) if isinstance(solver, NullSpace) else cov
  _, kept = holder.kept[Factor]
  assert kept.root_FxF.dtype == np.float32
  assert 'in_float64' not in vars(kept)
  assert residual(solver, cov, key_BxF, refined, earlier_NxF) < 1e-9
  monkeypatch.undo()
  wide = solve(solver, cov.cov_FxF, key_BxF, None, earlier_NxF)
  np.testing.assert_allclose(refined, wide, rtol=0, atol=1e-10 * np.abs(wide).max())


@pytest.mark.parametrize('condition', [1e8, 1e9, 1e10])
@pytest.mark.parametrize('solver', [LeastSquares(3.0), RankOne('mean_key')])
def test_refinement_that_stalls_leaves_it_to_the_host(
  solver, condition, without_float64, monkeypatch
):
  """Float32 alone is off by 0.5 at 1e8 and has no factor at 1e9, where float64 solves."""
  cov, key_BxF = Covariance(_ill_conditioned(condition)), _keys(1)
  factorised = []
  for module, name in ((block_cholesky, 'factorise'), (factor, '_factorise')):
    original = getattr(module, name)
    counted = lambda x, *a, make=original: factorised.append(x.dtype) or make(x, *a)  # noqa: E731
    monkeypatch.setattr(module, name, counted)
  found = [solve(solver, cov, key_BxF) for _ in range(2)]
  assert factorised == [np.float32, np.float64]  # once, and kept
  assert residual(solver, cov, key_BxF, found[0]) < 1e-17 * condition + 1e-9
  monkeypatch.undo()
  wide = solve(solver, cov.cov_FxF, key_BxF)
  for each in found:
    np.testing.assert_array_equal(each, wide)


def test_many_edits_are_not_refined(without_float64):
  """Refining more than F/4 solutions takes more float64 operations than the factor."""
  key_BxF = _keys(30)
  found = solve(LeastSquares(3.0), _cov(), key_BxF)
  expected_FxB = np.linalg.solve(3.0 * _cov().astype(np.float64) + key_BxF.T @ key_BxF, key_BxF.T)
  np.testing.assert_allclose(found, expected_FxB, rtol=0, atol=1e-14 * np.abs(expected_FxB).max())


def test_systems_beyond_float64_name_a_remedy_that_helps(without_float64):
  cov, key_BxF, solver = Covariance(_ill_conditioned(1e17)), _keys(1), RankOne('mean_key')
  with pytest.raises(UnsolvableError, match='over more tokens') as caught:
    check_error(residual(solver, cov, key_BxF, solve(solver, cov, key_BxF)))
  assert 'cov_weight' not in caught.value.reason


def test_tpus_get_float32():
  class Device:
    platform = 'tpu'

  assert devices.working_dtype(Device()) == np.float32
  Device.platform = 'gpu'
  assert devices.working_dtype(Device()) == np.float64
