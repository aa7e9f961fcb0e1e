"""Runs in several batches: separate, sequential, watched, stopped and continued."""

import json
import os

import pytest

from helpers import tiny_run
from jedit import experiments
from jedit.experiments import stages
from jedit.models.language_model import load
from jedit.models.patch import Patch
from jedit.types import UserError


def _config(made, method=None, **edit):
  config = tiny_run.config(made)
  config.edit.update(edit)
  if method is not None:
    config.method = method
  return config


def _summary(workdir):
  return json.loads((workdir / 'summary.json').read_text())


def _rows(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope='module')
def sequence(made):
  experiments.run(_config(made, mode='sequential', edits_per_batch=2, canary=3), made / 'sequence')
  return made / 'sequence'


def test_single_edits_are_measured_one_by_one(made, capsys):
  workdir = made / 'single'
  rome = dict(name='rome', layers=(1,), num_steps=4)
  experiments.run(_config(made, rome, mode='separate', edits_per_batch=1), workdir)
  summary = _summary(workdir)
  assert summary['method'] == 'rome' and summary['num_edits'] == 4
  assert summary['mode'] == 'separate' and summary['targets'][0]['edits'] == 4
  assert summary['metrics']['efficacy']['after']['n'] == 4
  assert not (workdir / 'patch.safetensors').exists()
  assert 'rome on tiny: 4 edits' in capsys.readouterr().out
  # Each record is measured on the model of its own edit alone.
  rows = _rows(workdir / 'records.jsonl')
  config = _config(made, rome, mode='separate', edits_per_batch=1)
  config.task, config.patches = 'evaluate', str(workdir / 'batches/00002.safetensors')
  experiments.run(config, made / 'third')
  third = _rows(made / 'third' / 'records.jsonl')
  for name, value in rows[2]['after'].items():
    assert third[2]['after'][name] == pytest.approx(value, abs=1e-3)
  assert third[1]['after'] != rows[1]['after']


def test_a_sequence_leaves_one_patch_and_what_it_did(made, sequence):
  patch = Patch.load(sequence / 'patch.safetensors')
  assert patch.provenance['num_edits'] == 4 and len(patch.provenance['merged']) == 2
  load(made / 'model').apply(patch)
  rows = _rows(sequence / 'damage.jsonl')
  assert [row['edits'] for row in rows] == [0, 2, 4]
  assert rows[0]['growth'] == {} and rows[0]['neighborhood'] is not None
  growth = [max(row['growth'].values()) for row in rows[1:]]
  assert all(value > 0 for value in growth)
  assert _summary(sequence)['stopped'] == ''


def test_a_killed_sequence_ends_with_the_same_files(made, sequence, monkeypatch):
  config = _config(made, mode='sequential', edits_per_batch=2, canary=3)
  workdir, check, calls = made / 'killed', stages.DamageMonitor.check, []

  def dies(self, *arguments):
    calls.append(1)
    if len(calls) == 1:
      raise KeyboardInterrupt
    return check(self, *arguments)

  with monkeypatch.context() as patch:
    patch.setattr(stages.DamageMonitor, 'check', dies)
    with pytest.raises(KeyboardInterrupt):
      experiments.run(config, workdir)
  assert not (workdir / 'patch.safetensors').exists()
  experiments.run(config, workdir)
  for name in ('damage.jsonl', 'records.jsonl', 'unedited.jsonl', 'patch.safetensors'):
    assert (workdir / name).read_bytes() == (sequence / name).read_bytes(), name


def test_damage_stops_a_sequence(made, capsys):
  config = _config(made, mode='sequential', edits_per_batch=1, canary=3, max_growth=1e-6)
  experiments.run(config, made / 'stopped')
  summary = _summary(made / 'stopped')
  assert summary['num_edits'] == 1 and summary['metrics']['efficacy']['after']['n'] == 1
  assert 'Stopped after 1 edits' in summary['stopped'] and 'edit.max_growth' in summary['stopped']
  assert 'Stopped after 1 edits' in capsys.readouterr().out
  config = _config(made, mode='sequential', edits_per_batch=1, canary=3, min_neighborhood=101.0)
  experiments.run(config, made / 'dropped')
  assert 'edit.min_neighborhood' in _summary(made / 'dropped')['stopped']


def test_fine_tuning_runs_without_second_moments(made):
  method = dict(name='ft_w', layers=(1,), num_epochs=3)
  experiments.run(_config(made, method), made / 'tuned')
  assert not (made / 'tuned' / 'statistics.safetensors').exists()
  assert _summary(made / 'tuned')['method'] == 'ft_w'
  config = _config(made, method)
  config.task = 'stats'
  with pytest.raises(UserError, match='ft_w needs no second moments'):
    experiments.run(config, made / 'tuned_stats')
  assert not os.path.exists(made / 'tuned_stats')


def test_a_batch_that_the_method_cannot_write_leaves_nothing(made):
  rome = dict(name='rome', layers=(1,), num_steps=4)
  for edit in ({}, dict(mode='sequential', edits_per_batch=2)):
    with pytest.raises(UserError, match='one edit at a time'):
      experiments.run(_config(made, rome, **edit), made / 'mistake')
    assert not os.path.exists(made / 'mistake')


@pytest.mark.parametrize(
  ('edit', 'words'),
  [
    (dict(mode='both'), "edit.mode is 'both'; choose one of together, separate, sequential"),
    (dict(edits_per_batch=0), 'edit.edits_per_batch is 0; give at least 1'),
    (dict(max_growth='x'), "edit.max_growth is 'x'; give a number"),
    (dict(accumulate_keys=1), 'edit.accumulate_keys is 1; give True or False'),
  ],
)
def test_mistakes_are_sentences(made, edit, words):
  with pytest.raises(UserError, match=words):
    experiments.run(_config(made, **edit), made / 'mistake')
  assert not os.path.exists(made / 'mistake')
