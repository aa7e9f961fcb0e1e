"""The objective: numbers are leaves, disabled rules are infinite, mistakes are one sentence."""

import math

import jax
import numpy as np
import pytest

from jedit.editing.objective import Objective
from jedit.types import UserError

OBJECTIVE = dict(learning_rate=0.5, num_steps=20, kl_factor=0.1)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (dict(learning_rate=0.0), 'learning_rate is 0.0; give a number above 0'),
    (dict(learning_rate='1e-1'), "learning_rate is '1e-1'"),
    (dict(num_steps=0), 'num_steps is 0'),
    (dict(num_steps=2.5), 'num_steps is 2.5; give a whole number'),
    (dict(kl_factor=-0.1), 'kl_factor is -0.1'),
    (dict(nll_factor=0), 'nll_factor is 0'),
    (dict(stop_loss='low'), "stop_loss is 'low'"),
    (dict(stop_loss=-1.0), 'stop_loss is -1.0; give a number of at least 0'),
    (dict(stop_probability=-0.5), 'stop_probability is -0.5'),
    (dict(decay_form='l2'), "decay_form is 'l2'; choose one of released, norm"),
  ],
)
def test_wrong_fields_are_one_sentence(change, words):
  with pytest.raises(UserError, match=words) as error:
    Objective(**{**OBJECTIVE, **change})
  assert str(error.value).endswith('.')


def test_disabled_rules_never_stop_an_edit():
  objective = Objective(**OBJECTIVE, stop_loss=None, stop_probability=None)
  assert (objective.stop_loss, objective.stop_probability) == (-math.inf, math.inf)
  assert objective.replace(learning_rate=0.1).stop_loss == -math.inf
  assert objective.replace(stop_loss=None) == objective


def test_numbers_are_leaves_and_form_is_static():
  objective = Objective(**OBJECTIVE, stop_loss=None)
  assert len(jax.tree.leaves(objective)) == 5
  structure = jax.tree.structure(objective)
  numbers = dict(learning_rate=0.1, kl_factor=0.0, nll_factor=2.0, stop_loss=0.1)
  assert jax.tree.structure(objective.replace(**numbers, stop_probability=0.5)) == structure
  for form in (dict(num_steps=21), dict(nll_switch=True), dict(decay_form='norm')):
    assert jax.tree.structure(objective.replace(**form)) != structure
  narrow = jax.tree.map(np.float32, objective)
  assert narrow.stop_loss.dtype == np.float32 and narrow.num_steps == 20
