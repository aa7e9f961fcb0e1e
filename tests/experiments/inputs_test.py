"""What a run refuses, and how it says so: configs, records, files and used workdirs."""

import json
import os
import pathlib
import shutil

import pytest
from absl import logging

from helpers import tiny_run
from jedit import experiments
from jedit.experiments.workdir import CONFIG, Workdir
from jedit.io import sealed
from jedit.types import UserError


def _sentence(config, workdir):
  """The message a run ends with; nothing may be written."""
  with pytest.raises(UserError) as raised:
    experiments.run(config, workdir)
  message = str(raised.value)
  assert '\n' not in message and message.endswith('.'), message
  assert not pathlib.Path(workdir).exists() or not os.listdir(workdir)
  return message


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
    experiments.run(tiny_run.config(made, **changes), finished)
  assert before == {name: (finished / name).stat().st_mtime_ns for name in os.listdir(finished)}


def test_a_workdir_on_other_records_is_refused(made, finished, tmp_path):
  workdir = tmp_path / 'copy'
  shutil.copytree(finished, workdir)
  config = tiny_run.config(made)
  config.data.records = str(tmp_path / 'records.json')
  records = json.loads((made / 'records.json').read_text())
  shutil.copy(made / 'records.json', tmp_path / 'records.json')
  shutil.copy(finished / 'config.json', workdir / 'config.json')
  stored = sealed.read_json(workdir / 'config.json', CONFIG)
  stored['data']['records'] = config.data.records
  sealed.write_json(workdir / 'config.json', CONFIG, stored)
  experiments.run(config, workdir)  # a moved file is the same one
  records[0]['requested_rewrite']['target_new']['str'] = 'Lima'
  (tmp_path / 'records.json').write_text(json.dumps(records))
  with pytest.raises(UserError, match='holds a run on another data: its sha256'):
    experiments.run(config, workdir)


def test_a_workdir_without_results_is_free(made, tmp_path):
  sealed.write_json(tmp_path / 'config.json', CONFIG, {'task': 'edit', 'seed': 5})
  experiments.run(tiny_run.config(made, task='stats'), tmp_path)
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 0


def test_a_workdir_with_shared_contexts_alone_belongs_to_its_run(tmp_path):
  sealed.write_json(tmp_path / 'config.json', CONFIG, {'task': 'sweep', 'seed': 5})
  (tmp_path / 'contexts_rome.json').write_text('[["{}"]]')
  with pytest.raises(UserError, match='seed is 5 there and 0 here'):
    Workdir(tmp_path, {'task': 'sweep', 'seed': 0})


def test_a_strange_workdir_is_refused(made, tmp_path):
  (tmp_path / 'patch.safetensors').write_bytes(b'mine')
  with pytest.raises(UserError, match='holds patch.safetensors but no config.json'):
    experiments.run(tiny_run.config(made), tmp_path)
  (tmp_path / 'file').write_text('')
  assert 'cannot be written' in _sentence_for_file(made, tmp_path / 'file')


def _sentence_for_file(made, path):
  with pytest.raises(UserError) as raised:
    experiments.run(tiny_run.config(made), path)
  return str(raised.value)


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (
      dict(task='fly'),
      "Unknown task 'fly'; choose one of edit, stats, train, train_editor, sweep, evaluate, probe",
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
    (dict(data__records='/no/such.json'), 'Cannot read /no/such.json'),
    (dict(data__records=''), 'has no records.json; give a file in data.records'),
    (dict(data__kind='csv'), "no kind of records 'csv'"),
    (dict(data__num_edits=99), '99 records are wanted and 5 exist'),
    (dict(data__num_edits='all'), "data.num_edits is 'all'; give a whole number"),
    (dict(evaluation__idf='idf.npy'), 'evaluation.idf and evaluation.vocabulary go together'),
    (dict(evaluation__generation_interval=-1), 'evaluation.generation_interval is -1'),
    (dict(data__selection='last'), "data.selection is 'last'"),
    (dict(statistics__corpus='/no/such.txt'), '/no/such.txt cannot be read'),
    (dict(statistics__corpus=''), 'has no corpus.txt'),
    (dict(statistics__batch_tokens=0), 'statistics.batch_tokens is 0; give at least 1'),
    (dict(statistics__part='3/2'), "statistics.part is '3/2'; give one such as '2/8'"),
    (dict(statistics__dataset='wiki'), 'statistics.corpus and statistics.dataset; give one'),
    (dict(statistics__streaming=True), 'streaming is for a statistics.dataset'),
    (
      dict(statistics__file='/no/such.npz'),
      '/no/such.npz does not exist; give an existing file in st',
    ),
    (dict(contexts='/no/such.json'), 'Cannot read /no/such.json'),
    (dict(edit=5), 'The config section edit is 5'),
    (dict(task='evaluate'), 'has no patch.safetensors; name a patch'),
    (dict(task='evaluate', patches='/no/patch'), 'Cannot read /no/patch'),
    (dict(task='export'), 'has no patch.safetensors; name a patch'),
    (dict(edit=dict(size=3)), "no field 'edit.size'; it is edit.edits_per_batch now"),
    (dict(task='train'), "A config for training has no field 'data'; it has task, seed, records"),
  ],
)
def test_a_bad_config_is_one_sentence(made, tmp_path, changes, words):
  assert words in _sentence(tiny_run.config(made, **changes), tmp_path / 'run')


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
  sentence = _sentence(tiny_run.config(made, data__records=str(path)), tmp_path / 'run')
  assert words in sentence and 'record 1 (case_id 11)' in sentence and str(path) in sentence


@pytest.mark.parametrize(
  ('field', 'text', 'words'),
  [('data__records', '[{', 'is not JSON'), ('statistics__corpus', ' \n\n', 'There is no text in')],
)
def test_a_bad_file_is_named(made, tmp_path, field, text, words):
  (tmp_path / 'file').write_text(text)
  sentence = _sentence(tiny_run.config(made, **{field: str(tmp_path / 'file')}), tmp_path / 'run')
  assert words in sentence and str(tmp_path / 'file') in sentence


@pytest.mark.parametrize('lost', ['tokenizer.json', 'model.safetensors', 'config.json'])
def test_a_model_that_lacks_a_file_is_named(made, tmp_path, lost):
  shutil.copytree(made / 'model', tmp_path / 'model')
  (tmp_path / 'model' / lost).unlink()
  if lost == 'tokenizer.json':
    (tmp_path / 'model' / 'tokenizer_config.json').unlink()
  sentence = _sentence(tiny_run.config(made, model__path=str(tmp_path / 'model')), tmp_path / 'run')
  assert str(tmp_path / 'model') in sentence


def test_requests_that_cannot_all_hold_are_warned_of(made, tmp_path, monkeypatch):
  records = json.loads((made / 'records.json').read_text())
  records[1]['requested_rewrite'] |= dict(subject=tiny_run.SUBJECTS[0])
  records[2]['requested_rewrite']['target_new']['str'] = tiny_run.CITIES[1]  # true already
  (tmp_path / 'records.json').write_text(json.dumps(records))
  said = []
  monkeypatch.setattr(logging, 'warning', lambda text, *values: said.append(text % values))
  experiments.run(
    tiny_run.config(made, data__records=str(tmp_path / 'records.json')), tmp_path / 'run'
  )
  assert len([text for text in said if 'prompts have several targets' in text]) == 1, said
  assert any('record 12 has target' in text for text in said), said
