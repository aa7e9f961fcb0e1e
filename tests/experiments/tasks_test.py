"""Runs from config to files on a tiny random model: tasks, going on, what the files hold."""

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

import jedit
from helpers import tiny_run
from helpers.harness_tasks import needs_harness, write_choices
from jedit import experiments
from jedit.editing import contexts
from jedit.evals import evaluate
from jedit.experiments import inputs, results, stages, tasks
from jedit.experiments.compile_timer import CompileClock
from jedit.experiments.config import default_config, read_settings
from jedit.experiments.workdir import Workdir
from jedit.io import sealed, storage
from jedit.models.load import load_directory
from jedit.moments.files import SecondMoments
from jedit.testbeds.world import World
from jedit.types import Kernel, UserError

ROOT = pathlib.Path(__file__).parents[2]
# What a finished run leaves, apart from seconds.
STABLE = (
  'config.json',
  'contexts.json',
  'statistics.safetensors',
  'patch.safetensors',
  'evaluation.json',
  'records.jsonl',
  'unedited.jsonl',
  'samples.json',
)


def _assert_same_results(workdir, other):
  for name in STABLE:
    assert (workdir / name).read_bytes() == (other / name).read_bytes(), name
  for name, free in (('summary.json', 'seconds'), ('provenance.json', 'commit')):
    ours, theirs = (json.loads((each / name).read_text()) for each in (workdir, other))
    assert ours.keys() == theirs.keys()
    for each in (ours, theirs):  # somebody may commit while this runs
      each.pop(free), each.pop('jedit')
    assert ours == theirs


def test_a_run_leaves_every_file(finished):
  present = set(os.listdir(finished))
  more = {'provenance.json', 'summary.json', 'report.html', 'seconds.json', 'targets'}
  more |= {'metrics.csv', 'metrics.tex', 'shifts.png', 'shifts.svg', 'evaluation.jsonl'}
  assert present == {*STABLE, *more}
  rows = [json.loads(line) for line in (finished / 'records.jsonl').read_text().splitlines()]
  assert [row['case_id'] for row in rows] == [10, 11, 12, 13]
  assert rows[0]['before'].keys() == rows[0]['after'].keys() > {'efficacy', 'neighborhood_acc'}
  assert inputs.load_contexts(finished / 'contexts.json')[0] == ('{}',)


def test_every_prompt_of_a_run_can_be_read(finished, tmp_path):
  frame = jedit.read_records(finished)
  assert frame.equals(jedit.read_records(finished / 'records.jsonl'))
  rows = [json.loads(line) for line in (finished / 'records.jsonl').read_text().splitlines()]
  assert sorted(set(frame['case_id'])) == [row['case_id'] for row in rows]
  success = frame[frame['part'] == 'neighborhood'].groupby('case_id')['success_after'].mean()
  for row in rows:
    assert 100 * success[row['case_id']] == pytest.approx(row['after']['neighborhood'])
  page = (finished / 'report.html').read_text()
  assert all(f'{first:.2f}' in page for first in frame['nll_new_after'])
  assert page.count('<details>') == 4 + 2  # records, config and provenance
  for name in ('records.jsonl', 'evaluation.json'):
    shutil.copy(finished / name, tmp_path / name)
  assert frame.equals(jedit.read_records(tmp_path))
  (tmp_path / 'evaluation.json').unlink()
  with pytest.raises(UserError, match='There is no .*evaluation.json; give the workdir of a run'):
    jedit.read_records(tmp_path / 'records.jsonl')
  other = sealed.read_json(finished / 'evaluation.json', None)
  sealed.write_json(tmp_path / 'evaluation.json', 'jedit evaluation notes 1', other, 'other key')
  with pytest.raises(UserError, match='line 1 is not the one that was written'):
    jedit.read_records(tmp_path)


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
  for name in ('edit_stream', 'evaluate_apart', 'sample_texts', 'statistics'):
    monkeypatch.setattr(stages, name, None)  # calling one of them would fail
  experiments.run(tiny_run.config(made), workdir)
  _assert_same_results(workdir, finished)
  old, new = ((each / 'summary.json').read_text() for each in (finished, workdir))
  assert old == new
  assert 'neighborhood_magnitude' in capsys.readouterr().out


@pytest.mark.parametrize('stage', ['edit_stream', 'evaluate_apart', 'sample_texts'])
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
      experiments.run(tiny_run.config(made), tmp_path / 'run')
  begun = json.loads((tmp_path / 'run' / 'seconds.json').read_text())
  experiments.run(tiny_run.config(made), tmp_path / 'run')
  _assert_same_results(tmp_path / 'run', finished)
  seconds = json.loads((tmp_path / 'run' / 'summary.json').read_text())['seconds']
  assert seconds['statistics'] >= begun['statistics'] > 0


def test_lost_files_are_made_again(made, finished, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished, workdir)
  for name in ('patch.safetensors', 'records.jsonl', 'samples.json', 'summary.json'):
    (workdir / name).unlink()
  experiments.run(tiny_run.config(made), workdir)  # from the targets that were kept
  _assert_same_results(workdir, finished)


def test_stats_alone_and_then_edit(made, finished, tmp_path, capsys):
  experiments.run(tiny_run.config(made, task='stats'), tmp_path / 'run')
  assert 'statistics.safetensors' in capsys.readouterr().out
  assert 'patch.safetensors' not in os.listdir(tmp_path / 'run')
  experiments.run(tiny_run.config(made), tmp_path / 'run')
  _assert_same_results(tmp_path / 'run', finished)


def test_statistics_and_contexts_of_another_run_serve_again(made, finished, tmp_path, monkeypatch):
  monkeypatch.setattr(contexts, 'sample_contexts', None)
  shared = dict(
    statistics__file=str(finished / 'statistics.safetensors'),
    contexts=str(finished / 'contexts.json'),
  )
  experiments.run(tiny_run.config(made, **shared), tmp_path / 'run')
  patches = [jedit.Patch.load(each / 'patch.safetensors') for each in (finished, tmp_path / 'run')]
  assert patches[0].id == patches[1].id
  assert 'statistics.safetensors' not in os.listdir(tmp_path / 'run')


def test_moments_from_elsewhere_need_no_text(made, finished, tmp_path):
  moments = SecondMoments.load(finished / 'statistics.safetensors')
  for layer in (0, 1):
    name = f'transformer.h.{layer}.mlp.fc_out_float32_mom2_100000.npz'
    sums = {'mom2.mom2': 7 * moments.cov[Kernel(layer, 'mlp')], 'mom2.count': np.array(7)}
    np.savez(tmp_path / name, **sums)
  for file in (finished / 'statistics.safetensors', tmp_path):
    config = tiny_run.config(made, statistics__corpus='', statistics__file=str(file))
    settings = read_settings(config.to_dict())
    assert inputs.load_documents(settings) is None
    lm, workdir = inputs.load_model(settings), Workdir(tmp_path / file.name / 'run', {})
    found = stages.second_moments(lm, None, [settings.required_method], settings, workdir)
    for kernel, cov_FxF in moments.cov.items():
      np.testing.assert_allclose(found.cov[kernel], cov_FxF, rtol=1e-6)


def test_few_tokens_are_labelled(made, finished, tmp_path):
  experiments.run(tiny_run.config(made, statistics__fast=True), tmp_path / 'run')
  for workdir, preset in ((finished, 'full'), (tmp_path / 'run', 'fast')):
    summary = json.loads((workdir / 'summary.json').read_text())
    assert summary['statistics']['preset'] == preset and summary['statistics']['tokens'] > 50
    page = (workdir / 'report.html').read_text()
    assert ('moments use the fast preset' in page) == (preset == 'fast')


def test_generated_texts_are_measured_when_asked(made, finished, tmp_path):
  snippets = [
    dict(relation_id='lives', target_id='N', samples=[dict(name='Ove', text='is known for the')])
  ]
  (tmp_path / 'snippets.json').write_text(json.dumps(snippets))
  fields = dict(
    generation_interval=5, generation_tokens=24, snippets=str(tmp_path / 'snippets.json')
  )
  changes = dict(task='evaluate', patches=str(finished))
  changes |= {f'evaluation__{name}': value for name, value in fields.items()}
  experiments.run(tiny_run.config(made, **changes), tmp_path / 'with')
  summary = json.loads((tmp_path / 'with/summary.json').read_text())
  for name in ('fluency', 'fluency_without_prompt', 'consistency', 'free_generation_acc'):
    assert (
      summary['metrics'][name]['after']['n'] + summary['undefined'].get(name, {}).get('after', 0)
      == 1
    ), name
  assert summary['metrics']['essence']['after'] == {'mean': None, 'ci95': None, 'n': 0}
  assert summary['undefined']['essence'] == {'before': 1, 'after': 1}
  page = (tmp_path / 'with/report.html').read_text()
  assert 'entropies of word bigrams' in page and 'weights of the snippets themselves' in page
  assert 'Selection: 4 of records.json, the first ones in file order' in page
  rows = [json.loads(line) for line in (tmp_path / 'with/records.jsonl').read_text().splitlines()]
  assert ['fluency' in row['after'] for row in rows] == [True, False, False, False]
  # What was measured before is the same; what cannot be had is said.
  changes |= dict(evaluation__idf='/no/idf.npy', evaluation__vocabulary='/no/vocabulary.json')
  experiments.run(tiny_run.config(made, **changes), tmp_path / 'without')
  other = json.loads((tmp_path / 'without/summary.json').read_text())
  assert 'consistency' not in other['metrics'] and 'essence' not in other['metrics']
  assert other['metrics']['fluency'] == summary['metrics']['fluency']
  assert any('File /no/idf.npy does not exist' in note for note in other['notes'])


def test_evaluate_measures_a_patch_of_another_run(made, finished, tmp_path):
  for number, patches in enumerate((finished, finished / 'patch.safetensors')):
    workdir = tmp_path / str(number)
    experiments.run(tiny_run.config(made, task='evaluate', patches=str(patches)), workdir)
    for name in ('records.jsonl', 'unedited.jsonl', 'samples.json'):
      assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name
    summary = json.loads((workdir / 'summary.json').read_text())
    assert summary['method'] == 'pmet' and summary['num_edits'] == 4


def test_records_without_paraphrases_and_neighbours_are_reported(made, finished, tmp_path):
  query = dict(prompt='Ove plays', ground_truth='jazz')
  criteria = dict(portability=dict(Reasoning=[query]), locality=dict(Forgetfulness=[query]))
  records = [dict(subject='Ove', prompt='Ove lives in', target_new='Paris', **criteria)]
  (tmp_path / 'facts.json').write_text(json.dumps(records))
  fields = dict(data__records=str(tmp_path / 'facts.json'), data__num_edits=1)
  config = tiny_run.config(made, task='evaluate', patches=str(finished), **fields)
  experiments.run(config, tmp_path / 'run')
  found = json.loads((tmp_path / 'run' / 'summary.json').read_text())['metrics']
  assert found['portability']['after']['n'] == found['locality']['after']['n'] == 1
  assert found['score']['after']['mean'] is None
  assert 'portability' in (tmp_path / 'run' / 'report.html').read_text()


@needs_harness
def test_downstream_tasks_are_a_table_of_a_finished_run(made, finished, tmp_path, capsys):
  workdir, task = tmp_path / 'copy', write_choices(tmp_path)
  shutil.copytree(finished, workdir)
  fields = dict(evaluation__harness=task, evaluation__harness_limit=3)
  experiments.run(tiny_run.config(made, **fields), workdir)
  printed = capsys.readouterr().out
  assert re.search(r'towns +acc ↑ +0 +3 +\d\.\d{4} ± +\d\.\d{4} +\d\.\d{4}', printed)
  assert 'Downstream tasks' in (workdir / 'report.html').read_text()
  assert (workdir / 'downstream.csv').read_text().startswith('task,metric,shots,documents,before')
  for name in ('patch.safetensors', 'records.jsonl'):
    assert (workdir / name).read_bytes() == (finished / name).read_bytes(), name
  fields['evaluation__harness'] += ', capitals.yaml'
  with pytest.raises(UserError, match="no harness task 'capitals.yaml'"):
    experiments.run(tiny_run.config(made, **fields), tmp_path / 'other')
  assert not (tmp_path / 'other').exists()


def test_export_writes_a_model_that_is_edited(made, finished, tmp_path, capsys):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished, workdir)
  for _ in range(2):  # the second time finds it done
    experiments.run(tiny_run.config(made, task='export'), workdir)
    assert str(workdir / 'model') in capsys.readouterr().out
  model, _ = load_directory(workdir / 'model', 'float32')
  lm = jedit.load(made / 'model').apply(jedit.Patch.load(finished / 'patch.safetensors'))
  kernel = model.params['block_1']['mlp']['down']['kernel']
  np.testing.assert_array_equal(kernel, lm.params['block_1']['mlp']['down']['kernel'])
  assert not np.array_equal(kernel, lm.base['block_1']['mlp']['down']['kernel'])
  transformers.AutoTokenizer.from_pretrained(workdir / 'model')
  experiments.run(tiny_run.config(made), workdir)  # the edit run is still what it was
  _assert_same_results(workdir, finished)


def test_export_writes_patches_as_a_lora_adapter(made, finished, tmp_path, capsys):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished, workdir)
  patch = jedit.Patch.load(finished / 'patch.safetensors')
  for _ in range(2):  # the second time finds it done
    experiments.run(tiny_run.config(made, task='export', export__adapter=True), workdir)
    assert f'{workdir / "adapter"}, of rank 4, exact' in capsys.readouterr().out
  assert jedit.Patch.from_lora(workdir / 'adapter').id == patch.id
  changes = dict(export__adapter=True, export__max_rank=2, export__path=str(tmp_path / 'low'))
  experiments.run(tiny_run.config(made, task='export', **changes), workdir)
  assert 'of rank 2, truncated by up to ' in capsys.readouterr().out
  low = jedit.Patch.from_lora(tmp_path / 'low')
  assert low.provenance['truncated']['patch'] == patch.id
  with pytest.raises(UserError, match='export.max_rank is of adapters'):
    experiments.run(tiny_run.config(made, task='export', export__max_rank=2), workdir)


def test_train_hands_its_config_to_the_trainer_once(tmp_path, monkeypatch, capsys):
  config = default_config('train')
  calls = []

  def train(config, workdir):
    calls.append(config.train.num_steps)
    storage.write_json(pathlib.Path(workdir) / 'model' / 'knowledge.json', {'trained': 99})

  monkeypatch.setattr(tasks, 'train', train)
  experiments.run(config, tmp_path)
  experiments.run(config, tmp_path)
  assert calls == [config.train.num_steps]
  assert 'trained already: 99%' in capsys.readouterr().out
  assert {'config.json', 'provenance.json', 'model'} == set(os.listdir(tmp_path))
  config.train.num_steps = 5
  with pytest.raises(UserError, match='train.num_steps is .* there and 5 here'):
    experiments.run(config, tmp_path)


def test_unedited_questions_are_about_nobody_who_is_edited(made):
  settings = read_settings(tiny_run.config(made).to_dict())
  records = inputs.load_selection(settings)
  questions = inputs.unedited_questions(settings, records)
  assert questions and questions == inputs.unedited_questions(settings, records)
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
  storage.write_json(tmp_path / 'model' / 'records.json', records)
  storage.write_json(tmp_path / 'model' / 'knowledge.json', {'config': source})
  (tmp_path / 'model' / 'corpus.txt').write_text('One text.\nAnother one.\n\n')
  config = tiny_run.config(made, model__path=str(tmp_path / 'model'), data__records='')
  config.statistics.corpus = ''
  settings = read_settings(config.to_dict())
  chosen = inputs.load_selection(settings)
  documents = inputs.load_documents(settings)
  assert sorted(documents.read()) == ['Another one.', 'One text.']
  questions = inputs.unedited_questions(settings, chosen)
  assert len(questions) == 10 if learnt == 'world' else len(questions) > 2
  known = {(p.text, p.answer) for p in world.prompts()} if learnt == 'world' else set(questions)
  for question in questions:
    assert question in known
    assert not any(record.request.subject in question[0] for record in chosen)


def test_the_table_survives_its_files(made, tmp_path):
  values = {'efficacy': np.array([0.1, np.nan]), 'score': np.array([1 / 3, 0.0])}
  table = evaluate.Table((3, 5), values, values, {'unedited_kept': np.array([np.nan, 100.0])})
  file = tmp_path / 'evaluation.json'
  results.write_table(file, table, ['how'], [('a', 'b'), ('c', 'd')], 'key')
  again = results.read_table(file, 'key', (2, 2))
  assert again.notes == ('how',)
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
  assert done.stderr.splitlines()[-1].startswith('jedit: 99 records are wanted'), done.stderr
  assert not (made / 'none').exists()
