"""Presets are the method sections of the shipped configs, and have the published figures."""

import importlib
import pathlib

import pytest

import jedit
from jedit import configs
from jedit.methods import presets
from jedit.solvers import EqualityConstrained, NullSpace, RankOne

DOCS = pathlib.Path(__file__).parents[2] / 'docs' / 'presets.md'

# Typed from the released settings and papers that the headers of the configs name, not from the
# configs: a slip in either shows. Low and high regions are separated by a slash.
PUBLISHED = """
| config | layers | steps | lr | clip | KL | decay | λ | stop | also |
|---|---|---|---|---|---|---|---|---|---|
| rome_gpt2_medium | 8 | 20 | 0.5 | 3 | .0625 | .5 | - | loss .05 | |
| rome_gpt2_large | 12 | 20 | 0.5 | 4 | .0625 | .5 | - | loss .05 | |
| rome_gpt2_xl | 17 | 20 | 0.5 | 4 | .0625 | .5 | - | loss .05 | |
| rome_gptj | 5 | 20 | 0.5 | 4 | .0625 | .5 | - | loss .05 | |
| rome_gpt_neox_20b | 15 | 20 | 0.5 | 4 | .0625 | .5 | - | loss .05 | |
| rome_llama_7b | 7 | 20 | 0.5 | 4 | .0625 | .5 | - | loss .05 | |
| rome_llama_2_7b | 5 | 25 | 0.5 | 4 | .0625 | 1e-3 | - | loss .05 | no C |
| rome_llama_3_8b | 5 | 25 | 0.5 | 4 | .0625 | 1e-3 | - | loss .05 | no C |
| rome_gpt2_xl_emmet_paper | 17 | 20 | 0.5 | .75 | .0625 | .5 | - | loss .05 | |
| rome_gptj_emmet_paper | 8 | 25 | 0.5 | .75 | .0625 | .5 | - | loss .05 | |
| rome_llama_2_7b_emmet_paper | 8 | 25 | 0.5 | 4 | .0625 | 1e-3 | - | loss .05 | |
| memit_gpt2_xl | 13-17 | 20 | 0.5 | .75 | .0625 | .5 | 20,000 | loss .05 | |
| memit_gptj | 3-8 | 25 | 0.5 | .75 | .0625 | .5 | 15,000 | loss .05 | |
| memit_gpt_neox_20b | 6-10 | 20 | 0.5 | .8 | .0625 | .5 | 6,000 | loss .05 | |
| memit_llama_7b | 5-10 | 30 | 0.5 | .9 | .0625 | .5 | 4,000 | loss .05 | |
| memit_llama_2_7b | 4-8 | 25 | 0.5 | 4 | .0625 | 1e-3 | 15,000 | loss .05 | |
| memit_llama_2_7b_unified | 5 | 25 | 0.5 | 4 | .0625 | 1e-3 | 1 | loss .05 | |
| memit_llama_3_8b | 4-8 | 25 | 0.1 | .75 | .0625 | .5 | 15,000 | loss .05 | |
| memit_gpt2_xl_emmet_paper | 17 | 20 | 0.5 | .75 | .0625 | .5 | 20,000 | loss .05 | |
| memit_gptj_emmet_paper | 8 | 25 | 0.5 | .75 | .0625 | .5 | 15,000 | loss .05 | |
| memit_llama_2_7b_emmet_paper | 8 | 25 | 0.5 | 4 | .0625 | 1e-3 | 15,000 | loss .05 | |
| pmet_gptj | 3-8 | 30 | 0.2 | .75 | 1 | .5 | 6,000 | loss .05 | |
| pmet_gpt_neox_20b | 6-10 | 30 | 0.5 | .8 | .8 | .5 | 15,000 | loss .05 | |
| pmet_llama_7b | 5-10 | 30 | 0.5 | .9 | 1 | .5 | 4,000 | loss .05 | |
| pmet_llama_7b_zsre | 5-10 | 30 | 0.5 | 1 | 1 | .5 | 6,000 | loss .05 | |
| pmet_llama_2_7b | 4-8 | 20 | 0.5 | 1 | .0625 | .5 | 6,000 | loss .05 | |
| jeep_gptj | 3-8 / 15-16 | 30 | 0.5 | .75 / .25 | .0625 | .5 / .5 | 2,000 / 2,000 | prob .9 | |
| jeep_gptj_zsre | 3-8 / 15-16 | 30 | 0.5 | .75 / .8 | .0625 | .5 / .5 | 6,000 / 2,000 | prob .9 | |
| jeep_llama_7b | 5-10 / 22-24 | 30 | 0.5 | 1 / .25 | .0625 | .5 / .5 | 2,500 / 1,000 | prob .9 | |
| jeep_llama_7b_zsre | 5-10 / 22-24 | 30 | 0.5 | 1 / .7 | .0625 | .5 / .5 | 6,000 / 3,000 | prob .9 | |
| emmet_gpt2_xl | 17 | 20 | 0.5 | .75 | .0625 | .5 | 1,000 | loss .05 | ridge .1 |
| emmet_gptj | 5 | 25 | 0.5 | .75 | .0625 | .5 | 1 | loss .05 | ridge .1 |
| emmet_llama_2_7b | 5 | 25 | 0.5 | 4 | .0625 | 1e-3 | 1 | loss .05 | ridge .1 |
| emmet_gpt2_xl_paper | 17 | 20 | 0.5 | .75 | .0625 | .5 | 20,000 | loss .05 | ridge 0 |
| emmet_gptj_paper | 8 | 25 | 0.5 | .75 | .0625 | .5 | 15,000 | loss .05 | ridge 0 |
| emmet_llama_2_7b_paper | 8 | 25 | 0.5 | 4 | .0625 | 1e-3 | 15,000 | loss .05 | ridge 0 |
| emmet_gpt2_xl_paper_multilayer | 13-17 | 20 | 0.5 | .75 | .0625 | .5 | 20,000 | loss .05 | ridge 0 |
| emmet_gptj_paper_multilayer | 3-8 | 25 | 0.5 | .75 | .0625 | .5 | 15,000 | loss .05 | ridge 0 |
| emmet_llama_2_7b_paper_multilayer | 4-8 | 25 | 0.5 | 4 | .0625 | 1e-3 | 15,000 | loss .05 | ridge 0 |
| alphaedit_gpt2_xl | 13-17 | 20 | 0.5 | .75 | .0625 | .5 | - | loss .05 | null .02, ridge 10 |
| alphaedit_gptj | 3-8 | 25 | 0.5 | .75 | .0625 | .5 | - | loss .05 | null .02, ridge 10 |
| alphaedit_llama_3_8b | 4-8 | 25 | 0.1 | .75 | .0625 | .5 | - | loss .05 | null .02, ridge 10 |
"""  # noqa: E501

# Name, tokens of context and dtype by the word a file's name has for the model.
MODELS = {
  'gptj': ('gptj-6b', 2048, 'bfloat16'),
  'llama_7b': ('llama-7b', 2048, 'bfloat16'),
  'llama_2_7b': ('llama-2-7b', 4096, 'bfloat16'),
  'llama_3_8b': ('llama-3-8b', 8192, 'bfloat16'),
  'gpt_neox_20b': ('gpt-neox-20b', 2048, 'bfloat16'),
  'gpt2_xl': ('gpt2-xl', 1024, 'float32'),
  'gpt2_large': ('gpt2-large', 1024, 'float32'),
  'gpt2_medium': ('gpt2-medium', 1024, 'float32'),
}
LAYERS = {
  'gptj-6b': 28,
  'llama-7b': 32,
  'llama-2-7b': 32,
  'llama-3-8b': 32,
  'gpt-neox-20b': 44,
  'gpt2-xl': 48,
  'gpt2-large': 36,
  'gpt2-medium': 24,
}
FEWER_DOCUMENTS = ('memit_gpt_neox_20b', 'pmet_gpt_neox_20b')  # 50,000, not 100,000


def _table(text):
  """The figures of Markdown tables by config, each a value, or one per region, by column."""
  found = {}
  columns = []
  for line in text.splitlines():
    cells = [cell.strip().strip('`') for cell in line.strip('|').split('|')]
    if cells[0] == 'config':
      columns = cells[1:]
    elif line.startswith('|') and not line.startswith('|-'):
      found[cells[0]] = dict(zip(columns, map(_value, columns, cells[1:]), strict=True))
  return found


def _value(column, cell):
  if column == 'layers':
    return [_range(part) for part in cell.split('/')]
  if column in ('stop', 'also', 'source'):
    return cell
  return [float(part.replace(',', '')) for part in cell.split('/') if part != '-']


def _range(text):
  first, _, last = text.partition('-')
  return tuple(range(int(first), int(last or first) + 1))


def _figures(recipe):
  """The same of a recipe; δ of one region share theirs."""
  objective = recipe.objective
  solvers = [region.solver for region in recipe.regions]
  also = ''
  if isinstance(solvers[0], EqualityConstrained):
    assert not solvers[0].cov_ridge
    also = f'ridge {solvers[0].key_ridge:g}'.replace('0.', '.')
  elif isinstance(solvers[0], NullSpace):
    also = f'null {solvers[0].threshold:g}, ridge {solvers[0].ridge:g}'.replace('0.', '.')
  elif isinstance(solvers[0], RankOne) and not solvers[0].uses_cov:
    also = 'no C'
  if objective.stop_probability is None:
    stop = f'loss {objective.stop_loss:g}'
  else:
    assert objective.stop_loss is None
    stop = f'prob {objective.stop_probability:g}'
  return {
    'layers': [region.layers for region in recipe.regions],
    'steps': [objective.num_steps],
    'lr': [objective.learning_rate],
    'clip': [c for region in recipe.regions for c in {d.clip_factor for d in region.deltas}],
    'KL': [objective.kl_factor],
    'decay': [w for region in recipe.regions for w in {d.weight_decay for d in region.deltas}],
    'λ': [solver.cov_weight for solver in solvers if hasattr(solver, 'cov_weight')],
    'stop': stop.replace('0.', '.'),
    'also': also,
  }


def _config(stem):
  return importlib.import_module(f'jedit.configs.{stem}').get_config()


def _stems(methods):
  folder = pathlib.Path(list(configs.__path__)[0])
  return {f.stem for method in methods for f in folder.glob(f'{method}_*.py')}


ROWS = _table(PUBLISHED)
METHODS = ('alphaedit', 'emmet', 'jeep', 'memit', 'pmet', 'rome')


@pytest.mark.parametrize('stem', ROWS)
def test_a_preset_has_the_published_figures(stem):
  recipe = jedit.methods.get(**_config(stem).method.to_dict())
  assert recipe.name == stem.partition('_')[0]
  assert _figures(recipe) == ROWS[stem]


def test_every_preset_of_these_methods_is_published_or_for_a_testbed():
  assert {s for s in _stems(METHODS) if '_testbed_' not in s} == set(ROWS)


@pytest.mark.parametrize('stem', ROWS)
def test_a_preset_is_for_the_model_of_its_name(stem):
  config = _config(stem)
  words = stem.partition('_')[2]
  word = max((w for w in MODELS if f'{words}_'.startswith(f'{w}_')), key=len)
  name, context, dtype = MODELS[word]
  assert (config.model.name, config.model.dtype) == (name, dtype)
  assert config.statistics.row_tokens == context
  assert config.statistics.max_documents == (50_000 if stem in FEWER_DOCUMENTS else 100_000)
  assert max(max(layers) for layers in ROWS[stem]['layers']) < LAYERS[name]
  rest = words.removeprefix(word).replace('_', '-')
  assert jedit.preset(config.method.name, name + rest) == jedit.methods.get(**config.method)


@pytest.mark.parametrize('stem', ROWS)
def test_the_records_fit_the_settings(stem):
  header = importlib.import_module(f'jedit.configs.{stem}').__doc__
  assert ('data.records=zsre_mend_eval.json' in header) == stem.endswith('_zsre')
  if stem.startswith('rome_'):
    edit = _config(stem).edit  # a rank-one update writes one
    assert (edit.mode, edit.size) == ('separate', 1)


def test_the_documentation_lists_every_preset_with_its_figures():
  text = DOCS.read_text()
  documented = _table(text)
  for stem in _stems(jedit.methods.METHODS):
    assert f'`{stem}`' in text, f'docs/presets.md does not list {stem}'
  assert set(documented) >= set(ROWS)
  for stem, row in ROWS.items():
    found = documented[stem]
    assert found.pop('source')
    assert found == row, stem


def test_a_preset_is_the_method_of_the_config_of_its_name():
  section = _config('memit_testbed_llama').method.to_dict()
  recipe = jedit.preset('memit', 'testbed-llama')
  assert recipe == jedit.methods.get(**section)
  assert recipe.name == 'memit'


def test_every_preset_loads():
  assert ('pmet', 'testbed-gptj') in presets.names()
  assert ('jeep', 'gptj-6b-zsre') in presets.names()
  for method, model in presets.names():
    assert jedit.preset(method, model).name == method


def test_an_unknown_model_lists_those_of_the_method():
  with pytest.raises(jedit.UserError, match="'gptx'; choose .*'gptj-6b', .*'testbed-gptj'") as got:
    jedit.preset('pmet', 'gptx')
  assert 'gpt2-xl' not in str(got.value)  # MEMIT has settings for it, PMET none


@pytest.mark.parametrize('method', ['nosuch', 'train'])
def test_an_unknown_method_lists_those_with_presets(method):
  with pytest.raises(jedit.UserError, match="choose .*'memit', 'pmet'"):
    jedit.preset(method, 'testbed-gptj')
