"""Editors: trained in a few steps, resumed, stored, and used as any other method."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

import jedit
from helpers import editing
from jedit.hypernetworks import train as train_module
from jedit.io import checkpoints
from jedit.types import Record, UserError

MALMEN = dict(layers=(1, 2), rank=4, num_edits=4, mini_batch_size=2, initial_rate=1e-2,
              learning_rate=3e-3, num_steps=6)  # fmt: skip
MEND = dict(layers=(1,), rank=4, accumulate=2, learning_rate=3e-3, rate_learning_rate=1e-3,
            num_steps=6, num_validation=2, validation_interval=2, patience=4)  # fmt: skip


def records(count=7):
  """Records with a paraphrase and an unrelated prompt each."""
  made = []
  for number, request in enumerate(editing.REQUESTS[:count]):
    near = editing.REQUESTS[(number + 1) % len(editing.REQUESTS)]
    made.append(
      Record(number, request, (f'In short, {request.text}',), (near.text, f'So {near.text}'),
             neighborhood_target='jazz')
    )  # fmt: skip
  return made


def malmen(**fields):
  return jedit.methods.malmen(**{**MALMEN, **fields})


def mend(**fields):
  return jedit.methods.mend(**{**MEND, **fields})


def train_and_save(name, store, file):
  """Trains a tiny editor; also what the killed process runs."""
  method = {'malmen': malmen, 'mend': mend}[name]()
  jedit.train_editor(editing.language_model('gptj'), records(), method, store=store).save(file)


_RUN = """
import sys
import train_test
from jedit.io import checkpoints
checkpoints._SECONDS_PER_SAVE = checkpoints._WORK_PER_SAVE = 0
train_test.train_and_save(*sys.argv[1:])
"""


@pytest.fixture(scope='module')
def editors():
  lm = editing.language_model('gptj')
  return {
    'malmen': jedit.train_editor(lm, records(), malmen()),
    'mend': jedit.train_editor(lm, records(), mend()),
  }


@pytest.mark.parametrize('name', ['malmen', 'mend'])
def test_training_moves_the_nets_and_keeps_its_losses(editors, name):
  editor = editors[name]
  made = editor.provenance
  assert made['steps'] == len(made['curve']) == 6 and made['num_records'] == (
    7 if name == 'malmen' else 5
  )
  assert np.isfinite([row[1:] for row in made['curve']]).all()
  blocks = next(iter(editor.params.values()))['blocks']
  assert all(np.abs(block['up']).max() > 0 for block in blocks.values())
  if name == 'mend':
    assert [step for step, _ in made['validation']] == [2, 4, 6]
    best = min(made['validation'], key=lambda pair: pair[1])
    assert made['best_step'] == best[0]
  assert editor.tokens_per_edit > 1 and f'Editor {editor.id}: {name}' in repr(editor)


@pytest.mark.parametrize('name', ['malmen', 'mend'])
def test_an_editor_is_stored_and_edits_like_every_method(editors, name, tmp_path):
  editor, lm = editors[name], editing.language_model('gptj')
  method = {'malmen': malmen, 'mend': mend}[name]()
  editor.save(tmp_path / 'editor.safetensors')
  again = jedit.Editor.load(tmp_path / 'editor.safetensors')
  assert again.id == editor.id and again.provenance == editor.provenance
  result = jedit.edit(lm, editing.REQUESTS, method, editor=again)
  assert result.patch.id == jedit.edit(lm, editing.REQUESTS, method, editor=editor).patch.id
  assert result.patch.provenance['editor'] == editor.id
  assert result.patch.provenance['num_edits'] == len(editing.REQUESTS)
  edited = lm.apply(result)
  texts = editing.texts(editing.REQUESTS)
  assert np.abs(edited.logits(texts) - lm.logits(texts)).max() > 0
  np.testing.assert_array_equal(edited.revert(result).logits(texts), lm.logits(texts))
  batches = jedit.edit(
    lm, editing.REQUESTS, method, editor=editor, batching=jedit.Sequential(4), store=tmp_path
  )
  assert len(batches.batches) == 2
  stored = jedit.edit(
    lm, editing.REQUESTS, method, editor=editor, batching=jedit.Sequential(4), store=tmp_path
  )
  assert stored.patch.id == batches.patch.id


def test_edits_do_not_depend_on_how_many_run_at_once(editors):
  lm, editor = editing.language_model('gptj'), editors['malmen']
  one, two = (
    jedit.edit(lm, editing.REQUESTS, malmen(), editor=editor, target_batch_size=size).patch
    for size in (2, 8)
  )
  for path, update in one.updates.items():
    assert editing.relative(update.value(), two.updates[path].value()) < 1e-4


def test_moving_statistics_and_released_denominators_are_choices(editors):
  lm, editor = editing.language_model('gptj'), editors['malmen']
  requests = editing.REQUESTS[:3]  # an incomplete mini-batch
  norms = [
    next(
      iter(jedit.edit(lm, requests, malmen(**fields), editor=editor).patch.updates.values())
    ).norm()
    for fields in (
      {},
      dict(denominator='released'),
      dict(update_statistics=True, statistics='exact'),
    )
  ]
  assert len({round(norm, 6) for norm in norms}) == 3
  with pytest.raises(UserError, match="single row, whose variance .* choose statistics='exact'"):
    jedit.edit(lm, requests, malmen(update_statistics=True), editor=editor)


def test_the_paper_subtracts_what_the_released_mend_adds(editors):
  lm, editor = editing.language_model('gptj'), editors['mend']
  ours, theirs = (
    jedit.edit(lm, editing.REQUESTS[:2], mend(sign=sign), editor=editor).patch.updates
    for sign in ('released', 'paper')
  )
  for path in ours:
    np.testing.assert_array_equal(ours[path].value(), -theirs[path].value())


class _Stop(Exception):
  pass


@pytest.mark.parametrize('name', ['malmen', 'mend'])
def test_a_stopped_training_goes_on_to_the_same_bits(editors, name, tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoints, '_SECONDS_PER_SAVE', 0)
  monkeypatch.setattr(checkpoints, '_WORK_PER_SAVE', 0)
  step = train_module._Training._step

  def stopping(self, state, number):
    if number == 5:
      raise _Stop
    return step(self, state, number)

  with monkeypatch.context() as patched, pytest.raises(_Stop):
    patched.setattr(train_module._Training, '_step', stopping)
    train_and_save(name, tmp_path / 'store', tmp_path / 'editor.safetensors')
  assert (tmp_path / 'store' / '4').is_dir()
  train_and_save(name, tmp_path / 'store', tmp_path / 'editor.safetensors')
  again = jedit.Editor.load(tmp_path / 'editor.safetensors')
  assert again.id == editors[name].id
  assert again.provenance['curve'] == editors[name].provenance['curve']
  assert not (tmp_path / 'store').exists()


def test_a_killed_training_leaves_nothing_half_written(editors, tmp_path):
  file = tmp_path / 'editor.safetensors'
  root = pathlib.Path(__file__).parents[2]
  path = os.pathsep.join(map(str, (root, root / 'tests', root / 'tests' / 'hypernetworks')))
  command = [sys.executable, '-c', _RUN, 'malmen', os.fspath(tmp_path / 'store'), os.fspath(file)]
  environment = {**os.environ, 'PYTHONPATH': path}
  with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as run:
    while run.poll() is None and not any((tmp_path / 'store').glob('[1-5]/about.json')):
      time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
  assert run.returncode == -signal.SIGKILL and not file.exists()
  train_and_save('malmen', tmp_path / 'store', file)
  assert jedit.Editor.load(file).id == editors['malmen'].id


def test_early_stopping_keeps_the_best_state(monkeypatch):
  losses = iter([3.0, 1.0, 2.0, 4.0])
  monkeypatch.setattr(train_module._Training, '_validate', lambda self, state: next(losses))
  lm = editing.language_model('gptj')
  method = mend(num_steps=20, validation_interval=1, patience=2)
  editor = jedit.train_editor(lm, records(), method)
  assert (editor.provenance['steps'], editor.provenance['best_step']) == (4, 2)


def test_mistakes_are_sentences_before_anything_is_trained(editors, tmp_path):
  lm, other = editing.language_model('gptj'), editing.language_model('llama')
  few = records(2)
  lacking = [dataclasses.replace(records()[0], paraphrase_prompts=()), *records()[1:]]
  silent = [dataclasses.replace(records()[0], neighborhood_target=None), *records()[1:]]
  for run, words in (
    (lambda: jedit.train_editor(lm, few, malmen()), '2 records are given, a step takes 4'),
    (lambda: jedit.train_editor(lm, lacking, malmen()), 'Record 0 has no paraphrase_prompts'),
    (lambda: jedit.train_editor(lm, silent, malmen()), 'Record 0 has no neighborhood_target'),
    (
      lambda: jedit.train_editor(lm, records(), jedit.methods.memit(layers=(1,))),
      'Method memit has no editor to train',
    ),
    (
      lambda: jedit.edit(other, editing.REQUESTS, malmen(), editor=editors['malmen']),
      'trained for a model with fingerprint',
    ),
    (
      lambda: jedit.edit(lm, editing.REQUESTS, malmen(layers=(1,)), editor=editors['malmen']),
      r'trained with layers \(1, 2\), the method has \(1,\)',
    ),
    (
      lambda: jedit.edit(lm, editing.REQUESTS, mend(), editor=editors['malmen']),
      "trained with name 'malmen', the method has 'mend'",
    ),
    (lambda: jedit.edit(lm, editing.REQUESTS, malmen()), 'edits with a trained editor'),
    (
      lambda: jedit.edit(lm, editing.REQUESTS, jedit.methods.ft(layers=(1,)), editor=object()),
      'edits without an editor',
    ),
    (lambda: jedit.Editor.load(tmp_path / 'none.safetensors'), 'none.safetensors'),
  ):
    with pytest.raises(UserError, match=words):
      run()
  edited = lm.apply(jedit.edit(lm, editing.REQUESTS[:2], malmen(), editor=editors['malmen']))
  with pytest.raises(UserError, match='carries patches'):
    jedit.train_editor(edited, records(), malmen())
  result = jedit.edit(lm, editing.REQUESTS[:1], malmen(), editor=editors['malmen'])
  result.patch.save(tmp_path / 'patch.safetensors')
  with pytest.raises(UserError, match="where 'jedit editor 1' is wanted"):
    jedit.Editor.load(tmp_path / 'patch.safetensors')


def test_a_mini_batch_of_one_row_is_refused_where_its_variance_is_undefined():
  lm = editing.language_model('gptj')
  single = [
    dataclasses.replace(
      record, request=dataclasses.replace(record.request, target_new='the', target=None)
    )
    for record in records()
  ]
  method = malmen(num_edits=2, mini_batch_size=1)
  with pytest.raises(UserError, match="mini_batch_size, or choose statistics='exact'"):
    jedit.train_editor(lm, single, method)
  assert jedit.train_editor(lm, single, malmen(num_edits=2, mini_batch_size=1, statistics='exact',
                                               num_steps=1))  # fmt: skip


def test_a_first_update_of_a_single_row_is_refused():
  lm = editing.language_model('gptj')
  short = [
    dataclasses.replace(
      record, request=dataclasses.replace(record.request, target_new='the', target=None)
    )
    for record in records()
  ]
  with pytest.raises(UserError, match='1 row for the statistics .* edit a lower layer as well'):
    jedit.train_editor(lm, short, mend(layers=(2,), kernels=('mlp',)))


def test_a_training_that_is_not_finite_names_record_and_layer(editors):
  lm = editing.language_model('gptj')
  broken = dataclasses.replace(
    lm, base=jax.tree.map(lambda x: x * np.float32('nan'), lm.base), params={}
  )
  with pytest.raises(UserError, match=r'inner loss of record 1\d .* is not finite in step 1'):
    jedit.train_editor(broken, records(), malmen())
  with pytest.raises(UserError, match=r'Step \d .* record 1\d .*: .* mlp kernel in layer \d is'):
    jedit.train_editor(lm, records(), malmen(learning_rate=1e30))
  with pytest.raises(UserError, match='loss of record 11 .* is not finite'):
    editor = dataclasses.replace(editors['malmen'], model='')
    jedit.edit(broken, editing.REQUESTS, malmen(), editor=editor)
