"""Regions: every wrong field is one sentence."""

import dataclasses

import jax
import numpy as np
import pytest

from jedit.editing.region import Delta, KernelUpdate, Region, as_layers, check_layers
from jedit.solvers import LeastSquares
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

WRONG = [
  (Delta, DELTA, dict(place='ffn'), "place is 'ffn'; choose one of attn_out, mlp_out, block_out"),
  (Delta, DELTA, dict(clip_factor=0), 'clip_factor is 0; give a number above 0'),
  (Delta, DELTA, dict(clip_factor=float('nan')), 'clip_factor is nan'),
  (Delta, DELTA, dict(weight_decay=-1.0), 'weight_decay is -1.0; give a number of at least 0'),
  (KernelUpdate, UPDATE, dict(kernel='mlp_out'), "kernel is 'mlp_out'; choose one of attn, mlp"),
  (KernelUpdate, UPDATE, dict(compare='mlp'), "compare is 'mlp'; choose one of attn_out"),
  (Region, REGION, dict(token='last'), "token is 'last'; choose one of subject_last, prompt_last"),
  (Region, REGION, dict(schedule='equal'), "schedule is 'equal'; choose one of even, sqrt"),
  (Region, REGION, dict(key_average='mean'), "key_average is 'mean'; choose one of groups, flat"),
  (Region, REGION, dict(compared_on='all'), "compared_on is 'all'; choose one of bare, contexts"),
  (Region, REGION, dict(layers=()), r'layers is \(\); give at least one'),
  (Region, REGION, dict(layers=2), r'layers is 2; give a tuple, such as \(2,\)'),
  (Region, REGION, dict(layers=(-1, 2)), r'layers is \(-1, 2\); .* counted from 0'),
  (Region, REGION, dict(layers=(1.5,)), r'layers is \(1.5,\)'),
  (Region, REGION, dict(layers=(2, 1)), r'layers is \(2, 1\); list each layer once, in ascending'),
  (Region, REGION, dict(layers=(1, 1)), r'layers is \(1, 1\); list each layer once'),
  (Region, REGION, dict(deltas=()), 'edited has no delta'),
]


@pytest.mark.parametrize(('kind', 'fields', 'change', 'words'), WRONG)
def test_wrong_fields_are_one_sentence(kind, fields, change, words):
  kind(**fields)
  with pytest.raises(UserError, match=words) as error:
    kind(**{**fields, **change})
  assert str(error.value).endswith('.')


def test_updates_name_a_delta_of_the_region():
  other = KernelUpdate(**{**UPDATE, 'delta': 'other'})
  with pytest.raises(UserError, match="writes toward delta 'other', but optimises .'mlp'."):
    Region(**{**REGION, 'updates': (other,)})


def test_layers_lie_inside_the_model():
  check_layers((1, 5), 6)
  with pytest.raises(UserError, match=r'layers is \(1, 5\), but the model has layers 0 to 4'):
    check_layers((1, 5), 5)
  assert as_layers([1, 5]) == as_layers(range(1, 6, 4)) == (1, 5)
  with pytest.raises(UserError, match=r'layers is 5; give a tuple, such as \(5,\)'):
    as_layers(5)


def test_kernels_are_listed_layer_by_layer():
  both = (KernelUpdate('attn', 'mlp', 'attn_out'), KernelUpdate('mlp', 'mlp', 'mlp_out'))
  assert Region(**{**REGION, 'updates': both}).kernels == tuple(
    Kernel(layer, name) for layer in (1, 2) for name in ('attn', 'mlp')
  )


def test_numbers_of_a_delta_are_leaves():
  delta = Delta(**DELTA)
  assert jax.tree.leaves(delta) == [0.75, 0.5]
  other = dataclasses.replace(delta, clip_factor=2.0)
  assert jax.tree.structure(other) == jax.tree.structure(delta)
  renamed = dataclasses.replace(delta, name='attn')
  assert jax.tree.structure(renamed) != jax.tree.structure(delta)
  assert jax.tree.map(np.float32, delta).clip_factor.dtype == np.float32
