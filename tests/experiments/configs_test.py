"""Every shipped config loads, is understood and begins with its command."""

import ast
import collections
import dataclasses
import inspect
import pathlib
import re

import pytest

import jedit
from jedit import experiments
from jedit.experiments import schema, sweep
from jedit.experiments.config import (
  RENAMED,
  default_config,
  method_section,
  read_method,
  read_settings,
  read_training,
)
from jedit.experiments.schema import Settings
from jedit.experiments.workdir import flat
from jedit.main import load_config
from jedit.methods import METHODS, presets
from jedit.testbeds.settings import Training
from jedit.types import UserError

FOLDER = pathlib.Path(__file__).parents[2] / 'configs'
CONFIGS = sorted(FOLDER.glob('*.py'))
PAGES = [FOLDER.parent / 'README.md', *sorted((FOLDER.parent / 'docs').glob('*.md'))]
# One argument for each config that needs one.
ARGUMENTS = {
  'edit': ('memit,gpt2-xl', 'jeep,gptj-6b-zsre', 'pmet,testbed-llama', 'mend,testbed-gptj'),
  'probe': ('gptj', 'llama'),
  'sweep': ('gptj', 'llama'),
  'train': ('gptj', 'llama', 'counterfact'),
}
FEWER_DOCUMENTS = (('memit', 'gpt-neox-20b'), ('pmet', 'gpt-neox-20b'))
COMMANDS = [(path, argument) for path in CONFIGS for argument in ARGUMENTS.get(path.stem, ('',))]


def _load(path, argument):
  return load_config(f'{path}:{argument}' if argument else str(path))


def test_there_are_few_files():
  assert len([*FOLDER.rglob('*.py')]) <= 25


@pytest.mark.parametrize(('path', 'argument'), COMMANDS, ids=lambda v: getattr(v, 'stem', v))
def test_a_config_builds_its_dataclasses(path, argument):
  config = _load(path, argument)
  assert config.task in experiments.TASKS
  if config.task == 'train':
    assert flat(read_training(config.to_dict()).to_dict()) == flat(config.to_dict())
  elif config.task == 'sweep':
    cells = sweep.read_cells(config.to_dict())
    sweep.check_shared({name: read_settings(cell) for name, cell in cells.items()})
  else:
    settings = read_settings(config.to_dict())
    assert (settings.method is None) == (config.task in ('probe', 'compare'))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_config_begins_with_its_command(path):
  header = ast.get_docstring(ast.parse(path.read_text()))
  commands = re.findall(rf'python -m jedit\.main --config=configs/{path.name}(?::(\S+))?', header)
  if path.stem == 'quickstart':
    assert 'python -m jedit.main' in header
  else:
    assert commands
  for argument in commands:  # every command of the header works, and its fields exist
    _load(path, argument)
  fields = flat(_load(path, commands[-1] if commands else '').to_dict())
  for name in re.findall(r'--config\.([\w.]+)=', header):
    assert name in fields


@pytest.mark.parametrize('page', PAGES, ids=lambda path: path.name)
def test_the_commands_of_the_documentation_work(page):
  text = page.read_text().replace('\\\n', ' ')
  for line in re.findall(r'--config=configs/.*', text):
    for name in re.findall(r'--config=(configs/[^\s`):]+(?::[^\s`)]+)?)', line):
      if not re.search('[A-Z]{3}', name):  # NAME.py, METHOD,MODEL
        fields = flat(load_config(str(FOLDER.parent / name)).to_dict())
        changed = re.findall(r'--config\.([\w.]+)=', line)
        assert set(changed) <= set(fields), (name, changed)


def test_no_config_repeats_another():
  stems = collections.defaultdict(list)
  for path in CONFIGS:
    tree = ast.parse(path.read_text())
    del tree.body[0]  # the header
    stems[ast.unparse(tree)].append(path.stem)
  assert not [same for same in stems.values() if len(same) > 1]


@pytest.mark.parametrize(('method', 'model'), presets.names())
def test_every_preset_has_its_config(method, model):
  config = _load(FOLDER / 'edit.py', f'{method},{model}')
  settings = read_settings(config.to_dict())
  assert settings.required_method == jedit.preset(method, model)
  row = presets.find(method, model)
  assert settings.model.name == row.model
  if row.source == 'testbeds':
    assert settings.model.path or settings.model.directory.name in row.model
    assert settings.statistics == Settings().statistics and not settings.data.records
  else:
    documents = 50_000 if (method, model) in FEWER_DOCUMENTS else 100_000
    assert settings.statistics.max_documents == documents
    assert settings.statistics.row_tokens in (1024, 2048, 4096, 8192)
    assert (settings.model.dtype == 'float32') == row.model.startswith('gpt2')
    assert (settings.data.records == 'zsre_mend_eval.json') == (row.variant == 'zsre')
    single = method in ('rome', 'ft', 'ft_l')  # a rank-one update writes one
    assert (settings.data.records == 'counterfact.json') == single
    mode = 'sequential' if method == 'alphaedit' else 'together'
    assert settings.edit.mode == ('separate' if single else mode)
    assert settings.edit.edits_per_batch == (100 if method == 'alphaedit' else 1)


def test_the_example_to_read_is_the_preset_written_out():
  example = load_config(str(FOLDER / 'pmet_gptj.py'))
  assert example.to_dict() == _load(FOLDER / 'edit.py', 'pmet,gptj-6b').to_dict()
  lines = (FOLDER / 'pmet_gptj.py').read_text().splitlines()
  assert len(lines) <= 60, 'one screen'
  fields = [line for line in lines if re.match(r'  c\.(?!method)[\w.]+ = |    \w+=', line)]
  assert len(fields) > 25 and all('  # ' in line for line in fields)


def test_rome_of_averages_takes_the_settings_of_rome():
  config = _load(FOLDER / 'edit.py', 'r_rome,gptj-6b')
  settings = read_settings(config.to_dict())
  assert settings.required_method.name == 'r_rome' and settings.edit.mode == 'separate'
  assert settings.required_method.layers == jedit.preset('rome', 'gptj-6b').layers


@pytest.mark.parametrize(
  ('config', 'words'),
  [
    ('edit.py', 'Name a method and a model, such as --config=configs/edit.py:pmet,gptj-6b'),
    ('edit.py:pmet', 'Name a method and a model'),
    ('edit.py:pmet,gptx', "no preset 'pmet' for 'gptx'; choose 'gptj-6b'"),
    ('edit.py:pmets,gptj-6b', "no preset of a method 'pmets'; choose 'alphaedit'"),
    ('train.py:opt', "no testbed 'opt'; choose gptj, llama or counterfact"),
  ],
)
def test_a_wrong_argument_is_a_sentence(config, words):
  with pytest.raises(UserError, match=words) as raised:
    load_config(str(FOLDER / config))
  assert 'Cannot use config file' not in str(raised.value)


@pytest.mark.parametrize('task', sorted(set(experiments.TASKS) - {'train'}))
def test_the_defaults_are_those_of_the_dataclasses(task):
  assert read_settings(default_config(task).to_dict()) == Settings(task=task)


def test_the_defaults_of_training_are_those_of_the_dataclasses():
  complete = flat(read_training({'task': 'train', 'train': {'num_steps': 7}}).to_dict())
  default = flat(default_config('train').to_dict())
  assert complete == {**default, 'train.num_steps': 7}
  assert default['train.num_steps'] == Training().train.num_steps
  assert default['world.num_subjects'] == 480 and 'world.subjects' not in default


def test_a_public_model_needs_no_path(monkeypatch):
  asked = []
  monkeypatch.setattr(schema, 'find_directory', lambda *arguments: asked.append(arguments))
  config = _load(FOLDER / 'edit.py', 'memit,gpt2-xl')
  assert read_settings(config.to_dict()).model.directory is None
  config.model.update(path='/elsewhere', revision='v1')
  assert read_settings(config.to_dict()).model.directory is None
  assert asked == [('openai-community/gpt2-xl', None), ('/elsewhere', 'v1')]


@pytest.mark.parametrize('name', METHODS)
def test_a_method_section_has_all_fields(name):
  needed = {'layers': (1,), 'layers_low': (1,), 'layers_high': (2,), 'norm_bound': 0.5}
  given = {key: value for key, value in needed.items() if key in _parameters(name)}
  section = method_section(name, **given)
  assert section.keys() == {'name', *_parameters(name)}
  assert read_method(section) == METHODS[name](**given)


def _parameters(name):
  return inspect.signature(METHODS[name]).parameters


@pytest.mark.parametrize('old', RENAMED)
def test_an_old_name_of_a_field_is_told_the_new_one(old):
  section, _, field = old.partition('.')
  fields = dict(name='jeep', layers_low=(0,), layers_high=(1,)) if section == 'method' else {}
  with pytest.raises(UserError, match=f"no field '{old}'; it is {RENAMED[old]} now"):
    read_settings({section: {**fields, field: 1}})
  new_section, _, new = RENAMED[old].partition('.')
  assert new_section == section
  if section == 'edit':
    assert new in {each.name for each in dataclasses.fields(Settings().edit)}
  else:
    assert any(new in _parameters(name) for name in METHODS)


def test_the_package_imports_no_config():
  """Configs are programs of the user: main runs them by path, and nothing else sees them."""
  package = FOLDER.parent / 'jedit'
  found = [path for path in package.rglob('*.py') if 'jedit.configs' in path.read_text()]
  assert [path.name for path in found if path.parent.name != 'configs'] == []
