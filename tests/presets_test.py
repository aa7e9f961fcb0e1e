"""Presets are the method sections of the shipped configs."""

import pytest

import jedit
from jedit import presets


def test_a_preset_is_the_method_of_the_config_of_its_name():
  from jedit.configs import memit_testbed_llama

  section = memit_testbed_llama.get_config().method.to_dict()
  recipe = jedit.preset('memit', 'testbed-llama')
  assert recipe == jedit.methods.get(**section)
  assert recipe.name == 'memit'


def test_every_preset_loads():
  assert ('pmet', 'testbed-gptj') in presets.names()
  for method, model in presets.names():
    assert jedit.preset(method, model).name == method


@pytest.mark.parametrize(
  'names', [('pmet', 'gptx'), ('nosuch', 'testbed-gptj'), ('train', 'testbed-gptj')]
)
def test_an_unknown_preset_lists_those_that_exist(names):
  with pytest.raises(jedit.UserError, match="choose .*'pmet' for 'testbed-gptj'"):
    jedit.preset(*names)
