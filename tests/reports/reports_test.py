"""Probes, comparisons and pages, from config to files; pages are opened in a browser."""

import csv
import json
import os

import numpy as np
import pytest

import jedit
from helpers import browser, tiny_run
from jedit import experiments
from jedit.evals.estimates import summarize_runs
from jedit.experiments import probing, sweep
from jedit.experiments.workdir import SUMMARY
from jedit.io import figures, sealed, tables
from jedit.probes import contrast
from jedit.reports import comparison
from jedit.types import UserError


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  made = tiny_run.make(tmp_path_factory.mktemp('made'))
  (made / 'words.json').write_text(json.dumps({'arts': ['jazz', 'violin']}))
  return made


def _probe_config(made, **fields):
  config = tiny_run.config(made)
  config.task = 'probe'
  config.probe = dict(words=str(made / 'words.json'), window=2, draws=1, top_k=5, **fields)
  return config


@pytest.fixture(scope='module')
def probed(made):
  experiments.run(_probe_config(made), made / 'probed')
  return made / 'probed'


@pytest.fixture(scope='module')
def edited(made):
  config = tiny_run.config(made)
  config.method = dict(name='ft_w', layers=(1,), num_epochs=1)
  experiments.run(config, made / 'edited')
  return made / 'edited'


def test_a_probe_leaves_numbers_tables_and_figures(made, probed):
  figures = {'similarity', 'contrast_raw', 'contrast_normed', 'contrast_words', 'tracing'}
  figures |= {'tracing_tokens'}
  files = {f'{name}.{ending}' for name in figures for ending in ('png', 'svg')}
  probes = {'similarity', 'contrast', 'tracing'}
  files |= {f'{name}.{ending}' for name in probes for ending in ('json', 'csv', 'tex')}
  assert set(os.listdir(probed / 'probes')) == files
  found = json.loads((probed / 'probes' / 'contrast.json').read_text())
  lm = jedit.load(made / 'model')
  requests = [r.request for r in jedit.data.records.load_records(made / 'records.json')[:4]]
  mean = contrast(lm, requests).prob_ZxQxOxSxN[1, 1, 0, 2].mean()
  place = dict(norm='normed', position='prompt_last', of='true', measure='probability', state=2)
  [row] = [row for row in found['rows'] if place.items() <= row.items()]
  assert row['n'] == 4 and row['mean'] == pytest.approx(mean)
  with open(probed / 'probes' / 'contrast.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  assert len(rows) == len(found['rows']) and float(rows[0]['mean']) == found['rows'][0]['mean']


def test_finished_probes_are_not_repeated_and_others_are_added(made, probed, monkeypatch, capsys):
  monkeypatch.setattr(probing, 'similarity', None)  # calling it would fail
  before = (probed / 'probes' / 'similarity.json').read_bytes()
  experiments.run(_probe_config(made, probes='similarity'), probed)
  assert (probed / 'probes' / 'similarity.json').read_bytes() == before
  assert 'cosine, mlp' in capsys.readouterr().out
  other = _probe_config(made)
  other.probe.top_k = 6
  with pytest.raises(UserError, match='another config: probe.top_k'):
    experiments.run(other, probed)


def test_known_facts_are_read_and_have_nothing_to_contrast(made, tmp_path):
  facts = [
    dict(
      known_id=7,
      subject='Marta Lindqvist',
      attribute='Paris',
      template='{} lives in',
      prompt='Marta Lindqvist lives in',
      relation_id='P1',
      prediction=' Paris',
    )
  ]
  (tmp_path / 'known.json').write_text(json.dumps(facts))
  [record] = jedit.data.records.load_records(tmp_path / 'known.json')
  assert record.request == jedit.Request('{} lives in', 'Marta Lindqvist', 'Paris', case_id=7)
  config = _probe_config(made)
  config.data = dict(records=str(tmp_path / 'known.json'), num_edits=1)
  with pytest.raises(UserError, match='Request 7 has no true object'):
    experiments.run(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_positions_that_no_prompt_has_are_left_out(made, capsys):
  records = json.loads((made / 'records.json').read_text())[:2]
  for record in records:
    record['requested_rewrite']['prompt'] = '{} is'  # one token behind the subject
  (made / 'short.json').write_text(json.dumps(records))
  config = _probe_config(made, probes='tracing', positions='subject_first, after_middle', noise=0.0)
  config.data = dict(records=str(made / 'short.json'), num_edits=2)
  experiments.run(config, made / 'traced')
  found = json.loads((made / 'traced' / 'probes' / 'tracing.json').read_text())
  assert {row['position'] for row in found['rows'] if row['n']} == {'subject_first'}
  assert all(row['recovered'] is None for row in found['rows'])  # without noise nothing is lost
  text = capsys.readouterr().out
  assert "subject's first token" in text and 'further tokens' not in text
  config.probe.positions = 'after_middle'
  with pytest.raises(UserError, match='No prompt has a token at after_middle; choose other positi'):
    experiments.run(config, made / 'untraced')


def test_runs_are_compared(made, edited, capsys):
  config = tiny_run.config(made)
  config.task = 'compare'
  config.workdirs = f'{edited}, {edited}'
  with pytest.raises(UserError, match="Two workdirs have the name 'edited'"):
    experiments.run(config, made / 'compared')
  (made / 'sweep').mkdir()
  summary = json.loads((edited / 'summary.json').read_text())
  cells = {
    f'FT-W, {count} edits': {**summary, 'num_edits': count, 'edits_per_model': count}
    for count in (1, 10, 100)
  }
  sealed.write_json(made / 'sweep' / 'sweep.json', sweep.SWEEP, {'cells': cells})
  config.workdirs = f'{edited}, {made / "sweep"}'
  experiments.run(config, made / 'compared')
  assert 'sweep: FT-W, 10 edits' in capsys.readouterr().out
  for name in ('compare.csv', 'compare.tex', 'report.html', 'curves.png', 'curves.svg'):
    assert (made / 'compared' / name).is_file(), name
  with open(made / 'compared' / 'compare.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  place = {'cell': 'edited', 'metric': 'score', 'state': 'after'}
  [row] = [row for row in rows if place.items() <= row.items()]
  assert float(row['mean']) == summary['metrics']['score']['after']['mean']
  config.workdirs = str(made / 'nothing')
  with pytest.raises(UserError, match='has no summary.json'):
    experiments.run(config, made / 'compared')


def test_runs_of_several_seeds_are_summed_up(made, edited, capsys):
  config = tiny_run.config(made)
  config.method = dict(name='ft_w', layers=(1,), num_epochs=1)
  config.seed = 1  # draws other unedited prompts
  config.evaluation.store = str(made / 'store.jsonl')  # changes no result
  experiments.run(config, made / 'seed_1')
  config.method.num_epochs = 2  # another experiment
  experiments.run(config, made / 'epochs_2')
  compare = tiny_run.config(made, task='compare')
  compare.workdirs = ','.join(str(made / name) for name in ('edited', 'seed_1', 'epochs_2'))
  experiments.run(compare, made / 'seeds')
  assert 'ft_w (edited, seed_1)' in capsys.readouterr().out
  with open(made / 'seeds' / 'seeds.csv', newline='') as file:
    [row] = csv.DictReader(file)
  runs = [json.loads((made / name / 'summary.json').read_text()) for name in ('edited', 'seed_1')]
  for name in ('efficacy', 'neighborhood', 'score'):
    wanted = summarize_runs(np.array([run['metrics'][name]['after']['mean'] for run in runs]))
    assert float(row[name]) == pytest.approx(wanted['mean'])
    assert float(row[f'{name} ci95']) == pytest.approx(wanted['ci95'])
  assert row['seeds'] == '2'
  compare.workdirs = ','.join(str(made / name) for name in ('edited', 'epochs_2'))
  experiments.run(compare, made / 'no_seeds')
  assert not (made / 'no_seeds' / 'seeds.csv').exists()


def test_texts_side_by_side_are_of_runs_with_the_same_prompts():
  def texts(*prompts):
    return [comparison.Sample(1, prompt, f'{prompt} old', f'{prompt} new') for prompt in prompts]

  samples = {'A': texts('one', 'two'), 'B': texts('three'), 'C': texts('two')}
  found = comparison._side_by_side(samples)
  assert list(found) == ['prompt', 'unedited', 'A', 'C']
  assert found.to_numpy().tolist() == [['one', 'old', 'new', None], ['two', 'old', 'new', 'new']]


def test_sweeps_of_several_seeds_are_summed_up_by_cell():
  values = {'A: JEEP': 90.0, 'B: JEEP': 92.0, 'A: MEMIT': 85.0, 'B: MEMIT': None, 'C: FT': 1.0}
  summaries = {
    name: {'method': 'm', 'metrics': {'score': {'after': {'mean': value, 'ci95': 1.0, 'n': 9}}}}
    for name, value in values.items()
  }
  configs = {
    name: {'seed': ord(name[0]), 'method.name': name[3:], 'data.seed': 3} for name in values
  }
  found = comparison.over_seeds(summaries, configs)
  assert dict(zip(found[''], found['score'])) == {
    # Half of the difference, times Student's t of one degree of freedom: 12.706.
    'JEEP (A, B)': {'mean': 91.0, 'ci95': pytest.approx(12.7062, abs=1e-3), 'n': 2, 'digits': 1},
    'MEMIT (A, B)': {'mean': 85.0, 'ci95': None, 'n': 1, 'digits': 1},
  }
  assert '85.0' in tables.to_text(found).splitlines()[-1]
  one = {'seed': 1, 'contexts': 'a'}
  for other in (one, {**one, 'contexts': 'b'}, {'seed': 2, 'contexts': 'b'}):
    assert comparison.over_seeds(summaries, {'A: JEEP': one, 'B: JEEP': other}) is None


def test_runs_are_read_without_the_fields_that_change_no_result(made, edited):
  summaries, configs = sweep.read_runs([str(edited)])
  assert summaries == {'edited': sealed.read_json(edited / 'summary.json', SUMMARY)}
  fields = configs['edited']
  assert fields['method.name'] == 'ft_w' and fields['seed'] == 0
  assert not {'task', 'export.path', 'targets', 'evaluation.store'} & set(fields)


def test_runs_that_differ_in_their_number_of_edits_alone_share_a_curve():
  names = ('PMET (10 edits)', 'PMET (1,000 edits)', 'MEMIT, 10', 'memit_1000')
  sizes = (10, 1000, 10, 1000)
  summaries = {
    name: {'method': 'm', 'num_edits': 99, 'edits_per_model': size}
    for name, size in zip(names, sizes, strict=True)
  }
  found = {name: list(points) for name, points in comparison._curves(summaries).items()}
  assert found == {'PMET': [10, 1000], 'MEMIT': [10], 'memit': [1000]}
  assert not comparison._curves({'PMET': {'method': 'm', 'num_edits': 10}})


@pytest.mark.parametrize(
  ('names', 'label'),
  [
    (('low', 'mid 0.5', 'high'), 'method.clip_factor'),
    (('clamp 0.5', 'clamp 1.0', 'clamp 2.0'), 'clamp'),
    (('λ 15000', 'λ 2000000', 'λ 30000000'), 'λ'),
  ],
)
def test_runs_that_differ_in_the_field_of_the_axis_share_a_curve(names, label):
  values = (0.5, 1.0, 2.0)
  cells = {n: {'method': {'clip_factor': v}} for n, v in zip(names, values, strict=True)}
  axis = sweep.read_axis({'axis': 'method.clip_factor'}, cells)
  summaries = {name: {'method': 'm', 'num_edits': 10} for name in names}
  found = {name: list(points) for name, points in comparison._curves(summaries, axis).items()}
  assert found == {label: [0.5, 1.0, 2.0]}


def test_figures_are_the_same_each_time(tmp_path):
  def draw(name):
    panels = figures.Panels(1, 1)
    panels.lines(0, 0, {'a': ([0, 1], [1, 2], [0.1, 0.2]), 'b': ([0, 1], [2, 1], [0, 0])})
    return panels.save(tmp_path / name)

  assert draw('one') == draw('two')
  assert (tmp_path / 'one.svg').read_bytes() == (tmp_path / 'two.svg').read_bytes()


def test_names_with_dollars_and_controls_are_drawn_as_they_are(tmp_path):
  estimate = {'mean': 50.0, 'ci95': 1.0, 'n': 3}
  names = ['$\\frac{', '$x$ and $', 'a\nb', 'x' * 300, '\x1b[31m']
  frame = tables.table(['relation', 'records', 'efficacy'], [[n, 3, estimate] for n in names])
  figures.dots(frame, '$').save(tmp_path / 'dots')
  drawn = (tmp_path / 'dots.svg').read_text()
  assert '$x$ and $ (3)' in drawn and 'x' * 40 not in drawn and '\x1b' not in drawn


@pytest.mark.parametrize('run', ['probed', 'edited'])
def test_a_phone_shows_the_page(run, request, tmp_path):
  chromium = browser.find()
  if chromium is None:
    pytest.skip(f'no browser: none of {", ".join(browser.NAMES)} is installed')
  folder = request.getfixturevalue(run)
  found = browser.look(chromium, folder / 'report.html', tmp_path)
  assert found['errors'] == []
  assert found['images'] == found['loaded'] == len(list(folder.rglob('*.png')))
  assert found['scroll_width'] <= found['width'] and found['text'] > 500


def test_the_browser_would_tell(tmp_path):
  chromium = browser.find()
  if chromium is None:
    pytest.skip(f'no browser: none of {", ".join(browser.NAMES)} is installed')
  page = tmp_path / 'page.html'
  script = '<script>console.error("no")</script>'
  page.write_text(f'<img src="nothing.png"><div style="width:900px">wide</div>{script}')
  found = browser.look(chromium, page, tmp_path)
  assert found['errors'] and found['images'] > found['loaded']
  assert found['scroll_width'] > found['width']


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (dict(probes='similarity, lens'), "Unknown probe 'lens'"),
    (dict(probes=''), 'probe.probes is empty'),
    (dict(window=0), 'probe.window is 0'),
    (dict(words='records.json'), 'records.json has .*; give an object'),
  ],
)
def test_mistakes_are_sentences(made, fields, words):
  config = tiny_run.config(made)
  config.task = 'probe'
  if 'words' in fields:
    fields = {'words': str(made / fields['words'])}
  config.probe = fields
  with pytest.raises(UserError, match=words):
    experiments.run(config, made / 'mistake')
  assert not (made / 'mistake').exists()
