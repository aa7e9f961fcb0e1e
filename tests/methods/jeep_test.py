"""JEEP: two regions and its ablations."""

import dataclasses

from jedit import methods
from jedit.editing.region import KernelUpdate


def test_jeep_takes_its_regions_apart():
  layers = dict(layers_low=(1, 2), layers_high=(4, 5))
  joint = methods.jeep(**layers)
  assert joint.stages == (('low', 'high'),)
  low, high = joint.regions
  assert (low.token, high.token) == ('subject_last', 'prompt_last')
  assert (low.schedule, high.schedule) == ('sqrt', 'even')
  assert methods.jeep(**layers, is_joint=False).stages == (('low',), ('high',))
  only_high = methods.jeep(**layers, optimise=('high',))
  assert only_high.stages == (('high',),) and only_high.regions == (high,)
  partial = methods.jeep(**layers, write=('high',))
  assert partial.regions == (dataclasses.replace(low, updates=()), high)
  released = methods.jeep(**layers, form='released').region('high')
  assert released.deltas[0].place == 'attn_out' and released.updates[0].compare == 'mlp_out'
  attention = methods.jeep(**layers, high_kernel='attn').region('high')
  assert attention.updates == (KernelUpdate('attn', 'high', 'attn_out'),)


def test_only_the_joint_hidden_form_writes_the_states_at_the_optimum():
  layers = dict(layers_low=(1, 2), layers_high=(4, 5))
  for form, target in (('mlp', 'own'), ('hidden', 'own'), ('hidden_joint', 'joint')):
    method = methods.jeep(**layers, form=form)
    assert [update.target for r in method.regions for update in r.updates] == [target] * 2
  place = methods.jeep(**layers, form='hidden_joint').region('high').updates[0].compare
  assert place == 'block_out'
