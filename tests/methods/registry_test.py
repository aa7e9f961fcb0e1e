"""Methods by name: every field is documented, and every mistake is one sentence."""

import inspect

import pytest

from jedit import methods
from jedit.types import UserError


@pytest.mark.parametrize('name', methods.METHODS)
def test_methods_are_found_by_name_and_document_their_fields(name):
  make = methods.METHODS[name]
  needed = dict(layers_low=(1, 2), layers_high=(4,)) if name == 'jeep' else dict(layers=(1, 2))
  needed |= dict(norm_bound=1e-3) if name == 'ft_l' else {}
  method = methods.get(name, **needed)
  assert method == make(**needed) and method.name == name
  hash(method)  # a static argument of compiled programs
  for field, parameter in inspect.signature(make).parameters.items():
    assert parameter.kind is parameter.KEYWORD_ONLY
    assert field in make.__doc__, f'{name} does not explain {field}'


@pytest.mark.parametrize(
  ('name', 'fields', 'words'),
  [
    ('rime', dict(layers=(1,)), "no method 'rime'; choose one of alphaedit, emmet, ft, .*, rome"),
    ('memit', dict(layers=(1,), lr=0.1), "memit has no field 'lr'; it has layers, cov_weight"),
    ('memit', {}, 'memit needs layers; give it'),
    ('memit', dict(layers=5), r'layers is 5; give a tuple, such as \(5,\)'),
    ('ft', dict(layers=5), r'layers is 5; give a tuple, such as \(5,\)'),
    ('jeep', dict(layers_low=1, layers_high=(4,)), r'layers is 1; give a tuple, such as \(1,\)'),
    ('memit', dict(layers=(1,), spread='even'), 'The field spread is called schedule now'),
    ('jeep', dict(layers_low=(1,), spread_low='even'), 'spread_low is called schedule_low now'),
    ('ft', dict(layers=(1,), spread='even'), "ft has no field 'spread'"),
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
