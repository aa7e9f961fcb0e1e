"""Evaluation against stored reference numbers, at the tolerances that stand beside them.

The folders come from the environment variable JEDIT_GOLDEN (several paths joined by ':'), by
default ../shared/golden; in each, `evaluation` holds the numbers and `models` the models.
"""

import functools
import json
import os
import pathlib
from types import SimpleNamespace

import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import load_file

from jedit import types
from jedit.evals import evaluate as evaluate_lib
from jedit.evals import generation, metrics, scoring, zsre_reference
from jedit.models import FAMILIES, Model, encoding
from jedit.models.tokenizer import load_tokenizer

_DEFAULT = pathlib.Path(__file__).parents[2] / '..' / 'shared' / 'golden'
_FOLDERS = [pathlib.Path(p) for p in os.environ.get('JEDIT_GOLDEN', str(_DEFAULT)).split(':') if p]
_CASES = [folder for folder in _FOLDERS if (folder / 'evaluation').is_dir()]
_MODELS = ('gptj_a', 'llama_a')
_STATES = ('unedited', 'edited')
_PARTS = {'efficacy': slice(0, 1), 'paraphrase': slice(1, 3), 'neighborhood': slice(3, 13)}


@functools.cache
def _load(folder, model, state):
  """Model with float32 parameters; in the edited state some tensors are replaced."""
  directory = folder / 'models' / model
  hf_config = json.loads((directory / 'config.json').read_text())
  family = FAMILIES[hf_config['model_type']]
  config = family.read_config(hf_config, 'float32')
  tensors = load_file(directory / 'model.safetensors')
  if state == 'edited':
    with np.load(folder / 'evaluation' / f'edited_{model}.npz') as replaced:
      assert set(replaced.files) <= set(tensors), replaced.files
      tensors.update({name: replaced[name] for name in replaced.files})
  params: dict = {}
  for hf_name, path, kind in family.names:
    for layer in range(config.num_layers if '{}' in hf_name else 1):
      if (tensor := tensors.get(hf_name.replace('{}', str(layer)))) is None:
        continue
      *parents, leaf = path.replace('{}', str(layer)).split('/')
      node = params
      for name in parents:
        node = node.setdefault(name, {})
      node[leaf] = tensor.T if kind == 'kernel' else tensor
  return SimpleNamespace(
    config=config,
    model=Model(params, config=config),
    tokenizer=load_tokenizer(directory),
  )


def _npz(folder, name):
  with np.load(folder / 'evaluation' / name) as stored:
    return {key: stored[key] for key in stored.files}


def _json(folder, name):
  return json.loads((folder / 'evaluation' / name).read_text())


def _encoded(ids, start):
  ids = tuple(int(i) for i in ids if i >= 0)
  return encoding.Encoded('', ids, None, int(start) - 1, int(start))


def _counterfact_record(entry, case_id):
  rewrite = entry['requested_rewrite']
  request = types.Request(
    rewrite['prompt'],
    rewrite['subject'],
    rewrite['target_new']['str'],
    target_true=rewrite['target_true']['str'],
  )
  return types.Record(
    case_id,
    request,
    tuple(entry['paraphrase_prompts']),
    tuple(entry['neighborhood_prompts']),
  )


def _zsre_record(entry, case_id):
  prompt = entry['src'].replace(entry['subject'], '{}')
  request = types.Request(prompt, entry['subject'], entry['answers'][0])
  return types.Record(
    case_id,
    request,
    paraphrase_prompts=(entry['rephrase'],),
    neighborhood_prompts=(entry['loc'] + '?',),
    neighborhood_target=entry['loc_ans'],
  )


_EACH = [(folder, model, state) for folder in _CASES for model in _MODELS for state in _STATES]


class GoldenEvaluationTest(parameterized.TestCase):
  def setUp(self):
    super().setUp()
    if not _CASES:
      self.skipTest(f'no folder "evaluation" in {", ".join(str(f) for f in _FOLDERS)}')

  def _assert_tokens(self, scores, logp, top, length):
    width = scores.logp_NxT.shape[1]
    exists = np.arange(width) < length[:, None]
    np.testing.assert_array_equal(scores.length_N, length)
    np.testing.assert_allclose(
      np.where(exists, scores.logp_NxT, 0), np.where(exists, logp[:, :width], 0), atol=1e-4
    )
    np.testing.assert_array_equal(np.where(exists, scores.is_top_NxT, -1), top[:, :width])

  def _assert_summary(self, found, golden):
    self.assertEqual(set(found), set(golden))
    for name, wanted in golden.items():
      tolerance = 1e-3 if name.endswith('_magnitude') else 1e-6
      self.assertAlmostEqual(found[name]['mean'], wanted['mean'], delta=tolerance, msg=name)
      if name != 'score':
        self.assertAlmostEqual(found[name]['ci95'], wanted['ci95'], delta=tolerance, msg=name)
        self.assertEqual(found[name]['n'], wanted['n'], msg=name)

  @parameterized.parameters(*(_EACH or [(None, '', '')]))
  def test_counterfact_tokens(self, folder, model, state):
    lm, golden = _load(folder, model, state), _npz(folder, 'counterfact.npz')
    ids = golden[f'{model}__ids']
    start = golden[f'{model}__target_start']
    rows = [_encoded(*row) for row in zip(ids.reshape(-1, ids.shape[-1]), start.ravel())]
    scores = scoring.score(lm.model, rows)
    logp, top, nll, exact = (
      golden[f'{model}__{state}__{name}'] for name in ('token_logp', 'token_top', 'nll', 'exact')
    )
    length = (golden[f'{model}__length'] - start).ravel()
    width = logp.shape[-1]
    self._assert_tokens(scores, logp.reshape(-1, width), top.reshape(-1, width), length)
    np.testing.assert_allclose(scores.nll_N, nll.ravel(), atol=1e-4)
    wanted = np.array([0] * 3 + [1] * 10)
    exact_RxP = scores.exact_N.reshape(nll.shape)[:, np.arange(13), wanted]
    np.testing.assert_array_equal(exact_RxP, exact)

  @parameterized.parameters(*(_EACH or [(None, '', '')]))
  def test_counterfact_from_text(self, folder, model, state):
    entries = _json(folder, 'counterfact_records.json')
    records = [_counterfact_record(entry, i) for i, entry in enumerate(entries)]
    table = evaluate_lib.evaluate(_load(folder, model, state), records)
    golden = _npz(folder, 'counterfact.npz')
    for name in (*metrics.SUCCESS, *metrics.MAGNITUDE, *metrics.ACCURACY):
      tolerance = 1e-3 if name.endswith('_magnitude') else 1e-6
      wanted = 100 * golden[f'{model}__{state}__record_{name}']
      np.testing.assert_allclose(table.after[name], wanted, atol=tolerance, err_msg=name)
    summary = {name: value['after'] for name, value in table.metrics.items()}
    self._assert_summary(summary, _json(folder, 'summary.json')['counterfact'][model][state])

  @parameterized.parameters(*(_EACH or [(None, '', '')]))
  def test_zsre_tokens(self, folder, model, state):
    lm, golden = _load(folder, model, state), _npz(folder, 'zsre.npz')
    for part in _PARTS:
      ids, start = golden[f'{model}__{part}__ids'], golden[f'{model}__{part}__target_start']
      rows = [_encoded(*row) for row in zip(ids, start)]
      scores = scoring.score(lm.model, rows)
      logp, top = (
        golden[f'{model}__{state}__{part}__{name}'] for name in ('token_logp', 'token_top')
      )
      self._assert_tokens(scores, logp, top, np.sum(ids >= 0, axis=1) - start)

  @parameterized.parameters(*(_EACH or [(None, '', '')]))
  def test_zsre_from_text(self, folder, model, state):
    entries = _json(folder, 'zsre_records.json')
    records = [_zsre_record(entry, i) for i, entry in enumerate(entries)]
    table = evaluate_lib.evaluate(_load(folder, model, state), records)
    golden = _npz(folder, 'zsre.npz')
    for name in metrics.ACCURACY:
      wanted = 100 * golden[f'{model}__{state}__record_{name}']
      np.testing.assert_allclose(table.after[name], wanted, atol=1e-6, err_msg=name)
    summary = {name: value['after'] for name, value in table.metrics.items()}
    wanted = _json(folder, 'summary.json')['zsre'][model][state]['token_ids']
    self._assert_summary(summary, wanted)

  @parameterized.parameters(*([each for each in _EACH if each[1] == 'gptj_a'] or [(None, '', '')]))
  def test_zsre_by_the_published_procedure(self, folder, model, state):
    lm = _load(folder, model, state)
    entries = _json(folder, 'zsre_records.json')
    records = [_zsre_record(entry, i) for i, entry in enumerate(entries)]
    golden = _npz(folder, 'zsre.npz')
    asked = {
      'efficacy': [encoding.Row(e['src'], target=e['answers'][0]) for e in entries],
      'paraphrase': [encoding.Row(e['rephrase'], target=e['answers'][0]) for e in entries],
      'neighborhood': [encoding.Row(e['loc'] + '?', target=e['loc_ans']) for e in entries],
    }
    for part, rows in asked.items():
      top = golden[f'{model}__{state}__{part}__token_top_reencoded']
      found = zsre_reference.token_accuracy(lm, rows)
      width = found.shape[1]
      np.testing.assert_array_equal(np.where(top[:, :width] < 0, 0, top[:, :width]), found)
      self.assertTrue(np.all(top[:, width:] < 0))
    table = evaluate_lib.evaluate(lm, records, reencode=True)
    summary = {name: value['after'] for name, value in table.metrics.items()}
    self._assert_summary(summary, _json(folder, 'summary.json')['zsre'][model][state]['reencoded'])

  @parameterized.parameters(*(_EACH[::2] or [(None, '', '')]))
  def test_essence(self, folder, model, state):
    cases = _json(folder, 'essence.json')[model]
    found = generation.perplexities(_load(folder, model, state), [c['text'] for c in cases])
    np.testing.assert_allclose(found, [c['divided_by_n'] for c in cases], rtol=1e-5)

  @parameterized.parameters(*([(folder,) for folder in _CASES] or [(None,)]))
  def test_aggregation(self, folder):
    for case in _json(folder, 'aggregate.json')['counterfact'].values():
      nll, exact = np.array(case['nll']), np.array(case['exact'])
      by_record = []
      for r in range(len(nll)):
        parts = {}
        for part, chosen in _PARTS.items():
          new, true = nll[r, chosen, 0], nll[r, chosen, 1]
          wanted, other = (true, new) if part == 'neighborhood' else (new, true)
          parts[part] = metrics.PartScores(exact[r, chosen], wanted, other)
        by_record.append(metrics.record_values(parts))
      values = {name: np.array([v[name] for v in by_record]) for name in by_record[0]}
      for name, wanted in case['per_record'].items():
        np.testing.assert_allclose(values[name], 100 * np.array(wanted), atol=1e-9, err_msg=name)
      self._assert_summary(metrics.summarize(values), case['summary'])

  @parameterized.parameters(*([(folder,) for folder in _CASES] or [(None,)]))
  def test_aggregation_over_runs(self, folder):
    for case in _json(folder, 'aggregate.json')['across_runs']:
      found = [metrics.summarize_runs(column) for column in np.array(case['values']).T]
      np.testing.assert_allclose([f['mean'] for f in found], case['mean'], rtol=1e-12)
      np.testing.assert_allclose([f['ci95'] for f in found], case['half_width'], rtol=1e-9)
      self.assertEqual({f['n'] for f in found}, {len(case['values'])})
      self.assertEqual(metrics.rounded_score(case['mean']), case['score_integer'])


if __name__ == '__main__':
  absltest.main()
