"""Every shipped config loads and is understood."""

import ast
import collections
import pathlib
import re

import pytest

from jedit import experiments
from jedit.configs import train_testbed_gptj
from jedit.experiments import sweep
from jedit.experiments.schema import Settings, read_settings
from jedit.experiments.workdir import flat
from jedit.main import load_config
from jedit.testbeds.world import World

FOLDER = pathlib.Path(__file__).parents[2] / 'configs'
CONFIGS = sorted(FOLDER.glob('*.py'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_config_builds_its_dataclasses(path):
  config = load_config(str(path))
  assert config.task in experiments.TASKS
  if config.task == 'train':
    assert flat(config.to_dict()).keys() == flat(train_testbed_gptj.get_config().to_dict()).keys()
    World(**config.world)
  elif config.task == 'sweep':
    cells = sweep.read_cells(config.to_dict())
    sweep.check_shared({name: read_settings(cell) for name, cell in cells.items()})
  elif config.task in ('probe', 'compare'):
    read_settings(config.to_dict())
  else:
    settings = read_settings(config.to_dict())
    assert settings.required_method.name == config.method.name
    # Elsewhere another command makes the model, or the one of the header names it.
    if '--config.model.path=' not in path.read_text() and not settings.model.path:
      assert settings.model.directory.name


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_config_begins_with_its_command(path):
  header = ast.get_docstring(ast.parse(path.read_text()))
  assert header and 'python -m jedit.main' in header
  if path.stem != 'quickstart':
    assert f'--config=configs/{path.name}' in header
  fields = flat(load_config(str(path)).to_dict())
  own = header.split(f'--config=configs/{path.name}')[-1]  # another command may come first
  for name in re.findall(r'--config\.([\w.]+)=', own):
    assert name in fields


def test_no_config_repeats_another():
  stems = collections.defaultdict(list)
  for path in CONFIGS:
    tree = ast.parse(path.read_text())
    del tree.body[0]  # the header
    stems[ast.unparse(tree)].append(path.stem)
  assert not [same for same in stems.values() if len(same) > 1]


def test_the_defaults_are_those_of_the_base_config():
  base = load_config(str(FOLDER / 'pmet_testbed_gptj.py')).to_dict()
  method = base.pop('method')
  assert read_settings(base) == Settings()
  assert read_settings({'method': method}).required_method.name == 'pmet'
