"""Nets start as the identity and learn from there; running statistics are those of all rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jedit
from helpers import editing
from jedit.hypernetworks.net import init, positive, transform
from jedit.hypernetworks.ridge import Ridge
from jedit.hypernetworks.statistics import Statistics
from jedit.types import UserError

ROWS = np.random.default_rng(0).normal(2.0, 3.0, (9, 5)).astype(np.float32)


def _pushed(parts, form):
  found = Statistics.empty(5)
  for part in parts:
    found = found.push(jnp.asarray(part), jnp.ones(len(part), bool), form)
  return found


def test_the_activation_has_derivative_one_at_zero():
  assert [float(jax.grad(positive)(x)) for x in (-1.0, 0.0, 1.0)] == [0.0, 1.0, 1.0]


def test_exact_statistics_do_not_depend_on_the_parts():
  for parts in ([ROWS], [ROWS[:1], ROWS[1:2], ROWS[2:]], [ROWS[:4], ROWS[4:]]):
    found = _pushed(parts, 'exact')
    assert int(found.count) == 9
    np.testing.assert_allclose(found.mean_C, ROWS.mean(0), rtol=1e-6)
    np.testing.assert_allclose(found.square_C, ROWS.var(0) * 9, rtol=1e-5)


def test_released_statistics_count_the_unbiased_variance_of_a_batch_by_all_its_rows():
  found = _pushed([ROWS], 'released')
  np.testing.assert_allclose(found.square_C, ROWS.var(0, ddof=1) * 9, rtol=1e-5)
  assert np.isnan(_pushed([ROWS[:1]], 'released').square_C).all()


def test_rows_that_do_not_exist_change_nothing():
  some = _pushed([ROWS], 'exact')
  exists_R = jnp.asarray([True] * 3 + [False] * 6)
  for form in ('exact', 'released'):
    part = Statistics.empty(5).push(jnp.asarray(ROWS), exists_R, form)
    np.testing.assert_allclose(part.mean_C, ROWS[:3].mean(0), rtol=1e-5)
    same = some.push(jnp.asarray(ROWS), jnp.zeros(9, bool), form)
    jax.tree.map(np.testing.assert_array_equal, same, some)


@pytest.mark.parametrize('name', ['mend', 'malmen'])
def test_a_fresh_net_is_the_identity_and_has_a_gradient(name):
  lm = editing.language_model('gptj')
  method = getattr(jedit.methods, name)(layers=(1, 2), kernels=('mlp',), rank=3)
  params, statistics = init(lm.config, method, jax.random.key(0))
  [net] = params
  row_RxC = jnp.asarray(np.random.default_rng(1).normal(size=(4, 40)), jnp.float32)
  np.testing.assert_array_equal(transform(params[net], 1, row_RxC, name), row_RxC)
  grad = jax.grad(lambda p: (transform(p[net], 1, row_RxC, name) ** 2).sum())(params)
  assert np.abs(grad[net]['blocks']['0']['up']).max() > 0
  assert statistics[net].mean_C.shape == (40,)


def test_both_systems_of_the_least_squares_give_one_update_and_one_gradient():
  rng = np.random.default_rng(0)
  for count in (4, 30):  # fewer and more rows than dimensions
    key_RxI, shift_RxO = rng.normal(size=(count, 12)), rng.normal(size=(count, 3))
    ridge = Ridge(key_RxI, 0.5)
    left, right = ridge.change(shift_RxO)
    assert (right is None) == (count > 12)
    update = left if right is None else left @ right
    system_IxI = key_RxI.T @ key_RxI + 0.5 * np.eye(12)
    np.testing.assert_allclose(
      update, np.linalg.solve(system_IxI, key_RxI.T @ shift_RxO), atol=1e-9
    )
    grad_IxO = rng.normal(size=(12, 3))
    by_shift, by_ridge = ridge.pull_back(
      (left, right), grad_IxO if right is None else key_RxI @ grad_IxO
    )
    solved_IxO = np.linalg.solve(system_IxI, grad_IxO)
    np.testing.assert_allclose(by_shift, key_RxI @ solved_IxO, atol=1e-9)
    np.testing.assert_allclose(by_ridge, -0.5 * (solved_IxO * update).sum(), atol=1e-9)


@pytest.mark.parametrize(
  ('name', 'fields', 'words'),
  [
    ('mend', dict(kernels=('mlp_gate',)), 'has no kernel 1/mlp_gate'),
    ('mend', dict(kernels=('mlp_mid',)), "no kernel 'mlp_mid'"),
    ('malmen', dict(layers=(7,)), 'the model has layers 0 to 2'),
  ],
)
def test_a_kernel_that_the_model_lacks_is_a_sentence(name, fields, words):
  method = getattr(jedit.methods, name)(**{'layers': (1,), **fields})
  with pytest.raises(UserError, match=words):
    method.check(editing.language_model('gptj').config, 3)


@pytest.mark.parametrize(
  ('name', 'fields', 'words'),
  [
    ('mend', dict(sign='plus'), "sign is 'plus'; choose one of released, paper"),
    ('malmen', dict(denominator='mean'), "denominator is 'mean'"),
    ('malmen', dict(cached_tokens='last'), "cached_tokens is 'last'"),
    ('mend', dict(rank=0), 'rank is 0; give a whole number of at least 1'),
    ('mend', dict(learning_rate=0.0), 'learning_rate is 0.0; give a number above 0'),
    ('malmen', dict(patience=10), 'patience needs validation'),
    ('malmen', dict(validation_interval=10), 'give num_validation'),
    ('malmen', dict(kernels=()), r'kernels is \(\)'),
    ('mend', dict(kernels=('mlp', 'mlp')), 'list each kernel once'),
  ],
)
def test_mistakes_in_settings_are_sentences(name, fields, words):
  with pytest.raises(UserError, match=words):
    getattr(jedit.methods, name)(layers=(1,), **fields)
