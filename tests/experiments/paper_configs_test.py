"""The papers' experiments: every config is a sweep whose cells are understood at every scale."""

import ast
import pathlib
import re

import pytest

from jedit.experiments import sweep
from jedit.experiments.config import read_settings
from jedit.main import load_config
from jedit.methods import presets
from jedit.reports.published import UNEDITED, read_published
from jedit.types import UserError

FOLDER = pathlib.Path(__file__).parents[2] / 'configs' / 'paper'
CONFIGS = sorted(path for path in FOLDER.glob('*.py') if path.stem != 'common')
DOCS = FOLDER.parents[1] / 'docs' / 'experiments.md'


def _scales(path):
  """The models that the header names, and the one that is meant without an argument."""
  header = ast.get_docstring(ast.parse(path.read_text()))
  found = re.findall(rf'{path.name}(?::([\w.-]+))?', header) + re.findall(r'`:([\w.-]+)`', header)
  return sorted({'testbed-gptj', 'testbed-llama', *found})


SCALES = [(path, scale) for path in CONFIGS for scale in _scales(path)]


def _cells(path, scale):
  config = load_config(f'{path}:{scale}' if scale else str(path)).to_dict()
  cells = {name: read_settings(cell) for name, cell in sweep.read_cells(config).items()}
  return config, cells


@pytest.mark.parametrize(('path', 'scale'), SCALES, ids=lambda value: getattr(value, 'stem', value))
def test_the_cells_of_an_experiment_are_understood(path, scale):
  config, cells = _cells(path, scale)
  assert config['task'] == 'sweep'
  sweep.check_shared(cells)
  models = {model for _, model in presets.names()}
  for settings in cells.values():
    assert settings.model.name in models and settings.model.name.startswith(scale)
    assert bool(settings.data.records) != settings.model.name.startswith('testbed-')
    assert settings.required_method.name
  published = read_published(config)
  assert config['published']['source']
  if published is not None:
    assert set(cells) <= set(published.rows), 'a cell has no published row'
    assert UNEDITED in published.rows or path.stem == 'jeep_table4'


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_an_experiment_says_and_documents_its_command(path):
  header = ast.get_docstring(ast.parse(path.read_text()))
  command = f'python -m jedit.main --config=configs/paper/{path.name}'
  assert f'{command}:testbed-' in header
  assert f'{command} --config.statistics.corpus=CORPUS' in header
  assert f'--config=configs/paper/{path.name}:testbed-' in DOCS.read_text()


def test_sizes_shrink_with_the_number_of_edits():
  def sizes(scale):
    _, cells = _cells(FOLDER / 'pmet_figure3.py', scale)
    return [s.edit.edits_per_batch for name, s in cells.items() if name.startswith('PMET')]

  counts = (1, 3, 5, 10, 17, 31, 56, 100, 177, 316, 562, 1000, 1778, 3162, 5623, 10000)
  assert sizes('') == list(counts)  # the first of the 17 is 1, too
  assert sizes('testbed-gptj:9') == [1, 2, 3, 5, 6, 9]
  _, cells = _cells(FOLDER / 'pmet_table3.py', 'testbed-gptj:20')
  assert list(cells)[0] == 'PMET, 2 edits' and list(cells)[-1] == 'even schedule, 20 edits'


def test_an_unknown_model_is_a_sentence():
  with pytest.raises(UserError, match="The model is 'gpt-5'; choose of gptj-6b, gpt-neox-20b"):
    load_config(f'{FOLDER / "pmet_table1.py"}:gpt-5')
