"""A sweep: cells share model, second moments and contexts, and are never run twice."""

import csv
import json

import pytest

from helpers import tiny_run
from jedit import experiments
from jedit.editing import slots
from jedit.experiments import inputs, stages, sweep
from jedit.io.jsonl import read_jsonl
from jedit.reports import comparison
from jedit.types import UserError

PMET = dict(name='pmet', layers=(0, 1), num_steps=4, cov_weight=10.0)


def _config(made, cells):
  config = tiny_run.config(made)
  config.task = 'sweep'
  config.cells = tuple(cells.items()) if isinstance(cells, dict) else cells
  return config


CELLS = {
  'PMET': {},
  'PMET, even schedule': {'method': {'schedule': 'even'}},
  'ROME': {
    'method': dict(name='rome', layers=(1,), num_steps=4),
    'edit': {'mode': 'separate'},
  },
  'FT-W': {'method': dict(name='ft_w', layers=(1,), num_epochs=2)},
}


def test_a_sweep_runs_its_cells_once_and_shares_what_they_share(made, monkeypatch, capsys):
  config, workdir = _config(made, CELLS), made / 'sweep'
  passes, inner = [], stages.statistics

  def counted(*arguments, **settings):
    passes.append(settings['layers'])
    return inner(*arguments, **settings)

  monkeypatch.setattr(stages, 'statistics', counted)
  experiments.run(config, workdir)
  text = capsys.readouterr().out
  for name in CELLS:
    assert name in text
  assert passes[0] == [0, 1]
  folders = {path.name for path in (workdir / 'cells').iterdir()}
  assert folders == {'pmet', 'pmet__even_schedule', 'rome', 'ft-w'}
  for folder in folders:
    assert not (workdir / 'cells' / folder / 'statistics.safetensors').exists()
    if folder == 'ft-w':  # samples no contexts
      assert not (workdir / 'cells' / folder / 'contexts.json').exists()
      continue
    ours = inputs.load_contexts(workdir / 'cells' / folder / 'contexts.json')
    name = 'contexts_rome.json' if folder == 'rome' else 'contexts.json'
    assert ours == inputs.load_contexts(workdir / name)
  states = [
    line['state'] for line in read_jsonl(workdir / 'evaluation.jsonl', 'jedit evaluation 3')
  ]
  assert states == ['before', 'after', 'after', *['after'] * 4, 'after']  # ROME's four models
  summaries = json.loads((workdir / 'sweep.json').read_text())['cells']
  assert list(summaries) == list(CELLS)
  assert summaries['ROME']['mode'] == 'separate' and summaries['PMET']['method'] == 'pmet'
  assert summaries['PMET']['metrics'] != summaries['PMET, even schedule']['metrics']
  with open(workdir / 'sweep.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  score = [r for r in rows if (r['cell'], r['metric'], r['state']) == ('PMET', 'score', 'after')]
  assert float(score[0]['mean']) == summaries['PMET']['metrics']['score']['after']['mean']

  # A cell more: the finished ones stay as they are.
  stamp = (workdir / 'cells' / 'pmet' / 'summary.json').stat().st_mtime_ns
  more = _config(made, {**CELLS, 'MEMIT': {'method': dict(name='memit', layers=(1,), num_steps=3)}})
  experiments.run(more, workdir)
  assert 'Cell 5 of 5: MEMIT' in (text := capsys.readouterr().out) and 'Cell 1 of' not in text
  assert (workdir / 'cells' / 'pmet' / 'summary.json').stat().st_mtime_ns == stamp

  # A cell of this name with other fields is refused before anything is done.
  other = _config(made, {'PMET': {'method': {'num_steps': 3}}})
  with pytest.raises(UserError, match='cells/pmet holds the run of another config: method.num_st'):
    experiments.run(other, workdir)
  assert 'Cell' not in capsys.readouterr().out


# What differs here is how targets are written, and in the last two what they are.
SHARING = {
  'PMET, 4 edits': {'edit': {'mode': 'separate', 'edits_per_batch': 4}},
  'PMET, 2 edits': {'edit': {'mode': 'separate', 'edits_per_batch': 2}},
  'PMET, even schedule': {'method': {'schedule': 'even', 'cov_weight': 5.0}},
  'PMET, one layer': {'method': {'layers': (1,)}},
  'PMET, lower layer': {'method': {'layers': (0,)}},
  'PMET, lower clamp': {'method': {'clip_factor': 0.5}},
}


def test_cells_share_the_targets_that_are_the_same(made, monkeypatch, capsys):
  config, workdir = _config(made, SHARING), made / 'sharing'
  config.published = dict(
    source='A paper', rows=(('unedited', {'score': 1.0}), ('PMET, 4 edits', {'score': (86.2, 1.0)}))
  )
  ran, inner = [], slots._run_block

  def counted(*arguments):
    ran.append(arguments[0])
    return inner(*arguments)

  monkeypatch.setattr(slots, '_run_block', counted)
  experiments.run(config, workdir)
  text = capsys.readouterr().out
  assert 'A paper' in text and '  published' in text and '  difference' in text
  assert len(list((workdir / 'targets').iterdir())) == 3
  assert len(ran) == 3
  for name in ('curves.png', 'curves.svg', 'cases.csv', 'cases.tex', 'published.csv'):
    assert (workdir / name).is_file()
  with open(workdir / 'cases.csv', newline='') as file:
    cases = list(csv.reader(file))
  assert cases[0] == ['prompt', 'unedited', *SHARING]
  assert len(cases) == 1 + 2 * 4  # of two records the prompt and one of every other kind
  norms = {name: each['update_norm'] for name, each in _summaries(workdir).items()}
  assert norms['PMET, 2 edits'] < norms['PMET, 4 edits']

  # Shared targets give what a run of its own gives.
  alone = tiny_run.config(made)
  alone.update(
    method=config.method, edit=dict(SHARING['PMET, 2 edits']['edit'], target_batch_size=4)
  )
  experiments.run(alone, made / 'alone')
  one = json.loads((made / 'alone' / 'summary.json').read_text())
  assert one['metrics'] == _summaries(workdir)['PMET, 2 edits']['metrics']

  # A corrected row of the paper repeats nothing.
  config.published = dict(source='Another', rows=(('PMET, 4 edits', {'score': 86.3}),))
  capsys.readouterr()
  experiments.run(config, workdir)
  text = capsys.readouterr().out
  assert 'Another' in text and '86.3' in text and 'Cell' not in text


def test_a_killed_cell_goes_on_from_shared_targets(made, monkeypatch):
  config = _config(made, {'PMET': {}, 'PMET, even schedule': {'method': {'schedule': 'even'}}})
  with monkeypatch.context() as patch:
    patch.setattr(stages.Patch, 'save', _killed)
    with pytest.raises(KeyboardInterrupt):
      experiments.run(config, made / 'killed')
  monkeypatch.setattr(slots, '_run_block', lambda *_: pytest.fail('targets were found before'))
  experiments.run(config, made / 'killed')
  assert list(_summaries(made / 'killed')) == ['PMET', 'PMET, even schedule']


def _killed(*_):
  raise KeyboardInterrupt


def _summaries(workdir):
  return json.loads((workdir / 'sweep.json').read_text())['cells']


def test_curves_are_drawn_over_the_field_that_is_named(made):
  cells = {
    f'{name}, clamp {clamp:g}': {'method': {'clip_factor': clamp, 'schedule': name}}
    for name in ('even', 'sqrt')
    for clamp in (0.05, 2.0)
  }
  config = _config(made, cells)
  config.method.num_steps = 2
  config.axis = 'method.clip_factor'
  experiments.run(config, made / 'axis')
  assert 'by method.clip_factor, 95%' in (made / 'axis' / 'report.html').read_text()
  axis = sweep.read_axis(config.to_dict(), sweep.read_cells(config.to_dict()))
  curves = comparison._curves(_summaries(made / 'axis'), axis)
  assert {name: list(points) for name, points in curves.items()} == {
    'even, clamp': [0.05, 2.0],
    'sqrt, clamp': [0.05, 2.0],
  }
  config.axis = 'method.schedule'
  with pytest.raises(UserError, match="the cell 'even, clamp 0.05' has no number there; name a f"):
    experiments.run(config, made / 'axis')


@pytest.mark.parametrize(
  ('cells', 'words'),
  [
    ({}, 'no cells to sweep over'),
    ({'A': {'method': {'schedule': 'odd'}}}, "In the cell 'A': schedule is 'odd'"),
    ({'A': {'methods': {'schedule': 'odd'}}}, "In the cell 'A': The config has no field 'methods'"),
    ({'A': {}, 'B': {'model': {'dtype': 'bfloat16'}}}, "'A' and 'B' differ in model"),
    ({'A': {}, 'B': {'data': {'num_edits': 99}}}, "In the cell 'B': 99 records are wanted"),
    ({'A': {'method': dict(name='rome', layers=(1,))}}, "In the cell 'A': .*one edit at a time"),
    ({'A b': {}, 'A_b': {}}, "Two cells have the directory 'a_b'"),
    ((('A', {}), ('A', {})), "Two cells have the directory 'a'"),
    ((('A', 3),), 'be a pair of a name'),
    ({'..': {}}, "The cell '..' cannot have a directory of its name"),
    ({'x' * 300: {}}, 'with letters or digits, of at most 200 bytes'),
    (((5, {}),), 'be a pair of a name'),
  ],
)
def test_mistakes_are_sentences(made, cells, words):
  with pytest.raises(UserError, match=words):
    experiments.run(_config(made, cells), made / 'mistake')
  assert not (made / 'mistake').exists()
