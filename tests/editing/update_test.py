"""Regions are written as a plain loop over whole forward passes writes them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from helpers import editing
from helpers.editing import relative
from jedit import methods
from jedit.editing.prompts import encode_edits
from jedit.editing.update import RegionRows, write_region
from jedit.io.progress import Timers
from jedit.methods.base import Region
from jedit.models import functions, kernel_path, site
from jedit.moments.files import SecondMoments
from jedit.parallel.shapes import pad
from jedit.solvers.solve import LeastSquares
from jedit.types import Kernel, UserError

KEY = {'mlp': 'mlp_in', 'attn': 'attn_in'}
TAPS = tuple(
  site(layer, place)
  for layer in range(3)
  for place in ('mlp_in', 'attn_in', 'mlp_out', 'attn_out', 'block_out')
)
COV_WEIGHT = 0.7


@functools.partial(jax.jit, static_argnums=0)
def _all_sites(forward, params, token_NxT):
  return forward(params, token_NxT, taps=TAPS)[1]


def _edits(lm):
  return encode_edits(lm.tokenizer, editing.REQUESTS[:3], editing.CONTEXTS)


def _targets(region, width):
  rng = np.random.default_rng(5)
  return {d.name: rng.normal(size=(3, width)).astype(np.float32) for d in region.deltas}


def _read(lm, params, texts, token, layer, place):
  """A place at a token of each text, float64, by one whole forward pass."""
  token_NxT, _ = pad([text.ids for text in texts], 24)
  seen = _all_sites(functions(lm.config)[0], params, token_NxT)
  at = [getattr(text, token) for text in texts]
  return np.asarray(seen[site(layer, place)], np.float64)[np.arange(len(texts)), at]


def _mean_key(lm, params, region, edits, layer, kernel):
  """Mean in each group of contexts, then over groups; or over all contexts."""
  means = []
  for edit in edits:
    key_PxF = _read(lm, params, edit.without_target, region.token, layer, KEY[kernel])
    if region.key_average == 'flat':
      means.append(key_PxF.mean(0))
      continue
    groups, first = [], 0
    for group in editing.CONTEXTS:
      groups.append(key_PxF[first : first + len(group)].mean(0))
      first += len(group)
    means.append(np.mean(groups, axis=0))
  return np.array(means)


def _with_kernel(params, kernel, array):
  block, part, leaf = kernel_path(kernel)[:3]
  changed = {**params[block][part][leaf], 'kernel': array.astype(np.float32)}
  return {**params, block: {**params[block], part: {**params[block][part], leaf: changed}}}


def _plain_loop(lm, region, edits, z, stats):
  """Updates, keys and residuals by (layer, kernel), least squares by `numpy.linalg.solve`."""
  params, found = lm.params, {}
  bare = [edit.bare for edit in edits]
  for number, layer in enumerate(region.layers):
    left = len(region.layers) - number
    share = left if region.spread == 'even' else np.sqrt(left)
    before = params
    for write in region.writes:
      of = before if region.keys_together else params
      key_BxF = _mean_key(lm, of, region, edits, layer, write.kernel)
      now_BxD = _read(lm, params, bare, region.token, region.layers[-1], write.compare)
      residual_BxD = (z[write.delta] - now_BxD) / share
      kernel = Kernel(layer, write.kernel)
      preserved = COV_WEIGHT * np.asarray(stats.cov[kernel], np.float64)
      update_FxD = np.linalg.solve(preserved + key_BxF.T @ key_BxF, key_BxF.T @ residual_BxD)
      path = kernel_path(kernel)
      kernel_FxD = np.asarray(params[path[0]][path[1]][path[2]]['kernel'], np.float64)
      params = _with_kernel(params, kernel, kernel_FxD + update_FxD)
      found[kernel] = update_FxD, key_BxF, residual_BxD
  return params, found


def _region(method, **changes) -> Region:
  (region,) = method.regions
  return dataclasses.replace(region, **changes)


_MEMIT = methods.memit(layers=(0, 2), cov_weight=COV_WEIGHT)
_PMET = methods.pmet(layers=(0, 1), cov_weight=COV_WEIGHT, write=('attn', 'mlp'))
# A layer list with a hole: what is left is counted in layers of the list.
REGIONS = {
  'even': ('gptj', _MEMIT, {}),
  'sqrt_flat': ('gptj', _MEMIT, {'spread': 'sqrt', 'key_average': 'flat'}),
  'prompt_last': ('gptj', _MEMIT, {'token': 'prompt_last'}),
  'both_kernels': ('llama', _PMET, {}),
  'both_kernels_together': ('llama', _PMET, {'keys_together': True}),
}


@functools.cache
def _both(name):
  family, method, changes = REGIONS[name]
  lm, region = editing.language_model(family), _region(method, **changes)
  edits = _edits(lm)
  z, stats = _targets(region, lm.config.width), editing.second_moments(lm, method)
  forward, _ = functions(lm.config)
  ours = write_region(forward, lm.params, region, edits, editing.CONTEXTS, z, stats, Timers({}))
  return ours, _plain_loop(lm, region, edits, z, stats)


@pytest.mark.parametrize('name', REGIONS)
def test_regions_are_written_as_by_the_plain_loop(name):
  ours, (params, expected) = _both(name)
  assert set(ours.keys) == set(ours.residuals) == set(expected)
  assert set(ours.updates) == {'/'.join(kernel_path(kernel)) for kernel in expected}
  for kernel, (update_FxD, key_BxF, residual_BxD) in expected.items():
    assert relative(ours.keys[kernel], key_BxF) < 1e-5
    assert relative(ours.residuals[kernel], residual_BxD) < 1e-4
    path = kernel_path(kernel)
    # Float32 kernels round what the next layer reads; measured 1e-5.
    assert relative(ours.updates['/'.join(path)].value(), update_FxD) < 1e-3
    written, plain = (p[path[0]][path[1]][path[2]]['kernel'] for p in (ours.params, params))
    np.testing.assert_allclose(written, plain, rtol=0, atol=1e-3 * np.abs(update_FxD).max())


def test_settings_of_the_cases_make_a_difference():
  """The loops above would agree on anything else, too; here the cases part."""

  def updates(name):
    return np.concatenate([u.value().ravel() for u in _both(name)[0].updates.values()])

  assert relative(updates('even'), updates('sqrt_flat')) > 0.05
  assert relative(updates('even'), updates('prompt_last')) > 0.05
  assert relative(updates('both_kernels'), updates('both_kernels_together')) > 0.01


@pytest.mark.parametrize('average', ['groups', 'flat'])
def test_keys_are_averaged_over_contexts(average):
  lm, region = editing.language_model(), _region(_MEMIT, key_average=average)
  edits = _edits(lm)
  rows = RegionRows(functions(lm.config)[0], edits, region, editing.CONTEXTS)
  rows.climb(lm.params, 1)
  key_BxF, bare_BxF = rows.keys(lm.params, 1, 'mlp')
  assert relative(key_BxF, _mean_key(lm, lm.params, region, edits, 1, 'mlp')) < 1e-5
  bare = [edit.bare for edit in edits]
  assert relative(bare_BxF, _read(lm, lm.params, bare, region.token, 1, 'mlp_in')) < 1e-5
  weights = {'groups': [1 / 2, 1 / 4, 1 / 4], 'flat': [1 / 3, 1 / 3, 1 / 3]}
  np.testing.assert_allclose(rows.weight_P, weights[average])


def test_a_region_without_writes_changes_nothing():
  lm, region = editing.language_model(), _region(_MEMIT, writes=())
  forward, _ = functions(lm.config)
  stats = SecondMoments({})
  written = write_region(
    forward, lm.params, region, _edits(lm), editing.CONTEXTS, {}, stats, Timers({})
  )
  assert written.params is lm.params
  assert not written.updates and not written.keys and not written.residuals


class _Inexact(LeastSquares):
  """Two per cent of the right side are missing."""

  def __call__(self, *arguments):
    return 0.98 * super().__call__(*arguments)


def test_solves_that_fail_name_kernel_and_layer():
  lm, region = editing.language_model(), _region(_MEMIT, solver=LeastSquares(50.0))
  forward, _ = functions(lm.config)
  stats = editing.second_moments(lm, _MEMIT)
  stats.cov[Kernel(2, 'mlp')] = -stats.cov[Kernel(2, 'mlp')]
  z = _targets(region, lm.config.width)
  arguments = (forward, lm.params, region, _edits(lm), editing.CONTEXTS)
  with pytest.raises(UserError, match='mlp kernel in layer 2 over 3 edits failed: .*cov_weight'):
    write_region(*arguments, z, stats, Timers({}))
  inexact = _region(_MEMIT, solver=_Inexact(0.5))
  with pytest.raises(UserError, match='mlp kernel in layer 0 .* misses .* by 0.02 .*more tokens'):
    write_region(
      *arguments[:2],
      inexact,
      *arguments[3:],
      z,
      editing.second_moments(lm, _MEMIT),
      Timers({}),
    )
  z['block'][1, 3] = np.nan
  with pytest.raises(
    UserError, match='residual of record 12 .* at the mlp kernel in layer 0 is not'
  ):
    write_region(*arguments, z, editing.second_moments(lm, _MEMIT), Timers({}))
