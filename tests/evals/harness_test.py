"""lm-evaluation-harness on a tiny model: its three calls against plain loops, tasks, bad input."""

import dataclasses
import functools
import sys
import types

import jax
import numpy as np
import pytest

import jedit
from helpers import tiny, vocabularies
from helpers.harness_tasks import needs_harness, write_choices, write_task
from jedit.evals import downstream, harness
from jedit.models import FAMILIES, Model
from jedit.models.export import save_directory
from jedit.models.patch import Patch, Update
from jedit.types import UserError

LENGTH = 40  # positions of the model


def _save(directory, family, tokenizer):
  names = {'gptj': 'n_positions', 'llama': 'max_position_embeddings'}
  hf_config = tiny.hf_config(family, vocab_size=len(tokenizer), **{names[family]: LENGTH})
  config = FAMILIES[family].read_config(hf_config, 'float32')
  save_directory(directory, Model(tiny.random_params(config), config=config), hf_config,
                 tokenizer=tokenizer)  # fmt: skip
  return directory


@pytest.fixture(scope='module')
def gptj(tmp_path_factory):
  """A model whose tokenizer adds no BOS."""
  return jedit.load(_save(tmp_path_factory.mktemp('gptj'), 'gptj', vocabularies.byte_level()))


@pytest.fixture(scope='module', params=['gptj', 'llama'])
def lm(request, gptj, tmp_path_factory):
  """A model without BOS, and one whose tokenizer adds it."""
  if request.param == 'gptj':
    return gptj
  tokenizer = vocabularies.byte_level(bos=True)
  return jedit.load(_save(tmp_path_factory.mktemp('llama'), 'llama', tokenizer))


def _requests(*arguments):
  return [types.SimpleNamespace(args=each) for each in arguments]


def _logp(lm, context, continuation):
  """Log-probability of tokens after tokens, and whether all are on top."""
  logits_TxV = tiny.logits(lm.model, [*context, *continuation][:-1])[len(context) - 1 :]
  norm_T = np.logaddexp.reduce(logits_TxV, axis=-1)
  logp_T = logits_TxV[np.arange(len(continuation)), continuation] - norm_T
  return logp_T.sum(), bool((logits_TxV.argmax(-1) == continuation).all())


@needs_harness
def test_continuations_have_the_probabilities_of_a_plain_loop(lm):
  tokenizer = lm.tokenizer
  model = harness.HarnessModel(lm)
  texts = [
    ('Marta lives in', ' Paris'),
    ('Marta lives in', ' jazz and violin'),
    ('Marta lives in ', 'Swahili'),  # the space belongs to the continuation
    ('Marta lives in', ' Paris'),
    ('It is big. ' * 20 + 'Ove plays in', ' Paris'),  # beyond the positions
    ('', 'Paris'),
  ]
  found = model.loglikelihood(_requests(*texts))
  for (context, continuation), (logp, is_greedy) in zip(texts, found, strict=True):
    if context:
      before = tokenizer(context.rstrip())['input_ids']
      after = tokenizer(context + continuation)['input_ids'][len(before) :]
    else:
      before = [model.prefix_token_id]
      after = tokenizer(continuation, add_special_tokens=False)['input_ids']
    whole = [*before, *after][-(LENGTH + 1) :]
    expected, is_top = _logp(lm, whole[: -len(after)], after)
    assert logp == pytest.approx(expected, abs=1e-4) and is_greedy == is_top
  assert found[0] == found[3]
  context = tokenizer('Marta lives in')['input_ids']
  top = [int(tiny.logits(lm.model, context)[-1].argmax())]
  assert [each for _, each in model._scores([(context, top), (context, [top[0] - 1])])] == [1, 0]


@needs_harness
def test_a_model_without_probabilities_is_refused(gptj):
  broken = dataclasses.replace(gptj, params=jax.tree.map(lambda x: x * np.nan, gptj.params))
  with pytest.raises(UserError, match="2 texts of the harness are not numbers.*'a b'"):
    harness.HarnessModel(broken).loglikelihood(_requests(('a', ' b'), ('a', ' c')))


@needs_harness
def test_whole_texts_are_scored_in_windows(lm):
  model = harness.HarnessModel(lm)
  texts = ['Paris', 'It is big. Anna built a violin. ' * 8]
  found = model.loglikelihood_rolling(_requests(*((text,) for text in texts)))
  for text, logp in zip(texts, found, strict=True):
    ids, expected, done = lm.tokenizer(text)['input_ids'], 0.0, 0
    while done < len(ids):
      stop = min(done + LENGTH, len(ids))
      read = [model.prefix_token_id, *ids][max(stop - LENGTH, 0) : stop]  # as much as fits
      count = stop - done
      expected += _logp(lm, read[: len(read) - count + 1], ids[done:stop])[0]
      done = stop
    assert logp == pytest.approx(expected, abs=1e-3)
  assert len(lm.tokenizer(texts[1])['input_ids']) > LENGTH


@needs_harness
def test_texts_end_before_a_stop_string(gptj, monkeypatch):
  lm = gptj
  model = harness.HarnessModel(lm)
  contexts = ['Marta lives in', 'Ove plays', 'It is big. ' * 20]
  settings = {'until': [], 'max_gen_toks': 12, 'do_sample': False, 'temperature': 0.0}
  whole = model.generate_until(_requests(*((text, settings) for text in contexts)))
  expected = lm.generate(contexts[:2], max_new_tokens=12)
  assert [c + w for c, w in zip(contexts, whole)][:2] == expected and whole[2]
  # One stop string inside a token, one across two tokens.
  ids = lm.tokenizer(whole[0], add_special_tokens=False)['input_ids']
  across = lm.tokenizer.decode(ids[3:5])
  for stop, size in ((whole[0][6:8], 64), (across, 5)):  # in one round, and in several
    monkeypatch.setattr(harness, '_ROUND', size)
    limited = {**settings, 'until': stop}
    found = model.generate_until(_requests(*((text, limited) for text in contexts)))
    assert found == [text.split(stop)[0] for text in whole]


@needs_harness
def test_sampling_is_that_of_the_harness(gptj):
  model = harness.HarnessModel(gptj)
  greedy = model.generate_until(_requests(('Ove plays', {'max_gen_toks': 8, 'top_p': 0.9})))
  settings = {'do_sample': True, 'temperature': 0.7, 'max_gen_toks': 8}
  requests = _requests(*[('Ove plays', settings)] * 4)  # repeats of one document
  found = model.generate_until(requests)
  assert len({*found, *greedy}) > 2 and found == model.generate_until(requests)
  with pytest.raises(UserError, match='samples with top_p=0.9'):
    model.generate_until(_requests(('Ove plays', {**settings, 'top_p': 0.9})))


@pytest.fixture(scope='module')
def task(tmp_path_factory):
  """A file with a multiple-choice task of the test's own."""
  return write_choices(tmp_path_factory.mktemp('tasks'))


@needs_harness
def test_tasks_are_compared_before_and_after(made, task, tmp_path, monkeypatch):
  lm = jedit.load(made / 'model')
  path = '/'.join(jedit.models.kernel_path(jedit.Kernel(1, 'mlp')))
  rng = np.random.default_rng(0)
  update = Update.from_factors(rng.normal(size=(48, 1)), 3 * rng.normal(size=(1, 32)))
  edited = lm.apply(Patch({path: update}, {}))
  table = downstream.evaluate_tasks(edited, [task], lm, num_shots=1, store=tmp_path)
  [result] = table.results
  assert (result.task, result.metric, result.num_shots) == ('towns', 'acc', 1)
  assert result.num_documents == 4 and result.higher_is_better
  assert 'towns' in str(table) and 'acc ↑' in table._repr_html_()
  monkeypatch.setattr(downstream, '_run', None)  # calling it would fail
  again = downstream.evaluate_tasks(edited, [task], lm, num_shots=1, store=tmp_path)
  assert again == table
  monkeypatch.undo()
  alone = downstream.evaluate_tasks(lm, [task], limit=2)
  assert alone.results[0].num_documents == 2 and alone.results[0].before is None


@needs_harness
def test_the_harness_knows_jedit_by_name(gptj):
  harness.register()
  harness.register()
  kind = harness.library('lm_eval.api.registry').get_model('jedit')
  model = kind.create_from_arg_string(f'pretrained={gptj.source}', {'batch_size': 1})
  assert isinstance(model, harness.library('lm_eval.api.model').LM)
  assert model.lm.fingerprint == gptj.fingerprint
  with pytest.raises(UserError, match="model_args has 'peft'"):
    kind.create_from_arg_string('pretrained=x,peft=y')


@needs_harness
def test_a_task_that_is_not_there_is_named(gptj, task, tmp_path, monkeypatch):
  tasks = harness.library('lm_eval.tasks')
  few = functools.partial(tasks.TaskManager, include_defaults=False)  # thousands of files
  monkeypatch.setattr(
    tasks, 'TaskManager', lambda include_path, include_defaults: few(include_path=include_path)
  )
  with pytest.raises(UserError, match="no harness task 'capitals'"):
    downstream.check_tasks([task, 'capitals'])
  broken = write_task(tmp_path, 'broken', [], output_type='multiple_choice')
  with pytest.raises(UserError, match="task '.*broken.yaml' cannot be loaded"):
    downstream.evaluate_tasks(gptj, [broken])
  with pytest.raises(UserError, match='no harness task; name at least one'):
    downstream.check_tasks([])


def test_without_the_package_the_extra_is_named(monkeypatch):
  for name in [name for name in sys.modules if name.split('.')[0] == 'lm_eval']:
    monkeypatch.delitem(sys.modules, name)
  monkeypatch.setitem(sys.modules, 'lm_eval', None)
  with pytest.raises(UserError, match=r"pip install 'jedit\[lm_eval\]'"):
    downstream.check_tasks(['piqa'])
