"""Recipes say what their papers do, and every wrong field is one sentence."""

import dataclasses
import inspect

import pytest

from jedit import methods
from jedit.editing.region import SPREADS, Delta, Objective, Recipe, Region, Write
from jedit.solvers.solve import LeastSquares
from jedit.types import Kernel, UserError

DELTA = dict(name='mlp', place='mlp_out', clip_factor=0.75, weight_decay=0.5)
WRITE = dict(kernel='mlp', delta='mlp', compare='mlp_out')
REGION = dict(
  name='edited',
  layers=(1, 2),
  token='subject_last',
  deltas=(Delta(**DELTA),),
  writes=(Write(**WRITE),),
  spread='even',
  solver=LeastSquares(1.0),
)
OBJECTIVE = dict(learning_rate=0.5, num_steps=20, kl_factor=0.1)
RECIPE = dict(
  name='mine',
  regions=(Region(**REGION),),
  objective=Objective(**OBJECTIVE),
  stages=(('edited',),),
)

WRONG = [
  (Delta, DELTA, dict(place='ffn'), "place is 'ffn'; choose one of attn_out, mlp_out, block_out"),
  (Delta, DELTA, dict(clip_factor=0), 'clip_factor is 0; give a number above 0'),
  (Delta, DELTA, dict(clip_factor=float('nan')), 'clip_factor is nan'),
  (Delta, DELTA, dict(weight_decay=-1.0), 'weight_decay is -1.0; give a number of at least 0'),
  (Write, WRITE, dict(kernel='mlp_out'), "kernel is 'mlp_out'; choose one of attn, mlp"),
  (Write, WRITE, dict(compare='mlp'), "compare is 'mlp'; choose one of attn_out"),
  (Region, REGION, dict(token='last'), "token is 'last'; choose one of subject_last, prompt_last"),
  (Region, REGION, dict(spread='equal'), "spread is 'equal'; choose one of even, sqrt"),
  (Region, REGION, dict(key_average='mean'), "key_average is 'mean'; choose one of groups, flat"),
  (Region, REGION, dict(layers=()), r'layers is \(\); give at least one'),
  (Region, REGION, dict(layers=(-1, 2)), r'layers is \(-1, 2\); .* counted from 0'),
  (Region, REGION, dict(layers=(1.5,)), r'layers is \(1.5,\)'),
  (Region, REGION, dict(layers=(2, 1)), r'layers is \(2, 1\); list each layer once, in ascending'),
  (Region, REGION, dict(layers=(1, 1)), r'layers is \(1, 1\); list each layer once'),
  (Region, REGION, dict(deltas=()), 'edited has no delta'),
  (Objective, OBJECTIVE, dict(learning_rate=0.0), 'learning_rate is 0.0; give a number above 0'),
  (Objective, OBJECTIVE, dict(learning_rate='1e-1'), "learning_rate is '1e-1'"),
  (Objective, OBJECTIVE, dict(num_steps=0), 'num_steps is 0'),
  (Objective, OBJECTIVE, dict(num_steps=2.5), 'num_steps is 2.5; give a whole number'),
  (Objective, OBJECTIVE, dict(kl_factor=-0.1), 'kl_factor is -0.1'),
  (Objective, OBJECTIVE, dict(nll_factor=0), 'nll_factor is 0'),
  (Objective, OBJECTIVE, dict(stop_loss='low'), "stop_loss is 'low'"),
  (Objective, OBJECTIVE, dict(stop_probability=-0.5), 'stop_probability is -0.5'),
  (Objective, OBJECTIVE, dict(decay_form='l2'), "decay_form is 'l2'; choose one of released, norm"),
  (Recipe, RECIPE, dict(stages=(('low',),)), r"stages name \['low'\], .* \['edited'\]"),
  (Recipe, RECIPE, dict(stages=(('edited',), ('edited',))), 'name each region once'),
  (Recipe, RECIPE, dict(stages=()), 'name each region once'),
]


@pytest.mark.parametrize(('kind', 'fields', 'change', 'words'), WRONG)
def test_wrong_fields_are_one_sentence(kind, fields, change, words):
  kind(**fields)
  with pytest.raises(UserError, match=words) as error:
    kind(**{**fields, **change})
  assert str(error.value).endswith('.')


def _regions(*changes):
  return tuple(Region(**{**REGION, **change}) for change in changes)


def test_regions_of_a_recipe_fit_together():
  def recipe(*changes):
    names = tuple(change.get('name', 'edited') for change in changes)
    return Recipe('mine', _regions(*changes), Objective(**OBJECTIVE), (names,))

  other = (Delta(**{**DELTA, 'name': 'other'}),)
  toward_other = (Write(**{**WRITE, 'delta': 'other'}),)
  with pytest.raises(UserError, match="writes toward delta 'other', but optimises .'mlp'."):
    recipe(dict(writes=toward_other))
  with pytest.raises(UserError, match="deltas are named .'mlp', 'mlp'.; give each its own name"):
    recipe({}, dict(name='high', layers=(4,)))
  high = dict(name='high', deltas=other, writes=toward_other)
  assert recipe({}, {**high, 'layers': (4,)}).layers == (1, 2, 4)
  with pytest.raises(UserError, match='mlp kernel of layer 2 is written twice'):
    recipe({}, {**high, 'layers': (2, 3)})
  with pytest.raises(UserError, match='mlp and other .* mlp_out of layer 2'):
    recipe({}, {**high, 'layers': (2,), 'writes': ()})
  with pytest.raises(UserError, match='mlp kernel of layer 1 is written twice'):
    recipe(dict(writes=(Write(**WRITE),) * 2))


def test_layers_lie_inside_the_model():
  method = methods.memit(layers=(1, 5))
  method.check_layers(6)
  with pytest.raises(UserError, match=r'layers is \(1, 5\), but the model has layers 0 to 4'):
    method.check_layers(5)


def test_spreads_are_those_of_the_papers():
  assert [SPREADS['even'](left) for left in (3, 2, 1)] == [3, 2, 1]
  assert [SPREADS['sqrt'](left) for left in (9, 4, 1)] == [3, 2, 1]


def test_kernels_are_what_is_written():
  method = methods.pmet(layers=[3, 5], write=('attn', 'mlp'))
  assert method.kernels == (
    Kernel(3, 'attn'),
    Kernel(3, 'mlp'),
    Kernel(5, 'attn'),
    Kernel(5, 'mlp'),
  )
  assert method.layers == (3, 5) and method.sites == ('attn', 'mlp')
  low_only = methods.jeep(layers_low=(1,), layers_high=(4,), write=('low',))
  assert low_only.kernels == (Kernel(1, 'mlp'),)


@pytest.mark.parametrize('name', methods.METHODS)
def test_methods_are_found_by_name_and_document_their_fields(name):
  make = methods.METHODS[name]
  needed = dict(layers_low=(1, 2), layers_high=(4,)) if name == 'jeep' else dict(layers=(1, 2))
  needed |= dict(norm_bound=1e-3) if name == 'ft_l' else {}
  method = methods.get(name, **needed)
  assert method == make(**needed) and method.name == name
  hash(method)  # compiled programs are kept by it
  for field, parameter in inspect.signature(make).parameters.items():
    assert parameter.kind is parameter.KEYWORD_ONLY
    assert field in make.__doc__, f'{name} does not explain {field}'


@pytest.mark.parametrize(
  ('name', 'fields', 'words'),
  [
    ('rime', dict(layers=(1,)), "no method 'rime'; choose one of alphaedit, emmet, ft, .*, rome"),
    ('memit', dict(layers=(1,), lr=0.1), "memit has no field 'lr'; it has layers, cov_weight"),
    ('memit', {}, 'memit needs layers; give it'),
    ('jeep', dict(layers_low=(1,)), 'jeep needs layers_high'),
    ('memit', dict(layers=(1,), cov_weight=0), 'cov_weight is 0; give a number above 0'),
    ('emmet', dict(layers=(1,), key_ridge=-1), 'key_ridge is -1'),
    ('rome', dict(layers=(1,), divide_by='key'), "divide_by is 'key'"),
    ('pmet', dict(layers=(1,), optimise=('ffn',)), "'ffn'; choose one of"),
    ('pmet', dict(layers=(1,), optimise=('attn',)), "writes toward delta 'mlp'"),
    ('pmet', dict(layers=(1,), write=('mlp', 'mlp')), 'written twice'),
    ('jeep', dict(layers_low=(1,), layers_high=(4,), form='h'), "form is 'h'; choose one of mlp"),
    ('jeep', dict(layers_low=(1,), layers_high=(4,), high_kernel='q'), "high_kernel is 'q'"),
    ('jeep', dict(layers_low=(1,), layers_high=(4,), write=('mid',)), 'write is .*low, high'),
    ('jeep', dict(layers_low=(1,), layers_high=(4,), optimise=()), r'optimise is \(\)'),
    ('jeep', dict(layers_low=(1, 4), layers_high=(4, 5)), 'layer 4 is written twice'),
  ],
)
def test_mistakes_in_methods_are_one_sentence(name, fields, words):
  with pytest.raises(UserError, match=words):
    methods.get(name, **fields)


def test_jeep_takes_its_regions_apart():
  layers = dict(layers_low=(1, 2), layers_high=(4, 5))
  joint = methods.jeep(**layers)
  assert joint.stages == (('low', 'high'),)
  low, high = joint.regions
  assert (low.token, high.token) == ('subject_last', 'prompt_last')
  assert (low.spread, high.spread) == ('sqrt', 'even')
  assert methods.jeep(**layers, is_joint=False).stages == (('low',), ('high',))
  only_high = methods.jeep(**layers, optimise=('high',))
  assert only_high.stages == (('high',),) and only_high.regions == (high,)
  unwritten = methods.jeep(**layers, write=('high',))
  assert unwritten.regions == (dataclasses.replace(low, writes=()), high)
  released = methods.jeep(**layers, form='released').region('high')
  assert released.deltas[0].place == 'attn_out' and released.writes[0].compare == 'mlp_out'
  attention = methods.jeep(**layers, high_kernel='attn').region('high')
  assert attention.writes == (Write('attn', 'high', 'attn_out'),)
