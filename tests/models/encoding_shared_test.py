"""Positions on real records and golden numbers, where they are at hand."""

import itertools
import json

import numpy as np
from absl.testing import absltest, parameterized

from helpers import vocabularies as helpers
from jedit.models import encoding
from jedit.models.tokenizer import load_tokenizer


class SharedDataTest(parameterized.TestCase):
  def _read(self, path):
    file = helpers.SHARED / path
    if not file.exists():
      self.skipTest(f'needs {file}')
    return json.loads(file.read_text('utf-8')) if file.suffix == '.json' else np.load(file)

  @parameterized.parameters(*helpers.REAL)
  def test_zsre_agrees_with_decoding(self, name):
    tokenizer = helpers.real(self, name)
    rows = []
    for record in self._read('data/zsre/zsre_mend_eval.json'):
      prompt = record['src'].replace(record['subject'], '{}')
      rows.append(encoding.Row(prompt, record['subject'], record['answers'][0]))
    for row, encoded in zip(rows, encoding.encode_many(tokenizer, rows)):
      helpers.check_positions(self, tokenizer, row, encoded)

  def test_how_often_llama_starts_an_object_with_a_lone_space(self):
    # The counts are those of an independent implementation of the rule.
    tokenizer = helpers.real(self, 'llama')
    space = tokenizer.convert_tokens_to_ids('\u2581')
    records = self._read('data/zsre/zsre_mend_eval.json')
    for rows, expected in (
      ([encoding.Row(r['src'], target=r['answers'][0]) for r in records], 118),
      ([encoding.Row(r['loc'] + '?', target=r['loc_ans']) for r in records], 83),
      (
        [
          encoding.Row(r['prompt'], target=r['target_new'])
          for r in self._read('data/counterfact/counterfact_edit_10k.json')
        ],
        0,
      ),
    ):
      encoded = encoding.encode_many(tokenizer, rows)
      self.assertEqual(sum(e.target_ids[0] == space for e in encoded), expected)

  def test_golden_edit_rows(self):
    cases = sorted((helpers.SHARED / 'golden').glob('*/tokens.json'))
    if not cases:
      self.skipTest(f'needs {helpers.SHARED / "golden"}')
    for file in cases:
      with self.subTest(file.parent.name):
        self._check_case(file.parent)

  def _check_case(self, folder):
    read = lambda name: json.loads((folder / name).read_text('utf-8'))  # noqa: E731
    tokenizer = load_tokenizer(folder / read('hparams.json')['model'])
    outputs = np.load(folder / 'outputs.npz')
    where = {delta['name']: delta['where'] for delta in read('plan.json')['deltas']}
    contexts = list(itertools.chain(*read('contexts.json')))
    for n, (request, tokens) in enumerate(zip(read('requests.json'), read('tokens.json'))):
      target = request['target_new']['str']
      rows = [encoding.Row(request['prompt'], request['subject'], target, c) for c in contexts]
      encoded = encoding.encode_many(tokenizer, rows)
      kl = encoding.encode(tokenizer, '{} is a', subject=request['subject'])
      ids = [list(e.ids[:-1]) for e in encoded] + [list(kl.ids)]
      self.assertEqual(ids, tokens['row_ids'])
      positions = [list(range(e.prompt_last, len(e.ids) - 1)) for e in encoded]
      self.assertEqual(positions, tokens['target_positions'])
      for each in encoded:
        self.assertEqual(list(each.target_ids), tokens['target_ids'])
      self.assertEqual(kl.subject_last, outputs['lookup_kl'][n])
      for name, place in where.items():
        self.assertIn(place, ('subject_last', 'prompt_last'))
        expected = [getattr(e, place) for e in [*encoded, kl]]
        np.testing.assert_array_equal(outputs[f'lookup__{name}'][n], expected)

  @parameterized.parameters('gptj_a', 'llama_a')
  def test_golden_evaluation_rows(self, model):
    counterfact = self._read('golden/evaluation/counterfact.npz')
    tokenizer = load_tokenizer(helpers.SHARED / 'golden' / 'models' / model)
    for n, record in enumerate(self._read('golden/evaluation/counterfact_records.json')):
      rewrite = record['requested_rewrite']
      texts = [rewrite['prompt'].replace('{}', rewrite['subject'])]
      texts += record['paraphrase_prompts'] + record['neighborhood_prompts']
      for p, text in enumerate(texts):
        for o, name in enumerate(('target_new', 'target_true')):
          self._check_row(
            encoding.encode(tokenizer, text, target=rewrite[name]['str']),
            counterfact[f'{model}__ids'][n, p, o],
            counterfact[f'{model}__target_start'][n, p, o],
          )
    zsre = self._read('golden/evaluation/zsre.npz')
    for n, record in enumerate(self._read('golden/evaluation/zsre_records.json')):
      for part, text, target in (
        ('efficacy', record['src'], record['answers'][0]),
        ('paraphrase', record['rephrase'], record['answers'][0]),
        ('neighborhood', record['loc'] + '?', record['loc_ans']),
      ):
        self._check_row(
          encoding.encode(tokenizer, text, target=target),
          zsre[f'{model}__{part}__ids'][n],
          zsre[f'{model}__{part}__target_start'][n],
        )
    position = self._read('golden/evaluation/probes.npz')[f'{model}__contrast__position']
    for n, record in enumerate(self._read('golden/evaluation/probe_records.json')):
      rewrite = record['requested_rewrite']
      encoded = encoding.encode(tokenizer, rewrite['prompt'], subject=rewrite['subject'])
      self.assertEqual([encoded.subject_last, encoded.prompt_last], position[:, n].tolist())

  def _check_row(self, encoded, id_S, target_start):
    self.assertEqual(list(encoded.ids), id_S[id_S >= 0].tolist())
    self.assertEqual(encoded.target_start, target_start)

  def test_llama_is_what_sentencepiece_gives(self):
    tokenizer = helpers.real(self, 'llama')
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(
      model_file=str(helpers.SHARED / 'data' / 'tokenizers' / 'llama' / 'tokenizer.model')
    )
    texts = [f'a{" " * n}b c' for n in range(30)] + [' x', '   x', 'ﬁ ①\ttab\nline']
    for record in self._read('data/zsre/zsre_mend_eval.json'):
      texts += [f'{record["src"]} {record["answers"][0]}', f'{record["loc"]}? {record["loc_ans"]}']
    for text in texts:
      self.assertEqual(tokenizer(text)['input_ids'], [model.bos_id(), *model.encode(text)], text)


if __name__ == '__main__':
  absltest.main()
