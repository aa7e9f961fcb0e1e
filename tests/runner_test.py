"""Runs from config to files on a tiny random model: tasks, going on, and bad input."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import transformers
from absl import logging

import jedit
from helpers import tiny_run
from jedit import checkpoint, runner
from jedit.configs import train_testbed_gptj
from jedit.evals import evaluate
from jedit.models.convert import load_directory
from jedit.runner import stages
from jedit.runner.clock import CompileClock
from jedit.testbeds.world import World
from jedit.types import UserError

ROOT = pathlib.Path(__file__).parents[1]
# What a finished run leaves, apart from seconds.
STABLE = (
  'config.json',
  'contexts.json',
  'statistics.safetensors',
  'patch.safetensors',
  'records.jsonl',
  'unedited.jsonl',
  'samples.json',
)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """Model, records and corpus."""
  return tiny_run.make(tmp_path_factory.mktemp('made'))


@pytest.fixture(scope='module')
def finished(made):
  """The workdir of a run from beginning to end; tests leave it as it is."""
  runner.run(tiny_run.config(made), made / 'finished')
  return made / 'finished'


def _changed(made, **changes):
  """The tiny config with fields changed, written as section__field."""
  config = tiny_run.config(made)
  for name, value in changes.items():
    section, _, field = name.rpartition('__')
    target = config[section] if section else config
    with target.ignore_type():
      target[field] = value
  return config


def _assert_same_results(workdir, other):
  for name in STABLE:
    assert (workdir / name).read_bytes() == (other / name).read_bytes(), name
  for name, free in (('summary.json', 'seconds'), ('provenance.json', 'commit')):
    ours, theirs = (json.loads((each / name).read_text()) for each in (workdir, other))
    assert ours.keys() == theirs.keys()
    ours.pop(free), theirs.pop(free)  # somebody may commit while this runs
    assert ours == theirs


def _sentence(config, workdir):
  """The message a run ends with; nothing may be written."""
  with pytest.raises(UserError) as raised:
    runner.run(config, workdir)
  message = str(raised.value)
  assert '\n' not in message and message.endswith('.'), message
  assert not pathlib.Path(workdir).exists() or not os.listdir(workdir)
  return message


def test_a_run_leaves_every_file(finished):
  present = set(os.listdir(finished))
  more = {'provenance.json', 'summary.json', 'report.html', 'seconds.json', 'targets'}
  more |= {'metrics.csv', 'metrics.tex', 'shifts.png', 'shifts.svg'}
  assert present == {*STABLE, *more}
  rows = [json.loads(line) for line in (finished / 'records.jsonl').read_text().splitlines()]
  assert [row['case_id'] for row in rows] == [10, 11, 12, 13]
  assert rows[0]['before'].keys() == rows[0]['after'].keys() > {'efficacy', 'neighborhood_acc'}
  assert json.loads((finished / 'contexts.json').read_text())[0] == ['{}']


def test_the_summary_is_in_the_form_of_the_contract(finished):
  summary = json.loads((finished / 'summary.json').read_text())
  assert summary['method'] == 'pmet' and summary['model'] == 'tiny'
  assert summary['dataset'] == 'records' and summary['num_edits'] == 4
  for name in ('efficacy', 'paraphrase', 'neighborhood', 'score', 'efficacy_magnitude'):
    for state in ('before', 'after'):
      assert summary['metrics'][name][state].keys() == {'mean', 'ci95', 'n'}
      assert summary['metrics'][name][state]['n'] == 4
  seconds = summary['seconds']
  assert seconds.keys() >= {'statistics', 'targets', 'keys', 'solve', 'evaluate', 'compile'}
  assert all(value >= 0 for value in seconds.values())
  assert 0 < seconds['compile'] < sum(v for name, v in seconds.items() if name != 'compile')


def test_provenance_says_what_the_run_started_from(made, finished):
  provenance = json.loads((finished / 'provenance.json').read_text())
  assert provenance['versions'].keys() >= {'jedit', 'jax', 'flax', 'numpy', 'python'}
  assert provenance['devices'] and provenance['seed'] == 0 and 'commit' in provenance
  assert provenance['model']['fingerprint'] == jedit.load(made / 'model').fingerprint
  assert provenance['data']['case_ids'] == [10, 11, 12, 13]


def test_the_report_needs_nothing_else(finished):
  page = (finished / 'report.html').read_text()
  assert 'neighborhood' in page and 'Record(' not in page
  assert not re.findall(r'(?:src|href)="(?!data:)|https?://', page)


def test_a_finished_run_is_read_back(made, finished, tmp_path, monkeypatch, capsys):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished, workdir)
  for name in ('edit_requests', 'evaluate_records', 'sample_texts', 'statistics'):
    monkeypatch.setattr(stages, name, None)  # calling one of them would fail
  runner.run(tiny_run.config(made), workdir)
  _assert_same_results(workdir, finished)
  old, new = ((each / 'summary.json').read_text() for each in (finished, workdir))
  assert old == new
  assert 'neighborhood_magnitude' in capsys.readouterr().out


@pytest.mark.parametrize('stage', ['edit_requests', 'evaluate_records', 'sample_texts'])
def test_a_run_that_stops_in_a_stage_ends_with_the_same_numbers(
  made, finished, tmp_path, monkeypatch, stage
):
  class Killed(BaseException):
    pass

  def kill(*unused, **options):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(stages, stage, kill)
    with pytest.raises(Killed):
      runner.run(tiny_run.config(made), tmp_path / 'run')
  begun = json.loads((tmp_path / 'run' / 'seconds.json').read_text())
  runner.run(tiny_run.config(made), tmp_path / 'run')
  _assert_same_results(tmp_path / 'run', finished)
  seconds = json.loads((tmp_path / 'run' / 'summary.json').read_text())['seconds']
  assert seconds['statistics'] >= begun['statistics'] > 0


def test_lost_files_are_made_again(made, finished, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished, workdir)
  for name in ('patch.safetensors', 'records.jsonl', 'samples.json', 'summary.json'):
    (workdir / name).unlink()
  runner.run(tiny_run.config(made), workdir)  # from the targets that were kept
  _assert_same_results(workdir, finished)


def test_stats_alone_and_then_edit(made, finished, tmp_path, capsys):
  runner.run(_changed(made, task='stats'), tmp_path / 'run')
  assert 'statistics.safetensors' in capsys.readouterr().out
  assert 'patch.safetensors' not in os.listdir(tmp_path / 'run')
  runner.run(tiny_run.config(made), tmp_path / 'run')
  _assert_same_results(tmp_path / 'run', finished)


def test_statistics_and_contexts_of_another_run_serve_again(made, finished, tmp_path, monkeypatch):
  monkeypatch.setattr(stages, 'sample_contexts', None)
  shared = dict(
    statistics__file=str(finished / 'statistics.safetensors'),
    contexts=str(finished / 'contexts.json'),
  )
  runner.run(_changed(made, **shared), tmp_path / 'run')
  patches = [jedit.Patch.load(each / 'patch.safetensors') for each in (finished, tmp_path / 'run')]
  assert patches[0].id == patches[1].id
  assert 'statistics.safetensors' not in os.listdir(tmp_path / 'run')


def test_evaluate_measures_a_patch_of_another_run(made, finished, tmp_path):
  for number, patches in enumerate((finished, finished / 'patch.safetensors')):
    workdir = tmp_path / str(number)
    runner.run(_changed(made, task='evaluate', patches=str(patches)), workdir)
    for name in ('records.jsonl', 'unedited.jsonl', 'samples.json'):
      assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name
    summary = json.loads((workdir / 'summary.json').read_text())
    assert summary['method'] == 'pmet' and summary['num_edits'] == 4


def test_export_writes_a_model_that_is_edited(made, finished, tmp_path, capsys):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished, workdir)
  for _ in range(2):  # the second time finds it done
    runner.run(_changed(made, task='export'), workdir)
    assert str(workdir / 'model') in capsys.readouterr().out
  _, params, _ = load_directory(workdir / 'model', 'float32')
  lm = jedit.load(made / 'model').apply(jedit.Patch.load(finished / 'patch.safetensors'))
  kernel = params['block_1']['mlp']['down']['kernel']
  np.testing.assert_array_equal(kernel, lm.params['block_1']['mlp']['down']['kernel'])
  assert not np.array_equal(kernel, lm.base['block_1']['mlp']['down']['kernel'])
  transformers.AutoTokenizer.from_pretrained(workdir / 'model')
  runner.run(tiny_run.config(made), workdir)  # the edit run is still what it was
  _assert_same_results(workdir, finished)


def test_train_hands_its_config_to_the_trainer_once(tmp_path, monkeypatch, capsys):
  config = train_testbed_gptj.get_config()
  calls = []

  def train(config, workdir):
    calls.append(config.train.num_steps)
    checkpoint.write_json(pathlib.Path(workdir) / 'model' / 'knowledge.json', {'trained': 99})

  monkeypatch.setattr(runner, 'train', train)
  runner.run(config, tmp_path)
  runner.run(config, tmp_path)
  assert calls == [config.train.num_steps]
  assert 'trained already: 99%' in capsys.readouterr().out
  assert {'config.json', 'provenance.json', 'model'} == set(os.listdir(tmp_path))
  config.train.num_steps = 5
  with pytest.raises(UserError, match='train.num_steps is .* there and 5 here'):
    runner.run(config, tmp_path)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(method__num_steps=7), 'method.num_steps is 6 there and 7 here'),
    (dict(seed=1), 'seed is 0 there and 1 here'),
    (dict(data__selection='random'), 'data.selection is absent there and "random" here'),
  ],
)
def test_a_workdir_of_another_config_is_refused(made, finished, changes, words):
  before = {name: (finished / name).stat().st_mtime_ns for name in os.listdir(finished)}
  with pytest.raises(UserError, match=words):
    runner.run(_changed(made, **changes), finished)
  assert before == {name: (finished / name).stat().st_mtime_ns for name in os.listdir(finished)}


def test_a_workdir_on_other_records_is_refused(made, finished, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished, workdir)
  config = tiny_run.config(made)
  config.data.records = str(tmp_path / 'records.json')
  records = json.loads((made / 'records.json').read_text())
  shutil.copy(made / 'records.json', tmp_path / 'records.json')
  shutil.copy(finished / 'config.json', workdir / 'config.json')
  stored = json.loads((workdir / 'config.json').read_text())
  stored['data']['records'] = config.data.records
  (workdir / 'config.json').write_text(json.dumps(stored))
  runner.run(config, workdir)  # a moved file is the same one
  records[0]['requested_rewrite']['target_new']['str'] = 'Lima'
  (tmp_path / 'records.json').write_text(json.dumps(records))
  with pytest.raises(UserError, match='holds a run on another data: its sha256'):
    runner.run(config, workdir)


def test_a_workdir_without_results_is_free(made, tmp_path):
  (tmp_path / 'config.json').write_text('{"task": "edit", "seed": 5}')
  runner.run(_changed(made, task='stats'), tmp_path)
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 0


def test_a_strange_workdir_is_refused(made, tmp_path):
  (tmp_path / 'patch.safetensors').write_bytes(b'mine')
  with pytest.raises(UserError, match='holds patch.safetensors but no config.json'):
    runner.run(tiny_run.config(made), tmp_path)
  (tmp_path / 'file').write_text('')
  assert 'Cannot write' in _sentence_for_file(made, tmp_path / 'file')


def _sentence_for_file(made, path):
  with pytest.raises(UserError) as raised:
    runner.run(tiny_run.config(made), path)
  return str(raised.value)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (
      dict(task='fly'),
      "no task 'fly'; choose one of edit, stats, train, sweep, evaluate, probe, compare, export",
    ),
    (dict(sed=1), "The config has no field 'sed'; it has task, seed"),
    (dict(model__pth='x'), "section model has no field 'pth'; it has name, path, dtype"),
    (dict(method__name='nosuch'), "no method 'nosuch'; choose one of alphaedit, emmet"),
    (dict(method__lr=1), "Method pmet has no field 'lr'"),
    (dict(method__layers=(1, 2)), 'layers is (1, 2), but the model has layers 0 to 1'),
    (dict(method__layers=1), 'method.layers is 1; give a tuple'),
    (dict(method__layers=()), 'give at least one layer number'),
    (dict(model__path='', model__name='x'), "no model 'x' is shipped"),
    (dict(model__path='/no/such'), 'no model directory /no/such'),
    (dict(model__dtype='int8'), "dtype is 'int8'"),
    (dict(data__records='/no/such.json'), '/no/such.json cannot be read'),
    (dict(data__records=''), 'has no records.json; give a file in data.records'),
    (dict(data__kind='csv'), "no kind of records 'csv'"),
    (dict(data__num_edits=99), '99 records are asked for and 5 are there'),
    (dict(data__num_edits='all'), "data.num_edits is 'all'; give a whole number"),
    (dict(data__selection='last'), "data.selection is 'last'"),
    (dict(statistics__corpus='/no/such.txt'), '/no/such.txt cannot be read'),
    (dict(statistics__corpus=''), 'has no corpus.txt'),
    (dict(statistics__batch_tokens=0), 'statistics.batch_tokens is 0; give at least 1'),
    (dict(contexts='/no/such.json'), 'Cannot read /no/such.json'),
    (dict(edit=5), 'The config section edit is 5'),
    (dict(task='evaluate'), 'There is no patch.safetensors in'),
    (dict(task='evaluate', patches='/no/patch'), 'Cannot read /no/patch'),
    (dict(task='export'), 'There is no patch.safetensors in'),
    (dict(task='train'), "A config for training has no field 'data.num_edits'"),
  ],
)
def test_a_bad_config_is_one_sentence(made, tmp_path, changes, words):
  assert words in _sentence(_changed(made, **changes), tmp_path / 'run')


def _break(records, path, value):
  """Sets a nested field of record 1, or removes it."""
  *parents, last = path.split('.')
  fields = records[1]
  for parent in parents:
    fields = fields[parent]
  if value is None:
    del fields[last]
  else:
    fields[last] = value


@pytest.mark.parametrize(
  ('field', 'value', 'words'),
  [
    ('requested_rewrite.prompt', 'He lives in', 'with 0 places for the subject'),
    ('requested_rewrite.prompt', '{} and {} live in', 'with 2 places for the subject'),
    ('requested_rewrite.subject', ' ', "has ' ' in the field 'requested_rewrite.subject'"),
    ('requested_rewrite.subject', 5, "has 5 in the field 'requested_rewrite.subject'"),
    ('requested_rewrite.target_new.str', '', "in the field 'requested_rewrite.target_new.str'"),
    ('paraphrase_prompts', None, "lacks the field 'paraphrase_prompts'"),
  ],
)
def test_a_bad_record_is_named(made, tmp_path, field, value, words):
  records = json.loads((made / 'records.json').read_text())
  _break(records, field, value)
  path = tmp_path / 'records.json'
  path.write_text(json.dumps(records))
  sentence = _sentence(_changed(made, data__records=str(path)), tmp_path / 'run')
  assert words in sentence and 'record 1 (case_id 11)' in sentence and str(path) in sentence


@pytest.mark.parametrize(
  ('field', 'text', 'words'),
  [('data__records', '[{', 'is not JSON'), ('statistics__corpus', ' \n\n', 'There is no text in')],
)
def test_a_bad_file_is_named(made, tmp_path, field, text, words):
  (tmp_path / 'file').write_text(text)
  sentence = _sentence(_changed(made, **{field: str(tmp_path / 'file')}), tmp_path / 'run')
  assert words in sentence and str(tmp_path / 'file') in sentence


@pytest.mark.parametrize('lost', ['tokenizer.json', 'model.safetensors', 'config.json'])
def test_a_model_that_lacks_a_file_is_named(made, tmp_path, lost):
  shutil.copytree(made / 'model', tmp_path / 'model')
  (tmp_path / 'model' / lost).unlink()
  if lost == 'tokenizer.json':
    (tmp_path / 'model' / 'tokenizer_config.json').unlink()
  sentence = _sentence(_changed(made, model__path=str(tmp_path / 'model')), tmp_path / 'run')
  assert str(tmp_path / 'model') in sentence


def test_requests_that_cannot_all_hold_are_warned_of(made, tmp_path, monkeypatch):
  records = json.loads((made / 'records.json').read_text())
  records[1]['requested_rewrite'] |= dict(subject=tiny_run.SUBJECTS[0])
  records[2]['requested_rewrite']['target_new']['str'] = tiny_run.CITIES[1]  # true already
  (tmp_path / 'records.json').write_text(json.dumps(records))
  said = []
  monkeypatch.setattr(logging, 'warning', lambda text, *values: said.append(text % values))
  runner.run(_changed(made, data__records=str(tmp_path / 'records.json')), tmp_path / 'run')
  assert len([text for text in said if 'different targets at once' in text]) == 1, said
  assert any('record 12 has target' in text for text in said), said


def test_unedited_questions_are_about_nobody_who_is_edited(made):
  settings = runner.read_settings(tiny_run.config(made).to_dict())
  records = runner.inputs.load_selection(settings)
  questions = runner.inputs.unedited_questions(settings, records)
  assert questions and questions == runner.inputs.unedited_questions(settings, records)
  for prompt, answer in questions:
    assert answer in tiny_run.CITIES
    assert not any(subject in prompt for subject in tiny_run.SUBJECTS[:4])


@pytest.mark.parametrize('learnt', ['world', 'counterfact'])
def test_a_testbed_brings_its_own_records_text_and_questions(made, tmp_path, learnt):
  world = World(num_subjects=200, num_edited=8)
  records = [tiny_run.record(n) for n in range(5)] if learnt == 'counterfact' else world.records()
  sizes = dict(seed=0, num_subjects=200, num_edited=8)
  source = dict(records='facts.json' if learnt == 'counterfact' else '', world=sizes)
  shutil.copytree(made / 'model', tmp_path / 'model')
  checkpoint.write_json(tmp_path / 'model' / 'records.json', records)
  checkpoint.write_json(tmp_path / 'model' / 'knowledge.json', {'config': source})
  (tmp_path / 'model' / 'corpus.txt').write_text('One text.\nAnother one.\n\n')
  config = _changed(made, model__path=str(tmp_path / 'model'), data__records='')
  config.statistics.corpus = ''
  settings = runner.read_settings(config.to_dict())
  chosen = runner.inputs.load_selection(settings)
  assert runner.inputs.load_documents(settings) == ['One text.', 'Another one.']
  questions = runner.inputs.unedited_questions(settings, chosen)
  assert len(questions) == 10 if learnt == 'world' else len(questions) > 2
  known = {(p.text, p.answer) for p in world.prompts()} if learnt == 'world' else set(questions)
  for question in questions:
    assert question in known
    assert not any(record.request.subject in question[0] for record in chosen)


def test_the_table_survives_its_files(made, tmp_path):
  values = {'efficacy': np.array([0.1, np.nan]), 'score': np.array([1 / 3, 0.0])}
  table = evaluate.Table((3, 5), values, values, {'unedited_kept': np.array([np.nan, 100.0])})
  rows = json.loads(json.dumps(stages.to_json(table.to_records())))
  unedited = stages._unedited_rows(table, [('a', 'b'), ('c', 'd')])
  again = stages._read_table(rows, json.loads(json.dumps(stages.to_json(unedited))))
  np.testing.assert_array_equal(again.after['efficacy'], values['efficacy'])
  np.testing.assert_array_equal(again.before['score'], values['score'])
  np.testing.assert_array_equal(again.unedited_after['unedited_kept'], [np.nan, 100.0])


def test_time_that_events_share_is_counted_once():
  clock = CompileClock()
  for event, start, end in (
    ('/jax/core/compile/inner', 1.0, 2.0),
    ('/jax/core/compile/outer', 0.5, 3.0),
    ('/jax/other', 3.0, 9.0),
    ('/jax/core/compile/next', 4.0, 5.0),
  ):
    clock._on_span(event, start, end)
  assert clock.seconds == 3.5


def _command(made, *arguments):
  config = made / 'as_file.py'
  config.write_text(
    'import pathlib\nfrom helpers import tiny_run\n'
    'def get_config():\n  return tiny_run.config(pathlib.Path(__file__).parent)\n'
  )
  environment = {
    **os.environ,
    'PYTHONPATH': f'{ROOT}{os.pathsep}{ROOT / "tests"}',
    'JAX_PLATFORMS': 'cpu',
    'JAX_COMPILATION_CACHE_DIR': str(made / 'xla'),
    'XLA_FLAGS': '--xla_backend_optimization_level=0',
  }
  return subprocess.run(
    [sys.executable, '-m', 'jedit.main', f'--config={config}', *arguments],
    capture_output=True,
    text=True,
    cwd=made,
    env=environment,
  )


def test_the_command_line_runs_a_task(made):
  done = _command(made, '--workdir=cli', '--config.task=stats')
  assert done.returncode == 0, done.stderr
  assert 'Second moments of 2 kernels' in done.stdout
  assert (made / 'cli' / 'statistics.safetensors').is_file()


def test_bad_input_ends_the_program_with_code_2(made):
  done = _command(made, '--workdir=none', '--config.data.num_edits=99')
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith('jedit: 99 records are asked for'), done.stderr
  assert not (made / 'none').exists()
