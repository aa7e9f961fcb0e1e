"""Provenance: all settings of a method, as JSON-able values that tell them apart."""

import dataclasses
import functools
import json

import optax
import pytest

from helpers import editing
from jedit import methods
from jedit.editing.provenance import describe, describe_settings, digest_requests
from jedit.solvers import EqualityConstrained, LeastSquares, RankOne

MEMIT = methods.memit(layers=(0, 1))


def sgd(learning_rate):
  return optax.sgd(learning_rate)


def _changed(**fields):
  return dataclasses.replace(MEMIT, objective=MEMIT.objective.replace(**fields))


def test_settings_are_told_apart():
  (region,) = MEMIT.regions
  others = [
    methods.memit(layers=(0, 2)),
    methods.memit(layers=(0, 1), schedule='sqrt'),
    methods.memit(layers=(0, 1), stop_loss=None),
    _changed(optimizer=sgd),
    _changed(optimizer=functools.partial(optax.sgd, momentum=0.5)),
    _changed(optimizer=functools.partial(optax.sgd, momentum=0.9)),
    *(
      dataclasses.replace(MEMIT, regions=(dataclasses.replace(region, solver=solver),))
      for solver in (LeastSquares(1.0), EqualityConstrained(1.0), RankOne())
    ),
  ]
  found = [json.dumps(describe_settings(method)) for method in [MEMIT, *others]]
  assert len(set(found)) == len(found)
  assert json.dumps(describe_settings(methods.memit(layers=[0, 1]))) == found[0]


def test_disabled_rules_are_null():
  settings = describe_settings(methods.pmet(layers=(0,), stop_loss=None))
  assert settings['objective']['stop_loss'] is settings['objective']['stop_probability'] is None
  json.dumps(settings, allow_nan=False)


class _Plain:
  """No dataclass."""

  name = 'plain'

  def __init__(self, scale):
    self.scale, self._made = scale, object()


def test_methods_that_are_no_dataclass_are_described_by_their_attributes():
  lm = editing.language_model()
  found = [describe(lm, editing.REQUESTS, _Plain(scale), 0) for scale in (0.1, 0.1, 0.2)]
  assert found[0] == found[1] != found[2]
  assert found[0]['method'] == {'name': 'plain', 'kind': '_Plain', 'scale': 0.1}


@pytest.mark.parametrize('method', [MEMIT, methods.ft(layers=(0,))], ids=lambda m: m.name)
def test_the_origin_of_an_edit_is_described(method):
  lm = editing.language_model()
  found = describe(lm, editing.REQUESTS, method, 3)
  assert found['method']['name'] == method.name
  assert found['model'] == lm.fingerprint and found['patches_before'] == []
  assert found['num_edits'] == len(editing.REQUESTS) and found['seed'] == 3
  assert found['requests'] == digest_requests(editing.REQUESTS)
  assert found['requests'] != digest_requests(editing.REQUESTS[::-1])
