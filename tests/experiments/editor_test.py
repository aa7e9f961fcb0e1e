"""The task train_editor, and edits with an editor that is trained first, given or missing."""

import json

import pytest

import jedit
from helpers import tiny_run
from jedit import experiments
from jedit.types import UserError

METHOD = dict(
  name='malmen', layers=(0, 1), rank=4, num_edits=2, mini_batch_size=2, learning_rate=1e-3,
  num_steps=2,
)  # fmt: skip


def _config(made, **changes):
  c = tiny_run.config(made, data__num_edits=2, evaluation__samples=0)
  with c.ignore_type():
    c.method = dict(METHOD)
    # The same file: records about the subjects of the test are left out.
    c.training = dict(records=str(made / 'records.json'))
  for name, value in changes.items():
    c[name] = value
  return c


@pytest.fixture(scope='module')
def trained(made):
  experiments.run(_config(made, task='train_editor'), made / 'editor')
  return made / 'editor'


def test_an_editor_is_trained_with_a_report(trained, capsys):
  editor = jedit.Editor.load(trained / 'editor.safetensors')
  assert editor.provenance['steps'] == 2 and editor.provenance['num_records'] == 3
  lines = (trained / 'training.csv').read_text().splitlines()
  assert lines[0] == 'step,inner,edit,locality,total,norm' and len(lines) == 3
  page = (trained / 'report.html').read_text()
  assert editor.id in page and 'malmen for tiny: 2 steps' in page
  assert json.loads((trained / 'seconds.json').read_text())['training'] > 0


def test_an_edit_trains_its_editor_first_or_takes_one(made, trained):
  experiments.run(_config(made), made / 'first')
  experiments.run(_config(made, editor=str(trained / 'editor.safetensors')), made / 'given')
  patches = [jedit.Patch.load(made / run / 'patch.safetensors') for run in ('first', 'given')]
  assert patches[0].id == patches[1].id
  assert (made / 'first' / 'editor.safetensors').is_file()
  assert not (made / 'given' / 'editor.safetensors').exists()
  summary = json.loads((made / 'given' / 'summary.json').read_text())
  assert summary['num_edits'] == 2 and summary['metrics']['efficacy']


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    (dict(editor='none.safetensors'), 'There is no editor none.safetensors; train one with'),
    (dict(training=dict(records='')), 'no made-up world to train an editor on'),
    (
      dict(task='train_editor', method=dict(name='ft', layers=(0,))),
      'Method ft has no editor to train',
    ),
    (dict(method=dict(name='ft', layers=(0,)), editor='some.safetensors'), 'without an editor'),
  ],
)
def test_mistakes_are_sentences_before_anything_is_written(made, tmp_path, changes, words):
  c = _config(made)
  with c.ignore_type():
    for name, value in changes.items():
      c[name] = value
  with pytest.raises(UserError, match=words):
    experiments.run(c, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()
