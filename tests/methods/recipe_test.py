"""Recipes: fields that fit together, targets that are reached, stages one after the other."""

import dataclasses

import numpy as np
import pytest

from helpers import editing
from helpers.editing import relative
from jedit import methods
from jedit.editing import slots
from jedit.editing.context import EditContext, TokenizedRequests
from jedit.editing.edit import Separate, edit
from jedit.editing.objective import Objective
from jedit.editing.prompts import BARE
from jedit.editing.region import Delta, KernelUpdate, Region
from jedit.methods.recipe import Recipe
from jedit.models import site
from jedit.models.encoding import encode
from jedit.solvers import FactorCache, LeastSquares
from jedit.types import Kernel, UserError

DELTA = dict(name='mlp', place='mlp_out', clip_factor=0.75, weight_decay=0.5)
UPDATE = dict(kernel='mlp', delta='mlp', compare='mlp_out')
REGION = dict(
  name='edited',
  layers=(1, 2),
  token='subject_last',
  deltas=(Delta(**DELTA),),
  updates=(KernelUpdate(**UPDATE),),
  schedule='even',
  solver=LeastSquares(1.0),
)
OBJECTIVE = Objective(0.5, 20, 0.1)

REQUESTS = editing.REQUESTS[:3]
MEMIT = methods.memit(layers=(0, 1), cov_weight=0.5, num_steps=4, weight_decay=0.05)
JEEP = dict(layers_low=(0,), layers_high=(1,), cov_weight_low=0.5, cov_weight_high=0.5, num_steps=3)


def _recipe(*changes, **fields):
  regions = tuple(Region(**{**REGION, **change}) for change in changes or ({},))
  names = tuple(region.name for region in regions)
  return Recipe(
    **{**dict(name='mine', regions=regions, objective=OBJECTIVE, stages=(names,)), **fields}
  )


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (dict(stages=(('low',),)), r"stages name \['low'\], .* \['edited'\]"),
    (dict(stages=(('edited',), ('edited',))), 'name each region once'),
    (dict(stages=()), 'name each region once'),
    (dict(prefixes='none'), "prefixes is 'none'; choose one of memit, rome"),
  ],
)
def test_wrong_fields_are_one_sentence(change, words):
  _recipe()
  with pytest.raises(UserError, match=words) as error:
    _recipe(**change)
  assert str(error.value).endswith('.')


def test_regions_of_a_recipe_fit_together():
  other = (Delta(**{**DELTA, 'name': 'other'}),)
  toward_other = (KernelUpdate(**{**UPDATE, 'delta': 'other'}),)
  with pytest.raises(UserError, match="deltas are named .'mlp', 'mlp'.; give each its own name"):
    _recipe({}, dict(name='high', layers=(4,)))
  high = dict(name='high', deltas=other, updates=toward_other)
  assert _recipe({}, {**high, 'layers': (4,)}).layers == (1, 2, 4)
  with pytest.raises(UserError, match='mlp kernel of layer 2 is written twice'):
    _recipe({}, {**high, 'layers': (2, 3)})
  with pytest.raises(UserError, match='mlp and other .* mlp_out of layer 2'):
    _recipe({}, {**high, 'layers': (2,), 'updates': ()})
  with pytest.raises(UserError, match='mlp kernel of layer 1 is written twice'):
    _recipe(dict(updates=(KernelUpdate(**UPDATE),) * 2))


def test_layers_lie_inside_the_model():
  config = editing.language_model().config
  methods.memit(layers=(1, 2)).check(config, 9)
  with pytest.raises(UserError, match=r'layers is \(1, 5\), but the model has layers 0 to 2'):
    methods.memit(layers=(1, 5)).check(config, 9)


def test_kernels_are_those_whose_second_moments_are_used():
  method = methods.pmet(layers=[3, 5], write=('attn', 'mlp'))
  assert method.kernels == method.updated
  assert method.kernels == (
    Kernel(3, 'attn'),
    Kernel(3, 'mlp'),
    Kernel(5, 'attn'),
    Kernel(5, 'mlp'),
  )
  assert method.layers == (3, 5)
  low_only = methods.jeep(layers_low=(1,), layers_high=(4,), write=('low',))
  assert low_only.kernels == (Kernel(1, 'mlp'),)
  without = methods.rome(layers=(3,), use_cov=False)
  assert without.kernels == () and without.updated == (Kernel(3, 'mlp'),)


def _model():
  return editing.language_model('gptj', num_layers=3)


def _edit(method=MEMIT, requests=REQUESTS, lm=None, **settings):
  lm = lm or _model()
  settings = {'contexts': BARE, 'moments': editing.second_moments(lm, method), **settings}
  return edit(lm, requests, method, settings.pop('moments'), **settings)


def _count_blocks(monkeypatch):
  run_block, ran = slots._run_block, []

  def counted(*arguments):
    ran.append(1)
    return run_block(*arguments)

  monkeypatch.setattr(slots, '_run_block', counted)
  return ran


@pytest.mark.parametrize('family', ['gptj', 'gpt2'])
def test_an_edited_model_reaches_its_targets(family):
  """Nothing preserved and no contexts: on the bare prompts, the block's output becomes z."""
  lm = editing.language_model(family)
  method = methods.emmet(layers=(1,), key_ridge=0.0, num_steps=4, weight_decay=0.05)
  result = _edit(method, lm=lm)
  details, edited = result.details, lm.apply(result)
  for i, request in enumerate(REQUESTS):
    row = encode(lm.tokenizer, request.prompt, subject=request.subject)
    token_1xT = np.array([row.ids], np.int32)
    for model, expected in ((lm, details.targets[0].init), (edited, details.z)):
      _, seen = model.model(token_1xT, taps=[site(1, 'block_out')])
      value_D = np.asarray(seen[site(1, 'block_out')])[0, row.subject_last]
      assert relative(value_D, expected['block'][i]) < 1e-3
  assert relative(details.z['block'], details.targets[0].init['block']) > 0.05


def test_without_a_step_nothing_changes():
  """One evaluation takes no step: δ = 0 and z = v₀, so all residuals are rounding."""
  lm = _model()
  method = methods.memit(layers=(0, 1), cov_weight=0.5, num_steps=1)
  result = _edit(method, lm=lm)
  details = result.details
  np.testing.assert_array_equal(details.targets[0].delta['block'], 0)
  np.testing.assert_array_equal(details.targets[0].num_steps, 1)
  texts = editing.texts(REQUESTS)
  np.testing.assert_allclose(lm.apply(result).logits(texts), lm.logits(texts), rtol=0, atol=1e-3)
  assert np.abs(lm.apply(_edit(lm=lm)).logits(texts) - lm.logits(texts)).max() > 0.1


def test_equal_keys_under_an_exact_constraint_name_layer_records_and_field():
  method = methods.emmet(layers=(1,), key_ridge=0.0, num_steps=2)
  twice = dataclasses.replace(REQUESTS[0], target_new='jazz', case_id=99)
  lm = _model()
  words = r'mlp kernel in layer 1 over 4 edits failed: .*raise key_ridge .*record 99 .*No model was'
  with pytest.raises(UserError, match=words):
    _edit(method, [*REQUESTS, twice], lm=lm)
  assert lm.patches == ()


def test_recipes_that_differ_in_updates_alone_share_targets(tmp_path, monkeypatch):
  lm, ran = _model(), _count_blocks(monkeypatch)
  first = _edit(lm=lm, target_store=tmp_path)
  assert len(ran) > 0
  ran.clear()
  again = _edit(lm=lm, target_store=tmp_path)
  assert again.patch.id == first.patch.id == _edit(lm=lm, store=tmp_path / 'other').patch.id
  ran.clear()
  sqrt = methods.memit(
    layers=(0, 1), cov_weight=9.0, num_steps=4, weight_decay=0.05, schedule='sqrt'
  )
  other = _edit(sqrt, lm=lm, target_store=tmp_path)
  assert not ran
  np.testing.assert_array_equal(other.details.z['block'], first.details.z['block'])
  assert other.patch.id == _edit(sqrt, lm=lm).patch.id != first.patch.id
  ran.clear()
  for change in (dict(learning_rate=0.4), dict(clip_factor=0.1), dict(stop_loss=None)):
    _edit(
      methods.memit(layers=(0, 1), num_steps=4, weight_decay=0.05, **change),
      lm=lm,
      target_store=tmp_path,
    )
  assert len(ran) == 3


def test_targets_found_together_are_those_of_each_batch():
  lm = _model()
  whole = _edit(lm=lm, batching=Separate(2))
  for part, batch in zip((slice(0, 2), slice(2, 3)), whole.batches, strict=True):
    alone = _edit(lm=lm, requests=REQUESTS[part])
    assert batch.details.targets[0].reached()['edits'] == part.stop - part.start
    for path, update in batch.patch.updates.items():
      assert relative(update.value(), alone.patch.updates[path].value()) < 1e-4


def test_earlier_keys_are_moved_less():
  lm, requests = _model(), tuple(REQUESTS[1:])
  earlier = _edit(lm=lm, requests=REQUESTS[:1]).details.keys
  kernel, path = Kernel(0, 'mlp'), 'block_0/mlp/down/kernel'
  moments = editing.second_moments(lm, MEMIT)
  context = EditContext(
    lm=lm,
    requests=requests,
    alongside=requests,
    rows=TokenizedRequests(lm.tokenizer, requests, BARE, None),
    second_moments=moments,
    factors=FactorCache(moments),
  )
  free = MEMIT.edit(context, requests).patch
  assert free.id == _edit(lm=lm, requests=requests).patch.id
  bound = MEMIT.edit(dataclasses.replace(context, earlier_keys=earlier), requests).patch
  moved = [np.linalg.norm(earlier[kernel] @ p.updates[path].value()) for p in (free, bound)]
  assert moved[1] < 0.9 * moved[0]


def test_targets_of_a_later_stage_depend_on_earlier_updates(tmp_path):
  method = methods.jeep(**JEEP, is_joint=False)
  lm = _model()
  moments = [editing.second_moments(lm, method, seed) for seed in (0, 1)]
  first = _edit(method, moments=moments[0], store=tmp_path).patch
  second = _edit(method, moments=moments[1], store=tmp_path).patch
  assert first.id != second.id == _edit(method, moments=moments[1]).patch.id


def test_separate_stages_are_two_edits_in_a_row():
  lm = _model()
  result = _edit(methods.jeep(**JEEP, is_joint=False), lm=lm)
  patch, details = result.patch, result.details
  low = _edit(methods.jeep(**JEEP, optimise=('low',)), lm=lm).patch
  high = _edit(methods.jeep(**JEEP, optimise=('high',)), lm=lm.apply(low)).patch
  assert set(low.updates) == {'block_0/mlp/down/kernel'}
  assert set(high.updates) == {'block_1/mlp/down/kernel'}
  assert len(details.targets) == 2 and set(details.z) == {'low', 'high'}
  for part in (low, high):
    for path, update in part.updates.items():
      assert relative(patch.updates[path].value(), update.value()) < 1e-6
  assert high.provenance['patches_before'] == [low.id]
  joint = _edit(methods.jeep(**JEEP), lm=lm).patch
  path = 'block_1/mlp/down/kernel'
  assert relative(joint.updates[path].value(), patch.updates[path].value()) > 1e-3


def test_regions_without_updates_are_still_optimised():
  lm = _model()
  result = _edit(methods.jeep(**JEEP), lm=lm)
  joint, details = result.patch, result.details
  for name, path in (('low', 'block_0/mlp/down/kernel'), ('high', 'block_1/mlp/down/kernel')):
    one = _edit(methods.jeep(**JEEP, write=(name,)), lm=lm)
    patch, part = one.patch, one.details
    assert set(patch.updates) == {path}
    for delta, value in details.z.items():
      np.testing.assert_array_equal(part.z[delta], value)
    # High keys are read on the model with the low region updated; here it is not.
    changed = relative(patch.updates[path].value(), joint.updates[path].value())
    assert changed == 0 if name == 'low' else changed > 1e-3
