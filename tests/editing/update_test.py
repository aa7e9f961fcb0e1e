"""Regions are updated as a plain loop over whole forward passes updates them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from helpers import editing
from helpers.editing import relative
from jedit import methods
from jedit.editing.prompts import encode_edits
from jedit.editing.region import Region
from jedit.editing.slots import Targets
from jedit.editing.update import RegionRows, update_region
from jedit.io.progress import Timers
from jedit.models import kernel_path, site
from jedit.parallel.shapes import pad
from jedit.solvers import FactorCache, LeastSquares
from jedit.types import Kernel, UserError

KEY = {'mlp': 'mlp_in', 'attn': 'attn_in'}
TAPS = tuple(
  site(layer, place)
  for layer in range(3)
  for place in ('mlp_in', 'attn_in', 'mlp_out', 'attn_out', 'block_out')
)
COV_WEIGHT = 0.7


@jax.jit
def _all_sites(model, token_NxT):
  return model(token_NxT, taps=TAPS)[1]


def _edits(lm):
  return encode_edits(lm.tokenizer, editing.REQUESTS[:3], editing.CONTEXTS)


def _targets(region, width):
  """A target for every edit, by δ."""
  rng = np.random.default_rng(5)
  return {d.name: rng.normal(size=(3, width)).astype(np.float32) for d in region.deltas}


def _read(model, texts, token, layer, place):
  """A place at a token of each text, float64, by one whole forward pass."""
  token_NxT, _ = pad([text.ids for text in texts], 24)
  seen = _all_sites(model, token_NxT)
  at = [getattr(text, token) for text in texts]
  return np.asarray(seen[site(layer, place)], np.float64)[np.arange(len(texts)), at]


def _mean(model, region, edits, layer, place):
  """Mean in each group of contexts, then over groups; or over all contexts."""
  means = []
  for edit in edits:
    texts = edit.without_target
    value_PxN = _read(model, texts, region.token, layer, place)
    if region.key_average == 'flat':
      means.append(value_PxN.mean(0))
      continue
    groups, first = [], 0
    for group in editing.CONTEXTS:
      groups.append(value_PxN[first : first + len(group)].mean(0))
      first += len(group)
    means.append(np.mean(groups, axis=0))
  return np.array(means)


def _with_kernel(model, kernel, array):
  block, part, leaf = kernel_path(kernel)[:3]
  params = model.params
  changed = {**params[block][part][leaf], 'kernel': array.astype(np.float32)}
  changed = {**params[block], part: {**params[block][part], leaf: changed}}
  return model.replace(params={**params, block: changed})


def _plain_loop(lm, region, edits, z, moments):
  """Updates, keys and residuals by kernel, least squares by `numpy.linalg.solve`."""
  model, found = lm.model, {}
  bare = [edit.bare for edit in edits]
  for number, layer in enumerate(region.layers):
    left = len(region.layers) - number
    share = left if region.schedule == 'even' else np.sqrt(left)
    before = model
    for update in region.updates:
      kernel = Kernel(layer, update.kernel)
      key_BxF = _mean(
        before if region.keys_together else model, region, edits, layer, KEY[update.kernel]
      )
      place = region.layers[-1], update.compare
      now_BxD = _read(model, bare, region.token, *place)
      if region.compared_on == 'contexts':
        now_BxD = _mean(model, region, edits, *place)
      residual_BxD = (z[update.delta] - now_BxD) / share
      preserved = COV_WEIGHT * np.asarray(moments.cov[kernel], np.float64)
      update_FxD = np.linalg.solve(preserved + key_BxF.T @ key_BxF, key_BxF.T @ residual_BxD)
      path = kernel_path(kernel)
      kernel_FxD = np.asarray(model.params[path[0]][path[1]][path[2]]['kernel'], np.float64)
      model = _with_kernel(model, kernel, kernel_FxD + update_FxD)
      found[kernel] = update_FxD, key_BxF, residual_BxD
  return model, found


def _region(method, **changes) -> Region:
  (region,) = method.regions
  return dataclasses.replace(region, **changes)


_MEMIT = methods.memit(layers=(0, 2), cov_weight=COV_WEIGHT)
_PMET = methods.pmet(layers=(0, 1), cov_weight=COV_WEIGHT, write=('attn', 'mlp'))
# A layer list with a hole: what is left is counted in layers of the list.
REGIONS = {
  'even': ('gptj', _MEMIT, {}),
  'sqrt_flat': ('gptj', _MEMIT, {'schedule': 'sqrt', 'key_average': 'flat'}),
  'prompt_last': ('gptj', _MEMIT, {'token': 'prompt_last'}),
  'contexts': ('gptj', _MEMIT, {'compared_on': 'contexts'}),
  'both_kernels': ('llama', _PMET, {}),
  'both_kernels_together': ('llama', _PMET, {'keys_together': True}),
}


def _updated(lm, region, edits, z, moments):
  factors = None if moments is None else FactorCache(moments)
  start = {name: np.zeros_like(value) for name, value in z.items()}
  targets = Targets(z, start, {}, np.zeros(len(edits)), np.zeros((len(edits), 0, 7)), 1, 1)
  return update_region(lm.model, region, edits, editing.CONTEXTS, targets, factors, Timers())


@functools.cache
def _both(name):
  family, method, changes = REGIONS[name]
  lm, region = editing.language_model(family), _region(method, **changes)
  edits = _edits(lm)
  z, moments = _targets(region, lm.config.width), editing.second_moments(lm, method)
  return _updated(lm, region, edits, z, moments), _plain_loop(lm, region, edits, z, moments)


@pytest.mark.parametrize('name', REGIONS)
def test_regions_are_updated_as_by_the_plain_loop(name):
  ours, (model, expected) = _both(name)
  assert set(ours.keys) == set(ours.residuals) == set(expected)
  assert set(ours.updates) == {'/'.join(kernel_path(kernel)) for kernel in expected}
  for kernel, (update_FxD, key_BxF, residual_BxD) in expected.items():
    assert relative(ours.keys[kernel], key_BxF) < 1e-5
    assert relative(ours.residuals[kernel], residual_BxD) < 1e-4
    path = kernel_path(kernel)
    # Float32 kernels round what the next layer reads; measured 1e-5.
    assert relative(ours.updates['/'.join(path)].value(), update_FxD) < 1e-3
    updated, plain = (
      each.params[path[0]][path[1]][path[2]]['kernel'] for each in (ours.model, model)
    )
    np.testing.assert_allclose(updated, plain, rtol=0, atol=1e-3 * np.abs(update_FxD).max())
    assert 0 < ours.solve_errors[kernel] < 1e-12


def test_settings_of_the_cases_make_a_difference():
  """The loops above would agree without them; here the cases differ."""

  def updates(name):
    return np.concatenate([u.value().ravel() for u in _both(name)[0].updates.values()])

  assert relative(updates('even'), updates('sqrt_flat')) > 0.05
  assert relative(updates('even'), updates('prompt_last')) > 0.05
  assert relative(updates('even'), updates('contexts')) > 0.05
  assert relative(updates('both_kernels'), updates('both_kernels_together')) > 0.01


@pytest.mark.parametrize('average', ['groups', 'flat'])
def test_keys_are_averaged_over_contexts(average):
  lm, region = editing.language_model(), _region(_MEMIT, key_average=average)
  edits, kernel = _edits(lm), Kernel(1, 'mlp')
  rows = RegionRows(edits, region, editing.CONTEXTS)
  rows.advance(lm.model, 1)
  key_BxF, bare_BxF = rows.keys(lm.model, kernel)
  assert relative(key_BxF, _mean(lm.model, region, edits, 1, KEY[kernel.name])) < 1e-5
  bare = [edit.bare for edit in edits]
  assert relative(bare_BxF, _read(lm.model, bare, region.token, 1, 'mlp_in')) < 1e-5
  weights = {'groups': [1 / 2, 1 / 4, 1 / 4], 'flat': [1 / 3, 1 / 3, 1 / 3]}
  np.testing.assert_allclose(rows.weight_P, weights[average])


def test_a_region_without_updates_changes_nothing():
  lm, region = editing.language_model(), _region(_MEMIT, updates=())
  updated = _updated(lm, region, _edits(lm), {}, None)
  assert updated.model.params is lm.params
  assert not updated.updates and not updated.keys and not updated.residuals


class _Inexact(LeastSquares):
  """Misses two per cent of the right-hand side."""

  def solve(self, *arguments):
    return 0.98 * super().solve(*arguments)


def test_solves_that_fail_name_kernel_and_layer():
  lm, region = editing.language_model(), _region(_MEMIT, solver=LeastSquares(50.0))
  moments, edits = editing.second_moments(lm, _MEMIT), _edits(lm)
  moments.cov[Kernel(2, 'mlp')] = -moments.cov[Kernel(2, 'mlp')]
  z = _targets(region, lm.config.width)
  with pytest.raises(UserError, match='mlp kernel in layer 2 over 3 edits failed: .*more tokens'):
    _updated(lm, region, edits, z, moments)
  moments, inexact = editing.second_moments(lm, _MEMIT), _region(_MEMIT, solver=_Inexact(0.5))
  with pytest.raises(UserError, match='mlp kernel in layer 0 .* misses .* by 0.02 .*more tokens'):
    _updated(lm, inexact, edits, z, moments)
  z['block'][1, 3] = np.nan
  with pytest.raises(
    UserError, match='residual of record 12 .* at the mlp kernel in layer 0 is not'
  ):
    _updated(lm, region, edits, z, moments)
